/**
 * ConfigMaps and Secrets at the provider: those that pods of one node refer to, by name, and no others. They follow the
 * consumer's: changed when it changes, taken away when it goes or when no pod refers to it any more.
 *
 * Each is watched by itself where that is allowed and there is room for another watch (followed.ts), and read by `get` again
 * and again where not. A missing one is looked for more often: a pod waits for it. One more ConfigMap a namespace is made
 * here, of the variables of its Services.
 */
import { labels, managedBy } from '../api/labels.ts';
import { remoteObjectName } from '../core/node/names.ts';
import { type ServiceLinks, serviceLinksName } from '../core/node/service-links.ts';
import { sha256Hex } from '../core/node/sha256.ts';
import type { Clock } from '../engine/clock.ts';
import { isAlreadyExists, isApiError } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import type { FollowedObjects, Following } from './followed.ts';

export interface ObjectRef {
  readonly kind: 'ConfigMap' | 'Secret';
  readonly namespace: string;
  readonly name: string;
  readonly optional: boolean;
}

/** At the provider. */
export const heldName = (ref: ObjectRef | ServiceLinks): string =>
  ref.kind === 'ServiceLinks'
    ? `ConfigMap/${serviceLinksName(ref)}`
    : `${ref.kind}/${remoteObjectName(ref.kind, ref.namespace, ref.name)}`;

interface Carried extends KubeObject {
  data?: Record<string, string>;
  binaryData?: Record<string, string>;
  type?: string;
}

interface Held {
  readonly ref: ObjectRef | ServiceLinks;
  readonly pods: Set<string>;
  readonly following?: Following;
  /** It may have changed since it was read. */
  stale: boolean;
  /** Hash of what the provider has, as far as we know. */
  sent?: string;
  missing: boolean;
  /** Pods that were told so. */
  readonly told: Set<string>;
  /** Looked at one at a time. */
  looking?: Promise<void>;
  nextAtMs: number;
}

export interface ObjectCarrierOptions {
  readonly consumer: Cluster;
  readonly remote: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  readonly pollSeconds: number;
  /** Told once to each pod whose reference is found missing. */
  readonly onMissing: (ref: ObjectRef, podUids: readonly string[]) => void;
  /** Variables of Services. */
  readonly services: (links: ServiceLinks) => Readonly<Record<string, string>>;
  /** Without it everything is polled. */
  readonly followed?: FollowedObjects;
}

export interface ObjectCarrier {
  /** The pod refers to these from now on. Resolves when what exists of them is at the provider. */
  hold(podUid: string, refs: readonly (ObjectRef | ServiceLinks)[], signal: AbortSignal): Promise<void>;
  release(podUid: string): void;
  /** Services changed. */
  servicesChanged(concerned: (links: ServiceLinks) => boolean): void;
  /** Follows changes until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
  /** Takes away what is at the provider and neither held nor in `wanted`: leftovers of an earlier run. */
  sweep(wanted: ReadonlySet<string>, signal: AbortSignal): Promise<void>;
}

const missingPollSeconds = 2;
/** What is watched is read again all the same, in case a watch lies. */
const watchedPollSeconds = 600;
/** What cannot be watched is read so often, and more rarely the more there is of it: ten a second. */
const leastPollSeconds = 5;
/** Variables of Services stay for a while after the last pod that was told of them. */
const keptSeconds = 60;
/** Of the consumer's time, at once. */
const concurrency = 4;
/** A token of the consumer's cluster, even when a pod names it, is not sent to a provider. */
const tokenType = 'kubernetes.io/service-account-token';

