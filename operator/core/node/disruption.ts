/**
 * What Kubernetes says of a pod and a node when a node shuts down, as its own kubelet does: `DisruptionTarget` on pods that are
 * deleted for it, so that Jobs may leave such failures uncounted.
 * https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
 *
 * The node itself is cordoned and says `LeaseEnding`. It stays Ready meanwhile, unlike a node that shuts down: its pods are
 * still served, and what is served is billed by that condition.
 */
import type { Pod, PodCondition } from './pod.ts';
import { timestamp } from './translate-status.ts';
import type { NodeCondition } from './virtual-node.ts';

export const endingCondition = 'LeaseEnding';

/** Why a node's lease ends. */
export interface LeaseEnd {
  /** CamelCase. */
  readonly reason: string;
  readonly message: string;
}

/** Undefined when the pod says so already. */
export function disruptionTarget(pod: Pod, now: Date): PodCondition | undefined {
  const before = pod.status?.conditions?.find(({ type }) => type === 'DisruptionTarget');
  if (before?.status === 'True') return undefined;
  return {
    type: 'DisruptionTarget',
    status: 'True',
    reason: 'TerminationByKubelet',
    message: 'Pod was terminated because the lease of its node has ended.',
    lastTransitionTime: timestamp(now),
  };
}

/** Undefined when the node says so already. */
export function nodeEnding(
  stored: readonly NodeCondition[] | undefined,
  end: LeaseEnd,
  now: Date,
): NodeCondition | undefined {
  if (stored?.some(({ type, status }) => type === endingCondition && status === 'True')) return undefined;
  return {
    type: endingCondition,
    status: 'True',
    reason: end.reason,
    message: end.message.slice(0, 1024),
    lastHeartbeatTime: timestamp(now),
    lastTransitionTime: timestamp(now),
  };
}
