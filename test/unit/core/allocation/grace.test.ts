import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { count, credit, isUnpaid, judgeVoucher, startMeter } from '../../../../operator/core/allocation/grace.ts';
import type { Meter } from '../../../../operator/core/allocation/record.ts';

const serve = (meter: Meter, seconds: number): Meter => {
  let next = meter;
  for (let second = 0; second < seconds; second += 1) next = count(next, next.countedUntil + 1, true);
  return next;
};

describe('the meter', () => {
  test('counts what was served and not paid, and stops service beyond the grace', () => {
    const meter = serve(startMeter(1000), 600);
    expect(meter.unpaidSeconds).toBe(600);
    expect(isUnpaid(meter, 600)).toBe(false);
    expect(isUnpaid(serve(meter, 1), 600)).toBe(true);
  });

  test('does not count time in which nobody looked, or in which nothing was served', () => {
    const meter = startMeter(1000);
    expect(count(meter, 1031, true).unpaidSeconds).toBe(0);
    expect(count(meter, 1030, true).unpaidSeconds).toBe(30);
    expect(count(meter, 1010, false).unpaidSeconds).toBe(0);
  });

  test('survives a clock that was set back', () => {
    expect(count(startMeter(1000), 900, true)).toMatchObject({ unpaidSeconds: 0, countedUntil: 900 });
  });

  test('a consumer that pays what it saw is never stopped, though both sides disagree by a second in a hundred', () => {
    let meter = startMeter(0);
    for (let minute = 1; minute <= 60 * 24 * 30; minute += 1) {
      // Two steps of thirty seconds, of which the consumer saw 59.4.
      meter = count(count(meter, meter.countedUntil + 30, true), meter.countedUntil + 60, true);
      meter = credit(meter, Math.floor(minute * 59.4), 120);
      expect(isUnpaid(meter, 120)).toBe(false);
    }
  });

  test('a consumer that pays every other second is stopped', () => {
    let meter = startMeter(0);
    let minutes = 0;
    while (!isUnpaid(meter, 600)) {
      minutes += 1;
      meter = credit(serve(meter, 60), minutes * 30, 600);
      expect(minutes).toBeLessThan(30);
    }
  });

  test('whatever is vouched for when, what is served unpaid is at most the grace and what is forgiven', () => {
    const step = fc.record({ served: fc.integer({ min: 1, max: 30 }), paid: fc.integer({ min: 0, max: 40 }) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), fc.integer({ min: 1, max: 600 }), (steps, grace) => {
        let meter = startMeter(0);
        let served = 0;
        let paid = 0;
        for (const { served: more, paid: vouched } of steps) {
          meter = count(meter, meter.countedUntil + more, true);
          served += more;
          if (isUnpaid(meter, grace)) break;
          paid = Math.min(served, paid + vouched);
          meter = credit(meter, paid, grace);
        }
        expect(served - paid).toBeLessThanOrEqual(grace + 30 + Math.min(30, grace / 4) + paid / 50);
      }),
      { seed: 11, numRuns: 500 },
    );
  });

  test('what the chain no longer pays is owed again', () => {
    const paid = credit(serve(startMeter(0), 300), 300, 600);
    expect(paid.unpaidSeconds).toBe(0);
    expect(credit(paid, 100, 600).unpaidSeconds).toBe(200);
  });
});

describe('a voucher', () => {
  const lease = { openedAt: 1000, maxSeconds: 3600 };
  const at = (servedSeconds: number, last = false) => ({ servedSeconds, last });
  test.each([
    ['the first is taken', at(10), undefined, { take: true }],
    ['a higher one is taken', at(11), at(10), { take: true }],
    ['the same again is known', at(10), at(10), { take: false }],
    ['a lower one is known', at(9), at(10), { take: false }],
    ['the same, now said to be the last, is taken', at(10, true), at(10), { take: true }],
    ['after the last there is none', at(11), at(10, true), { take: false, refused: expect.stringContaining('last') }],
    ['the last again is known', at(10, true), at(10, true), { take: false }],
    ['sixty seconds ahead is skew', at(160), undefined, { take: true }],
    ['more is refused', at(161), undefined, { take: false, refused: expect.stringContaining('160 have passed') }],
    ['beyond the term is refused', at(3601), undefined, { take: false, refused: expect.stringContaining('3600') }],
  ])('%s', (_name, offered, stored, verdict) => {
    expect(judgeVoucher(offered, stored, lease, 1100)).toEqual(verdict);
  });
});
