/**
 * An escrow as it stands on chain, and what follows from it. Everything here is derived from one read and the time;
 * nothing is remembered.
 */
import type { Address, Hex32 } from '../../api/messages.ts';
import { priceOf, secondsFor } from './price.ts';

/** Why an escrow was closed; the position is the number on chain. From ProviderUnpaid on, the provider names it. */
export const closeReasons = [
  'Open',
  'LastVoucher',
  'Released',
  'Expired',
  'ConsumerRequested',
  'ProviderUnpaid',
  'ProviderCapacityLost',
  'ProviderMaintenance',
  'ProviderPolicy',
  'ProviderOther',
] as const;
export type CloseReason = (typeof closeReasons)[number];
export type ProviderCloseReason = Extract<CloseReason, `Provider${string}`>;

export interface Escrow {
  readonly leaseId: Hex32;
  /** EIP-712 digest of the quote that opened it: whoever holds a quote can tell whether it is this one. */
  readonly quoteHash: Hex32;
  readonly consumer: Address;
  /** Session key that signs this lease's vouchers. */
  readonly signer: Address;
  readonly provider: Address;
  readonly payee: Address;
  readonly token: Address;
  readonly referrer: Address;
  readonly referrerBps: number;
  readonly feeBps: number;
  readonly gpus: number;
  readonly maxSeconds: number;
  readonly pricePerGpuHour: bigint;
  /** All that was put in, at open and by top-ups. */
  readonly deposit: bigint;
  /** Seconds counted on chain so far. Vouchers beyond it may exist. */
  readonly servedSeconds: number;
  /** What they cost, fee included, as far as the deposit goes. */
  readonly claimed: bigint;
  readonly feeTaken: bigint;
  /** Zero until closed. */
  readonly refunded: bigint;
  readonly openedAt: number;
  readonly endsAt: number;
  /** When billing stopped; zero while nobody asked for it. */
  readonly closingAt: number;
  readonly closeReason: CloseReason;
  readonly closed: boolean;
}

/**
 * What two reads of an escrow said: at the newest block, on whose word work is started; and at the safe head, below which no
 * reorganisation reaches, and on whose word alone something is given up, forgotten or destroyed.
 */
export interface EscrowReads {
  readonly latest: Escrow | undefined;
  readonly safe: Escrow | undefined;
  /** Of the block that `safe` was read at. */
  readonly safeBlockTime: number;
}

/**
 * The newer of the two. An escrow only ever gains: it appears, its sums grow, it closes. Where the newest block shows less
 * than the safe one, a node answered that is behind, and what it does not know has not therefore not happened.
 */
export function newestOf({ latest, safe }: Pick<EscrowReads, 'latest' | 'safe'>): Escrow | undefined {
  if (safe === undefined || latest === undefined) return latest ?? safe;
  const behind =
    (safe.closed && !latest.closed) ||
    (safe.closingAt !== 0 && latest.closingAt === 0) ||
    safe.deposit > latest.deposit ||
    safe.servedSeconds > latest.servedSeconds ||
    safe.claimed > latest.claimed;
  return behind ? safe : latest;
}

/** Seconds that a settlement of so many signed seconds would count at `now`. */
export function billableSeconds(escrow: Escrow, servedSeconds: number, now: number): number {
  const until = Math.min(now, escrow.endsAt, escrow.closingAt === 0 ? Number.POSITIVE_INFINITY : escrow.closingAt);
  const elapsed = Math.max(0, until - escrow.openedAt);
  return Math.max(escrow.servedSeconds, Math.min(servedSeconds, elapsed, escrow.maxSeconds));
}

/** What such a settlement would bring the sum claimed to. */
export function dueFor(escrow: Escrow, servedSeconds: number, now: number): bigint {
  const price = priceOf(billableSeconds(escrow, servedSeconds, now), escrow.gpus, escrow.pricePerGpuHour);
  return price < escrow.deposit ? price : escrow.deposit;
}

/** Seconds that the deposit pays in full. Beyond it the provider would work for nothing. */
export function paidSeconds(escrow: Escrow): number {
  return Math.min(escrow.maxSeconds, secondsFor(escrow.deposit, escrow.gpus, escrow.pricePerGpuHour));
}

/** From when on anyone may close it without a signature. */
export function finalizableAt(escrow: Escrow, claimWindowSeconds: number): number {
  const stop = escrow.closingAt === 0 ? escrow.endsAt : Math.min(escrow.closingAt, escrow.endsAt);
  return stop + claimWindowSeconds;
}

/** Whether that time has come, by the chain's clock: nobody has closed it, and whoever pays for the gas may. */
export function mayFinalize(escrow: Escrow, claimWindowSeconds: number, blockTime: number): boolean {
  return !escrow.closed && blockTime >= finalizableAt(escrow, claimWindowSeconds);
}

/**
 * How a consumer closes an escrow when nobody signs anything: the clock is stopped first, then the provider has the claim
 * window for what it was promised, then anyone may finalize. Undefined: closed, or nothing to do before that window ends.
 */
export function wayToClose(
  escrow: Escrow,
  blockTime: number,
  claimWindowSeconds: number,
): 'requestClose' | 'finalize' | undefined {
  if (escrow.closed) return undefined;
  if (escrow.closingAt === 0 && blockTime < escrow.endsAt) return 'requestClose';
  return mayFinalize(escrow, claimWindowSeconds, blockTime) ? 'finalize' : undefined;
}

/** What the payee earned so far, after the fee. */
export function payeeEarned(escrow: Escrow): bigint {
  return escrow.claimed - escrow.feeTaken;
}

/** Locked now: in the contract, and neither earned nor refunded. */
export function heldIn(escrow: Escrow): bigint {
  return escrow.closed ? 0n : escrow.deposit - escrow.claimed;
}

/**
 * Whether a lease may try again with another quote without ever paying twice: the former one can no longer open an
 * escrow, or the escrow that it opened has stopped billing. `escrow` and the time are those of the safe head; both must
 * come from the same read, or an open that lands between them is missed.
 */
export function mayStartAnotherAttempt(
  quote: { readonly expiresAt: number },
  escrow: Escrow | undefined,
  safeBlockTime: number,
): boolean {
  if (escrow === undefined) return safeBlockTime >= quote.expiresAt;
  return escrow.closed || escrow.closingAt !== 0;
}

/** Addresses are compared as numbers: their letters' case is only a checksum. */
export function sameAddress(one: Address, other: Address): boolean {
  return one.toLowerCase() === other.toLowerCase();
}
