/** All gateways that the operator speaks to: one client a provider, one connection a lease, outcomes instead of exceptions. */
import type {
  AllocationInfo,
  OfferInfo,
  ProviderInfo,
  QuoteRequest,
  ReleaseReceipt,
  SignedQuote,
  VoucherReceipt,
  VoucherRequest,
} from '../../api/gateway.ts';
import type { Access, Address, Hex } from '../../api/messages.ts';
import type { GpuProvider } from '../../api/provider.ts';
import type { QuoteRecord } from '../../core/lease/observed.ts';
import type { Answer } from '../../core/provider/assess.ts';
import type { Log } from '../../engine/types.ts';
import { systemTiming } from '../../wire/timing.ts';
import { GatewayRefusal, IdentityMismatchError, InvalidAnswerError } from './errors.ts';
import { connectGateway, type GatewayClient } from './gateway-client.ts';
import type { LeaseConnection } from './lease-connection.ts';
import { createRoutes, type Route, type RouteOf, type RouteState } from './routes.ts';

type Outcome<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly kind: 'refused'; readonly reason: string; readonly message: string }
  | { readonly ok: false; readonly kind: 'unknown' | 'invalid'; readonly message: string };

export interface GatewaysOptions {
  readonly signAccess: (quote: QuoteRecord, message: Access) => Promise<Hex>;
  readonly now: () => Date;
  readonly log: Log;
  readonly timeoutSeconds?: number;
  /** Default: straight ones alone. */
  readonly routeOf?: RouteOf;
}

interface Entry {
  readonly endpoint: string;
  readonly client: GatewayClient;
  readonly route: Route;
  readonly leases: Map<string, LeaseConnection>;
}

export function createGateways({ signAccess, now, log, timeoutSeconds = 10, ...options }: GatewaysOptions) {
  const routeOf = options.routeOf ?? createRoutes({ clock: systemTiming, now, timeoutSeconds });
  const clients = new Map<string, Entry>();

  function entryOf(provider: GpuProvider): Entry {
    const { name } = provider.metadata;
    const endpoint = JSON.stringify([provider.spec.endpoint, provider.spec.identity.address]);
    const known = clients.get(name);
    if (known?.endpoint === endpoint) return known;
    close(known);
    const route = routeOf(provider);
    const entry = {
      endpoint,
      route,
      client: connectGateway({
        url: route.url,
        dial: route.dial,
        // By a link or a relay it would take up room that others may want.
        spare: route.state().via === 'Direct',
        timeoutSeconds,
        log: log.child({ provider: name }),
      }),
      leases: new Map<string, LeaseConnection>(),
    };
    clients.set(name, entry);
    return entry;
  }

  function close(entry: Entry | undefined): void {
    entry?.client.close();
    entry?.route.close();
  }

  function connection(provider: GpuProvider, quote: QuoteRecord): LeaseConnection {
    const { client, leases } = entryOf(provider);
    const known = leases.get(quote.leaseId);
    if (known) return known;
    const made = client.lease({
      leaseId: quote.leaseId,
      provider: quote.signed.quote.provider as Address,
      signAccess: (message) => signAccess(quote, message),
      now,
    });
    leases.set(quote.leaseId, made);
    return made;
  }

  return {
    of(provider: GpuProvider) {
      const { client, route } = entryOf(provider);
      return {
        route: (): RouteState => route.state(),
        info: (signal?: AbortSignal): Promise<Answer<ProviderInfo>> => answer(() => client.info(signal), route, signal),
        offers: (signal?: AbortSignal): Promise<Answer<readonly OfferInfo[]>> =>
          answer(async () => (await client.offers(signal)).offers, route, signal),
        offersAfter: (tag: string | undefined, waitSeconds: number, signal?: AbortSignal): Promise<Answer<string>> =>
          answer(() => client.offersAfter(tag, waitSeconds, signal), route, signal),
        quote: (request: QuoteRequest, signal?: AbortSignal): Promise<Outcome<SignedQuote>> =>
          outcome(() => client.quote(request, signal), signal),
        allocate: (quote: SignedQuote, signal?: AbortSignal): Promise<Outcome<AllocationInfo>> =>
          outcome(() => client.allocate(quote, signal), signal),
        allocation: (quote: QuoteRecord, signal?: AbortSignal): Promise<Outcome<AllocationInfo>> =>
          outcome(() => connection(provider, quote).allocation(signal), signal),
        vouch: (quote: QuoteRecord, voucher: VoucherRequest, signal?: AbortSignal): Promise<Outcome<VoucherReceipt>> =>
          outcome(
            () => connection(provider, quote).voucher({ ...voucher, signature: voucher.signature as Hex }, signal),
            signal,
          ),
        release: (quote: QuoteRecord, signal?: AbortSignal): Promise<Outcome<ReleaseReceipt>> =>
          outcome(() => connection(provider, quote).release(signal), signal),
      };
    },
    connection,
    /** The lease has ended: its token and sockets are not needed any more. */
    endLease(leaseId: string) {
      for (const { leases } of clients.values()) leases.delete(leaseId);
    },
    forget(name: string) {
      close(clients.get(name));
      clients.delete(name);
    },
    /** Of every provider that was spoken to, by its name. */
    routes: (): ReadonlyMap<string, RouteState> =>
      new Map([...clients].map(([name, { route }]) => [name, route.state()])),
  };
}

const text = (error: unknown) => (error instanceof Error ? error.message : String(error)).slice(0, 1024);

async function outcome<T>(call: () => Promise<T>, signal?: AbortSignal): Promise<Outcome<T>> {
  try {
    return { ok: true, value: await call() };
  } catch (error) {
    signal?.throwIfAborted();
    // Only a client error is a decision; a 5xx says that the gateway failed, not what it did.
    if (error instanceof GatewayRefusal && error.status < 500)
      return { ok: false, kind: 'refused', reason: error.reason, message: text(error) };
    return { ok: false, kind: error instanceof InvalidAnswerError ? 'invalid' : 'unknown', message: text(error) };
  }
}

async function answer<T>(call: () => Promise<T>, route: Route, signal?: AbortSignal): Promise<Answer<T>> {
  try {
    return { ok: true, value: await call() };
  } catch (error) {
    // A probe's own deadline is an answer: the gateway is too slow.
    if (signal?.aborted && (signal.reason as Error)?.name !== 'TimeoutError') throw signal.reason;
    if (error instanceof IdentityMismatchError) return { ok: false, reason: 'IdentityMismatch', message: text(error) };
    if (error instanceof InvalidAnswerError || error instanceof GatewayRefusal)
      return { ok: false, reason: 'InvalidAnswer', message: text(error) };
    const { up, why } = route.state();
    // Without a link there is nobody who could answer, in time or at all: that is what helps to know.
    const message = up === false && why ? why : signal?.aborted ? 'no answer in time' : text(error);
    return { ok: false, reason: 'Unreachable', message };
  }
}
