/**
 * What of a node may be sold: what the kubelet says it has, less what runs there beside tenants, less some headroom, and
 * nothing at all while the node is unready, cordoned or leaving.
 */
import { gpuResource, isCarriedNodeLabel, labels as ownLabels, taints } from '../../api/labels.ts';
import { partitionPattern, readProduct, wholeGpu } from '../../api/models.ts';
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
    addresses?: { type: string; address: string }[];
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    nodeInfo?: Record<string, unknown>;
  };
}

/** One kind of device of a node that may be rented out: its whole GPUs, or one kind of part of them. */
export interface NodeDevice {
  /** Name under which the device plugin counts it and pods ask for it. */
  readonly resource: string;
  /** What one of it is; see `partitionPattern`. */
  readonly partition: string;
  /** As consumers are told: the product, with what part of it this is. */
  readonly product: string;
  /** Of one. Of a turn on a GPU its even share: that much is left when the others take as much. */
  readonly memoryMiB: number;
  /** Healthy ones, whoever has them. */
  readonly count: number;
  /** Those that the device plugin has given up: they count in the node's capacity, and are not allocatable. */
  readonly unhealthy: number;
  /** Labels that leave the provider's cluster, as a node would have them that has these devices and no other. */
  readonly labels: Readonly<Record<string, string>>;
}

