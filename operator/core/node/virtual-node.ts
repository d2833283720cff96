/**
 * The Node object that stands for one lease: exactly the leased capacity, those labels of the real node that are safe to
 * show, our taints, and what is known of its health.
 *
 * Only an InternalIP is published. The API server prefers a Hostname address where there is one, and nobody resolves ours.
 */
import type { AllocationInfo } from '../../api/gateway.ts';
import {
  accessLabelPrefix,
  finalizers,
  gpuResource,
  isCarriedNodeLabel,
  labels,
  managedBy,
  restricted,
  taints,
} from '../../api/labels.ts';
import { virtualNodeName } from './names.ts';
import type { ObjectMeta } from './pod.ts';
import { timestamp } from './translate-status.ts';

export interface Taint {
  key: string;
  value?: string;
  effect: string;
  timeAdded?: string;
}

export interface NodeCondition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
  lastHeartbeatTime?: string | null;
  lastTransitionTime?: string | null;
}

export interface Node {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  spec: { providerID?: string; taints?: Taint[]; unschedulable?: boolean; [field: string]: unknown };
  status?: {
    capacity?: Record<string, string>;
    allocatable?: Record<string, string>;
    conditions?: NodeCondition[];
    addresses?: { type: string; address: string }[];
    daemonEndpoints?: { kubeletEndpoint: { Port: number } };
    declaredFeatures?: string[];
    nodeInfo?: Record<string, string>;
    [field: string]: unknown;
  };
}

/** One lease, as far as its node is concerned. */
export interface LeaseNode {
  readonly lease: { readonly name: string; readonly namespace: string; readonly uid: string };
  /** Id of the escrow. */
  readonly leaseId: string;
  readonly providerName: string;
  readonly offerName: string;
  readonly capacityType: string;
  /** Label of the lease: the pool that it belongs to. */
  readonly pool?: string;
  /** `spec.node.labels`, `.taints`, `.untainted` of the lease. */
  readonly labels?: Readonly<Record<string, string>>;
  readonly taints?: readonly { readonly key: string; readonly value?: string; readonly effect: string }[];
  readonly untainted?: boolean;
  /** Whose pods may run there, or "*" for everybody's. */
  readonly allowedNamespaces?: readonly string[];
  /** How pods ask for its GPUs: by count (`nvidia.com/gpu`), as by default, or as devices of a ResourceSlice. */
  readonly gpusAs?: 'Resource' | 'Devices';
}

/** What the provider set aside, and says of the real node. */
export type ServedNode = Pick<
  AllocationInfo,
  'gpus' | 'resources' | 'pods' | 'nodeLabels' | 'nodeInfo' | 'tenantProfile' | 'storage'
>;

export interface NodePlace {
  /** Where the API server reaches this node's kubelet API. */
  readonly address: string;
  readonly port: number;
  /** Ours, e.g. v1.36.3+gpulease.0.1.0: the part before the plus is what other programs compare. */
  readonly kubeletVersion: string;
}

export interface NodeHealth {
  readonly ready: boolean;
  /** CamelCase, when not ready: ProviderUnreachable, Unpaid, NodeNotReady, … */
  readonly reason?: string;
  readonly message?: string;
  /** Nothing is known yet: what the Node says stays, be it Ready or not. */
  readonly undecided?: boolean;
  /** Whether what was served before it stopped being Ready, then, is counted: a node that returns before that forgets it. */
  readonly counted?: (notReadySince: Date) => boolean;
}

export function nodeNameOf(lease: LeaseNode['lease']): string {
  return virtualNodeName(lease.name, lease.uid);
}

export function nodeCapacity(served: ServedNode): Record<string, string> {
  return {
    [gpuResource]: String(served.gpus),
    cpu: served.resources.cpu,
    memory: served.resources.memory,
    'ephemeral-storage': served.resources.ephemeralStorage,
    pods: String(served.pods),
  };
}

