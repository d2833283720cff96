#!/usr/bin/env node
/** Builds and tests the contracts with forge, and says what their calls cost, what the tests reach and what they would miss. */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { explainStep, neverMet, type TraceCounts, writeTraces } from '../../test/support/escrow-traces.ts';
import { measureCoverage } from '../contracts/coverage.ts';
import { build, compiledAsTests, contractsFolder, type ForgeReport, test } from '../contracts/forge.ts';
import { compareGas, readGas, writeGas } from '../contracts/gas.ts';
import { gpuToken } from '../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../contracts/generated/lease-escrow.ts';
import { mockUsdc } from '../contracts/generated/mock-usdc.ts';
import { readEquivalents, runMutants } from '../contracts/mutate.ts';
import { analyse } from '../contracts/slither.ts';

const help = `Builds and tests the contracts with forge: cases, invariants, the model against the contract, gas. Offline.

  npm run test:contracts                  a minute: fuzz tests 256 times, invariants 64 × 60, 300 traces of the model
  npm run test:contracts -- --deep        ten minutes: fuzz tests 10,000 times, invariants 1000 × 100, 10,000 traces
  npm run test:contracts -- --coverage    a minute: which branches the tests take; fails below 98 %
  npm run test:contracts -- --mutate      five minutes: whether a test notices each guard, cap, branch, statement taken out
  npm run test:contracts -- --slither     a minute: the static analyser; its first run needs Python and PyPI

The last three run without the tests, or after them with --deep. Times are those of two processors.

  --match NAME    only tests whose name matches
  --mutants TEXT  with --mutate: only mutants that have the text in their name
  --seed TEXT     of the traces (default: gpulease)
  --traces N      how many (default: 300, deep 10000)
  --update-gas    writes gas.json, with which later runs compare: more than 5 % away fails
  --help

The last line is one JSON object with the figures. Exit code 1: something failed.
`;

/** Fails below. */
const leastBranches = 0.98;

interface Outcome {
  passed: number;
  readonly failures: string[];
  /** What the last line says, beside passed, failed and seconds. */
  readonly figures: Record<string, unknown>;
}

const say = (line: string) => process.stderr.write(`${line}\n`);

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      deep: { type: 'boolean', default: false },
      coverage: { type: 'boolean', default: false },
      mutate: { type: 'boolean', default: false },
      slither: { type: 'boolean', default: false },
      'update-gas': { type: 'boolean', default: false },
      match: { type: 'string' },
      mutants: { type: 'string' },
      seed: { type: 'string', default: 'gpulease' },
      traces: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  const { deep, match, seed } = values;
  const traces = Number(values.traces ?? (deep ? 10_000 : 300));
  if (!Number.isSafeInteger(traces) || traces < 4) throw new Error('--traces must be a whole number from 4 on');
  const alone = values.coverage || values.mutate || values.slither;

  const started = Date.now();
  const outcome: Outcome = { passed: 0, failures: [], figures: {} };
  if (deep || !alone) await runTests(outcome, { deep, match, seed, traces, updateGas: values['update-gas'] });
  if (values.coverage) await runCoverage(outcome);
  if (values.mutate) await runMutation(outcome, seed, values.mutants);
  if (values.slither) await runSlither(outcome);

  for (const failure of outcome.failures) say(`FAILED ${failure}`);
  const seconds = Math.round((Date.now() - started) / 100) / 10;
  const counts = { passed: outcome.passed, failed: outcome.failures.length, seconds };
  process.stdout.write(`${JSON.stringify({ ...counts, ...outcome.figures })}\n`);
  if (outcome.failures.length > 0) process.exitCode = 1;
}

// ------------------------------------------------------------------------------------------------------------- the tests

interface TestOptions {
  readonly deep: boolean;
  readonly match: string | undefined;
  readonly seed: string;
  readonly traces: number;
  readonly updateGas: boolean;
}

