/**
 * What stands around our processes in two clusters: a kubelet, a scheduler and the node lifecycle controller, and users. They
 * write to their API server straight away; what they do is no fault of ours, and is never lost.
 */
import { type BudgetSpec, budgetSpec } from '../../operator/api/budget.ts';
import { apiVersion } from '../../operator/api/labels.ts';
import { type LeaseSpec, leaseSpec } from '../../operator/api/lease.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { offerSpec } from '../../operator/api/offer.ts';
import { providerSpec } from '../../operator/api/provider.ts';
import { recordName } from '../../operator/core/allocation/record.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import type { Node } from '../../operator/core/node/virtual-node.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import type { FakeCluster } from '../support/fake-cluster.ts';
import { chainId, escrowAddress, usdc } from './chain.ts';
import { gatewayNamespace } from './gateway.ts';
import type { Random } from './random.ts';
import type { Timeline } from './timeline.ts';

export const teamNamespace = 'ml';
export const providerName = 'ams';
type PodObject = Pod & KubeObject;
type NodeObject = Node & KubeObject;

const stamp = (ms: number) => new Date(ms).toISOString().replace(/\.\d{3}Z$/, 'Z');
/** node-monitor-grace-period, by default. */
const graceSeconds = 50;
const heartbeatConditions = new Set(['Ready', 'MemoryPressure', 'DiskPressure', 'PIDPressure']);
export const isTenant = (namespace: string | undefined) => namespace?.startsWith('gl-') === true;
export const isOver = (pod: Pod) => pod.status?.phase === 'Succeeded' || pod.status?.phase === 'Failed';
export const gpusOf = (pod: Pod): number =>
  pod.spec.containers.reduce((sum, one) => sum + Number(one.resources?.requests?.['nvidia.com/gpu'] ?? 0), 0);
export const readyOf = (node: Node) => node.status?.conditions?.find((one) => one.type === 'Ready');

export interface Surroundings {
  /** Nodes of the provider whose machine does not answer. */
  readonly silentNodes: Set<string>;
  lease(name: string, spec: Partial<LeaseSpec>): void;
  deleteLease(name: string): void;
  loseGatewayRecord(leaseId: Hex32): void;
  /** Past its finalizer, so that its operator is not asked. */
  forceLeaseAway(name: string): void;
  /** Keeps a pod running on each node, as a Deployment does; and starts one that ends by itself, as a Job. */
  readonly deployments: Set<string>;
  job(name: string, seconds: number): void;
  /** By its owner; at once, when forced. */
  deletePod(name: string, force: boolean): void;
  readonly forced: Set<string>;
  /** The consumer's. */
  deleteNode(name: string): void;
  setNodeReady(name: string, ready: boolean): void;
  setGpus(name: string, gpus: number): void;
  setPrice(perHour: string): void;
  setStopPolicy(policy: 'None' | 'Hold' | 'HoldAndDrain'): void;
  /** Of all namespaces; made, or changed. */
  setBudget(spec: Partial<BudgetSpec>): void;
  /** Pods that the consumer's cluster evicted, because their node was silent for too long. */
  readonly evicted: string[];
}

const gpuNode = (name: string, gpus: number): KubeObject =>
  ({
    metadata: {
      name,
      labels: {
        'kubernetes.io/hostname': name,
        'kubernetes.io/arch': 'amd64',
        'topology.kubernetes.io/region': 'eu-1',
        'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090',
        'nvidia.com/gpu.memory': '24564',
        'gpulease.dev/offered': 'true',
      },
    },
    spec: {},
    status: {
      allocatable: {
        cpu: '32',
        memory: '128Gi',
        'ephemeral-storage': '500Gi',
        pods: '110',
        'nvidia.com/gpu': String(gpus),
      },
      conditions: [{ type: 'Ready', status: 'True', reason: 'KubeletReady', message: '' }],
      nodeInfo: { kubeletVersion: 'v1.36.3', architecture: 'amd64', operatingSystem: 'linux' },
    },
  }) as KubeObject;

export interface Given {
  readonly gpusByNode: Readonly<Record<string, number>>;
  readonly providerAddress: string;
}

