/**
 * What is asked of the provider's API server for a tenant: paths and queries are checked and built anew, pods, ConfigMaps, Secrets
 * and claims to storage are admitted field by field, and all of it goes with the token of the tenant's own account.
 */
import type { IncomingMessage } from 'node:http';
import type { Hex32 } from '../api/messages.ts';
import { admitClaim } from '../core/allocation/admit-claim.ts';
import { admitConfig, ownerOf } from '../core/allocation/admit-config.ts';
import { type AdmittedPod, admitPod } from '../core/allocation/admit-pod.ts';
import { checkQuery, type KubeTarget, kubeTarget, upstreamPath } from '../core/allocation/kube-path.ts';
import type { PodRules } from '../core/allocation/pod-rules.ts';
import { type LeaseRecord, tenantNamespace } from '../core/allocation/record.ts';
import { Refusal } from '../core/allocation/refusal.ts';
import { leaseIdLabel } from '../core/allocation/tenant.ts';
import { problemOf } from './problem.ts';
import type { GatewayService, Upstream } from './service.ts';

const answerSeconds = 30;

/** For callers who want to know that it was made or deleted, and need not read all of it once more. */
const metadataAlone = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';

export const briefly = `${metadataAlone},application/json`;

/** Of what a caller accepts, as much as the API server is asked for: the object, or no more than its metadata. */
export const acceptOf = (accept: string | undefined): string =>
  accept?.includes(metadataAlone) ? briefly : 'application/json';

/** A pod as the API server keeps it: etcd takes 1.5 MiB by default. */
export const maxObjectBytes = 4 * 1024 * 1024;
const maxRefusalBytes = 64 * 1024;

export function targetOf(rest: string): KubeTarget {
  const target = kubeTarget(rest);
  if (target === undefined) {
    throw new Refusal(
      404,
      'leases have kube/pods, kube/configmaps, kube/secrets, kube/persistentvolumeclaims, kube/events, kube/node, kube/node/stats and kube/node/metrics/…',
    );
  }
  return target;
}

/** The query that goes on to the API server. */
export function queryOf(target: KubeTarget, method: string, url: string): readonly (readonly [string, string])[] {
  const at = url.indexOf('?');
  const checked = checkQuery(target, method, at < 0 ? [] : new URLSearchParams(url.slice(at + 1)));
  if ('refused' in checked) {
    throw new Refusal(400, `the query parameter "${checked.refused.slice(0, 64)}" is not known here, or malformed`);
  }
  return checked.query;
}

export function withQuery(path: string, query: readonly (readonly [string, string])[]): string {
  const text = new URLSearchParams(query.map(([key, value]): [string, string] => [key, value])).toString();
  return text === '' ? path : `${path}?${text}`;
}

export const readAll = async (response: IncomingMessage, maxBytes: number): Promise<string> =>
  (await bytesOf(response, maxBytes)).toString('utf8');

export function bytesOf(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const fail = (why: string) => {
      response.destroy();
      reject(new Error(`an answer of the API server ${why}`));
    };
    response.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > maxBytes) fail(`is larger than ${maxBytes} bytes`);
      else chunks.push(chunk);
    });
    response.on('error', () => fail('broke off'));
    response.once('close', () => {
      if (!response.readableEnded) fail('broke off');
    });
    response.once('end', () => resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)));
    if (response.closed) fail('broke off');
  });
}

