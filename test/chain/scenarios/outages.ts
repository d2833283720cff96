/** Endpoints are away, or answer in ways that are no answer. */
import { setTimeout as sleep } from 'node:timers/promises';
import { ChainUnavailable } from '../../../operator/adapters/chain/rpc.ts';
import type { LeaseRecord } from '../../../operator/core/lease/observed.ts';
import { defaultLowWaterSeconds } from '../../../operator/core/money/deposit.ts';
import { priceOf } from '../../../operator/core/money/price.ts';
import { node, record } from '../../support/builders.ts';
import type { RpcHabit } from '../../support/faulty-rpc.ts';
import type { ChainLab } from '../lab.ts';
import { startOperator } from '../operator.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const of = 'RPC outage';

const both = (lab: ChainLab, habit: RpcHabit) => {
  for (const one of lab.endpoints) one.misbehave(habit);
};
const behave = (lab: ChainLab) => {
  for (const one of lab.endpoints) one.behave();
};

/** A top-up is wished for and looked after the whole time, as by an operator that cannot tell what is wrong. */
const whilePaying = (name: string, broke: string, habit: RpcHabit, seconds = 2): ChainScenario => ({
  name,
  of,
  broke,
  async run(lab) {
    const lease = await lab.open();
    const before = await lab.nonce(lab.chain.keys.consumer);
    const outbox = await lab.outbox({ rpc: await lab.connect({ timeoutMs: 400 }) });
    const intent = lab.topUpIntent(lease);
    const spoiled = lab.endpoints[0].spoiled + lab.endpoints[1].spoiled;
    both(lab, habit);
    let failures = 0;
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end) {
      await outbox.submit(intent).catch(() => {
        failures += 1;
      });
      await outbox.tick().catch(() => undefined);
      await sleep(50);
    }
    const hit = lab.endpoints[0].spoiled + lab.endpoints[1].spoiled - spoiled;
    expect(hit > 0, 'nothing was spoiled');
    behave(lab);
    expect((await outbox.submit(intent)).outcome === 'accepted', 'it could not be submitted afterwards');
    await lab.untilMined(outbox, intent.key);
    const { deposit } = (await lab.lease(lease.leaseId))!;
    expect(deposit === lease.deposit + 7_000n, `the deposit is ${deposit}`);
    expect((await lab.nonce(lab.chain.keys.consumer)) === before + 1, 'more than one nonce was used');
    return `${hit} calls spoiled, ${failures} wishes failed; 1 effect`;
  },
});

