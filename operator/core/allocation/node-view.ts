/**
 * What of a node may be sold: what the kubelet says it has, less what runs there beside tenants, less some headroom, and
 * nothing at all while the node is unready, cordoned or leaving.
 */
import { gpuResource, isCarriedNodeLabel, labels as ownLabels } from '../../api/labels.ts';
import { bytesOf, countOf, cpuMillisOf, larger, minus, noRoom, plus, type Room } from './room.ts';

/** The parts of a Node that are read. */
export interface NodeObject {
  metadata: {
    name: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    resourceVersion?: string;
    deletionTimestamp?: string;
  };
  spec?: { unschedulable?: boolean; taints?: { key: string; value?: string; effect: string; timeAdded?: string }[] };
  status?: {
    allocatable?: Record<string, string>;
    capacity?: Record<string, string>;
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    nodeInfo?: Record<string, unknown>;
  };
}

export interface NodeView {
  readonly name: string;
  readonly offered: boolean;
  readonly product: string;
  readonly memoryMiB: number;
  readonly allocatable: Room;
  /** Its control plane hears from it. */
  readonly ready: boolean;
  readonly notReadyBecause?: string;
  /** New leases may be put here. */
  readonly sellable: boolean;
  /** Only those labels that leave the provider's cluster. */
  readonly carriedLabels: Readonly<Record<string, string>>;
  readonly labels: Readonly<Record<string, string>>;
  readonly nodeInfo: Readonly<Record<string, string>>;
}

const nodeInfoFields = [
  'architecture',
  'operatingSystem',
  'osImage',
  'kernelVersion',
  'containerRuntimeVersion',
  'kubeletVersion',
];

const quantityOr = (read: (text: string) => number, text: string | undefined): number => {
  if (text === undefined) return 0;
  try {
    return Math.max(0, read(text));
  } catch {
    // A node that reports nonsense has nothing to sell.
    return 0;
  }
};

function roomOf(amounts: Record<string, string> | undefined): Room {
  return {
    gpus: quantityOr(countOf, amounts?.[gpuResource]),
    cpuMillis: quantityOr(cpuMillisOf, amounts?.cpu),
    memoryBytes: quantityOr(bytesOf, amounts?.memory),
    ephemeralBytes: quantityOr(bytesOf, amounts?.['ephemeral-storage']),
    pods: quantityOr(countOf, amounts?.pods),
  };
}

export function carriedLabelsOf(labels: Readonly<Record<string, string>>): Record<string, string> {
  const carried: Record<string, string> = {};
  for (const [key, value] of Object.entries(labels)) {
    if (isCarriedNodeLabel(key) && key.length <= 317 && value.length <= 63) carried[key] = value;
  }
  return carried;
}

export function isOffered(labels: Readonly<Record<string, string>> | undefined): boolean {
  const value = labels?.[ownLabels.offered];
  return value !== undefined && value !== 'false';
}

export function viewNode(node: NodeObject): NodeView {
  const labels = node.metadata.labels ?? {};
  const readyCondition = node.status?.conditions?.find((condition) => condition.type === 'Ready');
  const ready = readyCondition?.status === 'True';
  const leaving = node.metadata.deletionTimestamp !== undefined;
  const info: Record<string, string> = {};
  for (const field of nodeInfoFields) {
    const value = node.status?.nodeInfo?.[field];
    if (typeof value === 'string') info[field] = value.slice(0, 256);
  }
  return {
    name: node.metadata.name,
    offered: isOffered(labels),
    product: labels['nvidia.com/gpu.product'] ?? '',
    memoryMiB: /^\d{1,9}$/.test(labels['nvidia.com/gpu.memory'] ?? '') ? Number(labels['nvidia.com/gpu.memory']) : 0,
    allocatable: roomOf(node.status?.allocatable),
    ready,
    ...(ready
      ? {}
      : { notReadyBecause: (readyCondition?.message || readyCondition?.reason || 'no Ready condition').slice(0, 512) }),
    sellable: ready && !leaving && node.spec?.unschedulable !== true,
    carriedLabels: carriedLabelsOf(labels),
    labels,
    nodeInfo: info,
  };
}

