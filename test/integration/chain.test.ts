/** The escrow on a real EVM: a lease in both tokens, every refusal in words, gas, and reads that never guess. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Interface } from 'ethers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { connectEscrow, encodeCalls } from '../../operator/adapters/chain/escrow-client.ts';
import {
  authorizationNonce,
  hashQuote,
  hashRelease,
  hashVoucher,
  leaseIdOf,
  signQuote,
  signRelease,
  signVoucher,
  verifyQuote,
  verifyRelease,
  verifyVoucher,
} from '../../operator/adapters/chain/messages.ts';
import { ChainUnavailable, connectRpc, NoContract, WrongChain } from '../../operator/adapters/chain/rpc.ts';
import type { Address, Hex, Hex32, Quote } from '../../operator/api/messages.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { finalizableAt } from '../../operator/core/money/escrow.ts';
import { feeOf, priceOf } from '../../operator/core/money/price.ts';
import { type EscrowChain, startEscrowChain } from '../support/escrow-chain.ts';

let chain: EscrowChain;
beforeAll(async () => {
  chain = await startEscrowChain();
  for (const token of [chain.usdc, chain.gpu]) await chain.send(chain.keys.consumer, chain.client.calls.approve(token));
}, 60_000);
afterAll(() => chain?.stop());

/** Opens an escrow and says what became of it. */
async function open(changes: Partial<Quote> = {}, deposit?: bigint) {
  const { client, keys } = chain;
  const quote = await chain.quote(changes);
  const amount = deposit ?? priceOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour);
  const signed = await signQuote(keys.provider, client.domain, quote);
  const receipt = await chain.send(keys.consumer, client.calls.open(signed, keys.session.address, amount));
  return { quote, signed, receipt, deposit: amount, leaseId: leaseIdOf(quote.consumer, quote.leaseRef) };
}

const voucher = (leaseId: Hex32, servedSeconds: number, last = false) =>
  signVoucher(chain.keys.session, chain.client.domain, { leaseId, servedSeconds, last });

