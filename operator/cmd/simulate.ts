#!/usr/bin/env node
/** `npm run simulate`: many seeded runs of all controllers in a world that breaks, side by side; or one again, told as a story. */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Outcome } from '../../test/simulation/simulate.ts';

const help = `Runs the production controllers against clusters, provider and chain in memory, in an order that follows from a seed: with
crashes at every await, lost and late and doubled messages, cuts, clock jumps, reorganisations. After every step it checks
that no money, GPU or pod is lost or had twice; when the trouble is over, that everything converges and falls silent.

  npm run simulate -- --runs 2000
  npm run simulate -- --seed 17            one run again, told as it happens

  --runs N       how many, from the seed on: 200 by default
  --seed S       the first seed: 1 by default; without --runs, this one alone
  --steps        with one seed: tells each fault, log line and event as well
  --plant BUG    makes a mistake on purpose and ends with the first run that notices it:
                 double-open, delete-by-absence, voucher-ahead or budget-unread
  --workers N    processes: 2 by default
  --seconds N    begins no further run after so long: 600 by default
  --help

The last line is one JSON object with the figures. Exit code 1: something that must hold did not (with --plant: nobody noticed).
`;

const worker = fileURLToPath(new URL('../../test/simulation/worker.ts', import.meta.url));
const plants = ['double-open', 'delete-by-absence', 'voucher-ahead', 'budget-unread'] as const;
type Plant = (typeof plants)[number];
/** Failing seeds that are told in full; the others are counted. */
const mostTold = 20;

interface Figures {
  runs: number;
  asked: number;
  readonly interleavings: Set<string>;
  steps: number;
  simulatedSeconds: number;
  readonly faults: Record<string, number>;
  readonly reached: Record<string, number>;
  readonly failed: { seed: number; rules: string[] }[];
}

const add = (sums: Record<string, number>, more: Readonly<Record<string, number>>) => {
  for (const [name, count] of Object.entries(more)) sums[name] = (sums[name] ?? 0) + count;
};
const whole = (name: string, text: string | undefined, fallback: number, least: number): number => {
  if (text === undefined) return fallback;
  if (!/^\d+$/.test(text) || Number(text) < least) throw new Error(`--${name} must be a whole number from ${least} on`);
  return Number(text);
};

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      runs: { type: 'string' },
      seed: { type: 'string' },
      steps: { type: 'boolean', default: false },
      plant: { type: 'string' },
      workers: { type: 'string' },
      seconds: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return 0;
  }
  const seed = whole('seed', values.seed, 1, 0);
  const plant = values.plant as Plant | undefined;
  if (plant !== undefined && !plants.includes(plant)) throw new Error(`--plant must be one of ${plants.join(', ')}`);
  if (values.seed !== undefined && values.runs === undefined) return replay(seed, plant, values.steps);
  const runs = whole('runs', values.runs, 200, 1);
  const workers = Math.min(runs, whole('workers', values.workers, 2, 1));
  const seconds = whole('seconds', values.seconds, 600, 1);
  return many({ seed, runs, workers, seconds, plant });
}

async function replay(seed: number, plant: Plant | undefined, steps: boolean): Promise<number> {
  const { simulate } = await import('../../test/simulation/simulate.ts');
  const tell = (at: number, line: string) => process.stdout.write(`${at.toFixed(3).padStart(9)}  ${line}\n`);
  const outcome = await simulate(seed, {
    plant,
    say: tell,
    ...(steps ? { steps: (at: number, line: string) => tell(at, `      ${line.slice(0, 400)}`) } : {}),
  });
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
  return outcome.violations.length === 0 ? 0 : 1;
}

