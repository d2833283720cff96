/** Transactions that do not get into a block by themselves. */
import { Transaction } from 'ethers';
import type { OutboxRecord } from '../../../operator/adapters/chain/outbox.ts';
import { memoryStore, type Store } from '../../../operator/adapters/chain/store.ts';
import type { Hex } from '../../../operator/api/messages.ts';
import type { ChainLab } from '../lab.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const of = 'nonce gap, stuck';

const gwei = 1_000_000_000n;
const hex = (value: bigint | number): Hex => `0x${value.toString(16)}`;

/** Blocks whose base fee is so high that nothing of ours gets in. */
async function expensiveBlocks(lab: ChainLab, blocks: number, fee: bigint): Promise<void> {
  for (let block = 0; block < blocks; block++) {
    await lab.anvil.rpc('anvil_setNextBlockBaseFeePerGas', hex(fee));
    await lab.mine(1);
  }
}

const signedFees = async (store: Store<OutboxRecord>) => {
  const { raw } = (await store.load()).value!.entries.at(-1)!;
  const { maxFeePerGas, maxPriorityFeePerGas, nonce } = Transaction.from(raw!);
  return { maxFeePerGas: maxFeePerGas!, maxPriorityFeePerGas: maxPriorityFeePerGas!, nonce };
};

const topUpOnce = async (lab: ChainLab, { leaseId, deposit }: { leaseId: Hex; deposit: bigint }) => {
  const now = (await lab.lease(leaseId))!.deposit;
  expect(now === deposit + 7_000n, `the deposit is ${now}, not topped up exactly once`);
};

