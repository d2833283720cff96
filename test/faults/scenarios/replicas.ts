/** Two of a kind: who leads, who takes over, and who must not act any more. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { namespace, type Replica } from '../../../operator/sandbox/sandbox.ts';
import { until } from '../../../operator/sandbox/scenario.ts';
import { type Lab, nextVoucher, writesOfOperators } from '../lab.ts';
import { expect, fairBill, fresh, type Scenario } from '../scenario.ts';

interface Lock extends KubeObject {
  spec?: { holderIdentity?: string };
}

/** Process that holds a lock; undefined while nobody does. Identities are host_pid_random. */
async function holder(lab: Lab, of: 'operator' | 'gateway'): Promise<number | undefined> {
  const cluster = of === 'operator' ? lab.sandbox.consumerCluster : lab.sandbox.providerCluster;
  const lock = await cluster.get<Lock>(resources.leases, { namespace, name: `gpulease-${of}` });
  const pid = Number(lock?.spec?.holderIdentity?.split('_').at(-2));
  return Number.isInteger(pid) && pid > 0 ? pid : undefined;
}

const untilLeads = (lab: Lab, of: 'operator' | 'gateway', pid: () => number, seconds = 40) =>
  until(`process ${pid()} leading`, seconds, async () => ((await holder(lab, of)) === pid() ? true : undefined));

/** Runs with a second one beside the first, and goes back to one, the first leading. */
async function withReplica(
  lab: Lab,
  of: 'operator' | 'gateway',
  work: (replica: Replica) => Promise<void>,
): Promise<void> {
  const replica = await lab.sandbox.startReplica(of, `${of}-2`, lab.signal);
  try {
    await work(replica);
  } finally {
    if (of === 'gateway') lab.wires.operatorToGateway.aim([gatewayTarget(lab)]);
    await lab.restore();
    await replica.process.stop();
    await untilLeads(lab, of, () => lab.sandbox[of].pid);
  }
}

/** Where the first gateway listens: its flags name it. */
function gatewayTarget(lab: Lab): string {
  const listen = lab.sandbox.gatewayListens;
  return `https://${listen}`;
}

export const replicas: Scenario[] = [
  {
    name: 'two-operators-leader-killed',
    broke: 'two operators; the leader SIGKILLed and kept down',
    async run(lab, clock) {
      await withReplica(lab, 'operator', async (replica) => {
        await untilLeads(lab, 'operator', () => lab.sandbox.operator.pid);
        await lab.kill('operator');
        const since = Date.now();
        clock.mended();
        await untilLeads(lab, 'operator', () => replica.process.pid);
        const seconds = (Date.now() - since) / 1000;
        expect(seconds <= 20, `taking over took ${seconds.toFixed(1)} s`);
        clock.note(`failover ${seconds.toFixed(1)} s`);
        await clock.wanted(() => servedAgain(lab));
        const lease = await lab.begin(fresh('ha'));
        await lease.ready();
        await lease.end();
        await fairBill(lab, lease, 5);
      });
    },
  },
  {
    name: 'old-leader-paused-and-woken',
    broke: 'two operators; the leader SIGSTOPped for 25 s and woken: it must end itself and change nothing',
    async run(lab, clock) {
      await withReplica(lab, 'operator', async (replica) => {
        await untilLeads(lab, 'operator', () => lab.sandbox.operator.pid);
        const deaths = lab.deaths.get('operator') ?? 0;
        await lab.sandbox.operator.kill('SIGSTOP');
        await untilLeads(lab, 'operator', () => replica.process.pid);
        // Something for both to do, so that the old one would have cause to act.
        const lease = await lab.begin(fresh('paused'));
        await lease.ready();
        await sleep(5000);
        const woken = Date.now();
        await lab.sandbox.operator.kill('SIGCONT');
        await until('the old leader ending itself', 15, () =>
          (lab.deaths.get('operator') ?? 0) > deaths ? true : undefined,
        );
        const ended = (Date.now() - woken) / 1000;
        await until('the audit log', 5, () => (Date.now() - woken > 3000 ? true : undefined));
        const done = writesOfOperators(lab).filter(
          (write) => write.user === 'gpulease-operator' && write.at >= woken && write.code < 300,
        );
        // Started again, it waits for the lock, which writes nothing either.
        expect(
          done.length === 0,
          `the old leader still wrote: ${done.map((write) => `${write.verb} ${write.what}`).join(', ')}`,
        );
        clock.note(`ended itself after ${ended.toFixed(1)} s, wrote nothing`);
        clock.mended();
        await clock.wanted();
        await lease.end();
        await fairBill(lab, lease, 5);
      });
    },
  },
  {
    name: 'operator-rolled',
    broke: 'two operators; the leader asked to stop (SIGTERM), as in a rolling update',
    async run(lab, clock) {
      await withReplica(lab, 'operator', async (replica) => {
        await untilLeads(lab, 'operator', () => lab.sandbox.operator.pid);
        lab.down.add('operator');
        await lab.sandbox.operator.stop();
        const since = Date.now();
        clock.mended();
        await untilLeads(lab, 'operator', () => replica.process.pid);
        clock.note(`handed over in ${((Date.now() - since) / 1000).toFixed(1)} s`);
        await clock.wanted(() => servedAgain(lab));
      });
    },
  },
  {
    name: 'two-gateways-leader-killed',
    broke: 'two gateways behind one address; the leader SIGKILLed while a lease opens, and kept down',
    async run(lab, clock) {
      await withReplica(lab, 'gateway', async (replica) => {
        lab.wires.operatorToGateway.aim([gatewayTarget(lab), replica.url!]);
        await untilLeads(lab, 'gateway', () => lab.sandbox.gateway.pid);
        lab.order({ point: 'gateway.allocate:before', do: 'hold' });
        const lease = await lab.begin(fresh('ha'));
        await lab.reached();
        await lab.kill('gateway');
        lab.release();
        const since = Date.now();
        clock.mended();
        await lease.ready();
        clock.note(`Ready ${((Date.now() - since) / 1000).toFixed(1)} s later`);
        await clock.wanted(() => servedAgain(lab));
        await untilLeads(lab, 'gateway', () => replica.process.pid);
        await lease.end();
        await fairBill(lab, lease, 5);
      });
    },
  },
];

/** The first one is down on purpose: the other one does its work, so vouchers are given and taken. */
const servedAgain = async (lab: Lab): Promise<void> => void (await nextVoucher(lab));