/** What is there before anybody starts. */
export function furnish(consumer: FakeCluster, provider: FakeCluster, given: Given): void {
  const namespace = (name: string) => ({ metadata: { name } });
  consumer.seed(
    resources.namespaces,
    ...['kube-system', 'gpulease-system', 'kube-node-lease', teamNamespace].map(namespace),
  );
  consumer.seed(resources.configMaps, {
    metadata: { name: 'settings', namespace: teamNamespace },
    data: { MODE: 'train' },
  } as KubeObject);
  provider.seed(resources.namespaces, ...['kube-system', 'gpulease-system'].map(namespace));
  provider.seed(resources.nodes, ...Object.entries(given.gpusByNode).map(([name, gpus]) => gpuNode(name, gpus)));
  provider.seed(resources.gpuOffers, {
    apiVersion,
    kind: 'GpuOffer',
    metadata: { name: 'rtx4090' },
    spec: offerSpec.parse({ model: 'RTX4090', prices: [{ assetSymbol: 'USDC', perGpuHour: '0.36' }] }),
  } as KubeObject);
  consumer.seed(resources.gpuProviders, {
    apiVersion,
    kind: 'GpuProvider',
    metadata: { name: providerName },
    spec: providerSpec.parse({
      endpoint: { url: 'https://gpu.ams.example:8443' },
      identity: { address: given.providerAddress },
      payment: { rails: [{ chainId, escrow: escrowAddress, token: usdc, assetSymbol: 'USDC', maxEscrow: '100' }] },
      probe: { intervalSeconds: 15, timeoutSeconds: 5, failureThreshold: 3 },
    }),
  } as KubeObject);
}

