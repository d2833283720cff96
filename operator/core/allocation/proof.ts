/**
 * Whether a record may be acted upon. Records are written by the process that faces the internet; whoever makes tenants of
 * them believes only what the escrow on chain, and the quote whose hash it holds, bear out. What the provider itself decides
 * is decided anew.
 */
import type { Hex32, Quote } from '../../api/messages.ts';
import type { Escrow } from '../money/escrow.ts';
import { checkEscrow } from './match.ts';
import { roomOfPromise, sameHex } from './quote.ts';
import type { LeaseRecord } from './record.ts';
import { mostPodsPerGpu } from './room.ts';
import type { TenantStorage } from './tenant.ts';

export interface Hashes {
  /** Of the record's quote. */
  readonly quote: Hex32;
  /** Of the node that it promises. */
  readonly node: Hex32;
  /** The contract's id of the quote's lease. */
  readonly leaseId: Hex32;
  /** This provider. */
  readonly provider: string;
}

export type Proof =
  | { readonly proven: true }
  /** No escrow is seen: it may be too early to say. */
  | { readonly proven: false; readonly wait: true }
  | { readonly proven: false; readonly wait: false; readonly differs: readonly string[] };

export function prove(
  record: LeaseRecord,
  quote: Quote,
  hashes: Hashes,
  escrow: Escrow | undefined,
  nowSeconds: number,
): Proof {
  const mismatch = checkEscrow(quote, hashes.quote, escrow, nowSeconds);
  if (mismatch?.reason === 'EscrowNotFound' || escrow === undefined) return { proven: false, wait: true };
  const differs: string[] = mismatch === undefined ? [] : [mismatch.detail];
  const check = (field: string, same: boolean) => {
    if (!same) differs.push(field);
  };
  check('provider', sameHex(quote.provider, hashes.provider));
  check('leaseId', sameHex(record.leaseId, hashes.leaseId));
  check('node', sameHex(hashes.node, quote.specHash));
  check('signer', sameHex(record.signer, escrow.signer));
  check('openedAt', record.openedAt === escrow.openedAt);
  check('endsAt', record.endsAt === escrow.endsAt);
  const { gpus, pods } = record.room;
  const promised = roomOfPromise(record.node, pods / Math.max(1, gpus));
  check('gpus', quote.gpus === gpus);
  for (const field of ['gpus', 'cpuMillis', 'memoryBytes', 'ephemeralBytes'] as const)
    check(`room.${field}`, promised[field] === record.room[field]);
  check('room.pods', Number.isInteger(pods) && pods >= 1 && pods <= mostPodsPerGpu * gpus);
  return differs.length === 0 ? { proven: true } : { proven: false, wait: false, differs };
}

/** The record with what the provider decides as its own flags say it. Neither is ever more than the record asks for. */
export function asDecided(
  record: LeaseRecord,
  own: { readonly trusted: boolean; readonly storage?: TenantStorage },
): LeaseRecord {
  const { tenantProfile, storage, ...rest } = record;
  return {
    ...rest,
    ...(tenantProfile === 'trusted' && own.trusted ? { tenantProfile } : {}),
    ...(storage !== undefined && own.storage !== undefined
      ? { storage: { className: own.storage.className, bytes: Math.min(storage.bytes, own.storage.bytes) } }
      : {}),
  };
}
