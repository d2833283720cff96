/** The consumer's Services of one lease, and the two tunnels for whoever asks for them without an upgrade. */
import type { FastifyInstance } from 'fastify';
import { forwardProtocol, reverseProtocol, servicesRequest } from '../../api/gateway.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Callers } from '../callers.ts';
import type { GatewayService } from '../service.ts';
import { abortedWith } from '../signals.ts';
import { validated } from '../validate.ts';
import { authorizedBy, idOf } from './leases.ts';
import { route } from './methods.ts';

export function serviceRoutes(
  app: FastifyInstance,
  { service, callers }: { readonly service: GatewayService; readonly callers: Callers },
): void {
  const authorized = authorizedBy(callers);

  route(
    app,
    '/v1/leases/:leaseId/services',
    {
      PUT: async (request, reply) =>
        service.putServices(idOf(request), validated(servicesRequest, request.body), abortedWith(reply)),
    },
    authorized,
  );

  for (const [name, protocol] of [
    ['forward', forwardProtocol],
    ['reverse', reverseProtocol],
  ] as const)
    route(
      app,
      `/v1/leases/:leaseId/${name}`,
      {
        POST: async () => {
          throw new Refusal(400, `${name} needs an upgrade of the connection (${protocol})`);
        },
      },
      authorized,
    );
}
