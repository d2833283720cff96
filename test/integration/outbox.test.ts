/** The outbox on a real chain that loses, delays and takes back transactions, and with a process that dies half-way. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { leaseIdOf, signQuote, signVoucher } from '../../operator/adapters/chain/messages.ts';
import {
  createOutbox,
  type Intent,
  type Outbox,
  type OutboxOptions,
  type OutboxRecord,
} from '../../operator/adapters/chain/outbox.ts';
import { ChainUnavailable, connectRpc, type Rpc } from '../../operator/adapters/chain/rpc.ts';
import { memoryStore, StoreConflict } from '../../operator/adapters/chain/store.ts';
import type { Hex, Hex32 } from '../../operator/api/messages.ts';
import { type EscrowChain, startEscrowChain } from '../support/escrow-chain.ts';
import { fileStore } from '../support/file-store.ts';
import type { Instructions } from '../support/outbox-process.ts';

let chain: EscrowChain;
let dir: string;
beforeAll(async () => {
  chain = await startEscrowChain();
  await chain.send(chain.keys.consumer, chain.client.calls.approve(chain.usdc));
  dir = await mkdtemp(join(tmpdir(), 'gpulease-outbox-'));
}, 60_000);
afterAll(async () => {
  await chain?.stop();
  if (dir) await rm(dir, { recursive: true, force: true });
});
beforeEach(async () => {
  await chain.anvil.rpc('evm_setAutomine', true);
  await mine(12);
});

let clock = 1_000_000;
const outboxOf = (changes: Partial<OutboxOptions> = {}): Outbox =>
  createOutbox({
    rpc: chain.rpc,
    key: chain.keys.consumer,
    store: memoryStore<OutboxRecord>(),
    now: () => new Date(clock * 1000),
    ...changes,
  });

const mine = (blocks: number) => chain.anvil.rpc('anvil_mine', `0x${blocks.toString(16)}`);
const nonceOf = async () =>
  Number(await chain.rpc.call<Hex>('eth_getTransactionCount', [chain.keys.consumer.address, 'latest']));

async function openIntent(): Promise<{ intent: Intent; leaseId: Hex32 }> {
  const quote = await chain.quote();
  const signed = await signQuote(chain.keys.provider, chain.client.domain, quote);
  const call = chain.client.calls.open(signed, chain.keys.session.address, 100_000n);
  return { intent: { key: `open/${quote.leaseRef}`, ...call }, leaseId: leaseIdOf(quote.consumer, quote.leaseRef) };
}

/** Ticks until the entry is mined: a node that mines at once still takes a moment to say so. */
async function tickUntilMined(outbox: Outbox, key: string): Promise<void> {
  for (let turn = 0; turn < 100; turn++) {
    await outbox.tick();
    if ((await outbox.state(key))?.state === 'mined') return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(await outbox.state(key)).toMatchObject({ state: 'mined' });
}

/** Does not depend on any escrow, so that any number of it can wait. */
const approve = (key: string, amount = 2n ** 255n): Intent => ({
  key,
  ...chain.client.calls.approve(chain.gpu, amount),
});

describe('an intent', () => {
  it('is sent once, however often it is submitted, and ends mined, then safe', async () => {
    const outbox = outboxOf();
    const { intent, leaseId } = await openIntent();
    const before = await nonceOf();
    const [one, two] = await Promise.all([outbox.submit(intent), outbox.submit(intent)]);
    expect(one.outcome).toBe('accepted');
    expect(two).toEqual(one);
    await tickUntilMined(outbox, intent.key);
    expect(await outbox.state(intent.key)).toMatchObject({ state: 'mined', receipt: { status: 1, safe: false } });
    await mine(8);
    await outbox.tick();
    const done = (await outbox.state(intent.key))!;
    expect(done.receipt).toMatchObject({ status: 1, safe: true });
    expect(done.receipt!.gasUsed).toBeGreaterThan(100_000n);
    expect(await nonceOf()).toBe(before + 1);
    expect(await chain.client.lease(leaseId)).toBeDefined();
    expect((await outbox.submit(intent)).outcome).toBe('accepted');
    expect(await nonceOf()).toBe(before + 1);
    await outbox.forget(intent.key);
    expect(await outbox.state(intent.key)).toBeUndefined();
  });

  it('that the chain would refuse is refused, and nothing is signed', async () => {
    const store = memoryStore<OutboxRecord>();
    const outbox = outboxOf({ store });
    const nobody = `0x${'77'.repeat(32)}` as Hex32;
    expect(await outbox.submit({ key: 'x', ...chain.client.calls.requestClose(nobody) })).toMatchObject({
      outcome: 'refused',
      refusal: { name: 'LeaseNotFound', terminal: false },
    });
    expect(await outbox.entries()).toEqual([]);
    expect((await store.load()).value).toBeUndefined();
  });

  it('of an account that cannot pay for gas is refused with the fix', async () => {
    const { address } = chain.keys.stranger;
    const balance = await chain.rpc.call<Hex>('eth_getBalance', [address, 'latest']);
    await chain.anvil.rpc('anvil_setBalance', address, '0x10');
    expect(await outboxOf({ key: chain.keys.stranger }).submit(approve('poor'))).toMatchObject({
      outcome: 'refused',
      refusal: { name: 'PayerOutOfGas', terminal: false, message: expect.stringContaining(address) },
    });
    await chain.anvil.rpc('anvil_setBalance', address, balance);
  });

  it('that reverts when mined is told from one that did not', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    const { intent } = await openIntent();
    await outbox.submit(intent);
    // Its twin is simulated against a chain that has neither, so both go; the contract takes one.
    await outbox.submit({ ...intent, key: 'twin' });
    await mine(1);
    await outbox.tick();
    expect((await outbox.state(intent.key))!.state).toBe('mined');
    const twin = (await outbox.state('twin'))!;
    expect(twin.state).toBe('reverted');
    // As long as a reorganisation could still turn it, it stands; then it may be asked for again, and is refused unsent.
    expect(await outbox.submit({ ...intent, key: 'twin' })).toEqual({ outcome: 'accepted', entry: twin });
    await mine(8);
    await outbox.tick();
    expect(await outbox.submit({ ...intent, key: 'twin' })).toMatchObject({
      outcome: 'refused',
      refusal: { name: 'LeaseExists' },
    });
  });
});

