/**
 * Tokens of the consumer's service accounts, for pods of leases that let them out: asked for with TokenRequest, bound to the
 * pod, so that they die with it; put into a Secret that the remote pod owns, so that it goes with that; replaced at 80 % of
 * their life. They are held nowhere else, and are in no log, event or error.
 *
 * Kept in memory is when each is due, not the token. After a restart every pod gets new ones: older ones may be about to end.
 */
import { labels, managedBy } from '../api/labels.ts';
import type { Pod } from '../core/node/pod.ts';
import { refreshAt, type TokenWish, tokenSecretName } from '../core/node/token-wish.ts';
import type { Clock } from '../engine/clock.ts';
import { isAlreadyExists } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import { pause } from '../wire/timing.ts';

export interface TokenCarrierOptions {
  readonly consumer: Cluster;
  readonly remote: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  /** A refresh that fails is told once, and tried again. */
  readonly onFailure: (pod: Pod, message: string) => void;
}

export interface TokenCarrier {
  /** The remote pod's volumes show these tokens; they are at the provider when this resolves, and fresh until release. */
  hold(pod: Pod, remote: Pod, wishes: readonly TokenWish[], signal: AbortSignal): Promise<void>;
  /** The pod has ended, or may have none any more. */
  release(podUid: string): void;
  run(signal: AbortSignal): Promise<void>;
}

interface Held {
  readonly pod: Pod;
  readonly remote: { readonly name: string; readonly uid: string };
  readonly wishes: readonly TokenWish[];
  nextAtMs: number;
  working?: Promise<void>;
}

interface TokenSecret extends KubeObject {
  type: string;
  data: Record<string, string>;
}

const everyMs = 1000;
const retrySeconds = 10;
const concurrency = 4;
/** Far more than any token has; a Secret holds a megabyte. */
const mostTokenBytes = 32_768;

export function createTokenCarrier(options: TokenCarrierOptions): TokenCarrier {
  const { consumer, remote, clock, log } = options;
  const held = new Map<string, Held>();
  /** Secrets that nobody may have any more. The remote pod's end takes them too, but that may be long after. */
  const unwanted = new Set<string>();

  async function renew(entry: Held, signal: AbortSignal): Promise<void> {
    entry.working ??= put(entry, signal).finally(() => {
      entry.working = undefined;
    });
    return entry.working;
  }

  async function put(entry: Held, signal: AbortSignal): Promise<void> {
    const { pod, remote: owner, wishes } = entry;
    const data: Record<string, string> = {};
    let dueMs = Number.POSITIVE_INFINITY;
    for (const wish of wishes) {
      const issued = clock.now();
      const { token, expires } = await request(pod, wish, signal);
      data[wish.key] = Buffer.from(token).toString('base64');
      dueMs = Math.min(dueMs, refreshAt(issued, expires).getTime() - issued.getTime());
    }
    const secret: TokenSecret = {
      metadata: {
        name: tokenSecretName(owner.name),
        labels: { [labels.managedBy]: managedBy },
        ownerReferences: [{ apiVersion: 'v1', kind: 'Pod', name: owner.name, uid: owner.uid }],
      },
      type: 'Opaque',
      data,
    };
    // Released while the tokens were asked for: they must not arrive after that.
    if (held.get(uidOf(pod)) !== entry) return;
    try {
      await remote.create<TokenSecret>(resources.secrets, secret, signal);
    } catch (error) {
      if (!isAlreadyExists(error)) throw error;
      await remote.replace<TokenSecret>(resources.secrets, secret, undefined, signal);
    }
    if (held.get(uidOf(pod)) !== entry) unwanted.add(secret.metadata.name);
    entry.nextAtMs = clock.monotonicMs() + Math.max(retrySeconds * 1000, dueMs);
  }

  async function request(pod: Pod, wish: TokenWish, signal: AbortSignal): Promise<{ token: string; expires: Date }> {
    const { name, namespace, uid } = pod.metadata;
    const account = pod.spec.serviceAccountName || 'default';
    const answer = await consumer.createSubresource<{ status?: { token?: unknown; expirationTimestamp?: unknown } }>(
      resources.serviceAccounts,
      { namespace, name: account },
      'token',
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: {
          audiences: wish.audience === '' ? [] : [wish.audience],
          expirationSeconds: wish.expirationSeconds,
          boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name, uid },
        },
      },
      signal,
    );
    const { token, expirationTimestamp } = answer.status ?? {};
    if (typeof token !== 'string' || token === '' || token.length > mostTokenBytes)
      throw new Error(`the API server answered a request for a token of ${account} without one`);
    const expires = new Date(String(expirationTimestamp));
    const usual = new Date(clock.now().getTime() + wish.expirationSeconds * 1000);
    return { token, expires: Number.isNaN(expires.getTime()) || expires > usual ? usual : expires };
  }

  return {
    async hold(pod, remotePod, wishes, signal) {
      const uid = uidOf(pod);
      const known = held.get(uid);
      const owner = { name: remotePod.metadata.name, uid: remotePod.metadata.uid ?? '' };
      if (known && known.remote.uid === owner.uid) {
        if (known.nextAtMs > 0) return;
        return renew(known, signal);
      }
      const entry: Held = { pod, remote: owner, wishes, nextAtMs: 0 };
      held.set(uid, entry);
      unwanted.delete(tokenSecretName(owner.name));
      await renew(entry, signal);
    },

    release(podUid) {
      const entry = held.get(podUid);
      if (!entry) return;
      held.delete(podUid);
      unwanted.add(tokenSecretName(entry.remote.name));
    },

    async run(signal) {
      while (!signal.aborted) {
        await pause(clock, everyMs, signal);
        if (signal.aborted) return;
        const due = [...held.values()].filter(({ nextAtMs }) => nextAtMs > 0 && nextAtMs <= clock.monotonicMs());
        const next = due[Symbol.iterator]();
        const worker = async () => {
          for (const entry of next) {
            try {
              await renew(entry, signal);
            } catch (error) {
              if (signal.aborted) return;
              entry.nextAtMs = clock.monotonicMs() + retrySeconds * 1000;
              options.onFailure(entry.pod, error instanceof Error ? error.message : 'failed');
            }
          }
        };
        await Promise.all(Array.from({ length: concurrency }, worker));
        for (const name of [...unwanted]) {
          try {
            unwanted.delete(name);
            await remote.delete(resources.secrets, { name }, {}, signal);
            // Given again meanwhile, and perhaps just taken away.
            for (const entry of held.values()) if (tokenSecretName(entry.remote.name) === name) entry.nextAtMs = 1;
          } catch (error) {
            if (signal.aborted) return;
            if (![...held.values()].some((entry) => tokenSecretName(entry.remote.name) === name)) unwanted.add(name);
            log.debug({ error }, 'a token that nobody may have any more could not be taken away');
          }
        }
      }
    },
  };
}

const uidOf = (pod: Pod): string => pod.metadata.uid ?? '';
