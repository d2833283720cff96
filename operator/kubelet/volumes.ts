/**
 * Claims to storage at providers: made there when the scheduler has selected a node of ours, shown here as PersistentVolumes,
 * and taken away with the claim. What each is, and why, is in core/node/storage.ts.
 *
 * Invariants. Where a claim's data may be is written on the claim, with a finalizer, before the provider is asked; so whatever
 * dies in between, the next look finds what was made there. A claim that has a volume never gets another. Silence of a provider
 * deletes nothing and loses nothing: data are gone when the provider that serves the lease says so, or when its node is.
 */
import { annotations, finalizers, labels, managedBy, storageClassName } from '../api/labels.ts';
import type { ClaimReason } from '../api/storage-class.ts';
import { mayUseLease } from '../core/node/access.ts';
import { remoteClaimName, volumeName } from '../core/node/names.ts';
import type { Pod } from '../core/node/pod.ts';
import {
  afterLoss,
  answerClaim,
  type Claim,
  type ClaimAnswer,
  dataLost,
  isLeasedClaim,
  type PersistentVolume,
  persistentVolume,
  placeOf,
  remoteClaim,
  type StoredAt,
  selectedNode,
  storedAt,
  storedAtText,
  unsupported,
} from '../core/node/storage.ts';
import { boundedMap } from '../engine/bounded-map.ts';
import type { Clock } from '../engine/clock.ts';
import { createController, watches } from '../engine/controller.ts';
import { ApiError, isAlreadyExists, isConflict, isNotFound } from '../engine/errors.ts';
import { createInformer } from '../engine/informer.ts';
import type { EngineMetrics } from '../engine/metrics.ts';
import { keyOf } from '../engine/paths.ts';
import {
  type Cluster,
  type EventRecorder,
  type KubeObject,
  type Log,
  type ObjectKey,
  type Result,
  resources,
} from '../engine/types.ts';
import type { PodHost } from './pods.ts';

export interface VolumesOptions {
  /** The consumer's cluster. */
  readonly cluster: Cluster;
  readonly hostOf: (nodeName: string) => Pick<PodHost, 'name' | 'spec' | 'remote' | 'lease'> | undefined;
  /** A claim, or its volume, is another than before: pods may wait for it. */
  readonly onClaim: (key: { readonly namespace: string; readonly name: string }) => void;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics?: EngineMetrics;
}

export interface Volumes {
  run(signal: AbortSignal): Promise<void>;
  /** What a volume of a pod on this node becomes. */
  answer(node: StoredAt, pod: Pod, claimName: string, ephemeral: boolean): ClaimAnswer;
  /** The node is served from now on, or no longer. */
  nodeChanged(name: string): void;
  /** Claims whose data are with the lease of this node now. */
  claimsOn(name: string): readonly Claim[];
}

/** Where a claim waits for somebody who does not tell us that it need not any more. */
const lookAgainSeconds = 15;
const goingSeconds = 1;
/** Kubernetes' own finalizer: pods use the claim. */
const inUse = 'kubernetes.io/pvc-protection';

type Place = StoredAt & { readonly remoteName: string };
type Going = 'gone' | 'going' | 'unknown';
type Data = { readonly are: 'there' | 'unknown' } | { readonly are: 'lost'; readonly why: string };