describe('a process that is killed', () => {
  it.each(['broadcast:before', 'broadcast:after'] as const)('%s leaves one escrow', async (killAt) => {
    const file = join(dir, `${killAt.replace(':', '-')}.json`);
    const { intent, leaseId } = await openIntent();
    const before = await nonceOf();
    const run = (at?: string) =>
      new Promise<{ signal: string | null; out: string }>((resolve) => {
        const instructions: Instructions = {
          urls: [chain.anvil.rpcUrl],
          chainId: 31337,
          privateKey: chain.anvil.accounts[1]!.privateKey,
          file,
          intent,
          killAt: at,
        };
        execFile(
          process.execPath,
          [new URL('../support/outbox-process.ts', import.meta.url).pathname, JSON.stringify(instructions)],
          (error, out) => resolve({ signal: (error as { signal?: string } | null)?.signal ?? null, out }),
        );
      });
    expect((await run(killAt)).signal).toBe('SIGKILL');
    if (killAt === 'broadcast:before') expect(await chain.client.lease(leaseId)).toBeUndefined();

    const outbox = outboxOf({ store: fileStore<OutboxRecord>(file) });
    const stored = (await outbox.state(intent.key))!;
    expect(stored.state).toBe('stored');
    // The next process submits the same intent again, and looks after what is there.
    expect(await outbox.submit(intent)).toMatchObject({ outcome: 'accepted', entry: { hash: stored.hash } });
    await tickUntilMined(outbox, intent.key);
    expect(await outbox.state(intent.key)).toMatchObject({ state: 'mined', hashes: [stored.hash] });
    expect(await nonceOf()).toBe(before + 1);
    expect(await chain.client.lease(leaseId)).toMatchObject({ deposit: 100_000n });
  });
});

