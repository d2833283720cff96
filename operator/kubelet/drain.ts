/**
 * Emptying a node, one step at a time: nothing here waits. Pods are evicted, so that PodDisruptionBudgets have their say,
 * until the deadline; after it they are deleted, since the node goes whatever they say. Deleted pods still get their grace.
 */

import { finalizers, labels, managedBy } from '../api/labels.ts';
import { disruptionTarget, type LeaseEnd, nodeEnding } from '../core/node/disruption.ts';
import { daemonTarget, isOfDaemonSet, isTerminal, type Pod } from '../core/node/pod.ts';
import { lostStatus } from '../core/node/translate-status.ts';
import type { Node } from '../core/node/virtual-node.ts';
import { ApiError, isConflict, isNotFound } from '../engine/errors.ts';
import { removeFinalizer } from '../engine/status.ts';
import { type Cluster, resources } from '../engine/types.ts';
import { heartbeatNamespace } from './node.ts';

export interface DrainProgress {
  /** Pods that have not ended yet. */
  readonly left: number;
  /** Pods whose eviction is refused, by a PodDisruptionBudget as a rule. */
  readonly blocked: readonly { readonly pod: string; readonly message: string }[];
}

const onNode = async (cluster: Cluster, name: string, signal?: AbortSignal): Promise<Pod[]> =>
  (await cluster.list<Pod>(resources.pods, { fieldSelector: `spec.nodeName=${name}` }, signal)).items;
const keyOf = (pod: Pod) => ({ namespace: pod.metadata.namespace, name: pod.metadata.name });

export interface DrainOptions {
  readonly why: LeaseEnd;
  readonly pastDeadline: boolean;
  readonly now: Date;
}

export async function drainStep(
  cluster: Cluster,
  name: string,
  { why, pastDeadline, now }: DrainOptions,
  signal?: AbortSignal,
): Promise<DrainProgress> {
  await cordon(cluster, name, why, now, signal);
  // DaemonSet pods never ran here, and would come back at once.
  const pods = (await onNode(cluster, name, signal)).filter((pod) => !isTerminal(pod) && !isOfDaemonSet(pod));
  const blocked: { pod: string; message: string }[] = [];
  for (const pod of pods) {
    if (pod.metadata.deletionTimestamp) continue;
    const { uid } = pod.metadata;
    try {
      if (pastDeadline) {
        await markDisrupted(cluster, pod, now, signal);
        await cluster.delete(resources.pods, keyOf(pod), { uid }, signal);
      } else
        await cluster.createSubresource(
          resources.pods,
          keyOf(pod),
          'eviction',
          {
            apiVersion: 'policy/v1',
            kind: 'Eviction',
            metadata: keyOf(pod),
            deleteOptions: { preconditions: { uid } },
          },
          signal,
        );
    } catch (error) {
      if (isNotFound(error) || isConflict(error)) continue;
      if (!(error instanceof ApiError)) throw error;
      blocked.push({ pod: `${pod.metadata.namespace}/${pod.metadata.name}`, message: error.message });
    }
  }
  return { left: pods.length, blocked };
}

async function cordon(cluster: Cluster, name: string, why: LeaseEnd, now: Date, signal?: AbortSignal): Promise<void> {
  const node = await cluster.get<Node>(resources.nodes, { name }, signal);
  if (!node) return;
  if (!node.spec.unschedulable)
    await cluster.patch(resources.nodes, { name }, { spec: { unschedulable: true } }, { type: 'merge' }, signal);
  const condition = nodeEnding(node.status?.conditions, why, now);
  if (condition)
    await cluster.patch(
      resources.nodes,
      { name },
      { metadata: { uid: node.metadata.uid }, status: { conditions: [condition] } },
      { type: 'strategic', subresource: 'status' },
      signal,
    );
}

/** A courtesy to Jobs: a pod is deleted whether it could be written or not. */
async function markDisrupted(cluster: Cluster, pod: Pod, now: Date, signal?: AbortSignal): Promise<void> {
  const condition = disruptionTarget(pod, now);
  if (!condition) return;
  try {
    await cluster.patch(
      resources.pods,
      keyOf(pod),
      { metadata: { uid: pod.metadata.uid }, status: { conditions: [condition] } },
      { type: 'strategic', subresource: 'status' },
      signal,
    );
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

/**
 * Takes away the node of a lease that has ended. Its provider will say nothing more, so what is left of its pods ends here.
 * True when the Node is gone; until then, call again.
 */
export async function removeNode(cluster: Cluster, name: string, now: Date, signal?: AbortSignal): Promise<boolean> {
  const node = await cluster.get<Node>(resources.nodes, { name }, signal);
  // Only a node of ours: the name alone would also fit a stranger's.
  if (node && node.metadata.labels?.[labels.managedBy] !== managedBy) return true;
  for (const pod of await onNode(cluster, name, signal)) {
    if (isTerminal(pod) && !pod.metadata.deletionTimestamp) continue;
    await endPod(cluster, pod, now, signal);
  }
  await cluster.delete(resources.leases, { namespace: heartbeatNamespace, name }, {}, signal);
  if (!node) return true;
  if (!node.metadata.deletionTimestamp)
    await cluster.delete(resources.nodes, { name }, { uid: node.metadata.uid }, signal);
  await removeFinalizer(cluster, resources.nodes, node, finalizers.node, signal);
  if ((await cluster.get(resources.nodes, { name }, signal)) !== undefined) return false;
  await endWaiting(cluster, name, signal);
  return true;
}

/**
 * Pods of DaemonSets that were made for this node, and kept unbound by policy. Their controller takes them away, but only
 * when something else makes it look.
 */
async function endWaiting(cluster: Cluster, name: string, signal?: AbortSignal): Promise<void> {
  const { items } = await cluster.list<Pod>(
    resources.pods,
    { fieldSelector: 'spec.nodeName=', labelSelector: 'controller-revision-hash' },
    signal,
  );
  for (const pod of items)
    if (isOfDaemonSet(pod) && daemonTarget(pod) === name)
      await cluster.delete(resources.pods, keyOf(pod), { uid: pod.metadata.uid }, signal).catch(ignoreConflict);
}

const ignoreConflict = (error: unknown): void => {
  if (!isConflict(error)) throw error;
};

async function endPod(cluster: Cluster, pod: Pod, now: Date, signal?: AbortSignal): Promise<void> {
  const { uid } = pod.metadata;
  try {
    if (!isTerminal(pod) && !isOfDaemonSet(pod)) {
      const status = lostStatus(pod, 'LeaseEnded', 'The lease of the node has ended.', now);
      const disrupted = disruptionTarget(pod, now);
      if (disrupted) status.conditions = [...(status.conditions ?? []), disrupted];
      await cluster.patch(
        resources.pods,
        keyOf(pod),
        { metadata: { uid }, status },
        { type: 'strategic', subresource: 'status' },
        signal,
      );
    }
    await cluster.delete(resources.pods, keyOf(pod), { gracePeriodSeconds: 0, uid }, signal);
  } catch (error) {
    if (!isNotFound(error) && !isConflict(error)) throw error;
  }
}
