/** The benches by name: what each measures, and how its figures are shown. */
import type { Report } from '../../operator/sandbox/processes.ts';
import { type BurstFigures, burst, burstTable, warmUpPods } from './burst.ts';
import { type Target, table } from './figures.ts';
import { gatewayBench, gatewayTable } from './gateway.ts';
import { type Lab, startLab } from './lab.ts';
import { type LatencyFigures, latency, type Spread } from './latency.ts';
import { machine } from './machine.ts';
import { type Series, svg } from './plot.ts';
import { type SizeStep, size, sizeTable } from './size.ts';
import { type StreamFigures, streams } from './streams.ts';
import { transport, transportTable } from './transport.ts';

export interface BenchContext {
  readonly dir: string;
  readonly pods?: readonly number[];
  readonly nodes?: readonly number[];
  readonly rounds: number;
  readonly samples: number;
  readonly restSeconds: number;
  readonly standstillSeconds: number;
  /** A second, of the gateway. */
  readonly requests: number;
  readonly profile?: string;
  /** Progress, for whoever waits. */
  readonly say: (line: string) => void;
  /** What the sandbox reports. */
  readonly report: Report;
  readonly signal: AbortSignal;
  /** Done in any case, last first. */
  readonly atEnd: (work: () => Promise<void>) => void;
}

export interface BenchResult {
  readonly figures: object;
  readonly targets: readonly Target[];
  readonly table: string;
  readonly plot?: string;
}

export interface Bench {
  readonly about: string;
  run(context: BenchContext): Promise<BenchResult>;
}

async function startedLab(context: BenchContext, pods: number): Promise<Lab> {
  const { dir, report, profile, signal, atEnd } = context;
  const lab = await startLab({ dir, report, profile, pods, signal });
  atEnd(async () => {
    lab.lease.witness.stop();
    await lab.sandbox.stop();
  });
  return lab;
}

/** No container is needed to see how fast pods are carried, and a real one would hide it behind its own start. */
async function hollowLab(context: BenchContext, pods: number): Promise<Lab> {
  process.env.GPULEASE_NODES = 'hollow';
  context.say('starting two clusters, each with its own control plane; nodes are hollow: pods are simulated');
  return startedLab(context, pods);
}

export const benches: Readonly<Record<string, Bench>> = {
  burst: {
    about: 'N pods of one Deployment: time until all are Ready, until all are gone, CPU seconds',
    async run(context) {
      const sizes = context.pods ?? [10, 100, 1000];
      const lab = await hollowLab(context, Math.max(warmUpPods, ...sizes));
      const { figures, targets } = await burst(lab, { sizes, rounds: context.rounds, say: context.say });
      return { figures: { sizes: figures }, targets, table: burstTable(figures), plot: burstPlot(figures) };
    },
  },
  latency: {
    about: 'one pod at a time: created until seen Running',
    async run(context) {
      const lab = await hollowLab(context, 20);
      const { figures, targets } = await latency(lab, { samples: context.samples, say: context.say });
      const row = (name: 'straight' | 'ours') => [name, String(figures[name].p50Ms), String(figures[name].p95Ms)];
      return {
        figures,
        targets,
        table: table(
          ['created → Running', 'p50 ms', 'p95 ms'],
          [row('straight'), row('ours'), ['ratio', `${figures.p50Ratio}×`, `${figures.p95Ratio}×`]],
        ),
        plot: latencyPlot(figures),
      };
    },
  },
  streams: {
    about: 'exec, logs and port-forward of one container on a real node',
    async run(context) {
      context.say('starting two clusters and real nodes (kubelet, containerd)');
      const lab = await startedLab(context, 20);
      if (lab.sandbox.simulated) {
        const reason =
          'no real node can be had here (root, Linux and containerd are needed): streams of hollow pods say nothing';
        return { figures: { skipped: reason }, targets: [], table: `skipped: ${reason}` };
      }
      const { samples, rounds, say } = context;
      const { figures, targets } = await streams(lab, { samples, rounds, say });
      return { figures, targets, table: streamsTable(figures), plot: streamsPlot(figures) };
    },
  },
  gateway: {
    about: 'requests a second at one gateway (offers, signed quotes, stored vouchers), then exec sessions at once',
    async run(context) {
      context.say('starting two clusters and a real node, where one can be had');
      const { figures, targets } = await gatewayBench({
        ...context,
        perSecond: context.requests,
        seconds: context.restSeconds,
        sessions: 200,
      });
      return { figures, targets, table: gatewayTable(figures) };
    },
  },
  transport: {
    about: 'the ways to a gateway: straight, over a link that it made, by way of a relay; bytes, latency, CPU',
    async run(context) {
      const { figures, targets } = await transport(context);
      return { figures, targets, table: transportTable(figures) };
    },
  },
  size: {
    about: 'memory and CPU at rest of the operator, and of the gateway, with many virtual nodes',
    async run(context) {
      process.env.GPULEASE_NODES = 'hollow';
      const steps = (context.nodes ?? [10, 100, 1000]).toSorted((a, b) => a - b);
      context.say(
        'starting two clusters; nodes are hollow: pods are simulated; leases and payments are real, on a local chain',
      );
      const podsPerNode = context.pods ? Math.ceil(context.pods[0]! / steps.at(-1)!) : 10;
      const { figures, targets } = await size({ ...context, steps, podsPerNode });
      return { figures: { steps: figures }, targets, table: sizeTable(figures), plot: sizePlot(figures) };
    },
  },
};

