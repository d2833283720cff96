/**
 * One API server: requests, streams, upgrades. See `Cluster` for the contract.
 *
 * What is tried again here, and what is not: a 429 and a 401 are (the server did not act), a 503 with Retry-After and a
 * connection that died under a read are. A write whose outcome is unknown never is: only its author knows how to look.
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { type Clock, sleep, systemClock } from './clock.ts';
import { readCredentials } from './credentials.ts';
import { ApiError, isExpired, isNotFound, isRecord, statusOf, UnknownOutcomeError } from './errors.ts';
import { type Answer, jsonOrText, type Outgoing, pathAt, pathOnly, readBody, send } from './http.ts';
import type { EngineMetrics } from './metrics.ts';
import { apiVersionOf, collectionPath, metadataAlone, objectPath, withQuery } from './paths.ts';
import type { Cluster, ConnectionKind, KubeObject, ListOptions, RawRequest, Resource, SharedWatches } from './types.ts';

export interface ConnectOptions {
  /** For logs and metrics. */
  readonly name: string;
  /** `in-cluster`, the text of a kubeconfig, or the path of one. */
  readonly kubeconfig: string;
  readonly userAgent?: string;
  readonly timeoutSeconds?: number;
  readonly maxResponseBytes?: number;
  readonly clock?: Clock;
  readonly metrics?: EngineMetrics;
  /** For watches of others, with their tokens. Default: each has a connection of its own. */
  readonly shareWatches?: (options: {
    readonly host: string;
    readonly dial: (protocol: 'h2') => Promise<Duplex>;
    readonly timeoutSeconds: number;
  }) => SharedWatches;
}

const defaultTimeoutSeconds = 30;
const pageSize = 500;
const mostAttempts = 5;
const longestWaitSeconds = 30;

/** What a caller may not set: it would be ours, or speak for somebody else. Compared in lower case. */
const ownHeaders =
  /^(authorization|proxy-authorization|host|content-length|transfer-encoding|impersonate-.*|x-remote-.*)$/;

const patchTypes = {
  json: 'application/json-patch+json',
  merge: 'application/merge-patch+json',
  strategic: 'application/strategic-merge-patch+json',
  apply: 'application/apply-patch+yaml',
} as const;

/** Connects to nothing yet: the first request does. Throws at once when the kubeconfig cannot be used. */
export function connectCluster(options: ConnectOptions): Cluster {
  const credentials = readCredentials(options.kubeconfig);
  const { server, dialBare } = credentials;
  const { timeoutSeconds = defaultTimeoutSeconds } = options;
  const shared = dialBare && options.shareWatches?.({ host: server.host, dial: dialBare, timeoutSeconds });
  return clusterOver(
    {
      server: server.href.replace(/\/$/, ''),
      async transmit(outgoing, kind, as, signal) {
        const pool = kind === 'watches' ? 'streams' : kind;
        const access = as === undefined ? await credentials.own(pool) : credentials.bearer(as, pool);
        if (shared && kind === 'watches' && as !== undefined) {
          const path = pathAt(server, outgoing.path);
          const headers = { ...outgoing.headers, ...access.headers };
          const response = await shared.open({ ...outgoing, path, headers }, signal);
          if (response) return { response };
        }
        const answer = await send(server, access, outgoing, signal);
        if (answer.response.statusCode === 401 && as === undefined) credentials.forget();
        return answer;
      },
    },
    options,
  );
}

/** How requests get to an API server, or to what stands for one. Rejects with UnknownOutcomeError, or the signal's reason. */
export interface Transport {
  readonly server: string;
  transmit(outgoing: Outgoing, kind: ConnectionKind, as?: string, signal?: AbortSignal): Promise<Answer>;
}