export const nonces: ChainScenario[] = [
  {
    name: 'dropped',
    of,
    broke: 'the pool drops the transaction three times (anvil_dropTransaction)',
    async run(lab) {
      const lease = await lab.open();
      const outbox = await lab.outbox();
      const intent = lab.topUpIntent(lease);
      await lab.hold();
      await outbox.submit(intent);
      const { hash } = (await outbox.state(intent.key))!;
      for (let turn = 0; turn < 3; turn++) {
        await lab.anvil.rpc('anvil_dropTransaction', hash);
        expect((await lab.anvil.rpc('eth_getTransactionByHash', hash)) === null, 'it was not dropped');
        await outbox.tick();
        expect((await lab.anvil.rpc('eth_getTransactionByHash', hash)) !== null, 'it was not sent again');
      }
      await lab.go();
      const { hashes } = await lab.untilMined(outbox, intent.key);
      expect(hashes.length === 1, 'other bytes were sent');
      await topUpOnce(lab, lease);
      return 'the same bytes were sent again; 1 effect';
    },
  },
  {
    name: 'nonce-gap',
    of,
    broke: 'a transaction of the account before ours vanishes for good: a hole in front of two of ours',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const lease = await lab.open();
      const first = await lab.nonce(key);
      await lab.hold();
      const foreign = await key.signTransaction({
        type: 2,
        chainId: lab.anvil.chainId,
        nonce: first,
        to: key.address,
        gasLimit: 21_000n,
        maxFeePerGas: 100n * gwei,
        maxPriorityFeePerGas: 1n,
      });
      const hash = await lab.anvil.rpc<Hex>('eth_sendRawTransaction', foreign);
      const outbox = await lab.outbox();
      const topUp = lab.topUpIntent(lease);
      const open = await lab.openIntent();
      await outbox.submit(topUp);
      await outbox.submit(open.intent);
      await lab.anvil.rpc('anvil_dropTransaction', hash);
      await lab.mine(2);
      await outbox.tick();
      expect((await lab.nonce(key)) === first, 'the gap was filled at once: its owner had no time');
      lab.clock.pass(31);
      await outbox.tick();
      await lab.go();
      await lab.untilMined(outbox, topUp.key);
      await lab.untilMined(outbox, open.intent.key);
      await topUpOnce(lab, lease);
      expect((await lab.nonce(key)) === first + 3, 'nonces do not follow one another');
      return 'filled by an empty transfer after 30 s; both mined in order';
    },
  },
  {
    name: 'stuck',
    of,
    broke:
      'the base fee more than doubles at each of 5 looks, to 280 gwei; replacements below +10 % are refused by the node',
    async run(lab) {
      const lease = await lab.open();
      await lab.hold();
      const store = memoryStore<OutboxRecord>();
      const outbox = await lab.outbox({ store, rpc: await lab.connect({ urls: [lab.endpoints[0].url] }) });
      lab.endpoints[0].refuseSmallBumps(true);
      const refused = lab.endpoints[0].bumpsRefused;
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      let last = await signedFees(store);
      let least = Number.POSITIVE_INFINITY;
      for (let turn = 0; turn < 5; turn++) {
        await expensiveBlocks(lab, 1, [10n, 23n, 53n, 122n, 280n][turn]! * gwei);
        lab.clock.pass(31);
        // A node may drop what no block can take, and says why when it is sent again.
        await outbox.tick();
        await outbox.tick();
        const now = await signedFees(store);
        expect(now.nonce === last.nonce, 'the replacement has another nonce');
        if (now.maxFeePerGas !== last.maxFeePerGas) {
          for (const fee of ['maxFeePerGas', 'maxPriorityFeePerGas'] as const) {
            least = Math.min(least, Number((now[fee] * 10_000n) / last[fee]) / 100 - 100);
            expect(now[fee] * 1000n >= last[fee] * 1125n, `${fee} rose from ${last[fee]} to ${now[fee]} only`);
          }
        }
        last = now;
      }
      expect(lab.endpoints[0].bumpsRefused === refused, 'a replacement was refused for paying too little more');
      await lab.go();
      const { hashes, receipt } = await lab.untilMined(outbox, intent.key);
      await expensiveBlocks(lab, 1, gwei);
      expect(
        hashes.length >= 5 && receipt?.hash === hashes.at(-1),
        `${hashes.length} were signed, number ${hashes.indexOf(receipt!.hash) + 1} was mined`,
      );
      await topUpOnce(lab, lease);
      return `${hashes.length - 1} replacements, the smallest +${least.toFixed(1)} %; 1 effect`;
    },
  },
  {
    name: 'fee-cap',
    of,
    broke: 'the base fee rises above the highest fee that is allowed, and falls again',
    async run(lab) {
      const lease = await lab.open();
      await lab.hold();
      const store = memoryStore<OutboxRecord>();
      const maxFeePerGasCap = 20n * gwei;
      const outbox = await lab.outbox({ store, policy: { maxFeePerGasCap } });
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      for (let turn = 0; turn < 14; turn++) {
        await expensiveBlocks(lab, 1, 90n * gwei);
        lab.clock.pass(31);
        await outbox.tick();
        expect((await signedFees(store)).maxFeePerGas <= maxFeePerGasCap, 'more was signed than is allowed');
      }
      const stuck = (await outbox.state(intent.key))!;
      expect(stuck.problem === 'FeeCapReached', `nobody is told: ${stuck.lastError}`);
      await expensiveBlocks(lab, 1, gwei);
      await lab.go();
      await lab.untilMined(outbox, intent.key);
      await topUpOnce(lab, lease);
      return `${stuck.hashes.length} signed, none above the cap; told as FeeCapReached; mined when it fell`;
    },
  },
  {
    name: 'underpriced',
    of,
    broke: 'another program with the same key put a dearer transaction at our nonce into the pool',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const lease = await lab.open();
      const before = await lab.nonce(key);
      await lab.hold();
      const store = memoryStore<OutboxRecord>();
      const outbox = await lab.outbox({ store, rpc: await lab.connect({ urls: [lab.endpoints[0].url] }) });
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      const { hash } = (await outbox.state(intent.key))!;
      const ours = await signedFees(store);
      await lab.anvil.rpc('anvil_dropTransaction', hash);
      lab.endpoints[0].refuseSmallBumps(true);
      const foreign = await key.signTransaction({
        type: 2,
        chainId: lab.anvil.chainId,
        nonce: before,
        to: key.address,
        gasLimit: 21_000n,
        maxFeePerGas: 2n * ours.maxFeePerGas,
        maxPriorityFeePerGas: 2n * ours.maxPriorityFeePerGas,
      });
      await (await lab.connect({ urls: [lab.endpoints[0].url] })).call('eth_sendRawTransaction', [foreign]);
      const refused = lab.endpoints[0].bumpsRefused;
      for (let turn = 0; turn < 12; turn++) {
        await outbox.tick();
        lab.clock.pass(31);
      }
      const entry = (await outbox.state(intent.key))!;
      expect(lab.endpoints[0].bumpsRefused > refused, 'the node refused nothing');
      expect(entry.hashes.length > 1 && entry.hashes.length <= 11, `${entry.hashes.length} were signed`);
      await lab.go();
      await lab.untilMined(outbox, intent.key);
      await topUpOnce(lab, lease);
      expect((await lab.nonce(key)) === before + 1, 'more than one nonce was used');
      return `refused ${lab.endpoints[0].bumpsRefused - refused} times, then paid more; ours was mined; 1 effect`;
    },
  },
  {
    name: 'nonce-taken',
    of,
    broke: 'another program with the same key had a transaction at our nonce mined',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const lease = await lab.open();
      const before = await lab.nonce(key);
      await lab.hold();
      const outbox = await lab.outbox();
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      const { hash } = (await outbox.state(intent.key))!;
      await lab.anvil.rpc('anvil_dropTransaction', hash);
      const foreign = await key.signTransaction({
        type: 2,
        chainId: lab.anvil.chainId,
        nonce: before,
        to: key.address,
        gasLimit: 21_000n,
        maxFeePerGas: 30n * gwei,
        maxPriorityFeePerGas: 3n * gwei,
      });
      await lab.anvil.rpc('eth_sendRawTransaction', foreign);
      await lab.mine(1);
      await lab.go();
      await outbox.tick();
      await lab.makeSafe();
      for (let turn = 0; turn < 3; turn++) {
        await outbox.tick();
        lab.clock.pass(31);
      }
      expect((await outbox.state(intent.key))!.state === 'lost', 'it is not known to be lost');
      await outbox.submit(intent);
      await lab.untilMined(outbox, intent.key);
      await topUpOnce(lab, lease);
      return 'found lost after a minute at the safe head; made anew; 1 effect';
    },
  },
  {
    name: 'cancelled',
    of,
    broke: 'an open that waits in the pool is taken back by its owner (cancel by an empty transfer)',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const before = await lab.nonce(key);
      await lab.hold();
      const outbox = await lab.outbox();
      const { intent, leaseId } = await lab.openIntent();
      await outbox.submit(intent);
      const entry = await outbox.cancel(intent.key);
      expect(entry?.cancelling === true && entry.hashes.length === 2, 'no empty transfer took its place');
      await lab.go();
      await lab.until('nonce being used', async () => ((await lab.nonce(key)) > before ? true : undefined));
      await lab.makeSafe();
      await outbox.tick();
      expect((await outbox.state(intent.key))!.state === 'lost', 'it is not told as lost');
      expect((await lab.lease(leaseId)) === undefined, 'the escrow was opened');
      return 'no escrow, 1 nonce, told as lost';
    },
  },
  {
    name: 'doomed',
    of,
    broke: 'the quote of an open runs out while the pool has lost it, with another transaction behind it',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const before = await lab.nonce(key);
      const lease = await lab.open();
      await lab.hold();
      const outbox = await lab.outbox();
      const { intent, leaseId } = await lab.openIntent({ expiresAt: (await lab.chain.now()) + 120 });
      const behind = lab.topUpIntent(lease);
      await outbox.submit(intent);
      await outbox.submit(behind);
      for (const name of [behind.key, intent.key])
        await lab.anvil.rpc('anvil_dropTransaction', (await outbox.state(name))!.hash);
      await lab.chain.pass(300);
      lab.clock.pass(100);
      await outbox.tick();
      expect((await outbox.state(intent.key))!.cancelling === true, 'it was not cancelled');
      await lab.go();
      await lab.untilMined(outbox, behind.key);
      await lab.makeSafe();
      await outbox.tick();
      expect((await outbox.state(intent.key))!.state === 'lost', 'it is not told as lost');
      expect((await lab.lease(leaseId)) === undefined, 'an escrow was opened');
      await topUpOnce(lab, lease);
      expect((await lab.nonce(key)) === before + 3, 'nonces do not follow one another');
      return 'an empty transfer took its nonce, no revert was paid for; the one behind was mined';
    },
  },
  {
    name: 'many-in-flight',
    of,
    broke: '24 transactions wait; the pool drops every third one',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const before = await lab.nonce(key);
      await lab.hold();
      const outbox = await lab.outbox();
      const wishes = await Promise.all(Array.from({ length: 24 }, () => lab.openIntent()));
      for (const { intent } of wishes) await outbox.submit(intent);
      for (const [index, { intent }] of wishes.entries())
        if (index % 3 === 1) await lab.anvil.rpc('anvil_dropTransaction', (await outbox.state(intent.key))!.hash);
      await outbox.tick();
      await lab.go();
      for (const { intent } of wishes) await lab.untilMined(outbox, intent.key);
      const leases = await lab.chain.client.leases(wishes.map((one) => one.leaseId));
      expect(
        leases.every((one) => one?.deposit === 100_000n),
        'not every escrow is open',
      );
      expect((await lab.nonce(key)) === before + 24, 'nonces do not follow one another');
      return '24 escrows, 24 nonces without a hole';
    },
  },
];
