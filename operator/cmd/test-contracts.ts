#!/usr/bin/env node
/** Builds and tests the contracts with forge, and says what their calls cost. */
import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { gpuToken } from '../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../contracts/generated/lease-escrow.ts';
import { mockUsdc } from '../contracts/generated/mock-usdc.ts';

const help = `Builds and tests the contracts with forge: unit tests, invariants, gas; offline.

  npm run test:contracts [-- --deep] [-- --match NAME]

  --deep        10,000 runs of each fuzz test and 1000 × 100 of each invariant, instead of 256 and 64 × 60
  --match NAME  only tests whose name matches
  --help

The last line is one JSON object: {"passed", "failed", "seconds", "gas": {…}}.
`;

const contracts = fileURLToPath(new URL('../contracts/', import.meta.url));

interface ForgeTest {
  readonly status: 'Success' | 'Failure' | 'Skipped';
  readonly reason: string | null;
  readonly decoded_logs: readonly string[];
  readonly kind: Record<string, { runs?: number; calls?: number; reverts?: number } | undefined>;
}
type ForgeReport = Record<string, { test_results: Record<string, ForgeTest> }>;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      deep: { type: 'boolean', default: false },
      match: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  const started = Date.now();
  const forge = findForge();
  process.stderr.write('compiling the contracts and their tests (a minute or two when something changed)\n');
  await runShown(forge, ['build', '--quiet'], values.deep);
  process.stderr.write('testing\n');
  const report = await testWith(forge, values.match, values.deep);

  const failures: string[] = await differencesToGenerated();
  const passed = new Set<string>();
  const gas: Record<string, number> = {};
  for (const [suite, { test_results: tests }] of Object.entries(report)) {
    for (const [name, test] of Object.entries(tests)) {
      if (test.status === 'Failure') failures.push(`${suite} ${name}: ${test.reason ?? 'failed'}`);
      else passed.add(name.replace(/\(.*$/, ''));
      if (test.kind.Invariant)
        process.stderr.write(`  ${name}: ${test.kind.Invariant.runs} runs, ${test.kind.Invariant.calls} calls\n`);
      for (const line of test.decoded_logs) {
        const [, call, amount] = /^(.+): ([0-9]+)$/.exec(line) ?? [];
        if (call) gas[call] = Number(amount);
      }
    }
  }
  // A tree is a promise of cases: each names the test that keeps it.
  if (!values.match) failures.push(...(await unkeptPromises(passed)));

  const width = Math.max(0, ...Object.keys(gas).map((call) => call.length));
  for (const [call, amount] of Object.entries(gas)) {
    process.stderr.write(`  ${call.padEnd(width)}  ${amount.toLocaleString('en').padStart(9)} gas\n`);
  }
  for (const failure of failures) process.stderr.write(`FAILED ${failure}\n`);
  const seconds = Math.round((Date.now() - started) / 100) / 10;
  process.stdout.write(`${JSON.stringify({ passed: passed.size, failed: failures.length, seconds, gas })}\n`);
  if (failures.length > 0) process.exitCode = 1;
}

/** The platform's npm package, or PATH. */
function findForge(): string {
  const arch = process.arch === 'x64' ? 'amd64' : process.arch;
  try {
    const manifest = createRequire(import.meta.url).resolve(
      `@foundry-rs/forge-${process.platform}-${arch}/package.json`,
    );
    const program = join(dirname(manifest), 'bin', 'forge');
    if (existsSync(program)) return program;
  } catch {
    // An optional dependency: other platforms bring their own.
  }
  const onPath = (process.env.PATH ?? '')
    .split(delimiter)
    .map((folder) => join(folder, 'forge'))
    .find(existsSync);
  if (onPath) return onPath;
  throw new Error(
    `there is no forge for ${process.platform}-${process.arch}: install Foundry 1.7 or newer (https://getfoundry.sh)`,
  );
}

/** `solc-js` starts with env node: the Node that runs us must be the one it finds. */
function environment(deep: boolean): NodeJS.ProcessEnv {
  const path = `${dirname(process.execPath)}${delimiter}${process.env.PATH ?? ''}`;
  return { ...process.env, PATH: path, ...(deep && { FOUNDRY_PROFILE: 'deep' }) };
}

function runShown(program: string, args: readonly string[], deep: boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: contracts, env: environment(deep), stdio: ['ignore', 2, 2] });
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`forge ${args[0]} failed; see above`))));
  });
}

async function testWith(forge: string, match: string | undefined, deep: boolean): Promise<ForgeReport> {
  const args = ['test', '--json', '-vv', ...(match ? ['--match-test', match] : [])];
  const options = { cwd: contracts, env: environment(deep), maxBuffer: 1 << 28 };
  // Failed tests make forge exit with 1, and its report is there all the same.
  const output = await promisify(execFile)(forge, args, options).catch(
    (error: { stdout?: string; stderr?: string }) => error,
  );
  const line = output.stdout?.split('\n').find((candidate) => candidate.startsWith('{'));
  if (!line) throw new Error(`forge gave no report: ${(output.stderr ?? String(output)).slice(0, 2000)}`);
  return JSON.parse(line) as ForgeReport;
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
    const artifact = JSON.parse(await readFile(join(contracts, 'out', `${name}.sol`, `${name}.json`), 'utf8'));
    if (artifact.bytecode.object !== generated)
      differences.push(`generated bytecode of ${name} is not what was tested: npm run generate`);
  }
  return differences;
}

async function unkeptPromises(passed: ReadonlySet<string>): Promise<string[]> {
  const unkept: string[] = [];
  for (const file of (await readdir(join(contracts, 'trees'))).filter((name) => name.endsWith('.tree'))) {
    const tree = await readFile(join(contracts, 'trees', file), 'utf8');
    for (const [, test] of tree.matchAll(/\[(\w+)\]/g)) {
      if (!passed.has(test!)) unkept.push(`${file} promises ${test}, which did not pass`);
    }
  }
  return unkept;
}

main().catch((error: unknown) => {
  process.stderr.write(`test-contracts: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
