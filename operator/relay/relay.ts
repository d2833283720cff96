/**
 * A relay, which anyone may run: gateways dial in and prove the provider's key, consumers dial in and name a provider's account,
 * and their connections are joined. What passes is TLS between the two; nobody here could read or change it, or would be believed
 * as either of them. It knows accounts, addresses, and how much passes when; it keeps nothing.
 *
 * Everything has a bound, since both sides are strangers: links, consumers, connections of each and of all together, bytes a second,
 * idle time. Who is over one is refused, and the others go on.
 */
import type { Duplex } from 'node:stream';
import { gatewayKeyHeader } from '../api/link.ts';
import { countedAs } from '../wire/counted-as.ts';
import { join } from '../wire/halves.ts';
import type { Doorkeeper } from '../wire/introduction.ts';
import { type LinkIn, NotConnected, takeLink } from '../wire/link.ts';
import { type LinkListener, type LinkLog, startLinkListener } from '../wire/link-listener.ts';
import { createLinks, type Links } from '../wire/links.ts';
import { createPace } from '../wire/pace.ts';
import type { Timing } from '../wire/timing.ts';
import type { WebSocketStream } from '../wire/websocket.ts';
import { createMeter } from './meter.ts';

export interface RelayLimits {
  /** Providers with a link: all, and those that dial from one address. Who proves an account may have made it a moment ago. */
  readonly providers: number;
  readonly providersOfAddress: number;
  /** Consumers' connections to this relay: of all, for one provider, and from one address. */
  readonly callers: number;
  readonly callersOfProvider: number;
  readonly callersOfAddress: number;
  /** Connections that are joined: of all, of one consumer, and to one provider. */
  readonly streams: number;
  readonly streamsOfCaller: number;
  readonly streamsOfProvider: number;
  /** New ones of one address, a second. */
  readonly streamsPerSecond: number;
  /** New connections to this relay of one address, a second. */
  readonly dialsPerSecond: number;
  /** To and from one provider together, a second; 0: as much as passes. */
  readonly bytesPerSecond: number;
  /** A connection on which nothing passes for so long is broken off. */
  readonly idleSeconds: number;
}

export const defaultLimits: RelayLimits = {
  providers: 1000,
  providersOfAddress: 50,
  callers: 4000,
  callersOfProvider: 200,
  callersOfAddress: 50,
  streams: 50_000,
  streamsOfCaller: 2048,
  streamsOfProvider: 4000,
  streamsPerSecond: 100,
  dialsPerSecond: 5,
  bytesPerSecond: 0,
  idleSeconds: 4 * 3600,
};

export interface RelayOptions {
  readonly host: string;
  readonly port: number;
  readonly tls: { readonly key: string; readonly cert: string };
  readonly audiences: ReadonlySet<string>;
  readonly verify: Doorkeeper['verify'];
  /** Accounts that may link here. Absent: everyone who proves an account. */
  readonly allowed?: ReadonlySet<string>;
  readonly limits?: Partial<RelayLimits>;
  readonly clock: Timing;
  readonly now: () => Date;
  readonly log: LinkLog;
}

export interface RelayFigures {
  readonly providers: number;
  readonly callers: number;
  readonly streams: number;
  /** Since the start. */
  readonly streamsTotal: number;
  readonly bytesTotal: number;
  readonly refused: Readonly<Record<string, number>>;
}

export interface Relay {
  readonly port: number;
  figures(): RelayFigures;
  setTls(tls: { key: string; cert: string }): void;
  /** Takes nobody any more, asks all to go elsewhere, and ends what is left when the time is over. */
  close(withinSeconds: number): Promise<void>;
}

/** For the other side's yes, or for a gateway to be back: less than a consumer waits, so that it hears why not. */
const connectWithinSeconds = 4;

