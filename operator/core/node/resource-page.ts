/** /metrics/resource: what metrics-server reads, and with it `kubectl top` and autoscalers. */
import { createPageWriter, type Family, labelOf, numberOf, readPage, type Sample } from '../exposition.ts';
import { countIn, cpuSecondsOf, type PodCpu, type UsageMemory } from './node-usage.ts';
import { hasContainer, labelsOf, leasedOf, mostSamples, type PageOptions, timeOf } from './page.ts';

const resourceFamilies: Readonly<Record<string, Family>> = Object.fromEntries(
  (
    [
      ['node_cpu_usage_seconds_total', 'counter', 'CPU time used by the pods of the node, in core-seconds'],
      ['node_memory_working_set_bytes', 'gauge', 'Working set of the pods of the node, in bytes'],
      ['container_cpu_usage_seconds_total', 'counter', 'CPU time used by the container, in core-seconds'],
      ['container_memory_working_set_bytes', 'gauge', 'Working set of the container, in bytes'],
      ['container_start_time_seconds', 'gauge', 'When the container started, in seconds since 1970'],
      ['container_swap_usage_bytes', 'gauge', 'Swap used by the container, in bytes'],
      ['container_swap_limit_bytes', 'gauge', 'Swap that the container may use, in bytes'],
      ['pod_cpu_usage_seconds_total', 'counter', 'CPU time used by the pod, in core-seconds'],
      ['pod_memory_working_set_bytes', 'gauge', 'Working set of the pod, in bytes'],
      ['pod_swap_usage_bytes', 'gauge', 'Swap used by the pod, in bytes'],
      ['resource_scrape_error', 'gauge', '1 when the provider could not measure, else 0'],
      ['scrape_error', 'gauge', '1 when the provider could not measure, else 0'],
    ] as const
  ).map(([name, type, help]) => [name, { name, type, help }]),
);

/**
 * What metrics-server reads. It takes a node whose CPU or memory is nought for one that was not measured, so an idle node has
 * used a billionth of a second, and a byte.
 */
export function resourcePage(
  given: string,
  memory: UsageMemory,
  options: PageOptions,
): { readonly text: string; readonly memory: UsageMemory } {
  const { now, podOf } = options;
  const samples: Sample[] = [];
  const uses = new Map<
    string,
    { cpu?: PodCpu; cpuOfContainers: number; bytes?: number; bytesOfContainers: number; atMs: number }
  >();
  let nodeAtMs = 0;
  let failed = false;
  readPage(given, (sample) => {
    if (sample.name === 'node_cpu_usage_seconds_total') nodeAtMs = timeOf(sample, now) ?? 0;
    if (sample.name === 'resource_scrape_error' && numberOf(sample) !== 0) failed = true;
    if (!Object.hasOwn(resourceFamilies, sample.name) || samples.length >= mostSamples) return;
    const value = numberOf(sample);
    const pod = podOf(labelOf(sample, 'pod') ?? '');
    if (!pod || !Number.isFinite(value) || value < 0) return;
    const ofContainer = sample.name.startsWith('container_');
    const container = labelOf(sample, 'container');
    if (ofContainer && (container === undefined || !hasContainer(pod, container))) return;
    samples.push({
      name: sample.name,
      labels: labelsOf(pod, ofContainer ? container : undefined),
      value: sample.value,
      timestampMs: timeOf(sample, now),
    });
    const uid = pod.metadata.uid ?? '';
    const use = uses.get(uid) ?? { cpuOfContainers: 0, bytesOfContainers: 0, atMs: 0 };
    uses.set(uid, use);
    const atMs = timeOf(sample, now) ?? now.getTime();
    switch (sample.name) {
      case 'pod_cpu_usage_seconds_total':
        use.cpu = { uid, cpuSeconds: value, atMs };
        break;
      case 'container_cpu_usage_seconds_total':
        use.cpuOfContainers += value;
        use.atMs = Math.max(use.atMs, atMs);
        break;
      case 'pod_memory_working_set_bytes':
        use.bytes = value;
        break;
      case 'container_memory_working_set_bytes':
        use.bytesOfContainers += value;
        break;
      default:
        break;
    }
  });

  const seen: PodCpu[] = [];
  let bytes = 0;
  for (const [uid, use] of uses) {
    if (use.cpu) seen.push(use.cpu);
    else if (use.atMs > 0) seen.push({ uid, cpuSeconds: use.cpuOfContainers, atMs: use.atMs });
    bytes += use.bytes ?? use.bytesOfContainers;
  }
  const next = countIn(memory, seen, options.isHere, nodeAtMs);
  const timestampMs = next.atMs === 0 ? undefined : next.atMs;
  const page = createPageWriter(mostSamples + 8);
  const node = (name: string, value: number) =>
    page.add({ name, labels: [], value: String(value), timestampMs }, resourceFamilies[name]!);
  node('node_cpu_usage_seconds_total', Math.max(cpuSecondsOf(next), 1e-9));
  node('node_memory_working_set_bytes', Math.min(Math.max(bytes, 1), leasedOf(options.served).memoryBytes));
  for (const sample of samples) page.add(sample, resourceFamilies[sample.name]!);
  for (const name of ['resource_scrape_error', 'scrape_error'])
    page.add({ name, labels: [], value: failed ? '1' : '0' }, resourceFamilies[name]!);
  return { text: page.text(), memory: next };
}
