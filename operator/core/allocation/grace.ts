/**
 * Grace: how long a provider serves without being paid.
 *
 * A meter counts the seconds that were served and are not yet paid. Seconds in which this gateway was down, or the node
 * was not ready, are not counted: the consumer could not, or need not, pay for them. A voucher takes off the seconds that
 * it pays, and a little more: both sides measure health on their own and disagree by seconds a day, which would otherwise
 * add up and end a month-long lease that pays what it saw.
 */
import type { Meter } from './record.ts';

/** A longer silence between two looks means that nobody was looking: it is not counted. */
export const longestStepSeconds = 30;

/** The consumer's clock starts when its node is ready, some seconds after ours. Forgiven with its first voucher. */
const startForgivenSeconds = 30;

/** One second in so many is forgiven. */
const disputedShare = 50;

export const startMeter = (nowSeconds: number): Meter => ({
  unpaidSeconds: 0,
  creditedSeconds: 0,
  countedUntil: nowSeconds,
});

/** Counts the time since the last look. */
export function count(meter: Meter, nowSeconds: number, serving: boolean): Meter {
  const step = nowSeconds - meter.countedUntil;
  // A clock that was set back: begin anew from what it says now.
  if (step <= 0) return step === 0 ? meter : { ...meter, countedUntil: nowSeconds };
  const served = serving && step <= longestStepSeconds ? step : 0;
  return { ...meter, unpaidSeconds: meter.unpaidSeconds + served, countedUntil: nowSeconds };
}

/**
 * Takes off what is newly paid. `paidUpTo`: seconds that are vouched for *and* covered by the deposit; a voucher beyond
 * the deposit pays nothing until the deposit is topped up.
 */
export function credit(meter: Meter, paidUpTo: number, graceSeconds: number): Meter {
  const progress = paidUpTo - meter.creditedSeconds;
  // Less than before: the chain forgot a top-up (a reorganisation). What it no longer pays is owed again.
  if (progress < 0) {
    return { ...meter, creditedSeconds: paidUpTo, unpaidSeconds: meter.unpaidSeconds - progress };
  }
  if (progress === 0) return meter;
  const forgiven =
    Math.floor(progress / disputedShare) +
    (meter.creditedSeconds === 0 ? Math.min(startForgivenSeconds, Math.floor(graceSeconds / 4)) : 0);
  return {
    ...meter,
    creditedSeconds: paidUpTo,
    unpaidSeconds: Math.max(0, meter.unpaidSeconds - progress - forgiven),
  };
}

export const isUnpaid = (meter: Meter, graceSeconds: number): boolean => meter.unpaidSeconds > graceSeconds;

/** A consumer's clock may run ahead by this much. */
export const voucherSkewSeconds = 60;

export type VoucherVerdict =
  | { readonly take: true }
  /** Nothing new: answer with what is stored. */
  | { readonly take: false; readonly refused?: string };

/** Whether a voucher, its signature already verified, replaces the stored one. */
export function judgeVoucher(
  offered: { readonly servedSeconds: number; readonly last: boolean },
  stored: { readonly servedSeconds: number; readonly last: boolean } | undefined,
  lease: { readonly openedAt: number; readonly maxSeconds: number },
  nowSeconds: number,
): VoucherVerdict {
  if (offered.servedSeconds > lease.maxSeconds) {
    return { take: false, refused: `the lease is for ${lease.maxSeconds} seconds, not ${offered.servedSeconds}` };
  }
  const elapsed = Math.max(0, nowSeconds - lease.openedAt) + voucherSkewSeconds;
  if (offered.servedSeconds > elapsed) {
    return {
      take: false,
      refused: `it counts ${offered.servedSeconds} seconds, but only ${elapsed} have passed since the escrow was opened`,
    };
  }
  if (stored === undefined) return { take: true };
  if (stored.last) {
    return offered.servedSeconds > stored.servedSeconds
      ? { take: false, refused: `the last voucher, for ${stored.servedSeconds} seconds, is stored already` }
      : { take: false };
  }
  if (offered.servedSeconds > stored.servedSeconds) return { take: true };
  return { take: offered.servedSeconds === stored.servedSeconds && offered.last };
}
