/**
 * A lock between processes of one machine: a file that names its holder, so that one that died is not waited for.
 */
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { identityOf } from './processes.ts';

/** What this machine must remember of its sandboxes until it is restarted. */
export const MACHINE_FOLDER = '/run/gpulease';

export interface LockOptions {
  /** Called once, when somebody else holds it. */
  readonly onWait?: () => void;
  readonly pollMs?: number;
}

/** Waits until this process holds the lock; the function returned gives it back. */
export async function takeLock(
  file: string,
  { onWait, pollMs = 500 }: LockOptions = {},
  signal?: AbortSignal,
): Promise<() => void> {
  const mine = JSON.stringify({ pid: process.pid, identity: identityOf(process.pid) });
  for (let waited = false; ; ) {
    signal?.throwIfAborted();
    try {
      writeFileSync(file, mine, { flag: 'wx' });
      return () => rmSync(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    if (isStale(file)) {
      rmSync(file, { force: true });
      continue;
    }
    if (!waited) onWait?.();
    waited = true;
    await sleep(pollMs, undefined, { signal });
  }
}

function isStale(file: string): boolean {
  try {
    const holder = JSON.parse(readFileSync(file, 'utf8')) as { pid: number; identity: string };
    return identityOf(holder.pid) !== holder.identity;
  } catch {
    // Being written at this moment, or gone: stale only when it stays unreadable.
    try {
      return Date.now() - statSync(file).mtimeMs > 5000;
    } catch {
      return false;
    }
  }
}

/** A lock that holds for all sandboxes of a machine, whoever's they are; root only. */
export function takeMachineLock(what: string, signal?: AbortSignal): Promise<() => void> {
  mkdirSync(MACHINE_FOLDER, { recursive: true });
  return takeLock(`${MACHINE_FOLDER}/${what}.lock`, { pollMs: 20 }, signal);
}