export interface NodeView {
  readonly name: string;
  readonly offered: boolean;
  readonly devices: readonly NodeDevice[];
  readonly allocatable: Room;
  /** Devices of NVIDIA that the kubelet has, by their resource. */
  readonly counts: Readonly<Record<string, number>>;
  /** Its control plane hears from it. */
  readonly ready: boolean;
  readonly notReadyBecause?: string;
  /** New leases may be put here. */
  readonly sellable: boolean;
  /** Why they may not, for the provider. */
  readonly withdrawnBecause?: string;
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

/** `resource`: which devices are counted as GPUs. */
function roomOf(amounts: Record<string, string> | undefined, resource: string = gpuResource): Room {
  return {
    gpus: quantityOr(countOf, amounts?.[resource]),
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

const numberOf = (label: string | undefined): number => (/^\d{1,9}$/.test(label ?? '') ? Number(label) : 0);

const migPrefix = 'nvidia.com/mig-';
/** Of MIG devices that have a resource of their own (strategy mixed): `nvidia.com/mig-1g.10gb`. */
const profileOf = (resource: string): string | undefined =>
  resource.startsWith(migPrefix) ? resource.slice(migPrefix.length) : undefined;

const sharedResource = `${gpuResource}.shared`;

/**
 * What a node has to rent out, by the labels of GPU feature discovery, each kind of device as what it is. What the labels
 * do not say for sure is left out: GPUs whose MIG layout is invalid, MIG devices that are shared once more.
 * https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md
 */
function devicesOf(
  labels: Readonly<Record<string, string>>,
  counts: Readonly<Record<string, number>>,
  capacity: Readonly<Record<string, string>> | undefined,
): readonly NodeDevice[] {
  const unhealthyOf = (resource: string, count: number) =>
    Math.max(0, quantityOr(countOf, capacity?.[resource]) - count);
  const carried = carriedLabelsOf(labels);
  const devices: NodeDevice[] = [];
  for (const [resource, count] of Object.entries(counts)) {
    const profile = profileOf(resource);
    if (profile !== undefined) {
      const own = `${resource}.`;
      const label = (key: string) => labels[`${own}${key}`];
      const { mig, shared } = readProduct(label('product') ?? '');
      const partition = `MIG-${profile}`;
      if (mig !== profile || shared || numberOf(label('replicas')) > 1 || !partitionPattern.test(partition)) continue;
      // As a node of the strategy single would have them, where such devices are all that there is.
      const whole = Object.keys(carried).filter((key) => key.startsWith(`${gpuResource}.`) && !isOfArchitecture(key));
      const rest = Object.fromEntries(Object.entries(carried).filter(([key]) => !whole.includes(key)));
      const renamed = Object.entries(labels)
        .filter(([key]) => key.startsWith(own))
        .map(([key, value]) => [`${gpuResource}.${key.slice(own.length)}`, value] as const);
      devices.push({
        resource,
        partition,
        product: label('product')!,
        memoryMiB: numberOf(label('memory')),
        count,
        unhealthy: unhealthyOf(resource, count),
        labels: { ...rest, ...carriedLabelsOf(Object.fromEntries(renamed)), 'nvidia.com/mig.strategy': 'single' },
      });
      continue;
    }
    if (resource !== gpuResource && resource !== sharedResource) continue;
    const label = labels[`${gpuResource}.product`];
    if (label === undefined) continue;
    const read = readProduct(label);
    const strategy = labels[`${gpuResource}.sharing-strategy`];
    const replicas = numberOf(labels[`${gpuResource}.replicas`]);
    // Any one sign is enough: older versions of feature discovery do not set all of them.
    const shared =
      resource === sharedResource || read.shared || replicas > 1 || strategy === 'time-slicing' || strategy === 'mps';
    if (read.mig !== undefined && (shared || !partitionPattern.test(`MIG-${read.mig}`))) continue;
    const partition = shared
      ? strategy === 'mps'
        ? 'MPS'
        : 'TimeSliced'
      : read.mig === undefined
        ? wholeGpu
        : `MIG-${read.mig}`;
    const product = shared ? `${read.product}-SHARED` : label;
    const memory = numberOf(labels[`${gpuResource}.memory`]);
    devices.push({
      resource,
      partition,
      product,
      memoryMiB: shared ? Math.floor(memory / Math.max(1, replicas)) : memory,
      count,
      unhealthy: unhealthyOf(resource, count),
      labels: { ...carried, [`${gpuResource}.product`]: product },
    });
  }
  return devices;
}

/** True of a GPU and of its parts alike. */
const isOfArchitecture = (key: string): boolean =>
  key.startsWith(`${gpuResource}.compute.`) || key === `${gpuResource}.family`;

/** Conditions with which the kubelet says that it will not do well by another pod. */
const troubles = ['MemoryPressure', 'DiskPressure', 'PIDPressure', 'NetworkUnavailable'];

/**
 * Taints that pods of tenants tolerate: ours, the usual one of nodes with GPUs, and that of silence, as reconnecting is not
 * restarting. A node with any other cannot run them, so it is not sold.
 */
export const toleratedTaints: readonly { readonly key: string; readonly effect: string }[] = [
  { key: taints.offered, effect: 'NoSchedule' },
  { key: gpuResource, effect: 'NoSchedule' },
  { key: 'node.kubernetes.io/not-ready', effect: 'NoExecute' },
  { key: 'node.kubernetes.io/unreachable', effect: 'NoExecute' },
];

function withdrawnBecause(node: NodeObject, notReady: string | undefined): string | undefined {
  if (notReady !== undefined) return `not ready: ${notReady}`;
  if (node.metadata.deletionTimestamp !== undefined) return 'being deleted';
  if (node.spec?.unschedulable === true) return 'cordoned';
  const trouble = node.status?.conditions?.find(({ type, status }) => troubles.includes(type) && status === 'True');
  if (trouble) return trouble.type;
  const taint = node.spec?.taints?.find(
    ({ key, effect }) =>
      (effect === 'NoSchedule' || effect === 'NoExecute') &&
      !toleratedTaints.some((one) => one.key === key && one.effect === effect),
  );
  return taint && `taint ${taint.key}:${taint.effect}, which pods of tenants do not tolerate`.slice(0, 400);
}

export function viewNode(node: NodeObject): NodeView {
  const labels = node.metadata.labels ?? {};
  const readyCondition = node.status?.conditions?.find((condition) => condition.type === 'Ready');
  const ready = readyCondition?.status === 'True';
  const notReady = ready
    ? undefined
    : (readyCondition?.message || readyCondition?.reason || 'no Ready condition').slice(0, 512);
  const withdrawn = withdrawnBecause(node, notReady);
  const info: Record<string, string> = {};
  for (const field of nodeInfoFields) {
    const value = node.status?.nodeInfo?.[field];
    if (typeof value === 'string') info[field] = value.slice(0, 256);
  }
  const counts = Object.fromEntries(
    Object.entries(node.status?.allocatable ?? {})
      .filter(([resource]) => resource.startsWith('nvidia.com/'))
      .slice(0, 64)
      .map(([resource, amount]) => [resource, quantityOr(countOf, amount)]),
  );
  return {
    name: node.metadata.name,
    offered: isOffered(labels),
    devices: devicesOf(labels, counts, node.status?.capacity),
    allocatable: roomOf(node.status?.allocatable),
    counts,
    ready,
    ...(notReady === undefined ? {} : { notReadyBecause: notReady }),
    sellable: withdrawn === undefined,
    ...(withdrawn === undefined ? {} : { withdrawnBecause: withdrawn }),
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

const requestsOf = (resources: Requests | undefined, device: string): Room =>
  roomOf({ ...resources?.limits, ...resources?.requests }, device);

/**
 * What the scheduler counts for a pod: the sum of its containers and sidecars, or the largest init container together
 * with the sidecars started before it, and the overhead.
 * https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers
 */
export function podRoom(pod: PodObject, device: string = gpuResource): Room {
  let sidecars = noRoom;
  let starting = noRoom;
  for (const container of pod.spec?.initContainers ?? []) {
    const wants = requestsOf(container.resources, device);
    if (container.restartPolicy === 'Always') {
      sidecars = plus(sidecars, wants);
      starting = larger(starting, sidecars);
    } else {
      starting = larger(starting, plus(sidecars, wants));
    }
  }
  const running = (pod.spec?.containers ?? [])
    .map((container) => requestsOf(container.resources, device))
    .reduce(plus, sidecars);
  const containers = larger(running, starting);
  const whole = pod.spec?.resources ? larger(containers, requestsOf(pod.spec.resources, device)) : containers;
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

/**
 * All that may be sold of a node with one kind of device as its GPUs, sold or not. `others`: what runs or is bound there
 * that is no tenant's.
 */
export function sellableRoom(node: NodeView, others: Room, device: string = gpuResource): Room {
  if (!node.sellable || !node.offered) return noRoom;
  const all = { ...node.allocatable, gpus: node.counts[device] ?? 0 };
  return minus(minus(all, others), headroomOf(all));
}

/**
 * One GPU's share of the node, rounded down to 10 m of CPU and to whole MiB so that figures stay readable and still.
 * `devices`: all that share the node, where it has several kinds of them.
 */
export function sharePerGpu(sellable: Room, devices: number = sellable.gpus): Room {
  if (sellable.gpus === 0) return noRoom;
  const part = (amount: number, step: number) => Math.floor(amount / devices / step) * step;
  return {
    gpus: 1,
    cpuMillis: part(sellable.cpuMillis, 10),
    memoryBytes: part(sellable.memoryBytes, mebibyte),
    ephemeralBytes: part(sellable.ephemeralBytes, mebibyte),
    pods: part(sellable.pods, 1),
  };
}
