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
