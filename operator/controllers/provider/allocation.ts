/**
 * Keeps each allocation where it should be: finishes what a crash interrupted, stops what is not paid, takes down what has
 * ended. Level-triggered: every few seconds each lease is looked at anew, from its record and the last chain read.
 */
import type { Hex32 } from '../../api/messages.ts';
import { enter, type Owner, planAllocation } from '../../core/allocation/plan.ts';
import type { Proof } from '../../core/allocation/proof.ts';
import { type LeaseRecord, leaseIdOfRecordName, type Meter, recordName } from '../../core/allocation/record.ts';
import type { Informer, ObjectKey, Result } from '../../engine/types.ts';
import type { ChainView } from './chain-view.ts';
import { type ProvisionOptions, provision } from './provision.ts';
import { type RecordSecret, readRecord } from './records.ts';
import type { Residue } from './residue.ts';

export interface AllocationOptions extends ProvisionOptions {
  readonly namespace: string;
  readonly watched: Informer<RecordSecret>;
  readonly chain: ChainView;
  /** What the chain bears out of a record, by a look of its own. Throws while it does not answer. */
  readonly prove: (record: LeaseRecord, signal: AbortSignal) => Promise<Proof>;
  /** The record as this process decides it, see proof.ts. */
  readonly decided: (record: LeaseRecord) => LeaseRecord;
  /** Whether the session key of the lease signed what is stored as its voucher. */
  readonly vouched: (record: LeaseRecord) => boolean;
  readonly residue: Residue;
  /** What the owner decided about leases of this consumer. */
  readonly owner?: (consumer: string) => Owner;
  /** A lease has ended: the chain may be told. */
  readonly ended: () => void;
  /** How often a serving lease is looked at. */
  readonly tickSeconds: number;
  /** Records are kept this long after their end, for late questions and for the books. */
  readonly retentionSeconds: number;
}

/** The meter runs in memory and is stored this often: a crash loses so much of what a consumer that does not pay owes. */
const meterSavedSeconds = 60;
const endingTickSeconds = 1;
/** After so long somebody should look why a tenant does not go. */
const lateSeconds = 120;

export type AllocationReconciler = (key: ObjectKey, signal: AbortSignal) => Promise<Result>;

