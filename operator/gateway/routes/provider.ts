/** Who the provider is, what it rents out, and quotes. Open to everybody. */
import type { FastifyInstance } from 'fastify';
import { quoteRequest } from '../../api/gateway.ts';
import type { RateLimit } from '../plugins/limits.ts';
import type { GatewayService } from '../service.ts';
import { abortedWith } from '../signals.ts';
import { validated } from '../validate.ts';
import { route } from './methods.ts';

export function providerRoutes(app: FastifyInstance, service: GatewayService, limit: RateLimit): void {
  route(app, '/v1/provider', { GET: async () => service.info() });
  route(app, '/v1/offers', { GET: async () => service.offers() });
  route(app, '/v1/quotes', {
    POST: async (request, reply) => {
      limit.take(request.ip);
      return service.quote(validated(quoteRequest, request.body), abortedWith(reply));
    },
  });
}
