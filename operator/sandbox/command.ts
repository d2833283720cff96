/** Programs of the machine that are asked for one thing and end. Those that stay are in processes.ts. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import type { Report } from './processes.ts';

export interface CommandOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly timeoutSeconds?: number;
  /** Given on standard input. */
  readonly input?: string;
  readonly signal?: AbortSignal;
}

/** It ended with another status than 0. The message is for people, and ends with what it said. */
export class CommandError extends Error {
  readonly status: number | undefined;
  readonly stderr: string;
  readonly stdout: string;
  constructor(message: string, status: number | undefined, stderr: string, stdout = '') {
    super(message);
    this.name = 'CommandError';
    this.status = status;
    this.stderr = stderr;
    this.stdout = stdout;
  }
}

/** Standard output of a command. */
export async function command(program: string, args: readonly string[], options: CommandOptions = {}): Promise<string> {
  const { cwd, env, timeoutSeconds = 600, input, signal } = options;
  const running = promisify(execFile)(program, args, {
    cwd,
    env: { ...process.env, ...env } as NodeJS.ProcessEnv,
    timeout: timeoutSeconds * 1000,
    maxBuffer: 64 << 20,
    signal,
  });
  // A command that ends without reading it all is not our trouble; how it ended is.
  running.child.stdin?.on('error', () => undefined).end(input);
  try {
    return (await running).stdout;
  } catch (error) {
    if (signal?.aborted) throw error;
    const {
      code,
      killed,
      stderr = '',
      stdout = '',
    } = error as {
      code?: number | string;
      killed?: boolean;
      stderr?: string;
      stdout?: string;
    };
    const said = (stderr.trim() || stdout.trim()).slice(-3000);
    const how = killed ? `was ended after ${timeoutSeconds} s` : `failed (${code})`;
    const words = [program, ...args].join(' ');
    throw new CommandError(
      `${words.length > 300 ? `${words.slice(0, 300)} …` : words} ${how}${said ? `:\n${said}` : ''}`,
      typeof code === 'number' ? code : undefined,
      stderr,
      stdout,
    );
  }
}

/** Where a program is, by PATH and by the folders that an administrator has on it. */
export function whereIs(program: string, env: NodeJS.ProcessEnv = process.env): string | undefined {
  const folders = [...(env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return folders.map((folder) => join(folder, program)).find((path) => existsSync(path));
}

/**
 * Brings Debian packages for programs that are missing; `programs` maps each to its package. Throws with the packages' names
 * where they cannot be installed.
 */
export async function ensurePrograms(
  what: string,
  programs: Readonly<Record<string, string>>,
  report: Report,
  signal?: AbortSignal,
): Promise<void> {
  const missing = [
    ...new Set(
      Object.keys(programs)
        .filter((name) => !whereIs(name))
        .map((name) => programs[name]!),
    ),
  ];
  if (missing.length === 0) return;
  const by = `apt-get install --no-install-recommends ${missing.join(' ')}`;
  if (!existsSync('/usr/bin/apt-get'))
    throw new Error(`${what} needs what Debian calls ${missing.join(', ')}: install them`);
  if (process.getuid?.() !== 0) throw new Error(`${what} needs packages that only root can install: ${by}`);
  report(`installing Debian packages for ${what}: ${missing.join(', ')}`);
  const apt = (...args: string[]) =>
    command('apt-get', ['-o', 'DPkg::Lock::Timeout=300', '-qq', ...args], {
      env: { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' },
      signal,
    });
  const install = () => apt('install', '--yes', '--no-install-recommends', ...missing);
  await install().catch(async () => {
    signal?.throwIfAborted();
    await apt('update'); // most often the package lists are missing or old
    await install();
  });
}
