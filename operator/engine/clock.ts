/**
 * Time, passed in. The system clock in programs, a manual one in tests, so that no test sleeps.
 *
 * Two readings, because each lies in its own way: the wall clock can be stepped, and the monotonic one stands still while
 * a machine is suspended. Who must not act too late takes the larger of both differences; who must not act too early, the
 * monotonic one.
 */
export interface Clock {
  now(): Date;
  /** Milliseconds since some start; never goes back. */
  monotonicMs(): number;
  /** Calls `fn` once, `ms` from now. Returns the way to cancel it. */
  setTimeout(fn: () => void, ms: number): () => void;
}

/** Node's timers fire at once for a longer delay. */
const longestTimeoutMs = 2_147_483_647;

export const systemClock: Clock = {
  now: () => new Date(),
  monotonicMs: () => performance.now(),
  setTimeout: (fn, ms) => {
    const timer = setTimeout(fn, Math.min(Math.max(0, ms), longestTimeoutMs));
    return () => clearTimeout(timer);
  },
};

/** Resolves after `ms`; rejects with the signal's reason when that fires first. */
export function sleep(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const onAbort = () => {
      cancel();
      reject(signal?.reason);
    };
    const cancel = clock.setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

export interface BackoffOptions {
  readonly baseSeconds: number;
  readonly maxSeconds: number;
}

/** Doubles per failure up to the cap; the later half is random, so that a thousand clients do not come back together. */
export function backoffMs(failures: number, options: BackoffOptions, random: () => number = Math.random): number {
  const full = Math.min(options.maxSeconds, options.baseSeconds * 2 ** Math.min(30, Math.max(0, failures - 1))) * 1000;
  return full / 2 + (random() * full) / 2;
}
