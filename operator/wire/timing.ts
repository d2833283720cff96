/** Time for what waits on a connection: a Clock of the engine is one. */
export interface Timing {
  monotonicMs(): number;
  /** Returns the way to cancel it. */
  setTimeout(fn: () => void, ms: number): () => void;
}

/** Holds up no process that could end. */
export const systemTiming: Timing = {
  monotonicMs: () => performance.now(),
  setTimeout: (fn, ms) => {
    const timer = setTimeout(fn, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};

/** Resolves after `ms`, or at once when the signal fires. */
export function pause(clock: Timing, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      cancel();
      signal.removeEventListener('abort', done);
      resolve();
    };
    const cancel = clock.setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
