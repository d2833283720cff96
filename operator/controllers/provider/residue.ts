/** Looks what of a tenant is left; what that means is decided in core/allocation/residue.ts. */
import type { LeaseRecord } from '../../core/allocation/record.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { leftOver, type Remains } from '../../core/allocation/residue.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';

/** Pods of a namespace that a node's kubelet knows of. Throws when it cannot be asked. */
export type KubeletPods = (node: string, namespace: string, signal?: AbortSignal) => Promise<number>;

interface Namespace extends KubeObject {
  status?: { conditions?: { type: string; status: string; message?: string }[] };
}
interface Node extends KubeObject {
  status?: { conditions?: { type: string; status: string; lastTransitionTime?: string }[] };
}
interface Volume extends KubeObject {
  spec?: { claimRef?: { namespace?: string }; persistentVolumeReclaimPolicy?: string };
}

export interface Residue {
  /** In words; undefined: nothing. */
  left(
    held: Pick<LeaseRecord, 'leaseId' | 'nodeName'> & {
      [field in 'storage' | 'unseen']?: LeaseRecord[field] | undefined;
    },
    signal?: AbortSignal,
  ): Promise<string | undefined>;
}

export function createResidue(options: {
  readonly cluster: Cluster;
  readonly kubeletPods?: KubeletPods;
  readonly now: () => Date;
  readonly log: Log;
}): Residue {
  const { cluster, now, log } = options;
  return {
    async left(record, signal) {
      const name = tenantNamespace(record.leaseId);
      const [namespace, volumes, node] = await Promise.all([
        cluster.get<Namespace>(resources.namespaces, { name }, signal),
        // A claim is bound late, so volumes are looked for where claims were allowed, whether or not one was seen.
        record.storage === undefined
          ? []
          : cluster.list<Volume>(resources.persistentVolumes, {}, signal).then(({ items }) => items),
        record.nodeName === '' ? undefined : cluster.get<Node>(resources.nodes, { name: record.nodeName }, signal),
      ]);
      const readySince = node?.status?.conditions?.find(
        ({ type, status }) => type === 'Ready' && status === 'True',
      )?.lastTransitionTime;
      const running =
        node === undefined
          ? undefined
          : await options.kubeletPods?.(record.nodeName, name, signal).catch((error: Error) => {
              signal?.throwIfAborted();
              log.debug({ node: record.nodeName, error: error.message }, 'a kubelet cannot be asked for pods');
              return undefined;
            });
      const remains: Remains = {
        ...(namespace === undefined ? {} : { namespace: { name, conditions: namespace.status?.conditions } }),
        volumes: volumes
          .filter(({ spec }) => spec?.claimRef?.namespace === name && spec.persistentVolumeReclaimPolicy === 'Delete')
          .map(({ metadata }) => metadata.name),
        running,
        nodeIsThere: node !== undefined,
        ...(readySince === undefined ? {} : { nodeReadySeconds: (now().getTime() - Date.parse(readySince)) / 1000 }),
        unseen: record.unseen === true,
      };
      return leftOver(remains);
    },
  };
}
