#!/usr/bin/env node
/** `npm test`: brings what the tests need, then runs them all: contracts, unit, conformance, integration on real parts. */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensureNodePackages } from '../sandbox/clusters/node-packages.ts';
import { ensureTools } from '../sandbox/tools/tools.ts';
import { parseOptions, UsageError } from './options.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

const usage = `
Runs the tests. What they need is brought first, and named before it is installed.

  npm test               contracts, unit tests, and integration tests on real control planes, a real kubelet and anvil
  npm test -- --quick    contracts and unit tests alone: nothing is installed or started
`;

const declared = { quick: { description: 'Only what needs no processes beside it.', parse: () => true } };

const started = Date.now();
const report = (line: string) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}`);

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Runs a program of ours; its output is shown, and its last line of standard output kept. */
function run(what: string, args: readonly string[]): Promise<{ good: boolean; lastLine: string }> {
  report(what);
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    let tail = '';
    child.stdout.on('data', (chunk: Buffer) => {
      process.stdout.write(chunk);
      tail = (tail + chunk.toString('utf8')).slice(-65_536);
    });
    const pass = (signal: NodeJS.Signals) => child.kill(signal);
    process.once('SIGINT', pass).once('SIGTERM', pass);
    child.once('error', reject);
    child.once('close', (code) => {
      process.removeListener('SIGINT', pass).removeListener('SIGTERM', pass);
      resolve({ good: code === 0, lastLine: tail.trimEnd().split('\n').at(-1) ?? '' });
    });
  });
}

/** A suite that could not even say how it went counts as one failure. */
const lost: Counts = { passed: 0, failed: 1, skipped: 0 };

async function contracts(): Promise<Counts> {
  const { good, lastLine } = await run('contracts (forge)', ['operator/cmd/test-contracts.ts']);
  if (!lastLine.startsWith('{')) return lost;
  const { passed, failed } = JSON.parse(lastLine) as { passed: number; failed: number };
  return { passed, failed: good ? failed : Math.max(1, failed), skipped: 0 };
}

async function vitest(project: string, what: string): Promise<Counts> {
  const dir = await mkdtemp(join(tmpdir(), 'gpulease-results-'));
  const file = join(dir, 'results.json');
  try {
    const program = join(root, 'node_modules/vitest/vitest.mjs');
    const { good } = await run(what, [
      program,
      'run',
      '--project',
      project,
      '--reporter=default',
      '--reporter=json',
      `--outputFile=${file}`,
    ]);
    const text = await readFile(file, 'utf8').catch(() => undefined);
    if (text === undefined) return lost;
    const { numPassedTests, numFailedTests, numPendingTests } = JSON.parse(text) as Record<string, number>;
    const failed = numFailedTests ?? 0;
    return { passed: numPassedTests ?? 0, failed: good ? failed : Math.max(1, failed), skipped: numPendingTests ?? 0 };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  if (!options.quick) {
    const packages = await ensureNodePackages({ report });
    if (!packages.available) report(`no real node here (${packages.reason}): pods are simulated`);
    // All that any test asks for: a test has less time than a build takes.
    const onNodes = ['node', 'proxy', 'metrics'] as const;
    await ensureTools({ need: ['plane', 'hollow', ...(packages.available ? onNodes : [])], report });
  }
  const suites = [await contracts(), await vitest('unit', 'unit tests and simulation')];
  if (!options.quick)
    suites.push(await vitest('integration', 'integration tests, on real control planes, nodes and chain'));
  const sum = (count: keyof Counts) => suites.reduce((total, suite) => total + suite[count], 0);
  report('done');
  console.log(`${sum('passed')} passed, ${sum('failed')} failed, ${sum('skipped')} skipped`);
  process.exitCode = sum('failed') === 0 && sum('passed') > 0 ? 0 : 1;
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