async function many(options: {
  readonly seed: number;
  readonly runs: number;
  readonly workers: number;
  readonly seconds: number;
  readonly plant: Plant | undefined;
}): Promise<number> {
  const { seed, runs, plant } = options;
  const startedMs = performance.now();
  const elapsed = () => (performance.now() - startedMs) / 1000;
  const figures: Figures = {
    runs: 0,
    asked: runs,
    interleavings: new Set(),
    steps: 0,
    simulatedSeconds: 0,
    faults: {},
    reached: {},
    failed: [],
  };
  let next = seed;
  let toldAt = 0;
  let interrupted = false;
  const children = new Set<ChildProcess>();
  const stop = () => {
    interrupted = true;
    for (const child of children) child.kill();
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);

  const take = (outcome: Outcome) => {
    figures.runs += 1;
    figures.interleavings.add(outcome.hash);
    figures.steps += outcome.steps;
    figures.simulatedSeconds += outcome.simulatedSeconds;
    add(figures.faults, outcome.faults);
    add(figures.reached, outcome.reached);
    if (outcome.violations.length > 0) {
      figures.failed.push({ seed: outcome.seed, rules: [...new Set(outcome.violations.map((one) => one.rule))] });
      if (figures.failed.length <= mostTold) {
        process.stdout.write(`seed ${outcome.seed}:\n`);
        for (const { atSeconds, rule, message } of outcome.violations)
          process.stdout.write(`  ${atSeconds} s  ${rule}: ${message}\n`);
      }
    }
    if (elapsed() - toldAt < 10) return;
    toldAt = elapsed();
    process.stdout.write(
      `${Math.round(toldAt)} s: ${figures.runs} of ${runs} runs, ${figures.interleavings.size} interleavings, ${figures.failed.length} failed\n`,
    );
  };

  const work = () =>
    new Promise<void>((resolve, reject) => {
      const child = fork(worker, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
      children.add(child);
      const noticed = () => plant !== undefined && figures.failed.length > 0;
      const give = () => {
        if (interrupted || noticed() || next >= seed + runs || elapsed() >= options.seconds) child.disconnect();
        else child.send({ seed: next++, plant });
      };
      child.on('message', (answer: { outcome?: Outcome; seed?: number; error?: string }) => {
        if (answer.outcome) take(answer.outcome);
        else {
          process.stdout.write(`seed ${answer.seed} could not be run: ${answer.error}\n`);
          figures.failed.push({ seed: answer.seed ?? -1, rules: ['works'] });
        }
        give();
      });
      child.once('error', reject);
      child.once('exit', (code) => {
        children.delete(child);
        if (code === 0 || interrupted) resolve();
        else reject(new Error(`a worker ended with code ${code}`));
      });
      give();
    });
  try {
    await Promise.all(Array.from({ length: options.workers }, work));
  } finally {
    for (const child of children) child.kill();
    process.removeListener('SIGINT', stop).removeListener('SIGTERM', stop);
  }

  const sorted = (sums: Record<string, number>) =>
    Object.fromEntries(Object.entries(sums).sort(([, one], [, other]) => other - one));
  process.stdout.write(`\nfaults injected\n`);
  for (const [kind, count] of Object.entries(sorted(figures.faults)))
    process.stdout.write(`  ${String(count).padStart(8)}  ${kind}\n`);
  process.stdout.write(`what runs came to\n`);
  for (const [what, count] of Object.entries(sorted(figures.reached)))
    process.stdout.write(`  ${String(count).padStart(8)}  ${what}\n`);
  const [first] = figures.failed;
  if (first !== undefined)
    process.stdout.write(
      `\nagain, told: npm run simulate -- --seed ${first.seed}${plant ? ` --plant ${plant}` : ''}\n`,
    );
  if (figures.runs < runs && plant === undefined)
    process.stdout.write(`\n${figures.runs} of ${runs} runs: ${interrupted ? 'interrupted' : 'the time was up'}\n`);
  const { interleavings, failed, ...rest } = figures;
  const summary = {
    ...rest,
    interleavings: interleavings.size,
    violations: failed.length,
    failed: failed.slice(0, mostTold),
    ...(plant ? { plant, noticedAfterRuns: first === undefined ? null : first.seed - seed + 1 } : {}),
    seconds: Math.round(elapsed()),
  };
  process.stdout.write(`${JSON.stringify(summary)}\n`);
  const good = plant === undefined ? failed.length === 0 : failed.length > 0;
  return good && !interrupted ? 0 : 1;
}

// Whoever reads with `head` has read enough.
process.stdout.on('error', () => process.exit(0));

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: Error) => {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 2;
  },
);