describe('a lease on chain', () => {
  it.each([
    'USDC',
    'GPU',
  ] as const)('is opened, settled, closed and refunded to the base unit in %s', async (symbol) => {
    const { client, keys } = chain;
    const { address: token, decimals, feeBps } = chain.deployment.tokens[symbol]!;
    const before = await client.totals(token);
    const price = symbol === 'USDC' ? 340_001n : 123_456_789_012_345_678n;
    const { leaseId, deposit, receipt, quote } = await open({ token, pricePerGpuHour: price, gpus: 3 });
    expect(receipt.status).toBe(1);
    expect(await client.token(token)).toEqual({ address: token, symbol, decimals, feeBps, allowed: true });

    const opened = (await client.lease(leaseId))!;
    expect(opened).toMatchObject({
      deposit,
      closed: false,
      closeReason: 'Open',
      quoteHash: hashQuote(client.domain, quote),
    });

    await chain.pass(100);
    await chain.send(keys.stranger, client.calls.settle(await voucher(leaseId, 37)));
    expect((await client.lease(leaseId))!.claimed).toBe(priceOf(37, 3, price));

    const payeeBefore = await client.credit(token, keys.provider.address);
    await chain.send(keys.provider, client.calls.close(await voucher(leaseId, 91, true)));
    const closed = (await client.lease(leaseId))!;
    const claimed = priceOf(91, 3, price);
    expect(closed).toMatchObject({
      claimed,
      feeTaken: feeOf(claimed, feeBps),
      refunded: deposit - claimed,
      servedSeconds: 91,
      closed: true,
      closeReason: 'LastVoucher',
    });
    // 37 seconds were paid before `payeeBefore` was read.
    const earlier = priceOf(37, 3, price) - feeOf(priceOf(37, 3, price), feeBps);
    expect((await client.credit(token, keys.provider.address)) - payeeBefore).toBe(claimed - closed.feeTaken - earlier);

    const after = await client.totals(token);
    expect(after.deposited - before.deposited).toBe(deposit);
    expect(after.deposited).toBe(after.paid + after.fee + after.refunded + after.held);
    expect(await client.balance(token, client.address)).toBe(after.deposited - after.withdrawn);

    for (const key of [keys.consumer, keys.provider]) {
      const credit = await client.credit(token, key.address);
      const balance = await client.balance(token, key.address);
      expect((await chain.send(key, client.calls.withdraw(token, key.address))).status).toBe(1);
      expect(await client.balance(token, key.address)).toBe(balance + credit);
    }
  });

  it('costs at most 340,000 gas from the second lease of a consumer on, in two transactions', async () => {
    const { client, keys } = chain;
    const first = await open();
    await chain.pass(50);
    await chain.send(keys.provider, client.calls.close(await voucher(first.leaseId, 40, true)));
    const second = await open();
    await chain.pass(50);
    const close = await chain.send(keys.provider, client.calls.close(await voucher(second.leaseId, 40, true)));
    expect(second.receipt.gasUsed + close.gasUsed).toBeLessThanOrEqual(340_000n);
  });

  it('hashes messages as the contract does', async () => {
    const { client, rpc } = chain;
    const abi = new Interface(leaseEscrow.abi);
    const ask = async (method: string, args: unknown[]) => {
      const data = abi.encodeFunctionData(method, args) as Hex;
      return abi.decodeFunctionResult(method, await rpc.contractCall({ to: client.address, data }))[0];
    };
    const quote = await chain.quote({ referrer: chain.keys.referrer.address, referrerBps: 1234, capacityType: 1 });
    const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
    const quoteHash = hashQuote(client.domain, quote);
    expect(await ask('hashQuote', [quote])).toBe(quoteHash);
    const signer = chain.keys.session.address;
    expect(await ask('authorizationNonce', [quoteHash, signer])).toBe(authorizationNonce(quoteHash, signer));
    expect(await ask('leaseIdOf', [quote.consumer, quote.leaseRef])).toBe(leaseId);
    for (const last of [true, false]) {
      const message = { leaseId, servedSeconds: 4321, last };
      expect(await ask('hashVoucher', [message])).toBe(hashVoucher(client.domain, message));
    }
    const release = { leaseId, servedSeconds: 99 };
    expect(await ask('hashRelease', [release])).toBe(hashRelease(client.domain, release));
  });

  it('accepts here what it accepts there: signatures verify for their signer only', async () => {
    const { client, keys } = chain;
    const signed = await signQuote(keys.provider, client.domain, await chain.quote());
    await verifyQuote(client.domain, signed, client.rpc);
    const forged = await signQuote(keys.stranger, client.domain, signed.message);
    await expect(verifyQuote(client.domain, forged, client.rpc)).rejects.toMatchObject({
      name: 'SignatureMismatch',
      recovered: keys.stranger.address,
    });
    const leaseId = leaseIdOf(signed.message.consumer, signed.message.leaseRef);
    verifyVoucher(client.domain, await voucher(leaseId, 5), keys.session.address);
    const elsewhere = { ...client.domain, chainId: 1 };
    expect(() =>
      verifyVoucher(
        elsewhere,
        { message: { leaseId, servedSeconds: 5, last: false }, signature: '0x00' },
        keys.session.address,
      ),
    ).toThrow(/no readable signature/);
    await verifyRelease(
      client.domain,
      await signRelease(keys.provider, client.domain, { leaseId, servedSeconds: 5 }),
      keys.provider.address,
    );
  });

  it('pays what was served when the consumer goes away, and the rest back, without its help', async () => {
    const { client, keys } = chain;
    const { leaseId, deposit } = await open({ maxSeconds: 600 });
    await chain.pass(200);
    await chain.send(
      keys.stranger,
      client.calls.settleMany([await voucher(leaseId, 150), await voucher(leaseId, 120)]),
    );
    const lease = (await client.lease(leaseId))!;
    await chain.pass(finalizableAt(lease, client.claimWindowSeconds) - (await chain.now()));
    expect((await chain.send(keys.stranger, client.calls.finalize(leaseId))).status).toBe(1);
    expect(await client.lease(leaseId)).toMatchObject({
      claimed: priceOf(150, 1, 340_000n),
      refunded: deposit - priceOf(150, 1, 340_000n),
      closeReason: 'Expired',
    });
  });
});