/** The API server's no, as a problem. Its word (NotFound, Conflict, Expired…) is kept: callers act on it. */
export async function problemOfAnswer(response: IncomingMessage, target: KubeTarget, method: string) {
  const status = response.statusCode ?? 502;
  let told: { reason?: unknown; message?: unknown } = {};
  try {
    told = JSON.parse(await readAll(response, maxRefusalBytes)) ?? {};
  } catch {
    // Not a Status: a proxy's page, or nothing. The code says enough.
  }
  const message = typeof told.message === 'string' ? told.message : `the provider’s API server answered ${status}`;
  const reason = typeof told.reason === 'string' && told.reason !== '' ? told.reason : undefined;
  const writesPod = target.kind === 'pods' && target.stream === undefined && (method === 'POST' || method === 'PUT');
  if (status === 403 && message.includes('exceeded quota')) {
    // Pods that are still ending count: it may fit in a moment.
    return problemOf(409, `the lease has no room for this now: ${message}`, 'CapacityExhausted');
  }
  if (writesPod && (status === 403 || status === 422 || status === 400)) return problemOf(422, message, 'PodRefused');
  if (status === 401) return problemOf(503, 'the provider’s API server does not take the tenant’s token: try again');
  if (status >= 500) return problemOf(502, message, reason);
  return problemOf(status, message, reason);
}

/** Seconds, where the API server says when to try again. */
export function retryAfterOf({ headers }: IncomingMessage): string | undefined {
  const given = headers['retry-after'];
  return given !== undefined && /^\d{1,5}$/.test(given) ? given : undefined;
}

export interface Wanted {
  readonly method: string;
  readonly path: string;
  readonly body?: string;
  /** Default: the object. */
  readonly accept?: string;
}

export interface TenantCalls {
  /** `short`: the answer is one object, read at once, on a connection that is kept. */
  send(leaseId: Hex32, wanted: Wanted, short: boolean, signal: AbortSignal): Promise<IncomingMessage>;
  /** Of one object, a collection or a stream, on the API server. */
  pathOf(record: LeaseRecord, target: KubeTarget, query?: readonly (readonly [string, string])[]): string;
  /** Throws a Refusal for what tenants may not have. */
  creation(
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    accept: string,
    signal: AbortSignal,
  ): Promise<Wanted>;
  replacement(record: LeaseRecord, target: KubeTarget, body: unknown, signal: AbortSignal): Promise<Wanted>;
  deletion(
    record: LeaseRecord,
    target: KubeTarget,
    query: readonly (readonly [string, string])[],
    accept: string,
  ): Wanted;
  /** A pod that runs, as it is to be. Throws a Refusal for what tenants may not have. */
  admitAnew(record: LeaseRecord, body: unknown): AdmittedPod;
  /** Throws a Refusal where nothing new may be started. */
  mustServe(record: LeaseRecord): void;
}

