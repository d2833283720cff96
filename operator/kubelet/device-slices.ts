/** The ResourceSlice of a node whose lease shows its GPUs as devices. */
import { labels, managedBy } from '../api/labels.ts';
import { type ResourceSlice, resourceSlice } from '../core/node/device-claims.ts';
import type { Node } from '../core/node/virtual-node.ts';
import type { Clock } from '../engine/clock.ts';
import { sameJson } from '../engine/equal.ts';
import { isAlreadyExists, isConflict, isNotFound } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import type { NodeSpec } from './types.ts';

/** What somebody else wrote, or took away, is noticed within this time. */
const readAgainSeconds = 60;

export interface DeviceSlices {
  /** Nothing waits for it: without it the node has no devices, and the next look tries again. */
  keep(node: Node, spec: NodeSpec, signal?: AbortSignal): Promise<void>;
  forget(node: string): void;
}

export function createDeviceSlices(options: {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly log: Log;
}): DeviceSlices {
  const { cluster, clock, log } = options;
  /** By node: what was seen to be stored, and when. */
  const seen = new Map<string, { readonly wanted: ResourceSlice; readonly atMs: number }>();

  async function write(wanted: ResourceSlice, signal?: AbortSignal): Promise<void> {
    const key = { name: wanted.metadata.name };
    const stored = await cluster.get<ResourceSlice & KubeObject>(resources.resourceSlices, key, signal);
    const owner = wanted.metadata.ownerReferences![0]!.uid;
    // Of an earlier node of this name: it goes with that one, or here.
    if (stored && stored.metadata.ownerReferences?.[0]?.uid !== owner)
      await cluster.delete(resources.resourceSlices, key, { uid: stored.metadata.uid }, signal);
    else if (stored) {
      if (sameJson(stored.spec.devices, wanted.spec.devices)) return;
      const { generation } = stored.spec.pool;
      const spec = { ...wanted.spec, pool: { ...wanted.spec.pool, generation: generation + 1 } };
      const { resourceVersion } = stored.metadata;
      const metadata = { ...wanted.metadata, resourceVersion };
      await cluster.replace(resources.resourceSlices, { ...wanted, metadata, spec }, undefined, signal);
      return;
    }
    await cluster.create(resources.resourceSlices, wanted, signal);
  }

  return {
    async keep(node, spec, signal) {
      const { name, uid } = node.metadata;
      const wanted = resourceSlice({ name, uid: uid ?? '', labels: { [labels.managedBy]: managedBy } }, spec.served, 1);
      const before = seen.get(name);
      const nowMs = clock.monotonicMs();
      if (before && nowMs - before.atMs < readAgainSeconds * 1000 && sameJson(before.wanted, wanted)) return;
      try {
        await write(wanted, signal);
        seen.set(name, { wanted, atMs: nowMs });
      } catch (error) {
        if (signal?.aborted || isConflict(error) || isAlreadyExists(error)) return;
        log.warn(
          { node: name, error },
          isNotFound(error)
            ? 'this cluster serves no resource.k8s.io/v1 (Kubernetes 1.34 and newer do): the node has no devices'
            : 'the ResourceSlice of the node could not be written',
        );
      }
    },
    forget: (node) => void seen.delete(node),
  };
}