/** Labels of the real node that may be shown; those that Kubernetes would refuse are left out. */
export function carriedLabels(reported: Readonly<Record<string, string>>): Record<string, string> {
  const carried: Record<string, string> = {};
  for (const [key, value] of Object.entries(reported).slice(0, 512)) {
    if (isCarriedNodeLabel(key) && isLabelName(key.slice(key.indexOf('/') + 1)) && isLabelValue(value))
      carried[key] = value;
  }
  return carried;
}

const isLabelName = (name: string): boolean => /^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$/.test(name);
const isLabelValue = (value: string): boolean => value === '' || isLabelName(value);
/** Names of leases may be longer than a label's value. */
const labelValue = (value: string): string => value.slice(0, 63).replace(/[^A-Za-z0-9]+$/, '');

export function desiredLabels(node: LeaseNode, served: ServedNode): Record<string, string> {
  const { architecture } = served.nodeInfo;
  return {
    // A kubelet says it of itself; the provider's own label is as good.
    ...(architecture && isLabelName(architecture) ? { 'kubernetes.io/arch': architecture } : {}),
    ...carriedLabels(served.nodeLabels),
    // The real node may have more: this one has what was leased.
    ...(served.nodeLabels['nvidia.com/gpu.count'] === undefined ? {} : { 'nvidia.com/gpu.count': String(served.gpus) }),
    ...node.labels,
    'kubernetes.io/hostname': nodeNameOf(node.lease),
    'kubernetes.io/os': 'linux',
    'node.kubernetes.io/exclude-from-external-load-balancers': 'true',
    [labels.lease]: labelValue(node.lease.name),
    [labels.leaseNamespace]: node.lease.namespace,
    [labels.leaseUid]: node.lease.uid,
    [labels.provider]: labelValue(node.providerName),
    [labels.offer]: labelValue(node.offerName),
    [labels.capacityType]: node.capacityType,
    ...accessLabels(node.allowedNamespaces ?? []),
    ...(node.pool && isLabelName(node.pool) ? { [labels.pool]: node.pool } : {}),
    [labels.managedBy]: managedBy,
  };
}

function accessLabels(namespaces: readonly string[]): Record<string, string> {
  if (namespaces.includes('*')) return {};
  const each = namespaces.filter(isLabelName).map((namespace) => [`${accessLabelPrefix}${namespace}`, '']);
  return { [labels.access]: restricted, ...Object.fromEntries(each) };
}

/** Labels of ours that are not there when they do not hold, and so must be taken away. */
const comesAndGoes = (key: string): boolean => key === labels.access || key.startsWith(accessLabelPrefix);

export function desiredTaints(node: LeaseNode): Taint[] {
  const own: Taint[] = node.untainted
    ? []
    : [
        { key: taints.lease, value: labelValue(node.lease.name), effect: 'NoSchedule' },
        { key: taints.virtualNode, value: managedBy, effect: 'NoSchedule' },
      ];
  return [...own, ...(node.taints ?? []).map((taint) => ({ ...taint }))];
}

export const providerId = (node: LeaseNode): string => `gpulease://${node.providerName}/${node.leaseId}`;

/** A Node to create. Its status is written apart. */
export function buildNode(node: LeaseNode, served: ServedNode): Node {
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name: nodeNameOf(node.lease),
      labels: desiredLabels(node, served),
      annotations: { 'node.alpha.kubernetes.io/ttl': '0' },
      finalizers: [finalizers.node],
    },
    spec: { providerID: providerId(node), taints: desiredTaints(node) },
  };
}

/**
 * A stored Node, brought up to date; undefined when nothing is amiss. What others put there stays: their labels, their
 * taints (not-ready, a cordon), their finalizers.
 */