interface Requests {
  requests?: Record<string, string>;
  limits?: Record<string, string>;
}

/** The parts of a Pod that count on a node. */
export interface PodObject {
  metadata: { name: string; namespace?: string };
  spec?: {
    nodeName?: string;
    containers?: { resources?: Requests }[];
    initContainers?: { resources?: Requests; restartPolicy?: string }[];
    overhead?: Record<string, string>;
    resources?: Requests;
  };
  status?: { phase?: string; podIPs?: { ip?: string }[] };
}

const requestsOf = (resources: Requests | undefined): Room => roomOf({ ...resources?.limits, ...resources?.requests });

/**
 * What the scheduler counts for a pod: the sum of its containers and sidecars, or the largest init container together
 * with the sidecars started before it, and the overhead.
 * https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers
 */
export function podRoom(pod: PodObject): Room {
  let sidecars = noRoom;
  let starting = noRoom;
  for (const container of pod.spec?.initContainers ?? []) {
    const wants = requestsOf(container.resources);
    if (container.restartPolicy === 'Always') {
      sidecars = plus(sidecars, wants);
      starting = larger(starting, sidecars);
    } else {
      starting = larger(starting, plus(sidecars, wants));
    }
  }
  const running = (pod.spec?.containers ?? [])
    .map((container) => requestsOf(container.resources))
    .reduce(plus, sidecars);
  const containers = larger(running, starting);
  const whole = pod.spec?.resources ? larger(containers, requestsOf(pod.spec.resources)) : containers;
  return { ...plus(whole, roomOf(pod.spec?.overhead)), pods: 1 };
}

/** A pod that has ended holds nothing of its node. */
export const holdsRoom = (pod: PodObject): boolean =>
  pod.spec?.nodeName !== undefined &&
  pod.spec.nodeName !== '' &&
  pod.status?.phase !== 'Succeeded' &&
  pod.status?.phase !== 'Failed';

const mebibyte = 1024 * 1024;

/**
 * Kept back on each node, so that a DaemonSet that arrives later, or grows, does not find a node that was sold to the last
 * byte. Five in a hundred, but a tenth of a core, 256 MiB, 1 GiB of disk and two pods at least, and half of it all at most.
 */
export function headroomOf(allocatable: Room): Room {
  const keep = (amount: number, least: number) =>
    Math.min(Math.max(Math.ceil(amount / 20), least), Math.floor(amount / 2));
  return {
    gpus: 0,
    cpuMillis: keep(allocatable.cpuMillis, 100),
    memoryBytes: keep(allocatable.memoryBytes, 256 * mebibyte),
    ephemeralBytes: keep(allocatable.ephemeralBytes, 1024 * mebibyte),
    pods: keep(allocatable.pods, 2),
  };
}

/** All that may be sold of a node, sold or not. `others`: what runs or is bound there that is no tenant's. */
export function sellableRoom(node: NodeView, others: Room): Room {
  if (!node.sellable || !node.offered) return noRoom;
  return minus(minus(node.allocatable, others), headroomOf(node.allocatable));
}

/** One GPU's share of the node, rounded down to 10 m of CPU and to whole MiB so that figures stay readable and still. */
export function sharePerGpu(sellable: Room): Room {
  if (sellable.gpus === 0) return noRoom;
  const part = (amount: number, step: number) => Math.floor(amount / sellable.gpus / step) * step;
  return {
    gpus: 1,
    cpuMillis: part(sellable.cpuMillis, 10),
    memoryBytes: part(sellable.memoryBytes, mebibyte),
    ephemeralBytes: part(sellable.ephemeralBytes, mebibyte),
    pods: part(sellable.pods, 1),
  };
}
