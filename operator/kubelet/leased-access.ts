/**
 * Keeps GpuAccess: tells the API server which namespaces may use which node, before the node is there. Writes are few and
 * carry all that has changed meanwhile, as a thousand nodes are in one object.
 *
 * Nothing waits for it. A node whose entry could not be written is registered all the same, and refuses pods itself.
 */
import { type AccessSpec, accessName, type GpuAccess } from '../api/access.ts';
import { apiVersion } from '../api/labels.ts';
import { accessChange, type NodeAccess } from '../core/node/leased-access.ts';
import type { Clock } from '../engine/clock.ts';
import { isAlreadyExists, isConflict, isNotFound } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';

/** What somebody else wrote, or took away, is noticed within this time. */
const readAgainSeconds = 60;
const retrySeconds = 10;
const attempts = 5;

export interface LeasedAccess {
  /** Resolves when it is written, or could not be: then the next call tries again. */
  keep(node: string, access: NodeAccess, signal?: AbortSignal): Promise<void>;
  forget(node: string, signal?: AbortSignal): Promise<void>;
}

export function createLeasedAccess(options: {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  /** Whether there is such a Node, as far as is known. */
  readonly exists: (node: string) => boolean;
}): LeasedAccess {
  const { cluster, clock, log } = options;
  const wanted = new Map<string, NodeAccess>();
  const forgotten = new Set<string>();
  let stored: (GpuAccess & KubeObject) | undefined;
  /** Something is wanted that was not written yet. Most calls are heartbeats, and cost no more than this look. */
  let changed = true;
  let readAtMs = Number.NEGATIVE_INFINITY;
  let failedAtMs = Number.NEGATIVE_INFINITY;
  let writing: Promise<void> | undefined;
  let toldLeftOut = false;

  const isDue = () => clock.monotonicMs() - readAtMs >= readAgainSeconds * 1000;

  async function write(signal?: AbortSignal): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      changed = false;
      try {
        if (!stored || isDue()) {
          stored = await cluster.get<GpuAccess & KubeObject>(resources.gpuAccesses, { name: accessName }, signal);
          stored ??= await cluster.create<GpuAccess & KubeObject>(resources.gpuAccesses, empty(), signal);
          readAtMs = clock.monotonicMs();
        }
        const gone = new Set(forgotten);
        const exists = (node: string) => !gone.has(node) && options.exists(node);
        const { patch, leftOut } = accessChange(specOf(stored), wanted, exists);
        if (leftOut.length > 0 && !toldLeftOut)
          log.warn(
            { nodes: leftOut.length },
            'GpuAccess is full: bindings to more nodes are refused by the nodes only',
          );
        toldLeftOut = leftOut.length > 0;
        if (patch) {
          const { resourceVersion } = stored.metadata;
          stored = await cluster.patch<GpuAccess & KubeObject>(
            resources.gpuAccesses,
            { name: accessName },
            { metadata: { resourceVersion }, spec: patch },
            { type: 'merge' },
            signal,
          );
        }
        for (const node of gone) forgotten.delete(node);
        return;
      } catch (error) {
        // Others write it, too: a person, or the process that led before us.
        const moved = isConflict(error) || isAlreadyExists(error) || (stored !== undefined && isNotFound(error));
        stored = undefined;
        changed = true;
        if (!moved || attempt === attempts) throw error;
      }
    }
  }

  /** One at a time; what changes while one is on its way is carried by the next, all at once. */
  async function settle(signal?: AbortSignal): Promise<void> {
    while (writing) await writing;
    if (!changed && !isDue()) return;
    if (clock.monotonicMs() - failedAtMs < retrySeconds * 1000) return;
    writing ??= write(signal)
      .catch((error: unknown) => {
        if (signal?.aborted) return;
        failedAtMs = clock.monotonicMs();
        log.warn(
          { error },
          isNotFound(error)
            ? 'the kind GpuAccess is not installed (see crds/): pods that may not use a lease are refused by its node only'
            : 'GpuAccess could not be written: pods that may not use a lease are refused by its node only',
        );
      })
      .finally(() => {
        writing = undefined;
      });
    await writing;
  }

  return {
    keep(node, access, signal) {
      const before = wanted.get(node);
      if (!before || !isSame(before, access)) {
        wanted.set(node, access);
        changed = true;
      }
      forgotten.delete(node);
      return settle(signal);
    },
    forget(node, signal) {
      wanted.delete(node);
      forgotten.add(node);
      changed = true;
      return settle(signal);
    },
  };
}

const isSame = (a: NodeAccess, b: NodeAccess): boolean =>
  a.lease === b.lease &&
  a.untainted === b.untainted &&
  a.ending === b.ending &&
  a.namespaces.length === b.namespaces.length &&
  a.namespaces.every((namespace, i) => namespace === b.namespaces[i]);

const empty = (): GpuAccess & KubeObject => ({
  apiVersion,
  kind: 'GpuAccess',
  metadata: { name: accessName },
  spec: { nodes: {}, untainted: [] },
});

const specOf = (object: GpuAccess): AccessSpec => ({
  nodes: object.spec?.nodes ?? {},
  untainted: object.spec?.untainted ?? [],
});
