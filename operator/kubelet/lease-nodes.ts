/**
 * One virtual node for each lease that is being served, and what its heartbeat stands for: the provider answers, its node
 * is well, and the lease is paid.
 */
import { type AllocationInfo, allocationBeatSeconds } from '../api/gateway.ts';
import { labels, managedBy } from '../api/labels.ts';
import type { GpuLease } from '../api/lease.ts';
import type { Meter } from '../core/lease/meter.ts';
import type { NodeFact, QuoteRecord } from '../core/lease/observed.ts';
import type { LeaseEnd } from '../core/node/disruption.ts';
import { asPromised } from '../core/node/promised.ts';
import { type Node, type NodeHealth, nodeNameOf, readySince } from '../core/node/virtual-node.ts';
import { systemClock } from '../engine/clock.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import type { RemoteLease } from './remote.ts';
import type { VirtualNodes } from './virtual-nodes.ts';

export interface LeaseNodesOptions {
  readonly cluster: Cluster;
  readonly nodes: VirtualNodes;
  readonly connect: (quote: QuoteRecord) => ServingLease | undefined;
  readonly now: () => Date;
  /** Whether a provider still answers is told by this one, which nobody sets. Default: the system's. */
  readonly monotonicMs?: () => number;
  readonly log: Log;
  /** How long an answer is waited for; and how often a provider is asked that cannot tell of itself whether it still serves. */
  readonly probeSeconds?: number;
  /** A provider that did not answer for so long is unreachable. */
  readonly unreachableSeconds?: number;
  /** Tells the lease controller that something changed. */
  readonly onChange: (lease: { namespace: string; name: string }) => void;
}

/** The provider's side of one lease. */
export type ServingLease = Omit<RemoteLease, 'allocation'> & {
  allocation(signal?: AbortSignal): Promise<AllocationInfo>;
  /** Tells of each change, and every few seconds (`undefined`) that there was none. Absent: it can only be asked. */
  follow?(heard: (info: AllocationInfo | undefined) => void, signal: AbortSignal): Promise<void>;
};

interface Served {
  info: AllocationInfo;
  /** By `monotonicMs`. */
  answeredAtMs: number;
  lastError?: string;
  /** Milliseconds since the epoch until which the last chain read proves payment. */
  paidThrough: number;
  /** As stored when the node was started last. Absent: it had not been Ready by then. */
  meter?: Meter;
  startedAt: number;
  /** When it was last seen healthy. */
  healthyAt?: number;
  stop: AbortController;
  /** It tells of each change of itself. */
  tells: boolean;
  /** Questions in a row that were not answered. */
  unanswered: number;
  /** Somebody doubts that it still answers: asks at once. */
  ask: () => void;
}

/** Who follows an allocation and hears nothing for so long is heard no more: a beat may be late, not missing. */
const silentSeconds = 1.5 * allocationBeatSeconds;
/** Times as long as the first answer, at most, is a later one waited for. */
const mostPatience = 4;

/** It was waited for in vain. */
class Silence extends Error {}

const key = (lease: GpuLease) => ({
  name: lease.metadata.name,
  namespace: lease.metadata.namespace!,
  uid: lease.metadata.uid!,
});

