/** The process that pays is killed, for real, at each step. Then another one takes over what is stored. */
import { rm } from 'node:fs/promises';
import type { OutboxRecord } from '../../../operator/adapters/chain/outbox.ts';
import { memoryStore, StoreConflict } from '../../../operator/adapters/chain/store.ts';
import { fileStore } from '../../support/file-store.ts';
import { type ChainLab, readStore } from '../lab.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const of = 'operator crash';
const amount = 7_000n;

/** A top-up, since the contract would take a second one: the deposit tells how often it was made. */
const killed = (name: string, killAt: string, broke: string, expected: { replaced?: true } = {}): ChainScenario => ({
  name,
  of,
  broke: `SIGKILL ${broke}`,
  async run(lab) {
    const lease = await lab.open();
    const key = lab.chain.keys.consumer;
    const before = await lab.nonce(key);
    const file = lab.storeFile();
    const intent = lab.topUpIntent(lease, amount);
    const wish = { intent, ...(expected.replaced && { policy: { bumpAfterSeconds: 1 } }) };
    if (expected.replaced) await lab.hold();
    const first = await lab.process({ ...wish, killAt }, file);
    expect(first.killed, `the process was never at ${killAt}`);
    const stored = await readStore(file).catch(() => undefined);
    if (expected.replaced) await lab.go();
    // As the operator does after its start: it wishes for the same again, and looks after what is there.
    const second = await lab.process(wish, file);
    return once(lab, lease.leaseId, before, `${describe(stored)}, then ${second.entry!.state}`);
  },
});

async function once(lab: ChainLab, leaseId: `0x${string}`, before: number, seen: string): Promise<string> {
  const { deposit } = (await lab.lease(leaseId))!;
  expect(deposit === 100_000n + amount, `the deposit is ${deposit}: topped up ${(deposit - 100_000n) / amount} times`);
  const used = (await lab.nonce(lab.chain.keys.consumer)) - before;
  expect(used === 1, `${used} nonces were used`);
  return `${seen}; 1 effect, 1 nonce`;
}

const describe = (record: OutboxRecord | undefined): string => {
  const entry = record?.entries[0];
  return entry ? `found ${entry.state}, ${entry.hashes.length} signed` : 'found nothing stored';
};

