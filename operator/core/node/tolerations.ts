/**
 * Kubernetes evicts pods from a node that is not ready for 300 seconds, by the `tolerationSeconds` that it adds to every
 * pod. On a virtual node that would end pods which still run, and are paid for, because the operator was away. So a pod
 * that is accepted tolerates both for ever, and is ended by us. Only where no policy of `eviction.ts` spares it the change.
 *
 * The API lets `tolerationSeconds` of an existing toleration change, and nothing else of it. Adding a second toleration
 * without seconds would not help: of all that match, the eviction controller takes the shortest.
 */
import type { Pod } from './pod.ts';

const keys: readonly (string | undefined)[] = ['node.kubernetes.io/not-ready', 'node.kubernetes.io/unreachable'];

export type JsonPatch = { op: 'test' | 'remove'; path: string; value?: unknown }[];

/** Undefined when the pod tolerates both for ever already. */
export function tolerationPatch(pod: Pod): JsonPatch | undefined {
  const operations: JsonPatch = [];
  pod.spec.tolerations?.forEach((toleration, i) => {
    if (toleration.tolerationSeconds === undefined || !keys.includes(toleration.key)) return;
    // The list may have grown since it was read: only what was seen is changed.
    operations.push(
      { op: 'test', path: `/spec/tolerations/${i}/key`, value: toleration.key },
      { op: 'remove', path: `/spec/tolerations/${i}/tolerationSeconds` },
    );
  });
  if (operations.length === 0) return undefined;
  return [{ op: 'test', path: '/metadata/uid', value: pod.metadata.uid }, ...operations];
}
