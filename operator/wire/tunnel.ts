/** What both ends of a tunnel have in common: limits, and noticing that the other side is silent. */
import type { ClientHttp2Session, Http2Session, ServerHttp2Session } from 'node:http2';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { maxTunnelStreams } from '../api/gateway.ts';
import type { Timing } from './timing.ts';

/** Unread data that one connection, and all of a lease together, may hold here. */
const streamWindowBytes = 1 << 20;
const sessionWindowBytes = 8 << 20;

export const sessionOptions = {
  settings: {
    enablePush: false,
    initialWindowSize: streamWindowBytes,
    maxConcurrentStreams: maxTunnelStreams,
    maxHeaderListSize: 4096,
  },
  maxHeaderListPairs: 16,
  /** Megabytes: the window, and what is on its way out. */
  maxSessionMemory: 32,
} as const;

/** Two pings: a hiccup of the network must not end connections that would survive it. */
const tunnelPace = { pingSeconds: 10, silentSeconds: 20, windowBytes: sessionWindowBytes };

/**
 * Widens the session's window, which is 64 KiB by default, and ends the session when the other side stays silent, or has
 * closed its half of the socket: with that half open, as exec and attach need it, nobody else would notice.
 */
export function keep(
  session: ServerHttp2Session | ClientHttp2Session,
  socket: Duplex,
  clock: Timing,
  { pingSeconds, silentSeconds, windowBytes } = tunnelPace,
): void {
  session.on('error', () => undefined);
  if (socket.readableEnded) socket.destroy();
  else socket.once('end', () => socket.destroy());
  const widen = () => {
    if (!session.destroyed) session.setLocalWindowSize(windowBytes);
  };
  if (session.connecting) session.once('connect', widen);
  else widen();
  let askedAtMs: number | undefined;
  let heard: number | undefined;
  let cancel: (() => void) | undefined;
  const tick = () => {
    if (session.destroyed) return;
    if (askedAtMs === undefined) {
      askedAtMs = clock.monotonicMs();
      heard = bytesRead(socket);
      session.ping(() => {
        askedAtMs = undefined;
      });
    } else if (bytesRead(socket) !== heard) {
      // Not silent: the answer stands behind other things that it says.
      askedAtMs = clock.monotonicMs();
      heard = bytesRead(socket);
    } else if (clock.monotonicMs() - askedAtMs >= silentSeconds * 1000) {
      // Unless it is we who stood still: then the answer lies here unread, and is read before this.
      const asked = askedAtMs;
      setImmediate(() => {
        if (askedAtMs === asked && !session.destroyed) end(session);
      });
    }
    cancel = clock.setTimeout(tick, pingSeconds * 1000);
  };
  cancel = clock.setTimeout(tick, pingSeconds * 1000);
  session.once('close', () => cancel?.());
}

const bytesRead = (socket: Duplex): number | undefined => (socket as Partial<Socket>).bytesRead;

/** At once, and all its streams with it: with an error, or they would look as if they had ended in order. */
export function end(session: Http2Session): void {
  session.destroy(new Error('the connection was ended'));
}
