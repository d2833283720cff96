/** A clock that moves only when told to. */
import type { Clock } from '../../operator/engine/clock.ts';

export interface ManualClock extends Clock {
  /**
   * Moves on by `ms`, firing the timers on the way, each at its time; between them everything that waits for promises or
   * in-memory streams runs until nothing is left to run.
   */
  advance(ms: number): Promise<void>;
  /** Lets what is ready run, without moving. */
  settle(): Promise<void>;
  /** Moves the wall clock alone, as an administrator or a bad time server does. */
  stepWallClock(ms: number): void;
  /** Moves on without firing anything: the process was paused, and its timers are all late. */
  pause(ms: number): void;
  readonly pendingTimers: number;
}

export function manualClock(start: Date | string = '2026-01-01T00:00:00.000Z'): ManualClock {
  let wallMs = new Date(start).getTime();
  let monotonicMs = 0;
  let sequence = 0;
  const timers = new Map<number, { dueMs: number; fn: () => void }>();

  const move = (ms: number) => {
    wallMs += ms;
    monotonicMs += ms;
  };

  async function settle() {
    // Streams and promises need several turns; setImmediate runs after all that one turn made ready.
    for (let turn = 0; turn < 12; turn++) await new Promise((resolve) => setImmediate(resolve));
  }

  function next(): [number, { dueMs: number; fn: () => void }] | undefined {
    let first: [number, { dueMs: number; fn: () => void }] | undefined;
    for (const entry of timers) {
      if (!first || entry[1].dueMs < first[1].dueMs) first = entry;
    }
    return first;
  }

  return {
    now: () => new Date(wallMs),
    monotonicMs: () => monotonicMs,
    setTimeout(fn, ms) {
      const id = ++sequence;
      timers.set(id, { dueMs: monotonicMs + Math.max(0, ms), fn });
      return () => void timers.delete(id);
    },
    async advance(ms) {
      const endMs = monotonicMs + ms;
      await settle();
      for (let timer = next(); timer && timer[1].dueMs <= endMs; timer = next()) {
        const [id, { dueMs, fn }] = timer;
        timers.delete(id);
        move(Math.max(0, dueMs - monotonicMs));
        fn();
        await settle();
      }
      move(Math.max(0, endMs - monotonicMs));
      await settle();
    },
    settle,
    stepWallClock: (ms) => {
      wallMs += ms;
    },
    pause: move,
    get pendingTimers() {
      return timers.size;
    },
  };
}

export interface LeapingClock extends Clock {
  /** Sets it forward: timers that are due by then fire at once. */
  leap(ms: number): void;
}

/** The machine's clock, for tests on real parts that cannot wait for as long as something takes. */
export function leapingClock(): LeapingClock {
  let aheadMs = 0;
  const monotonicMs = () => performance.now() + aheadMs;
  const timers = new Set<{ readonly dueMs: number; readonly fire: () => void }>();
  return {
    now: () => new Date(Date.now() + aheadMs),
    monotonicMs,
    setTimeout(fn, ms) {
      const stop = () => {
        clearTimeout(timeout);
        timers.delete(timer);
      };
      const timer = {
        dueMs: monotonicMs() + ms,
        fire: () => {
          stop();
          fn();
        },
      };
      const timeout = setTimeout(timer.fire, Math.min(ms, 2_147_483_647));
      timers.add(timer);
      return stop;
    },
    leap(ms) {
      aheadMs += ms;
      for (const timer of [...timers]) if (timer.dueMs <= monotonicMs()) timer.fire();
    },
  };
}
