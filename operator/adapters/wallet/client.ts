/**
 * The operator's view of a wallet in another process: the same outbox, over HTTPS.
 *
 * A wallet that does not answer is no news of its transactions. Submitting again is harmless, as a key names an effect; so
 * "not reached" is told as a refusal that may be lifted, and nothing that was known is forgotten meanwhile.
 */
import { Agent, request } from 'node:https';
import type { Address } from '../../api/messages.ts';
import type { Clock } from '../../engine/clock.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';
import type { Payer } from '../chain/guarded-outbox.ts';
import type { OutboxEntry } from '../chain/outbox.ts';
import {
  type EntriesAnswer,
  entryOf,
  maxAnswerBytes,
  serverName,
  submittedOf,
  textOf,
  type WalletPlace,
} from './protocol.ts';

export interface WalletClientOptions {
  readonly cluster: Cluster;
  /** ConfigMap in which the wallet says where it is. */
  readonly place: { readonly namespace: string; readonly name: string };
  /** The token to show; read each time, as it is renewed. */
  readonly token: () => string;
  readonly clock: Clock;
}

export interface WalletClient {
  readonly address: Address;
  payer(chainId: number): Payer;
  close(): void;
}

/** The wallet did not answer, or not as a wallet does. */
export class WalletUnreachable extends Error {
  override readonly name = 'WalletUnreachable';
  readonly terminal = false;
}

const answerMs = { GET: 5_000, POST: 15_000, DELETE: 5_000 } as const;
/** So long is waited for news where something is known: whoever reads the chain reads this, too, and must not take long. */
const newsMs = 1_000;
/** Leases ask for their transactions all the time; what was heard a moment ago is good enough. */
const goodForMs = 500;

