/**
 * Pods of virtual nodes, carried to the provider.
 *
 *   bound to a node of ours → may it run here? → sent, with what it refers to → its status and events come back
 *   deleted → deleted at the provider, with its grace → when the provider says that it is gone, gone here too
 *
 * Invariants. A pod of a namespace that may not use the lease is refused before anything of it leaves. A pod runs once: names
 * derive from its UID, a second attempt finds the first one, and a pod that was carried (its `startTime` says so) is never
 * made again. Silence of the provider ends nothing: only its NotFound does, and only while it says that it serves the lease.
 * A pod that has ended stays as it ended.
 */
import { annotations, apiVersion } from '../api/labels.ts';
import { mayUseLease } from '../core/node/access.ts';
import {
  type Claimed,
  claimNames,
  countClaims,
  type ResourceClaim,
  withoutClaims,
} from '../core/node/device-claims.ts';
import { type HostAlias, withHostAliases } from '../core/node/named-services.ts';
import { isOfDaemonSet, isTerminal, type Pod, type PodStatus } from '../core/node/pod.ts';
import { patchedStatus, sameStatus, statusPatch } from '../core/node/same-status.ts';
import { type ClaimAnswer, type ClaimView, claimsOfPod, type StoredAt } from '../core/node/storage.ts';
import { showsTokens, tokenSecretName } from '../core/node/token-wish.ts';
import { tolerationPatch } from '../core/node/tolerations.ts';
import { carriedHash, type Reference, type Translated, translatePod } from '../core/node/translate-pod.ts';
import { lostStatus, refusedStatus, translateStatus } from '../core/node/translate-status.ts';
import { type NodeHealth, nodeCapacity } from '../core/node/virtual-node.ts';
import { boundedMap } from '../engine/bounded-map.ts';
import type { Clock } from '../engine/clock.ts';
import { sameJson } from '../engine/equal.ts';
import {
  ApiError,
  isAlreadyExists,
  isApiError,
  isConflict,
  isNotFound,
  UnknownOutcomeError,
} from '../engine/errors.ts';
import { keyText } from '../engine/paths.ts';
import {
  type Change,
  type Cluster,
  type EventRecorder,
  type Informer,
  type Log,
  type ObjectKey,
  type Result,
  resources,
} from '../engine/types.ts';
import { createPace } from '../wire/pace.ts';
import { createPodChanges } from './changes.ts';
import { heldName, type ObjectCarrier, type ObjectRef } from './objects.ts';
import type { RemoteLease } from './remote.ts';
import { remoteNameOf } from './remote-name.ts';
import type { TokenCarrier } from './tokens.ts';
import type { NodeSpec } from './types.ts';

/** One node, as far as its pods are concerned. */
export interface PodHost {
  readonly name: string;
  readonly spec: NodeSpec;
  readonly address: string;
  readonly lease: RemoteLease;
  readonly remote: Cluster;
  /** Pods of the tenant at the provider. Indexes: see `remoteIndexes`. */
  readonly remotePods: Informer<Pod>;
  readonly objects: ObjectCarrier;
  readonly tokens: TokenCarrier;
  health(): NodeHealth;
  /** Names of Services that its pods may reach; undefined while the provider has not said where they are. */
  aliasesFor(namespace: string): readonly HostAlias[] | undefined;
}

export interface PodCarrierOptions {
  readonly consumer: Cluster;
  readonly pods: Informer<Pod>;
  readonly hostOf: (nodeName: string) => PodHost | undefined;
  /** Nodes at whose provider something claims to be this pod. */
  readonly holdersOf: (key: ObjectKey) => readonly PodHost[];
  /** Kubernetes does not evict pods of our nodes, whatever they tolerate; or nobody knows yet. */
  readonly spared: () => boolean;
  /** What is known of claims to storage, for a pod of this node. */
  readonly claimOf: (node: StoredAt, ...of: Parameters<ClaimView>) => ClaimAnswer;
  /** Domain of the cluster's Services. */
  readonly clusterDomain?: string;
  readonly events: EventRecorder;
  /** How long nothing is told of a pod that was sent, while its provider tells nothing either. 5. */
  readonly firstReportSeconds?: number;
  /** A pod at a provider is ended that no pod here stands for. */
  readonly onStray?: (host: PodHost) => void;
  readonly clock: Clock;
  readonly log: Log;
}

