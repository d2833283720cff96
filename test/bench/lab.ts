/**
 * Where the benches measure: two clusters, one lease, and a way straight to the provider. A virtual node is compared with
 * the same pods on a node of the provider that is no tenant's: same kind of node, same machine, same run.
 */
import { join } from 'node:path';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { labels, taints } from '../../operator/api/labels.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { H100 } from '../../operator/sandbox/clusters/gpus.ts';
import { writeBundle } from '../../operator/sandbox/image/bundle.ts';
import type { Report } from '../../operator/sandbox/processes.ts';
import { type Sandbox, startSandbox } from '../../operator/sandbox/sandbox.ts';
import { lease, leaseManifest, type Running, until } from '../../operator/sandbox/scenario.ts';
import type { Group } from './processes.ts';

/** Where pods are put: the virtual node, or the provider's own. */
export interface Place {
  readonly name: 'ours' | 'straight';
  readonly cluster: Cluster;
  readonly kubeconfig: string;
  readonly namespace: string;
  readonly nodeSelector: Readonly<Record<string, string>>;
}

export interface Lab {
  readonly sandbox: Sandbox;
  readonly ours: Place;
  readonly straight: Place;
  readonly lease: Running;
  /** Processes by what they belong to. `operator` and `gateway` are ours. */
  readonly groups: Group &
    Record<'operator' | 'gateway' | 'consumerPlane' | 'providerPlane' | 'nodes', readonly number[]>;
  readonly signal: AbortSignal;
}

export interface LabOptions {
  readonly dir: string;
  readonly report: Report;
  /** How many pods a node takes. Of hollow nodes. */
  readonly pods: number;
  readonly profile?: string;
  readonly signal: AbortSignal;
}

const namespace = 'bench';
const leaseName = 'bench';

/** Both alternatives tolerate the same, so that the pods differ in nothing but where they go. */
export const tolerations = [
  { key: taints.lease, operator: 'Exists' },
  { key: taints.virtualNode, operator: 'Exists' },
];

/** As they are shipped: the sandbox's own, shorter ones are for impatient people. */
const shipped = {
  operator: ['--voucher-period-seconds', '60', '--chain-tick-seconds', '3', '--refund-seconds', '300'],
  gateway: ['--tick', '3', '--chain-interval', '5'],
};

export const shippedArgs = shipped;

/** The programs as the image has them, made of this tree: bundled, they take less memory than from their sources. */
export async function shippedEntries(dir: string) {
  const folder = join(dir, 'bundle');
  await writeBundle(folder);
  const entry = (program: string) => [join(folder, 'operator/cmd/gpulease.js'), program];
  return { operator: entry('operator'), gateway: entry('gateway') };
}

export function profileArgs(profile: string | undefined) {
  if (profile === undefined) return undefined;
  const flags = (program: string) => [
    '--cpu-prof',
    '--heap-prof',
    `--cpu-prof-dir=${join(profile, program)}`,
    `--heap-prof-dir=${join(profile, program)}`,
  ];
  return { operator: flags('operator'), gateway: flags('gateway') };
}

export async function startLab({ dir, report, pods, profile, signal }: LabOptions): Promise<Lab> {
  // A twentieth is kept back of what may be sold, and pods that are ending still count.
  const capacity = { pods: String(Math.ceil(pods * 1.3) + 20) };
  const sandbox = await startSandbox(
    {
      dir,
      report,
      nodes: [
        { name: 'leased', model: H100, gpus: 1, capacity },
        { name: 'plain', model: H100, gpus: 1, capacity, offered: false },
      ],
      operatorArgs: shipped.operator,
      gatewayArgs: shipped.gateway,
      nodeArgs: profileArgs(profile),
      entries: await shippedEntries(dir),
    },
    signal,
  );
  try {
    return await furnish(sandbox, report, signal);
  } catch (error) {
    await sandbox.stop();
    throw error;
  }
}

async function furnish(sandbox: Sandbox, report: Report, signal: AbortSignal): Promise<Lab> {
  const { consumerCluster, providerCluster } = sandbox;
  await Promise.all([
    namespaceReady(consumerCluster, namespace, signal),
    namespaceReady(providerCluster, namespace, signal),
  ]);
  await until(
    'an offer of the provider',
    60,
    async () =>
      (
        await consumerCluster.list<KubeObject & { status?: { available?: number } }>(resources.gpuOffers, {}, signal)
      ).items.some((offer) => (offer.status?.available ?? 0) > 0)
        ? true
        : undefined,
    signal,
  );
  await probeAsShipped(consumerCluster, signal);
  const manifest = leaseManifest(leaseName, 'H100-SXM', '3');
  manifest.metadata.namespace = namespace;
  const running = await lease(sandbox, [manifest], report, signal);
  const pidsOf = (pids: Readonly<Record<string, number>>) => Object.values(pids);
  return {
    sandbox,
    lease: running,
    signal,
    ours: {
      name: 'ours',
      cluster: consumerCluster,
      kubeconfig: sandbox.consumer.kubeconfigPath,
      namespace,
      nodeSelector: { [labels.lease]: leaseName },
    },
    straight: {
      name: 'straight',
      cluster: providerCluster,
      kubeconfig: sandbox.provider.kubeconfigPath,
      namespace,
      nodeSelector: { 'kubernetes.io/hostname': 'plain' },
    },
    groups: {
      operator: [sandbox.operator.pid],
      gateway: [sandbox.gateway.pid],
      consumerPlane: pidsOf(sandbox.consumer.pids),
      providerPlane: pidsOf(sandbox.provider.pids),
      nodes: sandbox.nodes.flatMap((node) => pidsOf(node.pids)),
    },
  };
}

/** The sandbox has its provider probed more often than anybody else would. */
export async function probeAsShipped(cluster: Cluster, signal: AbortSignal): Promise<void> {
  await cluster.patch(
    resources.gpuProviders,
    { name: 'sandbox' },
    { spec: { probe: null } },
    { type: 'merge' },
    signal,
  );
}

/** With the service account that its pods need. */
export async function namespaceReady(cluster: Cluster, name: string, signal: AbortSignal): Promise<void> {
  await applyManifests(
    cluster,
    [{ apiVersion: 'v1', kind: 'Namespace', metadata: { name } } as KubeObject],
    { fieldManager: 'bench' },
    signal,
  );
  await until(
    `the service account of namespace ${name}`,
    30,
    async () =>
      (await cluster.get(resources.serviceAccounts, { namespace: name, name: 'default' }, signal)) ? true : undefined,
    signal,
  );
}

export const isReadyLease = (lease: GpuLease | undefined): boolean =>
  lease?.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True') === true;
