/**
 * Keeps one connection to one place, for ever: dials, and dials again when it was cut. A path that is restored is found within
 * seconds: an attempt that gets no answer is not waited for alone, another goes beside it. Waiting is jittered, so that a thousand
 * gateways whose relay restarts do not come back in the same moment.
 */
import { NotAdmitted } from './introduction.ts';
import { pause, type Timing } from './timing.ts';

export interface Kept {
  readonly ended: Promise<void>;
  /** The other side asks to be dialled anew; what is open on this one goes on. */
  readonly draining?: Promise<void>;
  end(): void;
}

export interface KeepOptions<L extends Kept> {
  /** One attempt; bounded in time by itself. */
  readonly attempt: (signal: AbortSignal) => Promise<L>;
  readonly clock: Timing;
  readonly random?: () => number;
  readonly onUp?: (made: L) => void;
  /** It was cut, or drains. */
  readonly onDown?: () => void;
  /** Every attempt that failed, with how many have in a row. */
  readonly onFailure?: (error: Error, inARow: number) => void;
}

const firstWaitMs = 250;
/** So that who was cut off is back within 5 s. */
const longestWaitMs = 3000;
/** Who is refused by a listener that works is not let in by asking more often. */
const refusedWaitMs = 8000;
/** An attempt that has no answer by then gets company. */
const slowMs = 3000;
const mostAttempts = 3;
/** One that was cut before counts as an attempt that failed. */
const soundAfterMs = 5000;

export interface Keeper<L> {
  readonly current: L | undefined;
  /** Resolves with the connection, now or when there is one; undefined when it took too long. */
  within(seconds: number): Promise<L | undefined>;
  readonly failures: number;
  readonly lastError: string | undefined;
}

export function keepDialled<L extends Kept>(options: KeepOptions<L>, signal: AbortSignal): Keeper<L> {
  const { attempt, clock, random = Math.random } = options;
  let current: L | undefined;
  let failures = 0;
  let lastError: string | undefined;
  const waiting = new Set<(made: L) => void>();

  const jittered = (ms: number) => ms / 2 + (random() * ms) / 2;
  const waitMs = (error?: Error) =>
    jittered(
      error instanceof NotAdmitted && error.final
        ? refusedWaitMs
        : Math.min(longestWaitMs, firstWaitMs * 2 ** Math.min(10, Math.max(0, failures - 1))),
    );

  /** The first attempt that comes through; undefined: we were told to stop. */
  function dialled(): Promise<L | undefined> {
    return new Promise((resolve) => {
      const losers = new AbortController();
      let pending = 0;
      let over = false;
      let next: (() => void) | undefined;
      const finish = (made?: L) => {
        over = true;
        next?.();
        signal.removeEventListener('abort', onStop);
        losers.abort(new Error('another attempt came through'));
        resolve(made);
      };
      const onStop = () => finish();
      const later = (ms: number) => {
        next?.();
        next = clock.setTimeout(begin, ms);
      };
      const begin = () => {
        if (over) return;
        if (pending >= mostAttempts) return later(slowMs);
        pending += 1;
        later(slowMs);
        attempt(losers.signal).then(
          (made) => {
            pending -= 1;
            if (over) made.end();
            else finish(made);
          },
          (error: Error) => {
            pending -= 1;
            if (over) return;
            failures += 1;
            lastError = error.message;
            options.onFailure?.(error, failures);
            if (pending === 0) later(waitMs(error));
          },
        );
      };
      if (signal.aborted) return finish();
      signal.addEventListener('abort', onStop, { once: true });
      begin();
    });
  }

  /** Until it is cut, drains, or we are told to stop. */
  const over = (made: L): Promise<void> =>
    new Promise((resolve) => {
      const done = () => {
        signal.removeEventListener('abort', done);
        resolve();
      };
      signal.addEventListener('abort', done, { once: true });
      void made.ended.then(done);
      void made.draining?.then(done);
      if (signal.aborted) done();
    });

  void (async () => {
    while (!signal.aborted) {
      const made = await dialled();
      if (!made) return;
      const at = clock.monotonicMs();
      current = made;
      lastError = undefined;
      options.onUp?.(made);
      for (const wake of [...waiting]) wake(made);
      await over(made);
      current = undefined;
      failures = clock.monotonicMs() - at < soundAfterMs ? failures + 1 : 0;
      options.onDown?.();
      await pause(clock, waitMs(), signal);
    }
  })();

  return {
    get current() {
      return current;
    },
    get failures() {
      return failures;
    },
    get lastError() {
      return lastError;
    },
    within(seconds) {
      if (current) return Promise.resolve(current);
      if (signal.aborted) return Promise.resolve(undefined);
      return new Promise((resolve) => {
        const done = (made?: L) => {
          cancel();
          waiting.delete(done);
          resolve(made);
        };
        const cancel = clock.setTimeout(() => done(), seconds * 1000);
        waiting.add(done);
      });
    },
  };
}
