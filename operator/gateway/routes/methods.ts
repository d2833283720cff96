/**
 * One path with its methods; every other method is told which there are.
 *
 * Who may ask is found out before a body is read: one that is on its way is kept in memory, and a passer-by could have thousands
 * on their way. Where nobody has to prove who he is, bodies are short.
 */
import type { FastifyInstance, FastifyRequest, RouteHandlerMethod } from 'fastify';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Callers } from '../callers.ts';

const all = ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'] as const;
type Method = (typeof all)[number];

/** Of what somebody may send who has proved nothing: a signed quote, the longest, has two kilobytes. */
export const maxUnprovenBodyBytes = 16 * 1024;

export interface Before {
  /** Throws a Refusal for who may not ask. */
  readonly check: (request: FastifyRequest) => void;
  readonly bodyLimit?: number;
}

/** Who has proved nothing: not often, and with little. */
export const anybodyBy = (callers: Pick<Callers, 'anybody'>): Before => ({
  check: (request) => callers.anybody(request.raw),
  bodyLimit: maxUnprovenBodyBytes,
});

export function route(
  app: FastifyInstance,
  url: string,
  handlers: Readonly<Partial<Record<Method, RouteHandlerMethod>>>,
  before?: Before,
): void {
  const allowed = Object.keys(handlers);
  for (const [method, handler] of Object.entries(handlers)) {
    app.route({
      ...{ method: method as Method, url, handler, exposeHeadRoute: false },
      ...(before && { onRequest: async (request: FastifyRequest) => before.check(request) }),
      ...(before?.bodyLimit === undefined ? {} : { bodyLimit: before.bodyLimit }),
    });
  }
  app.route({
    method: all.filter((method) => !allowed.includes(method)),
    url,
    // Before the body is read: nobody waits for what will not be used.
    onRequest: async (_request, reply) => {
      reply.header('allow', allowed.join(', '));
      throw new Refusal(405, `this path takes ${allowed.join(', ')}`);
    },
    handler: async () => undefined,
  });
}
