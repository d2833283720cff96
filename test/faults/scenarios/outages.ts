/** Long silences: a side is down, a store takes no writes, a clock is wrong. Scaled down, and in full with --long. */
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../../../operator/sandbox/scenario.ts';
import { denyWrites } from '../etcd.ts';
import { asWanted, type Lab, type Side, type Target } from '../lab.ts';
import { podsAtProvider } from '../pods.ts';
import { expect, fairBill, fresh, type Scenario } from '../scenario.ts';
import { nodeReady } from './network.ts';

const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b);
const baseLeaseId = (lab: Lab) => lab.base.witness.lease!.status!.settlement!.leaseId;
const signed = (lab: Lab) => lab.base.witness.lease!.status!.settlement!.servedSeconds;

const operatorDown = (name: string, broke: string, secondsAfterUnknown: number, long: boolean): Scenario => ({
  name,
  broke,
  long,
  async run(lab, clock) {
    const before = await podsAtProvider(lab);
    const since = Date.now();
    await lab.kill('operator');
    await until('the node Unknown', 80, async () => ((await nodeReady(lab))?.status === 'Unknown' ? true : undefined));
    const unknownAfter = (Date.now() - since) / 1000;
    await sleep(secondsAfterUnknown * 1000);
    expect(same(await podsAtProvider(lab), before), 'pods changed while the operator was down');
    const readyBefore = lab.base.witness.readySeconds();
    await lab.revive('operator');
    clock.mended();
    await clock.wanted();
    expect(same(await podsAtProvider(lab), before), 'pods changed when the operator came back');
    const vouched = (await lab.vouched(baseLeaseId(lab)))!;
    const ready = lab.base.witness.readySeconds();
    expect(vouched <= ready + 2, `${vouched} s are vouched for, the node was Ready for ${ready.toFixed(1)} s`);
    clock.note(
      `Unknown after ${unknownAfter.toFixed(0)} s, down ${((Date.now() - since) / 1000).toFixed(0)} s, Ready ${readyBefore.toFixed(0)} s before`,
    );
  },
});

const provider: Target[] = ['gateway', 'provider/kube-apiserver', 'provider/etcd'];

const providerDown = (name: string, broke: string, seconds: number, long: boolean): Scenario => ({
  name,
  broke,
  long,
  async run(lab, clock) {
    const before = await podsAtProvider(lab);
    const since = Date.now();
    for (const what of provider) await lab.kill(what);
    const ready = await until('the node NotReady', 40, async () => {
      const now = await nodeReady(lab);
      return now?.status === 'False' ? now : undefined;
    });
    const notReadyAfter = (Date.now() - since) / 1000;
    expect(ready.reason === 'ProviderUnreachable', `the node says ${ready.reason}`);
    const served = lab.base.witness.readySeconds();
    await sleep(Math.max(0, seconds * 1000 - (Date.now() - since)));
    expect(signed(lab) <= served + 1, `${signed(lab)} s are signed for, the node was Ready for ${served.toFixed(1)} s`);
    for (const what of [...provider].reverse()) await lab.revive(what);
    clock.mended();
    // Its kubelets, too, come back by and by: their own watches wait up to half a minute between two attempts.
    await clock.wanted(() => asWanted(lab, 180));
    expect(same(await podsAtProvider(lab), before), 'pods changed when the provider came back');
    const vouched = (await lab.vouched(baseLeaseId(lab)))!;
    const readySeconds = lab.base.witness.readySeconds();
    expect(vouched <= readySeconds + 2, `${vouched} s are vouched for, Ready for ${readySeconds.toFixed(1)} s`);
    clock.note(`NotReady after ${notReadyAfter.toFixed(0)} s, nothing signed in the gap`);
  },
});

const storeFull = (side: Side, seconds: number): Scenario => ({
  name: `${side}-etcd-full`,
  broke: `${side}'s etcd over its quota (NOSPACE): no writes for ${seconds} s`,
  async run(lab, clock) {
    const before = await podsAtProvider(lab);
    const allow = await denyWrites(lab.plane(side), 'NOSPACE');
    try {
      await sleep(seconds * 1000);
    } finally {
      await allow();
    }
    clock.mended();
    await clock.wanted();
    expect(same(await podsAtProvider(lab), before), 'pods changed');
  },
});

/** Passed while it was wrong, and between two processes of which one had it wrong. */
const lost = 45;

const clockOff = (seconds: number): Scenario => ({
  name: `operator-clock-${seconds > 0 ? 'ahead' : 'behind'}`,
  broke: `operator's clock ${Math.abs(seconds / 60)} minutes ${seconds > 0 ? 'ahead' : 'behind'} for 15 s, then right again`,
  lost,
  async run(lab, clock) {
    const lease = await lab.begin(fresh('skew'));
    await lease.ready();
    const { leaseId } = lease.witness.lease!.status!.settlement!;
    const before = await podsAtProvider(lab);
    await sleep(4000);
    lab.setClock(seconds);
    await lab.sandbox.operator.restart();
    await sleep(15_000);
    const vouched = (await lab.vouched(leaseId))!;
    const ready = lease.witness.readySeconds();
    expect(vouched <= ready + 3, `${vouched} s are vouched for, the node was Ready for ${ready.toFixed(1)} s`);
    lab.setClock(0);
    await lab.sandbox.operator.restart();
    clock.mended();
    await sleep(6000);
    await clock.wanted();
    expect(same(await podsAtProvider(lab), before), 'pods changed');
    await lease.end();
    const billed = await fairBill(lab, lease, lost);
    clock.note(`billed ${billed} s of ${lease.witness.readySeconds().toFixed(0)} s Ready`);
  },
});

export const outages: Scenario[] = [
  operatorDown(
    'operator-down-beyond-eviction',
    'operator down until its node is Unknown, and 25 s more (tolerations: 20 s)',
    25,
    false,
  ),
  operatorDown('operator-down-8-minutes', 'operator down for 8 minutes', 430, true),
  providerDown('provider-down', 'gateway, API server and etcd of the provider down for 60 s', 60, false),
  providerDown(
    'provider-down-10-minutes',
    'gateway, API server and etcd of the provider down for 10 minutes',
    600,
    true,
  ),
  storeFull('consumer', 14),
  storeFull('provider', 14),
  clockOff(300),
  clockOff(-300),
];

export const requotes: Scenario[] = (
  [
    ['after-quote', 'records.save:after', '"leaseRef"', 'the quote was stored'],
    ['after-signing', 'beforeBroadcast', '"open:', 'the opening transaction was signed and stored'],
    ['after-broadcast', 'afterBroadcast', '"open:', 'the opening transaction was sent'],
  ] as const
).map(
  ([when, point, match, words]): Scenario => ({
    name: `requote-${when}`,
    broke: `operator SIGKILLed when ${words}, down until the quote has expired`,
    async run(lab, clock) {
      const name = fresh('requote');
      lab.down.add('operator');
      lab.order({ point, do: 'kill', match: point === 'records.save:after' ? `${name}` : match });
      const lease = await lab.begin(name);
      await lab.reached();
      await sleep(36_000);
      await lab.revive('operator');
      clock.mended();
      await lease.ready(120);
      await clock.wanted();
      clock.note(`attempt ${lease.witness.lease?.status?.attempt}`);
      await lease.end();
      await fairBill(lab, lease, 5);
    },
  }),
);
