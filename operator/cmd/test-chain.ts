#!/usr/bin/env node
/** `npm run test:chain`: breaks chain, endpoints and payers one after the other, and looks whether anything was paid twice or lost. */
import { checkChain } from '../../test/chain/check.ts';
import { type ChainLab, type Mode, startChainLab } from '../../test/chain/lab.ts';
import type { ChainScenario } from '../../test/chain/scenario.ts';
import { chainScenarios } from '../../test/chain/scenarios/all.ts';
import { createSecrets } from '../../test/support/secrets.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { choice, parseOptions, UsageError } from './options.ts';

const usage = `
Breaks things on purpose between the outbox and a real chain: anvil, behind endpoints that lose answers, lag and lie; payers
that are killed. Each scenario runs twice, with a block for each transaction and with a block a second; the load of 500 leases
with the first alone. After each: nothing waits, deposits = paid + fee + refunded + held, every bill is fair.

  npm run test:chain                          all, ten minutes
  npm run test:chain -- --only reorg          only those whose names begin so
  npm run test:chain -- --list                names them
`;

const declared = {
  only: {
    description: 'Only scenarios whose names begin so.',
    value: 'NAME',
    many: true as const,
    parse: (t: string) => t,
  },
  mode: choice('How blocks come.', ['both', 'automine', 'block-time'], 'both'),
  list: { description: 'Names the scenarios and ends.', parse: () => true },
};

interface Outcome {
  readonly name: string;
  readonly of: string;
  readonly mode: Mode;
  readonly verdict: 'ok' | 'failed' | 'skipped';
  readonly seconds: number;
  readonly why?: string;
}

const started = Date.now();

/** All that is written is searched: the words of nodes, contracts and outboxes stand in it, and what payers of their own said. */
const secrets = createSecrets();
let written = '';
function write(line: string): void {
  console.log(line);
  written += `${line}\n`;
}
const tenth = (milliseconds: number) => Math.round(milliseconds / 100) / 10;
const row = (name: string, mode: string, broke: string, seconds: string, seen: string) =>
  `${name.padEnd(26)}${mode.padEnd(14)}${broke.padEnd(112)}${seconds.padStart(8)}  ${seen}`;

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const chosen = chainScenarios.filter(
    ({ name }) => options.only.length === 0 || options.only.some((begin) => name.startsWith(begin)),
  );
  if (options.list) {
    for (const { name, of, broke } of chainScenarios) console.log(`${name.padEnd(26)}${of.padEnd(24)}${broke}`);
    return;
  }
  if (chosen.length === 0) throw new UsageError(`--only ${options.only.join(' ')}: no scenario begins so; see --list`);
  const modes: Mode[] = [];
  if (options.mode !== 'block-time') modes.push('automine');
  if (options.mode !== 'automine') modes.push('block-time 1');
  if (!modes.includes('automine') && chosen.every(({ automineOnly }) => automineOnly))
    throw new UsageError(`${chosen.map(({ name }) => name).join(', ')}: run with --mode automine, see --help`);

  let lab: ChainLab | undefined;
  let stopped = false;
  const off = stopWithSignals(async () => {
    stopped = true;
    await lab?.stop();
  }, console.log);
  const outcomes: Outcome[] = [];
  let escrows = 0;
  write(row('scenario', 'blocks', 'what was broken', 'seconds', 'what was seen'));
  try {
    for (const mode of modes) {
      for (const scenario of chosen) {
        if (stopped) return;
        if (scenario.automineOnly && mode !== 'automine') continue;
        if (!lab) {
          lab = await startChainLab(mode, (text) => {
            written += text;
          });
          for (const { privateKey } of lab.anvil.accounts) secrets.add('a private key of the chain', privateKey);
        }
        const outcome = await runOne(scenario, lab);
        outcomes.push(outcome);
        // What failed may have left anything behind: others begin with a chain of their own.
        if (outcome.verdict === 'failed') {
          await lab.stop();
          lab = undefined;
        }
      }
      if (lab) escrows += await checkChain(lab);
      await lab?.stop();
      lab = undefined;
    }
  } finally {
    if (!stopped) {
      await lab?.stop();
      off();
    }
  }
  const count = (verdict: Outcome['verdict']) => outcomes.filter((one) => one.verdict === verdict).length;
  const leaks = secrets.search('what was written', written);
  for (const { what, where } of leaks) console.log(`FAILED: ${what} stands in ${where}`);
  if (count('failed') > 0 || count('ok') === 0 || leaks.length > 0) process.exitCode = 1;
  const rows: Record<string, number> = {};
  for (const { of, verdict } of outcomes) if (verdict === 'ok') rows[of] = (rows[of] ?? 0) + 1;
  console.log(
    JSON.stringify({
      rows: outcomes.length,
      ok: count('ok'),
      failed: count('failed'),
      skipped: count('skipped'),
      failures: outcomes.filter((one) => one.verdict === 'failed').map(({ name, mode, why }) => ({ name, mode, why })),
      cases: rows,
      leaks: leaks.length,
      searched: { secrets: secrets.size, bytes: Buffer.byteLength(written) },
      escrows,
      seconds: tenth(Date.now() - started),
    }),
  );
}

async function runOne(scenario: ChainScenario, lab: ChainLab): Promise<Outcome> {
  const { name, of, broke } = scenario;
  const { mode } = lab;
  if (scenario.missing) {
    write(row(name, mode, broke, '', `skipped: ${scenario.missing}`));
    return { name, of, mode, verdict: 'skipped', seconds: 0, why: scenario.missing };
  }
  const since = Date.now();
  try {
    const seen = await scenario.run(lab);
    await lab.mend();
    await checkChain(lab);
    const seconds = tenth(Date.now() - since);
    write(row(name, mode, broke, seconds.toFixed(1), `ok: ${seen}`));
    return { name, of, mode, verdict: 'ok', seconds };
  } catch (error) {
    const why = String((error as Error).message).slice(0, 600);
    write(row(name, mode, broke, tenth(Date.now() - since).toFixed(1), `FAILED: ${why}`));
    if (process.env.GPULEASE_VERBOSE) write(String((error as Error).stack));
    return { name, of, mode, verdict: 'failed', seconds: tenth(Date.now() - since), why };
  }
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
