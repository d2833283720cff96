/**
 * Statistics of one pod, as a kubelet tells them under /stats/summary. Only what is listed here is read, each field as what it
 * should be: a field that is not so is left out, a pod that cannot be told is none, and neither harms the rest of the page.
 *
 * https://pkg.go.dev/k8s.io/kubelet/pkg/apis/stats/v1alpha1
 */

export interface PodRef {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
}

export interface CpuStats {
  readonly time?: string;
  readonly usageNanoCores?: number;
  readonly usageCoreNanoSeconds?: number;
}

export interface MemoryStats {
  readonly time?: string;
  readonly availableBytes?: number;
  readonly usageBytes?: number;
  readonly workingSetBytes?: number;
  readonly rssBytes?: number;
  readonly pageFaults?: number;
  readonly majorPageFaults?: number;
}

export interface FsStats {
  readonly time?: string;
  readonly availableBytes?: number;
  readonly capacityBytes?: number;
  readonly usedBytes?: number;
  readonly inodesFree?: number;
  readonly inodes?: number;
  readonly inodesUsed?: number;
}

export interface ContainerStats {
  readonly name: string;
  readonly startTime?: string;
  readonly cpu?: CpuStats;
  readonly memory?: MemoryStats;
  readonly [part: string]: unknown;
}

export interface PodStats {
  readonly podRef: PodRef;
  readonly startTime?: string;
  readonly containers: readonly ContainerStats[];
  readonly cpu?: CpuStats;
  readonly memory?: MemoryStats;
  readonly 'ephemeral-storage'?: FsStats;
  readonly [part: string]: unknown;
}

/** Undefined: not what it should be. */
type Read = (given: unknown) => unknown;
type Shape = { readonly [field: string]: Read };

/** Go reads these into 64 bits without a sign, and refuses a page in which one does not fit. */
const count: Read = (given) =>
  typeof given === 'number' && Number.isInteger(given) && given >= 0 && given <= 2 ** 63 ? given : undefined;

const share: Read = (given) => (typeof given === 'number' && Number.isFinite(given) && given >= 0 ? given : undefined);

const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/;
const time: Read = (given) =>
  typeof given === 'string' && rfc3339.test(given) && !Number.isNaN(Date.parse(given)) ? given : undefined;

const word: Read = (given) =>
  typeof given === 'string' && given !== '' && given.length <= 253 && /^[\x21-\x7e]+$/.test(given) ? given : undefined;

const object =
  (shape: Shape, ...required: string[]): Read =>
  (given) => {
    if (typeof given !== 'object' || given === null || Array.isArray(given)) return undefined;
    const read: Record<string, unknown> = {};
    for (const [field, as] of Object.entries(shape)) {
      const value = Object.hasOwn(given, field) ? as((given as Record<string, unknown>)[field]) : undefined;
      if (value !== undefined) read[field] = value;
      else if (required.includes(field)) return undefined;
    }
    return read;
  };

const list =
  (item: Read, most: number): Read =>
  (given) =>
    Array.isArray(given)
      ? given
          .slice(0, most)
          .map(item)
          .filter((one) => one !== undefined)
      : undefined;

const psi = { total: count, avg10: share, avg60: share, avg300: share };
const pressure = object(
  { full: object(psi, ...Object.keys(psi)), some: object(psi, ...Object.keys(psi)) },
  'full',
  'some',
);
const cpu = object({ time, usageNanoCores: count, usageCoreNanoSeconds: count, psi: pressure });
const memory = object({
  time,
  availableBytes: count,
  usageBytes: count,
  workingSetBytes: count,
  rssBytes: count,
  pageFaults: count,
  majorPageFaults: count,
  psi: pressure,
});
const io = object({ time, psi: pressure });
const filesystem = {
  time,
  availableBytes: count,
  capacityBytes: count,
  usedBytes: count,
  inodesFree: count,
  inodes: count,
  inodesUsed: count,
};
const swap = object({ time, swapAvailableBytes: count, swapUsageBytes: count });
const traffic = { name: word, rxBytes: count, rxErrors: count, txBytes: count, txErrors: count };
const network = object({ time, ...traffic, interfaces: list(object(traffic, 'name'), 16) });

const container = object(
  { name: word, startTime: time, cpu, memory, io, rootfs: object(filesystem), logs: object(filesystem), swap },
  'name',
);
const pod = object(
  {
    podRef: object({ name: word, namespace: word, uid: word }, 'name', 'namespace', 'uid'),
    startTime: time,
    containers: list(container, 256),
    cpu,
    memory,
    io,
    network,
    // Which claim a volume is of is told by names of the provider's side, and left out.
    volume: list(object({ ...filesystem, name: word }, 'name'), 256),
    'ephemeral-storage': object(filesystem),
    process_stats: object({ process_count: count }),
    swap,
  },
  'podRef',
);

export function readPodStats(given: unknown): PodStats | undefined {
  const read = pod(given) as PodStats | undefined;
  return read && { ...read, containers: read.containers ?? [] };
}

const nodeTimes = object({ cpu: object({ time }), memory: object({ time }) });

/** `nodeTime`: when the kubelet looked at its node last. Undefined: this is no summary. */
export function readSummary(
  given: unknown,
  mostPods: number,
): { readonly nodeTime: string | undefined; readonly pods: PodStats[] } | undefined {
  if (typeof given !== 'object' || given === null) return undefined;
  const { node, pods } = given as { node?: unknown; pods?: unknown };
  const times = nodeTimes(node) as { cpu?: CpuStats; memory?: MemoryStats } | undefined;
  if (times === undefined || (pods !== null && !Array.isArray(pods))) return undefined;
  const read = (pods ?? [])
    .slice(0, mostPods)
    .map(readPodStats)
    .filter((one: PodStats | undefined) => one !== undefined);
  return { nodeTime: times.cpu?.time ?? times.memory?.time, pods: read };
}
