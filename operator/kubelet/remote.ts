/**
 * The provider's Kubernetes API, as much of it as a gateway lets through, in the shape of a `Cluster`, so that the engine's
 * informers watch it as they watch any other. It has one namespace, the tenant's, which is never named.
 *
 * Nothing it says is trusted: lists and answers are bounded here, contents where they are used.
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { AllocationInfo, BatchedCall } from '../api/gateway.ts';
import type { Clock } from '../engine/clock.ts';
import { ApiError, isRecord, UnknownOutcomeError } from '../engine/errors.ts';
import { apiVersionOf, metadataAlone, withQuery } from '../engine/paths.ts';
import type { Cluster, KubeObject, ObjectKey, RawRequest, Resource } from '../engine/types.ts';
import { createBatches } from './batches.ts';
import { type Answer, answerOf, refusalOf, timeoutSeconds } from './remote-answer.ts';

/** What is needed of a connection to one lease. `raw` and `upgrade` take paths under the lease; no status is an error. */
export interface RemoteLease {
  allocation(signal?: AbortSignal): Promise<AllocationInfo>;
  raw(request: RawRequest, signal?: AbortSignal): Promise<IncomingMessage>;
  upgrade(
    request: RawRequest,
    signal?: AbortSignal,
  ): Promise<
    { response: IncomingMessage; socket: Duplex; head: Buffer } | { response: IncomingMessage; socket?: undefined }
  >;
}

const pageSize = 500;
/** More objects than any tenant may have: a list that does not end here is an attack or a bug. */
const maxListed = 20_000;

export function remoteCluster(name: string, lease: RemoteLease, clock: Clock): Cluster {
  const batches = createBatches({
    lease,
    alone: ({ method, path, body }, signal) => ask(method, path, body, signal, metadataAlone),
    clock,
  });

  async function ask(
    method: string,
    path: string,
    body?: unknown,
    signal?: AbortSignal,
    accept = 'application/json',
  ): Promise<Answer> {
    const response = await lease.raw(
      {
        method,
        path,
        headers: {
          Accept: accept,
          ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        timeoutSeconds,
      },
      signal,
    );
    return answerOf(response, whatOf(method, path));
  }

  async function call(
    method: BatchedCall['method'] | 'GET' | 'PUT',
    path: string,
    body?: unknown,
    signal?: AbortSignal,
  ): Promise<Record<string, unknown>> {
    const what = whatOf(method, path);
    const answer = await sent(what, signal, () =>
      method === 'GET' || method === 'PUT'
        ? ask(method, path, body, signal)
        : batches.write({ method, path, body }, signal),
    );
    if (answer.code < 200 || answer.code >= 300) throw refusalOf(answer, method, what);
    if (isRecord(answer.body)) return answer.body;
    throw new UnknownOutcomeError(`${what}: the answer is not a JSON object`);
  }

  const notOffered = (what: string): never => {
    throw new TypeError(`${what}: gateways do not offer this`);
  };

  return {
    name,
    server: name,

    async get<T extends KubeObject>(resource: Resource, key: ObjectKey, signal?: AbortSignal) {
      try {
        return (await call('GET', objectPath(resource, key), undefined, signal)) as unknown as T;
      } catch (error) {
        // Only the API server's own word for the object: a lease that is not known is another fact.
        if (error instanceof ApiError && error.reason === 'NotFound') return undefined;
        throw error;
      }
    },

    async list<T extends KubeObject>(
      resource: Resource,
      options: Parameters<Cluster['list']>[1] = {},
      signal?: AbortSignal,
    ) {
      const items: T[] = [];
      let token: string | undefined;
      let resourceVersion = '';
      do {
        const path = withQuery(collectionPath(resource), {
          labelSelector: options.labelSelector,
          fieldSelector: options.fieldSelector,
          limit: options.limit ?? pageSize,
          continue: token,
        });
        const page = await call('GET', path, undefined, signal);
        if (page.items !== null && page.items !== undefined && !Array.isArray(page.items))
          throw new UnknownOutcomeError(`GET ${collectionPath(resource)}: the answer is not a list`);
        for (const item of (page.items ?? []) as unknown[]) {
          if (!isObject(item)) throw new UnknownOutcomeError(`GET ${collectionPath(resource)}: an item is no object`);
          const object: KubeObject = { ...item, apiVersion: apiVersionOf(resource), kind: resource.kind };
          items.push((options.trim ? options.trim(object) : object) as T);
        }
        if (items.length > maxListed)
          throw new UnknownOutcomeError(`GET ${collectionPath(resource)}: more than ${maxListed} objects`);
        const metadata = isRecord(page.metadata) ? page.metadata : {};
        token = typeof metadata.continue === 'string' && metadata.continue !== '' ? metadata.continue : undefined;
        resourceVersion = typeof metadata.resourceVersion === 'string' ? metadata.resourceVersion : '';
      } while (token);
      return { items, resourceVersion };
    },

    /** With the metadata that the provider gave it; the rest is as it was sent, and not what the provider made of it. */
    async create<T extends KubeObject>(resource: Resource, object: T, signal?: AbortSignal) {
      const made = await call('POST', collectionPath(resource), object, signal);
      return { ...object, ...made, apiVersion: apiVersionOf(resource), kind: resource.kind } as T;
    },

    replace: async <T extends KubeObject>(resource: Resource, object: T, _options?: unknown, signal?: AbortSignal) =>
      (await call('PUT', objectPath(resource, object.metadata), object, signal)) as unknown as T,

    async delete(resource, key, options = {}, signal) {
      const { gracePeriodSeconds, uid, resourceVersion } = options;
      const path = withQuery(objectPath(resource, key), { gracePeriodSeconds, uid, resourceVersion });
      try {
        await call('DELETE', path, undefined, signal);
      } catch (error) {
        if (!(error instanceof ApiError && error.reason === 'NotFound')) throw error;
      }
    },

    apply: () => notOffered('apply'),
    patch: () => notOffered('patch'),
    createSubresource: () => notOffered('createSubresource'),

    // The engine's watches come this way, with the path that they would have on an API server.
    raw: (request, _options, signal) =>
      sent(request.method, signal, () => lease.raw({ ...request, path: proxied(request.path) }, signal)),
    upgrade: (request, _options, signal) =>
      sent(request.method, signal, () => lease.upgrade({ ...request, path: proxied(request.path) }, signal)),
  };
}

const whatOf = (method: string, path: string): string => `${method} ${path.split('?', 1)[0]}`;
const collectionPath = (resource: Resource): string => `kube/${resource.plural}`;
const objectPath = (resource: Resource, key: ObjectKey): string =>
  `kube/${resource.plural}/${encodeURIComponent(key.name)}`;
const proxied = (path: string): string => path.replace(/^\/api\/v1\//, 'kube/');

const isObject = (item: unknown): item is KubeObject =>
  isRecord(item) && isRecord(item.metadata) && typeof item.metadata.name === 'string';

/** The connection's own errors, in the engine's words: whatever it was, nobody knows what happened. */
async function sent<T>(what: string, signal: AbortSignal | undefined, send: () => Promise<T>): Promise<T> {
  try {
    return await send();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (error instanceof UnknownOutcomeError) throw error;
    const message = error instanceof Error ? error.message : 'failed';
    const neverSent = error instanceof Error && 'neverSent' in error && error.neverSent === true;
    throw new UnknownOutcomeError(`${what}: ${message}`, { neverSent, cause: error });
  }
}
