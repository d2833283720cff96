/**
 * Virtual nodes: one process serves many. Each stands for one lease: a Node with its heartbeat, a kubelet API on a port of
 * its own, and the pods that Kubernetes binds to it, carried to the provider.
 *
 * Everything is found again after a restart: Nodes by their labels, pods by what is bound, remote pods by their names. Nothing
 * is deleted because it is not known.
 */
import { annotations, labels, managedBy } from '../api/labels.ts';
import type { LeaseEnd } from '../core/node/disruption.ts';
import { virtualNodePrefix } from '../core/node/names.ts';
import { isOfDaemonSet, isTerminal, type Pod } from '../core/node/pod.ts';
import { familyOf, type Service } from '../core/node/service.ts';
import { concerns, type ServiceLinks, serviceVariables } from '../core/node/service-links.ts';
import { claimsOfPod } from '../core/node/storage.ts';
import { type Node, nodeNameOf } from '../core/node/virtual-node.ts';
import { type Clock, systemClock } from '../engine/clock.ts';
import { createController, watches } from '../engine/controller.ts';
import { sameJson } from '../engine/equal.ts';
import { createInformer } from '../engine/informer.ts';
import type { EngineMetrics } from '../engine/metrics.ts';
import { keyOf, keyText } from '../engine/paths.ts';
import {
  type Change,
  type Cluster,
  type EventRecorder,
  type KubeObject,
  type Log,
  type ObjectKey,
  type Result,
  resources,
} from '../engine/types.ts';
import { alikeParts } from './alike.ts';
import { createCallers } from './api/callers.ts';
import type { StartKubeletServer } from './api/server.ts';
import { createClientCa } from './client-ca.ts';
import { createDeviceSlices } from './device-slices.ts';
import { type DrainProgress, drainStep, removeNode } from './drain.ts';
import type { EvictionGuard } from './eviction-guard.ts';
import { createFollowedObjects } from './followed.ts';
import { type Host, openHost } from './host.ts';
import { createLeasedAccess } from './leased-access.ts';
import { beatSecondsOf, keepNode, type NodeSeen } from './node.ts';
import type { ObjectRef } from './objects.ts';
import { consumerKeyOf, createPodCarrier } from './pods.ts';
import type { RemoteLease } from './remote.ts';
import { mirrorEvents } from './remote-events.ts';
import { remoteNameOf } from './remote-name.ts';
import { createEndpoints } from './services/endpoints.ts';
import { createExposing } from './services/exposing.ts';
import type { NodeSpec, ServingCertificates } from './types.ts';
import { createVolumes } from './volumes.ts';

export type { RemoteLease } from './remote.ts';
export type { NodeSpec, ServingCertificate, ServingCertificates } from './types.ts';

export interface VirtualNodesOptions {
  /** The consumer's cluster. */
  readonly cluster: Cluster;
  /** Where its API server reaches this process. */
  readonly address: string;
  readonly listenHost?: string;
  /** Ports for kubelet APIs, one a node. Default: any free ones. */
  readonly ports?: { readonly from: number; readonly to: number };
  /** e.g. v1.36.3+gpulease.0.1.0 */
  readonly kubeletVersion: string;
  readonly certificates: ServingCertificates;
  readonly callers?: {
    /** PEM. Default: what the cluster publishes in kube-system/extension-apiserver-authentication. */
    readonly clientCaPem?: string;
    /** Names that need no SubjectAccessReview. */
    readonly allowedUsers?: readonly string[];
  };
  readonly events: EventRecorder;
  readonly log: Log;
  readonly clock?: Clock;
  readonly metrics?: EngineMetrics;
  /** Default: none, and each pod is made to tolerate that its node is away. */
  readonly evictionGuard?: EvictionGuard;
  readonly heartbeatSeconds?: number;
  readonly heartbeatLastsSeconds?: number;
  readonly podWorkers?: number;
  /** How long nothing is told of a pod that was sent, while its provider tells nothing either. 5. */
  readonly firstReportSeconds?: number;
  /** ConfigMaps and Secrets that cannot be watched are read so often at least. 30. */
  readonly objectPollSeconds?: number;
  /** Ports of this process that stand for ports of pods behind Services. */
  readonly servicePorts?: { readonly from: number; readonly to: number };
  /** Of the consumer's cluster: the end of its Services' names. cluster.local by default. */
  readonly clusterDomain?: string;
  /** A pod that no pod here stands for was ended at this provider. */
  readonly onStrayPod?: (provider: string) => void;
  /** Instead of opening a port for each node: for tests that need none. */
  readonly startServer?: StartKubeletServer;
}

