/** How much passes between two ends that are joined: counted, held to a rate, and broken off when nothing does. */
import { type Duplex, Transform } from 'node:stream';
import { breakOff } from '../wire/halves.ts';
import type { Timing } from '../wire/timing.ts';

export interface Meter {
  /** Since the start, both ways. */
  readonly bytes: number;
  /** Call before they are joined; what it answers is what both directions have to pass. */
  watch(provider: string, one: Duplex, other: Duplex): (() => Transform) | undefined;
}

/** Idle connections are found out by then. */
const sweepMs = 5000;

export function createMeter(options: {
  /** Of one provider, both ways together; 0: no rate. */
  readonly bytesPerSecond: number;
  readonly idleSeconds: number;
  readonly clock: Timing;
}): Meter {
  const { bytesPerSecond, idleSeconds, clock } = options;
  let bytes = 0;
  const pairs = new Set<{ usedAtMs: number; readonly ends: readonly [Duplex, Duplex] }>();
  /** When what each provider was lent will have been earned. */
  const paidAtMs = new Map<string, number>();
  const using = new Map<string, number>();

  function sweep(): void {
    const before = clock.monotonicMs() - idleSeconds * 1000;
    for (const { usedAtMs, ends } of pairs) if (usedAtMs < before) for (const end of ends) breakOff(end);
    if (pairs.size > 0) clock.setTimeout(sweep, sweepMs);
  }

  /** Who is over its rate waits until it has earned what it took; its sender is held up by that, and nobody else. */
  const toll = (provider: string) => () =>
    new Transform({
      transform(chunk: Buffer, _, done) {
        const now = clock.monotonicMs();
        const paid = Math.max(paidAtMs.get(provider) ?? now, now) + (chunk.length / bytesPerSecond) * 1000;
        paidAtMs.set(provider, paid);
        // A tenth of a second may be borrowed: timers are coarser than pieces of data.
        if (paid - now < 100) done(null, chunk);
        else clock.setTimeout(() => done(null, chunk), paid - now);
      },
    });

  return {
    get bytes() {
      return bytes;
    },
    watch(provider, one, other) {
      const pair = { usedAtMs: clock.monotonicMs(), ends: [one, other] as const };
      if (pairs.size === 0) clock.setTimeout(sweep, sweepMs);
      pairs.add(pair);
      using.set(provider, (using.get(provider) ?? 0) + 1);
      one.once('close', () => {
        pairs.delete(pair);
        const left = (using.get(provider) ?? 1) - 1;
        if (left > 0) using.set(provider, left);
        else {
          using.delete(provider);
          paidAtMs.delete(provider);
        }
      });
      for (const end of pair.ends)
        end.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          pair.usedAtMs = clock.monotonicMs();
        });
      return bytesPerSecond > 0 ? toll(provider) : undefined;
    },
  };
}
