/**
 * A lease as a budget sees it, from the operator's own record: what was signed for, and what is still deposited. Records are
 * written before money moves, so a lease counts from the moment in which it was decided.
 *
 * Amounts are in atto (10⁻¹⁸) tokens, since one symbol may have other decimals on another chain.
 */
import type { LeaseRecord, QuoteRecord } from '../lease/observed.ts';
import { parseAmount } from '../money/amount.ts';
import { priceOf } from '../money/price.ts';
import type { Span } from './windows.ts';

export const attoDecimals = 18;

export interface Spender {
  readonly assetSymbol: string;
  readonly decimals: number;
  readonly gpus: number;
  /** Base units. */
  readonly pricePerGpuHour: bigint;
  /** All that is or will be in its escrow, base units. Zero: nothing was decided. */
  readonly deposit: bigint;
  /** Highest count that was signed for: what may be billed. */
  readonly signedSeconds: number;
  /** What was served up to here is in `signedSeconds`, or is not billed. Absent before it was served. */
  readonly signedUntilMs?: number;
}

/** Of records, which are replaced and never changed: a thousand of them are looked at for each decision. */
const known = new WeakMap<LeaseRecord, Spender>();

/** Undefined where a record has no quote, or where all is settled, and so nothing more will be spent. */
export function spenderOf(record: LeaseRecord): Spender | undefined {
  if (!record.quote || record.settled) return undefined;
  const spender = known.get(record) ?? read(record, record.quote);
  known.set(record, spender);
  return spender;
}

function read(record: LeaseRecord, quote: QuoteRecord): Spender {
  const { meter } = record;
  const terms = quote.signed.quote;
  return {
    assetSymbol: quote.assetSymbol,
    decimals: quote.decimals,
    gpus: terms.gpus,
    pricePerGpuHour: BigInt(terms.pricePerGpuHour),
    deposit: BigInt(record.deposit ?? 0),
    signedSeconds: record.signedSeconds,
    ...(meter.countedUntil === undefined ? {} : { signedUntilMs: signedUntil(record, meter.countedUntil) }),
  };
}

/** What was served and not yet signed for, the chain's clock being late, say, was served last. */
function signedUntil({ meter, signedSeconds }: LeaseRecord, countedUntil: string): number {
  return new Date(countedUntil).getTime() - Math.max(0, meter.servedMs - signedSeconds * 1000);
}

/** Rounded up: what is counted is never below what is billed. */
export function atto(units: bigint, decimals: number): bigint {
  if (decimals <= attoDecimals) return units * 10n ** BigInt(attoDecimals - decimals);
  const step = 10n ** BigInt(decimals - attoDecimals);
  return (units + step - 1n) / step;
}

/** Rounded down: what may be added is never above what there is room for. */
export function unitsOf(amount: bigint, decimals: number): bigint {
  if (amount <= 0n) return 0n;
  if (decimals >= attoDecimals) return amount * 10n ** BigInt(decimals - attoDecimals);
  return amount / 10n ** BigInt(attoDecimals - decimals);
}

/** Rounded up: what is held is never below what it is. */
export const unitsAbove = (amount: bigint, decimals: number): bigint =>
  decimals >= attoDecimals
    ? unitsOf(amount, decimals)
    : unitsOf(amount + 10n ** BigInt(attoDecimals - decimals) - 1n, decimals);

export const parseAtto = (amount: string): bigint => parseAmount(amount, attoDecimals);

/** The bill for the seconds from one count to another. Differences of the whole sum, so that parts add up to the bill. */
export function billBetween(spender: Spender, fromSeconds: number, toSeconds: number): bigint {
  const bill = (seconds: number) => atto(priceOf(seconds, spender.gpus, spender.pricePerGpuHour), spender.decimals);
  return bill(toSeconds) - bill(fromSeconds);
}

/** What of the deposit was not signed for. */
export function unspentOf(spender: Spender): bigint {
  const unspent = atto(spender.deposit, spender.decimals) - billBetween(spender, 0, spender.signedSeconds);
  return unspent > 0n ? unspent : 0n;
}

/** What may still be billed of the deposit within so many seconds. */
export function spendableIn(spender: Spender, seconds: number): bigint {
  const bill = billBetween(spender, spender.signedSeconds, spender.signedSeconds + Math.max(0, seconds));
  const unspent = unspentOf(spender);
  return bill < unspent ? bill : unspent;
}

/**
 * What may still be billed for the rest of a window. Counted from where the meter stands rather than from now: what was
 * served since is not signed for yet, and will be.
 */
export function spendableWithin(spender: Spender, span: Span, now: Date): bigint {
  const from = Math.max(span.startMs, Math.min(now.getTime(), spender.signedUntilMs ?? now.getTime()));
  return spendableIn(spender, Math.ceil((span.endMs - from) / 1000));
}
