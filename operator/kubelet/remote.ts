/**
 * The provider's Kubernetes API, as much of it as a gateway lets through, in the shape of a `Cluster`, so that the engine's
 * informers watch it as they watch any other. It has one namespace, the tenant's, which is never named.
 *
 * Nothing it says is trusted: lists and answers are bounded here, contents where they are used.
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { AllocationInfo } from '../api/gateway.ts';
import { plainText } from '../core/plain-text.ts';
import { ApiError, isRecord, statusOf, UnknownOutcomeError } from '../engine/errors.ts';
import { readBody } from '../engine/http.ts';
import { apiVersionOf, metadataAlone, withQuery } from '../engine/paths.ts';
import type { Cluster, KubeObject, ObjectKey, RawRequest, Resource } from '../engine/types.ts';

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
/** One page of 500 pods of ordinary size is 5 MB. */
const maxAnswerBytes = 32 * 1024 * 1024;
/** More objects than any tenant may have: a list that does not end here is an attack or a bug. */
const maxListed = 20_000;
const timeoutSeconds = 30;

export function remoteCluster(name: string, lease: RemoteLease): Cluster {
  async function call(
    method: string,
    path: string,
    body?: unknown,
    signal?: AbortSignal,
    accept = 'application/json',
  ): Promise<Record<string, unknown>> {
    const what = `${method} ${path.split('?', 1)[0]}`;
    const response = await sent(what, signal, () =>
      lease.raw(
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
      ),
    );
    const bytes = await readBody(response, what, { maxBytes: maxAnswerBytes, timeoutSeconds });
    const code = response.statusCode ?? 0;
    const parsed = parse(bytes);
    if (code >= 200 && code < 300) {
      if (isRecord(parsed)) return parsed;
      throw new UnknownOutcomeError(`${what}: the answer is not a JSON object`);
    }
    throw refusalOf(code, parsed, method, what, response.headers['retry-after']);
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
      const made = await call('POST', collectionPath(resource), object, signal, metadataAlone);
      return { ...object, ...made, apiVersion: apiVersionOf(resource), kind: resource.kind } as T;
    },

    replace: async <T extends KubeObject>(resource: Resource, object: T, _options?: unknown, signal?: AbortSignal) =>
      (await call('PUT', objectPath(resource, object.metadata), object, signal)) as unknown as T,

    async delete(resource, key, options = {}, signal) {
      const { gracePeriodSeconds, uid, resourceVersion } = options;
      const path = withQuery(objectPath(resource, key), { gracePeriodSeconds, uid, resourceVersion });
      try {
        await call('DELETE', path, undefined, signal, metadataAlone);
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

/** A no is either the API server's Status, carried through, or the gateway's own problem document. */
function refusalOf(code: number, body: unknown, method: string, what: string, retryAfter: string | undefined): Error {
  if (isRecord(body) && body.kind !== 'Status' && (typeof body.title === 'string' || typeof body.reason === 'string')) {
    const reason = typeof body.reason === 'string' ? body.reason : String(body.title);
    const message = plainText(String(typeof body.detail === 'string' ? body.detail : (body.title ?? reason)));
    return new ApiError({ ...statusOf(code, undefined, retryAfter), code, reason: reason.slice(0, 64), message }, what);
  }
  const said = statusOf(code, body, retryAfter);
  const status = { ...said, message: plainText(said.message) };
  // A page that says 404 in somebody else's words is not the API server's NotFound, by which pods are given up.
  if (code === 404 && !(isRecord(body) && body.kind === 'Status'))
    return new ApiError({ ...status, reason: 'Unrecognized' }, what);
  if (method !== 'GET' && (code === 500 || code === 502 || code === 504))
    return new UnknownOutcomeError(`${what}: ${status.message}`, { code });
  return new ApiError(status, what);
}

function parse(bytes: Buffer): unknown {
  const text = bytes.toString('utf8');
  try {
    return JSON.parse(text);
  } catch {
    return text.slice(0, 2048);
  }
}
