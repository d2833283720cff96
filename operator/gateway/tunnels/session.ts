/** What both tunnels have in common: limits, and noticing that the other side is silent. */
import type { ClientHttp2Session, Http2Session, ServerHttp2Session } from 'node:http2';
import type { Duplex } from 'node:stream';
import { maxTunnelStreams } from '../../api/gateway.ts';

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

export const pingSeconds = 10;
/** Two pings: a hiccup of the network must not end connections that would survive it. */
const silentSeconds = 20;

/**
 * Widens the session's window, which is 64 KiB by default, and ends the session when the other side stays silent, or has
 * closed its half of the socket: with that half open, as exec and attach need it, nobody else would notice.
 */
export function keep(session: ServerHttp2Session | ClientHttp2Session, socket: Duplex): void {
  session.on('error', () => undefined);
  if (socket.readableEnded) socket.destroy();
  else socket.once('end', () => socket.destroy());
  const widen = () => {
    if (!session.destroyed) session.setLocalWindowSize(sessionWindowBytes);
  };
  if (session.connecting) session.once('connect', widen);
  else widen();
  let askedAt: number | undefined;
  const timer = setInterval(() => {
    if (session.destroyed) return;
    if (askedAt !== undefined) {
      if (performance.now() - askedAt >= silentSeconds * 1000) end(session);
      return;
    }
    askedAt = performance.now();
    session.ping(() => {
      askedAt = undefined;
    });
  }, pingSeconds * 1000);
  timer.unref();
  session.once('close', () => clearInterval(timer));
}

/** At once, and all its streams with it: with an error, or they would look as if they had ended in order. */
export function end(session: Http2Session): void {
  session.destroy(new Error('the tunnel has ended'));
}

/** Counts connections, of each lease and of all. */
export interface Budget {
  /** False when there is no room for another one. */
  take(leaseId: string): boolean;
  give(leaseId: string): void;
  readonly open: number;
}

export function createBudget(perLease: number, overall: number): Budget {
  const byLease = new Map<string, number>();
  let open = 0;
  return {
    take(leaseId) {
      const now = byLease.get(leaseId) ?? 0;
      if (now >= perLease || open >= overall) return false;
      byLease.set(leaseId, now + 1);
      open++;
      return true;
    },
    give(leaseId) {
      const now = byLease.get(leaseId) ?? 0;
      if (now > 1) byLease.set(leaseId, now - 1);
      else byLease.delete(leaseId);
      open--;
    },
    get open() {
      return open;
    },
  };
}
