#!/usr/bin/env node
/** `npm run test:faults`: breaks the real processes of a sandbox one after the other, and looks whether anything was lost. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Checker, createChecker } from '../../test/faults/check.ts';
import { asWanted, type Lab, startLab, unsigned } from '../../test/faults/lab.ts';
import type { Scenario } from '../../test/faults/scenario.ts';
import { scenarios } from '../../test/faults/scenarios/all.ts';
import { earlierCommit } from '../../test/faults/scenarios/upgrade.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { integer, parseOptions, text, UsageError } from './options.ts';

const usage = `
Breaks things on purpose, in a sandbox of real processes: two control planes, GPU nodes, a chain, the operator, the gateway.
After every scenario: no second escrow, no orphan, no pod restarted, ended pods final, money conserved, and billed what was served.

  npm run test:faults                          one after the other, 20 minutes
  npm run test:faults -- --only gateway-killed only those whose names begin so
  npm run test:faults -- --list                names them
`;

const declared = {
  only: {
    description: 'Only scenarios whose names begin so.',
    value: 'NAME',
    many: true as const,
    parse: (t: string) => t,
  },
  list: { description: 'Names the scenarios and ends.', parse: () => true },
  all: {
    description: 'Also those that differ from others by a moment or a duration only; 40 minutes.',
    parse: () => true,
  },
  long: { description: 'Also those that take many minutes each.', parse: () => true },
  seed: integer('Of the random kills.', 'NUMBER', 0, 1_000_000, 1),
  verbose: { description: 'Shows what the sandbox reports.', parse: () => true },
  dir: text(
    'Where the clusters and logs live while it runs.',
    'DIR',
    join(tmpdir(), `gpulease-faults-${process.getuid?.() ?? 0}`),
  ),
};

interface Outcome {
  readonly name: string;
  readonly verdict: 'ok' | 'failed' | 'skipped';
  readonly seconds: number;
  /** Of the base lease: seconds in which its node was Ready and that are missing from its bill since. */
  readonly unbilledSeconds?: number;
  readonly why?: string;
}

/** Of the base lease, in one scenario, in seconds. What is signed for is looked at between two vouchers, so neither is exact. */
const mostOverbilled = 2.5;
const mostUnbilled = 6;
/** One every two seconds: what is missing after so many more is missing for good. */
const lateVouchers = 5;

const started = Date.now();
const elapsed = () => (Date.now() - started) / 1000;
const tenth = (seconds: number) => Math.round(seconds * 10) / 10;

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const all = scenarios(options.seed);
  const named = (one: Scenario) => options.only.some((name) => one.name.startsWith(name));
  const chosen = all.filter((one) =>
    options.only.length > 0
      ? named(one) && (options.long || !one.long || options.only.includes(one.name))
      : (options.long || !one.long) && (options.all || !one.onlyWithAll),
  );
  if (options.list) {
    for (const one of all)
      console.log(
        `${one.name.padEnd(44)}${one.broke}${one.long ? ' (with --long)' : one.onlyWithAll ? ' (with --all)' : ''}`,
      );
    return;
  }
  if (chosen.length === 0) throw new UsageError(`--only ${options.only.join(' ')}: no scenario begins so; see --list`);

  const abort = new AbortController();
  const report = (line: string) => {
    if (options.verbose) console.log(`${elapsed().toFixed(1).padStart(7)} s  ${line}`);
  };
  let bench: Bench | undefined;
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    console.log('clearing up');
    await bench?.lab.stop();
  }, console.log);

  const outcomes: Outcome[] = [];
  let sandboxes = 0;
  const totals = { escrows: 0, leases: 0, pods: 0, checks: 0 };
  const leaks: string[] = [];
  const leave = async () => {
    const left = bench;
    bench = undefined;
    if (!left) return;
    for (const key of Object.keys(totals) as (keyof typeof totals)[]) totals[key] += left.checker.totals[key];
    // What its programs wrote is searched for secrets then.
    await left.lab.stop().catch((error: Error) => {
      leaks.push(error.message);
      console.log(`FAILED: ${error.message}`);
      process.exitCode = 1;
    });
  };
  console.log(row('scenario', 'what was broken', 'seconds', 'verdict'));
  try {
    for (const scenario of chosen) {
      if (!bench) {
        bench = await prepare(options.dir, report, abort.signal);
        sandboxes += 1;
        console.log(
          `   sandbox ready after ${elapsed().toFixed(0)} s${bench.lab.sandbox.simulated ? ' (pods are simulated)' : ''}`,
        );
      }
      const outcome = await runOne(scenario, bench, report);
      outcomes.push(outcome);
      if (outcome.verdict === 'failed' && !(await recovered(bench))) await leave();
    }
  } catch (error) {
    if (abort.signal.aborted) return;
    console.log(`failed: ${(error as Error).message}\nlogs: ${join(options.dir, 'programs/log')}`);
    process.exitCode = 1;
  } finally {
    if (!abort.signal.aborted) {
      await leave();
      off();
    }
  }
  const count = (verdict: Outcome['verdict']) => outcomes.filter((one) => one.verdict === verdict).length;
  if (count('failed') > 0 || count('ok') === 0) process.exitCode = 1;
  const slowest = outcomes.reduce((worst, one) => (one.seconds > worst.seconds ? one : worst), outcomes[0]!);
  console.log(
    JSON.stringify({
      scenarios: outcomes.length,
      ok: count('ok'),
      failed: count('failed'),
      skipped: count('skipped'),
      failures: outcomes.filter((one) => one.verdict === 'failed').map(({ name, why }) => ({ name, why })),
      slowest: slowest && { name: slowest.name, seconds: slowest.seconds },
      recoverySeconds: Object.fromEntries(
        outcomes.filter((one) => one.verdict === 'ok').map((one) => [one.name, one.seconds]),
      ),
      unbilledSeconds: Object.fromEntries(
        outcomes.filter((one) => (one.unbilledSeconds ?? 0) !== 0).map((one) => [one.name, one.unbilledSeconds]),
      ),
      ...totals,
      leaks: leaks.length,
      sandboxes,
      seconds: tenth(elapsed()),
    }),
  );
}

