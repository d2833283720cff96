/**
 * An independent witness of a lease: counts how long its Node was Ready from the Node's own conditions, and how many vouchers
 * moved the lease's count, by watching the API server as any user could.
 */

import { labels } from '../api/labels.ts';
import type { GpuLease } from '../api/lease.ts';
import { createInformer } from '../engine/informer.ts';
import { type Cluster, type Informer, type KubeObject, resources } from '../engine/types.ts';

interface Node extends KubeObject {
  status?: { conditions?: { type: string; status: string; lastTransitionTime?: string }[] };
}

export interface Witness {
  /** Seconds in which the Node was Ready, until it was deleted. */
  readySeconds(): number;
  readonly vouchers: number;
  readonly leaseReadySeconds: number | undefined;
  readonly lease: GpuLease | undefined;
  readonly node: string | undefined;
  onProgress(handler: (text: string) => void): void;
  stop(): void;
}

export async function watchLease(
  cluster: Cluster,
  key: { namespace: string; name: string },
  now: () => Date,
): Promise<Witness> {
  const stop = new AbortController();
  const leases: Informer<GpuLease & KubeObject> = createInformer<GpuLease & KubeObject>({
    cluster,
    resource: resources.gpuLeases,
    namespace: key.namespace,
    fieldSelector: `metadata.name=${key.name}`,
  });
  const nodes: Informer<Node> = createInformer<Node>({
    cluster,
    resource: resources.nodes,
    labelSelector: `${labels.lease}=${key.name}`,
  });
  let readyMs = 0;
  let readySince: number | undefined;
  let seconds = 0;
  let vouchers = 0;
  let firstReady: number | undefined;
  let last: GpuLease | undefined;
  let node: string | undefined;
  let told = '';
  let tell: (text: string) => void = () => undefined;

  nodes.onChange(({ type, object }) => {
    node = object.metadata.name;
    const ready = object.status?.conditions?.find((c) => c.type === 'Ready');
    const up = type !== 'deleted' && ready?.status === 'True';
    if (up && readySince === undefined) readySince = new Date(ready?.lastTransitionTime ?? now()).getTime();
    if (!up && readySince !== undefined) {
      // The transition's own time where there is one; a deleted node stops now.
      const until = type === 'deleted' ? now().getTime() : new Date(ready?.lastTransitionTime ?? now()).getTime();
      readyMs += Math.max(0, until - readySince);
      readySince = undefined;
    }
  });
  leases.onChange(({ type, object }) => {
    if (type === 'deleted') return tell('gone');
    last = object;
    const served = object.status?.settlement?.servedSeconds ?? 0;
    if (served > seconds) {
      seconds = served;
      vouchers += 1;
    }
    const ready = object.status?.conditions?.find((c) => c.type === 'Ready');
    if (!ready) return;
    if (ready.status === 'True' && firstReady === undefined)
      firstReady = (now().getTime() - new Date(object.metadata.creationTimestamp!).getTime()) / 1000;
    const text = `${ready.reason}: ${ready.message}`;
    if (text !== told) tell(text);
    told = text;
  });
  void leases.run(stop.signal);
  void nodes.run(stop.signal);
  await Promise.all([leases.waitForSync(), nodes.waitForSync()]);
  return {
    readySeconds: () => (readyMs + (readySince === undefined ? 0 : now().getTime() - readySince)) / 1000,
    get vouchers() {
      return vouchers;
    },
    get leaseReadySeconds() {
      return firstReady;
    },
    get lease() {
      return last;
    },
    get node() {
      return node;
    },
    onProgress: (handler) => {
      tell = handler;
    },
    stop: () => stop.abort(),
  };
}
