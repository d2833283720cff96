/**
 * How each provider is reached: straight, over a link that its gateway has made to us, or by way of a relay. All three give the
 * same `Dial`, with TLS to the gateway end to end; nothing above can tell.
 *
 * Over a link the gateway's certificate is known by what the provider's key says of it, so that the account which the GpuProvider
 * pins is all that has to be written down. A CA bundle or a pin of the GpuProvider is asked for besides.
 */
import type { Duplex } from 'node:stream';
import { gatewayKeyHeader, linkUrlOf } from '../../api/link.ts';
import type { GpuProvider } from '../../api/provider.ts';
import { reachThrough } from '../../wire/dial-out.ts';
import { type Connected, NotConnected } from '../../wire/link.ts';
import type { Links } from '../../wire/links.ts';
import type { Timing } from '../../wire/timing.ts';
import { gatewayKeyReader } from '../chain/link-proofs.ts';
import { adviceFor, type Dial, dialTls, type Endpoint, tlsTo } from './dial.ts';
import { IdentityMismatchError, UnknownOutcomeError } from './errors.ts';

export type Via = 'Direct' | 'Reverse' | 'Relay';

/** What a route knows of itself; of a direct one nothing stands between calls. */
export interface RouteState {
  readonly via: Via;
  /** Undefined: it is made for each connection. */
  readonly up?: boolean;
  readonly since?: Date;
  /** Where the provider's gateway dials from, or the relay. */
  readonly through?: string;
  /** Open now, on links. */
  readonly connections?: number;
  readonly links?: number;
  /** Why it is not up. */
  readonly why?: string;
}

export interface Route {
  /** What a consumer signs for. */
  readonly url: string;
  readonly dial: Dial;
  state(): RouteState;
  close(): void;
}

export interface RoutesOptions {
  /** Links that gateways have made to this process. Absent: none can. */
  readonly links?: Links;
  readonly clock: Timing;
  readonly now: () => Date;
  readonly timeoutSeconds: number;
  /** A route went up or down. */
  readonly onChange?: (provider: string) => void;
}

export type RouteOf = (provider: GpuProvider) => Route;

export function createRoutes(options: RoutesOptions): RouteOf {
  const { links, clock, now, timeoutSeconds, onChange } = options;
  return (provider) => {
    const { endpoint, identity } = provider.spec;
    const account = identity.address.toLowerCase();
    if (endpoint.via === 'Direct' || endpoint.via === undefined) {
      if (endpoint.url === undefined)
        throw new TypeError(`GpuProvider ${provider.metadata.name} has no spec.endpoint.url`);
      return {
        url: endpoint.url.replace(/\/$/, ''),
        dial: dialTls(endpoint as Endpoint, timeoutSeconds),
        state: () => ({ via: 'Direct' }),
        close: () => undefined,
      };
    }
    const url = linkUrlOf(account);
    const linked = (connect: (withinSeconds: number) => Promise<Connected>) =>
      dialLinked({ endpoint: { ...endpoint, url }, account, connect, now, timeoutSeconds });
    if (endpoint.via === 'Reverse') {
      const closed = 'this operator lets no gateway dial in: start it with --reverse-listen and --reverse-url';
      return {
        url,
        dial: linked((seconds) => {
          if (!links) return Promise.reject(new NotConnected(closed));
          return links.connect(account, '', seconds);
        }),
        state: () => {
          if (!links) return { via: 'Reverse', up: false, why: closed };
          const { links: count, connections, from, since } = links.state(account);
          return {
            via: 'Reverse',
            up: count > 0,
            since,
            through: from,
            connections,
            links: count,
            ...(count > 0 ? {} : { why: 'no gateway of this provider has dialled in' }),
          };
        },
        close: () => undefined,
      };
    }
    const relay = endpoint.relay!;
    const start = tlsTo(
      { ...relay, url: originOf(relay.url) },
      timeoutSeconds,
      adviceFor('spec.endpoint.relay', 'the relay'),
    );
    const reaching = reachThrough({
      url: relay.url,
      provider: account,
      dial: () => start('http/1.1'),
      clock,
      now,
      onChange: () => onChange?.(provider.metadata.name),
    });
    return {
      url,
      dial: linked((seconds) => reaching.connect(seconds)),
      state: () => ({
        via: 'Relay',
        up: reaching.up,
        since: reaching.since,
        through: new URL(relay.url).host,
        connections: reaching.connections,
        links: reaching.up ? 1 : 0,
        ...(reaching.up ? {} : { why: reaching.lastError }),
      }),
      close: () => reaching.close(),
    };
  };
}

const originOf = (url: string): string => new URL(url).origin;

/** TLS to the gateway, on a connection over a link. */
export function dialLinked(options: {
  readonly endpoint: Endpoint;
  readonly account: string;
  readonly connect: (withinSeconds: number) => Promise<Connected>;
  readonly now: () => Date;
  readonly timeoutSeconds: number;
}): Dial {
  const { account, connect, timeoutSeconds } = options;
  const keyOf = gatewayKeyReader(account, options.now);
  const start = tlsTo(options.endpoint, timeoutSeconds);
  return async (protocol = 'http/1.1') => {
    let made: Connected;
    try {
      made = await connect(timeoutSeconds);
    } catch (error) {
      throw new UnknownOutcomeError(`${account}: ${(error as Error).message}`, { neverSent: true, cause: error });
    }
    const connection: Duplex = made.connection;
    const said = keyOf(made.headers[gatewayKeyHeader]);
    if ('why' in said) {
      connection.destroy();
      throw new IdentityMismatchError(`${account}: ${said.why}`);
    }
    return start(protocol, connection, said.spkiSHA256);
  };
}
