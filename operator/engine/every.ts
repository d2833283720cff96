import { type Clock, sleep, systemClock } from './clock.ts';
import type { Log } from './types.ts';

export interface EveryOptions {
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  /** Pause after a failure, where that is shorter. */
  readonly againSeconds?: number;
}

/** Repeats some work until the signal fires; what fails is told, and tried again with the next round. */
export async function every(
  seconds: number,
  what: string,
  work: () => Promise<void>,
  { log, signal, clock = systemClock, againSeconds = seconds }: EveryOptions,
): Promise<void> {
  while (!signal.aborted) {
    let pauseSeconds = seconds;
    try {
      await work();
    } catch (error) {
      if (signal.aborted) return;
      log.warn({ error: (error as Error).message }, `${what} failed; trying again`);
      pauseSeconds = Math.min(seconds, againSeconds);
    }
    await sleep(clock, pauseSeconds * 1000, signal).catch(() => undefined);
  }
}
