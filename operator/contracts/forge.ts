/**
 * Runs forge on the contracts: here, or in a copy, where sources and settings can be changed without anybody noticing.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const contractsFolder = fileURLToPath(new URL('.', import.meta.url));
const nodeModules = fileURLToPath(new URL('../../node_modules/', import.meta.url));

export interface ForgeTest {
  readonly status: 'Success' | 'Failure' | 'Skipped';
  readonly reason: string | null;
  readonly decoded_logs: readonly string[];
  readonly kind: Record<string, { runs?: number; calls?: number; reverts?: number } | undefined>;
}
/** By suite, then by test. */
export type ForgeReport = Record<string, { readonly test_results: Record<string, ForgeTest> }>;

export interface ForgeOutput {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** The platform's npm package, or PATH. */
export function findForge(): string {
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

/**
 * Runs it to its end. Failed tests are no error: its exit code and words are the answer. `solc-js` starts with env node, so
 * the Node.js that runs us comes first in PATH.
 */
export function runForge(
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<ForgeOutput> {
  const PATH = [dirname(process.execPath), dirname(findForge()), process.env.PATH ?? ''].join(delimiter);
  const env = { ...process.env, PATH, ...options.env };
  return new Promise((resolve, reject) => {
    execFile(
      findForge(),
      args,
      { cwd: options.cwd ?? contractsFolder, env, maxBuffer: 1 << 28 },
      (error, stdout, stderr) => {
        if (error && typeof error.code !== 'number') reject(error);
        else resolve({ code: Number(error?.code ?? 0), stdout, stderr });
      },
    );
  });
}

/** Throws with the compiler's words. */
export async function build(cwd = contractsFolder): Promise<void> {
  const { code, stdout, stderr } = await runForge(['build', '--quiet'], { cwd });
  if (code !== 0) throw new Error(`the contracts or their tests do not compile:\n${stdout}${stderr}`);
}

/** Throws when forge says nothing that can be read. */
export async function test(
  args: readonly string[],
  options: Parameters<typeof runForge>[1] = {},
): Promise<ForgeReport> {
  const { stdout, stderr } = await runForge(['test', '--json', '-vv', ...args], options);
  const line = stdout.split('\n').find((candidate) => candidate.startsWith('{'));
  if (!line) throw new Error(`forge gave no report: ${(stderr || stdout).slice(0, 2000)}`);
  return JSON.parse(line) as ForgeReport;
}

/** A contract that tests import is compiled with their settings too, and could be tested instead of what is shipped. */
export async function compiledAsTests(): Promise<string[]> {
  const found: string[] = [];
  for (const name of ['LeaseEscrow', 'MockUSDC', 'GpuToken']) {
    const files = await readdir(join(contractsFolder, 'out', `${name}.sol`)).catch(() => []);
    if (files.some((file) => file !== `${name}.json`)) found.push(name);
  }
  return found;
}

export interface Copy {
  readonly folder: string;
  remove(): Promise<void>;
}

/**
 * The project with its libraries inside, in a temporary folder. Coverage and analysers need that: they do not find their way
 * through `../../node_modules`. `settings` replaces lines of foundry.toml, by their beginning; undefined removes one.
 */
export async function copyProject(settings: Readonly<Record<string, string | undefined>> = {}): Promise<Copy> {
  const folder = await mkdtemp(join(tmpdir(), 'gpulease-contracts-'));
  for (const part of ['src', 'test', 'solc-js']) {
    await cp(join(contractsFolder, part), join(folder, part), { recursive: true });
  }
  await mkdir(join(folder, 'node_modules'));
  await cp(join(nodeModules, '@openzeppelin'), join(folder, 'node_modules/@openzeppelin'), {
    recursive: true,
    filter: (path) => !path.endsWith('.json') || path.endsWith('package.json'),
  });
  await symlink(join(nodeModules, 'solc'), join(folder, 'node_modules/solc'));
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }\n');

  const lines = (await readFile(join(contractsFolder, 'foundry.toml'), 'utf8')).replaceAll('../../', '').split('\n');
  const changed = lines.flatMap((line) => {
    const key = Object.keys(settings).find((start) => line.startsWith(start));
    if (key === undefined) return [line];
    const value = settings[key];
    return value === undefined ? [] : [value];
  });
  await writeFile(join(folder, 'foundry.toml'), changed.join('\n'));
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) };
}