export function placeOf(object: (KubeObject & { data?: Record<string, string> }) | undefined): WalletPlace | undefined {
  const { url, certificate, wallet, chains } = object?.data ?? {};
  if (!url || !certificate || !wallet) return undefined;
  if (!/^https:\/\/[^/?#@]+$/.test(url) || !/^0x[0-9a-fA-F]{40}$/.test(wallet)) return undefined;
  return { url, certificate, wallet: wallet as Address, chains: (chains ?? '').split(',').filter(Boolean).map(Number) };
}

/** Throws WalletUnreachable while no wallet has said where it is. */
export async function connectWallet(options: WalletClientOptions, signal?: AbortSignal): Promise<WalletClient> {
  const { cluster, clock } = options;
  let agent: Agent | undefined;

  async function look(outer?: AbortSignal): Promise<WalletPlace> {
    const found = placeOf(await cluster.get<KubeObject>(resources.configMaps, options.place, outer));
    if (!found)
      throw new WalletUnreachable(
        `ConfigMap ${options.place.namespace}/${options.place.name} does not say where the wallet is: start it`,
      );
    return found;
  }

  let place = await look(signal);
  const address = place.wallet;

  function send(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    body: string | undefined,
    outer?: AbortSignal,
  ): Promise<unknown> {
    agent ??= new Agent({ keepAlive: true, maxSockets: 8, ca: place.certificate, minVersion: 'TLSv1.3' });
    const timeout = AbortSignal.timeout(answerMs[method]);
    return new Promise((resolve, reject) => {
      const sent = request(
        new URL(path, place.url),
        {
          method,
          agent,
          servername: serverName,
          signal: outer ? AbortSignal.any([outer, timeout]) : timeout,
          headers: {
            authorization: `Bearer ${options.token()}`,
            ...(body !== undefined && {
              'content-type': 'application/json',
              'content-length': Buffer.byteLength(body),
            }),
          },
        },
        (response) => {
          const chunks: Buffer[] = [];
          let bytes = 0;
          response.on('data', (chunk: Buffer) => {
            bytes += chunk.length;
            if (bytes > maxAnswerBytes) sent.destroy(new Error(`its answer is longer than ${maxAnswerBytes} bytes`));
            else chunks.push(chunk);
          });
          response.once('error', reject);
          response.once('end', () => {
            try {
              const answer: unknown = JSON.parse(Buffer.concat(chunks).toString('utf8'));
              if (response.statusCode === 200) resolve(answer);
              else reject(new Error(String((answer as { message?: unknown }).message ?? response.statusCode)));
            } catch {
              reject(new Error(`it answers ${response.statusCode}, and no JSON`));
            }
          });
        },
      );
      sent.once('error', reject);
      sent.end(body);
    });
  }

  /** Where the wallet was may not be where it is: looks again once. */
  async function ask(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    body?: string,
    outer?: AbortSignal,
  ): Promise<unknown> {
    try {
      return await send(method, path, body, outer);
    } catch (first) {
      outer?.throwIfAborted();
      const found = await look(outer).catch(() => place);
      if (found.wallet.toLowerCase() !== address.toLowerCase())
        throw new WalletUnreachable(`the wallet is ${found.wallet} now and was ${address}: restart the operator`);
      const moved = found.url !== place.url || found.certificate !== place.certificate;
      try {
        if (!moved) throw first;
        place = found;
        agent?.destroy();
        agent = undefined;
        return await send(method, path, body, outer);
      } catch (error) {
        outer?.throwIfAborted();
        throw new WalletUnreachable(`the wallet does not answer: ${(error as Error).message.slice(0, 300)}`);
      }
    }
  }

  function payer(chainId: number): Payer {
    const path = `/v1/chains/${chainId}/transactions`;
    let version: string | undefined;
    let heard = false;
    let entries: ReadonlyMap<string, OutboxEntry> = new Map();
    let heardAtMs = Number.NEGATIVE_INFINITY;
    let hearing: Promise<void> | undefined;

    async function hear(): Promise<void> {
      const answer = (await ask('GET', version === undefined ? path : `${path}?known=${version}`)) as EntriesAnswer;
      if (typeof answer?.version !== 'string') throw new WalletUnreachable('the wallet answers something else');
      if (Array.isArray(answer.entries))
        entries = new Map(answer.entries.map((one) => entryOf(one)).map((entry) => [entry.key, entry]));
      version = answer.version;
      heard = true;
      heardAtMs = clock.monotonicMs();
    }

    /** What is known, as new as it can be had. Throws only when nothing was ever heard. */
    async function current(signal?: AbortSignal): Promise<ReadonlyMap<string, OutboxEntry>> {
      if (clock.monotonicMs() - heardAtMs >= goodForMs) {
        hearing ??= hear().finally(() => {
          hearing = undefined;
        });
        const silent = (error: unknown) => {
          if (!heard) throw error;
          heardAtMs = clock.monotonicMs();
        };
        // Without anything known there is nothing to say before it answers.
        await (heard ? Promise.race([hearing.catch(silent), later(clock, newsMs)]) : hearing.catch(silent));
        signal?.throwIfAborted();
      }
      return entries;
    }

    return {
      address,
      async submit({ key, to, data }, signal) {
        try {
          const submitted = submittedOf(await ask('POST', path, textOf({ key, to, data }), signal));
          if (submitted.outcome === 'accepted') entries = new Map([...entries, [key, submitted.entry]]);
          return submitted;
        } catch (error) {
          signal?.throwIfAborted();
          const message = error instanceof Error ? error.message : String(error);
          return { outcome: 'refused', refusal: { name: 'WalletUnreachable', terminal: false, message, args: {} } };
        }
      },
      state: async (key, signal) => (await current(signal)).get(key),
      entries: async (signal) => [...(await current(signal)).values()],
      async forget(key, signal) {
        await ask('DELETE', `${path}?key=${encodeURIComponent(key)}`, undefined, signal);
        entries = new Map([...entries].filter(([name]) => name !== key));
        version = undefined;
        heardAtMs = Number.NEGATIVE_INFINITY;
      },
    };
  }

  return { address, payer, close: () => agent?.destroy() };
}

const later = (clock: Clock, ms: number): Promise<void> =>
  new Promise((resolve) => {
    clock.setTimeout(resolve, ms);
  });