describe('refusals', () => {
  it('name the error, whether it can pass, and the fix', async () => {
    const { client, keys } = chain;
    const { calls } = client;
    const { leaseId, signed } = await open();
    const deposit = priceOf(3600, 1, 340_000n);
    const signedBy = async (changes: Partial<Quote>, key = keys.provider) =>
      signQuote(key, client.domain, await chain.quote(changes));
    const openOf = async (changes: Partial<Quote>, amount = deposit, key = keys.provider) =>
      calls.open(await signedBy(changes, key), keys.session.address, amount);
    const cancelled = await signedBy({ nonce: 999_999n });
    await chain.send(keys.provider, calls.cancelQuote(999_999n));
    const nobody = `0x${'77'.repeat(32)}` as Hex32;

    const cases: readonly [string, boolean, RegExp, Address, Parameters<typeof client.simulate>[1]][] = [
      ['LeaseExists', true, /read its state/, keys.consumer.address, calls.open(signed, keys.session.address, deposit)],
      ['NotAuthorized', true, /use the key/, keys.stranger.address, await openOf({})],
      ['QuoteExpired', true, /ask for a new one/, keys.consumer.address, await openOf({ expiresAt: 1 })],
      ['WrongNetwork', true, /network/, keys.consumer.address, await openOf({ networkId: nobody })],
      [
        'TokenNotAllowed',
        true,
        /choose a token/,
        keys.consumer.address,
        await openOf({ token: keys.stranger.address }),
      ],
      ['BadSignature', true, /check key/, keys.consumer.address, await openOf({}, deposit, keys.stranger)],
      [
        'QuoteIsCancelled',
        true,
        /new one/,
        keys.consumer.address,
        calls.open(cancelled, keys.session.address, deposit),
      ],
      ['DepositOutOfRange', true, /choose one inside/, keys.consumer.address, await openOf({}, deposit + 1n)],
      ['InvalidTerms', true, /correct it/, keys.consumer.address, await openOf({ gpus: 0 }, 0n)],
      [
        'ERC20InsufficientAllowance',
        false,
        /approve first/,
        keys.stranger.address,
        await openOf({ consumer: keys.stranger.address }),
      ],
      ['LeaseNotFound', false, /wait until/, keys.consumer.address, calls.requestClose(nobody)],
      ['NotLastVoucher', true, /last/, keys.provider.address, calls.close(await voucher(leaseId, 5))],
      ['NotFinalizableBefore', false, /after it/, keys.stranger.address, calls.finalize(leaseId)],
      ['NothingToWithdraw', true, /nothing/, keys.stranger.address, calls.withdraw(chain.usdc, keys.stranger.address)],
      ['BadReceiver', true, /another receiver/, keys.provider.address, calls.withdraw(chain.usdc, client.address)],
      ['LeaseIsOpen', false, /after its close/, keys.stranger.address, calls.refundSponsor(leaseId, 0)],
      ['OwnableUnauthorizedAccount', true, /owner/, keys.stranger.address, calls.setOpensPaused(true)],
    ];
    for (const [name, terminal, message, from, call] of cases) {
      const refusal = await client.simulate(from, call);
      expect(refusal, name).toMatchObject({ name, terminal });
      expect(refusal!.message).toMatch(message);
    }
    await chain.send(keys.deployer, calls.setOpensPaused(true));
    expect(await client.simulate(keys.consumer.address, await openOf({}))).toMatchObject({
      name: 'OpensArePaused',
      terminal: false,
    });
    await chain.send(keys.deployer, calls.setOpensPaused(false));
  });
});

