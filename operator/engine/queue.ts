/**
 * Keys that need work. A key is in it once, however often it was added; is worked on by one worker at a time; and when
 * it is added meanwhile, is worked on again afterwards. What is added in one go is handed out at its end, so that a key of which
 * two watches tell, or one of them twice, is worked on once.
 *
 *   add ─► ready ─take─► working ─done─► out          add while working ─► again after done
 *           ▲
 *   delayed ┘ when due; one delay a key, the earliest
 */
import { type BackoffOptions, backoffMs, type Clock } from './clock.ts';
import type { EngineMetrics } from './metrics.ts';

export interface QueueOptions {
  readonly name: string;
  readonly clock: Clock;
  /** Keys that may wait, ready and delayed. Adding another one is refused and reported. */
  readonly maxLength?: number;
  readonly backoff?: BackoffOptions;
  readonly metrics?: EngineMetrics;
  readonly random?: () => number;
}

export interface Queue {
  /** False when the queue is full, or closed. */
  add(key: string, afterSeconds?: number): boolean;
  /** The next key; undefined once the queue is closed. */
  take(): Promise<string | undefined>;
  /** Must follow each take. */
  done(key: string): void;
  /** Adds with this key's back-off, at least `leastSeconds`. Returns how often it failed in a row. */
  retry(key: string, leastSeconds?: number): number;
  /** It went well: the next failure is a first one. */
  forget(key: string): void;
  /** Ready or delayed. */
  readonly length: number;
  readonly working: number;
  close(): void;
}

export const defaultBackoff: BackoffOptions = { baseSeconds: 0.25, maxSeconds: 60 };

export function createQueue(options: QueueOptions): Queue {
  const { name, clock, metrics } = options;
  const maxLength = options.maxLength ?? 100_000;
  const backoff = options.backoff ?? defaultBackoff;
  const ready = new Map<string, number>(); // key → since when, in the order of coming
  const again = new Set<string>(); // added while it is being worked on
  const working = new Map<string, number>(); // key → since when
  const failures = new Map<string, number>();
  const takers: ((key: string | undefined) => void)[] = [];
  const delayed = new Map<string, number>(); // key → due; the truth, of which the heap may hold outdated entries
  let heap: { key: string; dueMs: number }[] = [];
  let timer: { dueMs: number; cancel: () => void } | undefined;
  let handing = false;
  let closed = false;

  const length = () => ready.size + delayed.size + again.size;

  function makeReady(key: string) {
    if (working.has(key)) {
      again.add(key);
      return;
    }
    if (ready.has(key)) return;
    ready.set(key, clock.monotonicMs());
    metrics?.queueAdded?.(name, ready.size);
    if (handing) return;
    handing = true;
    queueMicrotask(() => {
      handing = false;
      hand();
    });
  }

  function hand() {
    while (takers.length > 0 && ready.size > 0) {
      const [key, since] = ready.entries().next().value!;
      ready.delete(key);
      working.set(key, clock.monotonicMs());
      metrics?.queueTaken?.(name, (clock.monotonicMs() - since) / 1000, ready.size);
      takers.shift()?.(key);
    }
  }

  function schedule() {
    while (heap[0] && delayed.get(heap[0].key) !== heap[0].dueMs) pop(heap);
    const next = heap[0];
    if (next?.dueMs === timer?.dueMs) return;
    timer?.cancel();
    timer = next && {
      dueMs: next.dueMs,
      cancel: clock.setTimeout(onDue, Math.max(0, next.dueMs - clock.monotonicMs())),
    };
  }

  function onDue() {
    timer = undefined;
    const nowMs = clock.monotonicMs();
    for (let next = heap[0]; next && next.dueMs <= nowMs; next = heap[0]) {
      pop(heap);
      if (delayed.get(next.key) !== next.dueMs) continue;
      delayed.delete(next.key);
      makeReady(next.key);
    }
    schedule();
  }

  function add(key: string, afterSeconds = 0): boolean {
    if (closed) return false;
    const known = ready.has(key) || delayed.has(key) || again.has(key);
    if (!known && length() >= maxLength) {
      metrics?.queueOverflowed?.(name);
      return false;
    }
    if (!(afterSeconds > 0)) {
      makeReady(key);
      return true;
    }
    const dueMs = clock.monotonicMs() + afterSeconds * 1000;
    const before = delayed.get(key);
    if (before !== undefined && before <= dueMs) return true;
    delayed.set(key, dueMs);
    push(heap, { key, dueMs });
    // Outdated entries are dropped when they come up; too many of them, all at once.
    if (heap.length > 2 * delayed.size + 64) {
      heap = [];
      for (const [k, d] of delayed) push(heap, { key: k, dueMs: d });
    }
    schedule();
    return true;
  }

  return {
    add,
    take() {
      if (closed) return Promise.resolve(undefined);
      return new Promise((resolve) => {
        takers.push(resolve);
        hand();
      });
    },
    done(key) {
      const since = working.get(key);
      if (since === undefined) throw new Error(`queue ${name}: ${key} is not being worked on`);
      working.delete(key);
      metrics?.queueDone?.(name, (clock.monotonicMs() - since) / 1000);
      if (again.delete(key) && !closed) makeReady(key);
    },
    retry(key, leastSeconds = 0) {
      const count = (failures.get(key) ?? 0) + 1;
      if (closed) return count;
      failures.set(key, count);
      metrics?.queueRetried?.(name);
      add(key, Math.max(leastSeconds, backoffMs(count, backoff, options.random) / 1000));
      return count;
    },
    forget: (key) => void failures.delete(key),
    get length() {
      return length();
    },
    get working() {
      return working.size;
    },
    close() {
      closed = true;
      timer?.cancel();
      timer = undefined;
      ready.clear();
      delayed.clear();
      again.clear();
      heap = [];
      for (const taker of takers.splice(0)) taker(undefined);
    },
  };
}

function push(heap: { key: string; dueMs: number }[], entry: { key: string; dueMs: number }) {
  let at = heap.push(entry) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (heap[parent]!.dueMs <= entry.dueMs) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = entry;
}

function pop(heap: { key: string; dueMs: number }[]) {
  const last = heap.pop();
  if (last === undefined || heap.length === 0) return;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1]!.dueMs < heap[child]!.dueMs) child++;
    if (heap[child]!.dueMs >= last.dueMs) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
}
