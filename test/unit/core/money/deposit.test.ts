import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { sizeDeposit, sizeTopUp } from '../../../../operator/core/money/deposit.ts';
import {
  billableSeconds,
  dueFor,
  type Escrow,
  finalizableAt,
  heldIn,
  mayStartAnotherAttempt,
  paidSeconds,
  payeeEarned,
} from '../../../../operator/core/money/escrow.ts';
import { priceOf } from '../../../../operator/core/money/price.ts';

const terms = { gpus: 2, pricePerGpuHour: 360_000n, minSeconds: 60, maxSeconds: 36_000 };
// 200 base units a second.

const escrow = (changes: Partial<Escrow> = {}): Escrow => ({
  leaseId: `0x${'11'.repeat(32)}`,
  quoteHash: `0x${'22'.repeat(32)}`,
  consumer: '0x01',
  signer: '0x02',
  provider: '0x03',
  payee: '0x04',
  token: '0x05',
  referrer: '0x06',
  referrerBps: 0,
  feeBps: 200,
  gpus: 2,
  maxSeconds: 36_000,
  pricePerGpuHour: 360_000n,
  deposit: 1_440_000n,
  servedSeconds: 0,
  claimed: 0n,
  feeTaken: 0n,
  refunded: 0n,
  openedAt: 1000,
  endsAt: 1000 + 300 + 36_000,
  closingAt: 0,
  closeReason: 'Open',
  closed: false,
  ...changes,
});

describe('the first deposit', () => {
  it('covers two hours', () => {
    expect(sizeDeposit(terms)).toEqual({ ok: true, deposit: 1_440_000n, coversSeconds: 7200 });
  });
  it('covers no more than the term', () => {
    expect(sizeDeposit({ ...terms, maxSeconds: 600 })).toEqual({ ok: true, deposit: 120_000n, coversSeconds: 600 });
  });
  it('covers at least what the quote demands', () => {
    expect(sizeDeposit({ ...terms, minSeconds: 10_000 })).toMatchObject({ ok: true, coversSeconds: 10_000 });
  });
  it('stays within the spend limit', () => {
    expect(sizeDeposit(terms, { spendLimit: 100_050n })).toEqual({ ok: true, deposit: 100_050n, coversSeconds: 500 });
  });
  it('is refused when the limit does not pay the least', () => {
    expect(sizeDeposit(terms, { spendLimit: 11_999n })).toEqual({
      ok: false,
      reason: 'SpendLimitBelowMinimum',
      needed: 12_000n,
      limit: 11_999n,
    });
    expect(sizeDeposit(terms, { spendLimit: 12_000n })).toMatchObject({ ok: true, coversSeconds: 60 });
  });
  it('is always one that the contract takes', () => {
    const arbitrary = fc.record({
      gpus: fc.integer({ min: 1, max: 16 }),
      pricePerGpuHour: fc.bigInt(0n, 10n ** 19n),
      minSeconds: fc.nat(5000),
      maxSeconds: fc.integer({ min: 5000, max: 2_592_000 }),
    });
    fc.assert(
      fc.property(arbitrary, fc.option(fc.bigInt(0n, 10n ** 21n), { nil: undefined }), (some, spendLimit) => {
        const size = sizeDeposit(some, { spendLimit });
        if (!size.ok) return;
        expect(size.deposit).toBeGreaterThanOrEqual(priceOf(some.minSeconds, some.gpus, some.pricePerGpuHour));
        expect(size.deposit).toBeLessThanOrEqual(priceOf(some.maxSeconds, some.gpus, some.pricePerGpuHour));
        if (spendLimit !== undefined) expect(size.deposit).toBeLessThanOrEqual(spendLimit);
        expect(priceOf(size.coversSeconds, some.gpus, some.pricePerGpuHour)).toBeLessThanOrEqual(size.deposit);
      }),
      { seed: 4 },
    );
  });
});

describe('a top-up', () => {
  it('is not due while enough is covered', () => {
    expect(sizeTopUp(escrow(), {}, 3600)).toBe(0n);
  });
  it('covers two hours ahead once less than one is left', () => {
    expect(sizeTopUp(escrow(), {}, 3601)).toBe(priceOf(3601 + 7200, 2, 360_000n) - 1_440_000n);
  });
  it('ends with the term and the limit', () => {
    expect(sizeTopUp(escrow({ maxSeconds: 8000 }), {}, 7000)).toBe(160_000n);
    expect(sizeTopUp(escrow({ maxSeconds: 7200 }), {}, 7000)).toBe(0n);
    expect(sizeTopUp(escrow(), { spendLimit: 1_440_100n }, 7000)).toBe(100n);
    expect(sizeTopUp(escrow(), { spendLimit: 1_000_000n }, 7000)).toBe(0n);
  });
  it('is not due for a lease that ends', () => {
    expect(sizeTopUp(escrow({ closingAt: 5000 }), {}, 7000)).toBe(0n);
    expect(sizeTopUp(escrow({ closed: true, closeReason: 'Expired' }), {}, 7000)).toBe(0n);
  });
});

describe('an escrow', () => {
  it('counts what was signed, up to what passed, the stop of the clock, and the term', () => {
    expect(billableSeconds(escrow(), 50, 1200)).toBe(50);
    expect(billableSeconds(escrow(), 500, 1200)).toBe(200);
    expect(billableSeconds(escrow({ closingAt: 1100 }), 500, 1200)).toBe(100);
    expect(billableSeconds(escrow({ maxSeconds: 80 }), 500, 1200)).toBe(80);
    expect(billableSeconds(escrow({ servedSeconds: 70 }), 50, 1200)).toBe(70);
    expect(billableSeconds(escrow(), 50, 900)).toBe(0);
    expect(dueFor(escrow(), 50, 1200)).toBe(10_000n);
    expect(dueFor(escrow({ deposit: 9_000n }), 50, 1200)).toBe(9_000n);
    expect(paidSeconds(escrow())).toBe(7200);
  });
  it('can be finalized a window after the earlier of stop and end', () => {
    expect(finalizableAt(escrow(), 60)).toBe(37_360);
    expect(finalizableAt(escrow({ closingAt: 2000 }), 60)).toBe(2060);
    expect(finalizableAt(escrow({ closingAt: 40_000 }), 60)).toBe(37_360);
  });
  it('holds what is neither earned nor refunded', () => {
    const half = escrow({ claimed: 40_000n, feeTaken: 800n });
    expect(heldIn(half)).toBe(1_400_000n);
    expect(payeeEarned(half)).toBe(39_200n);
    expect(heldIn({ ...half, closed: true, refunded: 1_400_000n })).toBe(0n);
  });
  it('allows another attempt only when the former can cost nothing more', () => {
    const quote = { expiresAt: 5000 };
    expect(mayStartAnotherAttempt(quote, undefined, 4999)).toBe(false);
    expect(mayStartAnotherAttempt(quote, undefined, 5000)).toBe(true);
    expect(mayStartAnotherAttempt(quote, escrow(), 9000)).toBe(false);
    expect(mayStartAnotherAttempt(quote, escrow({ closingAt: 4000 }), 4500)).toBe(true);
    expect(mayStartAnotherAttempt(quote, escrow({ closed: true }), 4500)).toBe(true);
  });
});
