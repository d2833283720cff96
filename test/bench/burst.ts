/**
 * Many pods at once: one Deployment through the virtual node, and the same one straight on the provider, by turns. What is
 * still being done when the last pod is Ready or gone is counted to it, and waited for before the next begins.
 */

import { median, type Target, table, told } from './figures.ts';
import type { Lab, Place } from './lab.ts';
import { createDeployment, deleteDeployment, watchPods } from './pods.ts';
import { cpuOf, difference, untilQuiet } from './processes.ts';
import { type Requests, requestsOf, requestsPer } from './requests.ts';

export interface BurstOptions {
  /** How many pods; one size after the other. */
  readonly sizes: readonly number[];
  readonly rounds: number;
  readonly say: (line: string) => void;
}

type Cpu = Readonly<Record<'operator' | 'gateway' | 'consumerPlane' | 'providerPlane' | 'nodes', number>>;

interface Run {
  readonly readySeconds: number;
  readonly goneSeconds: number;
  readonly readyCpu: Cpu;
  readonly goneCpu: Cpu;
  readonly requests: Requests;
}

export interface BurstFigures {
  readonly pods: number;
  readonly rounds: number;
  readonly straight: Alternative;
  readonly ours: Alternative & { readonly requestsPerPod: Requests };
  readonly readyRatio: number;
  readonly goneRatio: number;
  /** Operator and gateway, from the Deployment's creation until nothing is left of it. */
  readonly ownCpuSeconds: number;
  readonly ownCpuSecondsPer1000: number;
  /** Of the CPU seconds that the provider's control plane takes for the same pods, straight: seconds differ by machine. */
  readonly ownCpuShare: number;
}

interface Alternative {
  readonly readySeconds: number;
  readonly goneSeconds: number;
  readonly cpuSeconds: Cpu;
}

/**
 * A hundred pods take a second, on which whatever else runs has more of a say: one time differs from the next by an eighth, and the
 * ratio of two medians of nine by a fifteenth still. They have more turns.
 */
const turnsOf = (pods: number, rounds: number): number => (pods <= 100 ? rounds * 7 : rounds);

const longestSeconds = 300;
export const warmUpPods = 300;

async function once(lab: Lab, place: Place, pods: number, name: string): Promise<Run> {
  const { signal, groups, sandbox } = lab;
  const all = Object.values(groups).flat();
  const watch = await watchPods(place, name, signal);
  const quiet = async () => {
    if (!(await untilQuiet(all, { cores: 0.3, signal }))) throw new Error('the clusters do not come to rest');
  };
  try {
    await quiet();
    const requestsBefore = await requestsOf(sandbox, signal);
    const before = cpuOf(groups) as Cpu;
    const createdAt = performance.now();
    await createDeployment(place, name, pods, signal);
    const readyAt = await watch.ready(pods, longestSeconds);
    await quiet();
    const between = cpuOf(groups) as Cpu;
    const deletedAt = performance.now();
    await deleteDeployment(place, name, signal);
    const goneAt = await watch.gone(longestSeconds);
    await quiet();
    const after = cpuOf(groups) as Cpu;
    return {
      readySeconds: (readyAt - createdAt) / 1000,
      goneSeconds: (goneAt - deletedAt) / 1000,
      readyCpu: difference(between, before),
      goneCpu: difference(after, between),
      requests: requestsPer(pods, requestsBefore, await requestsOf(sandbox, signal)),
    };
  } finally {
    watch.stop();
  }
}

