/** The two ends that dial: a gateway that offers itself, and a consumer that asks a relay for a gateway. */
import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { audienceOf, linkPath, linkProtocol, reachPath, reachProtocol } from '../api/link.ts';
import { type Introduction, introduce } from './introduction.ts';
import { type Keeper, type KeepOptions, keepDialled } from './keep-dialled.ts';
import {
  type Connected,
  type LinkIn,
  type LinkOut,
  NotConnected,
  openLink,
  type TakeOptions,
  takeLink,
} from './link.ts';
import type { Timing } from './timing.ts';
import { openWebSocket, type WebSocketStream } from './websocket.ts';

/** TLS to the listener that the URL names. */
export type DialListener = () => Promise<Duplex>;

interface Place {
  /** wss or https. What stands in its path goes before that of the protocol, for listeners behind an ingress. */
  readonly url: string;
  readonly dial: DialListener;
  readonly clock: Timing;
}

const withinSeconds = 10;

async function websocket(place: Place, path: string, protocol: string, signal: AbortSignal): Promise<WebSocketStream> {
  const url = new URL(place.url);
  const socket = await place.dial();
  if (signal.aborted) {
    socket.destroy();
    throw signal.reason;
  }
  const giveUp = () => socket.destroy(signal.reason as Error);
  signal.addEventListener('abort', giveUp, { once: true });
  try {
    const stream = await openWebSocket(socket, {
      host: url.host,
      path: `${url.pathname.replace(/\/+$/, '')}${path}`,
      protocol,
      withinSeconds,
      clock: place.clock,
    });
    stream.on('error', () => undefined);
    return stream;
  } finally {
    signal.removeEventListener('abort', giveUp);
  }
}

export interface OfferOptions extends Place, TakeOptions {
  readonly own: Pick<Introduction, 'provider' | 'sign' | 'now'>;
  readonly instance?: string;
  readonly onUp?: () => void;
  readonly onDown?: () => void;
  readonly onFailure?: KeepOptions<LinkIn>['onFailure'];
}

export interface Offered {
  readonly keeper: Keeper<LinkIn>;
  /** Connections on all links to this place: a link that drains may still have some. */
  readonly connections: number;
  /** Takes no more, and ends once none is left or the time is over. */
  close(withinSeconds: number): Promise<void>;
}

/** Offers a gateway at one place, for as long as the signal lets it. */
export function offerGateway(options: OfferOptions, signal: AbortSignal): Offered {
  const { own, clock } = options;
  const instance = options.instance ?? `0x${randomBytes(32).toString('hex')}`;
  const audienceUrl = audienceOf(options.url);
  const open = new Set<LinkIn>();
  const stop = new AbortController();
  signal.addEventListener('abort', () => stop.abort(signal.reason), { once: true });
  const keeper = keepDialled<LinkIn>(
    {
      clock,
      onUp: options.onUp,
      onDown: options.onDown,
      onFailure: options.onFailure,
      async attempt(aborted) {
        const socket = await websocket(options, linkPath, linkProtocol, aborted);
        try {
          await introduce(socket, { ...own, audienceUrl, instance }, clock);
          aborted.throwIfAborted();
        } catch (error) {
          socket.destroy();
          throw error;
        }
        const link = takeLink(socket, options);
        open.add(link);
        void link.ended.then(() => open.delete(link));
        return link;
      },
    },
    stop.signal,
  );
  return {
    keeper,
    get connections() {
      return [...open].reduce((sum, link) => sum + link.connections, 0);
    },
    async close(seconds) {
      stop.abort(new Error('the gateway stops'));
      for (const link of open) link.drain();
      const late = new Promise<void>((resolve) => clock.setTimeout(resolve, seconds * 1000));
      await Promise.race([late, Promise.all([...open].map((link) => link.ended))]);
      for (const link of open) link.end();
    },
  };
}

export interface Reaching {
  connect(withinSeconds: number): Promise<Connected>;
  readonly connections: number;
  readonly up: boolean;
  /** Since when, while it is up. */
  readonly since?: Date;
  readonly lastError?: string;
  close(): void;
}

/** Keeps a connection to a relay, over which a provider's gateway is reached. */
export function reachThrough(
  options: Place & { readonly provider: string; readonly now: () => Date; readonly onChange?: (up: boolean) => void },
): Reaching {
  const { clock, provider } = options;
  const stop = new AbortController();
  const open = new Set<LinkOut>();
  let since: Date | undefined;
  const keeper = keepDialled<LinkOut>(
    {
      clock,
      onUp: () => {
        since = options.now();
        options.onChange?.(true);
      },
      onDown: () => {
        since = undefined;
        options.onChange?.(false);
      },
      async attempt(aborted) {
        const socket = await websocket(options, `${reachPath}${provider}`, reachProtocol, aborted);
        const link = await openLink(socket, clock, withinSeconds);
        open.add(link);
        void link.ended.then(() => open.delete(link));
        // Full or drained, it is not there for new ones.
        return link;
      },
    },
    stop.signal,
  );
  return {
    async connect(seconds) {
      const until = clock.monotonicMs() + seconds * 1000;
      for (;;) {
        const leftSeconds = (until - clock.monotonicMs()) / 1000;
        const link = await keeper.within(Math.max(0, leftSeconds));
        if (!link)
          throw new NotConnected(
            `the relay ${new URL(options.url).host} is not connected${keeper.lastError ? `: ${keeper.lastError}` : ''}`,
          );
        try {
          return await link.connect('', Math.max(0.1, leftSeconds));
        } catch (error) {
          if (link.usable || until - clock.monotonicMs() <= 0) throw error;
          // It is being replaced: its end is known here in a moment.
          await new Promise<void>((resolve) => clock.setTimeout(resolve, 50));
        }
      }
    },
    get connections() {
      return [...open].reduce((sum, link) => sum + link.connections, 0);
    },
    get up() {
      return keeper.current !== undefined;
    },
    get since() {
      return since;
    },
    get lastError() {
      return keeper.lastError;
    },
    close() {
      stop.abort(new Error('not needed any more'));
      for (const link of open) link.drain();
    },
  };
}