interface Bench {
  readonly lab: Lab;
  readonly checker: Checker;
}

async function prepare(dir: string, report: (line: string) => void, signal: AbortSignal): Promise<Bench> {
  const lab = await startLab({ dir, report, signal });
  const checker = await createChecker(lab);
  await asWanted(lab);
  await checker.check();
  return { lab, checker };
}

async function runOne(scenario: Scenario, { lab, checker }: Bench, report: (line: string) => void): Promise<Outcome> {
  const { name } = scenario;
  const missing = await lacking(scenario, lab);
  if (missing) {
    console.log(row(name, scenario.broke, '', `skipped: ${missing}`));
    return { name, verdict: 'skipped', seconds: 0, why: missing };
  }
  report(`scenario ${name}`);
  let since = Date.now();
  let seconds: number | undefined;
  const notes: string[] = [];
  const unsignedBefore = await unsigned(lab);
  const wanted = async (look: () => Promise<void> = () => asWanted(lab)) => {
    await look();
    seconds ??= (Date.now() - since) / 1000;
  };
  try {
    await scenario.run(lab, {
      mended() {
        since = Date.now();
        seconds = undefined;
      },
      wanted,
      note: (words) => void notes.push(words),
    });
    lab.release();
    await asWanted(lab);
    seconds ??= (Date.now() - since) / 1000;
    await checker.check();
    const most = scenario.lost ?? mostUnbilled;
    const missing = async () => tenth((await unsigned(lab)) - unsignedBefore);
    let unbilledSeconds = await missing();
    // Vouchers that were long on their way come first, and those that were signed since after them.
    for (let late = 0; late < lateVouchers && unbilledSeconds > most; late += 1) unbilledSeconds = await missing();
    if (unbilledSeconds < -mostOverbilled)
      throw new Error(`${-unbilledSeconds} s were billed in which the node was not Ready`);
    if (unbilledSeconds > most)
      throw new Error(`${unbilledSeconds} s are missing from the bill in which the node was Ready`);
    if (unbilledSeconds > mostOverbilled) notes.push(`${unbilledSeconds} s not billed`);
    console.log(
      row(name, scenario.broke, seconds!.toFixed(1), `ok${notes.length > 0 ? ` (${notes.join(', ')})` : ''}`),
    );
    return { name, verdict: 'ok', seconds: tenth(seconds!), unbilledSeconds };
  } catch (error) {
    lab.signal.throwIfAborted();
    const why = (error as Error).message.slice(0, 600);
    console.log(row(name, scenario.broke, '', `FAILED: ${why}`));
    return { name, verdict: 'failed', seconds: 0, why };
  }
}

async function lacking(scenario: Scenario, lab: Lab): Promise<string | undefined> {
  if (scenario.needs === 'real' && lab.sandbox.simulated) return 'pods are simulated here';
  if (scenario.needs !== 'git') return undefined;
  return earlierCommit().then(
    () => undefined,
    (error: Error) => error.message.split('\n')[0],
  );
}

/** After a failure: can the same sandbox be used further? */
async function recovered({ lab, checker }: Bench): Promise<boolean> {
  try {
    await lab.restore();
    await asWanted(lab, 120);
    await checker.check(30);
    return true;
  } catch (error) {
    lab.signal.throwIfAborted();
    console.log(`   a new sandbox is needed: ${(error as Error).message.slice(0, 300)}`);
    return false;
  }
}

const row = (name: string, broke: string, seconds: string, verdict: string) =>
  `${name.padEnd(44)}${broke.padEnd(74)}${seconds.padStart(8)}  ${verdict}`;

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