export function adoptNode(stored: Node, node: LeaseNode, served: ServedNode): Node | undefined {
  const wanted = buildNode(node, served);
  const isOurs = (taint: Taint) => taint.key === taints.lease || taint.key === taints.virtualNode;
  const same = (a: Taint, b: Taint) => a.key === b.key && a.effect === b.effect;
  const wantedTaints = wanted.spec.taints ?? [];
  const storedTaints = stored.spec.taints ?? [];
  const kept = storedTaints.filter((t) => !isOurs(t) && !wantedTaints.some((w) => same(w, t)));
  const outdated = Object.keys(stored.metadata.labels ?? {}).filter(
    (key) => comesAndGoes(key) && wanted.metadata.labels?.[key] === undefined,
  );
  const keptLabels = Object.entries(stored.metadata.labels ?? {}).filter(([key]) => !outdated.includes(key));
  const adopted: Node = {
    ...stored,
    metadata: {
      ...stored.metadata,
      labels: { ...Object.fromEntries(keptLabels), ...wanted.metadata.labels },
      finalizers: [...new Set([...(stored.metadata.finalizers ?? []), finalizers.node])],
    },
    spec: {
      ...stored.spec,
      // Immutable once set.
      providerID: stored.spec.providerID ?? wanted.spec.providerID,
      taints: [...wantedTaints, ...kept],
    },
  };
  const labelsSame =
    outdated.length === 0 &&
    Object.entries(wanted.metadata.labels ?? {}).every(([key, value]) => stored.metadata.labels?.[key] === value);
  const taintsSame =
    storedTaints.length === adopted.spec.taints!.length &&
    wantedTaints.every((w) => storedTaints.some((t) => same(t, w) && (t.value ?? '') === (w.value ?? '')));
  const finalizersSame = stored.metadata.finalizers?.includes(finalizers.node) === true;
  const unchanged = labelsSame && taintsSame && finalizersSame && stored.spec.providerID !== undefined;
  return unchanged ? undefined : adopted;
}

/**
 * Ours alone: Ready as we said it last. Kubernetes turns the other conditions to Unknown when heartbeats stay out, and with
 * them the time from which Ready is not true; this one keeps it.
 */
export const servedCondition = 'LeaseServed';

/** Since when Ready is what it is; for one that is not true, since when it is not. */
export function readySince(conditions: readonly NodeCondition[] | undefined): string | undefined {
  const ready = conditions?.find((one) => one.type === 'Ready');
  const served = conditions?.find((one) => one.type === servedCondition);
  if (!ready?.lastTransitionTime || ready.status === 'True' || served?.status !== 'False') {
    return ready?.lastTransitionTime ?? undefined;
  }
  const earlier = Date.parse(served.lastTransitionTime ?? '') < Date.parse(ready.lastTransitionTime);
  return (earlier ? served : ready).lastTransitionTime ?? undefined;
}

/** The conditions that are ours. Others' survive, since the patch merges by type. */
export function nodeConditions(
  stored: readonly NodeCondition[] | undefined,
  health: NodeHealth,
  now: Date,
): NodeCondition[] {
  const quiet = (type: string, reason: string, message: string) => ({ type, status: 'False', reason, message });
  const wanted: NodeCondition[] = [
    health.ready
      ? { type: 'Ready', status: 'True', reason: 'LeaseServed', message: 'the provider answers and the lease is paid' }
      : {
          type: 'Ready',
          status: 'False',
          reason: health.reason ?? 'NotReady',
          message: (health.message ?? '').slice(0, 1024),
        },
    quiet('MemoryPressure', 'ProviderManaged', 'the provider watches its memory'),
    quiet('DiskPressure', 'ProviderManaged', 'the provider watches its disks'),
    quiet('PIDPressure', 'ProviderManaged', 'the provider watches its processes'),
    quiet('NetworkUnavailable', 'ProviderManaged', 'pods have the network of the provider'),
  ];
  wanted.push({ ...wanted[0]!, type: servedCondition });
  return wanted.map((wish) => {
    const before = stored?.find((c) => c.type === wish.type);
    // Without heartbeats Kubernetes says Unknown after a while. To answer with False would begin a quarrel in which the
    // transition time, from which seconds are billed and nodes given up, moves for ever.
    const silenced = !health.ready && before?.status === 'Unknown';
    const condition = !silenced ? wish : wish.type === 'Ready' ? { ...wish, status: 'Unknown' } : { ...before };
    const same = before?.status === condition.status;
    return {
      ...condition,
      lastHeartbeatTime: timestamp(now),
      lastTransitionTime: same && before.lastTransitionTime ? before.lastTransitionTime : timestamp(now),
    };
  });
}

