/**
 * How much one operator takes for many virtual nodes: real GpuLeases, each with its escrow on a local chain, its allocation at
 * a real gateway, its Node, and ten pods that run on hollow nodes of the provider. Measured at rest: once all is Ready and
 * nothing is left to do but heartbeats, vouchers and watching.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { GpuLease } from '../../operator/api/lease.ts';
import { createInformer } from '../../operator/engine/informer.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { startHollowFleet } from '../../operator/sandbox/clusters/hollow-node.ts';
import type { Report } from '../../operator/sandbox/processes.ts';
import { type Sandbox, startSandbox } from '../../operator/sandbox/sandbox.ts';
import { leaseManifest, until } from '../../operator/sandbox/scenario.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { type Target, table, told } from './figures.ts';
import { isReadyLease, namespaceReady, probeAsShipped, profileArgs, shippedArgs, shippedEntries } from './lab.ts';
import { createDeployment, scaleDeployment, watchPods } from './pods.ts';
import { cpuOf, difference, memoryOf } from './processes.ts';
import { requestsOf } from './requests.ts';

export interface SizeOptions {
  readonly dir: string;
  readonly report: Report;
  readonly say: (line: string) => void;
  /** Virtual nodes, growing. */
  readonly steps: readonly number[];
  readonly podsPerNode: number;
  readonly restSeconds: number;
  /** After each step the gateway stands still for so long; 0: it does not. */
  readonly standstillSeconds: number;
  readonly profile?: string;
  readonly signal: AbortSignal;
  readonly atEnd: (work: () => Promise<void>) => void;
}

interface Usage {
  readonly residentMB: number;
  /** Of JavaScript: in use, and held by V8; and what is held outside of it for buffers. */
  readonly heapMB: number;
  readonly heapTotalMB: number;
  readonly externalMB: number;
  readonly cores: number;
  readonly requestsPerSecond: number;
  readonly loopP99Ms: number;
}

export interface SizeStep {
  readonly nodes: number;
  readonly pods: number;
  /** Until all leases of this step were Ready, and then all pods. */
  readonly leasesSeconds: number;
  readonly podsSeconds: number;
  readonly operator: Usage;
  readonly gateway: Usage;
  /** Cores that the two control planes take meanwhile. */
  readonly consumerPlaneCores: number;
  readonly providerPlaneCores: number;
  readonly standstill?: Standstill;
}

/** The gateway's process stopped (SIGSTOP) and went on: what it cost those who are served by it. */
export interface Standstill {
  readonly seconds: number;
  /** The most leases that were not Ready at one time. */
  readonly leasesLost: number;
  /** From when it went on until all were Ready, for good; 0: none was lost afterwards. */
  readonly backSeconds: number;
}

const namespace = 'bench';
const gpusPerNode = 8;
/** Leases that are begun at once: each needs a transaction of the one wallet. */
const batch = 50;
/** Pods that are begun at once: ten thousand would keep two control planes on two cores from renewing a lock in time. */
const podBatch = 500;
const settleSeconds = 30;
/** So long all must stay Ready after a standstill: longer than it takes a virtual node to judge silence. */
const calmSeconds = 45;