export function createAllocationReconciler(options: AllocationOptions): AllocationReconciler {
  const { records, ledgers, tenants, stock, chain, now, log, counters } = options;
  const meters = new Map<string, Meter>();
  const believed = (record: LeaseRecord): LeaseRecord =>
    record.voucher === undefined || options.vouched(record) ? record : { ...record, voucher: undefined };

  async function tearDown(record: LeaseRecord, signal: AbortSignal): Promise<Result> {
    const nodeReady = stock.node(record.nodeName)?.ready ?? false;
    if (!(await tenants.tearDown(record.leaseId, nodeReady, signal))) return { requeueAfterSeconds: endingTickSeconds };
    await records.update(
      record.leaseId,
      (latest) => (latest.tornDown ? latest : { ...latest, tornDown: true, ...(nodeReady ? {} : { unseen: true }) }),
      signal,
    );
    return { requeueAfterSeconds: 0.01 };
  }

  /** The lease is over and may be settled; its room is given back only when nothing of its tenant is left. */
  async function clean(record: LeaseRecord, nowSeconds: number, signal: AbortSignal): Promise<Result | undefined> {
    const left = await options.residue.left(record, signal);
    if (left !== undefined) {
      if (record.nodeName !== '') await ledgers.note(record.nodeName, record.leaseId, left, signal);
      const waited = nowSeconds - Date.parse(record.endedAt ?? record.endingSince ?? record.createdAt) / 1000;
      if (waited > lateSeconds)
        log.warn(
          { leaseId: record.leaseId, node: record.nodeName, left },
          'a node is held: its last tenant is not gone',
        );
      return { requeueAfterSeconds: waited > lateSeconds ? 15 : endingTickSeconds };
    }
    if (record.nodeName !== '') await ledgers.free(record.nodeName, record.leaseId, signal);
    await records.update(record.leaseId, (latest) => (latest.tornDown ? { ...latest, clean: true } : latest), signal);
    return undefined;
  }

  return async (key, signal) => {
    const leaseId = leaseIdOfRecordName(key.name);
    if (leaseId === undefined) return {};
    const nowSeconds = Math.floor(now().getTime() / 1000);
    const seenOf = (told: LeaseRecord) => {
      const stored = believed(told);
      const meter = meters.get(leaseId) ?? stored.meter;
      return {
        record: meter === undefined || stored.state !== 'Serving' ? stored : { ...stored, meter },
        chain: chain.seen(leaseId),
        nodeReady: stock.node(stored.nodeName)?.ready ?? false,
        nowSeconds,
        owner: options.owner?.(stored.quote.consumer),
      };
    };
    // What goes on as it is, is seen from what was watched; everything else is decided on what is stored.
    const secret = options.watched.get(key);
    const known = secret && readRecord(secret, log);
    if (known?.state === 'Serving') {
      const { record } = planAllocation(seenOf(known));
      // Less credit than before: what was watched is older than what was read last.
      const isOlder = (record.meter?.creditedSeconds ?? 0) < (meters.get(leaseId)?.creditedSeconds ?? 0);
      if (record.state === 'Serving' && !isOlder && !shouldSave(known, record, nowSeconds)) {
        if (record.meter !== undefined) meters.set(leaseId, record.meter);
        return { requeueAfterSeconds: options.tickSeconds };
      }
    }
    const stored = await records.get(leaseId, signal);
    if (stored === undefined) {
      meters.delete(leaseId);
      return {};
    }
    const meter = meters.get(leaseId) ?? stored.meter;
    const seen = seenOf(stored);
    const plan = planAllocation(seen);
    const { record } = plan;
    if (record.state === 'Serving' && record.meter !== undefined) meters.set(leaseId, record.meter);
    else meters.delete(leaseId);

    if (record.state !== stored.state || shouldSave(stored, record, nowSeconds)) {
      const saved = await records.update(
        leaseId,
        (latest) => {
          if (latest.state !== stored.state) return latest;
          // Decided anew on the latest record: a voucher may have come in between.
          const { voucher } = latest;
          const told = believed(latest);
          const plan = planAllocation({ ...seen, record: meter === undefined ? told : { ...told, meter } });
          // What is not believed is not lost either: it is the gateway's to replace.
          const again = voucher === undefined ? plan.record : { ...plan.record, voucher };
          return again.state === latest.state && again.state !== 'Serving' ? latest : again;
        },
        signal,
      );
      if (saved !== undefined && saved.state !== stored.state) {
        if (saved.reason !== undefined) counters.count('gpulease_gateway_endings_total', { reason: saved.reason });
        if (saved.state === 'Ended') options.ended();
        log.info({ leaseId, state: saved.state, reason: saved.reason }, 'an allocation changed its state');
      }
      // Acted upon at the next look, which sees what is stored: a voucher that came in between may have taken it all back.
      if (record.state !== stored.state || saved?.state !== stored.state) return { requeueAfterSeconds: 0.01 };
    }

    switch (plan.action?.do) {
      case 'provision': {
        const proof = await options.prove(record, signal);
        if (!proof.proven) {
          if (proof.wait) return { requeueAfterSeconds: endingTickSeconds };
          await disbelieve(record, proof.differs, nowSeconds, signal);
          return { requeueAfterSeconds: 0.01 };
        }
        const provisioned = await provision(options, options.decided(record), signal);
        return { requeueAfterSeconds: provisioned.state === 'Provisioning' ? endingTickSeconds : options.tickSeconds };
      }
      case 'tearDown':
        return tearDown(record, signal);
      case undefined:
        break;
      default:
        plan.action satisfies never;
    }
    if (record.tornDown && !record.clean) {
      const wait = await clean(record, nowSeconds, signal);
      if (wait) return wait;
    }
    if (record.state === 'Ended') return retire(record, nowSeconds, signal);
    return { requeueAfterSeconds: options.tickSeconds };
  };

  async function disbelieve(
    record: LeaseRecord,
    differs: readonly string[],
    nowSeconds: number,
    signal: AbortSignal,
  ): Promise<void> {
    log.error({ leaseId: record.leaseId, differs }, 'a record differs from its escrow: nothing is made of it');
    await records.update(
      record.leaseId,
      (latest) => (latest.state === 'Provisioning' ? enter(latest, 'Ending', nowSeconds, 'Unproven') : latest),
      signal,
    );
  }

  function shouldSave(stored: LeaseRecord, record: LeaseRecord, nowSeconds: number): boolean {
    if (record.state !== 'Serving') return false;
    return (
      record.paidSeconds !== stored.paidSeconds ||
      record.leaveBy !== stored.leaveBy ||
      nowSeconds - (stored.meter?.countedUntil ?? 0) >= meterSavedSeconds
    );
  }

  async function retire(record: LeaseRecord, nowSeconds: number, signal: AbortSignal): Promise<Result> {
    const endedAt = Date.parse(record.endedAt ?? record.createdAt) / 1000;
    const left = endedAt + options.retentionSeconds - nowSeconds;
    if (!record.settled || left > 0) return { requeueAfterSeconds: Math.max(60, Math.min(left, 3600)) };
    await records.remove(record.leaseId, signal);
    return {};
  }
}

export const keyOfLease = (namespace: string, leaseId: Hex32): ObjectKey => ({ namespace, name: recordName(leaseId) });
