/** Who the provider is, what it rents out, quotes, and how to ask for all of it. Open to everybody. */
import type { FastifyInstance } from 'fastify';
import { quoteRequest } from '../../api/gateway.ts';
import { openApi } from '../../api/openapi.ts';
import type { Callers } from '../callers.ts';
import type { GatewayService } from '../service.ts';
import { abortedWith } from '../signals.ts';
import { validated } from '../validate.ts';
import { anybodyBy, route } from './methods.ts';

/** Several consumers may come from one address; not a crowd of them. */
const maxWaitingOfAddress = 64;

/** Seconds that the caller wants to wait for a change: `Prefer: wait=25` (RFC 7240). */
const waitOf = (prefer: string | string[] | undefined): number =>
  Number(/(?:^|[,;\s])wait=(\d{1,4})(?:$|[,;\s])/.exec(String(prefer ?? ''))?.[1] ?? 0);

const tagOf = (header: string | undefined): string | undefined =>
  /^(?:W\/)?"([\x21\x23-\x7e]{1,128})"$/.exec(header ?? '')?.[1];

export function providerRoutes(app: FastifyInstance, service: GatewayService, callers: Callers): void {
  route(app, '/v1/provider', { GET: async () => service.info() });
  const closing = new AbortController();
  // Who waits is answered, or a gateway that stops would wait for them.
  app.addHook('preClose', async () => closing.abort(new Error('the gateway stops')));
  const waiting = new Map<string, number>();
  route(app, '/v1/offers', {
    GET: async (request, reply) => {
      if (!service.offersAfter) return service.offers();
      const ip = callers.addressOf(request.raw);
      const already = waiting.get(ip) ?? 0;
      const wait = already < maxWaitingOfAddress ? waitOf(request.headers.prefer) : 0;
      waiting.set(ip, already + 1);
      try {
        const signal = AbortSignal.any([abortedWith(reply), closing.signal]);
        const { tag, list } = await service.offersAfter(tagOf(request.headers['if-none-match']), wait, signal);
        reply.header('etag', `"${tag}"`).header('cache-control', 'no-cache');
        return list ?? reply.code(304).send();
      } finally {
        const left = (waiting.get(ip) ?? 1) - 1;
        if (left > 0) waiting.set(ip, left);
        else waiting.delete(ip);
      }
    },
  });
  let described: string | undefined;
  route(app, '/v1/openapi.json', {
    GET: async (_request, reply) => {
      described ??= JSON.stringify(openApi(service.info().version));
      return reply.type('application/json').send(described);
    },
  });
  route(
    app,
    '/v1/quotes',
    { POST: async (request, reply) => service.quote(validated(quoteRequest, request.body), abortedWith(reply)) },
    anybodyBy(callers),
  );
}
