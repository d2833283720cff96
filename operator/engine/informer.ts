/**
 * A list that stays true: pages, then a watch, for as long as the signal lets it. client-node's own informer stays dead
 * after the first error; this one has no state in which it does not try again.
 *
 *   list ──► watch ──closed, quiet──► watch again from the last version
 *    ▲         ├──broken, refused──► back off, watch again
 *    └─────────┴──410, or broken at the same version again and again──► list again, and tell the difference
 *
 * Invariant: what handlers heard adds up to what the store holds. An object that went while nobody listened is told as
 * deleted after the next list; one that was replaced by another of its name, as deleted and then added.
 * resourceVersions are compared for equality only: that is all Kubernetes promises about them.
 */
import { backoffMs, type Clock, sleep, systemClock } from './clock.ts';
import { isApiError, isExpired } from './errors.ts';
import { silentLog } from './log.ts';
import type { EngineMetrics } from './metrics.ts';
import { keyOf, keyText } from './paths.ts';
import { createStore } from './store.ts';
import type { Change, Informer, InformerOptions, KubeObject, Log } from './types.ts';
import { type WatchEvent, watchOnce } from './watch.ts';

export interface InformerSettings {
  readonly log?: Log;
  readonly clock?: Clock;
  readonly metrics?: EngineMetrics;
  /** 120: API servers send a bookmark a minute. Resources without a watch cache (events) are merely reopened. */
  readonly quietSeconds?: number;
  /** 300 to 600, drawn for each watch. */
  readonly watchSeconds?: number;
  readonly backoff?: { readonly baseSeconds: number; readonly maxSeconds: number };
  readonly random?: () => number;
}

/** A watch that breaks so often at one version is given up, and everything is listed again. */
const failuresBeforeRelist = 5;
/** A watch that lived this long was healthy: the next failure is a first one. */
const healthySeconds = 5;

