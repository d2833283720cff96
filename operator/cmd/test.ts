#!/usr/bin/env node
/** `npm test`: brings what the tests need, then runs them all: contracts, unit, conformance, integration on real parts. */
import { spawn } from 'node:child_process';
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

function run(what: string, args: readonly string[]): Promise<boolean> {
  report(what);
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: root, stdio: 'inherit' });
    const pass = (signal: NodeJS.Signals) => child.kill(signal);
    process.once('SIGINT', pass).once('SIGTERM', pass);
    child.once('error', reject);
    child.once('exit', (code) => {
      process.removeListener('SIGINT', pass).removeListener('SIGTERM', pass);
      resolve(code === 0);
    });
  });
}

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  if (!options.quick) {
    const packages = await ensureNodePackages({ report });
    if (!packages.available) report(`no real node here (${packages.reason}): pods are simulated`);
    await ensureTools({ need: packages.available ? ['plane', 'node'] : ['plane', 'hollow'], report });
  }
  const vitest = join(root, 'node_modules/vitest/vitest.mjs');
  const good = [
    await run('contracts (forge)', ['operator/cmd/test-contracts.ts', '--quick']),
    await run('unit tests', [vitest, 'run', '--project', 'unit']),
    options.quick ||
      (await run('integration tests, on real control planes, nodes and chain', [
        vitest,
        'run',
        '--project',
        'integration',
      ])),
  ];
  report(good.every(Boolean) ? 'all passed' : 'some failed');
  process.exitCode = good.every(Boolean) ? 0 : 1;
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
