import type { Log } from '../engine/types.ts';

/** Repeats some work until the signal fires; what fails is told, and tried again with the next round. */
export async function every(
  seconds: number,
  what: string,
  work: () => Promise<void>,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    await work().catch((error: Error) => {
      if (!signal.aborted) log.warn({ error: error.message }, `${what} failed; trying again`);
    });
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal.addEventListener(
        'abort',
        () => {
          clearTimeout(timer);
          resolve();
        },
        { once: true },
      );
    });
  }
}
