/** Drained: no pod of the consumer is left on the node. */
import { count } from './meter.ts';
import type { Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';

export const drain: Step = { condition: 'Drained', decide };

function decide(seen: Observed): Decision {
  const { record, node, now, lease } = seen;
  const end = record?.end;
  if (end?.drainedAt) return { status: 'True', reason: 'Drained', message: '' };
  if (!end) return { status: 'Unknown', reason: 'Draining', message: 'Beginning to drain.', requeueAfterSeconds: 0 };
  const meter = count(record.meter, node, now);
  if (!node || node.pods === 0)
    return {
      status: 'Unknown',
      reason: 'Draining',
      message: 'No pods are left.',
      actions: [{ do: 'markDrained', meter, at: now }],
      requeueAfterSeconds: 0,
    };
  const timeout = lease.spec.drainTimeoutSeconds;
  const force = now.getTime() - new Date(end.at).getTime() >= timeout * 1000;
  return {
    status: 'Unknown',
    reason: 'Draining',
    message: `${node.pods} pods are being ${force ? `deleted: they did not go within ${timeout} s` : 'evicted'}.`,
    actions: [{ do: 'drainNode', nodeName: node.name, force, graceSeconds: Math.max(1, timeout) }],
    requeueAfterSeconds: 1,
  };
}