export function createVolumes(options: VolumesOptions): Volumes {
  const { cluster, hostOf, events, clock, log } = options;
  const claims = createInformer<Claim & KubeObject>({
    cluster,
    // No selector knows the class. Of other claims is kept what a pod that names one is told.
    resource: resources.persistentVolumeClaims,
    trim: trimClaim,
    indexes: { node: nodesOf },
    log,
    clock,
    metrics: options.metrics,
  });
  const volumes = createInformer<PersistentVolume & KubeObject>({
    cluster,
    resource: resources.persistentVolumes,
    labelSelector: `${labels.managedBy}=${managedBy}`,
    indexes: { node: (volume) => [placeOf(volume)?.node].filter((node) => node !== undefined) },
    log,
    clock,
    metrics: options.metrics,
  });
  /** Volumes of our own making, which the cache hears of later. */
  const made = boundedMap<string, PersistentVolume>(1000);
  const told = boundedMap<string, string>(10_000);

  function tell(about: Claim, type: 'Normal' | 'Warning', reason: ClaimReason, message: string): void {
    const key = `${about.metadata.uid}/${reason}`;
    if (told.get(key) === message) return;
    told.set(key, message);
    events.event(about as KubeObject, type, reason, message.slice(0, 1000));
  }

  const volumeOf = (name: string): PersistentVolume | undefined => volumes.get({ name }) ?? made.get(name);

  const controller = createController({
    name: 'virtual-node-volumes',
    // A claim has a namespace, a volume has none.
    reconcile: (key, signal) =>
      key.namespace === undefined ? reconcileVolume(key, signal) : reconcileClaim(key, signal),
    watches: [
      watches(claims, ({ type, object }) => {
        if (!isLeasedClaim(object)) return [];
        const { volumeName: bound } = object.spec;
        return type === 'deleted' && bound ? [{ name: bound }] : [keyOf(object)];
      }),
      watches(volumes, ({ type, object }) => (type === 'deleted' ? [] : [keyOf(object)])),
    ],
    concurrency: 8,
    backoff: { baseSeconds: 0.25, maxSeconds: 30 },
    // For data that a provider has lost, of which nothing tells.
    resyncSeconds: 600,
    clock,
    log,
    metrics: options.metrics,
  });
  claims.onChange(({ object }) => {
    const { namespace = '', name } = object.metadata;
    options.onClaim({ namespace, name });
  });
  volumes.onChange(({ type, object }) => {
    made.delete(object.metadata.name);
    const { namespace, name } = object.spec.claimRef ?? {};
    if (type !== 'deleted' && namespace && name) options.onClaim({ namespace, name });
  });

  // --- the claim -------------------------------------------------------------------------------------------------------

  async function reconcileClaim(key: ObjectKey, signal: AbortSignal): Promise<Result> {
    const claim = claims.get(key);
    if (!claim || !isLeasedClaim(claim)) return {};
    if (claim.metadata.deletionTimestamp) return letGo(claim, signal);
    // Bound, or bound once: whatever became of that volume, there is never another.
    if (claim.spec.volumeName || volumeOf(volumeName(uidOf(claim)))) return {};
    return provision(claim, signal);
  }

  async function provision(claim: Claim, signal: AbortSignal): Promise<Result> {
    const at = storedAt(claim);
    const selected = selectedNode(claim);
    const host = selected === undefined ? undefined : hostOf(selected);
    // Asked for elsewhere before: the scheduler has changed its mind, or the lease has ended meanwhile.
    if (at && (at.node !== selected || (host && leaseOf(host) !== at.leaseId))) return giveUp(claim, at, false, signal);
    if (selected === undefined) return {};
    if (!host) {
      const node = await cluster.get<KubeObject>(resources.nodes, { name: selected }, signal);
      if (node?.metadata.labels?.[labels.managedBy] === managedBy) return { requeueAfterSeconds: lookAgainSeconds };
      const message = node
        ? `Node ${selected} is not leased, and class ${storageClassName} is for the storage of leased nodes: let the pod ask for a lease, with the label ${labels.lease} or ${labels.pool}.`
        : `Node ${selected}, which was selected for this claim, is gone.`;
      return chooseAgain(claim, message, signal);
    }
    const { lease, allowedNamespaces, served, providerName } = host.spec;
    const ofLease = `lease ${lease.namespace}/${lease.name}`;
    if (!mayUseLease(allowedNamespaces, claim.metadata.namespace ?? ''))
      return chooseAgain(
        claim,
        `Namespace ${claim.metadata.namespace} may not use ${ofLease}: add it to its spec.access.namespaces.`,
        signal,
      );
    if (served.storage === undefined)
      return chooseAgain(
        claim,
        `Provider ${providerName} of ${ofLease} offers no storage: lease from one that does, or use emptyDir. Providers offer it with --storage-class.`,
        signal,
      );
    const never = unsupported(claim);
    if (never !== undefined) {
      tell(claim, 'Warning', 'ProvisioningFailed', `This claim cannot be served by leased nodes: ${never}.`);
      return {};
    }
    const here = { leaseId: leaseOf(host), node: host.name };
    // The write brings us back here, by the watch.
    if (!at) return note(claim, here, signal);
    // Whether it answers again is found out by others, and wakes us: all that wait for it would keep our workers busy.
    if (!isLinked(host)) {
      tell(claim, 'Warning', 'ProviderUnreachable', unreachable);
      return { requeueAfterSeconds: lookAgainSeconds };
    }
    const refused = await makeRemote(claim, host, signal);
    if (refused === 'going') return { requeueAfterSeconds: goingSeconds };
    if (refused !== undefined) return chooseAgain(claim, refused, signal);
    await show(claim, here, lease, signal);
    return {};
  }

  /** Where it is going to be, before it is there. */
  async function note(claim: Claim, at: StoredAt, signal: AbortSignal): Promise<Result> {
    const present = claim.metadata.finalizers ?? [];
    await patchClaim(
      claim,
      {
        finalizers: present.includes(finalizers.claim) ? present : [...present, finalizers.claim],
        annotations: { [annotations.storedAt]: storedAtText(at) },
      },
      signal,
    );
    return {};
  }

  /** Undefined: it is there. `going`: an earlier one has not gone yet. Otherwise why the provider does not take it. */
  async function makeRemote(
    claim: Claim,
    host: Pick<PodHost, 'remote' | 'spec'>,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const wanted = remoteClaim(claim) as Claim & KubeObject;
    try {
      await host.remote.create(resources.persistentVolumeClaims, wanted, signal);
      return undefined;
    } catch (error) {
      if (isAlreadyExists(error)) {
        const found = await host.remote.get<KubeObject>(resources.persistentVolumeClaims, keyOf(wanted), signal);
        return found && !found.metadata?.deletionTimestamp ? undefined : 'going';
      }
      if (error instanceof ApiError && error.code < 500 && error.code !== 429 && error.code !== 401)
        return `Provider ${host.spec.providerName} refused the claim: ${error.message.slice(0, 800)}`;
      if (!signal.aborted) tell(claim, 'Warning', 'ProviderUnreachable', unreachable);
      throw error;
    }
  }

  async function show(
    claim: Claim,
    at: StoredAt,
    lease: { readonly namespace: string; readonly name: string },
    signal: AbortSignal,
  ): Promise<void> {
    const volume = persistentVolume(claim, at, lease);
    try {
      const stored = await cluster.create(resources.persistentVolumes, volume as PersistentVolume & KubeObject, signal);
      if (!volumes.get({ name: volume.metadata.name })) made.set(volume.metadata.name, stored);
    } catch (error) {
      // Of an earlier look; or a stranger's, to which Kubernetes will not bind this claim.
      if (!isAlreadyExists(error)) throw error;
    }
    tell(
      claim,
      'Normal',
      'ProvisioningSucceeded',
      `Stored by the provider of lease ${lease.namespace}/${lease.name}, until that lease ends.`,
    );
  }

  /** Says why not here, and lets the scheduler choose again. */
  async function chooseAgain(claim: Claim, message: string, signal: AbortSignal): Promise<Result> {
    tell(claim, 'Warning', 'ProvisioningFailed', message);
    const at = storedAt(claim);
    if (at) return giveUp(claim, at, true, signal);
    await patchClaim(claim, { annotations: { [annotations.selectedNode]: null } }, signal);
    return {};
  }

  /** Takes back what was asked for and never used. */
  async function giveUp(claim: Claim, at: StoredAt, chooseNext: boolean, signal: AbortSignal): Promise<Result> {
    // Caches lag, and a pod may have written to it by now: then it is the claim's volume, whatever was chosen since.
    if (await readVolume(volumeName(uidOf(claim)), signal)) return {};
    const place = { ...at, remoteName: remoteClaimName(claim.metadata.name, uidOf(claim)) };
    const now = await removeRemote(place, signal);
    if (now !== 'gone') return { requeueAfterSeconds: now === 'going' ? goingSeconds : lookAgainSeconds };
    await patchClaim(
      claim,
      {
        finalizers: (claim.metadata.finalizers ?? []).filter((name) => name !== finalizers.claim),
        annotations: {
          [annotations.storedAt]: null,
          ...(chooseNext ? { [annotations.selectedNode]: null } : {}),
        },
      },
      signal,
    );
    return {};
  }

  /** A claim that is being deleted: its data go once no pod uses it any more. */
  async function letGo(claim: Claim, signal: AbortSignal): Promise<Result> {
    const present = claim.metadata.finalizers ?? [];
    if (!present.includes(finalizers.claim) || present.includes(inUse)) return {};
    // Of the API server itself: whoever has just set Retain means it.
    const volume = await readVolume(claim.spec.volumeName ?? volumeName(uidOf(claim)), signal);
    const kept = volume !== undefined && !isDeleted(volume);
    const at = storedAt(claim);
    const noted = at && { ...at, remoteName: remoteClaimName(claim.metadata.name, uidOf(claim)) };
    const place = (volume?.spec.claimRef?.uid === uidOf(claim) ? placeOf(volume) : undefined) ?? noted;
    if (place && !kept) {
      const now = await removeRemote(place, signal);
      if (now === 'unknown')
        tell(
          claim,
          'Warning',
          'DeletionWaits',
          `The provider does not answer: what is stored at ${place.node} is deleted when it does, or when its lease ends.`,
        );
      if (now !== 'gone') return { requeueAfterSeconds: now === 'going' ? goingSeconds : lookAgainSeconds };
    }
    await patchClaim(claim, { finalizers: present.filter((name) => name !== finalizers.claim) }, signal);
    return {};
  }

  /** Null takes an annotation away. Of the claim as it was seen: whoever changed it meanwhile wins, and we look again. */
  async function patchClaim(
    claim: Claim,
    change: { readonly finalizers?: readonly string[]; readonly annotations?: Record<string, string | null> },
    signal: AbortSignal,
  ): Promise<void> {
    const { uid, resourceVersion } = claim.metadata;
    try {
      await cluster.patch(
        resources.persistentVolumeClaims,
        keyOf(claim),
        { metadata: { uid, resourceVersion, ...change } },
        { type: 'merge' },
        signal,
      );
    } catch (error) {
      if (!isNotFound(error)) throw error;
    }
  }

  // --- the volume ------------------------------------------------------------------------------------------------------

  async function reconcileVolume({ name }: ObjectKey, signal: AbortSignal): Promise<Result> {
    const volume = volumes.get({ name });
    const place = volume && placeOf(volume);
    if (!volume || !place || volume.metadata.deletionTimestamp) return {};
    const { claimRef } = volume.spec;
    // Somebody keeps it for another claim.
    if (!claimRef?.uid || !claimRef.name) return {};
    const key = { namespace: claimRef.namespace, name: claimRef.name };
    const cached = claims.get(key);
    const claim =
      cached?.metadata.uid === claimRef.uid
        ? cached
        : await cluster.get<Claim & KubeObject>(resources.persistentVolumeClaims, key, signal);
    if (claim?.metadata.uid === claimRef.uid) return watchOver(claim, place, signal);
    const live = await readVolume(name, signal);
    if (!live || live.metadata.uid !== volume.metadata.uid || !isDeleted(live)) return {};
    const now = await removeRemote(place, signal);
    if (now !== 'gone') return { requeueAfterSeconds: now === 'going' ? goingSeconds : lookAgainSeconds };
    try {
      await cluster.delete(resources.persistentVolumes, { name }, { uid: volume.metadata.uid }, signal);
    } catch (error) {
      if (!isConflict(error)) throw error;
    }
    return {};
  }

  const readVolume = (name: string, signal: AbortSignal): Promise<PersistentVolume | undefined> =>
    cluster.get<PersistentVolume & KubeObject>(resources.persistentVolumes, { name }, signal);

  /** Says of a claim that its data are gone, or are there after all. */
  async function watchOver(claim: Claim & KubeObject, place: Place, signal: AbortSignal): Promise<Result> {
    if (claim.metadata.deletionTimestamp) return {};
    const data = await lookFor(place, signal);
    if (data.are === 'unknown') return {};
    const condition = dataLost(claim, data.are === 'lost' ? `${data.why} ${afterLoss}` : undefined, clock.now());
    if (!condition) return {};
    try {
      await cluster.patch(
        resources.persistentVolumeClaims,
        keyOf(claim),
        { metadata: { uid: claim.metadata.uid }, status: { conditions: [condition] } },
        { type: 'strategic', subresource: 'status' },
        signal,
      );
    } catch (error) {
      // Another claim of that name, or none: seen at the next look.
      if (!isNotFound(error) && !isConflict(error)) throw error;
      return {};
    }
    const { message = '' } = condition;
    if (data.are === 'lost') tell(claim, 'Warning', 'DataGone', message);
    else tell(claim, 'Normal', 'DataFound', message);
    return {};
  }

  async function lookFor(place: Place, signal: AbortSignal): Promise<Data> {
    const host = hostOf(place.node);
    const ended: Data = {
      are: 'lost',
      why: `The lease of node ${place.node}, with which the data of this claim were stored, has ended.`,
    };
    if (!host) return (await nodeIsGone(place.node, signal)) ? ended : { are: 'unknown' };
    if (leaseOf(host) !== place.leaseId) return ended;
    if (!isLinked(host)) return { are: 'unknown' };
    try {
      const key = { name: place.remoteName };
      const found = await host.remote.get<Claim & KubeObject>(resources.persistentVolumeClaims, key, signal);
      if (found?.status?.phase === 'Lost')
        return { are: 'lost', why: 'The provider has lost the volume behind this claim.' };
      if (found) return { are: 'there' };
      // As the provider's own API server says; but only while it serves the lease is that all there is to it.
      const { state } = await host.lease.allocation(signal);
      return state === 'Serving'
        ? { are: 'lost', why: 'The provider no longer has the data of this claim.' }
        : { are: 'unknown' };
    } catch (error) {
      if (signal.aborted) throw error;
      return { are: 'unknown' };
    }
  }

  // --- at the provider -------------------------------------------------------------------------------------------------

  async function removeRemote(place: Place, signal: AbortSignal): Promise<Going> {
    const host = hostOf(place.node);
    if (!host) return (await nodeIsGone(place.node, signal)) ? 'gone' : 'unknown';
    // With the lease everything of its tenant went.
    if (leaseOf(host) !== place.leaseId) return 'gone';
    if (!isLinked(host)) return 'unknown';
    const key = { name: place.remoteName };
    try {
      await host.remote.delete(resources.persistentVolumeClaims, key, {}, signal);
      return (await host.remote.get(resources.persistentVolumeClaims, key, signal)) ? 'going' : 'gone';
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Error && 'reason' in error && error.reason === 'LeaseEnded') return 'gone';
      log.debug({ node: place.node, claim: place.remoteName, error }, 'a claim at the provider could not be deleted');
      return 'unknown';
    }
  }

  /** A node of ours goes when its lease has ended, and not before: a finalizer sees to it. */
  const nodeIsGone = async (name: string, signal: AbortSignal): Promise<boolean> =>
    (await cluster.get(resources.nodes, { name }, signal)) === undefined;

  return {
    async run(signal) {
      await Promise.all([claims.run(signal), volumes.run(signal), controller.run(signal)]);
    },
    answer(node, pod, name, ephemeral) {
      if (!claims.synced || !volumes.synced) return { waits: `claim ${name} is not known yet` };
      const claim = claims.get({ namespace: pod.metadata.namespace, name });
      const volume = claim?.spec.volumeName ? volumeOf(claim.spec.volumeName) : undefined;
      return answerClaim(pod, name, ephemeral, node, claim, volume);
    },
    nodeChanged(name) {
      for (const claim of claims.byIndex('node', name)) controller.enqueue(keyOf(claim));
      for (const volume of volumes.byIndex('node', name)) controller.enqueue(keyOf(volume));
    },
    claimsOn(name) {
      const host = hostOf(name);
      return volumes.byIndex('node', name).flatMap((volume) => {
        const { claimRef } = volume.spec;
        const claim = claims.get({ namespace: claimRef?.namespace, name: claimRef?.name ?? '' });
        const here = host && placeOf(volume)?.leaseId === leaseOf(host);
        return here && claim && claim.metadata.uid === claimRef?.uid ? [claim] : [];
      });
    },
  };
}

