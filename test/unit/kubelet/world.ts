/** A consumer's cluster, a provider's, and the virtual node between them; both clusters in memory, ports real. */
import { vi } from 'vitest';
import { remotePodName } from '../../../operator/core/node/names.ts';
import type { Pod } from '../../../operator/core/node/pod.ts';
import { type Node, nodeNameOf } from '../../../operator/core/node/virtual-node.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import type { EvictionGuard } from '../../../operator/kubelet/eviction-guard.ts';
import { createVirtualNodes, type NodeSpec, type VirtualNodes } from '../../../operator/kubelet/virtual-nodes.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';
import { authority } from '../adapters/provider/tls.ts';
import { type FakeLease, fakeLease, served } from './fake-lease.ts';

export const lease = { name: 'train', namespace: 'team-a', uid: '11111111-2222-3333-4444-555555555555' };
export const nodeName = nodeNameOf(lease);

export interface Told {
  pod: string;
  type: string;
  reason: string;
  message: string;
}

export interface World {
  readonly consumer: FakeCluster;
  readonly provider: FakeCluster;
  readonly lease: FakeLease;
  readonly nodes: VirtualNodes;
  readonly told: Told[];
  /** Providers at which a pod was ended that nobody here knows, one entry a pod. */
  readonly strays: string[];
  /** How often a pod was looked at. */
  readonly looks: number;
  health: { ready: boolean; reason?: string; message?: string };
  /** How long nothing is told of a pod of which its provider says nothing. */
  firstReportSeconds: number;
  /** How often objects are read that cannot be watched. */
  objectPollSeconds: number;
  /** This process ends; another one takes over when `start` is called. */
  stop(): Promise<void>;
  start(spec?: Partial<NodeSpec>): Promise<void>;
  /** Given to what is started from then on. */
  evictionGuard?: EvictionGuard;
  pod(name: string, namespace?: string): Pod | undefined;
  remote(pod: Pod): Pod | undefined;
  remotes(): Pod[];
  node(): Node | undefined;
  /** Binds a pod to the virtual node, as the scheduler does. */
  bind(name: string, change?: (pod: Pod) => void): Pod;
  /** What the provider's kubelet says. */
  say(pod: Pod, status: object): void;
}

const tenant = 'tenant';
const certificate = authority('self').then((ca) => ca.issue([{ CN: ['node'] }]));

export function world(): World {
  const consumer = fakeCluster({ name: 'consumer' });
  const provider = fakeCluster({ name: 'provider' });
  const told: Told[] = [];
  const strays: string[] = [];
  let stopping = new AbortController();
  let running: Promise<void> = Promise.resolve();
  let nodes: VirtualNodes | undefined;
  let looks = 0;
  const connection = fakeLease(provider, tenant);
  const it: World = {
    consumer,
    provider,
    lease: connection,
    told,
    strays,
    health: { ready: true },
    firstReportSeconds: 0.2,
    objectPollSeconds: 0.2,
    get looks() {
      return looks;
    },
    get nodes() {
      return nodes!;
    },
    async start(spec = {}) {
      stopping = new AbortController();
      nodes = createVirtualNodes({
        cluster: consumer,
        address: '127.0.0.1',
        listenHost: '127.0.0.1',
        kubeletVersion: 'v1.36.3+gpulease.test',
        certificates: {
          async selfSigned() {
            const pair = await certificate;
            return { certificatePem: pair.cert, privateKeyPem: pair.key, renewAt: new Date(Date.now() + 1e9) };
          },
          signed: async () => undefined,
        },
        callers: { clientCaPem: (await certificate).cert },
        events: {
          event: (about, type, reason, message) =>
            told.push({ pod: `${about.metadata.namespace}/${about.metadata.name}`, type, reason, message }),
        },
        log: silentLog,
        onStrayPod: (name) => strays.push(name),
        evictionGuard: it.evictionGuard,
        metrics: {
          reconciled: (controller) => {
            if (controller === 'virtual-node-pods') looks += 1;
          },
        },
        heartbeatSeconds: 0.2,
        firstReportSeconds: it.firstReportSeconds,
        objectPollSeconds: it.objectPollSeconds,
      });
      running = nodes.run(stopping.signal);
      nodes.start(
        {
          lease,
          leaseId: `0x${'1'.repeat(64)}`,
          providerName: 'acme',
          offerName: 'acme-4090',
          capacityType: 'OnDemand',
          allowedNamespaces: ['team-a'],
          served: served(2),
          healthy: () => it.health,
          ...spec,
        },
        connection,
      );
      await vi.waitFor(() => {
        if (!nodes?.get(nodeName)?.state.registered) throw new Error('not registered');
      }, 5000);
    },
    async stop() {
      stopping.abort(new Error('stopped'));
      await running;
    },
    pod: (name, namespace = 'team-a') => consumer.object<Pod>(resources.pods, { namespace, name }),
    remote: (pod) => it.remotes().find((p) => p.metadata.name === remoteNameOf(pod)),
    remotes: () => provider.objects<Pod>(resources.pods),
    node: () => consumer.object<Node & KubeObject>(resources.nodes, { name: nodeName }),
    bind(name, change) {
      const pod: Pod = {
        metadata: { name, namespace: 'team-a' },
        spec: { nodeName, restartPolicy: 'Always', containers: [{ name: 'main', image: 'busybox' }] },
        status: { phase: 'Pending', conditions: [{ type: 'PodScheduled', status: 'True' }] },
      };
      change?.(pod);
      return consumer.seed(resources.pods, pod)[0]!;
    },
    say(pod, status) {
      provider.change<Pod>(resources.pods, { namespace: tenant, name: remoteNameOf(pod) }, (remote) => {
        remote.spec.nodeName = 'real';
        remote.status = { ...remote.status, ...status };
      });
    },
  };
  return it;
}

export const remoteNameOf = (pod: Pod): string => remotePodName(pod.metadata.name, pod.metadata.uid ?? '');

/** Waits until it holds. */
export const eventually = (assertion: () => void): Promise<void> =>
  vi.waitFor(assertion, { timeout: 5000, interval: 10 });

/** Gives everything that might wrongly happen the time to. */
export const aWhile = (ms = 300): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