const where = `Kubernetes 1.36, both control planes on one machine: ${machine()}`;

function burstPlot(figures: readonly BurstFigures[]): string {
  const lines = (read: (one: BurstFigures, way: 'straight' | 'ours') => number, ratio: (one: BurstFigures) => number) =>
    (['straight', 'ours'] as const).map(
      (way): Series => ({
        name: way === 'ours' ? 'virtual node' : 'straight on the provider',
        tone: way === 'ours' ? 'ours' : 'plain',
        points: figures.map((one) => [one.pods, read(one, way)]),
        ...(way === 'ours' && {
          mark: (pods) => `${ratio(figures.find((one) => one.pods === pods)!)}×`,
        }),
      }),
    );
  const x = { label: 'pods of one Deployment', scale: 'log' as const };
  const y = { label: 'seconds', scale: 'log' as const };
  return svg({
    title: 'A burst of pods',
    note: `Hollow nodes (kwok). ${where}. Median of ${figures[0]?.rounds ?? 0} rounds.`,
    panels: [
      {
        title: 'until all are Ready',
        x,
        y,
        series: lines(
          (one, way) => one[way].readySeconds,
          (one) => one.readyRatio,
        ),
      },
      {
        title: 'deleted, until all are gone',
        x,
        y,
        series: lines(
          (one, way) => one[way].goneSeconds,
          (one) => one.goneRatio,
        ),
      },
    ],
  });
}

const distribution = ({ sortedMs }: Spread): [number, number][] =>
  sortedMs.map((ms, i) => [ms, ((i + 1) / sortedMs.length) * 100]);

function latencyPlot(figures: LatencyFigures): string {
  return svg({
    title: 'One pod: created until Running',
    note: `As a watch sees it; ${figures.samples} pods each way, by turns, on hollow nodes (kwok). ${where}.`,
    panels: [
      {
        title: `p50 ${figures.p50Ratio}×, p95 ${figures.p95Ratio}× straight`,
        x: { label: 'milliseconds', from: 0 },
        y: { label: '% of pods', from: 0, to: 100 },
        series: [
          { name: 'straight on the provider', tone: 'plain', points: distribution(figures.straight) },
          { name: 'virtual node', tone: 'ours', points: distribution(figures.ours) },
        ],
      },
    ],
  });
}

function streamsTable(figures: StreamFigures): string {
  const ms = ({ p50Ms, p95Ms }: Spread) => `${p50Ms} / ${p95Ms}`;
  const { execLatency, execOutput, execInput, logs, portForward } = figures;
  const row = (what: string, straight: string, ours: string, ratio: number) => [what, straight, ours, `${ratio}×`];
  return table(
    ['', 'straight', 'ours', 'ratio'],
    [
      row('exec, ms (p50 / p95)', ms(execLatency.straight), ms(execLatency.ours), execLatency.ratio),
      row('exec output, MB/s', String(execOutput.straight), String(execOutput.ours), execOutput.ratio),
      row('exec input, MB/s', String(execInput.straight), String(execInput.ours), execInput.ratio),
      row('logs, MB/s', String(logs.straight), String(logs.ours), logs.ratio),
      row('port-forward, ms (p50 / p95)', ms(portForward.straight), ms(portForward.ours), portForward.ratio),
    ],
  );
}

function streamsPlot(figures: StreamFigures): string {
  const panel = (title: string, { straight, ours }: { straight: Spread; ours: Spread }) => ({
    title,
    x: { label: 'milliseconds', from: 0 },
    y: { label: '% of calls', from: 0, to: 100 },
    series: [
      { name: 'straight on the provider', tone: 'plain', points: distribution(straight) },
      { name: 'virtual node', tone: 'ours', points: distribution(ours) },
    ] satisfies Series[],
  });
  const { execLatency, execOutput, execInput, portForward } = figures;
  return svg({
    title: 'Streams of one container',
    note: `Throughput of exec: output ${execOutput.ratio}×, input ${execInput.ratio}× straight. Real node. ${where}.`,
    panels: [
      panel(`exec of "true": p50 ${execLatency.ratio}× straight`, execLatency),
      panel(`64 bytes through port-forward: p50 ${portForward.ratio}× straight`, portForward),
    ],
  });
}

function sizePlot(figures: readonly SizeStep[]): string {
  const line = (program: 'operator' | 'gateway', read: (step: SizeStep) => number): Series => ({
    name: program,
    tone: program === 'operator' ? 'ours' : 'more',
    points: figures.map((step) => [step.nodes, read(step)]),
    mark: (_, value) => String(value),
  });
  const x = { label: 'virtual nodes, ten pods on each', scale: 'log' as const };
  return svg({
    title: 'One operator, many virtual nodes',
    note: `Real leases on a local chain, hollow provider nodes (kwok), at rest. ${where}.`,
    panels: [
      {
        title: 'resident memory',
        x,
        y: { label: 'MB', from: 0 },
        series: [line('operator', (s) => s.operator.residentMB), line('gateway', (s) => s.gateway.residentMB)],
        bound: { y: 500, name: 'promised for the operator' },
      },
      {
        title: 'CPU at rest',
        x,
        y: { label: 'cores', from: 0 },
        series: [line('operator', (s) => s.operator.cores), line('gateway', (s) => s.gateway.cores)],
        bound: { y: 0.5, name: 'promised for the operator' },
      },
    ],
  });
}
