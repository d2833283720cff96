/**
 * The consumer's side of the protocol in api/gateway.ts. Every answer is bounded and checked against its schema before
 * anybody sees it; what is signed in it is checked by whoever acts on it.
 */
import {
  type AllocationInfo,
  allocationInfo,
  maxBodyBytes,
  type OfferList,
  offerList,
  type ProviderInfo,
  providerInfo,
  type QuoteRequest,
  type SignedQuote,
  signedQuote,
} from '../../api/gateway.ts';
import type { Access, Address, Hex, Hex32 } from '../../api/messages.ts';
import { pathOnly, readBody } from '../../engine/http.ts';
import { answerOf, refusalOf, type Schema } from './answers.ts';
import { type Dial, dialTls, type Endpoint } from './dial.ts';
import { createHttpClient, type HttpClient } from './http.ts';
import { connectLease, type LeaseConnection } from './lease-connection.ts';

export interface GatewayLog {
  debug(fields: object, message: string): void;
}

interface Common {
  /** For one answer, and for a connection. Default 10. */
  readonly timeoutSeconds?: number;
  /** After a stream was opened, a connection is held ready for the next one. False. */
  readonly spare?: boolean;
  readonly log?: GatewayLog;
}

/** Straight to an endpoint; or whatever `dial` gives, under the URL that a consumer signs for. */
export type GatewayOptions = Common &
  ({ readonly endpoint: Endpoint; readonly dial?: undefined } | { readonly url: string; readonly dial: Dial });

export interface LeaseAccess {
  readonly leaseId: Hex32;
  readonly provider: Address;
  /** Signs with the session key that the escrow names. */
  readonly signAccess: (message: Access) => Promise<Hex>;
  readonly now: () => Date;
}

export interface GatewayClient {
  readonly url: string;
  info(signal?: AbortSignal): Promise<ProviderInfo>;
  offers(signal?: AbortSignal): Promise<OfferList>;
  /**
   * Waits until the offers differ from those of `tag`, or so long: the tag of what they are then. Empty where the gateway
   * gives out none.
   */
  offersAfter(tag: string | undefined, waitSeconds: number, signal?: AbortSignal): Promise<string>;
  quote(request: QuoteRequest, signal?: AbortSignal): Promise<SignedQuote>;
  /** Asks for the allocation of an escrow that is on chain. Safe to repeat. */
  allocate(quote: SignedQuote, signal?: AbortSignal): Promise<AllocationInfo>;
  lease(access: LeaseAccess): LeaseConnection;
  /** Ends idle connections. */
  close(): void;
}

export function connectGateway(options: GatewayOptions): GatewayClient {
  const timeoutSeconds = options.timeoutSeconds ?? 10;
  const url = (options.dial ? options.url : options.endpoint.url).replace(/\/$/, '');
  const dial = options.dial ?? dialTls(options.endpoint, timeoutSeconds);
  const http = createHttpClient({ host: new URL(url).host, dial, timeoutSeconds, spare: options.spare });
  const call = callJson(http, timeoutSeconds, options.log);
  return {
    url,
    info: (signal) => call('GET', '/v1/provider', providerInfo, undefined, {}, signal),
    offers: (signal) => call('GET', '/v1/offers', offerList, undefined, {}, signal),
    async offersAfter(tag, waitSeconds, signal) {
      const what = 'GET /v1/offers';
      const response = await http.send(
        {
          method: 'GET',
          path: '/v1/offers',
          headers: {
            Accept: 'application/json',
            Prefer: `wait=${waitSeconds}`,
            ...(tag === undefined ? {} : { 'If-None-Match': `"${tag}"` }),
          },
          timeoutSeconds: waitSeconds + timeoutSeconds,
        },
        'call',
        signal,
      );
      const bytes = await readBody(response, what, { maxBytes: maxBodyBytes, timeoutSeconds });
      const status = response.statusCode ?? 0;
      if (status !== 200 && status !== 304) throw refusalOf(status, bytes, what, response.headers['retry-after']);
      const given = /^(?:W\/)?"([\x21\x23-\x7e]{1,128})"$/.exec(String(response.headers.etag ?? ''))?.[1];
      return given ?? (status === 304 ? (tag ?? '') : '');
    },
    quote: (request, signal) => call('POST', '/v1/quotes', signedQuote, request, {}, signal),
    allocate: (quote, signal) => call('POST', '/v1/leases', allocationInfo, quote, {}, signal),
    lease: (access) => connectLease({ ...access, url, http, call, timeoutSeconds }),
    close: () => http.close(),
  };
}

export type CallJson = <T>(
  method: string,
  path: string,
  schema: Schema<T>,
  body: unknown,
  headers: Record<string, string>,
  signal?: AbortSignal,
) => Promise<T>;

function callJson(http: HttpClient, timeoutSeconds: number, log?: GatewayLog): CallJson {
  return async (method, path, schema, body, headers, signal) => {
    const what = `${method} ${pathOnly(path)}`;
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const response = await http.send(
      {
        method,
        path,
        headers: {
          Accept: 'application/json',
          ...headers,
          ...(payload === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        body: payload,
      },
      'call',
      signal,
    );
    const bytes = await readBody(response, what, { maxBytes: maxBodyBytes, timeoutSeconds });
    const status = response.statusCode ?? 0;
    log?.debug({ what, status, bytes: bytes.length }, 'the gateway answered');
    if (status >= 300) throw refusalOf(status, bytes, what, response.headers['retry-after']);
    return answerOf(schema, bytes, what);
  };
}
