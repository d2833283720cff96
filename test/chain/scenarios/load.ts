/** Many at once. */
import { Interface } from 'ethers';
import { leaseIdOf, signQuote } from '../../../operator/adapters/chain/messages.ts';
import type { OutboxRecord } from '../../../operator/adapters/chain/outbox.ts';
import { memoryStore } from '../../../operator/adapters/chain/store.ts';
import type { Hex32, Signed, Voucher } from '../../../operator/api/messages.ts';
import { priceOf } from '../../../operator/core/money/price.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const approve = new Interface(['function approve(address spender, uint256 amount)']);

/** Accounts of the chain from here on belong to nobody. */
const firstAccount = 10;

export const load: ChainScenario[] = [
  {
    name: 'restart-100-operators',
    of: 'mass restart',
    broke: '100 operators die with a transaction stored and not sent, and start again at the same moment',
    async run(lab) {
      const { chain } = lab;
      const count = 100;
      const rpc = await lab.connect({ timeoutMs: 20_000 });
      const stores = Array.from({ length: count }, () => memoryStore<OutboxRecord>());
      const before = await Promise.all(stores.map((_, index) => lab.nonce(lab.key(firstAccount + index))));
      const data = approve.encodeFunctionData('approve', [chain.client.address, 1n]) as `0x${string}`;
      const died = new Error('killed');
      for (const [index, store] of stores.entries()) {
        const faults = {
          beforeBroadcast: () => {
            throw died;
          },
        };
        const outbox = await lab.outbox({ rpc, key: lab.key(firstAccount + index), store, faults });
        await outbox.submit({ key: 'approve', to: chain.usdc, data }).catch((error) => {
          if (error !== died) throw error;
        });
      }
      const calls = () =>
        lab.endpoints.reduce((sum, one) => sum + [...one.calls.values()].reduce((a, b) => a + b, 0), 0);
      const asked = calls();
      const since = Date.now();
      await Promise.all(
        stores.map(async (store, index) => {
          const outbox = await lab.outbox({ rpc, key: lab.key(firstAccount + index), store });
          await outbox.submit({ key: 'approve', to: chain.usdc, data });
          await lab.untilMined(outbox, 'approve', 120);
        }),
      );
      const seconds = (Date.now() - since) / 1000;
      const each = (calls() - asked) / count;
      const after = await Promise.all(stores.map((_, index) => lab.nonce(lab.key(firstAccount + index))));
      expect(
        after.every((nonce, index) => nonce === before[index]! + 1),
        'not exactly one transaction each',
      );
      return `100 mined in ${seconds.toFixed(1)} s, ${each.toFixed(1)} calls each; 1 effect each`;
    },
  },
  {
    name: '500-leases-50-providers',
    of: 'load',
    broke: '500 leases of one consumer with 50 providers run and are settled, and then closed',
    automineOnly: true,
    async run(lab) {
      const { chain } = lab;
      const { client, keys } = chain;
      const [leases, providers, served] = [500, 50, 900];
      const rpc = await lab.connect({ timeoutMs: 20_000 });
      const consumer = await lab.outbox({ rpc });
      const openedFrom = Date.now();
      const byProvider: Hex32[][] = Array.from({ length: providers }, () => []);
      for (let index = 0; index < leases; index++) {
        const key = lab.key(firstAccount + (index % providers));
        const quote = await chain.quote({ provider: key.address, payee: key.address });
        const signed = await signQuote(key, client.domain, quote);
        const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
        const intent = { key: `open:${leaseId}`, ...client.calls.open(signed, keys.session.address, 340_000n) };
        // So many may wait for a block, and so many bytes for a safe one.
        if (index % 50 === 49) {
          if (index % 150 === 149) await lab.makeSafe();
          await consumer.tick();
        }
        const submitted = await consumer.submit(intent);
        expect(submitted.outcome === 'accepted', `lease ${index} is refused: ${JSON.stringify(submitted)}`);
        byProvider[index % providers]!.push(leaseId);
      }
      await lab.makeSafe();
      await consumer.tick();
      const openSeconds = (Date.now() - openedFrom) / 1000;
      await chain.pass(served + 60);

      const vouchers = async (ids: readonly Hex32[], seconds: number, last: boolean): Promise<Signed<Voucher>[]> =>
        Promise.all(ids.map((leaseId) => lab.voucher(leaseId, seconds, last)));
      const boxes = await Promise.all(
        byProvider.map((_, index) => lab.outbox({ rpc, key: lab.key(firstAccount + index) })),
      );
      // The first settlement of a provider pays for its balance's slot; what a running one costs is the second.
      const rounds: { gas: bigint; seconds: number }[] = [];
      for (const seconds of [served / 2, served]) {
        const since = Date.now();
        const used = await Promise.all(
          boxes.map(async (box, index) => {
            const key = `settle:${seconds}`;
            await box.submit({ key, ...client.calls.settleMany(await vouchers(byProvider[index]!, seconds, false)) });
            return (await lab.untilMined(box, key, 120)).receipt!.gasUsed;
          }),
        );
        rounds.push({ gas: used.reduce((sum, one) => sum + one, 0n), seconds: (Date.now() - since) / 1000 });
      }
      const all = await client.leases(byProvider.flat());
      const due = priceOf(served, 1, 340_000n);
      expect(all.length === leases && all.every((one) => one?.claimed === due), 'not every lease was paid its due');
      const perLease = Number(rounds[1]!.gas) / leases;
      expect(perLease <= 35_000, `${perLease} gas for a lease`);
      const closedFrom = Date.now();
      let closing = 0n;
      await Promise.all(
        boxes.map(async (box, index) => {
          for (const voucher of await vouchers(byProvider[index]!, served, true)) {
            const key = `close:${voucher.message.leaseId}`;
            await box.submit({ key, ...client.calls.close(voucher) });
            const { receipt } = await lab.untilMined(box, key, 120);
            closing += receipt!.gasUsed;
          }
        }),
      );
      const closed = await client.leases(byProvider.flat());
      expect(
        closed.every((one) => one?.closed && one.claimed === due),
        'not every lease is closed at its due',
      );
      const firstly = Math.round(Number(rounds[0]!.gas) / leases);
      return `settled in ${rounds[1]!.seconds.toFixed(1)} s at ${Math.round(perLease)} gas a lease (the first time ${firstly}); opened in ${openSeconds.toFixed(0)} s; closed in ${((Date.now() - closedFrom) / 1000).toFixed(0)} s at ${closing / BigInt(leases)} gas`;
    },
  },
];
