/**
 * The operator's own memory of its leases: one Secret a lease in the operator's namespace, written before what depends on
 * it is done. A Secret, because it holds the provider's signature, with which the lease's escrow can be opened.
 *
 * All records are read at start and kept; there is one writer, the leader, and each write names the version that it
 * replaces, so that a leader who lost the lock without noticing cannot overwrite its successor. Where such a write fails, or
 * nobody knows whether it was made, what is stored is the truth: it is read again, and the reconciler decides anew.
 */
import { group, labels, managedBy } from '../../api/labels.ts';
import type { GpuLease } from '../../api/lease.ts';
import type { Meter } from '../../core/lease/meter.ts';
import type { LeaseRecord } from '../../core/lease/observed.ts';
import type { Clock } from '../../engine/clock.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

interface Secret extends KubeObject {
  type?: string;
  data?: Record<string, string>;
}

export interface LeaseRecords {
  get(uid: string): LeaseRecord | undefined;
  /** By UID of the lease. */
  all(): ReadonlyMap<string, LeaseRecord>;
  /** The same for limits that leases share: what was written with an outcome that nobody knows is taken to be stored. */
  committed(): ReadonlyMap<string, LeaseRecord>;
  /** Since the moment up to which this process counted the stored meter, on a clock that nobody sets; undefined where another did. */
  sinceCountedMs(uid: string): number | undefined;
  /** In memory alone, until the next save: for what may be forgotten, as it is found out again. */
  keep(uid: string, record: LeaseRecord): void;
  save(lease: GpuLease, record: LeaseRecord, signal?: AbortSignal): Promise<void>;
  remove(uid: string, signal?: AbortSignal): Promise<void>;
}

export const emptyRecord: LeaseRecord = {
  attempt: 1,
  meter: { servedMs: 0 },
  signedSeconds: 0,
  vouchedSeconds: 0,
  avoid: [],
  attempts: [],
};

export async function loadRecords(
  cluster: Cluster,
  namespace: string,
  clock: Pick<Clock, 'now' | 'monotonicMs'>,
  signal?: AbortSignal,
): Promise<LeaseRecords> {
  const type = `${group}/lease-record`;
  const records = new Map<string, LeaseRecord>();
  const versions = new Map<string, string>();
  /** When, by the monotonic clock, it was what `meter.countedUntil` says. */
  const countedUntilMs = new Map<string, number>();
  /** Written with an outcome that nobody knows, or by another: to be read again before anything is written over it. */
  const doubtful = new Map<string, LeaseRecord>();
  const name = (uid: string) => `lease-${uid}`;

  function remember(secret: Secret): void {
    const uid = secret.metadata.labels?.[labels.leaseUid];
    const text = secret.data?.record;
    if (secret.type !== type || !uid || text === undefined) return;
    records.set(uid, JSON.parse(Buffer.from(text, 'base64').toString('utf8')) as LeaseRecord);
    versions.set(uid, secret.metadata.resourceVersion ?? '');
  }

  /** A meter may be stored long after the moment up to which it counts: a provider was slow to answer, or was silent by then. */
  function momentOf({ countedUntil }: Meter): number {
    const agoMs = countedUntil === undefined ? 0 : clock.now().getTime() - new Date(countedUntil).getTime();
    return clock.monotonicMs() - Math.max(0, agoMs);
  }

  async function readAgain(uid: string, readSignal?: AbortSignal): Promise<void> {
    const secret = await cluster.get<Secret>(resources.secrets, { namespace, name: name(uid) }, readSignal);
    records.delete(uid);
    versions.delete(uid);
    countedUntilMs.delete(uid);
    if (secret) remember(secret);
    doubtful.delete(uid);
  }

  const { items } = await cluster.list<Secret>(
    resources.secrets,
    { namespace, labelSelector: `${labels.managedBy}=${managedBy},${labels.leaseUid}` },
    signal,
  );
  for (const secret of items) remember(secret);

  return {
    get: (uid) => records.get(uid),
    all: () => records,
    committed: () => (doubtful.size === 0 ? records : new Map([...records, ...doubtful])),
    sinceCountedMs(uid) {
      const until = countedUntilMs.get(uid);
      return until === undefined ? undefined : clock.monotonicMs() - until;
    },
    keep(uid, record) {
      if (!doubtful.has(uid) && records.has(uid)) records.set(uid, record);
    },
    async save(lease, record, saveSignal) {
      const uid = lease.metadata.uid!;
      if (doubtful.has(uid)) {
        await readAgain(uid, saveSignal);
        throw new Error(`the record of lease ${uid} was read again: what was decided before is decided anew`);
      }
      const version = versions.get(uid);
      const owned: LeaseRecord = {
        ...record,
        lease: { namespace: lease.metadata.namespace ?? '', name: lease.metadata.name },
      };
      const secret: Secret = {
        apiVersion: 'v1',
        kind: 'Secret',
        type,
        metadata: {
          name: name(uid),
          namespace,
          labels: {
            [labels.managedBy]: managedBy,
            [labels.leaseUid]: uid,
            [labels.leaseNamespace]: lease.metadata.namespace ?? '',
            [labels.lease]: lease.metadata.name.slice(0, 63),
          },
          ...(version === undefined ? {} : { resourceVersion: version }),
        },
        data: { record: Buffer.from(JSON.stringify(owned)).toString('base64') },
      };
      const countedUntil = momentOf(owned.meter);
      doubtful.set(uid, owned);
      const saved =
        version === undefined
          ? await cluster.create<Secret>(resources.secrets, secret, saveSignal)
          : await cluster.replace<Secret>(resources.secrets, secret, undefined, saveSignal);
      versions.set(uid, saved.metadata.resourceVersion ?? '');
      if (owned.meter.countedUntil !== records.get(uid)?.meter.countedUntil) countedUntilMs.set(uid, countedUntil);
      records.set(uid, owned);
      doubtful.delete(uid);
    },
    async remove(uid, removeSignal) {
      await cluster.delete(resources.secrets, { namespace, name: name(uid) }, undefined, removeSignal);
      records.delete(uid);
      versions.delete(uid);
      countedUntilMs.delete(uid);
      doubtful.delete(uid);
    },
  };
}
