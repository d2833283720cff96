/**
 * The narrow proxy. Paths and queries are checked and built anew (core/allocation/kube-path.ts), pods, ConfigMaps, Secrets
 * and claims to storage are admitted field by field, and the provider's API server is asked with the token of the tenant's own account:
 * what slips through here meets that account's role. Lists, watches and logs are streamed, so that one of any size takes no
 * memory; a single object is read to its end and sent at once, over connections that are kept.
 */
import type { IncomingMessage } from 'node:http';
import { pipeline } from 'node:stream';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Hex32 } from '../../api/messages.ts';
import { admitClaim } from '../../core/allocation/admit-claim.ts';
import { admitConfig, ownerOf } from '../../core/allocation/admit-config.ts';
import { type AdmittedPod, admitPod } from '../../core/allocation/admit-pod.ts';
import { checkQuery, type KubeTarget, kubeTarget, upstreamPath } from '../../core/allocation/kube-path.ts';
import type { NodePage } from '../../core/allocation/node-pages.ts';
import type { PodRules } from '../../core/allocation/pod-rules.ts';
import { type LeaseRecord, tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { leaseIdLabel } from '../../core/allocation/tenant.ts';
import type { Callers } from '../callers.ts';
import { problemOf, problemType } from '../problem.ts';
import { replaceRunningPod } from '../replace-pod.ts';
import type { GatewayService, NodePages, Upstream } from '../service.ts';
import { abortedWith } from '../signals.ts';
import { createBudget } from '../tunnels/budget.ts';
import { leaseIdOf } from './leases.ts';

export interface KubeRouteOptions {
  readonly service: GatewayService;
  readonly callers: Callers;
  readonly upstream: Upstream;
  readonly nodePages?: NodePages;
  /** Runtime class for pods with GPUs, where the nodes need one. */
  readonly podRules?: PodRules;
}

/** Watches, lists and logs that are being answered at a time, of one lease and over all: each holds two connections. */
const maxAnswersOfLease = 250;
const maxAnswers = 4000;

const answerSeconds = 30;

/** For callers who want to know that it was made or deleted, and need not read all of it once more. */
const metadataAlone = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';

/** Of what a caller accepts, as much as the API server is asked for: the object, or no more than its metadata. */
const acceptOf = (request: FastifyRequest): string =>
  request.headers.accept?.includes(metadataAlone) ? `${metadataAlone},application/json` : 'application/json';

/** A pod as the API server keeps it: etcd takes 1.5 MiB by default. */
const maxObjectBytes = 4 * 1024 * 1024;
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

async function bytesOf(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) {
      response.destroy();
      throw new Error(`an answer of the API server is larger than ${maxBytes} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
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

export function kubeRoutes(app: FastifyInstance, options: KubeRouteOptions): void {
  const { service, callers, upstream } = options;

  app.route({
    method: ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'],
    url: '/v1/leases/:leaseId/kube/*',
    exposeHeadRoute: false,
    // Before the body is read.
    onRequest: async (request, reply) => {
      const params = request.params as { leaseId: string; '*': string };
      callers.check(leaseIdOf(params.leaseId), request.raw);
      const target = targetOf(params['*']);
      if (!target.methods.includes(request.method)) {
        reply.header('allow', target.methods.join(', '));
        throw new Refusal(405, `this path takes ${target.methods.join(', ')}`);
      }
      if (target.stream !== undefined && target.stream !== 'log') {
        throw new Refusal(400, `${target.stream} needs an upgrade of the connection (SPDY/3.1 or WebSocket)`);
      }
    },
    handler: async (request, reply) => {
      const params = request.params as { leaseId: string; '*': string };
      const leaseId = leaseIdOf(params.leaseId);
      const target = targetOf(params['*']);
      const query = queryOf(target, request.method, request.url);
      const signal = abortedWith(reply);
      if (target.kind === 'node' && target.page === undefined) return service.node(leaseId, signal);
      const record = await service.tenant(leaseId, signal);
      if (target.page !== undefined) return figures(reply, record, target.page, signal);
      switch (request.method) {
        case 'GET':
          return pass(reply, record, target, { method: 'GET', path: pathOf(record, target, query) }, signal);
        case 'POST':
          return pass(reply, record, target, await creation(record, target, request, signal), signal);
        case 'PUT':
          if (target.kind === 'pods') return replacePod(reply, record, target, request.body, signal);
          return pass(reply, record, target, await replacement(record, target, request, signal), signal);
        default:
          return pass(reply, record, target, deletion(record, target, query, acceptOf(request)), signal);
      }
    },
  });

  const answers = createBudget(maxAnswersOfLease, maxAnswers);

  interface Wanted {
    readonly method: string;
    readonly path: string;
    readonly body?: string;
    /** Default: the object. */
    readonly accept?: string;
  }

  /** One object, which the API server bounds; not a list, a watch or a log. */
  const isSmall = (target: KubeTarget, { method }: Wanted): boolean =>
    target.stream === undefined && (method !== 'GET' || target.name !== undefined);

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

  async function pass(
    reply: FastifyReply,
    record: LeaseRecord,
    target: KubeTarget,
    wanted: Wanted,
    signal: AbortSignal,
  ) {
    const small = isSmall(target, wanted);
    if (!small) {
      // Who left meanwhile closes nothing any more, and would be counted for ever.
      signal.throwIfAborted();
      if (!answers.take(record.leaseId))
        throw new Refusal(429, 'too many lists, watches and logs of this lease are being read: close some', {
          retryAfterSeconds: 5,
        });
      reply.raw.once('close', () => answers.give(record.leaseId));
    }
    const response = await send(record.leaseId, wanted, small, signal);
    const status = response.statusCode ?? 502;
    if (status < 200 || status >= 300) {
      const problem = await problemOfAnswer(response, target, wanted.method);
      const retryAfter = response.headers['retry-after'];
      if (typeof retryAfter === 'string' && /^\d{1,5}$/.test(retryAfter)) reply.header('retry-after', retryAfter);
      return reply.code(problem.status).type(problemType).send(JSON.stringify(problem));
    }
    const type = response.headers['content-type'] ?? 'application/json';
    // An answer that breaks off breaks off at the caller, too: it must not look complete, nor like a no of ours.
    if (small) {
      const body = await bytesOf(response, maxObjectBytes).catch(() => undefined);
      if (body !== undefined) return reply.code(status).type(type).header('cache-control', 'no-store').send(body);
      reply.hijack();
      reply.raw.destroy();
      return reply;
    }
    // Past Fastify, which sends the headers with the first bytes only: a watch on an empty list, or a followed log, has
    // none for minutes.
    reply.hijack();
    reply.raw.writeHead(status, {
      'content-type': type,
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
    });
    reply.raw.flushHeaders();
    pipeline(response, reply.raw, () => undefined);
    return reply;
  }

  async function figures(reply: FastifyReply, record: LeaseRecord, page: NodePage, signal: AbortSignal) {
    if (!options.nodePages) throw new Refusal(501, 'this gateway reads no metrics of its nodes');
    const text = await options.nodePages.read(record.nodeName, page, tenantNamespace(record.leaseId), signal);
    return reply.type(page === 'stats' ? 'application/json' : 'text/plain; version=0.0.4').send(text);
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
    request: FastifyRequest,
    signal: AbortSignal,
  ): Promise<Wanted> {
    const object = await admittedNew(record, target, request.body, signal);
    const accept = acceptOf(request);
    return { method: 'POST', path: pathOf(record, target), body: JSON.stringify(object), accept };
  }

  async function replacement(
    record: LeaseRecord,
    target: KubeTarget,
    request: FastifyRequest,
    signal: AbortSignal,
  ): Promise<Wanted> {
    const object = await admitted(record, target, request.body, signal);
    if ((object.metadata as { name?: unknown }).name !== target.name) {
      throw new Refusal(400, 'metadata.name is not the name in the path');
    }
    return { method: 'PUT', path: pathOf(record, target), body: JSON.stringify(object) };
  }

  async function replacePod(
    reply: FastifyReply,
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    signal: AbortSignal,
  ) {
    mustServe(record);
    const path = pathOf(record, target);
    const result = await replaceRunningPod(target.name ?? '', withoutPlacement(body), {
      send: (method, part, object) =>
        send(
          record.leaseId,
          {
            method,
            path: part === undefined ? path : `${path}/${part}`,
            ...(object === undefined ? {} : { body: JSON.stringify(object) }),
          },
          true,
          signal,
        ),
      admit: (pod) => admitOne(record, pod, true),
      read: readAll,
      problemOf: (response, method) => problemOfAnswer(response, target, method),
    });
    if ('problem' in result) {
      return reply.code(result.problem.status).type(problemType).send(JSON.stringify(result.problem));
    }
    return reply.header('cache-control', 'no-store').send(result.pod);
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
}

/** A pod that was read here and is sent back names its node; that is no wish of the caller's. */
function withoutPlacement(body: unknown): unknown {
  if (typeof body !== 'object' || body === null || !('spec' in body)) return body;
  const { spec } = body as { spec: unknown };
  if (typeof spec !== 'object' || spec === null || Array.isArray(spec)) return body;
  const { nodeName: _placed, ...rest } = spec as Record<string, unknown>;
  return { ...body, spec: rest };
}
