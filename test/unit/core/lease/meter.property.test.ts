/** What holds of the meter whatever a node does, and whenever it is looked at. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { count, type Meter, type ReadyFact, servedSeconds } from '../../../../operator/core/lease/meter.ts';

const seeded = { seed: 20_260_101, numRuns: 400 };
const start = Date.UTC(2026, 0, 1);

interface Stretch {
  readonly ready: ReadyFact['ready'];
  readonly lastsMs: number;
}
/** A node's life as stretches of one state each; two in a row are different, as transitions are. */
const life = fc
  .array(
    fc.record({
      ready: fc.constantFrom<ReadyFact['ready']>('True', 'False', 'Unknown'),
      lastsMs: fc.integer({ min: 1, max: 300_000 }),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((stretches) => stretches.filter((one, i) => i === 0 || one.ready !== stretches[i - 1]!.ready));

function factAt(stretches: readonly Stretch[], ms: number): ReadyFact {
  let since = 0;
  for (const { ready, lastsMs } of stretches) {
    if (ms < since + lastsMs) return { ready, since: new Date(start + since) };
    since += lastsMs;
  }
  const last = stretches.at(-1)!;
  return { ready: last.ready, since: new Date(start + since - last.lastsMs) };
}
const total = (stretches: readonly Stretch[]) => stretches.reduce((sum, one) => sum + one.lastsMs, 0);
const readyMs = (stretches: readonly Stretch[]) =>
  stretches.reduce((sum, one) => sum + (one.ready === 'True' ? one.lastsMs : 0), 0);

function countAt(stretches: readonly Stretch[], times: readonly number[]): Meter[] {
  const meters: Meter[] = [];
  let meter: Meter = { servedMs: 0 };
  for (const ms of times.toSorted((a, b) => a - b)) {
    meter = count(meter, factAt(stretches, ms), new Date(start + ms));
    meters.push(meter);
  }
  return meters;
}
const looks = (stretches: readonly Stretch[]) =>
  fc.array(fc.integer({ min: 0, max: total(stretches) }), { minLength: 1, maxLength: 40 });
const lifeAndLooks = life.chain((stretches) => fc.tuple(fc.constant(stretches), looks(stretches)));

describe('the meter, whatever the node does', () => {
  it('never counts more than the time that has passed', () => {
    fc.assert(
      fc.property(lifeAndLooks, ([stretches, times]) => {
        const last = countAt(stretches, times).at(-1)!;
        expect(last.servedMs).toBeLessThanOrEqual(Math.max(...times));
      }),
      seeded,
    );
  });

  it('never runs backwards', () => {
    fc.assert(
      fc.property(lifeAndLooks, ([stretches, times]) => {
        const served = countAt(stretches, times).map((meter) => meter.servedMs);
        expect(served).toEqual(served.toSorted((a, b) => a - b));
      }),
      seeded,
    );
  });

  it('counts no more than the node was Ready, when no stretch goes by unseen', () => {
    fc.assert(
      fc.property(lifeAndLooks, ([stretches, times]) => {
        let at = 0;
        const everyStretch = stretches.map(({ lastsMs }) => {
          at += lastsMs;
          return at - lastsMs;
        });
        const last = countAt(stretches, [...times, ...everyStretch]).at(-1)!;
        expect(last.servedMs).toBeLessThanOrEqual(readyMs(stretches));
      }),
      seeded,
    );
  });

  it('counts exactly what it was Ready, when it is looked at on every change', () => {
    fc.assert(
      fc.property(life, (stretches) => {
        let at = 0;
        const changes = [0];
        for (const { lastsMs } of stretches) {
          at += lastsMs;
          changes.push(at);
        }
        const last = countAt(stretches, changes).at(-1)!;
        expect(last.servedMs).toBe(readyMs(stretches));
      }),
      seeded,
    );
  });

  it('counts the same however often it is looked at while nothing changes', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 3_600_000 }), { minLength: 1, maxLength: 30 }),
        fc.constantFrom<ReadyFact['ready']>('True', 'False', 'Unknown'),
        (times, ready) => {
          const stretch = [{ ready, lastsMs: 3_600_001 }];
          const end = Math.max(...times);
          expect(countAt(stretch, times).at(-1)!.servedMs).toBe(countAt(stretch, [end]).at(-1)!.servedMs);
        },
      ),
      seeded,
    );
  });

  it('bills whole seconds only', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 10_000_000 }), (servedMs) => {
        const seconds = servedSeconds({ servedMs });
        expect(seconds * 1000).toBeLessThanOrEqual(servedMs);
        expect(seconds * 1000).toBeGreaterThan(servedMs - 1000);
      }),
      seeded,
    );
  });
});

describe('after an operator was away', () => {
  const served = (awaySeconds: number, silentAfterSeconds: number) => {
    const before = count({ servedMs: 0 }, { ready: 'True', since: new Date(start) }, new Date(start + 60_000));
    const unknown = awaySeconds > silentAfterSeconds;
    const back = new Date(start + 60_000 + awaySeconds * 1000);
    const since = new Date(start + (unknown ? 60_000 + silentAfterSeconds * 1000 : 0));
    return servedSeconds(count(before, { ready: unknown ? 'Unknown' : 'True', since }, back));
  };
  it.each([
    ['for less than the node grace, all of it is billed', 30, 90],
    ['for exactly the node grace, all of it is billed', 50, 110],
    ['for longer, no more than the node grace is billed', 60, 110],
    ['for an hour, no more than the node grace is billed', 3600, 110],
  ])('%s', (_, away, seconds) => {
    expect(served(away, 50)).toBe(seconds);
  });
});
