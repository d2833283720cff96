/**
 * The life of an allocation, decided:  Provisioning → Serving → Ending → Ended, or Serving → Suspended → Ended.
 *
 * Invariants: nothing is served without an escrow; a lease that is not paid stops after its grace; a Release is signed
 * only when nothing of the tenant runs any more. What is not known (the chain does not answer) changes nothing.
 */
import type { Escrow } from '../money/escrow.ts';
import { paidSeconds } from '../money/escrow.ts';
import { count, credit, isUnpaid, startMeter } from './grace.ts';
import type { EndingReason, LeaseRecord, RecordState } from './record.ts';
import { vouchedSeconds } from './record.ts';

export type SeenEscrow =
  | { readonly known: false }
  /** `escrow` undefined: the chain says that there is none. */
  | { readonly known: true; readonly escrow: Escrow | undefined };

export interface Observed {
  readonly record: LeaseRecord;
  readonly chain: SeenEscrow;
  /** The node's own control plane hears from it. */
  readonly nodeReady: boolean;
  readonly nowSeconds: number;
  /** What the owner decided, as far as it is about this lease. */
  readonly owner?: Owner;
}

export interface Owner {
  /** The consumer is served no longer. */
  readonly blocked: boolean;
  /** All leases end within so many seconds. Absent: they go on. */
  readonly drainSeconds?: number;
}

export type Action =
  /** Reserve, make the tenant; then Serving. */
  | { readonly do: 'provision' }
  /** End all pods; when none is left: give the room back, remove the tenant, and note it as torn down. */
  | { readonly do: 'tearDown' };

export interface Plan {
  readonly record: LeaseRecord;
  readonly action?: Action;
}

/** Why a lease must stop, were it serving; undefined when it may go on. */
export function reasonToEnd(record: LeaseRecord, chain: SeenEscrow, nowSeconds: number): EndingReason | undefined {
  if (chain.known && chain.escrow?.closed) return 'EscrowClosed';
  if (chain.known && chain.escrow !== undefined && chain.escrow.closingAt !== 0) return 'EscrowClosing';
  if (record.voucher?.last) return 'Released';
  if (nowSeconds >= record.endsAt || vouchedSeconds(record) >= record.quote.maxSeconds) return 'Expired';
  return undefined;
}

/** While the provider drains, each lease has its end; when it no longer does, none. */
function drained(record: LeaseRecord, owner: Owner | undefined, nowSeconds: number): LeaseRecord {
  if (owner === undefined) return record;
  if (owner.drainSeconds === undefined) {
    const { leaveBy, ...others } = record;
    return leaveBy === undefined ? record : others;
  }
  const leaveBy = Math.min(record.leaveBy ?? Number.POSITIVE_INFINITY, nowSeconds + owner.drainSeconds);
  return leaveBy === record.leaveBy ? record : { ...record, leaveBy };
}

function ownersReason(
  { leaveBy }: LeaseRecord,
  owner: Owner | undefined,
  nowSeconds: number,
): EndingReason | undefined {
  if (owner?.blocked) return 'Blocked';
  return leaveBy !== undefined && nowSeconds >= leaveBy ? 'Maintenance' : undefined;
}

/** Brings the meter up to now: time served, vouchers stored, deposits topped up. */
export function metered(seen: Observed): LeaseRecord {
  const { record, chain, nowSeconds } = seen;
  // An escrow that vanished from the chain pays nothing: what it covered is owed again, and grace decides.
  const paid = chain.known ? (chain.escrow === undefined ? 0 : paidSeconds(chain.escrow)) : record.paidSeconds;
  const before = record.meter ?? startMeter(nowSeconds);
  const counted = count(before, nowSeconds, record.state === 'Serving' && seen.nodeReady);
  const meter = credit(counted, Math.min(vouchedSeconds(record), paid), record.quote.graceSeconds);
  return { ...record, paidSeconds: paid, meter };
}

export const enter = (
  record: LeaseRecord,
  state: RecordState,
  nowSeconds: number,
  reason?: EndingReason,
): LeaseRecord => {
  const at = new Date(nowSeconds * 1000).toISOString();
  return {
    ...record,
    state,
    ...(reason === undefined ? {} : { reason }),
    ...(state === 'Serving' ? { servingSince: at, meter: startMeter(nowSeconds) } : {}),
    ...(state === 'Ending' || state === 'Suspended' ? { endingSince: at } : {}),
    ...(state === 'Ended' ? { endedAt: at } : {}),
  };
};

export function planAllocation(seen: Observed): Plan {
  const { nowSeconds, chain } = seen;
  switch (seen.record.state) {
    case 'Provisioning': {
      const reason = reasonToEnd(seen.record, chain, nowSeconds) ?? ownersReason(seen.record, seen.owner, nowSeconds);
      if (reason !== undefined)
        return { record: enter(seen.record, 'Ending', nowSeconds, reason), action: { do: 'tearDown' } };
      return { record: seen.record, action: { do: 'provision' } };
    }
    case 'Serving': {
      const record = drained(metered(seen), seen.owner, nowSeconds);
      const reason = reasonToEnd(record, chain, nowSeconds) ?? ownersReason(record, seen.owner, nowSeconds);
      if (reason !== undefined)
        return { record: enter(record, 'Ending', nowSeconds, reason), action: { do: 'tearDown' } };
      if (record.meter !== undefined && isUnpaid(record.meter, record.quote.graceSeconds)) {
        return { record: enter(record, 'Suspended', nowSeconds, 'Unpaid'), action: { do: 'tearDown' } };
      }
      return { record };
    }
    case 'Ending':
      return seen.record.tornDown
        ? { record: enter(seen.record, 'Ended', nowSeconds) }
        : { record: seen.record, action: { do: 'tearDown' } };
    case 'Suspended': {
      if (!seen.record.tornDown) return { record: seen.record, action: { do: 'tearDown' } };
      // Stays visible as Suspended until the chain has closed it: the consumer reads here why its pods went.
      const over =
        (chain.known && (chain.escrow === undefined || chain.escrow.closed)) || nowSeconds >= seen.record.endsAt;
      return { record: over ? enter(seen.record, 'Ended', nowSeconds) : seen.record };
    }
    case 'Ended':
      return { record: seen.record };
    default:
      return seen.record.state satisfies never;
  }
}