export const remoteIndexes = {
  name: (pod: Pod): string[] => [pod.metadata.name],
  /** Whose pod it claims to be. Only ever a reason to look. */
  consumer: (pod: Pod): string[] => {
    const key = consumerKeyOf(pod);
    return key ? [keyText(key)] : [];
  },
} as const;

export function consumerKeyOf(remote: Pod): { namespace: string; name: string } | undefined {
  const namespace = remote.metadata.annotations?.[annotations.podNamespace];
  const name = remote.metadata.annotations?.[annotations.podName];
  return namespace && name && isName(namespace, 63) && isName(name, 253) ? { namespace, name } : undefined;
}

const isName = (name: string, most: number): boolean =>
  name.length <= most && /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(name);

/** Where a pod is looked at again although nobody said that anything changed. */
const lookAgainSeconds = 30;
/** A pod of which its provider says nothing at all for so long is told of as Pending there. */
const firstReportSeconds = 5;
/** A request that was not answered may be carried out so much later: what waits for a gateway that stands still is not lost. */
const onItsWayMs = 60_000;

type Presence = { readonly is: 'there'; readonly pod: Pod } | { readonly is: 'gone' } | { readonly is: 'unknown' };

export interface PodCarrier {
  reconcile(key: ObjectKey, signal: AbortSignal): Promise<Result>;
  /** A remote pod went: what it said last is what its end looked like. */
  remember(remote: Pod): void;
  /**
   * This change at the provider leaves nothing to do for the pod, which is looked at again by itself: it was just sent, and there is
   * no news of it; or it goes, as it was asked to.
   */
  awaits(pod: Pod, change: Change<Pod>): boolean;
  /** This change of a pod is what was reported of it, come back, and nothing besides. */
  isOwnReport(change: Change<Pod>): boolean;
  /** Names of all objects that pods of this node refer to, as `Kind/remote name`. */
  wantedObjects(host: PodHost): ReadonlySet<string>;
}

