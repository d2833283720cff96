/**
 * Escrows that nobody ended: the term or the consumer's close is over by the claim window, and both sides are gone, or have
 * forgotten. Anyone may finalize them; what was not earned goes back to who paid it, and to nobody else.
 */
import type { Address, Hex32 } from '../../api/messages.ts';
import { type Escrow, type EscrowReads, finalizableAt, mayFinalize, newestOf } from './escrow.ts';

export interface Abandoned {
  readonly leaseId: Hex32;
  readonly consumer: Address;
  readonly provider: Address;
  readonly token: Address;
  /** Base units that a close gives back to who paid them. */
  readonly refund: bigint;
  /** From when on it could have been finalized, Unix seconds. */
  readonly since: number;
}

/**
 * The escrow, where it is abandoned by the time of the safe block; undefined where there is none, where it is closed, or
 * where the provider may still claim. A close that only the newest block has counts: sending another would be paid for.
 */
export function abandonedOf(seen: EscrowReads, claimWindowSeconds: number): Abandoned | undefined {
  const escrow = newestOf(seen);
  if (!seen.safe || !escrow || !mayFinalize(escrow, claimWindowSeconds, seen.safeBlockTime)) return undefined;
  const { leaseId, consumer, provider, token } = escrow;
  return {
    leaseId,
    consumer,
    provider,
    token,
    refund: refundOf(escrow),
    since: finalizableAt(escrow, claimWindowSeconds),
  };
}

/** What was earned stays earned; a finalize counts no second that nobody settled. */
const refundOf = (escrow: Escrow): bigint => escrow.deposit - escrow.claimed;

/** What a range of blocks is made to be next: nodes differ in how many they search, and how many entries they answer with. */
export function nextRange(range: number, refused: boolean): number {
  return refused ? Math.max(1, Math.floor(range / 4)) : Math.min(mostBlocks, range * 2);
}

/** Beyond it answers grow more than calls are saved. */
export const mostBlocks = 50_000;
