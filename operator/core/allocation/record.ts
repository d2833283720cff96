/**
 * The record of one lease, kept in a Secret: all that a gateway must know after a crash to go on where it was. What the
 * chain or the cluster can tell is not in here.
 */
import type { PromisedNode, QuoteJson, TenantProfile } from '../../api/gateway.ts';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import type { Room } from './room.ts';
import type { TenantStorage } from './tenant.ts';

/** As `allocationInfo.state`, with the two ways of ending told apart from what is over. */
export type RecordState = 'Provisioning' | 'Serving' | 'Ending' | 'Suspended' | 'Ended';

/** Why service ended. Shown to the consumer as `reason`. */
export const endingReasons = {
  Released: 'the consumer released the lease',
  CapacityExhausted: 'the GPUs were gone when the escrow was seen',
  Unpaid: 'served longer than the grace allows without being paid',
  EscrowClosing: 'the consumer asked on chain to close the escrow',
  EscrowClosed: 'the escrow was closed on chain',
  Expired: 'the term is over',
  Unproven: 'what the provider stored of the lease is not what the escrow says',
  FirstContact: 'an account that never paid here gets one lease at a time',
  Maintenance: 'the provider was taken out of service',
  Blocked: 'the provider no longer serves this account',
} as const;
export type EndingReason = keyof typeof endingReasons;

export interface StoredVoucher {
  readonly servedSeconds: number;
  readonly last: boolean;
  readonly signature: Hex;
}

/** How much was served and not paid, see grace.ts. */
export interface Meter {
  readonly unpaidSeconds: number;
  /** Paid seconds that were counted into `unpaidSeconds`. */
  readonly creditedSeconds: number;
  /** Unix seconds up to which service was counted. */
  readonly countedUntil: number;
}

export interface LeaseRecord {
  readonly version: 1;
  readonly leaseId: Hex32;
  readonly chainId: number;
  readonly escrow: Address;
  readonly quote: QuoteJson;
  readonly quoteSignature: Hex;
  readonly node: PromisedNode;
  /** Session key that the escrow names. */
  readonly signer: Address;
  readonly openedAt: number;
  readonly endsAt: number;
  readonly room: Room;
  /** What the consumer was trusted with when the lease began. Absent: baseline. */
  readonly tenantProfile?: TenantProfile;
  /** What the provider let leases store when this one began. Absent: nothing. */
  readonly storage?: TenantStorage;
  /** Node of the provider's cluster whose ledger holds the reservation. */
  readonly nodeName: string;
  /** What that node calls the devices of the lease. Absent: nvidia.com/gpu. */
  readonly device?: string;
  readonly state: RecordState;
  readonly reason?: EndingReason;
  readonly createdAt: string;
  readonly servingSince?: string;
  readonly endingSince?: string;
  readonly endedAt?: string;
  readonly voucher?: StoredVoucher;
  readonly meter?: Meter;
  /** Most seconds that the deposit paid when the chain was last read: deposits are topped up. */
  readonly paidSeconds: number;
  /** While the provider drains: when this lease ends, in Unix seconds. */
  readonly leaveBy?: number;
  /** No pod of the tenant is left. */
  readonly tornDown?: boolean;
  /** Its pods were taken away while their node was silent: whether they run, nobody has said. */
  readonly unseen?: boolean;
  /** Nothing of the tenant is left at all, and its room was given back. */
  readonly clean?: boolean;
  /** Signed once nothing of the tenant ran any more; the same answer for ever. */
  readonly release?: { readonly servedSeconds: number; readonly signature: Hex };
  /** The chain has no further use for this record. */
  readonly settled?: boolean;
}

export class RecordError extends Error {
  override readonly name = 'RecordError';
}

export const recordText = (record: LeaseRecord): string => JSON.stringify(record);

/** Only ever reads what `recordText` wrote; anything else is an error, never a fresh record. */
export function parseRecord(text: string): LeaseRecord {
  let value: Partial<LeaseRecord> | null;
  try {
    value = JSON.parse(text);
  } catch {
    throw new RecordError('the record is not JSON');
  }
  if (value === null || typeof value !== 'object' || value.version !== 1) {
    throw new RecordError('the record is not of version 1');
  }
  if (typeof value.leaseId !== 'string' || typeof value.state !== 'string' || typeof value.quote !== 'object') {
    throw new RecordError('the record lacks its lease, state or quote');
  }
  return value as LeaseRecord;
}

/** Name of the tenant's namespace: 80 bits of the lease's id, which nobody can choose. */
export const tenantNamespace = (leaseId: Hex32): string => `gl-${leaseId.slice(2, 22).toLowerCase()}`;

export const isTenantNamespace = (namespace: string | undefined): boolean =>
  namespace !== undefined && /^gl-[0-9a-f]{20}$/.test(namespace);

/** Name of the record's Secret. */
export const recordName = (leaseId: Hex32): string => `lease-${leaseId.slice(2).toLowerCase()}`;
export const leaseIdOfRecordName = (name: string): Hex32 | undefined =>
  /^lease-[0-9a-f]{64}$/.test(name) ? `0x${name.slice('lease-'.length)}` : undefined;

export const vouchedSeconds = (record: LeaseRecord): number => record.voucher?.servedSeconds ?? 0;