export function createTenantCalls(options: {
  readonly service: Pick<GatewayService, 'token' | 'forgetToken'>;
  readonly upstream: Pick<Upstream, 'raw'>;
  /** What the provider chose for the pods of all tenants. */
  readonly podRules?: PodRules;
}): TenantCalls {
  const { service, upstream } = options;

  const pathOf = (record: LeaseRecord, target: KubeTarget, query: readonly (readonly [string, string])[] = []) =>
    withQuery(upstreamPath(tenantNamespace(record.leaseId), target), query);

  async function send(leaseId: Hex32, wanted: Wanted, short: boolean, signal: AbortSignal): Promise<IncomingMessage> {
    const { accept = 'application/json', ...rest } = wanted;
    const request = {
      ...rest,
      over: short ? ('calls' as const) : ('streams' as const),
      headers: {
        accept,
        ...(wanted.body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      // A followed log may be quiet for long before its first byte, and a watch, too.
      timeoutSeconds: /[?&](watch|follow)=(true|1)/.test(wanted.path) ? 0 : answerSeconds,
    };
    const first = await upstream.raw(request, { as: await service.token(leaseId, signal) }, signal);
    if (first.statusCode !== 401) return first;
    // The tenant was made anew, or the API server's keys changed: once more, with a token of now.
    first.resume();
    service.forgetToken(leaseId);
    return upstream.raw(request, { as: await service.token(leaseId, signal) }, signal);
  }

  function mustServe(record: LeaseRecord): void {
    if (record.state !== 'Serving') {
      throw new Refusal('LeaseEnded', `nothing new can be started: the lease is ${record.reason ?? record.state}`);
    }
  }

  function admitOne(record: LeaseRecord, body: unknown, running: boolean): AdmittedPod {
    mustServe(record);
    const { nodeName, room, device } = record;
    const namespace = tenantNamespace(record.leaseId);
    const leaseId = leaseIdLabel(record.leaseId);
    const profile = record.tenantProfile;
    const context = { namespace, leaseId, nodeName, room, device, profile, rules: options.podRules };
    return admitPod(body, context, running);
  }

  async function admitted(
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    signal: AbortSignal,
  ): Promise<Record<string, unknown>> {
    mustServe(record);
    const object = admitConfig(target.kind === 'secrets' ? 'Secret' : 'ConfigMap', body, {
      namespace: tenantNamespace(record.leaseId),
      leaseId: leaseIdLabel(record.leaseId),
    });
    const owner = ownerOf(object);
    if (owner !== undefined && !(await isThere(record, owner, signal))) {
      throw new Refusal(422, `metadata.ownerReferences[0]: there is no pod ${owner.name} with the uid ${owner.uid}`);
    }
    return object;
  }

  async function admittedNew(record: LeaseRecord, target: KubeTarget, body: unknown, signal: AbortSignal) {
    switch (target.kind) {
      case 'pods':
        return admitOne(record, body, false);
      case 'persistentvolumeclaims':
        mustServe(record);
        return admitClaim(body, {
          namespace: tenantNamespace(record.leaseId),
          leaseId: leaseIdLabel(record.leaseId),
          storage: record.storage,
        });
      default:
        return admitted(record, target, body, signal);
    }
  }

  /** Whether the tenant has that very pod. */
  async function isThere(record: LeaseRecord, owner: { name: string; uid: string }, signal: AbortSignal) {
    const pod: KubeTarget = { kind: 'pods', name: owner.name, methods: [] };
    const response = await send(record.leaseId, { method: 'GET', path: pathOf(record, pod) }, true, signal);
    if (response.statusCode === 404) {
      response.resume();
      return false;
    }
    if (response.statusCode !== 200) {
      const problem = await problemOfAnswer(response, pod, 'GET');
      throw new Refusal(problem.status, problem.detail ?? problem.title);
    }
    const { metadata } = JSON.parse(await readAll(response, maxObjectBytes)) as { metadata?: { uid?: unknown } };
    return metadata?.uid === owner.uid;
  }

  async function creation(
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    accept: string,
    signal: AbortSignal,
  ): Promise<Wanted> {
    const object = await admittedNew(record, target, body, signal);
    return { method: 'POST', path: pathOf(record, target), body: JSON.stringify(object), accept };
  }

  async function replacement(
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    signal: AbortSignal,
  ): Promise<Wanted> {
    const object = await admitted(record, target, body, signal);
    if ((object.metadata as { name?: unknown }).name !== target.name) {
      throw new Refusal(400, 'metadata.name is not the name in the path');
    }
    return { method: 'PUT', path: pathOf(record, target), body: JSON.stringify(object) };
  }

  function deletion(
    record: LeaseRecord,
    target: KubeTarget,
    query: readonly (readonly [string, string])[],
    accept: string,
  ): Wanted {
    const given = new Map(query);
    const grace = given.get('gracePeriodSeconds');
    const uid = given.get('uid');
    const resourceVersion = given.get('resourceVersion');
    const preconditions = {
      ...(uid === undefined ? {} : { uid }),
      ...(resourceVersion === undefined ? {} : { resourceVersion }),
    };
    return {
      method: 'DELETE',
      path: pathOf(record, target),
      body: JSON.stringify({
        apiVersion: 'v1',
        kind: 'DeleteOptions',
        ...(grace === undefined ? {} : { gracePeriodSeconds: Number(grace) }),
        ...(Object.keys(preconditions).length === 0 ? {} : { preconditions }),
        propagationPolicy: 'Background',
      }),
      accept,
    };
  }

  return {
    send,
    pathOf,
    creation,
    replacement,
    deletion,
    mustServe,
    admitAnew: (record, body) => admitOne(record, body, true),
  };
}