export interface NodeState extends Partial<Omit<NodeSeen, 'node' | 'beats'>> {
  readonly registered: boolean;
  readonly port?: number;
  readonly ready: boolean;
  /** Why not. */
  readonly reason?: string;
  readonly message?: string;
}

export interface VirtualNode {
  readonly name: string;
  readonly state: NodeState;
  /** Health may have changed: look now, not at the next heartbeat. */
  refresh(): void;
}

export interface VirtualNodes {
  /** Informers and queues, until the signal fires. Then nothing is served here any more; Node objects stay. */
  run(signal: AbortSignal): Promise<void>;
  /** Serves a lease's node. Returns at once; registering goes on in the background. A second call renews what is known of it. */
  start(spec: NodeSpec, lease: RemoteLease): VirtualNode;
  get(name: string): VirtualNode | undefined;
  list(): readonly VirtualNode[];
  /** One step: cordons, evicts; after the deadline deletes. Call again until nothing is left. */
  drain(name: string, deadline: Date, why: LeaseEnd, signal?: AbortSignal): Promise<DrainProgress>;
  /** An event on each of its pods that has not ended. */
  tellPods(name: string, type: 'Normal' | 'Warning', reason: string, message: string): void;
  /** Claims whose data are stored with its lease, as `namespace/name`. */
  claims(name: string): readonly string[];
  /** An event on each of them. */
  tellClaims(name: string, type: 'Normal' | 'Warning', reason: string, message: string): void;
  /** Serves it no longer here. The Node object stays, for whoever serves it next. */
  stop(name: string): Promise<void>;
  /** Ports that stand for pods, and connections: to pods of the nodes, and from them to Services of the consumer's cluster. */
  traffic(): { readonly ports: number; readonly toPods: number; readonly toServices: number };
  /** Its lease has ended. True when the Node is gone; until then, call again. Needs no earlier start. */
  remove(name: string, signal?: AbortSignal): Promise<boolean>;
}

/** The queue of events is bounded, and other leases have pods, too. */
const mostTold = 500;
/** Events from before a start were told before it; those of the last seconds may not have been. */
const eventsBeforeStartSeconds = 10;

