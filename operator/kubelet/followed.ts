/**
 * Single objects of the consumer's cluster, watched one by one: a watch with `fieldSelector metadata.name=…` tells of one
 * object and no other. What it says is a hint; whoever follows reads the object again.
 *
 * Rights. An API server takes such a watch for a request about that one name, so RBAC may allow it by `resourceNames`; but the
 * names that pods will use are not known when a role is written, and `watch` without names would show every Secret there is.
 * So the operator asks for `get` on ConfigMaps and Secrets, and for `list` and `watch` where whoever installs it gives them:
 * for ConfigMaps, for a namespace, or for named Secrets. Where a watch is forbidden the object is polled instead, and the
 * watch is tried again every ten minutes.
 *
 * A change that is carried within a second is not yet in the container: the provider's kubelet rewrites mounted files with its
 * next look at the pod, a minute and a half at worst, as any kubelet does.
 */
import { backoffMs, type Clock, sleep } from '../engine/clock.ts';
import { isApiError } from '../engine/errors.ts';
import { type Cluster, type Log, resources } from '../engine/types.ts';
import { watchOnce } from '../engine/watch.ts';

export interface FollowedRef {
  readonly kind: 'ConfigMap' | 'Secret';
  readonly namespace: string;
  readonly name: string;
}

export interface Following {
  /** Changes are told. Otherwise the object has to be polled. */
  readonly live: boolean;
  stop(): void;
}

export interface FollowedObjects {
  /** `changed` is called when the object may have changed, and whenever watching begins or ends. */
  follow(ref: FollowedRef, changed: () => void): Following;
  readonly watched: number;
}

export interface FollowedOptions {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  /** Watches at once, each of them a connection. Beyond, objects are polled. 256. */
  readonly most?: number;
}

interface Entry {
  readonly ref: FollowedRef;
  readonly handlers: Set<() => void>;
  readonly stopping: AbortController;
  watching: boolean;
  live: boolean;
  /** Set where a watch was forbidden: it keeps no other object from being watched meanwhile. */
  notBeforeMs: number;
}

const watchSeconds = 300;
const quietSeconds = 120;
const forbiddenSeconds = 600;
const backoff = { baseSeconds: 1, maxSeconds: 60 };

export function createFollowedObjects({ cluster, clock, log, most = 256 }: FollowedOptions): FollowedObjects {
  const entries = new Map<string, Entry>();
  let watched = 0;

  const tell = (entry: Entry) => {
    for (const handler of [...entry.handlers]) handler();
  };

  function setLive(entry: Entry, live: boolean): void {
    if (entry.live === live && !live) return;
    entry.live = live;
    tell(entry);
  }

  function watchMore(): void {
    for (const entry of entries.values()) {
      if (watched >= most) return;
      if (!entry.watching && entry.notBeforeMs <= clock.monotonicMs()) begin(entry);
    }
  }

  function begin(entry: Entry): void {
    entry.watching = true;
    watched++;
    void watch(entry).finally(() => {
      entry.watching = false;
      watched--;
      watchMore();
    });
  }

  function forbid(entry: Entry): void {
    entry.notBeforeMs = clock.monotonicMs() + forbiddenSeconds * 1000;
    const cancel = clock.setTimeout(watchMore, forbiddenSeconds * 1000 + 1);
    entry.stopping.signal.addEventListener('abort', cancel, { once: true });
  }

  async function watch(entry: Entry): Promise<void> {
    const { ref } = entry;
    const { signal } = entry.stopping;
    let failures = 0;
    while (!signal.aborted) {
      let waitMs = 0;
      const openedAtMs = clock.monotonicMs();
      try {
        await watchOnce(
          {
            cluster,
            resource: ref.kind === 'Secret' ? resources.secrets : resources.configMaps,
            namespace: ref.namespace,
            fieldSelector: `metadata.name=${ref.name}`,
            // From now: the object as it is comes first.
            resourceVersion: '',
            timeoutSeconds: watchSeconds + Math.round(Math.random() * watchSeconds),
            quietSeconds,
            clock,
            onOpen: () => setLive(entry, true),
          },
          ({ type }) => {
            if (type !== 'BOOKMARK') tell(entry);
          },
          signal,
        );
        // A server that closes each watch at once is failing as well, politely.
        failures = clock.monotonicMs() - openedAtMs < 5000 ? failures + 1 : 0;
        if (failures > 0) waitMs = backoffMs(failures, backoff);
      } catch (error) {
        if (signal.aborted) break;
        log.debug({ kind: ref.kind, namespace: ref.namespace, name: ref.name, error }, 'an object cannot be watched');
        if (isApiError(error) && (error.code === 401 || error.code === 403)) {
          forbid(entry);
          break;
        }
        failures++;
        waitMs = backoffMs(failures, backoff);
      }
      setLive(entry, false);
      // Only the signal can end it early, and the loop asks that.
      if (waitMs > 0) await sleep(clock, waitMs, signal).catch(() => undefined);
    }
    setLive(entry, false);
  }

  return {
    follow(ref, changed) {
      const key = `${ref.kind}/${ref.namespace}/${ref.name}`;
      let entry = entries.get(key);
      if (!entry) {
        entry = {
          ref,
          handlers: new Set(),
          stopping: new AbortController(),
          watching: false,
          live: false,
          notBeforeMs: 0,
        };
        entries.set(key, entry);
        if (watched < most) begin(entry);
      }
      const followed = entry;
      followed.handlers.add(changed);
      return {
        get live() {
          return followed.live && followed.handlers.has(changed);
        },
        stop() {
          if (!followed.handlers.delete(changed) || followed.handlers.size > 0) return;
          entries.delete(key);
          followed.stopping.abort(new Error('nobody follows it any more'));
        },
      };
    },
    get watched() {
      return watched;
    },
  };
}
