/** GpuLease: observe → plan → report → apply. What is decided stands in core/lease; here is only what it takes to see and to do. */
import type { GpuLease } from '../../api/lease.ts';
import type { Action } from '../../core/lease/actions.ts';
import type { Observed } from '../../core/lease/observed.ts';
import { planLease } from '../../core/lease/plan.ts';
import { type KubeObject, type ObjectKey, type Reconcile, type Result, resources } from '../../engine/types.ts';
import { applyAction } from './apply-lease.ts';
import { observeLease } from './observe-lease.ts';
import { reportLease } from './report-lease.ts';
import type { LeaseWorld } from './world.ts';

/** More rounds than any lease needs in one go; a plan that never settles is a bug that must not spin. */
const maxRounds = 12;

export const reconcileLease =
  (world: LeaseWorld): Reconcile =>
  (key: ObjectKey, signal: AbortSignal) =>
    reconcile(
      world,
      async () => {
        const lease = await world.cluster.get<GpuLease & KubeObject>(resources.gpuLeases, key, signal);
        return lease && observeLease(world, lease, signal);
      },
      signal,
    );

/** `observe` is asked again after each round of actions; undefined: gone, nothing left to want. */
export async function reconcile(
  world: LeaseWorld,
  observe: () => Promise<Observed | undefined>,
  signal: AbortSignal,
): Promise<Result> {
  let requeueAfterSeconds = 0;
  for (let round = 0; round < maxRounds; round += 1) {
    const seen = await observe();
    if (!seen) return {};
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
}