export function createPodCarrier(options: PodCarrierOptions): PodCarrier {
  const { consumer, pods, events, clock, log } = options;
  const viewOf = (host: PodHost) => ({
    nodeName: host.name,
    nodeAddress: host.address,
    capacity: nodeCapacity(host.spec.served),
    hostAccess: host.spec.served.tenantProfile === 'trusted',
    clusterDomain: options.clusterDomain,
    serviceAccountTokens: host.spec.serviceAccountTokens,
    claimOf: (...of: Parameters<ClaimView>) => options.claimOf({ leaseId: host.spec.leaseId, node: host.name }, ...of),
  });
  /** Told once each: reasons that would otherwise repeat with every look. */
  const told = boundedMap<string, string>(10_000);
  /** By UID: when a pod was sent by this process. */
  const sentAtMs = boundedMap<string, number>(20_000);
  /** By UID: when a pod was sent, and nobody knows whether it came: it may be on its way still. */
  const perhapsSentMs = boundedMap<string, number>(20_000);
  /** By UID: the generation that loosening its tolerations gave it, which the cache hears of later. */
  const raised = boundedMap<string, number>(20_000);
  /** By UID: pods that were taken away here, which the cache hears of later. */
  const forgotten = boundedMap<string, true>(20_000);
  /** By UID: pods that were ended here, perhaps before the cache has heard of it. */
  const ended = boundedMap<string, true>(20_000);
  const lastSeen = boundedMap<string, Pod>(2_000);
  /** What a pod's status became by our own writing, while the cache has that pod as it was before. */
  const written = new WeakMap<Pod, PodStatus>();
  /**
   * By UID of what makes the pods: a ReplicaSet makes a pod that failed anew at once, and would make thousands a minute of one that
   * cannot be carried. Past these they wait, and their events say why.
   */
  const refusals = createPace({ perSecond: 0.1, burst: 20, monotonicMs: () => clock.monotonicMs() });

  function tell(pod: Pod, type: 'Normal' | 'Warning', reason: string, message: string, about = ''): void {
    const key = `${pod.metadata.uid}/${reason}/${about}`;
    if (told.get(key) === message) return;
    told.set(key, message);
    events.event(pod, type, reason, message);
  }

  const changes = createPodChanges(tell);

  async function reconcile(key: ObjectKey, signal: AbortSignal): Promise<Result> {
    const pod = pods.get(key);
    const host = pod?.spec.nodeName ? options.hostOf(pod.spec.nodeName) : undefined;
    await endStrangers(key, pod, host, signal);
    if (!pod || !host) return {};

    if (isOfDaemonSet(pod)) {
      if (pod.metadata.deletionTimestamp) await forget(pod, signal);
      else
        tell(
          pod,
          'Warning',
          'DaemonSetNotCarried',
          'Pods of DaemonSets are not run on leased nodes; this one stays Pending.',
        );
      return {};
    }
    const over = isTerminal(pod) || ended.get(uidOf(pod)) === true;
    if (pod.metadata.deletionTimestamp) return end(pod, host, over, signal);
    if (over) {
      release(pod, host);
      return {};
    }
    if (!mayUseLease(host.spec.allowedNamespaces, pod.metadata.namespace ?? ''))
      return refuse(
        pod,
        'NamespaceNotAllowed',
        `Pods of namespace ${pod.metadata.namespace} may not use lease ${host.spec.lease.namespace}/${host.spec.lease.name}: add the namespace to its spec.access.namespaces, or run the pod elsewhere.`,
        signal,
      );
    // Without the provider's list nothing is known of what runs there; its first sync wakes us.
    if (!host.remotePods.synced) return {};
    return carry(pod, host, signal);
  }

  function release(pod: Pod, host: PodHost): void {
    host.objects.release(uidOf(pod));
    host.tokens.release(uidOf(pod));
  }

  async function carry(pod: Pod, host: PodHost, signal: AbortSignal): Promise<Result> {
    const claimed = await claim(pod, host, signal);
    const storage = 'waits' in claimed ? undefined : waitsForStorage(pod, host);
    if ('waits' in claimed || storage !== undefined) {
      // What runs is reported on, whatever became of its claims.
      const runs = remoteOf(pod, host);
      if (runs) await report(pod, runs, host, signal);
      else if ('waits' in claimed) tell(pod, 'Warning', 'ClaimNotAllocated', claimed.waits);
      else tell(pod, 'Warning', 'FailedMount', `The pod waits for its storage: ${storage}`);
      return { requeueAfterSeconds: lookAgainSeconds };
    }
    const cached = remoteOf(pod, host);
    const wasCarried = pod.status?.startTime !== undefined;
    const translation =
      'refused' in claimed ? claimed : translatePod(claimed.pod, viewOf(host), wasCarried || cached !== undefined);
    if (translation.refused !== undefined) {
      if (!wasCarried && !cached) return refuse(pod, translation.refused, translation.message, signal);
      // It runs, in its earlier shape; the change is what cannot be carried.
      tell(pod, 'Warning', 'ChangeNotCarried', translation.message);
      host.tokens.release(uidOf(pod));
      if (cached) await report(pod, cached, host, signal);
      return {};
    }
    for (const { reason, message } of translation.notes) tell(pod, 'Normal', reason, message);
    for (const { name, message } of translation.withheld)
      tell(pod, 'Warning', 'EphemeralContainerNotCarried', `Ephemeral container ${name}: ${message}`, name);
    const wanted = translation.pod;
    try {
      await host.objects.hold(uidOf(pod), [...refsOf(pod, translation), translation.services], signal);
    } catch (error) {
      // Its author may change the object, so the pod waits; but it says for what.
      if (error instanceof ApiError)
        tell(pod, 'Warning', 'ObjectNotCarried', `The provider refused an object of the pod: ${cut(error.message)}`);
      throw error;
    }

    let remote = cached;
    if (!remote && wasCarried) {
      const presence = await look(pod, host, signal);
      if (presence.is === 'unknown') return { requeueAfterSeconds: 10 };
      if (presence.is === 'gone') return lose(pod, host, signal);
      remote = presence.pod;
    }
    let result: Result = {};
    // Beside the sending, as it waits for nothing of it.
    const loosened = options.spared() ? undefined : loosen(pod, signal);
    loosened?.catch(() => undefined); // awaited below, unless the pod is refused
    if (!remote) {
      // A pod's hosts file is written once: without the names it would never know them. Their coming wakes us.
      const aliases = host.aliasesFor(pod.metadata.namespace ?? '');
      if (!aliases) {
        tell(
          pod,
          'Normal',
          'WaitingForServices',
          'Waiting for the provider to say where the Services of the lease are.',
        );
        return { requeueAfterSeconds: lookAgainSeconds };
      }
      const made = await send(pod, withHostAliases(wanted, aliases), host, signal);
      if (!made) return {};
      if ('refused' in made) return made.refused;
      remote = made.pod;
    } else {
      ({ remote, result } = await changes.carry(pod, remote, wanted, host.remote, signal));
    }
    const unsent = await carryTokens(pod, remote, translation, host, signal);
    await loosened;
    const patience = unsent === undefined ? patienceWith(pod, remote) : undefined;
    if (patience !== undefined)
      return { ...result, requeueAfterSeconds: Math.min(patience, result.requeueAfterSeconds ?? patience) };
    await report(pod, remote, host, signal, translation);
    if (unsent !== undefined) throw unsent;
    return result;
  }

  /** Gives back what went wrong: the pod waits for its tokens, and its status is told meanwhile. */
  async function carryTokens(
    pod: Pod,
    remote: Pod,
    { tokens }: Translated,
    host: PodHost,
    signal: AbortSignal,
  ): Promise<unknown> {
    if (tokens.length === 0 || !showsTokens(remote) || remote.metadata.deletionTimestamp) {
      host.tokens.release(uidOf(pod));
      return undefined;
    }
    try {
      await host.tokens.hold(pod, remote, tokens, signal);
      return undefined;
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof ApiError)
        tell(pod, 'Warning', 'TokenNotCarried', `A service account token could not be given: ${cut(error.message)}`);
      return error;
    }
  }

  /**
   * Seconds for which nothing is told of a pod that was just sent and of which its provider says nothing yet: most run within
   * that time, and one report does then for two. Undefined: what there is to tell is told.
   */
  function patienceWith(pod: Pod, remote: Pod): number | undefined {
    const sentMs = sentAtMs.get(uidOf(pod));
    if (sentMs === undefined || pod.status?.startTime !== undefined || hasNews(remote)) return undefined;
    const leftMs = (options.firstReportSeconds ?? firstReportSeconds) * 1000 - (clock.monotonicMs() - sentMs);
    return leftMs >= 1 ? leftMs / 1000 : undefined;
  }

  /** The pod with counts of GPUs instead of claims to devices; few pods have any. */
  async function claim(pod: Pod, host: PodHost, signal: AbortSignal): Promise<Claimed> {
    const claims = new Map<string, ResourceClaim>();
    for (const [own, name] of claimNames(pod)) {
      if (name === undefined) continue;
      const key = { namespace: pod.metadata.namespace, name };
      const found = await consumer.get<ResourceClaim>(resources.resourceClaims, key, signal);
      if (found) claims.set(own, found);
    }
    return countClaims(pod, claims, host.name);
  }

  /** Why a volume of the pod cannot be used yet, or never again; undefined: all can, or the pod is refused for one. */
  function waitsForStorage(pod: Pod, host: PodHost): string | undefined {
    for (const { name, ephemeral } of claimsOfPod(pod)) {
      const answer = viewOf(host).claimOf(pod, name, ephemeral);
      if ('refused' in answer) return undefined;
      if ('waits' in answer) return answer.waits;
    }
    return undefined;
  }

  /** Makes the pod at the provider, or finds it made. */
  async function send(
    pod: Pod,
    wanted: Pod,
    host: PodHost,
    signal: AbortSignal,
  ): Promise<{ pod: Pod } | { refused: Result } | undefined> {
    // Set first: what the provider's watch says of it may come before the answer.
    sentAtMs.set(uidOf(pod), clock.monotonicMs());
    try {
      const made = await host.remote.create<Pod>(resources.pods, atFirst(wanted), signal);
      changes.sent(pod, atFirst(wanted));
      return { pod: made };
    } catch (error) {
      if (isAlreadyExists(error)) {
        const found = await host.remote.get<Pod>(resources.pods, { name: wanted.metadata.name }, signal);
        if (!found) throw error;
        return { pod: found };
      }
      if (error instanceof UnknownOutcomeError && !error.neverSent) perhapsSentMs.set(uidOf(pod), clock.monotonicMs());
      const refusal = refusalOf(error);
      if (refusal?.final) return { refused: await refuse(pod, refusal.reason, refusal.message, signal) };
      if (refusal) tell(pod, 'Warning', refusal.reason, refusal.message);
      throw error;
    }
  }

  async function loosen(pod: Pod, signal: AbortSignal): Promise<void> {
    const patch = tolerationPatch(pod);
    if (!patch) return;
    try {
      const options = { type: 'json', brief: true } as const;
      const { metadata } = await consumer.patch<Pod>(resources.pods, keyOfPod(pod), patch, options, signal);
      // Of our own making, and of nobody else's meanwhile: seen as soon as it is made.
      const generation = (pod.metadata.generation ?? 0) + 1;
      if (metadata.generation === generation) raised.set(uidOf(pod), generation);
    } catch (error) {
      // Changed or gone meanwhile: its next change brings us back here.
      if (!isNotFound(error) && !isApiError(error, 'Invalid', 'Conflict')) throw error;
      log.debug({ pod: keyText(keyOfPod(pod)), error }, 'tolerations were not changed');
    }
  }

  async function report(
    pod: Pod,
    remote: Pod,
    host: PodHost,
    signal: AbortSignal,
    translation?: Translated,
  ): Promise<void> {
    const generation = raised.get(uidOf(pod));
    const known = { ...pod, status: written.get(pod) ?? pod.status };
    const seen = generation !== undefined && pod.metadata.generation === generation - 1 ? at(known, generation) : known;
    const view = { ...statusView(host), ...changes.notCarried(pod, remote, translation?.withheld) };
    const status = translateStatus(remote, seen, view, clock.now());
    if (status) await write(pod, status, signal);
  }

  async function write(pod: Pod, status: PodStatus, signal: AbortSignal): Promise<void> {
    const before = written.get(pod);
    const stored = before ?? pod.status;
    if (sameStatus(stored, status)) return;
    // Set first: a later look, at a cache that lags, must not take the end back; and it may come back before the answer.
    if (status.phase === 'Succeeded' || status.phase === 'Failed') ended.set(uidOf(pod), true);
    written.set(pod, patchedStatus(stored, status));
    try {
      await consumer.patch(
        resources.pods,
        keyOfPod(pod),
        { metadata: { uid: uidOf(pod) }, status: statusPatch(stored, status) },
        { type: 'strategic', subresource: 'status', brief: true },
        signal,
      );
    } catch (error) {
      if (before) written.set(pod, before);
      else written.delete(pod);
      // Another pod of that name has taken its place, or none has: there is nobody to report to.
      if (isNotFound(error) || isConflict(error)) return;
      ended.delete(uidOf(pod));
      throw error;
    }
  }

  async function refuse(pod: Pod, reason: string, message: string, signal: AbortSignal): Promise<Result> {
    tell(pod, 'Warning', reason, message);
    const maker = pod.metadata.ownerReferences?.find(({ controller }) => controller)?.uid;
    if (maker !== undefined && !refusals.take(maker)) return { requeueAfterSeconds: lookAgainSeconds };
    await write(pod, refusedStatus(pod, reason, message, clock.now()), signal);
    return {};
  }

  async function lose(pod: Pod, host: PodHost, signal: AbortSignal): Promise<Result> {
    const message = 'The provider no longer has the pod.';
    tell(pod, 'Warning', 'PodGoneAtProvider', message);
    const final = finalStatus(pod, host);
    await write(pod, final ?? lostStatus(pod, 'PodGoneAtProvider', message, clock.now()), signal);
    release(pod, host);
    return {};
  }

  async function end(pod: Pod, host: PodHost, over: boolean, signal: AbortSignal): Promise<Result> {
    if (forgotten.get(uidOf(pod))) return {};
    // Refused pods have ended and were never sent.
    if (over && pod.status?.startTime === undefined && !remoteOf(pod, host)) return forget(pod, signal);
    const cached = remoteOf(pod, host);
    const presence = cached ? { is: 'there' as const, pod: cached } : await lookForDeleted(pod, host, signal);
    if (presence.is === 'unknown') return { requeueAfterSeconds: 10 };
    if (presence.is === 'there') {
      const remote = presence.pod;
      if (!goesAsAsked(pod, remote))
        await host.remote.delete(
          resources.pods,
          { name: remote.metadata.name },
          { gracePeriodSeconds: graceOf(pod), uid: remote.metadata.uid },
          signal,
        );
      if (!over) await report(asTold(pod), remote, host, signal);
      return { requeueAfterSeconds: lookAgainSeconds };
    }
    if (!over) {
      // Jobs wait for a terminal phase before they let a deleted pod go.
      const final = finalStatus(pod, host);
      if (final) await write(pod, final, signal);
      else if (pod.metadata.finalizers?.length)
        await write(pod, lostStatus(pod, 'PodGoneAtProvider', 'The pod was deleted.', clock.now()), signal);
    }
    release(pod, host);
    return forget(pod, signal);
  }

  /** What the remote pod said last, when that was an end. */
  function finalStatus(pod: Pod, host: PodHost): PodStatus | undefined {
    const last = lastSeen.get(remoteNameOf(pod));
    const status = last && translateStatus(last, pod, statusView(host), clock.now());
    return status?.phase === 'Succeeded' || status?.phase === 'Failed' ? status : undefined;
  }

  async function forget(pod: Pod, signal: AbortSignal): Promise<Result> {
    try {
      await consumer.delete(resources.pods, keyOfPod(pod), { gracePeriodSeconds: 0, uid: uidOf(pod) }, signal);
    } catch (error) {
      if (!isConflict(error)) throw error;
    }
    forgotten.set(uidOf(pod), true);
    lastSeen.delete(remoteNameOf(pod));
    return {};
  }

  /** The provider's watch has told of its end; or else it is asked. */
  async function lookForDeleted(pod: Pod, host: PodHost, signal: AbortSignal): Promise<Presence> {
    return lastSeen.get(remoteNameOf(pod)) ? { is: 'gone' } : look(pod, host, signal);
  }

  /** Asks the provider itself. Gone is a fact only from one that serves the lease, or has ended it. */
  async function look(pod: Pod, host: PodHost, signal: AbortSignal): Promise<Presence> {
    try {
      const found = await host.remote.get<Pod>(resources.pods, { name: remoteNameOf(pod) }, signal);
      if (found) return { is: 'there', pod: found };
      const sentMs = perhapsSentMs.get(uidOf(pod));
      if (sentMs !== undefined && clock.monotonicMs() - sentMs < onItsWayMs) return { is: 'unknown' };
      const { state } = await host.lease.allocation(signal);
      if (state === 'Serving') return { is: 'gone' };
      return pod.metadata.deletionTimestamp && state !== 'Provisioning' ? { is: 'gone' } : { is: 'unknown' };
    } catch (error) {
      if (signal.aborted) throw error;
      if (saysLeaseEnded(error) && pod.metadata.deletionTimestamp) return { is: 'gone' };
      log.debug({ pod: keyText(keyOfPod(pod)), error }, 'the provider does not say whether it has the pod');
      return { is: 'unknown' };
    }
  }

  /**
   * Ends what the provider runs under this name for a pod that is no more: force-deleted here, or replaced while we were
   * away. Decided by the API server itself, never by a cache.
   */
  async function endStrangers(
    key: ObjectKey,
    pod: Pod | undefined,
    host: PodHost | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const expected = pod && remoteNameOf(pod);
    for (const holder of options.holdersOf(key)) {
      for (const remote of holder.remotePods.byIndex('consumer', keyText(key))) {
        if ((holder === host && remote.metadata.name === expected) || remote.metadata.deletionTimestamp) continue;
        const live = await consumer.get<Pod>(resources.pods, key, signal);
        if (live && live.spec.nodeName === holder.name && remoteNameOf(live) === remote.metadata.name) continue;
        const { lease, providerName } = holder.spec;
        log.info(
          { pod: keyText(key), node: holder.name, provider: providerName },
          'ending a pod at the provider that is gone here',
        );
        await holder.remote.delete(
          resources.pods,
          { name: remote.metadata.name },
          { uid: remote.metadata.uid },
          signal,
        );
        // Its name is what the provider says, and perhaps nobody's here: the lease is told.
        events.event(
          { apiVersion, kind: 'GpuLease', metadata: lease },
          'Normal',
          'StrayPodEnded',
          `${keyText(key)} still ran at ${providerName}, and no pod here stands for it any more: it is ended there.`,
        );
        options.onStray?.(holder);
      }
    }
  }

  return {
    reconcile,
    remember(remote) {
      lastSeen.set(remote.metadata.name, remote);
    },
    awaits(pod, { type, object, old }) {
      if (type === 'deleted') return false;
      if (pod.metadata.deletionTimestamp)
        return old !== undefined && goesAsAsked(pod, object) && sameJson(old.status, object.status);
      return object.metadata.deletionTimestamp === undefined && patienceWith(pod, object) !== undefined;
    },
    isOwnReport({ type, object, old }) {
      const reported = old && written.get(old);
      return (
        type === 'updated' &&
        reported !== undefined &&
        !isTerminal(object) &&
        // Counts changes of the spec, and says when the pod is deleted, where the API server has it.
        object.metadata.generation !== undefined &&
        sameJson(withoutVersion(object.metadata), withoutVersion(old!.metadata)) &&
        sameStatus(object.status, reported) &&
        object.status?.conditions?.length === reported.conditions?.length
      );
    },
    wantedObjects(host) {
      const wanted = new Set<string>();
      for (const pod of pods.byIndex('node', host.name)) {
        if (isTerminal(pod)) continue;
        // Whatever became of its storage, what else it uses is wanted.
        const view = { ...viewOf(host), claimOf: () => ({ remoteName: 'any' }) };
        const translation = translatePod(withoutClaims(pod), view, true);
        if (translation.refused !== undefined) continue;
        for (const ref of [...refsOf(pod, translation), translation.services]) wanted.add(heldName(ref));
        if (translation.tokens.length > 0) wanted.add(`Secret/${tokenSecretName(remoteNameOf(pod))}`);
      }
      return wanted;
    },
  };
}

