/**
 * Changes of pods that run at the provider, and what of them was not taken: a resize, an ephemeral container, the change as a
 * whole. Neither ends the pod; each is told in its status or as an event.
 */
import type { Pod } from '../core/node/pod.ts';
import { hasRequests } from '../core/node/requests.ts';
import { carriedHash } from '../core/node/translate-pod.ts';
import { notCarriedReason, type StatusView } from '../core/node/translate-status.ts';
import { boundedMap } from '../engine/bounded-map.ts';
import { ApiError } from '../engine/errors.ts';
import { type Cluster, type Result, resources } from '../engine/types.ts';

export type Tell = (pod: Pod, type: 'Normal' | 'Warning', reason: string, message: string, about?: string) => void;

export interface PodChanges {
  /** The pod was made at the provider as it is wanted. */
  sent(pod: Pod, wanted: Pod): void;
  /** Brings the remote pod to what is wanted, as far as the provider takes it. Throws where trying again may help. */
  carry(
    pod: Pod,
    remote: Pod,
    wanted: Pod,
    provider: Cluster,
    signal: AbortSignal,
  ): Promise<{ remote: Pod; result: Result }>;
  /** What of the pod as it is wanted is not there, and why. `withheld` was not even sent. */
  notCarried(pod: Pod, remote: Pod, withheld?: StatusView['withheld']): Pick<StatusView, 'resize' | 'withheld'>;
}

/** How a resize that does not fit is told; by these words it is known again after a restart. */
const infeasible = 'The provider refused the resize: ';
const deferred = 'The lease has no room for the resize now: ';
/** When one that did not fit is tried again. */
const tryAgainSeconds = 30;

export function createPodChanges(tell: Tell): PodChanges {
  /** By UID: what was sent last, so that a provider which changes annotations is not sent the same again and again. */
  const sent = boundedMap<string, string>(20_000);
  /** By UID: the resize that the provider's side did not take. */
  const unresized = boundedMap<string, NonNullable<StatusView['resize']>>(20_000);
  /** By UID: ephemeral containers that the provider refused, and its words. */
  const refusedEphemeral = boundedMap<string, ReadonlyMap<string, string>>(2_000);

  /**
   * Carries a change of the consumer's pod: image, deadline, labels that a file shows, ephemeral containers, resources. The
   * whole pod, as it would be sent anew: the provider admits it anew, and takes what may change.
   */
  async function carry(
    pod: Pod,
    remote: Pod,
    wanted: Pod,
    provider: Cluster,
    signal: AbortSignal,
  ): Promise<{ remote: Pod; result: Result }> {
    const uid = uidOf(pod);
    const hash = hashOf(wanted);
    const last = sent.get(uid) ?? remote.metadata.annotations?.[carriedHash];
    const waits = ownResize(pod, remote)?.reason === 'Deferred';
    if ((last === hash && !waits) || remote.metadata.deletionTimestamp) return { remote, result: {} };
    const known = refusedEphemeral.get(uid);
    const without = (names: ReadonlyMap<string, string> | undefined): Pod => ({
      ...wanted,
      spec: {
        ...wanted.spec,
        ephemeralContainers: wanted.spec.ephemeralContainers?.filter(({ name }) => !names?.has(name)),
      },
    });
    try {
      const updated = await provider.replace<Pod>(resources.pods, without(known), undefined, signal);
      sent.set(uid, hash);
      if (hasRequests(updated, wanted)) unresized.delete(uid);
      else unfit(pod, 'Infeasible', `${infeasible}its gateway does not resize pods that run.`);
      return { remote: updated, result: {} };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.reason === 'ResizeRefused') {
        // Everything else of the change was carried out.
        sent.set(uid, hash);
        unfit(pod, 'Infeasible', infeasible + cut(error.message));
        return { remote, result: {} };
      }
      if (error.reason === 'CapacityExhausted') {
        unfit(pod, 'Deferred', deferred + cut(error.message));
        return { remote, result: { requeueAfterSeconds: tryAgainSeconds } };
      }
      if (error.code === 409 || error.code === 429 || error.code >= 500) throw error;
      const fresh = freshEphemeral(without(known), remote);
      if (fresh.length > 0) {
        // It may be these alone that are in the way, and they will be there for ever.
        const message = `The provider refused the container: ${cut(error.message)}`;
        const refused = new Map([...(known ?? []), ...fresh.map((name) => [name, message] as const)]);
        refusedEphemeral.set(uid, refused);
        for (const name of fresh) tell(pod, 'Warning', 'EphemeralContainerNotCarried', `${name}: ${message}`, name);
        return carry(pod, remote, wanted, provider, signal);
      }
      // It says no to this change, not to the pod.
      sent.set(uid, hash);
      tell(pod, 'Warning', 'ChangeRefused', `The provider refused the change: ${cut(error.message)}`);
      return { remote, result: {} };
    }
  }

  function unfit(pod: Pod, reason: 'Infeasible' | 'Deferred', message: string): void {
    unresized.set(uidOf(pod), { reason, message });
    tell(pod, 'Warning', reason === 'Infeasible' ? 'ResizeRefused' : 'ResizeDeferred', message);
  }

  /** A resize that we said could not be done, also before a restart of ours. The kubelet's own word comes first. */
  function ownResize(pod: Pod, remote: Pod): StatusView['resize'] {
    const isPending = ({ type }: { type: string }) => type === 'PodResizePending';
    const conditions: unknown = remote.status?.conditions;
    if (Array.isArray(conditions) && conditions.some(isPending)) return undefined;
    const known = unresized.get(uidOf(pod));
    // Once something was sent by this process, it knows how that went.
    if (known || sent.get(uidOf(pod)) !== undefined) return known;
    const stored = pod.status?.conditions?.find(isPending);
    const { reason, message } = stored ?? {};
    if (stored?.observedGeneration !== pod.metadata.generation || message === undefined) return undefined;
    if (reason === 'Infeasible' && message.startsWith(infeasible)) return { reason, message };
    return reason === 'Deferred' && message.startsWith(deferred) ? { reason, message } : undefined;
  }

  return {
    sent: (pod, wanted) => sent.set(uidOf(pod), hashOf(wanted)),
    carry,
    notCarried(pod, remote, withheld = []) {
      const words = new Map<string, string>();
      // Told before a restart of ours; the provider's own word for a container comes before any of these.
      for (const { name, state } of pod.status?.ephemeralContainerStatuses ?? [])
        if (state?.waiting?.reason === notCarriedReason) words.set(name, state.waiting.message ?? '');
      for (const [name, message] of refusedEphemeral.get(uidOf(pod)) ?? []) words.set(name, message);
      for (const { name, message } of withheld) words.set(name, message);
      return {
        resize: ownResize(pod, remote),
        withheld: [...words].map(([name, message]) => ({ name, message })),
      };
    },
  };
}

const uidOf = (pod: Pod): string => pod.metadata.uid ?? '';
const hashOf = (wanted: Pod): string => wanted.metadata.annotations?.[carriedHash] ?? '';
const cut = (message: string): string => message.slice(0, 900);

/** Names of ephemeral containers that the provider does not say anything of. */
function freshEphemeral(wanted: Pod, remote: Pod): string[] {
  const statuses: unknown = remote.status?.ephemeralContainerStatuses;
  const there = Array.isArray(statuses) ? statuses.map((status: { name?: unknown } | null) => status?.name) : [];
  return (wanted.spec.ephemeralContainers ?? []).map(({ name }) => name).filter((name) => !there.includes(name));
}
