/** Registered: the virtual node exists in this cluster, and this process serves it. */
import type { Observed } from './observed.ts';
import { soonSeconds } from './pace.ts';
import type { Decision, Step } from './plan.ts';

export const register: Step = { condition: 'Registered', decide };

function decide(seen: Observed): Decision {
  const { record, node } = seen;
  // Also when the node is there: after a restart somebody has to serve it again, and starting twice is harmless.
  const actions = [{ do: 'startNode', quote: record!.quote! } as const];
  if (!node)
    return {
      status: 'Unknown',
      reason: 'NodeNotReady',
      message: 'Making the node.',
      actions,
      requeueAfterSeconds: soonSeconds(seen),
    };
  return { status: 'True', reason: 'NodeRegistered', message: `Node ${node.name}.`, actions };
}
