/**
 * The life of a lease, decided:  Quoted → Funded → Provisioned → Registered → Ready;  then  Drained → Released → Settled → gone.
 *
 * Invariant: money is committed before hardware is asked for, and asked back only after it was let go. A crash between
 * two steps costs a tenant at most an unused deposit, which `settle` refunds.
 *
 * Each step is a file of its own and sees the same facts. The first condition that is not True is where the lease stands;
 * later ones are Unknown.
 */
import type { Verdict } from '../../api/conditions.ts';
import { finalizers } from '../../api/labels.ts';
import { receiptDue } from '../receipt/build.ts';
import type { Action } from './actions.ts';
import { drain } from './drain.ts';
import { whyEnd } from './end.ts';
import { fund } from './fund.ts';
import type { Observed } from './observed.ts';
import { provision } from './provision.ts';
import { quote } from './quote.ts';
import { register } from './register.ts';
import { release } from './release.ts';
import { serve } from './serve.ts';
import { settle } from './settle.ts';

export interface Decision {
  readonly status: Verdict['status'];
  readonly reason: string;
  readonly message: string;
  readonly actions?: readonly Action[];
  readonly requeueAfterSeconds?: number;
  /** Conditions beside the step's own: present only while they are True. */
  readonly also?: readonly Verdict[];
  /** Waits for a person: kstatus' Stalled. */
  readonly stalled?: boolean;
}

export interface Step {
  readonly condition: string;
  readonly decide: (seen: Observed) => Decision;
}

export interface Plan {
  readonly conditions: readonly Verdict[];
  readonly actions: readonly Action[];
  readonly requeueAfterSeconds: number;
}

const life: readonly Step[] = [quote, fund, provision, register, serve];
const ending: readonly Step[] = [drain, release, settle];

/** How often a lease is looked at when nothing is due. */
const idleSeconds = 300;

export function planLease(seen: Observed): Plan {
  const { lease, record } = seen;
  if (!lease.metadata.finalizers?.includes(finalizers.lease)) {
    if (lease.metadata.deletionTimestamp) return { conditions: [], actions: [], requeueAfterSeconds: idleSeconds };
    // Before the first outside effect: otherwise deleting the lease would strand its deposit.
    return { conditions: [], actions: [{ do: 'addFinalizer' }], requeueAfterSeconds: 0 };
  }
  if (lease.status?.endedAt) {
    const remove: Action[] = lease.metadata.deletionTimestamp ? [{ do: 'forget' }] : [];
    // It ended under an earlier version, which wrote none.
    const due = receiptDue(seen);
    if (due && record?.quote) remove.unshift({ do: 'writeReceipt', quote: record.quote, escrow: due });
    return {
      conditions: ended(lease.status.endReason ?? 'Released'),
      actions: remove,
      requeueAfterSeconds: idleSeconds,
    };
  }
  const why = whyEnd(seen);
  if (why && !record?.end) {
    return {
      conditions: walk(seen, ending, why).conditions,
      actions: [{ do: 'beginEnd', why }],
      requeueAfterSeconds: 0,
    };
  }
  return record?.end ? walk(seen, ending, record.end) : walk(seen, life);
}

function walk(seen: Observed, steps: readonly Step[], why?: { reason: string; message: string }): Plan {
  const conditions: Verdict[] = [];
  const actions: Action[] = [];
  let requeue = idleSeconds;
  let stopped: { condition: string; decision: Decision } | undefined;
  for (const step of steps) {
    if (stopped) {
      conditions.push({
        type: step.condition,
        status: 'Unknown',
        reason: `WaitingFor${stopped.condition}`,
        message: '',
      });
      continue;
    }
    const decision = step.decide(seen);
    conditions.push({
      type: step.condition,
      status: decision.status,
      reason: decision.reason,
      message: decision.message,
    });
    conditions.push(...(decision.also ?? []));
    actions.push(...(decision.actions ?? []));
    requeue = Math.min(requeue, decision.requeueAfterSeconds ?? idleSeconds);
    if (decision.status !== 'True') stopped = { condition: step.condition, decision };
  }
  return { conditions: headline(conditions, stopped, why), actions, requeueAfterSeconds: requeue };
}

/**
 * The root condition Ready, and kstatus' pair. Ready repeats the reason of the step where the lease stands, because that is
 * the one line that people read; a step that waits for a person makes it False, one that goes on by itself Unknown.
 */
function headline(
  conditions: Verdict[],
  stopped: { condition: string; decision: Decision } | undefined,
  why: { reason: string; message: string } | undefined,
): Verdict[] {
  const rest = conditions.filter((c) => c.type !== 'Ready');
  if (why) {
    const at = stopped?.decision;
    const message = `${why.reason}: ${why.message}${at?.message ? ` ${at.message}` : ''}`;
    const busy: Verdict = { type: 'Reconciling', status: 'True', reason: 'Releasing', message: at?.message ?? '' };
    return [{ type: 'Ready', status: 'False', reason: 'Releasing', message }, ...rest, busy];
  }
  if (!stopped) return [...rest, conditions.find((c) => c.type === 'Ready')!];
  const { reason, message, stalled } = stopped.decision;
  return [
    ...rest,
    { type: 'Ready', status: stalled ? 'False' : 'Unknown', reason, message },
    { type: stalled ? 'Stalled' : 'Reconciling', status: 'True', reason, message },
  ];
}

const ended = (reason: string): Verdict[] => [
  { type: 'Ready', status: 'False', reason: 'Completed', message: `The lease ended (${reason}) and is settled.` },
  { type: 'Drained', status: 'True', reason: 'Drained', message: '' },
  { type: 'Released', status: 'True', reason: 'Released', message: '' },
  { type: 'Settled', status: 'True', reason, message: 'See status.settlement for what was paid and refunded.' },
];
