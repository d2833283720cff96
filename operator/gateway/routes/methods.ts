/** One path with its methods; every other method is told which there are. */
import type { FastifyInstance, RouteHandlerMethod } from 'fastify';
import { Refusal } from '../../core/allocation/refusal.ts';

const all = ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'] as const;
type Method = (typeof all)[number];

export function route(
  app: FastifyInstance,
  url: string,
  handlers: Readonly<Partial<Record<Method, RouteHandlerMethod>>>,
): void {
  const allowed = Object.keys(handlers);
  for (const [method, handler] of Object.entries(handlers)) {
    app.route({ method: method as Method, url, handler, exposeHeadRoute: false });
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