const unreachable = 'The provider has not answered yet; it is asked again and again.';
const isLinked = (host: Pick<PodHost, 'spec'>): boolean => host.spec.linked?.() !== false;
const uidOf = (claim: Claim): string => claim.metadata.uid ?? '';
const leaseOf = (host: Pick<PodHost, 'spec'>): string => host.spec.leaseId.toLowerCase();
/** Whether its data go with its claim: whoever set Retain keeps them, until the lease ends. */
const isDeleted = (volume: PersistentVolume): boolean => volume.spec.persistentVolumeReclaimPolicy === 'Delete';

function nodesOf(claim: Claim): readonly string[] {
  if (!isLeasedClaim(claim)) return [];
  return [...new Set([selectedNode(claim), storedAt(claim)?.node])].filter((name) => name !== undefined);
}

const keptAnnotations = [annotations.storedAt, annotations.selectedNode];

function trimClaim(claim: Claim & KubeObject): Claim & KubeObject {
  const { metadata, spec, status } = claim;
  const { name, namespace, uid, resourceVersion, deletionTimestamp, finalizers: all, ownerReferences } = metadata;
  const kind = { apiVersion: 'v1', kind: 'PersistentVolumeClaim' };
  const kept = { name, namespace, uid, resourceVersion };
  const { storageClassName: className, volumeName: bound } = spec;
  if (!isLeasedClaim(claim))
    return { ...kind, metadata: kept, spec: { storageClassName: className, volumeName: bound } };
  const own: Record<string, string> = {};
  for (const key of keptAnnotations) {
    const value = metadata.annotations?.[key];
    if (value !== undefined) own[key] = value;
  }
  return {
    ...kind,
    metadata: { ...kept, deletionTimestamp, finalizers: all, ownerReferences, annotations: own },
    spec,
    status: { phase: status?.phase, conditions: status?.conditions },
  };
}
