/**
 * At most one of several replicas acts: the one that holds a coordination Lease.
 *
 *   waiting ──free, or unchanged for a whole term──► leading ──could not renew in time──► lost
 *                                                       └──asked to stop, work has ended──► released
 *
 * Clocks are not trusted to agree. The record's times are written for people and never read: whether another holder's
 * term is over is measured from when we saw its record change, on our own monotonic clock. A holder counts its own term
 * from before the renewal was sent, and for a shorter time than others wait.
 *
 * A process that was paused wakes up still believing: `isLeader()` measures again each time, so ask it before an act that
 * must not happen twice. What it cannot fence is a request already sent; those need a compare-and-swap of their own.
 */
import { type Clock, sleep, systemClock } from './clock.ts';
import { isAlreadyExists, isConflict } from './errors.ts';
import { silentLog } from './log.ts';
import type { EngineMetrics } from './metrics.ts';
import { type Cluster, type KubeObject, type Log, type ObjectKey, resources } from './types.ts';

export interface LeaderOptions {
  /** With connections of its own: behind all that is to be sent on a busy day, a renewal would come too late. */
  readonly cluster: Cluster;
  readonly namespace: string;
  /** Of the Lease object. */
  readonly name: string;
  /** Must be of this process alone, also across restarts: host name and a random part. */
  readonly identity: string;
  readonly leaseDurationSeconds?: number;
  readonly renewDeadlineSeconds?: number;
  readonly retrySeconds?: number;
  readonly clock?: Clock;
  readonly log?: Log;
  readonly metrics?: EngineMetrics;
  /** The work. Its signal fires when leadership ends, whichever way; the lock is released after this has settled. */
  readonly onLead: (signal: AbortSignal, isLeader: () => boolean) => Promise<void> | void;
  /** Leadership was lost, not given up: another replica may lead by now. The usual answer is to end the process. */
  readonly onLost?: (why: string) => void;
}

export interface Leadership {
  /** True only while nobody else can lead. Cheap: no request. */
  isLeader(): boolean;
  /** Settles when this replica will not act any more. Rejects with what `onLead` threw. */
  readonly ended: Promise<'stopped' | 'lost' | 'finished'>;
}

interface CoordinationLease extends KubeObject {
  spec?: {
    holderIdentity?: string;
    leaseDurationSeconds?: number;
    acquireTime?: string;
    renewTime?: string;
    leaseTransitions?: number;
  };
}