export async function size(options: SizeOptions): Promise<{ figures: SizeStep[]; targets: Target[] }> {
  const { say, steps } = options;
  const crashed = new AbortController();
  const signal = AbortSignal.any([options.signal, crashed.signal]);
  const sandbox = await startSandbox(
    {
      dir: options.dir,
      report: options.report,
      nodes: [],
      // There is one of each, and two control planes on one machine may stand still for longer than a lock lasts.
      operatorArgs: [...shippedArgs.operator, '--leader-election', 'off', '--max-escrow', 'USDC=1000000'],
      gatewayArgs: [...shippedArgs.gateway, '--leader-election', 'off', '--requests-per-second', '100000'],
      onCrash: (program) => crashed.abort(new Error(`the ${program} ended while it was measured`)),
      nodeArgs: profileArgs(options.profile),
      entries: await shippedEntries(options.dir),
    },
    signal,
  );
  options.atEnd(() => sandbox.stop());
  await startFleet(sandbox, { ...options, signal });
  await namespaceReady(sandbox.consumerCluster, namespace, signal);
  await until(
    'offers of the provider',
    60,
    async () =>
      (
        await sandbox.consumerCluster.list<KubeObject & { status?: { available?: number } }>(resources.gpuOffers)
      ).items.some((offer) => (offer.status?.available ?? 0) >= Math.max(...steps))
        ? true
        : undefined,
    signal,
  );

  await probeAsShipped(sandbox.consumerCluster, signal);

  const ready = new Set<string>();
  const leases = createInformer<GpuLease & KubeObject>({
    cluster: sandbox.consumerCluster,
    resource: resources.gpuLeases,
    namespace,
  });
  leases.onChange(({ type, object }) => {
    const { name } = object.metadata;
    if (type !== 'deleted' && isReadyLease(object)) ready.add(name);
    else ready.delete(name);
  });
  const stop = new AbortController();
  void leases.run(AbortSignal.any([stop.signal, signal]));

  const place = {
    name: 'ours' as const,
    cluster: sandbox.consumerCluster,
    kubeconfig: sandbox.consumer.kubeconfigPath,
    namespace,
    // Any leased node: the scheduler spreads them, and a node takes no more than it has room for.
    nodeSelector: { 'gpulease.dev/provider': 'sandbox' },
  };
  const pods = await watchPods(place, 'size', signal);
  const figures: SizeStep[] = [];
  try {
    let made = 0;
    let begun = 0;
    for (const nodes of steps) {
      const leasesAt = performance.now();
      while (made < nodes) {
        const upTo = Math.min(nodes, made + batch);
        await Promise.all(
          Array.from({ length: upTo - made }, (_, i) =>
            sandbox.consumerCluster.create(resources.gpuLeases, manifestOf(`node-${made + i}`), signal),
          ),
        );
        made = upTo;
        await until(`${made} leases Ready`, 600, () => (ready.size >= made ? true : undefined), signal);
        say(`${made} of ${nodes} leases are Ready`);
      }
      const podsAt = performance.now();
      const count = nodes * options.podsPerNode;
      let readyAt = podsAt;
      while (begun < count) {
        const upTo = Math.min(count, begun + podBatch);
        if (begun === 0) await createDeployment(place, 'size', upTo, signal);
        else await scaleDeployment(place, 'size', upTo, signal);
        begun = upTo;
        readyAt = await pods.ready(begun, 900);
        if (begun < count) say(`${begun} of ${count} pods are Ready`);
      }
      say(`${count} pods are Ready; at rest for ${settleSeconds + options.restSeconds} s`);
      await sleep(settleSeconds * 1000, undefined, { signal });
      const step: SizeStep = {
        nodes,
        pods: count,
        leasesSeconds: told((podsAt - leasesAt) / 1000),
        podsSeconds: told((readyAt - podsAt) / 1000),
        ...(await atRest(sandbox, options.restSeconds, signal)),
        ...(options.standstillSeconds > 0 && { standstill: await standstill() }),
      };
      figures.push(step);
      say(
        `${nodes} nodes: operator ${step.operator.residentMB} MB, ${step.operator.cores} cores; gateway ${step.gateway.residentMB} MB, ${step.gateway.cores} cores`,
      );
    }
  } catch (error) {
    throw crashed.signal.aborted ? crashed.signal.reason : error;
  } finally {
    stop.abort(new Error('watched no longer'));
    pods.stop();
  }
  return { figures, targets: targetsOf(figures) };

  async function standstill(): Promise<Standstill> {
    const seconds = options.standstillSeconds;
    const all = ready.size;
    let fewest = all;
    const look = () => {
      fewest = Math.min(fewest, ready.size);
      return ready.size >= all;
    };
    say(`the gateway stands still for ${seconds} s`);
    await sandbox.gateway.kill('SIGSTOP');
    try {
      for (const endsAt = performance.now() + seconds * 1000; performance.now() < endsAt; look())
        await sleep(100, undefined, { signal });
    } finally {
      await sandbox.gateway.kill('SIGCONT');
    }
    const wokenAt = performance.now();
    let backAt = wokenAt;
    await until(
      `all ${all} leases Ready for ${calmSeconds} s after a standstill`,
      600,
      () => {
        if (!look()) backAt = performance.now();
        return performance.now() - backAt >= calmSeconds * 1000 ? true : undefined;
      },
      signal,
    );
    const figures = { seconds, leasesLost: all - fewest, backSeconds: told((backAt - wokenAt) / 1000) };
    say(
      `${figures.leasesLost} of ${all} leases were not Ready for a while; all were ${figures.backSeconds} s after it went on`,
    );
    return figures;
  }
}

