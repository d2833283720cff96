/** GpuLease: observe → plan → report → apply. What is decided stands in core/lease; here is only what it takes to see and to do. */
import type { Action } from '../../core/lease/actions.ts';
import { planLease } from '../../core/lease/plan.ts';
import type { ObjectKey, Reconcile, Result } from '../../engine/types.ts';
import { applyAction } from './apply-lease.ts';
import { observeLease } from './observe-lease.ts';
import { reportLease } from './report-lease.ts';
import type { LeaseWorld } from './world.ts';

/** More rounds than any lease needs in one go; a plan that never settles is a bug that must not spin. */
const maxRounds = 12;

export const reconcileLease =
  (world: LeaseWorld): Reconcile =>
  async (key: ObjectKey, signal: AbortSignal): Promise<Result> => {
    let requeueAfterSeconds = 0;
    for (let round = 0; round < maxRounds; round += 1) {
      const seen = await observeLease(world, key, signal);
      if (!seen) return {}; // gone: nothing left to want
      const plan = planLease(seen);
      await reportLease(world, seen, plan.conditions, signal); // what we saw, before we act on it
      for (const action of plan.actions) {
        if (signal.aborted) return {};
        await applyAction(world, seen, action as Action, signal);
      }
      requeueAfterSeconds = plan.requeueAfterSeconds;
      // Zero: the actions changed what the next step looks at, so look again at once.
      if (requeueAfterSeconds > 0) break;
    }
    return { requeueAfterSeconds: Math.max(0.2, requeueAfterSeconds) };
  };
