/**
 * A kubelet's pages, taken apart by namespace: what its node's figures say of one tenant. What is not of a tenant's pods, the
 * node's own figures above all, goes to nobody; only the time at which the node was looked at is told.
 */
import { createPageReader, createPageWriter, labelOf, numberOf, type PageWriter, type Sample } from '../exposition.ts';
import { type PodStats, readSummary } from '../node/pod-stats.ts';

/** Under `kube/node/` of a lease. */
export const nodePages = ['stats', 'metrics/resource', 'metrics/cadvisor', 'metrics/probes'] as const;
export type NodePage = (typeof nodePages)[number];

export const isNodePage = (text: string): text is NodePage => (nodePages as readonly string[]).includes(text);

/** Where a kubelet serves it. Rights for it: nodes/stats and nodes/metrics. */
export const kubeletPath = (page: NodePage): string => (page === 'stats' ? '/stats/summary' : `/${page}`);

/** What one tenant is told. */
export interface SplitPage {
  of(namespace: string): string;
}

const mostPods = 2000;
const mostSamples = 100_000;

/** Undefined: no summary. */
export function splitSummary(given: unknown, isTenant: (namespace: string) => boolean): SplitPage | undefined {
  const summary = readSummary(given, mostPods);
  if (!summary) return undefined;
  const byNamespace = new Map<string, PodStats[]>();
  for (const pod of summary.pods) {
    const { namespace } = pod.podRef;
    if (!isTenant(namespace)) continue;
    const pods = byNamespace.get(namespace) ?? [];
    pods.push(pod);
    byNamespace.set(namespace, pods);
  }
  const time = summary.nodeTime === undefined ? {} : { time: summary.nodeTime };
  return {
    of: (namespace) => JSON.stringify({ node: { cpu: time, memory: time }, pods: byNamespace.get(namespace) ?? [] }),
  };
}

const families: Readonly<Record<Exclude<NodePage, 'stats'>, RegExp>> = {
  'metrics/resource': /^(container|pod)_/,
  'metrics/cadvisor': /^container_/,
  'metrics/probes': /^prober_/,
};

const nodeCpu = 'node_cpu_usage_seconds_total';

/** Takes the lines of a page in Prometheus' format, and then tells what is whose. */
export function createPageSplitter(
  page: Exclude<NodePage, 'stats'>,
  isTenant: (namespace: string) => boolean,
): { readonly line: (text: string) => void; readonly split: SplitPage } {
  const byNamespace = new Map<string, { readonly writer: PageWriter; cpuSeconds: number }>();
  let nodeAtMs: number | undefined;
  const line = createPageReader((sample, family) => {
    if (sample.name === nodeCpu) nodeAtMs = sample.timestampMs;
    if (!families[page].test(sample.name)) return;
    const namespace = labelOf(sample, 'namespace');
    if (namespace === undefined || !isTenant(namespace)) return;
    let own = byNamespace.get(namespace);
    if (!own) {
      own = { writer: createPageWriter(mostSamples), cpuSeconds: 0 };
      byNamespace.set(namespace, own);
    }
    if (sample.name === 'pod_cpu_usage_seconds_total') own.cpuSeconds += numberOf(sample);
    own.writer.add(withoutHost(sample), family);
  });
  return {
    line,
    split: {
      of(namespace) {
        const own = byNamespace.get(namespace);
        const text = own?.writer.text() ?? '';
        if (page !== 'metrics/resource') return text;
        const time = nodeAtMs === undefined ? '' : ` ${nodeAtMs}`;
        return `# TYPE ${nodeCpu} counter\n${nodeCpu} ${own?.cpuSeconds ?? 0}${time}\n${text}`;
      },
    },
  };
}

/** A control group's path begins with whatever the provider calls its own. */
function withoutHost(sample: Sample): Sample {
  const own = (path: string) => (path.includes('/kubepods') ? path.slice(path.indexOf('/kubepods')) : '');
  return { ...sample, labels: sample.labels.map(([name, value]) => [name, name === 'id' ? own(value) : value]) };
}