export const crashes: ChainScenario[] = [
  killed('kill-before-simulating', 'simulate:before', 'before anything was asked'),
  killed('kill-after-estimating', 'estimate:after', 'when the gas was estimated'),
  killed('kill-nonce-allocated', 'nonce:after', 'when a nonce was allocated, before signing'),
  killed('kill-signed', 'sign:after', 'when signed, before storing'),
  killed('kill-stored', 'store:after', 'when stored, before broadcasting'),
  killed('kill-broadcast', 'broadcast:after', 'when broadcast, its answer not heard'),
  killed('kill-broadcast-unnoted', 'store:before#2', 'when broadcast, before storing that it was'),
  killed('kill-broadcast-noted', 'store:after#2', 'when stored that it was broadcast'),
  killed('kill-receipt', 'receipt:after', 'when the receipt was read, before storing it'),
  killed('kill-receipt-stored', 'store:after#3', 'when the receipt was stored'),
  killed('kill-replacement-signed', 'sign:after#2', 'when a replacement was signed, before storing', {
    replaced: true,
  }),
  killed('kill-replacement-stored', 'store:after#3', 'when a replacement was stored, before broadcasting', {
    replaced: true,
  }),
  killed('kill-replacement-sent', 'broadcast:after#2', 'when a replacement was broadcast, before noting it', {
    replaced: true,
  }),
  {
    name: 'kill-cancel-stored',
    of,
    broke: 'SIGKILL when a cancelling transfer was stored, before broadcasting',
    async run(lab) {
      const lease = await lab.open();
      const key = lab.chain.keys.consumer;
      const before = await lab.nonce(key);
      const file = lab.storeFile();
      const intent = lab.topUpIntent(lease, amount);
      await lab.hold();
      const first = await lab.process({ intent, cancel: true, killAt: 'store:after#3' }, file);
      expect(first.killed, 'the process was never about to cancel');
      const outbox = await lab.outbox({ store: fileStore<OutboxRecord>(file) });
      await outbox.tick();
      await lab.go();
      await lab.until('nonce being used', async () => ((await lab.nonce(key)) > before ? true : undefined));
      await lab.makeSafe();
      await outbox.tick();
      const { state } = (await outbox.state(intent.key))!;
      const { deposit } = (await lab.lease(lease.leaseId))!;
      // Either of the two may be mined; what is told must be what happened.
      const made = deposit > lease.deposit;
      expect(state === (made ? 'mined' : 'lost'), `${state}, but the deposit is ${deposit}`);
      expect((await lab.nonce(key)) === before + 1, 'more than one nonce was used');
      return `${state}, deposit ${made ? 'topped up once' : 'unchanged'}; 1 nonce`;
    },
  },
  {
    name: 'kill-at-every-step',
    of,
    broke: 'SIGKILL at the 3rd boundary of a step, then the 4th, and so on until it came through',
    async run(lab) {
      const lease = await lab.open();
      const before = await lab.nonce(lab.chain.keys.consumer);
      const file = lab.storeFile();
      const intent = lab.topUpIntent(lease, amount);
      let kills = 0;
      for (let boundary = 3; boundary < 40; boundary++) {
        if (!(await lab.process({ intent, killAt: `any#${boundary}` }, file)).killed) break;
        kills += 1;
      }
      expect(kills > 2 && kills < 36, `it was killed ${kills} times`);
      return once(lab, lease.leaseId, before, `killed ${kills} times`);
    },
  },
  {
    name: 'two-replicas-one-store',
    of,
    broke: 'two processes hold the same stored state and submit the same wish',
    async run(lab) {
      const lease = await lab.open();
      const before = await lab.nonce(lab.chain.keys.consumer);
      const store = memoryStore<OutboxRecord>();
      const [one, two] = [await lab.outbox({ store }), await lab.outbox({ store })];
      await Promise.all([one.entries(), two.entries()]);
      const intent = lab.topUpIntent(lease, amount);
      const ends = await Promise.allSettled([one.submit(intent), two.submit(intent)]);
      const told = ends.filter((end) => end.status === 'rejected' && end.reason instanceof StoreConflict).length;
      expect(told === 1, `${told} of two were told that the other one wrote`);
      expect((await two.submit(intent)).outcome === 'accepted', 'it could not be submitted again');
      await lab.untilMined(two, intent.key);
      return once(lab, lease.leaseId, before, 'the later one was told, and found the entry');
    },
  },
  {
    name: 'store-lost',
    of,
    broke: 'the outbox store is deleted while an open waits in the pool; the wish comes again',
    async run(lab) {
      const { intent, leaseId, deposit } = await lab.openIntent();
      const file = lab.storeFile();
      const token = lab.chain.usdc;
      const wallet = lab.chain.keys.consumer.address;
      const balance = await lab.chain.client.balance(token, wallet);
      await lab.hold();
      await lab.process({ intent, submitOnly: true }, file);
      await rm(file);
      await lab.process({ intent, submitOnly: true }, file);
      await lab.go();
      const outbox = await lab.outbox({ store: fileStore<OutboxRecord>(file) });
      const entry = await lab.untilMined(outbox, intent.key);
      expect((await lab.lease(leaseId))?.deposit === deposit, 'the escrow is not as it was wished for');
      const paid = balance - (await lab.chain.client.balance(token, wallet));
      expect(paid === deposit, `${paid} left the wallet, the deposit is ${deposit}`);
      return `two were sent, the contract took one and refused one (${entry.state})`;
    },
  },
];
