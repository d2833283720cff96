/**
 * What is left of leases that are gone without having ended: somebody took the finalizer away, put a cluster back from a
 * backup, deleted a record by hand. Level-triggered: now and then all that is ours is compared with all that there is, so
 * a missed event costs one sweep at most. What is found is counted, and ended as a lease is: pods, node, hardware, money.
 *
 *   a record without its lease    the lease's own end, by what the record tells: drain, release, settle
 *   a Node without record, lease  its pods end with it
 *   an escrow without a record    the contract is asked to stop the clock; after the claim window it pays and refunds
 *
 * Only facts count: whether a lease is there, the API server itself is asked, and after everything that belongs to it.
 */
import { apiVersion, finalizers } from '../../api/labels.ts';
import { type GpuLease, leaseSpec } from '../../api/lease.ts';
import { gpuModelNames } from '../../api/models.ts';
import type { LeaseRecord } from '../../core/lease/observed.ts';
import { type KubeObject, type Reconcile, resources } from '../../engine/types.ts';
import { reconcile } from './lease.ts';
import { observeLease } from './observe-lease.ts';
import type { LeaseMetrics, LeaseWorld } from './world.ts';

type Kind = Parameters<LeaseMetrics['orphan']>[0];
export type Sweep = (signal: AbortSignal) => Promise<void>;

/** `enqueue` is given the UIDs of leases that are gone and left a record; `reconcileOrphan` ends them. */
export function createSweep(world: LeaseWorld, enqueue: (uid: string) => void): Sweep {
  let suspected: ReadonlySet<string> = new Set();

  return async (signal) => {
    const found = new Set<string>();
    /** Twice in a row: what is just being made, or just going, is nobody's for a moment. */
    const isOrphan = (kind: Kind, name: string) => {
      const id = `${kind}/${name}`;
      found.add(id);
      if (!suspected.has(id)) return false;
      world.metrics?.orphan(kind);
      world.log.warn({ kind, name }, 'found what no lease stands behind; ending it');
      return true;
    };
    const records = new Map(world.records.all());
    const nodes = await world.nodes.all(signal);
    // After what belongs to them: a lease that is made meanwhile is seen with what it made.
    const { items } = await world.cluster.list(
      resources.gpuLeases,
      { trim: ({ metadata: { name, namespace, uid } }) => ({ metadata: { name, namespace, uid } }) },
      signal,
    );
    const leases = new Set(items.map((lease) => lease.metadata.uid));

    for (const [uid, { lease }] of records)
      if (lease && !leases.has(uid) && isOrphan('lease', `${lease.namespace}/${lease.name}/${uid}`)) enqueue(uid);
    for (const { name, leaseUid } of nodes)
      if (!leases.has(leaseUid) && !records.has(leaseUid) && isOrphan('node', name))
        await world.nodes.end(name, signal);
    for (const stray of await world.money.strays((leaseId) => hasRecord(world, leaseId), signal))
      if (isOrphan('escrow', stray.leaseId)) await world.money.endStray(stray, signal);
    suspected = found;
  };
}

function hasRecord({ records }: LeaseWorld, leaseId: string): boolean {
  for (const { quote } of records.all().values()) if (quote?.leaseId === leaseId) return true;
  return false;
}

/** Ends the lease whose record this is, as if it had just been deleted. Its key is its UID: the name may be another's by now. */
export const reconcileOrphan =
  (world: LeaseWorld): Reconcile =>
  ({ name: uid }, signal) =>
    reconcile(
      world,
      async () => {
        const record = world.records.get(uid);
        if (!record?.lease) return undefined;
        const there = await world.cluster.get<KubeObject>(resources.gpuLeases, record.lease, signal);
        if (there?.metadata.uid === uid) return undefined;
        const seen = await observeLease(world, goneLease(uid, record, world.now()), signal);
        return { ...seen, orphaned: true };
      },
      signal,
    );

/** How long pods of a lease that is gone may take to end. */
const drainTimeoutSeconds = 60;

function goneLease(uid: string, record: LeaseRecord, now: Date): GpuLease {
  const { namespace, name } = record.lease!;
  return {
    apiVersion,
    kind: 'GpuLease',
    metadata: { namespace, name, uid, finalizers: [finalizers.lease], deletionTimestamp: now.toISOString() },
    spec: {
      // Nothing is asked for any more: of all this, only the term and the times still mean something.
      ...leaseSpec.parse({ gpu: { models: [gpuModelNames[0]] }, pricing: { maxPricePerGpuHour: '1' } }),
      term: { durationSeconds: record.quote?.signed.quote.maxSeconds ?? 3600 },
      drainTimeoutSeconds,
    },
    ...(record.settled && record.end ? { status: { endedAt: record.end.at, endReason: record.end.reason } } : {}),
  };
}