export const outages: ChainScenario[] = [
  {
    name: 'rpc-down-30min',
    of,
    broke: 'all endpoints down for 30 min (simulated clock), from just above the low water of the deposit on',
    async run(lab) {
      const { chain } = lab;
      const { keys, client } = chain;
      const openFor = { maxSeconds: 14_400, pricePerGpuHour: 360_000n };
      const lease = await lab.open(openFor, priceOf(7200, 1, 360_000n));
      const quote = await startOperator(lab, await parts(lab, () => 0)).remember(lease);
      const openedAt = (await lab.lease(lease.leaseId))!.openedAt;
      // What is covered then is what a top-up is wished for at, and a second.
      const before = 7200 - defaultLowWaterSeconds - 1;
      await chain.pass(before);
      let seconds = await chain.now();
      const operator = startOperator(lab, await parts(lab, () => seconds * 1000));
      const now = () => new Date(seconds * 1000);
      let remembered: LeaseRecord = record({
        quote,
        deposit: String(lease.deposit),
        startedAt: new Date(openedAt * 1000).toISOString(),
        meter: { servedMs: before * 1000, countedUntil: now().toISOString(), blockTime: seconds },
        signedSeconds: before,
        vouchedSeconds: before,
      });
      const served = node(0, { since: new Date(openedAt * 1000) });
      const first = await operator.look({ record: remembered, now: now(), node: served });
      expect(first.chain.state === 'known', 'the chain cannot be read at the start');
      expect(!first.plan.actions.some((one) => one.do === 'topUp'), 'it is topped up before the outage');

      both(lab, { is: 'down' });
      const started = seconds;
      let vouchers = 0;
      let last = await operator.money.signVoucher(quote, before, false);
      while (seconds < started + 1800) {
        seconds += 10;
        const { plan, ready, chain: fact } = await operator.look({ record: remembered, now: now(), node: served });
        expect(fact.state === 'unknown', 'the chain was read through endpoints that are down');
        expect(ready.status === 'True', `after ${seconds - started} s the lease is ${ready.reason}: ${ready.message}`);
        for (const action of plan.actions) {
          if (action.do === 'vouch') {
            last = await operator.money.signVoucher(quote, action.seconds, false);
            vouchers += 1;
            const { meter, seconds: counted } = action;
            remembered = { ...remembered, meter, signedSeconds: counted, vouchedSeconds: counted };
          } else if (action.do === 'saveMeter') remembered = { ...remembered, meter: action.meter };
          else expect(['warn', 'startNode', 'allocate'].includes(action.do), `it wished for ${action.do}`);
        }
      }
      behave(lab);
      await chain.pass(1801);
      seconds = (await chain.now()) + 1;
      const after = await lab.until('look at the chain that answers again', async () => {
        const look = await operator.look({ record: remembered, now: now(), node: served });
        return look.chain.state === 'known' ? look : undefined;
      });
      expect(!after.plan.actions.some((one) => one.do === 'beginEnd'), 'the lease ends when the chain is back');
      const topUp = after.plan.actions.find((one) => one.do === 'topUp');
      expect(topUp !== undefined, 'the deposit is not topped up when the chain is back');
      await operator.obey([topUp]);
      await lab.until('deposit that is topped up', async () =>
        (await lab.lease(lease.leaseId))!.deposit === topUp.total ? true : undefined,
      );
      const message = { leaseId: lease.leaseId, servedSeconds: remembered.signedSeconds, last: false };
      await chain.send(keys.provider, client.calls.settle({ message, signature: last }));
      const { claimed, servedSeconds } = (await lab.lease(lease.leaseId))!;
      expect(servedSeconds >= before + 1740, `only ${servedSeconds} s could be settled`);
      expect(claimed === priceOf(servedSeconds, 1, 360_000n), `${claimed} was paid for ${servedSeconds} s`);
      return `Ready throughout; ${vouchers} vouchers signed, ${servedSeconds - before} s of the outage paid; topped up after`;
    },
  },
  {
    name: 'one-endpoint-down',
    of,
    broke: 'one of two endpoints down',
    async run(lab) {
      const outbox = await lab.outbox();
      lab.endpoints[0].misbehave({ is: 'down' });
      const lease = await lab.open();
      const intent = lab.topUpIntent(lease);
      const since = Date.now();
      expect((await outbox.submit(intent)).outcome === 'accepted', 'the other one was not asked');
      const took = Date.now() - since;
      await lab.untilMined(outbox, intent.key);
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit + 7_000n, 'no effect');
      return `the other one served at once (${took} ms)`;
    },
  },
  {
    name: 'rpc-down-after-storing',
    of,
    broke: 'all endpoints go down between storing and broadcasting, for 3 s',
    async run(lab) {
      const lease = await lab.open();
      const intent = lab.topUpIntent(lease);
      let cut = false;
      const beforeBroadcast = () => {
        if (!cut) both(lab, { is: 'down' });
        cut = true;
      };
      const outbox = await lab.outbox({ faults: { beforeBroadcast } });
      const submitted = await outbox.submit(intent);
      expect(submitted.outcome === 'accepted' && submitted.entry.state === 'stored', 'it is not kept as stored');
      const { hash } = submitted.entry;
      await sleep(3000);
      const failed = await outbox.tick().then(
        () => undefined,
        (error: unknown) => error,
      );
      expect(failed instanceof ChainUnavailable, 'a tick without a chain says nothing of it');
      behave(lab);
      const entry = await lab.untilMined(outbox, intent.key);
      expect(entry.receipt!.hash === hash, 'other bytes than those that were stored were mined');
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit + 7_000n, 'not exactly one effect');
      return 'the stored bytes went out later; 1 effect';
    },
  },
  whilePaying('rpc-answers-lost', 'the answers to the first three broadcasts are lost', {
    is: 'dropAnswers',
    methods: /^eth_sendRawTransaction$/,
    times: 3,
  }),
  whilePaying('rpc-all-answers-lost', 'every second kind of answer is lost for 2 s: nonces, receipts, broadcasts', {
    is: 'dropAnswers',
    methods: /^eth_(getTransactionCount|getTransactionReceipt|sendRawTransaction)$/,
  }),
  whilePaying('rpc-500', 'all endpoints answer HTTP 500 for 2 s', { is: 'error' }),
  whilePaying('rpc-truncated', 'all endpoints answer half a JSON for 2 s', { is: 'truncate' }),
  whilePaying('rpc-hangs', 'all endpoints take calls and never answer, for 3 s', { is: 'hang' }, 3),
  whilePaying('rpc-slow', 'all endpoints answer later than is waited for, for 3 s', { is: 'slow', seconds: 0.6 }, 3),
];

const parts = async (lab: ChainLab, monotonicMs: () => number) => {
  const rpc = await lab.connect({ timeoutMs: 500 });
  return { rpc, outbox: await lab.outbox({ rpc }), monotonicMs };
};
