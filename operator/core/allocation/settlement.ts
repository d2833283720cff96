/**
 * What the provider sends to the chain for one lease, decided from the record, the escrow and the time.
 *
 * A transaction costs gas, so vouchers are left to grow while a lease runs; the consumer's deposit is the security. At the
 * end the consumer usually closes, with its last voucher handed to us or with our Release; we wait some minutes for that
 * before we pay for a settlement of our own. Refunds come only after the tenant is gone.
 */
import { dueFor, type Escrow, finalizableAt, type ProviderCloseReason } from '../money/escrow.ts';
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

/** An escrow that was seen may vanish in a reorganisation; its open is sent again as long as the quote holds, and longer. */
const reorgPatienceSeconds = 900;

export function planSettlement(
  record: LeaseRecord,
  escrow: Escrow | undefined,
  rules: SettlementRules,
  nowSeconds: number,
): Settlement {
  const over = record.state === 'Ended' || record.state === 'Suspended' || record.state === 'Ending';
  if (escrow === undefined) {
    const gone = record.state === 'Ended' && nowSeconds > record.quote.expiresAt + reorgPatienceSeconds;
    return { do: gone ? 'forget' : 'wait' };
  }
  if (escrow.closed) return { do: record.state === 'Ended' ? 'forget' : 'wait' };

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
  if (record.reason === 'Unpaid') return settle ?? { do: 'providerClose', reason: 'ProviderUnpaid' };

  const endedAt = record.endedAt === undefined ? nowSeconds : Date.parse(record.endedAt) / 1000;
  if (nowSeconds < endedAt + rules.patienceSeconds) return { do: 'wait' };
  if (record.reason === 'CapacityExhausted') return { do: 'providerClose', reason: 'ProviderCapacityLost' };
  if (settle !== undefined) return settle;
  // A second later than the contract wants it: the next block may be stamped with the present second.
  return nowSeconds > finalizableAt(escrow, rules.claimWindowSeconds) + 1 ? { do: 'finalize' } : { do: 'wait' };
}