export async function burst(lab: Lab, options: BurstOptions): Promise<{ figures: BurstFigures[]; targets: Target[] }> {
  const { say } = options;
  // Programs are quicker once they are compiled, which takes Node.js some hundred pods: both alternatives start warm.
  say(`warming up: ${warmUpPods} pods each way`);
  await once(lab, lab.straight, warmUpPods, 'warm-up-straight');
  await once(lab, lab.ours, warmUpPods, 'warm-up-ours');
  const figures: BurstFigures[] = [];
  for (const pods of options.sizes) {
    const runs: Record<Place['name'], Run[]> = { straight: [], ours: [] };
    for (let round = 0; round < turnsOf(pods, options.rounds); round += 1) {
      const order = round % 2 === 0 ? [lab.straight, lab.ours] : [lab.ours, lab.straight];
      for (const place of order) {
        const run = await once(lab, place, pods, `burst-${pods}-${round}`);
        runs[place.name].push(run);
        say(
          `${String(pods).padStart(5)} pods, round ${round + 1}, ${place.name.padEnd(8)}  Ready after ${run.readySeconds.toFixed(2)} s, gone after ${run.goneSeconds.toFixed(2)} s, our CPU ${ownCpu(run).toFixed(2)} s`,
        );
      }
    }
    figures.push(summed(pods, runs));
  }
  return { figures, targets: figures.flatMap(targetsOf) };
}

const ownCpu = (run: Run): number =>
  run.readyCpu.operator + run.readyCpu.gateway + run.goneCpu.operator + run.goneCpu.gateway;

function alternative(runs: readonly Run[]): Alternative {
  const of = (read: (run: Run) => number) => told(median(runs.map(read)));
  const cpu = (group: keyof Cpu) => of((run) => run.readyCpu[group] + run.goneCpu[group]);
  return {
    readySeconds: of((run) => run.readySeconds),
    goneSeconds: of((run) => run.goneSeconds),
    cpuSeconds: {
      operator: cpu('operator'),
      gateway: cpu('gateway'),
      consumerPlane: cpu('consumerPlane'),
      providerPlane: cpu('providerPlane'),
      nodes: cpu('nodes'),
    },
  };
}

function summed(pods: number, runs: Record<Place['name'], Run[]>): BurstFigures {
  const straight = alternative(runs.straight);
  const ours = alternative(runs.ours);
  const own = median(runs.ours.map(ownCpu));
  return {
    pods,
    rounds: runs.ours.length,
    straight,
    ours: { ...ours, requestsPerPod: runs.ours.at(-1)?.requests ?? {} },
    readyRatio: told(ours.readySeconds / straight.readySeconds),
    goneRatio: told(ours.goneSeconds / straight.goneSeconds),
    ownCpuSeconds: told(own),
    ownCpuSecondsPer1000: told((own / pods) * 1000),
    ownCpuShare: told(own / straight.cpuSeconds.providerPlane),
  };
}

/** 6 seconds for 1,000 pods where that control plane takes 10.6. */
const mostCpuShare = 0.57;

function targetsOf(one: BurstFigures): Target[] {
  const { pods } = one;
  const ready = pods >= 1000 ? 2.5 : pods >= 100 ? 3 : undefined;
  if (ready === undefined) return [];
  return [
    { what: `${pods} pods Ready, times straight`, measured: one.readyRatio, atMost: ready },
    { what: `${pods} pods gone, times straight`, measured: one.goneRatio, atMost: 2.5 },
    ...(pods >= 1000
      ? [
          {
            what: 'our CPU seconds, of those of the straight control plane',
            measured: one.ownCpuShare,
            atMost: mostCpuShare,
          },
        ]
      : []),
  ];
}

export function burstTable(figures: readonly BurstFigures[]): string {
  const rows = figures.flatMap(({ pods, straight, ours, readyRatio, goneRatio }) =>
    (['straight', 'ours'] as const).map((name) => {
      const one = name === 'ours' ? ours : straight;
      const { cpuSeconds: cpu } = one;
      return [
        `${pods} ${name}`,
        one.readySeconds.toFixed(2),
        name === 'ours' ? `${readyRatio}×` : '',
        one.goneSeconds.toFixed(2),
        name === 'ours' ? `${goneRatio}×` : '',
        ...[cpu.operator, cpu.gateway, cpu.consumerPlane, cpu.providerPlane, cpu.nodes].map((s) => s.toFixed(2)),
      ];
    }),
  );
  return table(
    ['pods', 'Ready s', '', 'gone s', '', 'CPU s: operator', 'gateway', 'consumer', 'provider', 'nodes'],
    rows,
  );
}
