#!/usr/bin/env node
/** `npm run bench -- NAME`: how fast and how large, against the plain way, measured in the same run. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Bench, type BenchResult, benches } from '../../test/bench/benches.ts';
import { isMet, targetInWords } from '../../test/bench/figures.ts';
import { tellProfiles } from '../../test/bench/profile.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { integer, parseOptions, text, UsageError } from './options.ts';

const defaultDir = join(tmpdir(), `gpulease-bench-${process.getuid?.() ?? 0}`);

const usage = `
Measures what a virtual node costs against the plain way: both in the same run, on the same machine, by turns.

  npm run bench -- NAME [options]

${Object.entries(benches)
  .map(([name, { about }]) => `  ${name.padEnd(10)}${about}`)
  .join('\n')}

Figures depend on the machine and on what else runs there; the ratios do much less. The last line is one JSON object.
Exit code 0: measured, and every target met. 1: it could not be measured, or a target was missed; the lines say which.
`;

const declared = {
  pods: text(
    'burst: numbers of pods, one after the other (default: 10,100,1000). size: pods on all nodes together (default: ten a node).',
    'N[,N]',
  ),
  rounds: integer(
    'burst, streams, transport: how often each alternative has its turn; of up to 100 pods, seven times as often.',
    'COUNT',
    1,
    100,
    3,
  ),
  samples: integer(
    'latency: how many pods each way; streams: a quarter of the execs; transport: how many connections.',
    'COUNT',
    5,
    10_000,
    50,
  ),
  restSeconds: integer(
    'size: for how long CPU is measured at rest. gateway: for how long it is asked.',
    'SECONDS',
    10,
    3600,
    60,
  ),
  standstill: integer(
    'size: for how long the gateway stands still (SIGSTOP) after each step, to see what that does to its nodes; 0: not at all.',
    'SECONDS',
    0,
    600,
    0,
  ),
  requests: integer('gateway: how many requests a second.', 'COUNT', 1, 20_000, 1000),
  nodes: text('size: numbers of virtual nodes, one after the other (default: 10,100,1000).', 'N[,N]'),
  out: text('Folder for the plot (SVG) and the figures (JSON).', 'DIR'),
  profile: text(
    'burst, latency, size: folder for CPU and heap profiles of operator and gateway; prints the top of each.',
    'DIR',
  ),
  verbose: { description: 'Shows what the sandbox reports.', parse: () => true },
  dir: text(
    'Where the clusters and logs live while it runs. The default one is removed afterwards.',
    'DIR',
    defaultDir,
  ),
};

const started = Date.now();
const say = (line: string) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(7)} s  ${line}`);

async function main(): Promise<void> {
  const [first = '', ...rest] = process.argv.slice(2);
  const named = first !== '' && !first.startsWith('-');
  const options = parseOptions(usage, declared, named ? rest : [first, ...rest].filter(Boolean), process.env);
  if (!options) return;
  const bench: Bench | undefined = benches[first];
  if (!bench)
    throw new UsageError(
      `say what to measure: ${Object.keys(benches).join(', ')}${named ? `; given: ${first}` : ''}. See --help.`,
    );
  const numbers = (flag: string, given: string | undefined): readonly number[] | undefined => {
    if (given === undefined) return undefined;
    const found = given.split(',').map(Number);
    if (!found.every((n) => Number.isSafeInteger(n) && n >= 1 && n <= 20_000))
      throw new UsageError(
        `--${flag} must be whole numbers from 1 to 20000, with commas between them; given: ${given}`,
      );
    return found;
  };
  const [pods, nodes] = [numbers('pods', options.pods), numbers('nodes', options.nodes)];
  const profile = options.profile && resolve(options.profile);
  const abort = new AbortController();
  const cleanups: (() => Promise<void>)[] = [];
  const clearUp = async () => {
    for (const one of cleanups.splice(0).reverse()) await one();
  };
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    say('clearing up');
    await clearUp();
  }, say);
  let result: BenchResult | undefined;
  try {
    result = await bench.run({
      dir: options.dir,
      pods,
      nodes,
      rounds: options.rounds,
      samples: options.samples,
      restSeconds: options.restSeconds,
      standstillSeconds: options.standstill,
      requests: options.requests,
      profile,
      say,
      report: (line) => {
        if (options.verbose || /^(building|built|installing|installed|waiting)\b/.test(line)) say(line);
      },
      signal: abort.signal,
      atEnd: (work) => void cleanups.push(work),
    });
  } catch (error) {
    if (abort.signal.aborted) return;
    say(`failed: ${(error as Error).message}`);
    say(`logs: ${join(options.dir, 'programs/log')}`);
    process.exitCode = 1;
  } finally {
    if (!abort.signal.aborted) {
      await clearUp();
      off();
    }
  }
  if (!result) {
    console.log(JSON.stringify({ bench: first, failed: true }));
    return;
  }
  // Written by the programs as they end.
  if (profile) {
    await sleep(100);
    console.log(`\n${tellProfiles(profile)}`);
  }
  console.log(`\n${result.table}\n`);
  for (const target of result.targets) console.log(targetInWords(target));
  const missed = result.targets.filter((target) => !isMet(target));
  if (missed.length > 0) process.exitCode = 1;
  const figures = {
    bench: first,
    ...result.figures,
    targets: result.targets.map((target) => ({ ...target, met: isMet(target) })),
    seconds: Math.round((Date.now() - started) / 1000),
  };
  if (options.out) {
    mkdirSync(options.out, { recursive: true });
    writeFileSync(join(options.out, `${first}.json`), `${JSON.stringify(figures, undefined, 2)}\n`);
    if (result.plot) writeFileSync(join(options.out, `${first}.svg`), result.plot);
    console.log(`written to ${options.out}: ${first}.json${result.plot ? `, ${first}.svg` : ''}`);
  }
  // A folder that somebody named may hold more than ours.
  if (options.dir === defaultDir) rmSync(defaultDir, { recursive: true, force: true });
  console.log(JSON.stringify(figures));
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
