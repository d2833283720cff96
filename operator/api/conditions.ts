/**
 * Conditions and reasons: the registry of every word that a status may say. The order of `lifeConditions` is the order
 * in which a lease passes them; the first that is not True is where it stands.
 */
import type { Condition } from './schema.ts';

export const lifeConditions = ['Quoted', 'Funded', 'Provisioned', 'Registered', 'Ready'] as const;
export const endConditions = ['Drained', 'Released', 'Settled'] as const;
export type LeaseConditionType = (typeof lifeConditions)[number] | (typeof endConditions)[number];

/** kstatus' pair: present only while True, never both. https://github.com/kubernetes-sigs/cli-utils, pkg/kstatus */
export const kstatusConditions = ['Reconciling', 'Stalled'] as const;

/** Why a lease is where it is. When several hold, the earlier one is shown and the others stand in the message. */
export const pendingReasons = [
  'Suspended',
  'InvalidSpec',
  'ProviderHeld',
  'BudgetExceeded',
  'NoMatchingOffer',
  'PriceAboveLimit',
  'Quoting',
  'AwaitingApproval',
  'LimitReached',
  'InsufficientFunds',
  'CapacityExhausted',
  'ProviderUnreachable',
  'IdentityMismatch',
  'WrongChain',
  'ChainUnreachable',
  'TransactionFailed',
  'EscrowPending',
  'Provisioning',
  'NodeNotReady',
  'BackingOff',
] as const;
export type PendingReason = (typeof pendingReasons)[number];

export const endReasons = [
  'Released',
  'Expired',
  'SpendLimitReached',
  'InsufficientFunds',
  'BudgetExceeded',
  'ProviderHeld',
  'ProviderFault',
  'NodeLost',
  'AttemptsExhausted',
] as const;
export type EndReason = (typeof endReasons)[number];

export const providerReasons = [
  'Reachable',
  'Unreachable',
  'IdentityMismatch',
  'InvalidAnswer',
  'WrongChain',
  'ChainUnreachable',
  'RailNotAccepted',
  'ClockSkewed',
  'Held',
  'Serving',
] as const;

/** Of a GpuBudget. */
export const budgetReasons = ['Counting', 'TooManyLeases', 'WithinLimits', 'AmountExceeded', 'GpusExceeded'] as const;

/** A condition as decided; the writer adds generation and transition time. */
export type Verdict = Pick<Condition, 'type' | 'status' | 'reason' | 'message'>;

/**
 * Merges what was decided into what is stored. The transition time changes only when the status does, so that an
 * unchanged world writes nothing.
 */
export function mergeConditions(
  stored: readonly Condition[] | undefined,
  decided: readonly Verdict[],
  generation: number,
  now: Date,
): Condition[] {
  return decided.map((verdict) => {
    const before = stored?.find((c) => c.type === verdict.type);
    const same = before?.status === verdict.status;
    return {
      ...verdict,
      message: verdict.message.slice(0, 2048),
      observedGeneration: generation,
      lastTransitionTime: same ? before.lastTransitionTime : now.toISOString().replace(/\.\d{3}Z$/, 'Z'),
    };
  });
}
