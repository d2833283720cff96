/** One lease: its allocation, its tokens, its vouchers, its end. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { accessRequest, leaseRequest, voucherRequest } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Callers } from '../callers.ts';
import type { Nonces } from '../nonces.ts';
import type { GatewayService } from '../service.ts';
import { abortedWith } from '../signals.ts';
import type { LeaseTokens } from '../tokens.ts';
import { validated } from '../validate.ts';
import { eventStream, type Followed, wantsEvents } from './follow.ts';
import { anybodyBy, type Before, route } from './methods.ts';

export interface LeaseRouteOptions {
  readonly service: GatewayService;
  readonly followed: Pick<Followed, 'open'>;
  readonly tokens: Pick<LeaseTokens, 'issue'>;
  readonly callers: Callers;
  readonly nonces: Nonces;
  /** URLs under which consumers reach this gateway. */
  readonly publicUrls: readonly string[];
  readonly now: () => Date;
}

/** An Access message may be signed for no longer. */
const longestAccessSeconds = 300;

export function leaseIdOf(text: string | undefined): Hex32 {
  if (text === undefined || !/^0x[0-9a-fA-F]{64}$/.test(text)) {
    throw new Refusal(404, 'a lease id is 0x and 64 hexadecimal digits');
  }
  return text.toLowerCase() as Hex32;
}

export const idOf = (request: FastifyRequest): Hex32 => leaseIdOf((request.params as { leaseId?: string }).leaseId);

/** Whoever has a token of the lease that the path names. */
export const authorizedBy = (callers: Pick<Callers, 'check'>): Before => ({
  check: (request) => callers.check(idOf(request), request.raw),
});

const withoutSlash = (url: string): string => url.replace(/\/+$/, '');

export function leaseRoutes(app: FastifyInstance, options: LeaseRouteOptions): void {
  const { service, followed, tokens, callers, nonces, now } = options;
  const audiences = new Set(options.publicUrls.map(withoutSlash));

  const authorized = authorizedBy(callers);
  const anybody = anybodyBy(callers);

  route(
    app,
    '/v1/leases',
    {
      POST: async (request, reply) => {
        const info = await service.allocate(validated(leaseRequest, request.body), abortedWith(reply));
        callers.about(info.leaseId as Hex32, request.raw);
        return info;
      },
    },
    anybody,
  );

  route(
    app,
    '/v1/leases/:leaseId',
    {
      GET: async (request, reply) =>
        wantsEvents(request.headers.accept)
          ? reply.type(eventStream).send(await followed.open(idOf(request)))
          : service.allocation(idOf(request), abortedWith(reply)),
    },
    authorized,
  );

  route(
    app,
    '/v1/leases/:leaseId/token',
    {
      POST: async (request, reply) => {
        const leaseId = idOf(request);
        const access = validated(accessRequest, request.body);
        const nowSeconds = Math.floor(now().getTime() / 1000);
        if (!audiences.has(withoutSlash(access.audienceUrl))) {
          throw new Refusal(
            'Unauthorized',
            `the access is for ${access.audienceUrl.slice(0, 200)}, this gateway is ${[...audiences].join(' or ')}`,
          );
        }
        if (access.expiresAt <= nowSeconds) throw new Refusal('Unauthorized', 'the access has run out: sign another');
        if (access.expiresAt > nowSeconds + longestAccessSeconds) {
          throw new Refusal('Unauthorized', `an access may hold for ${longestAccessSeconds} seconds, not longer`);
        }
        await service.checkAccess(leaseId, access, abortedWith(reply));
        // Last, so that only who can sign for a lease can fill the memory of nonces.
        nonces.use(access.nonce, access.expiresAt);
        callers.proved(leaseId, request.raw);
        return tokens.issue(leaseId, access.expiresAt);
      },
    },
    anybody,
  );

  route(
    app,
    '/v1/leases/:leaseId/vouchers',
    {
      POST: async (request, reply) =>
        service.voucher(idOf(request), validated(voucherRequest, request.body), abortedWith(reply)),
    },
    authorized,
  );

  route(
    app,
    '/v1/leases/:leaseId/release',
    {
      POST: async (request, reply) => {
        const receipt = await service.release(idOf(request), abortedWith(reply));
        return reply.code(receipt.state === 'Ended' ? 200 : 202).send(receipt);
      },
    },
    authorized,
  );
}