export async function startRelay(options: RelayOptions): Promise<Relay> {
  const limits = { ...defaultLimits, ...options.limits };
  const { clock, log } = options;
  const refused: Record<string, number> = {};
  const refuse = (why: string) => {
    refused[why] = (refused[why] ?? 0) + 1;
  };
  const links: Links = createLinks({ clock, now: options.now });
  const callers = new Map<LinkIn, { readonly provider: string; readonly address: string }>();
  const streamPace = createPace({
    perSecond: limits.streamsPerSecond,
    burst: limits.streamsPerSecond * 4,
    monotonicMs: () => clock.monotonicMs(),
  });
  const meter = createMeter({ bytesPerSecond: limits.bytesPerSecond, idleSeconds: limits.idleSeconds, clock });
  let streams = 0;
  let streamsTotal = 0;
  const streamsTo = new Map<string, number>();
  let closing = false;

  const keeper: Doorkeeper = {
    audiences: options.audiences,
    verify: options.verify,
    now: options.now,
    refuses(provider, from) {
      if (closing) return { why: 'this relay stops: dial again', soon: true };
      if (options.allowed && !options.allowed.has(provider))
        return { why: `${provider} is not among the accounts that may use this relay` };
      if (links.state(provider).links > 0) return undefined;
      const others = links.providers();
      if (others.length >= limits.providers) return { why: 'this relay has as many providers as it takes' };
      const neighbours = others.filter((one) => countedAs(links.state(one).from ?? '') === countedAs(from));
      if (neighbours.length >= limits.providersOfAddress)
        return { why: 'as many providers dial in from this address as may' };
      return undefined;
    },
  };

  function reach(provider: string, from: string): string | ((socket: WebSocketStream) => void) {
    if (closing) return 'this relay stops: dial again';
    if (callers.size >= limits.callers) return 'this relay has as many callers as it takes: try again';
    const address = countedAs(from);
    const all = [...callers.values()];
    if (all.filter((one) => one.address === address).length >= limits.callersOfAddress)
      return 'as many callers are here from this address as may be';
    if (all.filter((one) => one.provider === provider).length >= limits.callersOfProvider)
      return 'this provider has as many callers here as it may have: try again';
    return (socket) => {
      const link: LinkIn = takeLink(socket, {
        clock,
        onConnection: (asked) => {
          const over =
            streams >= limits.streams
              ? 'this relay carries as many connections as it can: try again'
              : link.connections > limits.streamsOfCaller
                ? `${limits.streamsOfCaller} connections are open here already`
                : (streamsTo.get(provider) ?? 0) >= limits.streamsOfProvider
                  ? 'as many connections to this provider are open as it may have'
                  : !streamPace.take(address)
                    ? 'too many connections are asked for from this address'
                    : undefined;
          if (over !== undefined) {
            refuse('stream');
            return asked.refuse(503, over);
          }
          count(provider, asked.stream);
          carry(provider, from, asked).catch((error: Error) => {
            log.debug({ provider, error: error.message }, 'a connection was not joined');
            asked.refuse(503, error instanceof NotConnected ? error.message : 'the connection was not made');
          });
        },
      });
      callers.set(link, { provider, address });
      void link.ended.then(() => callers.delete(link));
    };
  }

  function count(provider: string, stream: Duplex): void {
    streams += 1;
    streamsTotal += 1;
    streamsTo.set(provider, (streamsTo.get(provider) ?? 0) + 1);
    stream.once('close', () => {
      streams -= 1;
      const left = (streamsTo.get(provider) ?? 1) - 1;
      if (left > 0) streamsTo.set(provider, left);
      else streamsTo.delete(provider);
    });
  }

  async function carry(
    provider: string,
    from: string,
    asked: Parameters<Parameters<typeof takeLink>[1]['onConnection']>[0],
  ): Promise<void> {
    const { connection, headers } = await links.connect(provider, from, connectWithinSeconds);
    if (asked.stream.destroyed) return void connection.destroy();
    const key = headers[gatewayKeyHeader];
    asked.accept(typeof key === 'string' ? { [gatewayKeyHeader]: key } : {});
    join(asked.stream, connection, meter.watch(provider, asked.stream, connection));
  }

  const listener: LinkListener = await startLinkListener({
    host: options.host,
    port: options.port,
    tls: options.tls,
    keeper,
    links,
    clock,
    log,
    maxConnections: limits.callers + limits.providers * 2,
    perSecond: limits.dialsPerSecond,
    burst: limits.dialsPerSecond * 10,
    onReach: reach,
    onRefused: refuse,
  });

  return {
    port: listener.port,
    figures: () => ({
      providers: links.providers().length,
      callers: callers.size,
      streams,
      streamsTotal,
      bytesTotal: meter.bytes,
      refused,
    }),
    setTls: (tls) => listener.setTls(tls),
    async close(withinSeconds) {
      closing = true;
      const closed = listener.close();
      for (const link of callers.keys()) link.drain();
      links.drainAll();
      const until = clock.monotonicMs() + withinSeconds * 1000;
      while (streams > 0 && clock.monotonicMs() < until)
        await new Promise<void>((resolve) => clock.setTimeout(resolve, 100));
      for (const link of callers.keys()) link.end();
      links.endAll();
      await closed;
    },
  };
}
