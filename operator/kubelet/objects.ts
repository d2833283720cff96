/**
 * ConfigMaps and Secrets at the provider: those that pods of one node refer to, by name, and no others. They follow the
 * consumer's: changed when it changes, taken away when it goes or when no pod refers to it any more.
 *
 * They are read by `get`, one by one, again and again, because that is all the right to read Secrets that is asked for. A
 * missing one is looked for more often: a pod waits for it.
 */
import { labels, managedBy } from '../api/labels.ts';
import { remoteObjectName } from '../core/node/names.ts';
import { sha256Hex } from '../core/node/sha256.ts';
import type { Clock } from '../engine/clock.ts';
import { isAlreadyExists, isApiError } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';

export interface ObjectRef {
  readonly kind: 'ConfigMap' | 'Secret';
  readonly namespace: string;
  readonly name: string;
  readonly optional: boolean;
}

interface Carried extends KubeObject {
  data?: Record<string, string>;
  binaryData?: Record<string, string>;
  type?: string;
}

interface Held {
  readonly ref: ObjectRef;
  readonly pods: Set<string>;
  /** Hash of what the provider has, as far as we know. */
  sent?: string;
  missing: boolean;
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
  /** Told once for each reference that is found missing. */
  readonly onMissing: (ref: ObjectRef, podUids: readonly string[]) => void;
}

export interface ObjectCarrier {
  /** The pod refers to these from now on. Resolves when what exists of them is at the provider. */
  hold(podUid: string, refs: readonly ObjectRef[], signal: AbortSignal): Promise<void>;
  release(podUid: string): void;
  /** Follows changes until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
  /** Takes away what is at the provider and neither held nor in `wanted`: leftovers of an earlier run. */
  sweep(wanted: ReadonlySet<string>, signal: AbortSignal): Promise<void>;
}

const missingPollSeconds = 2;
/** Of the consumer's time, at once. */
const concurrency = 4;
/** A token of the consumer's cluster, even when a pod names it, is not sent to a provider. */
const tokenType = 'kubernetes.io/service-account-token';

export function createObjectCarrier(options: ObjectCarrierOptions): ObjectCarrier {
  const { consumer, remote, clock, log } = options;
  const held = new Map<string, Held>();
  /** By pod: the names at the provider that it holds. */
  const byPod = new Map<string, { readonly keys: ReadonlySet<string>; sent: boolean }>();
  /** No longer referred to: to be taken away. */
  const unwanted = new Map<string, ObjectRef>();

  const resourceOf = (ref: ObjectRef) => (ref.kind === 'Secret' ? resources.secrets : resources.configMaps);
  const nameOf = (ref: ObjectRef) => remoteObjectName(ref.kind, ref.namespace, ref.name);
  const keyOf = (ref: ObjectRef) => `${ref.kind}/${nameOf(ref)}`;

  async function look(entry: Held, signal: AbortSignal): Promise<void> {
    entry.looking ??= send(entry, signal).finally(() => {
      entry.looking = undefined;
    });
    return entry.looking;
  }

  async function send(entry: Held, signal: AbortSignal): Promise<void> {
    const { ref } = entry;
    const resource = resourceOf(ref);
    const found = await consumer.get<Carried>(resource, { namespace: ref.namespace, name: ref.name }, signal);
    const source = found?.type === tokenType ? undefined : found;
    entry.nextAtMs =
      clock.monotonicMs() + (source ? options.pollSeconds : Math.min(missingPollSeconds, options.pollSeconds)) * 1000;
    if (!source) {
      if (!entry.missing) options.onMissing(ref, [...entry.pods]);
      entry.missing = true;
      // It was there, and its owner took it away: then the provider has no business with it either.
      if (entry.sent !== undefined) await remote.delete(resource, { name: nameOf(ref) }, {}, signal);
      entry.sent = undefined;
      return;
    }
    entry.missing = false;
    const object = carriedObject(ref, source);
    const hash = sha256Hex(JSON.stringify(object));
    if (entry.sent === hash) return;
    await put(resource, object, signal);
    entry.sent = hash;
    entry.nextAtMs = clock.monotonicMs() + options.pollSeconds * 1000;
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

  function carriedObject(ref: ObjectRef, source: Carried): Carried {
    return {
      metadata: { name: nameOf(ref), labels: { [labels.managedBy]: managedBy } },
      // `immutable` stays behind: the consumer may delete its object and make another one of the same name.
      ...(source.type !== undefined && { type: source.type }),
      ...(source.data && { data: source.data }),
      ...(source.binaryData && { binaryData: source.binaryData }),
    };
  }

  async function takeAway(signal: AbortSignal): Promise<void> {
    for (const [key, ref] of [...unwanted]) {
      if (held.has(key)) {
        unwanted.delete(key);
        continue;
      }
      await remote.delete(resourceOf(ref), { name: nameOf(ref) }, {}, signal);
      unwanted.delete(key);
    }
  }

  function release(podUid: string): void {
    for (const key of byPod.get(podUid)?.keys ?? []) {
      const entry = held.get(key);
      entry?.pods.delete(podUid);
      if (entry?.pods.size === 0) {
        held.delete(key);
        unwanted.set(key, entry.ref);
      }
    }
    byPod.delete(podUid);
  }

  return {
    async hold(podUid, refs, signal) {
      const keys = new Set(refs.map(keyOf));
      const before = byPod.get(podUid);
      if (before?.sent && before.keys.size === keys.size && [...keys].every((key) => before.keys.has(key))) return;
      const fresh: Held[] = [];
      for (const ref of refs) {
        const key = keyOf(ref);
        let entry = held.get(key);
        if (!entry) {
          entry = { ref, pods: new Set(), missing: false, nextAtMs: 0 };
          held.set(key, entry);
        }
        entry.pods.add(podUid);
        fresh.push(entry);
      }
      for (const key of before?.keys ?? []) {
        if (keys.has(key)) continue;
        const entry = held.get(key);
        entry?.pods.delete(podUid);
        if (entry?.pods.size === 0) {
          held.delete(key);
          unwanted.set(key, entry.ref);
        }
      }
      // Remembered before anything is sent, so that a failure half-way is released as well.
      const holding = { keys, sent: false };
      byPod.set(podUid, holding);
      for (const entry of fresh) await look(entry, signal);
      holding.sent = true;
    },

    release,

    async run(signal) {
      while (!signal.aborted) {
        await pause(clock, Math.min(1, options.pollSeconds) * 1000, signal);
        if (signal.aborted) return;
        const due = [...held.values()].filter((entry) => entry.nextAtMs <= clock.monotonicMs());
        const next = due[Symbol.iterator]();
        const worker = async () => {
          for (const entry of next) {
            try {
              await look(entry, signal);
            } catch (error) {
              if (signal.aborted) return;
              entry.nextAtMs = clock.monotonicMs() + options.pollSeconds * 1000;
              log.debug({ error, kind: entry.ref.kind, name: entry.ref.name }, 'an object could not be carried');
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
          if (wanted.has(key) || held.has(key)) continue;
          await remote.delete(resource, { name: metadata.name }, {}, signal);
        }
      }
    },
  };
}

/** Resolves after `ms`, or at once when the signal fires. */
export function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      cancel();
      signal.removeEventListener('abort', done);
      resolve();
    };
    const cancel = clock.setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
