/** /stats/summary, as https://pkg.go.dev/k8s.io/kubelet/pkg/apis/stats/v1alpha1 describes it. */
import { countIn, cpuSecondsOf, type PodCpu, type UsageMemory } from './node-usage.ts';
import { believable, hasContainer, leasedOf, type PageOptions } from './page.ts';
import { type PodStats, readSummary } from './pod-stats.ts';

const mostPods = 2000;
/** Go reads counts into 64 bits, and refuses the page otherwise. */
const mostCount = 2 ** 63;

/** Undefined: what was given is no summary. */
export function summaryPage(
  given: unknown,
  memory: UsageMemory,
  options: PageOptions & { readonly startTime: Date; readonly onlyCpuAndMemory: boolean },
): { readonly page: object; readonly memory: UsageMemory } | undefined {
  const { now, isHere } = options;
  const summary = readSummary(given, mostPods);
  if (!summary) return undefined;
  const pods: PodStats[] = [];
  const told = new Set<string>();
  for (const stats of summary.pods) {
    const pod = options.podOf(stats.podRef.name);
    const { name, namespace = '', uid = '' } = pod?.metadata ?? { name: '' };
    if (!pod || told.has(uid)) continue;
    told.add(uid);
    const containers = stats.containers.filter((one) => hasContainer(pod, one.name));
    const whole = { ...stats, podRef: { name, namespace, uid }, containers };
    pods.push(options.onlyCpuAndMemory ? cpuAndMemoryOf(whole) : whole);
  }
  const seen: PodCpu[] = pods.flatMap((pod) => {
    const counter = partOf(pod, (one) => one.cpu?.usageCoreNanoSeconds);
    const { time } = pod.cpu ?? pod.containers[0]?.cpu ?? {};
    const at = believable(Date.parse(time ?? ''), now) ?? now.getTime();
    return counter === undefined ? [] : [{ uid: pod.podRef.uid, cpuSeconds: counter / 1e9, atMs: at }];
  });
  const next = countIn(memory, seen, isHere, believable(Date.parse(summary.nodeTime ?? ''), now));
  const leased = leasedOf(options.served);
  const sum = (read: (part: Measured) => number | undefined) =>
    Math.min(
      pods.reduce((total, pod) => total + (partOf(pod, read) ?? 0), 0),
      mostCount,
    );
  const time = new Date(next.atMs === 0 ? now : next.atMs).toISOString();
  const workingSetBytes = Math.min(
    sum((one) => one.memory?.workingSetBytes),
    leased.memoryBytes,
  );
  const usedBytes = Math.min(
    pods.reduce((total, pod) => total + (pod['ephemeral-storage']?.usedBytes ?? 0), 0),
    leased.ephemeralBytes,
  );
  const node = {
    nodeName: options.nodeName,
    startTime: options.startTime.toISOString(),
    cpu: {
      time,
      usageNanoCores: Math.min(
        sum((one) => one.cpu?.usageNanoCores),
        leased.cpuNanoCores,
      ),
      usageCoreNanoSeconds: Math.min(Math.round(cpuSecondsOf(next) * 1e9), mostCount),
    },
    memory: {
      time,
      availableBytes: leased.memoryBytes - workingSetBytes,
      usageBytes: sum((one) => one.memory?.usageBytes),
      workingSetBytes,
      rssBytes: sum((one) => one.memory?.rssBytes),
    },
    ...(!options.onlyCpuAndMemory && {
      fs: {
        time,
        capacityBytes: leased.ephemeralBytes,
        usedBytes,
        availableBytes: leased.ephemeralBytes - usedBytes,
      },
    }),
  };
  return { page: { node, pods }, memory: next };
}

type Measured = Pick<PodStats, 'cpu' | 'memory'>;

/** The pod's own figure, or that of its containers together where a kubelet gives none for pods. */
function partOf(pod: PodStats, read: (part: Measured) => number | undefined): number | undefined {
  const own = read(pod);
  if (own !== undefined) return own;
  const ofContainers = pod.containers.map((one) => read(one)).filter((one) => one !== undefined);
  return ofContainers.length === 0 ? undefined : ofContainers.reduce((sum, one) => sum + one, 0);
}

const only = (given: object, ...fields: string[]): Record<string, unknown> =>
  Object.fromEntries(Object.entries(given).filter(([field]) => fields.includes(field)));

const cpuAndMemoryOf = (pod: PodStats): PodStats =>
  ({
    ...only(pod, 'podRef', 'startTime', 'cpu', 'memory', 'swap'),
    containers: pod.containers.map((one) => only(one, 'name', 'startTime', 'cpu', 'memory', 'swap')),
  }) as unknown as PodStats;
