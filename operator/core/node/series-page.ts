/** /metrics/cadvisor and /metrics/probes: pages of many families, of which whatever is of our pods is passed on. */
import { createPageWriter, type Family, type Label, labelOf, readPage, type Sample } from '../exposition.ts';
import { hasContainer, labelsOf, leasedOf, mostSamples, type PageOptions, timeOf } from './page.ts';
import type { Pod } from './pod.ts';

const longestLabel = 1024;

/** A page of many families: all series of a pod of ours, under the consumer's names. */
function podPage(
  given: string,
  families: RegExp,
  options: PageOptions,
  first: readonly [Sample, Family][] = [],
): string {
  const page = createPageWriter(mostSamples);
  for (const [sample, family] of first) page.add(sample, family);
  readPage(given, (sample, family) => {
    if (!families.test(sample.name) || !families.test(family.name)) return;
    const pod = podOf(sample);
    const container = labelOf(sample, 'container');
    if (!pod || (container && !hasContainer(pod, container))) return;
    const others = sample.labels.filter(([name]) => !['namespace', 'pod', 'container', 'pod_uid'].includes(name));
    if (others.some(([, value]) => value.length > longestLabel)) return;
    const labels: Label[] = [...labelsOf(pod, container), ...others];
    if (labelOf(sample, 'pod_uid') !== undefined) labels.push(['pod_uid', pod.metadata.uid ?? '']);
    page.add({ name: sample.name, labels, value: sample.value, timestampMs: timeOf(sample, options.now) }, family);
  });
  return page.text();

  function podOf(sample: Sample): Pod | undefined {
    const name = labelOf(sample, 'pod');
    return name === undefined ? undefined : options.podOf(name);
  }
}

export function cadvisorPage(given: string, options: PageOptions): string {
  const { cpuNanoCores, memoryBytes } = leasedOf(options.served);
  const machine = (name: string, help: string, value: number): [Sample, Family] => [
    { name, labels: [], value: String(value) },
    { name, help, type: 'gauge' },
  ];
  return podPage(given, /^container_[a-z0-9_]{1,100}$/, options, [
    machine('machine_cpu_cores', 'CPU cores that were leased', cpuNanoCores / 1e9),
    machine('machine_memory_bytes', 'Memory that was leased, in bytes', memoryBytes),
  ]);
}

export const probesPage = (given: string, options: PageOptions): string =>
  podPage(given, /^prober_[a-z0-9_]{1,100}$/, options);
