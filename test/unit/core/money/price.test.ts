import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  costOf,
  feeOf,
  graceSeconds,
  priceOf,
  referrerPartOf,
  secondsFor,
} from '../../../../operator/core/money/price.ts';

const gpus = fc.integer({ min: 1, max: 16 });
const price = fc.bigInt(0n, 10n ** 20n);

describe('prices', () => {
  it('are per GPU and hour, rounded down once', () => {
    expect(priceOf(3600, 1, 340_000n)).toBe(340_000n);
    expect(priceOf(3600, 8, 2_690_000n)).toBe(21_520_000n);
    expect(priceOf(1, 1, 340_000n)).toBe(94n);
    expect(priceOf(0, 8, 340_000n)).toBe(0n);
    expect(costOf(1, 1, 340_000n)).toBe(95n);
    expect(costOf(3600, 1, 340_000n)).toBe(340_000n);
  });

  it('and seconds are inverse: an amount pays for the most seconds that cost no more', () => {
    fc.assert(
      fc.property(fc.bigInt(0n, 10n ** 24n), gpus, price, (amount, n, p) => {
        const seconds = secondsFor(amount, n, p);
        if (seconds > Number.MAX_SAFE_INTEGER) return;
        expect(priceOf(seconds, n, p)).toBeLessThanOrEqual(amount);
        expect(priceOf(seconds + 1, n, p)).toBeGreaterThan(amount);
      }),
      { seed: 2 },
    );
    expect(secondsFor(5n, 1, 0n)).toBe(Number.POSITIVE_INFINITY);
  });

  it('leave the payee and the platform with the whole, whatever the fee', () => {
    fc.assert(
      fc.property(fc.bigInt(0n, 10n ** 30n), fc.nat(500), fc.nat(10_000), (claimed, bps, referrerBps) => {
        const fee = feeOf(claimed, bps);
        expect(fee * 10_000n).toBeLessThanOrEqual(claimed * BigInt(bps));
        expect(referrerPartOf(fee, referrerBps)).toBeLessThanOrEqual(fee);
      }),
      { seed: 3 },
    );
  });
});

describe('grace', () => {
  it('ends when maxUnpaid is owed, and after ten minutes at the latest', () => {
    // 0.25 USDC at 21.52 an hour: 41.8 s. At 0.34 an hour it would be 44 min.
    expect(graceSeconds(250_000n, 8, 2_690_000n)).toBe(41);
    expect(graceSeconds(250_000n, 1, 340_000n)).toBe(600);
    expect(graceSeconds(250_000n, 1, 0n)).toBe(600);
    expect(graceSeconds(0n, 8, 2_690_000n)).toBe(1);
  });
});