export function clusterOver(transport: Transport, options: Omit<ConnectOptions, 'kubeconfig'>): Cluster {
  const { name, metrics } = options;
  const clock = options.clock ?? systemClock;
  const userAgent = options.userAgent ?? 'gpulease';
  const timeoutSeconds = options.timeoutSeconds ?? defaultTimeoutSeconds;
  const maxBytes = options.maxResponseBytes ?? 64 * 1024 * 1024;

  async function transmit(outgoing: Outgoing, kind: ConnectionKind, as?: string, signal?: AbortSignal) {
    const startedAt = clock.monotonicMs();
    const count = (code: number) =>
      metrics?.request?.(name, outgoing.method, code, (clock.monotonicMs() - startedAt) / 1000);
    let answer: Answer;
    try {
      answer = await transport.transmit(outgoing, kind, as, signal);
    } catch (error) {
      count(0);
      throw error;
    }
    count(answer.response.statusCode ?? 0);
    return answer;
  }

  /** One JSON call, tried again where that is safe. */
  async function call<T>(
    method: string,
    path: string,
    body?: unknown,
    contentType = 'application/json',
    signal?: AbortSignal,
    accept = 'application/json',
  ): Promise<T> {
    const what = `${method} ${pathOnly(path)}`;
    const headers: Record<string, string> = { Accept: accept, 'User-Agent': userAgent };
    let payload: Buffer | undefined;
    if (body !== undefined) {
      payload = Buffer.from(JSON.stringify(body));
      headers['Content-Type'] = contentType;
      headers['Content-Length'] = String(payload.length);
    }
    const reading = method === 'GET';
    const startedAt = clock.monotonicMs();
    for (let attempt = 1; ; attempt++) {
      let response: IncomingMessage;
      let bytes: Buffer;
      try {
        ({ response } = await transmit(
          { method, path, headers, body: payload, timeoutSeconds },
          'calls',
          undefined,
          signal,
        ));
        bytes = await readBody(response, what, { maxBytes, timeoutSeconds });
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        // A pooled connection that the server had just closed: one more try, on another one.
        const safe = reading || (error instanceof UnknownOutcomeError && error.neverSent);
        if (safe && attempt === 1 && clock.monotonicMs() - startedAt < 2000) continue;
        throw error;
      }
      const code = response.statusCode ?? 0;
      const parsed = jsonOrText(bytes.toString('utf8'));
      if (code >= 200 && code < 300) {
        if (!isRecord(parsed)) throw new UnknownOutcomeError(`${what}: the answer is not a JSON object`);
        return parsed as T;
      }
      const retryAfter = response.headers['retry-after'];
      const status = statusOf(code, parsed, retryAfter);
      if (code === 401 && attempt === 1) continue; // with credentials read anew
      // An eviction that a PodDisruptionBudget refuses is a 429 as well, but an answer for its author.
      const budget = status.causes.some((cause) => cause.reason === 'DisruptionBudget');
      const busy = (code === 429 && !budget) || (code === 503 && reading);
      if (busy && retryAfter !== undefined && attempt < mostAttempts) {
        const seconds = Math.min(longestWaitSeconds, status.retryAfterSeconds ?? 1);
        await sleep(clock, seconds * 1000 + Math.random() * 250, signal);
        continue;
      }
      // An error inside the server does not say whether the write was stored before it.
      if (!reading && (code === 500 || code === 502 || code === 504))
        throw new UnknownOutcomeError(`${what}: ${status.message}`, { code });
      throw new ApiError(status, what);
    }
  }

  async function listAll<T extends KubeObject>(resource: Resource, options: ListOptions, signal?: AbortSignal) {
    const items: T[] = [];
    let token: string | undefined;
    let resourceVersion = '';
    do {
      const path = withQuery(collectionPath(resource, options.namespace), {
        labelSelector: options.labelSelector,
        fieldSelector: options.fieldSelector,
        limit: options.limit ?? pageSize,
        continue: token,
      });
      const page = await call<ListPage>('GET', path, undefined, undefined, signal);
      if (!Array.isArray(page.items) && page.items !== null && page.items !== undefined)
        throw new UnknownOutcomeError(`GET ${pathOnly(path)}: the answer is not a list`);
      for (const item of page.items ?? []) {
        // Lists leave these out of their items; whoever gets an object wants them.
        const object: KubeObject = { ...item, apiVersion: apiVersionOf(resource), kind: resource.kind };
        items.push((options.trim ? options.trim(object) : object) as T);
      }
      token = page.metadata?.continue || undefined;
      resourceVersion = page.metadata?.resourceVersion ?? '';
    } while (token);
    return { items, resourceVersion };
  }

  function outgoing(request: RawRequest): Outgoing {
    const headers: Record<string, string | string[]> = {};
    for (const [header, value] of Object.entries(request.headers ?? {})) {
      if (!ownHeaders.test(header.toLowerCase())) headers[header] = value;
    }
    if (!Object.keys(headers).some((header) => header.toLowerCase() === 'user-agent'))
      headers['User-Agent'] = userAgent;
    if (request.body !== undefined) headers['Content-Length'] = String(Buffer.byteLength(request.body));
    if (!request.path.startsWith('/')) throw new TypeError(`not an absolute path: ${pathOnly(request.path)}`);
    return { ...request, headers, timeoutSeconds: request.timeoutSeconds ?? timeoutSeconds };
  }

  return {
    name,
    server: transport.server,

    async get<T extends KubeObject>(resource: Resource, key: Parameters<Cluster['get']>[1], signal?: AbortSignal) {
      try {
        return await call<T>('GET', objectPath(resource, key), undefined, undefined, signal);
      } catch (error) {
        if (isNotFound(error)) return undefined;
        throw error;
      }
    },

    async list<T extends KubeObject>(resource: Resource, options: ListOptions = {}, signal?: AbortSignal) {
      for (let attempt = 1; ; attempt++) {
        try {
          return await listAll<T>(resource, options, signal);
        } catch (error) {
          // The pages grew too old while we read them: begin again.
          if (!isExpired(error) || attempt === 3) throw error;
        }
      }
    },

    create: (resource, object, signal) =>
      call('POST', collectionPath(resource, object.metadata.namespace), typed(resource, object), undefined, signal),

    replace: (resource, object, options, signal) =>
      call(
        'PUT',
        objectPath(resource, object.metadata, options?.subresource),
        typed(resource, object),
        undefined,
        signal,
      ),

    apply: (resource, object, options, signal) =>
      call(
        'PATCH',
        withQuery(objectPath(resource, object.metadata, options.subresource), {
          fieldManager: options.fieldManager,
          force: 'true',
        }),
        typed(resource, object),
        patchTypes.apply,
        signal,
      ),

    patch: (resource, key, patch, options, signal) =>
      call(
        'PATCH',
        objectPath(resource, key, options?.subresource),
        patch,
        patchTypes[options?.type ?? 'merge'],
        signal,
        options?.brief ? metadataAlone : undefined,
      ),

    async delete(resource, key, options = {}, signal) {
      const { gracePeriodSeconds, uid, resourceVersion, propagationPolicy } = options;
      const preconditions = uid || resourceVersion ? { uid, resourceVersion } : undefined;
      const body = {
        kind: 'DeleteOptions',
        apiVersion: 'v1',
        gracePeriodSeconds,
        preconditions,
        propagationPolicy,
      };
      try {
        await call('DELETE', objectPath(resource, key), body, undefined, signal, metadataAlone);
      } catch (error) {
        if (!isNotFound(error)) throw error;
      }
    },

    createSubresource: (resource, key, subresource, body, signal) =>
      call('POST', objectPath(resource, key, subresource), body, undefined, signal),

    async raw(request, options, signal) {
      const answer = await transmit(outgoing(request), request.over ?? 'streams', options?.as, signal);
      if (answer.socket) {
        answer.socket.destroy();
        throw new UnknownOutcomeError(`${request.method} ${pathOnly(request.path)}: an upgrade nobody asked for`);
      }
      return answer.response;
    },

    upgrade: (request, options, signal) => transmit(outgoing(request), 'streams', options?.as, signal),
  };
}

interface ListPage {
  readonly items?: KubeObject[] | null;
  readonly metadata?: { readonly continue?: string; readonly resourceVersion?: string };
}

function typed<T extends KubeObject>(resource: Resource, object: T): T {
  return { ...object, apiVersion: apiVersionOf(resource), kind: resource.kind };
}
