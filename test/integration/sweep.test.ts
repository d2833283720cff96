/** `gpulease sweep` on a real chain: who is gone gets the money back, from whoever runs it, and nobody else loses any. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Interface, Wallet } from 'ethers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { leaseIdOf, signQuote, signVoucher } from '../../operator/adapters/chain/messages.ts';
import type { Hex, Hex32 } from '../../operator/api/messages.ts';
import { runGpulease } from '../../operator/cmd/run-gpulease.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import { type EscrowChain, startEscrowChain } from '../support/escrow-chain.ts';

let chain: EscrowChain;
let dir: string;
beforeAll(async () => {
  chain = await startEscrowChain({ slotsInAnEpoch: 2, claimWindowSeconds: 600 });
  dir = await mkdtemp(join(tmpdir(), 'gpulease-sweep-'));
  for (const token of [chain.usdc, chain.gpu]) await chain.send(chain.keys.consumer, chain.client.calls.approve(token));
}, 60_000);
afterAll(async () => {
  await chain.stop();
  await rm(dir, { recursive: true, force: true });
});

const deposit = 100_000n;
const transfer = (to: string, amount: bigint) =>
  new Interface(['function transfer(address to, uint256 amount)']).encodeFunctionData('transfer', [to, amount]) as Hex;

async function open(changes: { token?: `0x${string}` } = {}): Promise<Hex32> {
  const { keys, client } = chain;
  const quote = await chain.quote(changes);
  const signed = await signQuote(keys.provider, client.domain, quote);
  expect((await chain.send(keys.consumer, client.calls.open(signed, keys.session.address, deposit))).status).toBe(1);
  return leaseIdOf(quote.consumer, quote.leaseRef);
}

const makeSafe = () => chain.anvil.rpc('anvil_mine', '0x8');

async function sweep(...more: string[]) {
  const { client } = chain;
  let [out, err] = ['', ''];
  const code = await runGpulease(
    ['sweep', '--chain', `${client.chainId}=${chain.anvil.rpcUrl}`, '--escrow', client.address, ...more],
    {
      env: {},
      stdin: async () => '',
      out: (text) => {
        out += text;
      },
      err: (text) => {
        err += text;
      },
    },
  );
  return { code, out, err, last: JSON.parse(out.trim().split('\n').at(-1) || 'null') };
}

test('finalizes what both sides have left behind, and leaves the rest alone', async () => {
  const { client, keys, usdc, gpu } = chain;
  const [left, leftGpu, closed] = [await open(), await open({ token: gpu }), await open()];
  await chain.pass(100);
  // Seconds that were settled stay earned.
  await chain.send(
    keys.provider,
    client.calls.settle(
      await signVoucher(keys.session, client.domain, { leaseId: left, servedSeconds: 90, last: false }),
    ),
  );
  await chain.send(
    keys.provider,
    client.calls.close(
      await signVoucher(keys.session, client.domain, { leaseId: closed, servedSeconds: 90, last: true }),
    ),
  );
  // A stranger gave one of them a little, which goes back to the stranger.
  const { payee } = keys;
  await chain.send(keys.consumer, { to: usdc, data: transfer(payee.address, 7_000n) });
  await chain.send(payee, client.calls.approve(usdc));
  expect((await chain.send(payee, client.calls.topUp(left, 7_000n))).status).toBe(1);
  await chain.pass(3600 + 300 + 600 + 1);
  const running = await open();
  await makeSafe();
  const refundBefore = await client.credit(usdc, keys.consumer.address);
  const nonce = () => chain.anvil.rpc<Hex>('eth_getTransactionCount', keys.stranger.address, 'latest');
  const nonceBefore = await nonce();

  const dry = await sweep();
  expect(dry.code, dry.err).toBe(0);
  expect(dry.last).toMatchObject({ sent: false, opened: 4, abandoned: 2, finalized: 2, refused: 0, more: false });
  expect(Number(dry.last.gas)).toBeGreaterThan(50_000);
  expect(dry.out).toContain('Nothing was sent');
  expect((await client.lease(left))!.closed).toBe(false);

  const keystore = join(dir, 'stranger.json');
  const wallet = new Wallet(chain.anvil.accounts[6]!.privateKey);
  expect(wallet.address).toBe(keys.stranger.address);
  await writeFile(keystore, wallet.encryptSync('open sesame'));
  await writeFile(join(dir, 'password'), 'open sesame\n');
  const credential = ['--key-file', keystore, '--password-file', join(dir, 'password')];
  const sent = await sweep('--yes', ...credential);
  expect(sent.code, sent.err).toBe(0);
  const earned = priceOf(90, 1, 340_000n);
  expect(sent.last).toMatchObject({ sent: true, abandoned: 2, finalized: 2, sponsors: 1, unknown: 0 });
  expect(sent.last.refunds).toEqual({ USDC: String(Number(deposit + 7_000n - earned) / 1e6), GPU: '0.0000000000001' });
  for (const id of [left, leftGpu]) expect((await client.lease(id))!.closeReason).toBe('Expired');
  expect((await client.lease(running))!.closed).toBe(false);
  expect((await client.credit(usdc, keys.consumer.address)) - refundBefore).toBe(deposit - earned);
  expect(await client.credit(usdc, payee.address)).toBe(7_000n);
  expect(await client.credit(usdc, keys.stranger.address)).toBe(0n);
  expect((await client.totals(usdc)).held).toBe(deposit);
  expect(Number(await nonce()) - Number(nonceBefore)).toBe(3);
  expect(sent.err + sent.out).not.toContain(wallet.privateKey.slice(2, 34));

  // Nothing is left, and nothing is sent, also before that is safe.
  const again = await sweep('--yes', ...credential);
  expect(again.last).toMatchObject({ abandoned: 0, finalized: 0, gas: '0' });
  expect(Number(await nonce()) - Number(nonceBefore)).toBe(3);
}, 120_000);

test('says what to do when the account cannot pay, or the chain cannot be asked', async () => {
  const { client } = chain;
  await open();
  await chain.pass(3600 + 300 + 600 + 1);
  await makeSafe();
  const poor = join(dir, 'poor.key');
  await writeFile(poor, Wallet.createRandom().privateKey);
  const broke = await sweep('--yes', '--key-file', poor);
  expect(broke.code).toBe(1);
  expect(broke.out).toMatch(/cannot pay for gas/);
  expect(broke.last).toMatchObject({ finalized: 0, refused: 1 });

  let err = '';
  const code = await runGpulease(['sweep', '--chain', '31337=http://127.0.0.1:1', '--escrow', client.address], {
    env: {},
    stdin: async () => '',
    out: () => undefined,
    err: (text) => {
      err += text;
    },
  });
  expect([code, err]).toEqual([3, expect.stringContaining('does not answer')]);
}, 120_000);