export function createVirtualNodes(options: VirtualNodesOptions): VirtualNodes {
  const { cluster, log, events } = options;
  const clock = options.clock ?? systemClock;
  const heartbeatSeconds = options.heartbeatSeconds ?? 10;
  const heartbeatLastsSeconds = options.heartbeatLastsSeconds ?? 40;
  const hosts = new Map<string, Host>();
  const states = new Map<string, NodeState>();
  /** When each sent its last heartbeat, by the monotonic clock: a node is looked at more often than it needs one. */
  const beatAtMs = new Map<string, number>();
  /** By consumer key: nodes at whose provider something claims to be that pod, once for each claim. */
  const holders = new Map<string, readonly Host[]>();
  const alike = alikeParts();

  const pods = createInformer<Pod & KubeObject>({
    cluster,
    resource: resources.pods,
    // Pods that are bound; which nodes are ours, no selector can say.
    fieldSelector: 'spec.nodeName!=',
    trim: (pod) => (isOnVirtualNode(pod) ? alike(pod) : onlyThatItExists(pod)),
    indexes: {
      node: (pod) => (pod.spec.nodeName ? [pod.spec.nodeName] : []),
      remote: (pod) => (isOnVirtualNode(pod) ? [remoteNameOf(pod)] : []),
      leased: (pod) => (isOnVirtualNode(pod) ? [pod.metadata.namespace ?? ''] : []),
      claim: (pod) =>
        isOnVirtualNode(pod) ? claimsOfPod(pod).map(({ name }) => `${pod.metadata.namespace}/${name}`) : [],
    },
    log,
    clock,
    metrics: options.metrics,
  });
  const nodes = createInformer<Node & KubeObject>({
    cluster,
    resource: resources.nodes,
    labelSelector: `${labels.managedBy}=${managedBy}`,
    log,
    clock,
    metrics: options.metrics,
  });

  const services = createInformer<Service & KubeObject>({
    cluster,
    resource: resources.services,
    trim: trimService,
    indexes: {
      namespace: ({ metadata }) => (metadata.namespace ? [metadata.namespace] : []),
      // Others select no pod: the one of the API server, which every cluster has, would cost each pod a look.
      selecting: ({ metadata, spec }) =>
        Object.keys(spec.selector ?? {}).length > 0 ? [metadata.namespace ?? ''] : [],
    },
    log,
    clock,
    metrics: options.metrics,
  });
  const endpoints = createEndpoints({ cluster, log, clock, metrics: options.metrics });
  const exposing = createExposing({
    consumer: cluster,
    pods,
    services,
    hostOf: (name) => hosts.get(name),
    address: options.address,
    listenHost: options.listenHost ?? (familyOf(options.address) === 'IPv6' ? '::' : '0.0.0.0'),
    ports: options.servicePorts ?? { from: 20_000, to: 29_999 },
    events,
    clock,
    log,
    metrics: options.metrics,
  });
  services.onChange(({ object, old }) => {
    const { namespace = '', name } = object.metadata;
    const concerned = (links: ServiceLinks) => concerns(links, object) || (old !== undefined && concerns(links, old));
    for (const host of hosts.values()) {
      host.objects.servicesChanged(concerned);
      if (host.reach.names({ namespace, name })) host.reach.changed();
    }
  });
  const followed = createFollowedObjects({ cluster, clock, log });

  function variablesOf(links: ServiceLinks): Readonly<Record<string, string>> {
    const master = services.get({ namespace: 'default', name: 'kubernetes' });
    const told = [...(master ? [master] : []), ...(links.all ? services.byIndex('namespace', links.namespace) : [])];
    const { variables, left } = serviceVariables(links, told);
    if (left > 0)
      log.warn({ namespace: links.namespace, left }, 'pods are not told of all Services: there are too many');
    return variables;
  }

  const volumes = createVolumes({
    cluster,
    hostOf: (name) => hosts.get(name),
    onClaim: (key) => {
      for (const pod of pods.byIndex('claim', keyText(key))) podQueue.enqueue(keyOf(pod));
    },
    events,
    clock,
    log,
    metrics: options.metrics,
  });
  const carrier = createPodCarrier({
    consumer: cluster,
    pods,
    hostOf: (name) => hosts.get(name),
    holdersOf: (key) => [...new Set(holders.get(keyText(key)))],
    spared: () => options.evictionGuard !== undefined && options.evictionGuard.holds !== false,
    claimOf: volumes.answer,
    clusterDomain: options.clusterDomain,
    events,
    firstReportSeconds: options.firstReportSeconds,
    onStray: (host) => options.onStrayPod?.(host.spec.providerName),
    clock,
    log,
  });
  const podQueue = createController({
    name: 'virtual-node-pods',
    reconcile: (key, signal) => carrier.reconcile(key, signal),
    watches: [
      watches(pods, (change) =>
        isOnVirtualNode(change.object) && !carrier.isOwnReport(change) ? [keyOf(change.object)] : [],
      ),
      // No pod starts before its Services are known; a change of them is no change of the pod.
      watches(services, () => []),
    ],
    concurrency: options.podWorkers ?? 32,
    // A pod that waits for its provider is looked at again before its user wonders.
    backoff: { baseSeconds: 0.25, maxSeconds: 30 },
    resyncSeconds: 600,
    clock,
    log,
    metrics: options.metrics,
  });
  const nodeQueue = createController({
    name: 'virtual-node',
    reconcile: reconcileNode,
    watches: [watches(nodes, ({ object }) => (hosts.has(object.metadata.name) ? [keyOf(object)] : []))],
    // A thousand nodes need fifty heartbeats a second, also of an API server that takes a second for each.
    concurrency: 64,
    backoff: { baseSeconds: 0.25, maxSeconds: heartbeatSeconds },
    stallAfterSeconds: 60,
    clock,
    log,
    metrics: options.metrics,
  });
  pods.onChange(({ type, object }) => {
    if (type !== 'deleted' || !object.spec.nodeName) return;
    const host = hosts.get(object.spec.nodeName);
    host?.objects.release(object.metadata.uid ?? '');
    host?.tokens.release(object.metadata.uid ?? '');
  });

  // Where there is none after all, pods that were left as they are must be changed.
  options.evictionGuard?.onChange(() => {
    for (const name of hosts.keys()) enqueueAll(name);
  });

  const clientCa = createClientCa({
    cluster,
    clock,
    log,
    configured: options.callers?.clientCaPem,
    onChange: () => {
      for (const host of hosts.values()) host.renewCa();
    },
  });
  const callers = createCallers({
    cluster,
    clock,
    allowedUsers: options.callers?.allowedUsers,
    verifiesCertificates: () => clientCa.pem !== undefined,
  });

  const access = createLeasedAccess({
    cluster,
    clock,
    log,
    exists: (name) => !nodes.synced || nodes.get({ name }) !== undefined,
  });
  const slices = createDeviceSlices({ cluster, clock, log });
  const draining = new Set<string>();
  const accessOf = (spec: NodeSpec) => ({
    lease: `${spec.lease.namespace}/${spec.lease.name}`,
    namespaces: spec.allowedNamespaces,
    untainted: spec.untainted === true,
    ending: draining.has(nodeNameOf(spec.lease)),
  });

  async function reconcileNode({ name }: ObjectKey, signal: AbortSignal): Promise<Result> {
    const host = hosts.get(name);
    if (!host) return {};
    const { port } = host;
    // Opening the port wakes us.
    if (port === undefined) return {};
    const health = host.health();
    await access.keep(name, accessOf(host.spec), signal);
    const nowMs = clock.monotonicMs();
    const beatAgeSeconds = (nowMs - (beatAtMs.get(name) ?? Number.NEGATIVE_INFINITY)) / 1000;
    const beatSeconds = beatSecondsOf(hosts.size, heartbeatSeconds);
    const beatIsYoung = beatAgeSeconds < beatSeconds * 0.95;
    const { node, beats, ...seen } = await keepNode(
      {
        cluster,
        clock,
        kubeletVersion: options.kubeletVersion,
        address: options.address,
        heartbeatLastsSeconds,
        beatsLater: beatIsYoung,
      },
      host.spec,
      port,
      health,
      nodes.get({ name }),
      signal,
    );
    if (host.spec.gpusAs === 'Devices') await slices.keep(node, host.spec, signal);
    if (hosts.get(name) !== host) return {};
    if (beats) beatAtMs.set(name, nowMs);
    // Whether pods count as ready depends on whether their node does.
    if (states.get(name)?.ready !== health.ready)
      for (const pod of pods.byIndex('node', name)) podQueue.enqueue(keyOf(pod));
    states.set(name, {
      ...seen,
      registered: true,
      port,
      ...(health.ready ? {} : { reason: health.reason, message: health.message }),
    });
    return { requeueAfterSeconds: !beats && beatIsYoung ? beatSeconds - beatAgeSeconds : beatSeconds };
  }

  /** One claim less. */
  function letGo(key: string, host: Host): void {
    const held = holders.get(key) ?? [];
    const at = held.indexOf(host);
    if (at >= 0 && held.length === 1) holders.delete(key);
    else if (at >= 0) holders.set(key, held.toSpliced(at, 1));
  }

  function onRemotePod(host: Host, change: Change<Pod>): void {
    const { type, object, old } = change;
    const wanted = pods.byIndex('remote', object.metadata.name);
    if (type === 'deleted' && wanted.length > 0) carrier.remember(object);
    const claimed = consumerKeyOf(object);
    const before = old && consumerKeyOf(old);
    const [from, to] = [before && keyText(before), claimed && type !== 'deleted' ? keyText(claimed) : undefined];
    if (from !== to) {
      if (from !== undefined) letGo(from, host);
      if (to !== undefined) holders.set(to, [...(holders.get(to) ?? []), host]);
    }
    const awaited = wanted.filter((pod) => carrier.awaits(pod, change)).map((pod) => keyText(keyOf(pod)));
    for (const key of [...(claimed ? [claimed] : []), ...wanted.map(keyOf)])
      if (!awaited.includes(keyText(key))) podQueue.enqueue(key);
  }

  function enqueueAll(name: string): void {
    nodeQueue.enqueue({ name });
    exposing.nodeChanged(name);
    for (const pod of pods.byIndex('node', name)) podQueue.enqueue(keyOf(pod));
  }

  function open(name: string, spec: NodeSpec, lease: RemoteLease): Host {
    const podsHere = () => pods.byIndex('node', name);
    const podOfRemote = (remoteName: string) =>
      pods.byIndex('remote', remoteName).find((pod) => pod.spec.nodeName === name);
    const tellEvent = mirrorEvents(
      {
        podOf: podOfRemote,
        events,
        clock,
      },
      new Date(clock.now().getTime() - eventsBeforeStartSeconds * 1000),
    );
    const host: Host = openHost({
      name,
      spec,
      lease,
      consumer: cluster,
      address: options.address,
      listenHost: options.listenHost ?? '0.0.0.0',
      ports: options.ports,
      certificates: options.certificates,
      callers,
      clientCa: () => clientCa.pem,
      clientCaReady: clientCa.ready(),
      lastPort: async () => {
        const node = nodes.get({ name }) ?? (await cluster.get<Node>(resources.nodes, { name }));
        return node?.status?.daemonEndpoints?.kubeletEndpoint.Port;
      },
      podOf: async (namespace, podName, signal) => {
        const key = { namespace, name: podName };
        const pod = pods.get(key) ?? (await cluster.get<Pod>(resources.pods, key, signal));
        return pod?.spec.nodeName === name ? pod : undefined;
      },
      podsHere,
      podOfRemote,
      kubeletVersion: options.kubeletVersion,
      heartbeatLastsSeconds,
      objectPollSeconds: options.objectPollSeconds ?? 30,
      services,
      endpoints,
      clusterDomain: options.clusterDomain ?? 'cluster.local',
      events,
      startServer: options.startServer,
      clock,
      log,
      metrics: options.metrics,
      onProgress: () => enqueueAll(name),
      onRemotePod: (change) => onRemotePod(host, change),
      onRemoteEvent: tellEvent,
      onMissing: (ref, podUids) => tellMissing(podsHere(), ref, podUids),
      onTokenFailure: (pod, message) =>
        events.event(
          pod,
          'Warning',
          'TokenNotCarried',
          `A service account token could not be renewed: ${message.slice(0, 900)}`,
        ),
      serviceVariables: variablesOf,
      followed,
      wantedObjects: () => carrier.wantedObjects(host),
    });
    return host;
  }

  /** In the words that virtual kubelets use for it. */
  function tellMissing(here: readonly Pod[], ref: ObjectRef, podUids: readonly string[]): void {
    for (const pod of here) {
      if (!podUids.includes(pod.metadata.uid ?? '')) continue;
      const need = ref.optional ? 'Optional' : 'Mandatory';
      events.event(
        pod,
        'Warning',
        `${need}${ref.kind}NotFound`,
        `${ref.kind} ${ref.namespace}/${ref.name} was not found${ref.optional ? '' : ': the pod waits for it'}`,
      );
    }
  }

  async function stop(name: string): Promise<void> {
    const host = hosts.get(name);
    hosts.delete(name);
    states.delete(name);
    beatAtMs.delete(name);
    exposing.nodeStopped(name);
    volumes.nodeChanged(name);
    for (const [key, held] of holders) {
      const others = held.filter((one) => one !== host);
      if (others.length === 0) holders.delete(key);
      else if (others.length < held.length) holders.set(key, others);
    }
    await host?.stop();
  }

  const handle = (name: string): VirtualNode => ({
    name,
    get state() {
      const port = hosts.get(name)?.port;
      return states.get(name) ?? { registered: false, ready: false, ...(port !== undefined && { port }) };
    },
    refresh: () => {
      nodeQueue.enqueue({ name });
      if (!hosts.get(name)?.linkChanged()) return;
      exposing.nodeChanged(name);
      volumes.nodeChanged(name);
    },
  });

  return {
    async run(signal) {
      try {
        await Promise.all([
          clientCa.run(signal),
          pods.run(signal),
          nodes.run(signal),
          services.run(signal),
          exposing.run(signal),
          volumes.run(signal),
          podQueue.run(signal),
          nodeQueue.run(signal),
        ]);
      } finally {
        await Promise.all([...hosts.keys()].map(stop));
      }
    },

    start(spec, lease) {
      const name = nodeNameOf(spec.lease);
      const known = hosts.get(name);
      if (known && known.spec.leaseId === spec.leaseId) {
        const changed = tellsPods(known.spec) !== tellsPods(spec);
        const reaches = !sameJson(known.spec.services, spec.services);
        known.spec = spec;
        if (reaches) known.reach.changed();
        if (changed) enqueueAll(name);
        else nodeQueue.enqueue({ name });
        return handle(name);
      }
      // Another attempt of the same lease, with another provider or escrow.
      if (known) void stop(name);
      hosts.set(name, open(name, spec, lease));
      enqueueAll(name);
      volumes.nodeChanged(name);
      return handle(name);
    },

    get: (name) => (hosts.has(name) ? handle(name) : undefined),
    list: () => [...hosts.keys()].map(handle),

    async drain(name, deadline, why, signal) {
      draining.add(name);
      const host = hosts.get(name);
      if (host) await access.keep(name, accessOf(host.spec), signal);
      const now = clock.now();
      return drainStep(cluster, name, { why, pastDeadline: now >= deadline, now }, signal);
    },

    tellPods(name, type, reason, message) {
      const here = pods.byIndex('node', name).filter((pod) => !isTerminal(pod) && !isOfDaemonSet(pod));
      for (const pod of here.slice(0, mostTold)) events.event(pod, type, reason, message);
    },

    claims: (name) =>
      volumes
        .claimsOn(name)
        .map(({ metadata }) => `${metadata.namespace}/${metadata.name}`)
        .sort(),

    tellClaims(name, type, reason, message) {
      for (const claim of volumes.claimsOn(name).slice(0, mostTold)) events.event(claim, type, reason, message);
    },

    stop,

    traffic: () => ({
      ports: exposing.ports,
      toPods: exposing.connections,
      toServices: endpoints.connections,
    }),

    async remove(name, signal) {
      await stop(name);
      const gone = await removeNode(cluster, name, clock.now(), signal);
      if (gone) {
        slices.forget(name);
        draining.delete(name);
        volumes.nodeChanged(name);
        await access.forget(name, signal);
      }
      return gone;
    },
  };
}

