/**
 * What the chain said last about each lease, by its newest block: enough to serve on, within the grace. Silence changes
 * nothing: what was read stays until something else is read.
 */
import type { Hex32 } from '../../api/messages.ts';
import type { SeenEscrow } from '../../core/allocation/plan.ts';
import type { Escrow } from '../../core/money/escrow.ts';

export interface ChainView {
  seen(leaseId: Hex32): SeenEscrow;
  set(leaseId: Hex32, escrow: Escrow | undefined): void;
  /** Keeps only these. */
  retain(leaseIds: ReadonlySet<string>): void;
}

export function createChainView(): ChainView {
  const escrows = new Map<string, Escrow | undefined>();
  return {
    seen(leaseId) {
      return escrows.has(leaseId) ? { known: true, escrow: escrows.get(leaseId) } : { known: false };
    },
    set(leaseId, escrow) {
      escrows.set(leaseId, escrow);
    },
    retain(leaseIds) {
      for (const leaseId of escrows.keys()) if (!leaseIds.has(leaseId)) escrows.delete(leaseId);
    },
  };
}