describe('a transaction', () => {
  it('that the pool dropped is broadcast again, the same bytes', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    const { entry } = (await outbox.submit(approve('dropped'))) as { entry: { hash: Hex32 } };
    await chain.anvil.rpc('anvil_dropTransaction', entry.hash);
    expect(await chain.rpc.call('eth_getTransactionByHash', [entry.hash])).toBeNull();
    await outbox.tick();
    expect(await chain.rpc.call('eth_getTransactionByHash', [entry.hash])).not.toBeNull();
    await mine(1);
    await outbox.tick();
    expect(await outbox.state('dropped')).toMatchObject({ state: 'mined', hashes: [entry.hash] });
  });

  it('that waits too long is replaced at the same nonce for at least an eighth more, and no higher than the cap', async () => {
    const store = memoryStore<OutboxRecord>();
    const fees = async () => {
      const { value } = await store.load();
      const { Transaction } = await import('ethers');
      const { maxFeePerGas, maxPriorityFeePerGas, nonce } = Transaction.from(value!.entries.at(-1)!.raw);
      return { maxFeePerGas: maxFeePerGas!, maxPriorityFeePerGas: maxPriorityFeePerGas!, nonce };
    };
    await chain.anvil.rpc('evm_setAutomine', false);
    const outbox = outboxOf({ store, policy: { bumpAfterSeconds: 30, maxReplacements: 3 } });
    await outbox.submit(approve('stuck'));
    let last = await fees();
    await outbox.tick();
    expect((await outbox.state('stuck'))!.hashes).toHaveLength(1);
    for (const signed of [2, 3, 4, 4]) {
      clock += 31;
      await outbox.tick();
      expect((await outbox.state('stuck'))!.hashes).toHaveLength(signed);
      const now = await fees();
      expect(now.nonce).toBe(last.nonce);
      if (signed < 4 || now.maxFeePerGas !== last.maxFeePerGas) {
        expect(now.maxFeePerGas * 1000n).toBeGreaterThanOrEqual(last.maxFeePerGas * 1125n);
        expect(now.maxPriorityFeePerGas * 1000n).toBeGreaterThanOrEqual(last.maxPriorityFeePerGas * 1125n);
      }
      last = now;
    }
    await mine(1);
    await outbox.tick();
    const done = (await outbox.state('stuck'))!;
    expect(done.state).toBe('mined');
    expect(done.receipt!.hash).toBe(done.hashes.at(-1));

    const capped = outboxOf({ policy: { maxFeePerGasCap: 3_000_000_000n } });
    await capped.submit(approve('capped'));
    for (let turn = 0; turn < 12; turn++) {
      clock += 31;
      await capped.tick();
    }
    expect(await capped.state('capped')).toMatchObject({
      lastError: expect.stringMatching(/highest fee allowed/),
      problem: 'FeeCapReached',
    });
    // At the cap, too, what falls out of the pool is put back.
    await chain.anvil.rpc('anvil_dropTransaction', (await capped.state('capped'))!.hash);
    await capped.tick();
    expect(await chain.rpc.call('eth_getTransactionByHash', [(await capped.state('capped'))!.hash])).not.toBeNull();
    await mine(1);
    await capped.tick();
    expect((await capped.state('capped'))!.state).toBe('mined');
  });

  it('is cancelled by an empty one in its place, and its key may be asked for again', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    const { intent, leaseId } = await openIntent();
    await outbox.submit(intent);
    const cancelled = (await outbox.cancel(intent.key))!;
    expect(cancelled).toMatchObject({
      state: 'broadcast',
      cancelling: true,
      hashes: [expect.anything(), cancelled.hash],
    });
    expect(await outbox.cancel(intent.key)).toEqual(cancelled);
    await outbox.submit(approve('behind'));
    await mine(1);
    await outbox.tick();
    expect((await outbox.state(intent.key))!.state).toBe('broadcast');
    expect((await outbox.state('behind'))!.state).toBe('mined');
    // A reorganisation may bring the other one of the two: until then nothing is said for certain.
    await mine(8);
    await outbox.tick();
    expect((await outbox.state(intent.key))!.state).toBe('lost');
    expect(await chain.client.lease(leaseId)).toBeUndefined();
    await chain.anvil.rpc('evm_setAutomine', true);
    expect((await outbox.submit(intent)).outcome).toBe('accepted');
    await tickUntilMined(outbox, intent.key);
    expect(await chain.client.lease(leaseId)).toBeDefined();
    expect(await outbox.cancel(intent.key)).toMatchObject({ state: 'mined' });
    expect(await outbox.cancel('never')).toBeUndefined();
  });

  it('that its contract would refuse for good by now is cancelled rather than paid more for', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    const quote = await chain.quote();
    const signed = await signQuote(chain.keys.provider, chain.client.domain, quote);
    const key = `open/${quote.leaseRef}`;
    await outbox.submit({ key, ...chain.client.calls.open(signed, chain.keys.session.address, 100_000n) });
    const { entry } = (await outbox.submit(approve('next'))) as { entry: { hash: Hex32 } };
    await chain.anvil.rpc('anvil_dropTransaction', (await outbox.state(key))!.hash);
    await chain.anvil.rpc('anvil_dropTransaction', entry.hash);
    // The quote runs out while neither is in the pool.
    await chain.anvil.rpc('evm_increaseTime', 3700);
    await mine(1);
    clock += 91;
    await outbox.tick();
    expect(await outbox.state(key)).toMatchObject({ cancelling: true });
    await mine(1);
    await mine(8);
    await outbox.tick();
    expect((await outbox.state(key))!.state).toBe('lost');
    expect((await outbox.state('next'))!.state).toBe('mined');
    expect(
      await outbox.submit({ key, ...chain.client.calls.open(signed, chain.keys.session.address, 100_000n) }),
    ).toMatchObject({ outcome: 'refused', refusal: { name: 'QuoteExpired' } });
  });

  it('that cannot be paid for any more waits, says so, and goes out when there is gas', async () => {
    const key = chain.keys.stranger;
    const balance = await chain.rpc.call<Hex>('eth_getBalance', [key.address, 'latest']);
    await chain.anvil.rpc('evm_setAutomine', false);
    const outbox = outboxOf({ key });
    const { entry } = (await outbox.submit(approve('poor'))) as { entry: { hash: Hex32 } };
    await chain.anvil.rpc('anvil_dropTransaction', entry.hash);
    await chain.anvil.rpc('anvil_setBalance', key.address, '0x10');
    await outbox.tick();
    expect(await outbox.state('poor')).toMatchObject({ problem: 'PayerOutOfGas', hashes: [entry.hash] });
    await chain.anvil.rpc('anvil_setBalance', key.address, balance);
    await outbox.tick();
    expect((await outbox.state('poor'))!.problem).toBeUndefined();
    await mine(1);
    await outbox.tick();
    expect((await outbox.state('poor'))!.state).toBe('mined');
  });

  it('that a reorganisation took back is broadcast again and mined again', async () => {
    const outbox = outboxOf();
    const { intent, leaseId } = await openIntent();
    await outbox.submit(intent);
    await tickUntilMined(outbox, intent.key);
    await chain.anvil.rpc('anvil_reorg', 1, []);
    expect(await chain.client.lease(leaseId)).toBeUndefined();
    await tickUntilMined(outbox, intent.key);
    expect(await chain.client.lease(leaseId)).toBeDefined();
  });

  it('behind a nonce that nobody uses gets it filled', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    // Somebody's transaction is in the pool when ours takes its nonce, and then is lost.
    const other = outboxOf();
    const lost = (await other.submit(approve('other'))) as { entry: { hash: Hex32; nonce: number } };
    const ours = (await outbox.submit(approve('ours'))) as { entry: { nonce: number } };
    expect(ours.entry.nonce).toBe(lost.entry.nonce + 1);
    await chain.anvil.rpc('anvil_dropTransaction', lost.entry.hash);
    await mine(1);
    await outbox.tick();
    expect((await outbox.state('ours'))!.state).toBe('broadcast');
    clock += 31;
    await outbox.tick();
    await mine(1);
    await outbox.tick();
    expect((await outbox.state('ours'))!.state).toBe('mined');
    expect((await outbox.state(`gap/${lost.entry.nonce}`))!.state).toBe('mined');
    // The other process finds out that its nonce is gone, once that is certain, and may then ask again.
    await other.tick();
    expect((await other.state('other'))!.state).toBe('broadcast');
    await mine(8);
    await other.tick();
    // One node does not know it. Another may: it is not sent anew on one word.
    expect((await other.state('other'))!.state).toBe('broadcast');
    clock += 61;
    await other.tick();
    expect((await other.state('other'))!.state).toBe('lost');
    await chain.anvil.rpc('evm_setAutomine', true);
    expect(await other.submit(approve('other'))).toMatchObject({ outcome: 'accepted', entry: { state: 'broadcast' } });
    await tickUntilMined(other, 'other');
  });

  it('of many keeps its place: nonces without holes, all mined in order', async () => {
    const outbox = outboxOf();
    await chain.anvil.rpc('evm_setAutomine', false);
    const before = await nonceOf();
    await Promise.all(Array.from({ length: 12 }, (_, index) => outbox.submit(approve(`many/${index}`, BigInt(index)))));
    expect((await outbox.entries()).map((entry) => entry.nonce)).toEqual(
      Array.from({ length: 12 }, (_, index) => before + index),
    );
    await mine(1);
    await outbox.tick();
    expect(
      (await outbox.entries())
        .map((entry) => [entry.nonce, entry.state, entry.lastError])
        .filter(([, state]) => state !== 'mined'),
    ).toEqual([]);
  });
});