export function surroundings(
  timeline: Timeline,
  random: Random,
  consumer: FakeCluster,
  provider: FakeCluster,
  watched: {
    /** What is there, for whoever need not look closer. */
    readonly pods: () => number;
    readonly remotePods: () => number;
    readonly nodes: () => number;
    readonly onEviction: (pod: Pod) => void;
  },
): Surroundings {
  const silentNodes = new Set<string>();
  const deployments = new Set<string>();
  const forced = new Set<string>();
  const evicted: string[] = [];
  const startsAt = new Map<string, number>();
  const endsAt = new Map<string, number>();
  let made = 0;

  const every = (seconds: number, what: string, work: () => void) => {
    const again = () => {
      work();
      timeline.schedule(seconds * 1000, what, again);
    };
    timeline.schedule(seconds * 1000, what, again);
  };
  const keyOf = ({ metadata }: PodObject) => ({ namespace: metadata.namespace, name: metadata.name });
  const at = (map: Map<string, number>, pod: PodObject, afterMs: () => number): boolean => {
    const uid = pod.metadata.uid!;
    if (!map.has(uid)) map.set(uid, timeline.nowMs + afterMs());
    return timeline.nowMs >= map.get(uid)!;
  };

  every(1.5, 'kubelet', () => {
    if (watched.remotePods() === 0) return;
    const pods = provider.objects<PodObject>(resources.pods);
    for (const pod of pods) {
      if (!isTenant(pod.metadata.namespace)) continue;
      if (!pod.spec.nodeName) {
        const affinity = pod.spec.affinity as
          | {
              nodeAffinity: {
                requiredDuringSchedulingIgnoredDuringExecution: {
                  nodeSelectorTerms: { matchFields: { values: string[] }[] }[];
                };
              };
            }
          | undefined;
        const wanted =
          affinity?.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]?.matchFields[0]
            ?.values[0];
        const used = pods
          .filter((one) => one.spec.nodeName === wanted && !isOver(one))
          .reduce((sum, one) => sum + gpusOf(one), 0);
        const node = provider.object<NodeObject>(resources.nodes, { name: wanted ?? '' });
        if (used + gpusOf(pod) > Number(node?.status?.allocatable?.['nvidia.com/gpu'] ?? 0)) continue;
        pod.spec.nodeName = wanted;
        provider.change<PodObject>(resources.pods, keyOf(pod), (one) => {
          one.spec.nodeName = wanted;
        });
        continue;
      }
      if (silentNodes.has(pod.spec.nodeName)) continue;
      if (pod.metadata.deletionTimestamp) {
        if (at(endsAt, pod, () => random.between(0, 4000))) provider.erase(resources.pods, keyOf(pod));
        continue;
      }
      const [container] = pod.spec.containers;
      const [command, argument] = (container?.args ?? []) as string[];
      const ending = command === 'sleep' ? Number(argument) * 1000 : Number.POSITIVE_INFINITY;
      if (pod.status?.phase === 'Pending' && at(startsAt, pod, () => random.between(500, 4000)))
        provider.change<PodObject>(resources.pods, keyOf(pod), (one) => {
          one.status = {
            phase: 'Running',
            startTime: stamp(timeline.nowMs),
            conditions: [{ type: 'ContainersReady', status: 'True' }],
            containerStatuses: [
              {
                name: container!.name,
                ready: true,
                restartCount: 0,
                image: 'i',
                imageID: 'i',
                state: { running: { startedAt: stamp(timeline.nowMs) } },
              },
            ],
          };
        });
      else if (pod.status?.phase === 'Running' && timeline.nowMs >= startsAt.get(pod.metadata.uid!)! + ending)
        provider.change<PodObject>(resources.pods, keyOf(pod), (one) => {
          one.status = { ...one.status, phase: 'Succeeded' };
        });
    }
  });

  const heartbeats = new Map<string, { beat: string; atMs: number }>();
  every(5, 'node lifecycle', () => {
    if (watched.nodes() === 0) return;
    for (const node of consumer.objects<NodeObject>(resources.nodes)) {
      const { name } = node.metadata;
      const lease = consumer.object<KubeObject & { spec?: { renewTime?: string } }>(resources.leases, {
        namespace: 'kube-node-lease',
        name,
      });
      const ready = readyOf(node);
      const beat = `${lease?.spec?.renewTime} ${ready?.lastHeartbeatTime}`;
      if (heartbeats.get(name)?.beat !== beat) heartbeats.set(name, { beat, atMs: timeline.nowMs });
      const quietMs = timeline.nowMs - (heartbeats.get(name)?.atMs ?? timeline.nowMs);
      if (quietMs > graceSeconds * 1000 && ready && ready.status !== 'Unknown')
        consumer.change<NodeObject>(resources.nodes, { name }, (one) => {
          for (const condition of one.status?.conditions ?? [])
            if (heartbeatConditions.has(condition.type) && condition.status !== 'Unknown')
              Object.assign(condition, {
                status: 'Unknown',
                reason: 'NodeStatusUnknown',
                message: 'Kubelet stopped posting node status.',
                lastTransitionTime: stamp(timeline.nowMs),
              });
        });
      if (!ready || ready.status === 'True' || watched.pods() === 0) continue;
      const sinceMs = timeline.nowMs - Date.parse(ready.lastTransitionTime ?? '');
      for (const pod of consumer.objects<PodObject>(resources.pods)) {
        if (pod.spec.nodeName !== name || pod.metadata.deletionTimestamp || isOver(pod)) continue;
        const toleration = pod.spec.tolerations?.find((one) => one.key?.startsWith('node.kubernetes.io/'));
        if (toleration?.tolerationSeconds === undefined || sinceMs < toleration.tolerationSeconds * 1000) continue;
        evicted.push(pod.metadata.name);
        watched.onEviction(pod);
        void consumer.delete(resources.pods, keyOf(pod));
      }
    }
  });

  function bind(): void {
    if (watched.pods() === 0) return;
    const pods = consumer.objects<PodObject>(resources.pods);
    for (const pod of pods) {
      if (pod.spec.nodeName || pod.metadata.deletionTimestamp) continue;
      for (const node of consumer.objects<NodeObject>(resources.nodes)) {
        if (node.spec.unschedulable || node.metadata.deletionTimestamp || readyOf(node)?.status !== 'True') continue;
        const used = pods
          .filter((one) => one.spec.nodeName === node.metadata.name && !isOver(one))
          .reduce((sum, one) => sum + gpusOf(one), 0);
        if (used + gpusOf(pod) > Number(node.status?.allocatable?.['nvidia.com/gpu'] ?? 0)) continue;
        pod.spec.nodeName = node.metadata.name;
        consumer.change<PodObject>(resources.pods, keyOf(pod), (one) => {
          one.spec.nodeName = node.metadata.name;
        });
        break;
      }
    }
  }
  every(3, 'scheduler', () => {
    if (deployments.size === 0 && watched.pods() === 0) return;
    for (const name of deployments) {
      const alive = consumer
        .objects<PodObject>(resources.pods)
        .some((pod) => pod.metadata.name.startsWith(`${name}-`) && !isOver(pod) && !pod.metadata.deletionTimestamp);
      if (!alive) makePod(`${name}-${++made}`, undefined);
    }
    bind();
  });

  function makePod(name: string, seconds: number | undefined): void {
    const toleration = (key: string) => ({ key, operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 60 });
    consumer.seed(resources.pods, {
      metadata: { name, namespace: teamNamespace },
      spec: {
        restartPolicy: seconds === undefined ? 'Always' : 'Never',
        tolerations: [
          { operator: 'Exists', key: 'gpulease.dev/lease' },
          toleration('node.kubernetes.io/not-ready'),
          toleration('node.kubernetes.io/unreachable'),
        ],
        containers: [
          {
            name: 'main',
            image: 'busybox',
            ...(seconds === undefined ? { envFrom: [{ configMapRef: { name: 'settings' } }] } : {}),
            ...(seconds === undefined ? {} : { args: ['sleep', String(seconds)] }),
            resources: { requests: { 'nvidia.com/gpu': '1' }, limits: { 'nvidia.com/gpu': '1' } },
          },
        ],
      },
      status: { phase: 'Pending' },
    } as unknown as PodObject);
  }

  const changeNode = (name: string, change: (node: NodeObject) => void) =>
    provider.change<NodeObject>(resources.nodes, { name }, change);
  return {
    silentNodes,
    deployments,
    forced,
    evicted,
    lease(name, spec) {
      consumer.seed(resources.gpuLeases, {
        apiVersion,
        kind: 'GpuLease',
        metadata: { name, namespace: teamNamespace },
        spec: leaseSpec.parse({
          gpu: { models: ['RTX4090'], count: 1 },
          pricing: { maxPricePerGpuHour: '0.60' },
          term: { durationSeconds: 400 },
          startTimeoutSeconds: 120,
          drainTimeoutSeconds: 10,
          retry: { maxAttempts: 3, avoidFailedProviderSeconds: 30 },
          ...spec,
        }),
      } as unknown as KubeObject);
    },
    deleteLease(name) {
      if (consumer.object(resources.gpuLeases, { namespace: teamNamespace, name }))
        void consumer.delete(resources.gpuLeases, { namespace: teamNamespace, name });
    },
    loseGatewayRecord(leaseId) {
      void provider.delete(resources.secrets, { namespace: gatewayNamespace, name: recordName(leaseId) });
    },
    forceLeaseAway(name) {
      const key = { namespace: teamNamespace, name };
      if (!consumer.object(resources.gpuLeases, key)) return;
      void consumer
        .patch(resources.gpuLeases, key, { metadata: { finalizers: null } })
        .then(() => consumer.delete(resources.gpuLeases, key));
    },
    job: (name, seconds) => makePod(name, seconds),
    deletePod(name, force) {
      const pod = consumer.object<PodObject>(resources.pods, { namespace: teamNamespace, name });
      if (!pod) return;
      if (force) forced.add(pod.metadata.uid!);
      void consumer.delete(
        resources.pods,
        { namespace: teamNamespace, name },
        { uid: pod.metadata.uid, ...(force ? { gracePeriodSeconds: 0 } : {}) },
      );
    },
    deleteNode: (name) => void consumer.delete(resources.nodes, { name }),
    setNodeReady(name, ready) {
      if (ready) silentNodes.delete(name);
      else silentNodes.add(name);
      changeNode(name, (node) => {
        Object.assign(readyOf(node)!, {
          status: ready ? 'True' : 'Unknown',
          lastTransitionTime: stamp(timeline.nowMs),
        });
      });
    },
    setGpus: (name, gpus) =>
      changeNode(name, (node) => {
        node.status!.allocatable!['nvidia.com/gpu'] = String(gpus);
      }),
    setPrice: (perHour) =>
      provider.change<KubeObject & { spec?: { prices: { perGpuHour: string }[] } }>(
        resources.gpuOffers,
        { name: 'rtx4090' },
        (offer) => {
          offer.spec!.prices[0]!.perGpuHour = perHour;
        },
      ),
    setBudget(spec) {
      const name = 'team';
      if (consumer.object(resources.gpuBudgets, { name }))
        consumer.change<KubeObject & { spec?: BudgetSpec }>(resources.gpuBudgets, { name }, (one) => {
          one.spec = budgetSpec.parse({ ...one.spec, ...spec });
        });
      else
        consumer.seed(resources.gpuBudgets, {
          apiVersion,
          kind: 'GpuBudget',
          metadata: { name },
          spec: budgetSpec.parse(spec),
        } as KubeObject);
    },
    setStopPolicy: (policy) =>
      consumer.change<KubeObject & { spec?: { stopPolicy: string } }>(
        resources.gpuProviders,
        { name: providerName },
        (one) => {
          one.spec!.stopPolicy = policy;
        },
      ),
  };
}
