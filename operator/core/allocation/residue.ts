/**
 * What of a tenant is left after its pods have ended, in words. While anything is, its GPUs are sold to nobody: the next
 * tenant must not meet the last one's processes, nor its data.
 *
 * A pod is gone from the API server once the kubelet has ended its containers. Where the node was silent and the pod was
 * taken away without its word, only the node itself can tell: the GPUs stay held until its kubelet answers, or until the
 * node is gone from the cluster. A kubelet that comes back ends what the API server knows no more, so where it cannot be
 * asked, it is given two minutes for that. What runs on a GPU without any container is not seen from here.
 */
export interface Remains {
  /** Absent: it is gone. */
  readonly namespace?: {
    readonly name: string;
    readonly conditions?: readonly { readonly type: string; readonly status: string; readonly message?: string }[];
  };
  /** PersistentVolumes of the tenant that its storage class deletes. */
  readonly volumes: readonly string[];
  /** Pods of the tenant that the node's kubelet knows of; undefined: it was not to be had. */
  readonly running?: number;
  readonly nodeIsThere: boolean;
  /** For how long the node's control plane has heard from it; undefined: it does not. */
  readonly nodeReadySeconds?: number;
  /** Pods were taken away without the word of their node. */
  readonly unseen: boolean;
}

const kubeletEndsWithinSeconds = 120;

/** Undefined: nothing is left. */
export function leftOver(remains: Remains): string | undefined {
  const { namespace, volumes, running, nodeIsThere, unseen } = remains;
  const left: string[] = [];
  if (namespace) {
    const why = namespace.conditions
      ?.filter(({ type, status }) => status === 'True' && type.startsWith('Namespace'))
      .map(({ message }) => message ?? '')
      .filter((message) => message !== '');
    left.push(`namespace ${namespace.name} is being deleted${why?.length ? `: ${why.join(' ')}` : ''}`);
  }
  if (volumes.length > 0) left.push(`volumes are being deleted: ${volumes.slice(0, 4).join(', ')}`);
  if (nodeIsThere && running !== undefined && running > 0) left.push(`the kubelet still knows ${running} of its pods`);
  if (nodeIsThere && running === undefined && unseen && (remains.nodeReadySeconds ?? 0) < kubeletEndsWithinSeconds)
    left.push('its pods were taken away while the node was silent, and the kubelet cannot be asked whether they run');
  return left.length === 0 ? undefined : left.join('; ').slice(0, 300);
}
