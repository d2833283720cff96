/**
 * LowFunds, a condition that is present only while it holds: money is running out and none can be added, or a budget is
 * exceeded. The lease is still served; unless somebody does something, it will be drained. People are told once when it
 * begins, and once when it is over: whoever sends money before the drain begins keeps the lease going.
 */
import type { Verdict } from '../../api/conditions.ts';
import { exceededFor } from '../budget/room.ts';
import { spenderOf } from '../budget/spender.ts';
import { paidSeconds } from '../money/escrow.ts';
import type { Action } from './actions.ts';
import { endsAtServedSeconds } from './end.ts';
import type { Observed } from './observed.ts';
import type { TopUp } from './top-up.ts';

export function lowFunds(
  seen: Observed,
  { short }: TopUp,
  served: number,
): { readonly conditions: readonly Verdict[]; readonly actions: readonly Action[]; readonly waitSeconds: number } {
  const { record, chain, lease, now, settings } = seen;
  const never = Number.POSITIVE_INFINITY;
  if (chain?.state === 'unknown' && record?.lowFundsAt !== undefined) {
    const message = 'Money was running out when the chain was last read.';
    return {
      conditions: [{ type: 'LowFunds', status: 'Unknown', reason: chain.reason, message }],
      actions: [],
      waitSeconds: never,
    };
  }
  const escrow = chain?.state === 'known' ? chain.escrow : undefined;
  if (!record || !escrow) return { conditions: [], actions: [], waitSeconds: never };
  const exceeded = seen.budgetsDrain ? exceededFor(seen.budgets, spenderOf(record)!) : undefined;
  const clock = (ms: number) => new Date(ms).toISOString().replace(/\.\d{3}Z$/, 'Z');
  const who = `Lease ${lease.metadata.namespace}/${lease.metadata.name}`;
  const begin = (reason: string, message: string, drainMs: number) => ({
    conditions: [{ type: 'LowFunds', status: 'True', reason, message } as const],
    actions:
      record.lowFundsAt === undefined
        ? [
            {
              do: 'tellLow',
              at: now,
              message: `${who} is about to end: ${message} Unless that changes, its pods are asked to end at about ${clock(drainMs)}.`,
            } as const,
          ]
        : [],
    waitSeconds: Math.max(0.2, (drainMs - now.getTime()) / 1000),
  });
  if (exceeded) return begin('BudgetExceeded', exceeded.message, exceeded.drainAt.getTime());
  const low = paidSeconds(escrow) < escrow.maxSeconds && paidSeconds(escrow) - served < settings.lowWaterSeconds;
  if (short && low) {
    const left = Math.max(0, endsAtServedSeconds(seen, escrow) - served);
    return begin(
      short.reason,
      `The deposit pays for less than ${settings.lowWaterSeconds} s more, and nothing can be added: ${short.message}`,
      now.getTime() + left * 1000,
    );
  }
  // A top-up that is on its way is no money yet.
  const restored = record.lowFundsAt !== undefined && !low;
  return {
    conditions: [],
    actions: restored ? [{ do: 'tellFunded' }] : [],
    waitSeconds: never,
  };
}