async function startFleet(sandbox: Sandbox, options: SizeOptions): Promise<void> {
  const { report, signal } = options;
  const { kwok } = await ensureTools({ need: ['hollow'], report }, signal);
  if (!kwok) throw new Error('ensureTools found no kwok');
  const count = Math.ceil(Math.max(...options.steps) / gpusPerNode);
  const fleet = await startHollowFleet(
    {
      plane: sandbox.provider,
      name: 'fleet',
      dir: join(options.dir, 'fleet'),
      gpus: simulatedGpus('fleet', RTX_4090, gpusPerNode),
      labels: { 'gpulease.dev/offered': 'true' },
      // A little more than is needed: a twentieth is kept back, and the scheduler is to have a choice.
      capacity: { pods: String(Math.ceil(options.podsPerNode * gpusPerNode * 1.3)) },
      count,
      kwok,
      report,
    },
    signal,
  );
  options.atEnd(() => fleet.stop());
}

/** The cheapest there is: what all escrows together may hold is bounded by the provider's rail. */
function manifestOf(name: string): KubeObject {
  const manifest = leaseManifest(name, 'RTX4090', '0.60');
  manifest.metadata.namespace = namespace;
  return manifest;
}

async function atRest(sandbox: Sandbox, seconds: number, signal: AbortSignal) {
  const groups = {
    operator: [sandbox.operator.pid],
    gateway: [sandbox.gateway.pid],
    consumerPlane: Object.values(sandbox.consumer.pids),
    providerPlane: Object.values(sandbox.provider.pids),
  };
  const [before, asked, startedAt] = [cpuOf(groups), await requestsOf(sandbox, signal), performance.now()];
  await sleep(seconds * 1000, undefined, { signal });
  const [used, answered] = [difference(cpuOf(groups), before), await requestsOf(sandbox, signal)];
  const elapsed = (performance.now() - startedAt) / 1000;
  const usage = async (program: 'operator' | 'gateway'): Promise<Usage> => {
    const metrics = await (await fetch(`http://127.0.0.1:${sandbox.operations[program]}/metrics`, { signal })).text();
    const value = (name: string) => Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(metrics)?.[1]);
    const sum = (requests: Readonly<Record<string, number>>) =>
      Object.entries(requests).reduce((total, [name, count]) => total + (name.startsWith(program) ? count : 0), 0);
    return {
      residentMB: Math.round(memoryOf(sandbox[program].pid).resident / 1e6),
      heapMB: Math.round(value('nodejs_heap_size_used_bytes') / 1e6),
      heapTotalMB: Math.round(value('nodejs_heap_size_total_bytes') / 1e6),
      externalMB: Math.round(value('nodejs_external_memory_bytes') / 1e6),
      cores: told(used[program] / elapsed),
      requestsPerSecond: told((sum(answered) - sum(asked)) / elapsed),
      loopP99Ms: told(value('nodejs_eventloop_lag_p99_seconds') * 1000),
    };
  };
  return {
    operator: await usage('operator'),
    gateway: await usage('gateway'),
    consumerPlaneCores: told(used.consumerPlane / elapsed),
    providerPlaneCores: told(used.providerPlane / elapsed),
  };
}

function targetsOf(figures: readonly SizeStep[]): Target[] {
  const largest = figures.at(-1);
  if (!largest || largest.nodes < 1000) return [];
  return [
    { what: `operator at ${largest.nodes} nodes, MB resident`, measured: largest.operator.residentMB, atMost: 500 },
    { what: `operator at ${largest.nodes} nodes, cores at rest`, measured: largest.operator.cores, atMost: 0.5 },
  ];
}

export function sizeTable(figures: readonly SizeStep[]): string {
  return table(
    [
      'nodes',
      'pods',
      'operator MB',
      'heap',
      'cores',
      'requests/s',
      'gateway MB',
      'heap',
      'cores',
      'requests/s',
      'planes, cores',
    ],
    figures.map((step) => [
      String(step.nodes),
      String(step.pods),
      ...[step.operator, step.gateway].flatMap((one) => [
        String(one.residentMB),
        String(one.heapMB),
        String(one.cores),
        String(one.requestsPerSecond),
      ]),
      `${step.consumerPlaneCores} + ${step.providerPlaneCores}`,
    ]),
  );
}
