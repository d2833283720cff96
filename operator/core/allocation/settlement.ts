/**
 * What the provider sends to the chain for one lease, decided from the record, the escrow and the time.
 *
 * A transaction costs gas, so vouchers are left to grow while a lease runs; the consumer's deposit is the security. At the
 * end the consumer usually closes, with its last voucher handed to us or with our Release; we wait some minutes for that
 * before we pay for a settlement of our own. Refunds come only after the tenant is gone.
 *
 * Invariant: what the newest block says is acted upon, what the safe one says is relied upon. A settlement that a
 * reorganisation may still take back is none: until it is safe, nothing is closed without the seconds that it counted, and
 * no record is forgotten.
 */
import {
  dueFor,
  type EscrowReads,
  mayFinalize,
  mayStartAnotherAttempt,
  newestOf,
  type ProviderCloseReason,
} from '../money/escrow.ts';
import type { LeaseRecord, StoredVoucher } from './record.ts';

export interface SettlementRules {
  /** Base units: a running lease is settled once so much is earned and not settled. */
  readonly thresholdUnits: bigint;
  /** … or once so many seconds are. */
  readonly intervalSeconds: number;
  /** How long to wait for the consumer to close a lease that has ended. */
  readonly patienceSeconds: number;
  readonly claimWindowSeconds: number;
}

export type Settlement =
  | { readonly do: 'settle'; readonly voucher: StoredVoucher; readonly worth: bigint }
  | { readonly do: 'close'; readonly voucher: StoredVoucher }
  | { readonly do: 'providerClose'; readonly reason: ProviderCloseReason }
  | { readonly do: 'finalize' }
  /** The chain has no further use for this lease. */
  | { readonly do: 'forget' }
  | { readonly do: 'wait' };

export function planSettlement(
  record: LeaseRecord,
  seen: EscrowReads,
  rules: SettlementRules,
  nowSeconds: number,
): Settlement {
  const escrow = newestOf(seen);
  const over = record.state === 'Ended' || record.state === 'Suspended' || record.state === 'Ending';
  if (escrow === undefined) {
    // A reorganisation may have taken it, and its opening be sent again for as long as the quote holds.
    const gone = record.state === 'Ended' && mayStartAnotherAttempt(record.quote, undefined, seen.safeBlockTime);
    return { do: gone ? 'forget' : 'wait' };
  }
  if (escrow.closed) return { do: record.state === 'Ended' && seen.safe?.closed ? 'forget' : 'wait' };

  const { voucher } = record;
  const worth = voucher === undefined ? 0n : dueFor(escrow, voucher.servedSeconds, nowSeconds) - escrow.claimed;
  const settle: Settlement | undefined =
    voucher !== undefined && worth > 0n ? { do: 'settle', voucher, worth } : undefined;

  if (!over) {
    const seconds = voucher === undefined ? 0 : voucher.servedSeconds - escrow.servedSeconds;
    const due = worth >= rules.thresholdUnits || seconds >= rules.intervalSeconds;
    return settle !== undefined && due ? settle : { do: 'wait' };
  }
  if (record.tornDown && voucher?.last) return { do: 'close', voucher };
  // The clock of the claim window runs: settle at once, whatever still runs here.
  if (escrow.closingAt !== 0 && settle !== undefined) return settle;
  if (!record.tornDown) return { do: 'wait' };
  // A close without a voucher gives up what is not counted by then.
  const isCounted =
    voucher === undefined ||
    (seen.safe !== undefined && dueFor(seen.safe, voucher.servedSeconds, nowSeconds) <= seen.safe.claimed);
  if (record.reason === 'Unpaid')
    return settle ?? (isCounted ? { do: 'providerClose', reason: 'ProviderUnpaid' } : { do: 'wait' });

  const endedAt = record.endedAt === undefined ? nowSeconds : Date.parse(record.endedAt) / 1000;
  if (nowSeconds < endedAt + rules.patienceSeconds) return { do: 'wait' };
  if (record.reason === 'CapacityExhausted') return { do: 'providerClose', reason: 'ProviderCapacityLost' };
  if (settle !== undefined) return settle;
  // The consumer did not close, and has nothing more to say here: its refund is not kept from it until the term is over.
  if (record.reason === 'Maintenance') return { do: 'providerClose', reason: 'ProviderMaintenance' };
  if (record.reason === 'Blocked' || record.reason === 'FirstContact')
    return { do: 'providerClose', reason: 'ProviderPolicy' };
  // A second later than the contract wants it: the next block may be stamped with the present second.
  const abandoned = mayFinalize(escrow, rules.claimWindowSeconds, nowSeconds - 2);
  return { do: abandoned && isCounted ? 'finalize' : 'wait' };
}

/** No quote holds longer (`--quote-seconds`): an opening that a reorganisation took may be sent again for so long. */
const longestQuoteSeconds = 3600;

/**
 * Whether nothing will ever be paid again for a tenant whose record was lost, so that it may go, with all its data. The
 * quote is lost with the record; the escrow stood in some block before the tenant was made.
 */
export function moneyIsOver(seen: EscrowReads, tenantMadeAt: Date): boolean {
  if (newestOf(seen) === undefined) return seen.safeBlockTime > tenantMadeAt.getTime() / 1000 + longestQuoteSeconds;
  return seen.safe?.closed === true;
}