describe('a deployment', () => {
  const command = new URL('../../operator/cmd/deploy-contracts.ts', import.meta.url).pathname;
  const run = (...args: string[]) =>
    new Promise<{ code: number; out: string; err: string }>((resolve) => {
      execFile(process.execPath, [command, ...args], (error, out, err) =>
        resolve({ code: Number(error?.code ?? 0), out, err }),
      );
    });
  const secret = () => chain.anvil.accounts[7]!.privateKey;

  it('is made once: a second run keeps it, a cut-off one goes on, a changed fee is made good', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'gpulease-deploy-'));
    const [keyFile, out] = [join(dir, 'key'), join(dir, 'addresses.json')];
    await writeFile(keyFile, secret());
    const common = ['--rpc-url', chain.anvil.rpcUrl, '--key-file', keyFile, '--out', out];

    const dry = await run(...common, '--dry-run');
    expect(dry).toMatchObject({ code: 0, err: expect.stringMatching(/planned +LeaseEscrow/) });
    await expect(readFile(out)).rejects.toThrow();

    const first = await run(...common, '--claim-window-seconds', '77');
    expect(first.code).toBe(0);
    const deployment = JSON.parse(first.out);
    expect(JSON.parse(await readFile(out, 'utf8'))).toEqual(deployment);
    expect(deployment).toMatchObject({
      chainId: 31337,
      claimWindowSeconds: 77,
      tokens: { USDC: { decimals: 6, feeBps: 200 } },
    });
    // What was planned is what came: the dry run knew the addresses.
    expect(dry.err).toContain(deployment.escrow);
    const client = await connectEscrow({ rpc: chain.rpc, escrow: deployment.escrow });
    expect(client.claimWindowSeconds).toBe(77);
    expect(await client.token(deployment.tokens.GPU.address)).toMatchObject({
      symbol: 'GPU',
      feeBps: 0,
      allowed: true,
    });

    const second = await run(...common);
    expect(second.err).toMatch(/^0 transactions/m);
    expect(JSON.parse(second.out)).toEqual(deployment);

    const { GPU: _, ...tokens } = deployment.tokens;
    await writeFile(out, JSON.stringify({ ...deployment, tokens }));
    const third = await run(...common, '--tokens', 'USDC=mock@300,GPU=gpu');
    expect(third.err).toMatch(/^3 transactions/m);
    expect(JSON.parse(third.out)).toMatchObject({
      escrow: deployment.escrow,
      tokens: { USDC: { ...tokens.USDC, feeBps: 300 } },
    });
    expect((await client.token(tokens.USDC.address)).feeBps).toBe(300);
    expect(first.err + first.out + third.err).not.toContain(secret().slice(2));
    await rm(dir, { recursive: true });
  });

  it('is governed through a timelock, or by an owner who accepts, and a run that was cut off goes on', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'gpulease-deploy-'));
    const [keyFile, out] = [join(dir, 'key'), join(dir, 'addresses.json')];
    await writeFile(keyFile, secret());
    const { keys, rpc, client: main } = chain;
    const governor = keys.referrer;
    const common = ['--rpc-url', chain.anvil.rpcUrl, '--key-file', keyFile, '--out', out, '--tokens', 'USDC=mock'];
    const timelocked = [...common, '--owner', governor.address, '--timelock-seconds', '3600'];
    const dry = await run(...timelocked, '--dry-run');
    expect(dry, dry.err).toMatchObject({ code: 0, err: expect.stringMatching(/planned +timelock/) });

    const first = await run(...timelocked);
    expect(first, first.err).toMatchObject({ code: 0 });
    const deployment = JSON.parse(first.out);
    const { escrow, timelock, owner } = deployment;
    expect(deployment).toMatchObject({ timelock: { delaySeconds: 3600, governor: governor.address } });
    expect([owner, deployment.pendingOwner]).toEqual([timelock.address, undefined]);

    const abi = new Interface([
      ...leaseEscrow.abi,
      'function schedule(address,uint256,bytes,bytes32,bytes32,uint256)',
      'function execute(address,uint256,bytes,bytes32,bytes32)',
    ]);
    const client = await connectEscrow({ rpc, escrow });
    const pause = client.calls.setOpensPaused(true);
    const zero = `0x${'0'.repeat(64)}`;
    const change = [escrow, 0, pause.data, zero, zero];
    const call = (name: string, args: readonly unknown[]) => ({
      to: timelock.address,
      data: abi.encodeFunctionData(name, args) as Hex,
    });
    const deployer = chain.anvil.accounts[7]!.address as Address;
    expect(await client.simulate(deployer, pause)).toMatchObject({ name: 'OwnableUnauthorizedAccount' });
    expect(await client.simulate(deployer, call('schedule', [...change, 3600]))).toBeDefined();
    expect(await client.simulate(governor.address, call('schedule', [...change, 3599]))).toBeDefined();
    expect((await chain.send(governor, call('schedule', [...change, 3600]))).status).toBe(1);
    expect(await client.simulate(keys.stranger.address, call('execute', change))).toBeDefined();
    await chain.pass(3600);
    expect((await chain.send(keys.stranger, call('execute', change))).status).toBe(1);
    const paused = await rpc.contractCall({ to: escrow, data: abi.encodeFunctionData('opensPaused', []) as Hex });
    expect(BigInt(paused)).toBe(1n);

    const second = await run(...timelocked);
    expect(second.err).toMatch(/^0 transactions/m);
    expect(JSON.parse(second.out)).toEqual(deployment);

    const verified = await run('--verify', '--rpc-url', chain.anvil.rpcUrl, '--out', out);
    expect(verified.code, verified.err).toBe(1);
    expect(verified.err).toMatch(/^WRONG +new escrows +are paused$/m);
    expect(verified.err.match(/^WRONG/gm)).toHaveLength(1);
    expect(verified.err.match(/^right/gm)).toHaveLength(6);
    // One byte of a setting is not another contract's whim: it is noticed.
    await writeFile(out, JSON.stringify({ ...deployment, claimWindowSeconds: deployment.claimWindowSeconds + 1 }));
    expect((await run('--verify', '--rpc-url', chain.anvil.rpcUrl, '--out', out)).err).toMatch(
      /^WRONG +code of Lease/m,
    );

    // Of a run that was cut off, only what was written down is there.
    await writeFile(out, '{}');
    const named = await run(...common, '--owner', governor.address);
    expect(JSON.parse(named.out)).toMatchObject({ owner: deployer, pendingOwner: governor.address });
    const cut = await run(...timelocked);
    expect(cut, cut.err).toMatchObject({ code: 0 });
    expect(JSON.parse(cut.out)).toMatchObject({
      escrow: JSON.parse(named.out).escrow,
      timelock: { delaySeconds: 3600 },
    });
    expect(JSON.parse(cut.out).owner).toBe(JSON.parse(cut.out).timelock.address);

    const { timelock: _, ...forgotten } = deployment;
    await writeFile(out, JSON.stringify(forgotten));
    expect((await run(...common, '--owner', main.address)).err).toMatch(/only that account can hand it over/);
    await rm(dir, { recursive: true });
  });

  it('says what is missing or wrong', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'gpulease-deploy-'));
    const keyFile = join(dir, 'key');
    await writeFile(keyFile, secret());
    const url = ['--rpc-url', chain.anvil.rpcUrl];
    const all = [...url, '--key-file', keyFile, '--out', join(dir, 'out.json')];
    expect((await run('--help')).out).toMatch(/--claim-window-seconds/);
    const cases: readonly [string[], RegExp][] = [
      [[], /--rpc-url URL/],
      [url, /--key-file FILE/],
      [[...url, '--key-file', join(dir, 'none')], /cannot read the key file/],
      [['--rpc-url', 'http://127.0.0.1:9', '--key-file', keyFile], /no JSON-RPC endpoint answers at 127.0.0.1:9/],
      [[...all, '--tokens', 'USDC'], /NAME=SOURCE/],
      [[...all, '--tokens', 'USDC=mock@501'], /cap is 500/],
      [[...all, '--claim-window-seconds', '0'], /from 1 to/],
      [[...all, '--owner', '0x1'], /is no address/],
      [[...all, '--timelock-seconds', '59'], /from 60 to/],
      [[...all, '--tokens', `USDC=0x${'12'.repeat(20)}`], /there is no token at/],
      [[...all, '--nonsense'], /nonsense/],
    ];
    for (const [args, message] of cases) {
      const { code, err } = await run(...args);
      expect(err).toMatch(message);
      expect(code).toBe(1);
      expect(err).not.toMatch(/\n\s+at /);
    }
    await rm(dir, { recursive: true });
  });
});