describe('when the network fails', () => {
  const broken = (rpc: Rpc, methods: Set<string>): Rpc => ({
    ...rpc,
    call: (method, params, signal) =>
      methods.has(method) ? Promise.reject(new ChainUnavailable('down')) : rpc.call(method, params, signal),
  });

  it('before signing, nothing happened; while broadcasting, the stored bytes go out later', async () => {
    const rpc = await connectRpc({ urls: [chain.anvil.rpcUrl], chainId: 31337 });
    const down = new Set(['eth_getTransactionCount']);
    const outbox = outboxOf({ rpc: broken(rpc, down) });
    await expect(outbox.submit(approve('a'))).rejects.toThrow(ChainUnavailable);
    expect(await outbox.entries()).toEqual([]);

    down.clear();
    down.add('eth_sendRawTransaction');
    expect(await outbox.submit(approve('a'))).toMatchObject({ outcome: 'accepted', entry: { state: 'stored' } });
    await outbox.tick();
    expect(await outbox.state('a')).toMatchObject({ state: 'stored', lastError: 'down' });
    down.clear();
    await tickUntilMined(outbox, 'a');
  });

  it('two writers of one store never both send: the stale one is told', async () => {
    const store = memoryStore<OutboxRecord>();
    const [one, two] = [outboxOf({ store }), outboxOf({ store })];
    await Promise.all([one.entries(), two.entries()]);
    const before = await nonceOf();
    await one.submit(approve('one'));
    await expect(two.submit(approve('two'))).rejects.toThrow(StoreConflict);
    expect(await nonceOf()).toBe(before + 1);
    await two.submit(approve('two'));
    expect((await two.entries()).map((entry) => entry.key).sort()).toEqual(['one', 'two']);
  });

  it('a store of another account or chain is not touched', async () => {
    const store = memoryStore<OutboxRecord>({ chainId: 1, address: chain.keys.consumer.address, entries: [] });
    await expect(outboxOf({ store }).submit(approve('x'))).rejects.toMatchObject({
      name: 'OutboxMismatch',
      terminal: true,
    });
  });

  it('says when too much is under way', async () => {
    const outbox = outboxOf({ policy: { maxUnmined: 2 } });
    await chain.anvil.rpc('evm_setAutomine', false);
    await outbox.submit(approve('1'));
    await outbox.submit(approve('2'));
    await expect(outbox.submit(approve('3'))).rejects.toMatchObject({ name: 'OutboxFull', terminal: false });
    await mine(1);
    await outbox.tick();
    await outbox.submit(approve('3'));
    await mine(1);
    await outbox.tick();

    const small = outboxOf({ policy: { maxStoredCharacters: 300 } });
    await small.submit(approve('4'));
    await mine(1);
    await small.tick();
    // Its bytes are kept until it is safe: a reorganisation may take it back.
    await expect(small.submit(approve('5'))).rejects.toMatchObject({ name: 'OutboxFull', terminal: false });
    await mine(9);
    await small.tick();
    await small.submit(approve('5'));
    await mine(1);
  });

  it('asks for no receipt of what is mined before its block is to be safe', async () => {
    let receipts = 0;
    const counted: Rpc = {
      ...chain.rpc,
      call: (method, params, signal) => {
        if (method === 'eth_getTransactionReceipt') receipts += 1;
        return chain.rpc.call(method, params, signal);
      },
    };
    const outbox = outboxOf({ rpc: counted });
    await outbox.submit(approve('quiet'));
    await tickUntilMined(outbox, 'quiet');
    const before = receipts;
    for (let turn = 0; turn < 5; turn++) await outbox.tick();
    expect(receipts).toBe(before);
    await mine(9);
    await outbox.tick();
    expect((await outbox.state('quiet'))!.receipt).toMatchObject({ safe: true });
    expect(receipts).toBe(before + 1);
  });
});