/**
 * Why the provider does not take the pod, in words for it. Final: what it says of this pod it will always say. A full quota
 * is not: earlier pods are still leaving.
 */
function refusalOf(error: unknown): { final: boolean; reason: string; message: string } | undefined {
  if (!(error instanceof ApiError)) return undefined;
  const message = `The provider refused the pod: ${cut(error.message)}`;
  if (error.reason === 'PodRefused' || error.reason === 'Invalid')
    return { final: true, reason: 'PodRefused', message };
  if (error.reason === 'Forbidden' && /violates PodSecurity/.test(error.message))
    return { final: true, reason: 'PodRefused', message };
  return { final: false, reason: 'NotYetCarried', message };
}

/** Ephemeral containers come to a pod that is there: until then it is another than is wanted. */
function atFirst(wanted: Pod): Pod {
  const { ephemeralContainers = [], ...spec } = wanted.spec;
  if (ephemeralContainers.length === 0) return wanted;
  const annotations = { ...wanted.metadata.annotations, [carriedHash]: 'without-ephemeral-containers' };
  return { ...wanted, metadata: { ...wanted.metadata, annotations }, spec: spec as Pod['spec'] };
}

const at = (pod: Pod, generation: number | undefined): Pod => ({ ...pod, metadata: { ...pod.metadata, generation } });
/** The deletion raises the generation, which alone is no news of a pod that goes. */
const asTold = (pod: Pod): Pod => at(pod, pod.status?.observedGeneration ?? pod.metadata.generation);
/** There is more to tell than that it was sent: it runs, is being prepared, or no node takes it. */
const hasNews = ({ status }: Pod): boolean =>
  (status?.phase !== undefined && status.phase !== 'Pending') ||
  (status?.containerStatuses?.length ?? 0) > 0 ||
  (status?.conditions?.some(({ type, status }) => type === 'PodScheduled' && status === 'False') ?? false);