describe('a connection', () => {
  it('refuses a chain that is not the configured one', async () => {
    const options = { rpcUrls: [chain.anvil.rpcUrl], chainId: 1, escrow: chain.client.address };
    await expect(connectEscrow(options)).rejects.toThrow(WrongChain);
    await expect(connectEscrow(options)).rejects.toThrow(/serves chain 31337, configured is 1/);
  });

  it('refuses an address without a contract, or with another', async () => {
    const escrow = chain.keys.stranger.address;
    await expect(connectEscrow({ rpc: chain.rpc, escrow })).rejects.toThrow(NoContract);
    await expect(connectEscrow({ rpc: chain.rpc, escrow: chain.usdc })).rejects.toThrow(
      /networkId|feeRecipient|claimWindow/,
    );
  });

  it('goes on over the next endpoint, and says unknown when none answers', async () => {
    const dead = 'http://127.0.0.1:9';
    const rpc = await connectRpc({ urls: [dead, chain.anvil.rpcUrl], chainId: 31337, timeoutMs: 2000 });
    expect(Number(await rpc.call('eth_chainId', []))).toBe(31337);
    await expect(connectRpc({ urls: [dead], chainId: 31337, timeoutMs: 500 })).rejects.toThrow(ChainUnavailable);
  });

  it('tells "there is no such escrow" from "nobody answers"', async () => {
    const nobody = `0x${'88'.repeat(32)}` as Hex32;
    expect(await chain.client.lease(nobody)).toBeUndefined();
    expect(await chain.client.lease(nobody, 'safe')).toBeUndefined();
    expect(await chain.client.leases([nobody, nobody])).toEqual([undefined, undefined]);

    let down = false;
    const flaky: typeof fetch = (...args) => (down ? Promise.reject(new TypeError('fetch failed')) : fetch(...args));
    const client = await connectEscrow({
      rpcUrls: [chain.anvil.rpcUrl],
      chainId: 31337,
      escrow: chain.client.address,
      fetch: flaky,
    });
    down = true;
    await expect(client.lease(nobody)).rejects.toThrow(ChainUnavailable);
    await expect(client.simulate(chain.keys.consumer.address, client.calls.requestClose(nobody))).rejects.toThrow(
      ChainUnavailable,
    );
  });

  it('encodes calls without any chain', () => {
    expect(encodeCalls(chain.client.address).finalize(`0x${'11'.repeat(32)}`).to).toBe(chain.client.address);
  });
});