export function createInformer<T extends KubeObject>(options: InformerOptions<T> & InformerSettings): Informer<T> {
  const { cluster, resource, namespace, labelSelector, fieldSelector, metrics } = options;
  const clock = options.clock ?? systemClock;
  const random = options.random ?? Math.random;
  const backoff = options.backoff ?? { baseSeconds: 0.5, maxSeconds: 30 };
  const log = (options.log ?? silentLog).child({ cluster: cluster.name, resource: resource.plural });
  const store = createStore<T>(options.indexes);
  const handlers = new Set<(change: Change<T>) => void>();
  const waiting = new Set<{ resolve(): void; reject(reason: unknown): void }>();
  let synced = false;
  let running = false;
  let ended: { reason: unknown } | undefined;
  let version = '';
  let heardAtMs: number | undefined;
  const createdAtMs = clock.monotonicMs();

  const heard = () => {
    heardAtMs = clock.monotonicMs();
  };

  function trim(object: KubeObject): T {
    // Of what was listed: watches leave it out before they parse (managed-fields.ts).
    if ('managedFields' in object.metadata) {
      const { managedFields: _, ...metadata } = object.metadata as KubeObject['metadata'] & { managedFields: unknown };
      object = { ...object, metadata };
    }
    return options.trim ? options.trim(object as T) : (object as T);
  }

  function tell(handler: (change: Change<T>) => void, change: Change<T>) {
    const failed = (error: unknown) =>
      log.error({ error, key: keyText(keyOf(change.object)), change: change.type }, 'a change handler failed');
    try {
      // An async handler is a mistake that types let pass; its rejection must not end the process.
      const result: unknown = handler(change);
      if (result instanceof Promise) result.catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  const tellAll = (change: Change<T>) => {
    for (const handler of [...handlers]) tell(handler, change);
  };

  function put(object: T) {
    const old = store.get(keyOf(object));
    if (old && old.metadata.uid !== object.metadata.uid) {
      remove(old);
      return put(object);
    }
    if (old && old.metadata.resourceVersion === object.metadata.resourceVersion) return;
    store.put(object);
    tellAll(old ? { type: 'updated', object, old } : { type: 'added', object });
  }

  /** `last` is the object as it was when it went, where the server said so. */
  function remove(old: T, last: T = old) {
    store.remove(keyText(keyOf(old)));
    tellAll({ type: 'deleted', object: last, old });
  }

  function take(event: WatchEvent) {
    heard();
    const next = event.object.metadata.resourceVersion;
    if (event.type === 'DELETED') {
      const old = store.get(keyOf(event.object));
      if (old && old.metadata.uid === event.object.metadata.uid) remove(old, trim(event.object));
    } else if (event.type !== 'BOOKMARK') {
      put(trim(event.object));
    }
    if (next) version = next;
  }

  async function listAll(signal: AbortSignal) {
    const { items, resourceVersion } = await cluster.list<T>(
      resource,
      { namespace, labelSelector, fieldSelector, trim },
      signal,
    );
    heard();
    metrics?.informerListed?.(cluster.name, resource.plural);
    const present = new Set(items.map((item) => keyText(keyOf(item))));
    for (const old of store.list()) {
      if (!present.has(keyText(keyOf(old)))) remove(old);
    }
    for (const item of items) put(item);
    version = resourceVersion;
    if (!synced) {
      synced = true;
      for (const { resolve } of waiting) resolve();
      waiting.clear();
    }
  }

  /** Returns when everything must be listed again. */
  async function watchAll(signal: AbortSignal): Promise<void> {
    let failures = 0;
    let failedAt = '';
    while (!signal.aborted) {
      const openedAtMs = clock.monotonicMs();
      const openedAt = version;
      const base = options.watchSeconds ?? 300;
      let problem: unknown;
      try {
        const ended = await watchOnce(
          {
            cluster,
            resource,
            namespace,
            labelSelector,
            fieldSelector,
            resourceVersion: version,
            timeoutSeconds: Math.round(base + random() * base),
            quietSeconds: options.quietSeconds ?? 120,
            clock,
          },
          take,
          signal,
        );
        metrics?.informerWatched?.(cluster.name, resource.plural, ended);
        if (ended === 'closed') heard();
      } catch (error) {
        if (signal.aborted) return;
        metrics?.informerWatched?.(cluster.name, resource.plural, isExpired(error) ? 'expired' : 'failed');
        if (isExpired(error)) {
          log.debug({ version }, 'the watch is too old to go on: listing again');
          return;
        }
        problem = error;
      }
      const healthy = version !== openedAt || clock.monotonicMs() - openedAtMs >= healthySeconds * 1000;
      if (problem === undefined && healthy) {
        failures = 0;
        continue;
      }
      // A server that closes each watch at once is failing as well, politely.
      failures = healthy || failedAt !== openedAt ? 1 : failures + 1;
      failedAt = version;
      if (problem !== undefined) complain(problem, failures, 'the watch broke');
      if (failures >= failuresBeforeRelist && problem !== undefined) return;
      await pause(problem, failures, signal);
    }
  }

  function complain(error: unknown, failures: number, message: string) {
    const fields = { error, failures, staleSeconds: Math.round(staleSeconds()) };
    // One broken connection is weather; being shut out is not.
    const shutOut = isApiError(error) && (error.code === 401 || error.code === 403 || error.code === 404);
    if (failures >= 3 || shutOut) log.warn(fields, message);
    else log.debug(fields, message);
  }

  async function pause(error: unknown, failures: number, signal: AbortSignal) {
    const asked = isApiError(error) ? (error.retryAfterSeconds ?? 0) : 0;
    const ms = Math.max(Math.min(asked, 60) * 1000, backoffMs(failures, backoff, random));
    await sleep(clock, ms, signal).catch(() => undefined); // only the signal can end it early, and the loop asks that
  }

  const staleSeconds = () => Math.max(0, clock.monotonicMs() - (heardAtMs ?? createdAtMs)) / 1000;

  return {
    resource,
    async run(signal) {
      if (running) throw new Error(`the informer of ${resource.plural} runs already`);
      running = true;
      ended = undefined;
      const stopObserving = metrics?.observeInformer?.(cluster.name, resource.plural, () => ({
        objects: store.size,
        staleSeconds: staleSeconds(),
        synced,
      }));
      let failures = 0;
      try {
        while (!signal.aborted) {
          const startedAtMs = clock.monotonicMs();
          try {
            await listAll(signal);
            const listed = version;
            await watchAll(signal);
            // A list that expires at once, again and again, must not become a storm of lists.
            const lived = version !== listed || clock.monotonicMs() - startedAtMs >= healthySeconds * 1000;
            failures = lived ? 0 : failures + 1;
            if (failures > 0 && !signal.aborted) await pause(undefined, failures, signal);
          } catch (error) {
            if (signal.aborted) break;
            failures++;
            complain(error, failures, 'the list failed');
            await pause(error, failures, signal);
          }
        }
      } finally {
        running = false;
        ended = { reason: signal.reason };
        stopObserving?.();
        for (const { reject } of waiting) reject(signal.reason);
        waiting.clear();
      }
    },
    get synced() {
      return synced;
    },
    waitForSync(signal) {
      if (synced) return Promise.resolve();
      return new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason);
        if (ended) return reject(ended.reason);
        const entry = {
          resolve: () => {
            signal?.removeEventListener('abort', onAbort);
            resolve();
          },
          reject: (reason: unknown) => {
            signal?.removeEventListener('abort', onAbort);
            reject(reason);
          },
        };
        const onAbort = () => {
          waiting.delete(entry);
          reject(signal?.reason);
        };
        signal?.addEventListener('abort', onAbort, { once: true });
        waiting.add(entry);
      });
    },
    get: (key) => store.get(key),
    list: () => store.list(),
    byIndex: (index, value) => store.byIndex(index, value),
    onChange(handler) {
      // Who comes late hears first what is there, so that it does not matter who started first.
      for (const object of store.list()) tell(handler, { type: 'added', object });
      handlers.add(handler);
      return () => handlers.delete(handler);
    },
    get staleSeconds() {
      return staleSeconds();
    },
  };
}