const graceOf = (pod: Pod): number => pod.metadata.deletionGracePeriodSeconds ?? 30;
/** The remote pod is being deleted, with no more grace than the consumer's has. */
function goesAsAsked(pod: Pod, { metadata: { deletionTimestamp, deletionGracePeriodSeconds: given } }: Pod): boolean {
  return deletionTimestamp !== undefined && given !== undefined && given <= graceOf(pod);
}
const withoutVersion = ({ resourceVersion: _, ...rest }: Pod['metadata']) => rest;
const saysLeaseEnded = (error: unknown): boolean =>
  error instanceof Error && 'reason' in error && error.reason === 'LeaseEnded';
const cut = (message: string): string => message.slice(0, 900);
const uidOf = (pod: Pod): string => pod.metadata.uid ?? '';
const keyOfPod = (pod: Pod) => ({ namespace: pod.metadata.namespace, name: pod.metadata.name });
const remoteOf = (pod: Pod, host: PodHost): Pod | undefined => host.remotePods.byIndex('name', remoteNameOf(pod))[0];
const statusView = (host: PodHost) => ({
  nodeAddress: host.address,
  podIP: host.spec.podIP ?? ('None' as const),
  nodeReady: host.health().ready,
});
const refsOf = (pod: Pod, { configMaps, secrets }: Translated): ObjectRef[] => {
  const refs = (kind: ObjectRef['kind'], references: readonly Reference[]) =>
    references.map(({ name, optional }) => ({ kind, namespace: pod.metadata.namespace ?? '', name, optional }));
  return [...refs('ConfigMap', configMaps), ...refs('Secret', secrets)];
};