export function createObjectCarrier(options: ObjectCarrierOptions): ObjectCarrier {
  const { consumer, remote, clock, log } = options;
  const held = new Map<string, Held>();
  /** By pod: the names at the provider that it holds. */
  const byPod = new Map<string, { readonly keys: readonly string[]; sent: boolean }>();
  /** No longer referred to: to be taken away. */
  const unwanted = new Map<string, { readonly ref: ObjectRef | ServiceLinks; readonly sent?: string; dueMs: number }>();
  /** Being taken away: whoever needs one again waits until it is gone, or it would go after it was sent. */
  const leaving = new Map<string, Promise<void>>();
  let wake: (() => void) | undefined;

  const resourceOf = ({ kind }: Pick<ObjectRef | ServiceLinks, 'kind'>) =>
    kind === 'Secret' ? resources.secrets : resources.configMaps;
  const nameOf = (ref: ObjectRef | ServiceLinks) => heldName(ref).split('/')[1]!;
  const isFresh = ({ ref, stale, following }: Held) =>
    !stale && (ref.kind === 'ServiceLinks' || following?.live === true);

  function begin(ref: ObjectRef | ServiceLinks): Held {
    const known = unwanted.get(heldName(ref));
    unwanted.delete(heldName(ref));
    const entry: Held = {
      ref,
      ...(known?.sent !== undefined && { sent: known.sent }),
      pods: new Set(),
      missing: false,
      told: new Set(),
      stale: true,
      nextAtMs: 0,
      ...(ref.kind !== 'ServiceLinks' && options.followed && { following: options.followed.follow(ref, changed) }),
    };
    function changed(): void {
      entry.stale = true;
      entry.nextAtMs = 0;
      wake?.();
    }
    return entry;
  }

  function drop(key: string, podUid: string): void {
    const entry = held.get(key);
    entry?.pods.delete(podUid);
    entry?.told.delete(podUid);
    if (!entry || entry.pods.size > 0) return;
    held.delete(key);
    entry.following?.stop();
    const { ref, sent } = entry;
    if (ref.kind === 'ServiceLinks' && sent === undefined) return;
    // The next pod of a Job comes in a moment, and what Services there are is no secret.
    const keptMs = ref.kind === 'ServiceLinks' ? keptSeconds * 1000 : 0;
    unwanted.set(key, { ref, ...(sent !== undefined && { sent }), dueMs: clock.monotonicMs() + keptMs });
  }

  /** Until it is read again. */
  function pollMs(entry: Held, found: boolean): number {
    if (isFresh(entry)) return watchedPollSeconds * 1000;
    const seconds = Math.max(leastPollSeconds, held.size / 10);
    return Math.min(options.pollSeconds, found ? seconds : missingPollSeconds) * 1000;
  }

  async function look(entry: Held, signal: AbortSignal): Promise<void> {
    entry.looking ??= send(entry, signal).finally(() => {
      entry.looking = undefined;
    });
    return entry.looking;
  }

  async function send(entry: Held, signal: AbortSignal): Promise<void> {
    const { ref } = entry;
    await leaving.get(heldName(ref));
    entry.stale = false;
    try {
      const source = await read(ref, signal);
      await carry(entry, source, signal);
      entry.nextAtMs = entry.stale ? 0 : clock.monotonicMs() + pollMs(entry, source !== undefined);
    } catch (error) {
      entry.stale = true;
      throw error;
    }
  }

  /** What the provider should have; undefined for nothing. */
  async function read(ref: ObjectRef | ServiceLinks, signal: AbortSignal): Promise<Carried | undefined> {
    if (ref.kind === 'ServiceLinks') {
      const data = options.services(ref);
      return Object.keys(data).length === 0 ? undefined : carriedObject(ref, { metadata: { name: '' }, data });
    }
    const key = { namespace: ref.namespace, name: ref.name };
    const found = await consumer.get<Carried>(resourceOf(ref), key, signal);
    return found && found.type !== tokenType ? carriedObject(ref, found) : undefined;
  }

  async function carry(entry: Held, object: Carried | undefined, signal: AbortSignal): Promise<void> {
    const { ref } = entry;
    const resource = resourceOf(ref);
    if (!object) {
      entry.missing = true;
      const news = [...entry.pods].filter((uid) => !entry.told.has(uid));
      for (const uid of news) entry.told.add(uid);
      if (news.length > 0 && ref.kind !== 'ServiceLinks') options.onMissing(ref, news);
      // It was there, and its owner took it away: then the provider has no business with it either.
      if (entry.sent !== undefined) await remote.delete(resource, { name: nameOf(ref) }, {}, signal);
      entry.sent = undefined;
      return;
    }
    entry.missing = false;
    entry.told.clear();
    const hash = sha256Hex(JSON.stringify(object));
    if (entry.sent === hash) return;
    await put(resource, object, signal);
    entry.sent = hash;
  }

  async function put(resource: ReturnType<typeof resourceOf>, object: Carried, signal: AbortSignal): Promise<void> {
    try {
      await remote.create(resource, object, signal);
      return;
    } catch (error) {
      if (!isAlreadyExists(error)) throw error;
    }
    try {
      await remote.replace(resource, object, undefined, signal);
    } catch (error) {
      // A Secret's type cannot change: the consumer's was deleted and made anew.
      if (!isApiError(error, 'Invalid')) throw error;
      await remote.delete(resource, { name: object.metadata.name }, {}, signal);
      await remote.create(resource, object, signal);
    }
  }

  function carriedObject(ref: ObjectRef | ServiceLinks, source: Carried): Carried {
    return {
      metadata: { name: nameOf(ref), labels: { [labels.managedBy]: managedBy } },
      // `immutable` stays behind: the consumer may delete its object and make another one of the same name.
      ...(source.type !== undefined && { type: source.type }),
      ...(source.data && { data: source.data }),
      ...(source.binaryData && { binaryData: source.binaryData }),
    };
  }

  async function takeAway(signal: AbortSignal): Promise<void> {
    for (const [key, { ref, dueMs }] of [...unwanted]) {
      if (dueMs > clock.monotonicMs()) continue;
      unwanted.delete(key);
      try {
        await leave(key, resourceOf(ref), nameOf(ref), signal);
      } catch (error) {
        if (!held.has(key)) unwanted.set(key, { ref, dueMs });
        throw error;
      }
    }
  }

  function leave(key: string, resource: ReturnType<typeof resourceOf>, name: string, signal: AbortSignal) {
    const going = remote.delete(resource, { name }, {}, signal);
    const over = going.catch(() => undefined).finally(() => leaving.delete(key));
    leaving.set(key, over);
    return going;
  }

  function release(podUid: string): void {
    for (const key of byPod.get(podUid)?.keys ?? []) drop(key, podUid);
    byPod.delete(podUid);
  }

  /** Until the next look, or until something is known to have changed. */
  function rest(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const done = () => {
        cancel();
        wake = undefined;
        signal.removeEventListener('abort', done);
        resolve();
      };
      const cancel = clock.setTimeout(done, Math.min(1, options.pollSeconds) * 1000);
      wake = done;
      signal.addEventListener('abort', done, { once: true });
    });
  }

  return {
    async hold(podUid, refs, signal) {
      const keys = [...new Set(refs.map(heldName))];
      const before = byPod.get(podUid);
      if (before?.sent && before.keys.length === keys.length && keys.every((key) => before.keys.includes(key))) return;
      const toRead: Held[] = [];
      for (const ref of refs) {
        const key = heldName(ref);
        let entry = held.get(key);
        if (!entry) {
          entry = begin(ref);
          held.set(key, entry);
        }
        entry.pods.add(podUid);
        // One that is being read just now is waited for: it is not at the provider yet.
        if (entry.looking || entry.missing || !isFresh(entry)) toRead.push(entry);
      }
      for (const key of before?.keys ?? []) if (!keys.includes(key)) drop(key, podUid);
      // Remembered before anything is sent, so that a failure half-way is released as well.
      const holding = { keys, sent: false };
      byPod.set(podUid, holding);
      for (const entry of toRead) await look(entry, signal);
      holding.sent = true;
    },

    release,

    servicesChanged(concerned) {
      for (const entry of held.values()) {
        if (entry.ref.kind !== 'ServiceLinks' || !concerned(entry.ref)) continue;
        entry.stale = true;
        entry.nextAtMs = 0;
        wake?.();
      }
    },

    async run(signal) {
      while (!signal.aborted) {
        await rest(signal);
        if (signal.aborted) break;
        const due = [...held.values()].filter((entry) => entry.nextAtMs <= clock.monotonicMs());
        const next = due[Symbol.iterator]();
        const worker = async () => {
          for (const entry of next) {
            try {
              await look(entry, signal);
            } catch (error) {
              if (signal.aborted) return;
              entry.nextAtMs = clock.monotonicMs() + Math.min(leastPollSeconds, options.pollSeconds) * 1000;
              log.debug({ error, object: heldName(entry.ref) }, 'an object could not be carried');
            }
          }
        };
        await Promise.all(Array.from({ length: concurrency }, worker));
        try {
          await takeAway(signal);
        } catch (error) {
          if (!signal.aborted) log.debug({ error }, 'an object that nobody needs could not be taken away');
        }
      }
      for (const entry of held.values()) entry.following?.stop();
    },

    async sweep(wanted, signal) {
      for (const resource of [resources.configMaps, resources.secrets]) {
        const { items } = await remote.list(
          resource,
          { labelSelector: `${labels.managedBy}=${managedBy}`, trim: ({ metadata }) => ({ metadata }) },
          signal,
        );
        for (const { metadata } of items) {
          const key = `${resource.kind}/${metadata.name}`;
          if (wanted.has(key) || held.has(key) || unwanted.has(key)) continue;
          await leave(key, resource, metadata.name, signal);
        }
      }
    },
  };
}
