/**
 * What processes have used, from /proc: CPU time to a hundredth of a second, and memory. Of a process and all that it
 * started, so that a helper process would not hide its share.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** proc(5): times are told in ticks of USER_HZ, which is 100 on every Linux that runs Node.js. */
const ticksPerSecond = 100;

interface Stat {
  readonly parent: number;
  readonly seconds: number;
}

/** Undefined: it has ended. */
export function statOf(pid: number | string, read = (path: string) => readFileSync(path, 'utf8')): Stat | undefined {
  let text: string;
  try {
    text = read(`/proc/${pid}/stat`);
  } catch {
    return undefined;
  }
  // The second field is the program's name in brackets, which may hold anything; after it come state, ppid, …
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const field = (number: number) => Number(fields[number - 3]);
  // utime, stime, and those of children that have ended and were waited for.
  const ticks = field(14) + field(15) + field(16) + field(17);
  return { parent: field(4), seconds: ticks / ticksPerSecond };
}

/** CPU seconds that these processes and their descendants have used since they were started. */
export function cpuSeconds(pids: readonly number[]): number {
  const all = new Map<number, Stat>();
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const stat = statOf(entry);
    if (stat) all.set(Number(entry), stat);
  }
  const wanted = new Set(pids);
  const isWanted = (pid: number, depth = 0): boolean =>
    wanted.has(pid) || (depth < 16 && all.has(pid) && isWanted(all.get(pid)!.parent, depth + 1));
  let sum = 0;
  for (const [pid, { seconds }] of all) if (isWanted(pid)) sum += seconds;
  return sum;
}

/** Bytes of memory that are resident, and the most that ever were. */
export function memoryOf(pid: number): { readonly resident: number; readonly peak: number } {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  const value = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { resident: value('VmRSS'), peak: value('VmHWM') };
}

export type Group = Readonly<Record<string, readonly number[]>>;

export function cpuOf<G extends Group>(groups: G): { readonly [K in keyof G]: number } {
  return Object.fromEntries(Object.entries(groups).map(([name, pids]) => [name, cpuSeconds(pids)])) as never;
}

export const difference = <K extends string>(after: Readonly<Record<K, number>>, before: Readonly<Record<K, number>>) =>
  Object.fromEntries(Object.entries(after).map(([name, value]) => [name, (value as number) - before[name as K]])) as {
    readonly [N in K]: number;
  };

/** Resolves when these processes have used less than `cores` for a second, or after `mostSeconds`: what one alternative left
 * undone must not be counted to the next. */
export async function untilQuiet(
  pids: readonly number[],
  { cores = 0.15, mostSeconds = 20, signal }: { cores?: number; mostSeconds?: number; signal?: AbortSignal } = {},
): Promise<boolean> {
  const deadline = Date.now() + mostSeconds * 1000;
  let before = cpuSeconds(pids);
  while (Date.now() < deadline) {
    await sleep(1000, undefined, { signal });
    const now = cpuSeconds(pids);
    if (now - before < cores) return true;
    before = now;
  }
  return false;
}
