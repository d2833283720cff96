import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { backoffMs } from '../../../operator/engine/clock.ts';
import { createQueue } from '../../../operator/engine/queue.ts';
import { manualClock } from '../../support/clock.ts';

const start = (options = {}) => {
  const clock = manualClock();
  return { clock, queue: createQueue({ name: 'q', clock, random: () => 1, ...options }) };
};

describe('a queue', () => {
  it('holds a key once, in the order of coming', async () => {
    const { queue } = start();
    for (const key of ['a', 'b', 'a', 'c', 'b']) queue.add(key);
    expect(queue.length).toBe(3);
    expect([await queue.take(), await queue.take(), await queue.take()]).toEqual(['a', 'b', 'c']);
  });

  it('hands a key that is added while worked on out again, but only afterwards', async () => {
    const { queue, clock } = start();
    queue.add('a');
    await queue.take();
    queue.add('a');
    queue.add('a');
    let second: string | undefined;
    void queue.take().then((key) => {
      second = key;
    });
    await clock.settle();
    expect(second).toBeUndefined();
    queue.done('a');
    await clock.settle();
    expect(second).toBe('a');
    queue.done('a');
    expect(queue.length).toBe(0);
  });

  it('hands out once what is added several times in one go, though somebody waits for work', async () => {
    const { queue, clock } = start();
    const taken: string[] = [];
    void (async () => {
      for (let key = await queue.take(); key !== undefined; key = await queue.take()) {
        taken.push(key);
        queue.done(key);
      }
    })();
    await clock.settle();
    for (const key of ['a', 'b', 'a']) queue.add(key);
    await clock.settle();
    expect(taken).toEqual(['a', 'b']);
  });

  it('keeps the earliest of several delays, and no delay beats adding now', async () => {
    const { queue, clock } = start();
    const taken: [string | undefined, number][] = [];
    void (async () => {
      for (let key = await queue.take(); key !== undefined; key = await queue.take()) {
        taken.push([key, clock.monotonicMs()]);
        queue.done(key);
      }
    })();
    queue.add('a', 30);
    queue.add('a', 10);
    queue.add('a', 20);
    queue.add('b', 60);
    queue.add('b');
    await clock.advance(120_000);
    expect(taken).toEqual([
      ['b', 0],
      ['a', 10_000],
      ['b', 60_000],
    ]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('backs off for longer after each failure, up to the cap, and forgets after success', async () => {
    const { queue, clock } = start({ backoff: { baseSeconds: 1, maxSeconds: 8 } });
    const waits: number[] = [];
    queue.add('a');
    for (let n = 0; n < 7; n++) {
      const taken = await queue.take();
      const at = clock.monotonicMs();
      if (n === 5) queue.forget('a');
      queue.retry('a');
      queue.done(taken!);
      const next = queue.take();
      let waited = false;
      void next.then(() => {
        waited = true;
      });
      while (!waited) await clock.advance(250);
      waits.push((clock.monotonicMs() - at) / 1000);
      queue.done('a');
      queue.add('a');
    }
    expect(waits).toEqual([1, 2, 4, 8, 8, 1, 2]);
  });

  it('waits at least as long as the server asked for', async () => {
    const { queue, clock } = start();
    queue.add('a');
    const key = await queue.take();
    queue.retry('a', 20);
    queue.done(key!);
    await clock.advance(19_999);
    expect(queue.length).toBe(1);
    const next = queue.take();
    await clock.advance(1);
    expect(await next).toBe('a');
  });

  it('refuses what is too much, and says so, but never a key it has', async () => {
    let overflowed = 0;
    const { queue } = start({ maxLength: 2, metrics: { queueOverflowed: () => overflowed++ } });
    expect([queue.add('a'), queue.add('b', 5), queue.add('c'), queue.add('a'), queue.add('b')]).toEqual([
      true,
      true,
      false,
      true,
      true,
    ]);
    expect(overflowed).toBe(1);
  });

  it('lets everybody go when it closes', async () => {
    const { queue, clock } = start();
    const waiting = [queue.take(), queue.take()];
    queue.add('later', 10);
    queue.close();
    expect(await Promise.all(waiting)).toEqual([undefined, undefined]);
    expect(await queue.take()).toBeUndefined();
    expect(queue.add('a')).toBe(false);
    expect(clock.pendingTimers).toBe(0);
  });

  it('never loses a key, nor gives one to two workers, whatever the order of things', async () => {
    const key = fc.constantFrom('a', 'b', 'c', 'd', 'e');
    const step = fc.oneof(
      fc.record({ do: fc.constant('add' as const), key }),
      fc.record({ do: fc.constant('delay' as const), key, seconds: fc.integer({ min: 1, max: 30 }) }),
      fc.record({ do: fc.constant('finish' as const), fails: fc.boolean() }),
      fc.record({ do: fc.constant('wait' as const), seconds: fc.integer({ min: 1, max: 20 }) }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 3 }), async (steps, workers) => {
        const { queue, clock } = start({ backoff: { baseSeconds: 1, maxSeconds: 10 } });
        const working: string[] = [];
        const owed = new Set<string>(); // added, and not taken since
        const take = async () => {
          const taken = await queue.take();
          if (taken === undefined) return;
          expect(working).not.toContain(taken);
          working.push(taken);
          owed.delete(taken);
        };
        for (let n = 0; n < workers; n++) void take();
        const turn = () => new Promise((resolve) => setImmediate(resolve));
        for (const s of steps) {
          if (s.do === 'add') {
            owed.add(s.key);
            queue.add(s.key);
          } else if (s.do === 'delay') {
            owed.add(s.key);
            queue.add(s.key, s.seconds);
          } else if (s.do === 'wait') await clock.advance(s.seconds * 1000);
          else {
            const done = working.shift();
            if (done === undefined) continue;
            if (s.fails) {
              owed.add(done);
              queue.retry(done);
            } else queue.forget(done);
            queue.done(done);
            void take();
          }
          await turn();
          expect(working.length).toBeLessThanOrEqual(workers);
        }
        // From now on all goes well: whatever is owed is taken, and then there is silence.
        for (let round = 0; round < 40; round++) {
          for (const done of working.splice(0)) {
            queue.done(done);
            void take();
          }
          await turn();
        }
        await clock.advance(60_000);
        for (let round = 0; round < 40; round++) {
          for (const done of working.splice(0)) {
            queue.done(done);
            void take();
          }
          await turn();
        }
        expect([...owed]).toEqual([]);
        expect(queue.length).toBe(0);
        expect(clock.pendingTimers).toBe(0);
        queue.close();
      }),
      { numRuns: 150 },
    );
  });
});

describe('back-off', () => {
  it('lies between half and all of the doubled base, below the cap', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1000 }), fc.double({ min: 0, max: 1, noNaN: true }), (failures, random) => {
        const full = Math.min(60_000, 250 * 2 ** Math.min(30, Math.max(0, failures - 1)));
        const ms = backoffMs(failures, { baseSeconds: 0.25, maxSeconds: 60 }, () => random);
        expect(ms).toBeGreaterThanOrEqual(full / 2);
        expect(ms).toBeLessThanOrEqual(full);
      }),
    );
  });
});
