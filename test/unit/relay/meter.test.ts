/** What a relay does about connections that take too much, or nothing. */
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { createMeter } from '../../../operator/relay/meter.ts';
import { manualClock } from '../../support/clock.ts';

test('counts what passes, both ways', async () => {
  const clock = manualClock();
  const meter = createMeter({ bytesPerSecond: 0, idleSeconds: 60, clock });
  const [one, other] = [new PassThrough(), new PassThrough()];
  meter.watch('0xb', one, other);
  one.write(Buffer.alloc(1000));
  other.write(Buffer.alloc(234));
  await clock.settle();
  expect(meter.bytes).toBe(1234);
});

test('breaks off who says nothing for too long, and nobody else', async () => {
  const clock = manualClock();
  const meter = createMeter({ bytesPerSecond: 0, idleSeconds: 60, clock });
  const pairs = [0, 1].map(() => [new PassThrough(), new PassThrough()] as const);
  for (const [one, other] of pairs) {
    for (const end of [one, other]) end.on('error', () => undefined);
    meter.watch('0xb', one, other);
  }
  for (let turn = 0; turn < 7; turn++) {
    await clock.advance(10_000);
    pairs[0]![0].write('x');
  }
  expect(pairs.map(([one]) => one.destroyed)).toEqual([false, true]);
  // Nothing is left to look after once all have gone.
  for (const [one] of pairs) one.destroy();
  await clock.advance(20_000);
  expect(clock.pendingTimers).toBe(0);
});

test('holds a provider to its rate, whichever of its connections it uses, and other providers to theirs', async () => {
  const clock = manualClock();
  const meter = createMeter({ bytesPerSecond: 10_000, idleSeconds: 600, clock });
  const heard = { a: 0, b: 0 };
  const flood = (who: 'a' | 'b') => {
    const [one, other] = [new PassThrough(), new PassThrough()];
    const through = meter.watch(who, one, other)!;
    one.pipe(through()).on('data', (chunk: Buffer) => {
      heard[who] += chunk.length;
    });
    const more = () => {
      while (one.write(Buffer.alloc(1000)));
    };
    one.on('drain', more);
    more();
  };
  flood('a');
  flood('a');
  flood('b');
  for (let turn = 0; turn < 200; turn++) await clock.advance(50);
  // Ten seconds; what was taken before a pause took hold comes on top.
  expect(heard.a).toBeGreaterThan(60_000);
  expect(heard.a).toBeLessThan(150_000);
  expect(heard.b).toBeGreaterThan(60_000);
  expect(heard.b).toBeLessThan(150_000);
});
