/**
 * What seconds cost: the contract's own arithmetic, so that a price shown is the price billed.
 *
 * Everything is taken from sums and floored once; adding up parts would drift by a base unit each.
 */

const secondsPerHour = 3600n;
const bps = 10_000n;

/** Longest time that a provider serves without being paid, whatever the rate. */
export const maxGraceSeconds = 600;

/** What the contract claims for so many seconds, before the deposit caps it. Rounded down. */
export function priceOf(seconds: number, gpus: number, pricePerGpuHour: bigint): bigint {
  return (BigInt(seconds) * pricePerGpuHour * BigInt(gpus)) / secondsPerHour;
}

/** The least money that covers so many seconds: `priceOf`, rounded up. */
export function costOf(seconds: number, gpus: number, pricePerGpuHour: bigint): bigint {
  return (BigInt(seconds) * pricePerGpuHour * BigInt(gpus) + secondsPerHour - 1n) / secondsPerHour;
}

/**
 * Seconds that an amount pays: the most whose price is not above it. Infinity when they cost nothing. As prices are
 * rounded down, the last second may be paid short of less than one base unit, exactly as the contract counts it.
 */
export function secondsFor(amount: bigint, gpus: number, pricePerGpuHour: bigint): number {
  const perHour = pricePerGpuHour * BigInt(gpus);
  if (perHour === 0n) return Number.POSITIVE_INFINITY;
  return Number(((amount + 1n) * secondsPerHour - 1n) / perHour);
}

/** Platform fee inside a claimed sum. */
export function feeOf(claimed: bigint, feeBps: number): bigint {
  return (claimed * BigInt(feeBps)) / bps;
}

/** The referrer's part of a fee. */
export function referrerPartOf(fee: bigint, referrerBps: number): bigint {
  return (fee * BigInt(referrerBps)) / bps;
}

/** How long a provider serves unpaid: until `maxUnpaid` is owed, but ten minutes at most. At least one second, as quotes need. */
export function graceSeconds(maxUnpaid: bigint, gpus: number, pricePerGpuHour: bigint): number {
  return Math.max(1, Math.min(maxGraceSeconds, secondsFor(maxUnpaid, gpus, pricePerGpuHour)));
}
