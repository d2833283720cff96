/**
 * The narrow proxy. What it asks the provider's API server is checked, admitted and built anew (tenant-calls.ts), and what slips
 * through there meets the role of the tenant's own account. Lists, watches and logs are streamed, so that one of any size takes no
 * memory; a single object is read to its end and sent at once, over connections that are kept.
 */
import { pipeline } from 'node:stream';
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { KubeTarget } from '../../core/allocation/kube-path.ts';
import type { NodePage } from '../../core/allocation/node-pages.ts';
import { type LeaseRecord, tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Callers } from '../callers.ts';
import { problemType } from '../problem.ts';
import { replaceRunningPod } from '../replace-pod.ts';
import type { GatewayService, NodePages } from '../service.ts';
import { abortedWith } from '../signals.ts';
import {
  acceptOf,
  bytesOf,
  maxObjectBytes,
  problemOfAnswer,
  queryOf,
  readAll,
  retryAfterOf,
  type TenantCalls,
  targetOf,
  type Wanted,
} from '../tenant-calls.ts';
import { createBudget } from '../tunnels/budget.ts';
import { leaseIdOf } from './leases.ts';

export interface KubeRouteOptions {
  readonly service: GatewayService;
  readonly callers: Callers;
  readonly calls: TenantCalls;
  readonly nodePages?: NodePages;
}

/** Watches, lists and logs that are being answered at a time, of one lease and over all: each holds two connections. */
const maxAnswersOfLease = 250;
const maxAnswers = 4000;

export function kubeRoutes(app: FastifyInstance, options: KubeRouteOptions): void {
  const { service, callers, calls } = options;

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
      const accept = acceptOf(request.headers.accept);
      if (target.kind === 'node' && target.page === undefined) return service.node(leaseId, signal);
      const record = await service.tenant(leaseId, signal);
      if (target.page !== undefined) return figures(reply, record, target.page, signal);
      switch (request.method) {
        case 'GET':
          return pass(reply, record, target, { method: 'GET', path: calls.pathOf(record, target, query) }, signal);
        case 'POST':
          return pass(
            reply,
            record,
            target,
            await calls.creation(record, target, request.body, accept, signal),
            signal,
          );
        case 'PUT':
          if (target.kind === 'pods') return replacePod(reply, record, target, request.body, signal);
          return pass(reply, record, target, await calls.replacement(record, target, request.body, signal), signal);
        default:
          return pass(reply, record, target, calls.deletion(record, target, query, accept), signal);
      }
    },
  });

  const answers = createBudget(maxAnswersOfLease, maxAnswers);

  /** One object, which the API server bounds; not a list, a watch or a log. */
  const isSmall = (target: KubeTarget, { method }: Wanted): boolean =>
    target.stream === undefined && (method !== 'GET' || target.name !== undefined);

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
    const response = await calls.send(record.leaseId, wanted, small, signal);
    const status = response.statusCode ?? 502;
    if (status < 200 || status >= 300) {
      const problem = await problemOfAnswer(response, target, wanted.method);
      const retryAfter = retryAfterOf(response);
      if (retryAfter !== undefined) reply.header('retry-after', retryAfter);
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

  async function replacePod(
    reply: FastifyReply,
    record: LeaseRecord,
    target: KubeTarget,
    body: unknown,
    signal: AbortSignal,
  ) {
    calls.mustServe(record);
    const path = calls.pathOf(record, target);
    const result = await replaceRunningPod(target.name ?? '', withoutPlacement(body), {
      send: (method, part, object) =>
        calls.send(
          record.leaseId,
          {
            method,
            path: part === undefined ? path : `${path}/${part}`,
            ...(object === undefined ? {} : { body: JSON.stringify(object) }),
          },
          true,
          signal,
        ),
      admit: (pod) => calls.admitAnew(record, pod),
      read: readAll,
      problemOf: (response, method) => problemOfAnswer(response, target, method),
    });
    if ('problem' in result) {
      return reply.code(result.problem.status).type(problemType).send(JSON.stringify(result.problem));
    }
    return reply.header('cache-control', 'no-store').send(result.pod);
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