export function createLeaseNodes({
  cluster,
  nodes,
  connect,
  now,
  monotonicMs = systemClock.monotonicMs,
  log,
  probeSeconds = 5,
  unreachableSeconds = 20,
  onChange,
}: LeaseNodesOptions) {
  const served = new Map<string, Served>();

  function health(uid: string): NodeHealth {
    const found = judge(uid);
    const lease = served.get(uid);
    if (found.ready && lease) lease.healthyAt = now().getTime();
    return found;
  }

  function judge(uid: string): NodeHealth {
    const lease = served.get(uid);
    if (!lease) return { ready: false, reason: 'NotServed', message: 'The operator does not serve this node yet.' };
    if (monotonicMs() - lease.answeredAtMs > unreachableSeconds * 1000)
      return {
        ready: false,
        reason: 'ProviderUnreachable',
        message: `The provider has not answered for ${unreachableSeconds} s: ${lease.lastError ?? 'no reason known'}`,
      };
    if (lease.info.state !== 'Serving')
      return {
        ready: false,
        reason: lease.info.reason ?? lease.info.state,
        message: lease.info.message ?? `The allocation is ${lease.info.state}.`,
      };
    if (!lease.info.nodeReady)
      return {
        ready: false,
        reason: 'ProviderNodeNotReady',
        message: lease.info.nodeMessage ?? "The provider's node is not Ready.",
      };
    if (now().getTime() > lease.paidThrough)
      return { ready: false, reason: 'Unpaid', message: 'The deposit is used up.' };
    const { meter, startedAt } = lease;
    const counted = (since: Date) =>
      meter?.countedUntil === undefined ? startedAt >= since.getTime() : meter.ready === false;
    return { ready: true, counted };
  }

  /** Two lost questions in a row, or one that was waited for in vain: one alone may be a gateway's replica that goes. */
  const isLinked = (entry: Served): boolean => entry.unanswered < 2;

  async function attend(lease: ReturnType<typeof key>, remote: ServingLease, entry: Served): Promise<void> {
    const { uid } = lease;
    const { signal } = entry.stop;
    const found = () => JSON.stringify([health(uid), isLinked(entry)]);
    let before = found();
    const tell = () => {
      const now = found();
      if (now === before) return;
      before = now;
      nodes.get(nodeNameOf(lease))?.refresh();
      onChange(lease);
    };
    while (!signal.aborted) {
      const askedAt = performance.now();
      const lasted = () => performance.now() - askedAt;
      let again = false;
      try {
        again = await hear(remote, entry, (info) => {
          if (info) entry.info = info;
          // A beat is more than an answer: as long as they come, each change does, too.
          else entry.tells = true;
          Object.assign(entry, { answeredAtMs: monotonicMs(), lastError: undefined, unanswered: 0 });
          tell();
        });
      } catch (error) {
        if (signal.aborted) return;
        entry.unanswered += error instanceof Silence ? 2 : 1;
        entry.lastError = (error instanceof Error ? error.message : String(error)).slice(0, 512);
        log.debug({ lease: lease.name, error: entry.lastError }, 'provider did not answer');
      }
      entry.tells = false;
      tell();
      // Sooner while it does not answer, so that its pods are back in their Services as soon as it does.
      const pause =
        entry.unanswered > 0 ? Math.min(1, probeSeconds) : again || lasted() >= probeSeconds * 1000 ? 0 : probeSeconds;
      await pauseUntilAsked(entry, Math.max(leastPauseMs, pause * 1000), signal);
    }
  }

  /** Until the provider has said what it had to say, or has fallen silent, which throws. True: somebody wants it asked again. */
  async function hear(
    remote: ServingLease,
    entry: Served,
    heard: (info: AllocationInfo | undefined) => void,
  ): Promise<boolean> {
    const turn = new AbortController();
    const signal = AbortSignal.any([entry.stop.signal, turn.signal]);
    let late: NodeJS.Timeout | undefined;
    const expectIn = (seconds: number) => {
      clearTimeout(late);
      const mine = setTimeout(() => {
        // Unless it is we who stood still: then what was said lies here unread, and is read before this.
        setImmediate(() => late === mine && turn.abort(new Silence(`no answer within ${seconds} s`)));
      }, seconds * 1000);
      late = mine;
    };
    const asked = new Error('asked anew');
    // Who did not answer in time gets more the next time: a provider that is slow to a thousand such questions at once would never
    // be done with any.
    expectIn(probeSeconds * Math.min(mostPatience, 1 + entry.unanswered / 2));
    try {
      if (remote.follow === undefined) {
        heard(await remote.allocation(signal));
        return false;
      }
      entry.ask = () => turn.abort(asked);
      await remote.follow((info) => {
        heard(info);
        expectIn(silentSeconds);
      }, signal);
      return false;
    } catch (error) {
      if (turn.signal.reason === asked) return true;
      throw turn.signal.aborted ? turn.signal.reason : error;
    } finally {
      clearTimeout(late);
      late = undefined;
      entry.ask = () => undefined;
    }
  }

  return {
    nameOf: (lease: GpuLease) => nodeNameOf(key(lease)),

    /** What the provider tells of the allocation of itself, while it does. */
    allocation(lease: GpuLease): AllocationInfo | undefined {
      const entry = served.get(lease.metadata.uid ?? '');
      return entry?.tells && monotonicMs() - entry.answeredAtMs <= silentSeconds * 1000 ? entry.info : undefined;
    },

    async fact(lease: GpuLease, signal?: AbortSignal): Promise<NodeFact | undefined> {
      const name = nodeNameOf(key(lease));
      const node = await cluster.get<Node & KubeObject>(resources.nodes, { name }, signal);
      if (!node || node.metadata.labels?.[labels.leaseUid] !== lease.metadata.uid) return undefined;
      const ready = node.status?.conditions?.find((c) => c.type === 'Ready');
      const { uid = '' } = lease.metadata;
      const entry = served.get(uid);
      // To be counted lets it return once. It has: the next time something else must be counted.
      if (ready?.status === 'True' && entry?.meter) entry.meter = { ...entry.meter, ready: true };
      const healthyAt = entry?.healthyAt;
      const unhealthy = served.has(uid) && healthyAt !== undefined && !health(uid).ready;
      return {
        name,
        ready: ready?.status === 'True' ? 'True' : ready?.status === 'False' ? 'False' : 'Unknown',
        since: new Date(readySince(node.status?.conditions) ?? node.metadata.creationTimestamp ?? 0),
        message: ready?.message ?? '',
        ...(unhealthy ? { healthyAt: new Date(healthyAt) } : {}),
        deleting: node.metadata.deletionTimestamp !== undefined,
        pods: await countPods(cluster, name, signal),
      };
    },

    async start(
      lease: GpuLease,
      quote: QuoteRecord,
      info: AllocationInfo,
      paidThrough: Date | undefined,
      meter?: Meter,
    ): Promise<void> {
      const uid = lease.metadata.uid!;
      const remote = connect(quote);
      if (!remote) return;
      const known = served.get(uid);
      const at = now().getTime();
      const entry: Served = known ?? {
        info,
        answeredAtMs: monotonicMs(),
        startedAt: at,
        paidThrough: 0,
        stop: new AbortController(),
        unanswered: 0,
        tells: false,
        ask: () => undefined,
      };
      Object.assign(entry, { info, meter, answeredAtMs: monotonicMs(), startedAt: at });
      if (paidThrough) entry.paidThrough = paidThrough.getTime();
      served.set(uid, entry);
      const { node } = lease.spec;
      const first = !nodes.get(nodeNameOf(key(lease)));
      nodes.start(
        {
          lease: key(lease),
          leaseId: quote.leaseId,
          providerName: quote.providerName,
          offerName: quote.offerName,
          capacityType: lease.spec.capacityType,
          pool: lease.metadata.labels?.[labels.pool],
          labels: node.labels,
          taints: node.taints,
          untainted: node.untainted,
          gpusAs: node.gpusAs,
          allowedNamespaces: lease.spec.access.namespaces ?? [lease.metadata.namespace!],
          podIP: node.podIP,
          serviceAccountTokens: lease.spec.access.serviceAccountTokens,
          services: lease.spec.services,
          served: asPromised(info, quote.signed.node),
          healthy: () => health(uid),
          linked: () => isLinked(entry),
          ask: () => entry.ask(),
        },
        remote,
      );
      if (!known) void attend(key(lease), remote, entry);
      if (!first) nodes.get(nodeNameOf(key(lease)))?.refresh();
    },

    async drain(
      nodeName: string,
      { force, graceSeconds, why }: { force: boolean; graceSeconds: number; why: LeaseEnd },
      signal?: AbortSignal,
    ): Promise<void> {
      const deadline = force ? now() : new Date(now().getTime() + graceSeconds * 1000);
      const { blocked } = await nodes.drain(nodeName, deadline, why, signal);
      for (const { pod, message } of blocked) log.info({ node: nodeName, pod, message }, 'eviction is held up');
    },

    warn(nodeName: string, reason: string, message: string, toClaims: string): void {
      nodes.tellPods(nodeName, 'Warning', reason, message);
      nodes.tellClaims(nodeName, 'Warning', reason, toClaims);
    },

    claims: (nodeName: string): readonly string[] => nodes.claims(nodeName),

    async stop(lease: GpuLease, signal?: AbortSignal): Promise<void> {
      // Repeated by the plan until the Node is gone.
      await nodes.remove(nodeNameOf(key(lease)), signal);
      served.get(lease.metadata.uid!)?.stop.abort();
      served.delete(lease.metadata.uid!);
    },

    async all(signal?: AbortSignal): Promise<{ name: string; leaseUid: string }[]> {
      const labelSelector = `${labels.managedBy}=${managedBy}`;
      const { items } = await cluster.list(resources.nodes, { labelSelector }, signal);
      return items.map(({ metadata }) => ({
        name: metadata.name,
        leaseUid: metadata.labels?.[labels.leaseUid] ?? '',
      }));
    },

    async end(nodeName: string, signal?: AbortSignal): Promise<void> {
      await nodes.remove(nodeName, signal);
    },

    /** This process serves no more: a new leader does. Node objects stay. */
    close() {
      for (const entry of served.values()) entry.stop.abort();
      served.clear();
    },
  };
}

interface Pod extends KubeObject {
  status?: { phase?: string };
}

async function countPods(cluster: Cluster, nodeName: string, signal?: AbortSignal): Promise<number> {
  const { items } = await cluster.list<Pod>(
    resources.pods,
    { fieldSelector: `spec.nodeName=${nodeName},status.phase!=Succeeded,status.phase!=Failed` },
    signal,
  );
  return items.filter((pod) => !pod.metadata.ownerReferences?.some((o) => o.kind === 'DaemonSet')).length;
}

/** Asked again and again, it is still a moment: a hundred broken connections are one question. */
const leastPauseMs = 250;

function pauseUntilAsked(entry: Served, ms: number, signal: AbortSignal): Promise<void> {
  const since = performance.now();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      entry.ask = () => undefined;
      resolve();
    };
    let timer = setTimeout(done, ms);
    entry.ask = () => {
      clearTimeout(timer);
      timer = setTimeout(done, Math.max(0, Math.min(leastPauseMs, ms) - (performance.now() - since)));
    };
    signal.addEventListener('abort', done);
  });
}
