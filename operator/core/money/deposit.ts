/**
 * How much to lock. As little as keeps the lease going: what is locked when a provider vanishes is what a consumer waits
 * for. Two hours at most, topped up while it is used, and never beyond what the lease may spend.
 */
import type { Escrow } from './escrow.ts';
import { priceOf, secondsFor } from './price.ts';

/** Longest time that one deposit covers ahead. */
export const defaultDepositSeconds = 7200;
/** A top-up is due when less than this is covered ahead: twice the longest outage of all RPC endpoints that no lease may end for. */
export const defaultLowWaterSeconds = 3600;

/** The terms that decide a deposit; a Quote has them. */
export interface Terms {
  readonly gpus: number;
  readonly pricePerGpuHour: bigint;
  readonly minSeconds: number;
  readonly maxSeconds: number;
}

export interface DepositLimits {
  /** The most this lease may ever spend. Unlimited when absent. */
  readonly spendLimit?: bigint;
  readonly depositSeconds?: number;
}

export type DepositSize =
  | { readonly ok: true; readonly deposit: bigint; readonly coversSeconds: number }
  | { readonly ok: false; readonly reason: 'SpendLimitBelowMinimum'; readonly needed: bigint; readonly limit: bigint };

/** The first deposit. Refused when the limit does not reach the quote's minimum, which the contract would refuse too. */
export function sizeDeposit(terms: Terms, limits: DepositLimits = {}): DepositSize {
  const wanted = Math.min(terms.maxSeconds, Math.max(terms.minSeconds, limits.depositSeconds ?? defaultDepositSeconds));
  const needed = priceOf(terms.minSeconds, terms.gpus, terms.pricePerGpuHour);
  const limit = limits.spendLimit;
  if (limit !== undefined && limit < needed) return { ok: false, reason: 'SpendLimitBelowMinimum', needed, limit };

  const full = priceOf(wanted, terms.gpus, terms.pricePerGpuHour);
  const deposit = limit !== undefined && limit < full ? limit : full;
  return { ok: true, deposit, coversSeconds: coveredBy(deposit, terms) };
}

/**
 * What to add now, or zero. `servedSeconds` is what was signed so far, settled or not. Tops up to `depositSeconds` ahead
 * once less than `lowWaterSeconds` is left, within the term and the limit.
 */
export function sizeTopUp(
  escrow: Escrow,
  limits: DepositLimits & { readonly lowWaterSeconds?: number },
  servedSeconds: number,
): bigint {
  if (escrow.closed || escrow.closingAt !== 0) return 0n;
  const covered = coveredBy(escrow.deposit, escrow);
  const lowWater = limits.lowWaterSeconds ?? defaultLowWaterSeconds;
  if (covered >= escrow.maxSeconds || covered - servedSeconds >= lowWater) return 0n;

  const ahead = Math.max(lowWater, limits.depositSeconds ?? defaultDepositSeconds);
  const target = priceOf(Math.min(escrow.maxSeconds, servedSeconds + ahead), escrow.gpus, escrow.pricePerGpuHour);
  const limit = limits.spendLimit;
  const capped = limit !== undefined && limit < target ? limit : target;
  return capped > escrow.deposit ? capped - escrow.deposit : 0n;
}

function coveredBy(deposit: bigint, terms: Pick<Terms, 'gpus' | 'pricePerGpuHour' | 'maxSeconds'>): number {
  return Math.min(terms.maxSeconds, secondsFor(deposit, terms.gpus, terms.pricePerGpuHour));
}