/** What of a node its pods depend on. */
const tellsPods = (spec: NodeSpec): string =>
  JSON.stringify([
    spec.allowedNamespaces,
    spec.podIP,
    spec.serviceAccountTokens,
    spec.served.gpus,
    spec.served.resources,
    spec.served.tenantProfile,
  ]);

const isOnVirtualNode = (pod: Pod): boolean => pod.spec.nodeName?.startsWith(virtualNodePrefix) === true;

/** Pods of other nodes are only passed by. */
function onlyThatItExists(pod: Pod & KubeObject): Pod & KubeObject {
  const { name, namespace, uid, resourceVersion } = pod.metadata;
  return { metadata: { name, namespace, uid, resourceVersion }, spec: { containers: [] } };
}

/** What of a Service says whom it stands for, and who may name it. */
function trimService(service: Service & KubeObject): Service & KubeObject {
  const { name, namespace, uid, resourceVersion, annotations: all } = service.metadata;
  const shared = all?.[annotations.leaseNamespaces];
  const { type, clusterIP, ipFamilies, selector, ports, publishNotReadyAddresses } = service.spec;
  return {
    metadata: {
      name,
      namespace,
      uid,
      resourceVersion,
      ...(shared === undefined ? {} : { annotations: { [annotations.leaseNamespaces]: shared } }),
    },
    spec: { type, clusterIP, ipFamilies, selector, ports, publishNotReadyAddresses },
  };
}
