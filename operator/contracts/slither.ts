/**
 * Slither, the static analyser, on the contracts as they are shipped. Every finding needs an answer in
 * slither-answers.json; a finding without an answer fails, and so does an answer without a finding.
 *
 * It is a Python program: a virtual environment of its own is made once, outside of the repository.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { contractsFolder, copyProject, findForge } from './forge.ts';

export const slitherVersion = '0.11.6';

export interface Finding {
  /** See `idOf`. */
  readonly id: string;
  readonly check: string;
  readonly impact: string;
  readonly description: string;
}

export interface Answer {
  readonly check: string;
  /** What it is about, in a few words: ids say nothing to people. */
  readonly where: string;
  readonly answer: string;
}

export interface Analysis {
  readonly findings: readonly Finding[];
  readonly unanswered: readonly Finding[];
  /** Answers to what is not found any more. */
  readonly outdated: readonly string[];
}

export async function analyse(): Promise<Analysis> {
  const program = await ensureSlither();
  // What is shipped, and as it is shipped: without the tests, and their settings.
  const copy = await copyProject({ additional_compiler_profiles: undefined, compilation_restrictions: undefined });
  try {
    const file = join(copy.folder, 'slither.json');
    const PATH = [dirname(process.execPath), dirname(findForge()), process.env.PATH ?? ''].join(delimiter);
    const { stderr } = await run(program, ['.', '--json', file, '--filter-paths', 'node_modules|test/'], {
      cwd: copy.folder,
      env: { ...process.env, PATH },
    });
    const text = await readFile(file, 'utf8').catch(() => undefined);
    if (text === undefined) throw new Error(`slither gave no report:\n${stderr.slice(-3000)}`);
    const report = JSON.parse(text) as {
      success: boolean;
      error: string | null;
      results: { detectors?: readonly Finding[] };
    };
    if (!report.success) throw new Error(`slither failed: ${report.error}`);
    const findings: Finding[] = (report.results.detectors ?? []).map(({ check, impact, description }) => ({
      id: idOf(check, description),
      check,
      impact,
      description: description.trim(),
    }));
    // What it cannot read it cannot judge: that is a finding too.
    for (const [, name] of stderr.matchAll(/Impossible to generate IR for (\S+)/g)) {
      const description = `slither cannot read ${name}`;
      findings.push({ id: `unread:${name}`, check: 'unread', impact: 'Unknown', description });
    }
    const answers = JSON.parse(await readFile(join(contractsFolder, 'slither-answers.json'), 'utf8')) as Record<
      string,
      Answer
    >;
    return {
      findings,
      unanswered: findings.filter(({ id }) => !answers[id]?.answer),
      outdated: Object.keys(answers).filter((id) => !findings.some((finding) => finding.id === id)),
    };
  } finally {
    await copy.remove();
  }
}

/**
 * What was found, wherever it stands by now. The analyser's own ids hold the numbers of lines, so that a comment further up
 * would take its answer from every finding below.
 */
export function idOf(check: string, description: string): string {
  const words = description.replaceAll(/#\d+(-\d+)?/g, '').trim();
  return `${check}:${createHash('sha256').update(words).digest('hex').slice(0, 16)}`;
}

/** Path of the program. Installs it where it is missing, and says what is needed where that fails. */
async function ensureSlither(): Promise<string> {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'gpulease');
  const folder = join(cache, `slither-${slitherVersion}`);
  const program = join(folder, 'bin', 'slither');
  if (existsSync(program)) return program;
  process.stderr.write(`installing slither ${slitherVersion} from PyPI into ${folder}, once\n`);
  await mkdir(cache, { recursive: true });
  // Programs in a virtual environment name its path, so it is made where it stays; a stamp by rename is not possible.
  await rm(folder, { recursive: true, force: true });
  const steps: readonly (readonly [string, readonly string[]])[] = [
    ['python3', ['-m', 'venv', folder]],
    [join(folder, 'bin', 'pip'), ['install', '--quiet', `slither-analyzer==${slitherVersion}`]],
  ];
  for (const [command, args] of steps) {
    const { code, stderr } = await run(command, args, {}).catch((error: Error) => ({ code: 1, stderr: error.message }));
    if (code === 0) continue;
    await rename(folder, `${folder}.broken`).catch(() => undefined);
    await rm(`${folder}.broken`, { recursive: true, force: true });
    throw new Error(
      `slither cannot be installed (${command} ${args.join(' ')}): ${stderr.trim().slice(-500)}\n` +
        'It needs Python 3.9 or newer with venv (on Debian: python3-venv) and PyPI.',
    );
  }
  return program;
}

function run(
  program: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv },
): Promise<{ code: number; stderr: string }> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { ...options, maxBuffer: 1 << 27 }, (error, _, stderr) => {
      if (error && typeof error.code !== 'number') reject(error);
      else resolve({ code: Number(error?.code ?? 0), stderr });
    });
  });
}