/** Whether the conditions say something else, heartbeats aside: an unchanged world writes nothing. */
export function conditionsChanged(
  stored: readonly NodeCondition[] | undefined,
  wanted: readonly NodeCondition[],
): boolean {
  return wanted.some((w) => {
    const s = stored?.find((c) => c.type === w.type);
    return s?.status !== w.status || s.reason !== w.reason || s.message !== w.message;
  });
}

/**
 * Features that an API server of 1.36 or later asks a node for; sorted, as it demands.
 *
 * ExtendWebSocketsToKubelet: WebSocket callers are passed on to the node as they are. We repeat them at the provider, so its API
 * server has to know what they speak: v5.channel.k8s.io since 1.30, tunnelled port-forwards since 1.31. It is never older than
 * its kubelets, whose version is what we are told. https://github.com/kubernetes/kubernetes/pull/136256
 */
export function declaredFeatures(served: Pick<ServedNode, 'nodeInfo'>): string[] {
  const [, major = '0', minor = '0'] = /^v(\d{1,3})\.(\d{1,4})\./.exec(served.nodeInfo.kubeletVersion ?? '') ?? [];
  const knowsWebSockets = Number(major) > 1 || (Number(major) === 1 && Number(minor) >= 31);
  return knowsWebSockets ? ['ExtendWebSocketsToKubelet'] : [];
}

/** All of the status but its conditions. A node that shows devices has no GPUs to count, or each could be given twice. */
export function nodeStatus(
  served: ServedNode,
  place: NodePlace,
  gpusAs: LeaseNode['gpusAs'] = 'Resource',
): NonNullable<Node['status']> {
  const { [gpuResource]: gpus, ...rest } = nodeCapacity(served);
  const capacity = gpusAs === 'Devices' ? rest : { [gpuResource]: gpus!, ...rest };
  const info = served.nodeInfo;
  const said = (field: string): string => (info[field] ?? '').slice(0, 256);
  return {
    capacity,
    allocatable: capacity,
    addresses: [{ type: 'InternalIP', address: place.address }],
    daemonEndpoints: { kubeletEndpoint: { Port: place.port } },
    declaredFeatures: declaredFeatures(served),
    nodeInfo: {
      architecture: said('architecture'),
      bootID: said('bootID'),
      containerRuntimeVersion: said('containerRuntimeVersion'),
      kernelVersion: said('kernelVersion'),
      kubeProxyVersion: '',
      kubeletVersion: place.kubeletVersion,
      machineID: said('machineID'),
      operatingSystem: 'linux',
      osImage: said('osImage'),
      systemUUID: said('systemUUID'),
    },
  };
}

/** Whether a stored status lacks something of the wanted one. */
export function statusChanged(stored: Node['status'], wanted: NonNullable<Node['status']>): boolean {
  return Object.entries(wanted).some(([field, value]) => {
    // API servers before 1.36 do not keep it: it goes along with whatever else is written, and is no reason to write again.
    if (field === 'declaredFeatures' && stored?.addresses && !stored.declaredFeatures) return false;
    return !includes(stored?.[field], value);
  });
}

function includes(stored: unknown, wanted: unknown): boolean {
  if (Array.isArray(wanted))
    return Array.isArray(stored) && stored.length === wanted.length && wanted.every((w, i) => includes(stored[i], w));
  if (typeof wanted === 'object' && wanted !== null)
    return (
      typeof stored === 'object' &&
      stored !== null &&
      Object.entries(wanted).every(([key, value]) => includes((stored as Record<string, unknown>)[key], value))
    );
  return stored === wanted;
}