/** Waits for leadership, then leads until the signal fires, the work ends, or leadership is lost. It does not come back. */
export function runAsLeader(options: LeaderOptions, signal: AbortSignal): Leadership {
  const { cluster, identity, metrics } = options;
  const clock = options.clock ?? systemClock;
  const leaseDurationSeconds = options.leaseDurationSeconds ?? 15;
  const renewDeadlineSeconds = options.renewDeadlineSeconds ?? 10;
  const retrySeconds = options.retrySeconds ?? 2;
  if (!(retrySeconds < renewDeadlineSeconds && renewDeadlineSeconds < leaseDurationSeconds))
    throw new RangeError('leadership needs retrySeconds < renewDeadlineSeconds < leaseDurationSeconds');
  const key: ObjectKey = { namespace: options.namespace, name: options.name };
  const log = (options.log ?? silentLog).child({ lock: `${options.namespace}/${options.name}`, identity });

  let record: CoordinationLease | undefined;
  let recordSeenMs = 0;
  let renewed: { monotonicMs: number; wallMs: number } | undefined;

  const mark = () => ({ monotonicMs: clock.monotonicMs(), wallMs: clock.now().getTime() });
  /** Since our last renewal was sent. The larger of both clocks: one stands still while the machine is suspended. */
  const sinceRenewalMs = () =>
    renewed === undefined
      ? Number.POSITIVE_INFINITY
      : Math.max(clock.monotonicMs() - renewed.monotonicMs, clock.now().getTime() - renewed.wallMs);
  const isLeader = () => sinceRenewalMs() < renewDeadlineSeconds * 1000;

  function see(next: CoordinationLease | undefined) {
    const before = record?.metadata;
    if (next?.metadata.resourceVersion !== before?.resourceVersion || next?.metadata.uid !== before?.uid)
      recordSeenMs = clock.monotonicMs();
    record = next;
  }

  /** One look at the lock, and one write if it may be ours. True when it is ours now. */
  async function tryHold(limit: AbortSignal): Promise<boolean> {
    // While leading, our last write is the record: one request a renewal. Whenever that fails, look again.
    if (!record || record.spec?.holderIdentity !== identity || !isLeader())
      see(await cluster.get<CoordinationLease>(resources.leases, key, limit));
    const spec = record?.spec ?? {};
    const ours = spec.holderIdentity === identity;
    if (record && spec.holderIdentity && !ours) {
      const term = Math.max(leaseDurationSeconds, Math.min(spec.leaseDurationSeconds ?? 0, 3600));
      if (clock.monotonicMs() - recordSeenMs < term * 1000) return false;
    }
    const now = microTime(clock.now());
    const before = mark();
    const wanted: CoordinationLease = {
      metadata: record?.metadata ?? { namespace: key.namespace, name: key.name },
      spec: {
        holderIdentity: identity,
        leaseDurationSeconds,
        acquireTime: ours ? (spec.acquireTime ?? now) : now,
        renewTime: now,
        leaseTransitions: ours || !record ? (spec.leaseTransitions ?? 0) : (spec.leaseTransitions ?? 0) + 1,
      },
    };
    try {
      see(
        record
          ? await cluster.replace(resources.leases, wanted, undefined, limit)
          : await cluster.create(resources.leases, wanted, limit),
      );
    } catch (error) {
      // Somebody else wrote, or nobody knows who did: the next look at the server will tell.
      if (ours || !record) record = undefined;
      if (isConflict(error) || isAlreadyExists(error)) return false;
      throw error;
    }
    renewed = before;
    return true;
  }

  /** `tryHold` that cannot take longer than `ms`, and tells failure apart from refusal only in the log. */
  async function holdWithin(ms: number, stop?: AbortSignal): Promise<boolean> {
    const limit = new AbortController();
    const onStop = () => limit.abort(stop?.reason);
    if (stop?.aborted) onStop();
    stop?.addEventListener('abort', onStop, { once: true });
    const cancel = clock.setTimeout(() => limit.abort(new Error('no answer in time')), Math.max(0, ms));
    try {
      return await tryHold(limit.signal);
    } catch (error) {
      if (!stop?.aborted) log.debug({ error }, 'the lock could not be read or written');
      return false;
    } finally {
      cancel();
      stop?.removeEventListener('abort', onStop);
    }
  }

  const attemptMs = (renewDeadlineSeconds * 1000) / 3;
  const retryMs = () => retrySeconds * 1000 * (1 + 0.2 * Math.random());

  async function release() {
    if (!isLeader() || !record) return;
    const limit = new AbortController();
    const cancel = clock.setTimeout(() => limit.abort(), retrySeconds * 1000);
    try {
      const spec = { ...record.spec, holderIdentity: '', leaseDurationSeconds: 1, renewTime: microTime(clock.now()) };
      await cluster.replace(resources.leases, { ...record, spec }, undefined, limit.signal);
    } catch (error) {
      log.debug({ error }, 'the lock was not released; it runs out by itself');
    } finally {
      cancel();
      renewed = undefined;
      record = undefined;
    }
  }

  async function lead(): Promise<'stopped' | 'lost' | 'finished'> {
    log.info({}, 'leading');
    metrics?.leader?.(options.name, true);
    const stop = new AbortController();
    let outcome: 'stopped' | 'lost' | 'finished' = 'finished';
    const onStop = () => {
      outcome = 'stopped';
      stop.abort(signal.reason);
    };
    if (signal.aborted) onStop();
    else signal.addEventListener('abort', onStop, { once: true });

    const ended = new AbortController();
    const work = Promise.resolve()
      .then(() => options.onLead(stop.signal, isLeader))
      .finally(() => ended.abort(new Error('the work has ended')));
    work.catch(() => undefined); // told by `await work` below
    let unanswered = false;
    // Renewed until the work has ended, not just until it was asked to: while it winds down, nobody else may start.
    while (!ended.signal.aborted) {
      // Who did not answer for so long is busy: to wait besides would only leave less time.
      if (!unanswered) await sleep(clock, Math.min(retryMs(), leftMs()), ended.signal).catch(() => undefined);
      if (ended.signal.aborted) break;
      if (leftMs() > 0) {
        // One attempt on a connection that is dead, unknown to both ends, must not use up all the time there is. The next one goes
        // over another, and may.
        const startedMs = clock.monotonicMs();
        const held = await holdWithin(unanswered ? leftMs() : Math.min(leftMs(), attemptMs), ended.signal);
        unanswered = !held && clock.monotonicMs() - startedMs >= retrySeconds * 1000;
      }
      if (!ended.signal.aborted && !isLeader()) {
        outcome = 'lost';
        stop.abort(new Error('leadership was lost'));
        log.error({ seconds: renewDeadlineSeconds }, 'leadership was lost: the lock could not be renewed in time');
        options.onLost?.(`the lock ${options.namespace}/${options.name} could not be renewed in time`);
        break;
      }
    }
    metrics?.leader?.(options.name, false);
    try {
      await work;
    } finally {
      signal.removeEventListener('abort', onStop);
      if (outcome === 'lost') renewed = undefined;
      else await release();
    }
    return outcome;
  }

  const leftMs = () => Math.max(0, renewDeadlineSeconds * 1000 - sinceRenewalMs());

  async function run(): Promise<'stopped' | 'lost' | 'finished'> {
    metrics?.leader?.(options.name, false);
    while (!signal.aborted) {
      if (await holdWithin(renewDeadlineSeconds * 1000, signal)) return lead();
      await sleep(clock, retryMs(), signal).catch(() => undefined); // the loop asks the signal
    }
    return 'stopped';
  }

  return { isLeader, ended: run() };
}

/** Kubernetes wants microseconds in these fields. */
const microTime = (date: Date): string => date.toISOString().replace(/Z$/, '000Z');
