/** SIGKILL, at chosen moments of a lease's life. What died is started again, as a Deployment or systemd would. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Lab, LabLease, Target } from '../lab.ts';
import { expect, fairBill, fresh, type Scenario, type Stopwatch } from '../scenario.ts';

/** A moment while a lease is made: the operator's last step before it is over. */
const making = {
  quoting: 'gateway.quote:after',
  opening: 'afterBroadcast',
  provisioning: 'gateway.allocate:after',
  registering: 'nodes.start:after',
} as const;
/** … and while it ends. */
const ending = {
  draining: 'nodes.drain:after',
  releasing: 'gateway.release:after',
  settling: 'gateway.release:after',
} as const;

const onNewLease = async (lab: Lab, clock: Stopwatch, breakIt: (lease: LabLease) => Promise<void>) => {
  const lease = await lab.begin(fresh('new'));
  await breakIt(lease);
  clock.mended();
  await lease.ready();
  await clock.wanted();
  await lease.end();
  await fairBill(lab, lease);
};

const onEndingLease = async (lab: Lab, clock: Stopwatch, breakIt: (lease: LabLease) => Promise<void>) => {
  const lease = await lab.begin(fresh('old'));
  await lease.ready();
  await lease.pod(`${lease.name}-pod`);
  const { leaseId } = lease.witness.lease!.status!.settlement!;
  const gone = breakIt(lease);
  await lease.delete();
  await gone;
  clock.mended();
  await lease.gone();
  await clock.wanted();
  expect((await lab.vouched(leaseId)) !== undefined, 'the gateway has forgotten the lease');
  await fairBill(lab, lease, 8);
};

const untilDead = async (lab: Lab) => {
  await lab.reached();
  // It has killed itself by now, and is started again a second later.
};

const operatorKills: Scenario[] = [
  ...Object.entries(making).map(
    ([moment, point]): Scenario => ({
      name: `operator-killed-${moment}`,
      broke: `operator SIGKILLed while ${moment} (${point})`,
      async run(lab, clock) {
        const match = point === 'afterBroadcast' ? '"open:' : point.startsWith('nodes') ? '"new-' : undefined;
        lab.order({ point, do: 'kill', match });
        await onNewLease(lab, clock, () => untilDead(lab));
      },
    }),
  ),
  {
    name: 'operator-killed-serving',
    broke: 'operator SIGKILLed between a voucher taken and remembered',
    async run(lab, clock) {
      lab.order({ point: 'gateway.vouch:after', do: 'kill' });
      await untilDead(lab);
      clock.mended();
    },
  },
  ...(['draining', 'releasing'] as const).map(
    (moment): Scenario => ({
      name: `operator-killed-${moment}`,
      broke: `operator SIGKILLed while ${moment} (${ending[moment]})`,
      async run(lab, clock) {
        lab.order({ point: ending[moment], do: 'kill' });
        await onEndingLease(lab, clock, () => untilDead(lab));
      },
    }),
  ),
  {
    name: 'operator-killed-settling',
    broke: 'operator SIGKILLed before it lets the settled lease go',
    async run(lab, clock) {
      lab.order({ point: 'records.remove:before', do: 'kill' });
      await onEndingLease(lab, clock, () => untilDead(lab));
    },
  },
];

/** Holds the operator at a point, kills something else, lets the operator go on, and starts what died a little later. */
const killedWhile = (
  what: Target,
  moment: keyof typeof making | keyof typeof ending,
  downSeconds: number,
  needs?: 'real',
): Scenario => ({
  name: `${what.replace('/', '-').replace('kube-', '')}-killed-${moment}`,
  broke: `${what} SIGKILLed while ${moment}, down for ${downSeconds} s`,
  needs,
  async run(lab, clock) {
    const strike = async () => {
      await lab.reached();
      await lab.kill(what);
      lab.release();
      await sleep(downSeconds * 1000);
      await lab.revive(what);
    };
    if (moment in making) {
      const point = making[moment as keyof typeof making].replace(':after', ':before');
      lab.order({ point: point === 'afterBroadcast' ? 'beforeBroadcast' : point, do: 'hold', match: matchOf(point) });
      await onNewLease(lab, clock, strike);
    } else {
      const point = ending[moment as keyof typeof ending];
      lab.order({ point: moment === 'releasing' ? point.replace(':after', ':before') : point, do: 'hold' });
      await onEndingLease(lab, clock, strike);
    }
  },
});
const matchOf = (point: string) =>
  point === 'afterBroadcast' ? '"open:' : point.startsWith('nodes') ? '"new-' : undefined;

const killedServing = (what: Target, downSeconds: number, needs?: 'real'): Scenario => ({
  name: `${what.replace('/', '-').replace('kube-', '')}-killed-serving`,
  broke: `${what} SIGKILLed while serving, down for ${downSeconds} s`,
  needs,
  async run(lab, clock) {
    await lab.kill(what);
    await sleep(downSeconds * 1000);
    await lab.revive(what);
    clock.mended();
  },
});

export const kills: Scenario[] = [
  ...operatorKills,
  killedWhile('gateway', 'quoting', 2),
  killedWhile('gateway', 'opening', 2),
  killedWhile('gateway', 'provisioning', 2),
  killedServing('gateway', 5),
  killedWhile('gateway', 'draining', 2),
  killedWhile('gateway', 'settling', 2),
  killedWhile('anvil', 'opening', 3),
  killedServing('anvil', 5),
  killedWhile('anvil', 'settling', 3),
  killedWhile('consumer/kube-apiserver', 'opening', 2),
  killedServing('consumer/kube-apiserver', 5),
  killedWhile('provider/kube-apiserver', 'provisioning', 2),
  killedServing('provider/kube-apiserver', 5),
  killedWhile('provider/kube-apiserver', 'draining', 2),
  killedServing('consumer/etcd', 3),
  killedWhile('consumer/etcd', 'opening', 3),
  killedServing('provider/etcd', 3),
  killedServing('consumer/kube-controller-manager', 5),
  killedServing('provider/kube-controller-manager', 5),
  killedServing('kubelet', 5, 'real'),
  killedServing('containerd', 3, 'real'),
];
