/** Drained: no pod of the consumer is left on the node. */

import { paidSeconds } from '../money/escrow.ts';
import type { Action } from './actions.ts';
import { meterNow, servedSeconds } from './meter.ts';
import type { Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';
import { vouchWhenDue } from './serve.ts';

export const drain: Step = { condition: 'Drained', decide };

/** How long a provider may take to end pods that were deleted, and to say so. */
const confirmSeconds = 60;

function decide(seen: Observed): Decision {
  const { record, node, now, lease, allocation, chain } = seen;
  const end = record?.end;
  if (end?.drainedAt) return { status: 'True', reason: 'Drained', message: '' };
  if (!end) return { status: 'Unknown', reason: 'Draining', message: 'Beginning to drain.', requeueAfterSeconds: 0 };
  const meter = meterNow(record, seen);
  const drained = (message: string): Decision => ({
    status: 'Unknown',
    reason: 'Draining',
    message,
    actions: [{ do: 'markDrained', meter, at: now }],
    requeueAfterSeconds: 0,
  });
  if (!node || node.pods === 0) return drained('No pods are left.');
  const timeout = lease.spec.drainTimeoutSeconds;
  const waited = (now.getTime() - new Date(end.at).getTime()) / 1000;
  // What the deposit no longer pays for is not waited for.
  const spent = chain?.state === 'known' && chain.escrow && servedSeconds(meter) >= paidSeconds(chain.escrow);
  const force = waited >= timeout || spent === true;
  // Money is not locked for pods that do not end, or of which nobody says so: they go with the node.
  if (waited >= timeout + confirmSeconds)
    return drained(`${node.pods} pods are given up: nobody says that they have ended.`);
  const actions: Action[] = [];
  if (record.quote) {
    // After a restart somebody has to serve the node again, or nobody would hear that its pods have ended.
    actions.push({ do: 'startNode', quote: record.quote });
    // What is drained is still served, and a provider that is not paid would stop before the pods could.
    if (allocation?.state === 'known' && allocation.info.state === 'Serving')
      actions.push(...vouchWhenDue(seen).actions);
  }
  actions.push({ do: 'drainNode', nodeName: node.name, force, graceSeconds: Math.max(1, timeout), why: end });
  return {
    status: 'Unknown',
    reason: 'Draining',
    message: `${node.pods} pods are being ${!force ? 'evicted' : spent ? 'deleted: the deposit is used up' : `deleted: they did not go within ${timeout} s`}.`,
    actions,
    requeueAfterSeconds: 1,
  };
}
