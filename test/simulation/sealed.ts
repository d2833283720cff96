/**
 * A sealed room for production code: while a run goes on, whatever in this process asks for the time, for a timer or for
 * chance gets the run's own. Code that was handed a clock does not need it; what a library or an abort signal asks for
 * would otherwise leak the real world into a run, and it could not be had again.
 */
import type { Random } from './random.ts';
import type { Timeline } from './timeline.ts';

const RealDate = Date;
const { Date: wallClock, setTimeout: later, clearTimeout: never, structuredClone: clone } = globalThis;
const real = {
  globals: { Date: wallClock, setTimeout: later, clearTimeout: never, structuredClone: clone },
  random: Math.random,
  timeout: AbortSignal.timeout,
  performanceNow: performance.now,
};

/** Of JSON, several times as fast as what Node has for everything: half of a run's time would go into copies of objects. */
function copyOf<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(copyOf) as T;
  const copy: Record<string, unknown> = {};
  for (const key in value) copy[key] = copyOf(value[key]);
  return copy as T;
}

/** Returns the way out. */
export function seal(timeline: Timeline, random: Random): () => void {
  const startMs = timeline.nowMs;
  const nowMs = () => timeline.nowMs + (timeline.running?.skewMs ?? 0);
  class SealedDate extends RealDate {
    constructor(...given: []) {
      if (given.length === 0) super(nowMs());
      else super(...given);
    }
    static override now() {
      return nowMs();
    }
  }
  const start = (fn: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) => {
    const owner = timeline.running;
    const cancel = timeline.schedule(ms, `timer ${owner?.name ?? 'world'}`, () => fn(...args), owner);
    return { cancel, ref: () => undefined, unref: () => undefined, hasRef: () => true };
  };
  Object.assign(globalThis, {
    Date: SealedDate,
    setTimeout: start,
    clearTimeout: (timer: { cancel?: () => void } | undefined) => timer?.cancel?.(),
    structuredClone: copyOf,
  });
  Math.random = random.next;
  performance.now = () => timeline.nowMs - startMs;
  AbortSignal.timeout = (ms: number) => {
    const stop = new AbortController();
    start(() => stop.abort(new DOMException('The operation was aborted due to timeout', 'TimeoutError')), ms);
    return stop.signal;
  };
  return () => {
    Object.assign(globalThis, real.globals);
    Math.random = real.random;
    performance.now = real.performanceNow;
    AbortSignal.timeout = real.timeout;
  };
}