describe('on a chain with a block a second', () => {
  it('two leases are opened, settled and closed through two outboxes', async () => {
    const slow = await startEscrowChain();
    try {
      // From here on blocks come by the clock, and transactions wait for them.
      await slow.anvil.rpc('evm_setAutomine', false);
      await slow.anvil.rpc('evm_setIntervalMining', 1);
      const { client, keys } = slow;
      const rpc = slow.rpc;
      const boxes = {
        consumer: createOutbox({ rpc, key: keys.consumer, store: memoryStore<OutboxRecord>(), now: () => new Date() }),
        provider: createOutbox({ rpc, key: keys.provider, store: memoryStore<OutboxRecord>(), now: () => new Date() }),
      };
      const mined = async (box: Outbox, keysOf: readonly string[]) => {
        for (let turn = 0; turn < 60; turn++) {
          await box.tick();
          const states = await Promise.all(keysOf.map(async (name) => (await box.state(name))?.state));
          if (states.every((state) => state === 'mined')) return;
          await new Promise((resolve) => setTimeout(resolve, 200));
        }
        throw new Error(
          JSON.stringify(await box.entries(), (_, value) => (typeof value === 'bigint' ? String(value) : value)),
        );
      };
      await boxes.consumer.submit({ key: 'approve', ...client.calls.approve(slow.usdc) });
      await mined(boxes.consumer, ['approve']);
      const leases = await Promise.all(
        [1, 2].map(async (which) => {
          const quote = await slow.quote();
          const signed = await signQuote(keys.provider, client.domain, quote);
          await boxes.consumer.submit({
            key: `open/${which}`,
            ...client.calls.open(signed, keys.session.address, 100_000n),
          });
          return leaseIdOf(quote.consumer, quote.leaseRef);
        }),
      );
      await mined(boxes.consumer, ['open/1', 'open/2']);
      const vouchers = await Promise.all(
        leases.map((leaseId) => signVoucher(keys.session, client.domain, { leaseId, servedSeconds: 1, last: true })),
      );
      await new Promise((resolve) => setTimeout(resolve, 1100));
      for (const [index, voucher] of vouchers.entries()) {
        expect((await boxes.provider.submit({ key: `close/${index}`, ...client.calls.close(voucher) })).outcome).toBe(
          'accepted',
        );
      }
      await mined(boxes.provider, ['close/0', 'close/1']);
      for (const lease of await client.leases(leases)) {
        expect(lease).toMatchObject({ closed: true, servedSeconds: 1, claimed: 94n, refunded: 99_906n });
      }
    } finally {
      await slow.stop();
    }
  }, 60_000);
});