async function runTests(outcome: Outcome, options: TestOptions): Promise<void> {
  const { deep, match, seed, updateGas } = options;
  say('compiling the contracts and their tests (a minute or two when something changed)');
  await build();
  const stale = await compiledAsTests();
  if (stale.length > 0)
    throw new Error(`a test imports ${stale.join(', ')}: use the interface, and remove out/ and cache/`);

  const cache = join(contractsFolder, 'cache');
  await mkdir(cache, { recursive: true });
  const path = join(cache, `traces-${process.pid}`);
  let report: ForgeReport;
  let counts: TraceCounts;
  try {
    counts = await writeTraces(path, seed, options.traces);
    say('testing');
    report = await test(match ? ['--match-test', match] : [], {
      env: {
        GPULEASE_TRACES: path,
        // A test that plays thousands of traces needs more than a block has.
        FOUNDRY_GAS_LIMIT: '18446744073709551615',
        ...(deep && { FOUNDRY_PROFILE: 'deep' }),
      },
    });
  } finally {
    for (const name of await readdir(cache)) {
      if (name.startsWith(`traces-${process.pid}.`)) await rm(join(cache, name));
    }
  }

  const { failures } = outcome;
  failures.push(...(await differencesToGenerated()));
  const passed = new Set<string>();
  const gas: Record<string, number> = {};
  const invariants: Record<string, { runs: number; calls: number; reverts: number }> = {};
  for (const [suite, { test_results: tests }] of Object.entries(report)) {
    for (const [signature, one] of Object.entries(tests)) {
      const name = signature.replace(/\(.*$/, '');
      if (one.status === 'Failure') failures.push(`${suite} ${name}: ${explain(one.reason, seed)}`);
      if (one.status === 'Skipped') failures.push(`${suite} ${name} was skipped`);
      if (one.status === 'Success') passed.add(name);
      const { runs = 0, calls = 0, reverts = 0 } = one.kind.Invariant ?? {};
      if (one.kind.Invariant) invariants[name.replace('invariant_', '')] = { runs, calls, reverts };
      for (const line of one.decoded_logs) {
        const [, call, amount] = /^(.+): ([0-9]+)$/.exec(line) ?? [];
        if (call) gas[call] = Number(amount);
      }
    }
  }
  outcome.passed += passed.size;
  if (!match) {
    failures.push(...(await brokenPromises(passed)));
    failures.push(...neverMet(counts).map((what) => `no trace met ${what}: the traces are too few, or too tame`));
  }
  tellInvariants(invariants);
  if (passed.has('test_I14_modelIsContract_1')) tellTraces(counts);
  await checkGas(outcome, gas, { update: updateGas, whole: !match });
  outcome.figures.gas = gas;
  outcome.figures.invariants = invariants;
  outcome.figures.traces = { traces: counts.traces, calls: counts.calls, accepted: counts.accepted };
}

/** Where contract and model part, the step is told as the model has it. */
function explain(reason: string | null, seed: string): string {
  const [, trace, step] = /Diverged\((\d+)[^,]*, (\d+)/.exec(reason ?? '') ?? [];
  if (trace === undefined) return reason ?? 'failed';
  return `${reason!.slice(0, 400)}\n  trace ${trace}, step ${step}: ${explainStep(seed, Number(trace), Number(step))}`;
}

function tellInvariants(invariants: Readonly<Record<string, { runs: number; calls: number; reverts: number }>>): void {
  for (const [name, { runs, calls, reverts }] of Object.entries(invariants)) {
    const [, number, words] = /^I0?(\d+)_(.*)$/.exec(name) ?? ['', '', name];
    const figures = [`${runs} runs`, `${calls.toLocaleString('en')} calls`, `${reverts} reverts`];
    say(`  ${`I${number}`.padEnd(4)}${words!.padEnd(46)}${figures.map((figure) => figure.padStart(16)).join('')}`);
  }
}

function tellTraces({ traces, calls, accepted, outcomes }: TraceCounts): void {
  const figures = [`${traces.toLocaleString('en')} traces`, `${calls.toLocaleString('en')} calls`];
  say(`  I14 ${'modelIsContract'.padEnd(46)}${figures.map((figure) => figure.padStart(16)).join('')}`);
  say(`      ${accepted.toLocaleString('en')} calls accepted; ${outcomes.size} kinds of outcome met`);
}

async function checkGas(
  outcome: Outcome,
  gas: Readonly<Record<string, number>>,
  { update, whole }: { readonly update: boolean; readonly whole: boolean },
): Promise<void> {
  const calls = Object.keys(gas).sort();
  const sorted = Object.fromEntries(calls.map((call) => [call, gas[call]!]));
  if (update && !whole) throw new Error('--update-gas needs all tests: leave --match out');
  if (update) await writeGas(sorted);
  const before = await readGas();
  // Of some tests, only what they measured is compared.
  const lookedFor = whole ? before : Object.fromEntries(Object.entries(before).filter(([call]) => call in gas));
  outcome.failures.push(...compareGas(lookedFor, sorted));
  const width = Math.max(0, ...calls.map((call) => call.length));
  for (const call of calls) {
    const many = /of (\d+)/.exec(call);
    const each = many ? `   ${Math.round(gas[call]! / Number(many[1])).toLocaleString('en')} each` : '';
    say(`  ${call.padEnd(width)}  ${gas[call]!.toLocaleString('en').padStart(9)} gas${each}`);
  }
}

/** What forge tested must be what programs deploy. */
async function differencesToGenerated(): Promise<string[]> {
  const pairs = [
    ['LeaseEscrow', leaseEscrow.bytecode],
    ['MockUSDC', mockUsdc.bytecode],
    ['GpuToken', gpuToken.bytecode],
  ] as const;
  const differences: string[] = [];
  for (const [name, generated] of pairs) {
    const file = join(contractsFolder, 'out', `${name}.sol`, `${name}.json`);
    const artifact = JSON.parse(await readFile(file, 'utf8')) as { bytecode: { object: string } };
    if (artifact.bytecode.object !== generated)
      differences.push(`generated bytecode of ${name} is not what was tested: npm run generate`);
  }
  return differences;
}

/** A tree is a promise of cases: each names the tests that keep it. Every function that changes something has a tree. */
async function brokenPromises(passed: ReadonlySet<string>): Promise<string[]> {
  const broken: string[] = [];
  const folder = join(contractsFolder, 'trees');
  const promised = new Set<string>();
  const functions = new Set<string>();
  for (const file of (await readdir(folder)).filter((name) => name.endsWith('.tree'))) {
    const tree = await readFile(join(folder, file), 'utf8');
    for (const word of tree.split('\n', 1)[0]!.split(', ')) functions.add(word);
    for (const [, list] of tree.matchAll(/\[((?:test|invariant)_[\w, ]+)\]/g)) {
      for (const name of list!.split(', ')) {
        promised.add(name);
        if (!passed.has(name)) broken.push(`${file} promises ${name}, which did not pass`);
      }
    }
  }
  for (const item of leaseEscrow.abi) {
    if (item.type !== 'function' || item.stateMutability !== 'nonpayable') continue;
    if (!functions.has(item.name)) broken.push(`no tree has the cases of ${item.name}()`);
  }
  for (const name of passed) {
    if (!promised.has(name)) broken.push(`${name} is in no tree: name the case that it keeps`);
  }
  return broken;
}

// ------------------------------------------------------------------------------------------- what the tests reach, and miss

async function runCoverage(outcome: Outcome): Promise<void> {
  say('measuring coverage, in a copy that is compiled for it (a minute or two)');
  const percent = ({ hit, found }: { hit: number; found: number }) => (found === 0 ? 1 : hit / found) * 100;
  const coverage = await measureCoverage();
  for (const { contract, branches, lines, functions, missed } of coverage) {
    const share = (name: string, one: { hit: number; found: number }) =>
      `${percent(one).toFixed(1).padStart(6)} % of ${one.found} ${name}`;
    say(
      `  ${contract.padEnd(26)}${share('branches', branches)}${share('lines', lines)}${share('functions', functions)}`,
    );
    if (percent(branches) < leastBranches * 100)
      outcome.failures.push(
        `${contract}: ${percent(branches).toFixed(1)} % of branches are tested; missed in lines ${missed.join(', ')}`,
      );
  }
  outcome.passed += 1;
  outcome.figures.coverage = Object.fromEntries(
    coverage.map(({ contract, branches }) => [contract, Math.round(percent(branches) * 10) / 10]),
  );
}

async function runMutation(outcome: Outcome, seed: string, only: string | undefined): Promise<void> {
  say('taking one thing out at a time, in a copy (a quarter of an hour)');
  const equivalents = await readEquivalents();
  let [done, started] = [0, 0];
  const { verdicts, unknown } = await runMutants({
    equivalents,
    only,
    async writeTraces(folder) {
      const path = join(folder, 'cache', 'traces');
      await writeTraces(path, seed, 200);
      return path;
    },
    report({ id, line, killedBy }, of) {
      if (done === 0) started = Date.now();
      done += 1;
      if (killedBy === undefined) say(`  SURVIVED line ${line}  ${id}`);
      if (done % 20 !== 0) return;
      const minutes = ((Date.now() - started) / done) * (of - done);
      say(`  ${done} of ${of} mutants; about ${Math.ceil(minutes / 60_000)} min to go`);
    },
  });
  const survivors = verdicts.filter(({ killedBy }) => killedBy === undefined);
  for (const { line, id } of survivors) {
    outcome.failures.push(`LeaseEscrow.sol:${line}: no test notices "${id}"`);
  }
  for (const id of only === undefined ? unknown : []) {
    outcome.failures.push(`equivalent-mutants.json names "${id}", which is no mutant any more`);
  }
  const killed = verdicts.length - survivors.length;
  const harmless = Object.keys(equivalents).length;
  say(`  ${killed} of ${verdicts.length} mutants are noticed; ${harmless} more are equivalent, with reasons`);
  outcome.passed += killed;
  outcome.figures.mutants = { killed, survived: survivors.length, equivalent: harmless };
}

async function runSlither(outcome: Outcome): Promise<void> {
  say('analysing with slither');
  const { findings, unanswered, outdated } = await analyse();
  for (const { id, check, impact } of findings) say(`  ${impact.padEnd(14)}${check.padEnd(22)}${id.slice(0, 12)}`);
  for (const { id, check, impact, description } of unanswered) {
    outcome.failures.push(
      `slither ${check} (${impact}), id ${id}, has no answer in slither-answers.json: ${description}`,
    );
  }
  for (const id of outdated) {
    outcome.failures.push(`slither-answers.json answers ${id}, which is not found any more`);
  }
  outcome.passed += findings.length - unanswered.length;
  outcome.figures.slither = { findings: findings.length, unanswered: unanswered.length };
}

main().catch((error: unknown) => {
  process.stderr.write(`test-contracts: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
