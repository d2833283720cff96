/** What both tunnels have in common: how one is opened, its limits, and noticing that the other side is silent. */
import type { ClientHttp2Session, Http2Session, ServerHttp2Session } from 'node:http2';
import type { Duplex } from 'node:stream';
import { maxTunnelStreams } from '../../api/gateway.ts';
import type { Clock } from '../../engine/clock.ts';
import { isRecord } from '../../engine/errors.ts';
import { readBody } from '../../engine/http.ts';
import type { RemoteLease } from '../remote.ts';

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

const pingSeconds = 10;
/** Two pings: a hiccup of the network must not end connections that would survive it. */
const silentSeconds = 20;
const openSeconds = 15;
/** Who has just been reached anew and takes longer than this is reached another way. */
const promptSeconds = 3;

/** The gateway said no. */
export class TunnelRefusal extends Error {
  override readonly name = 'TunnelRefusal';
  readonly reason: string;
  /** It will say so again: about what was asked, not about now. */
  readonly isFinal: boolean;
  constructor(status: number, reason: string, message: string) {
    super(message);
    this.reason = reason;
    // A gateway that does not know the path is an older one.
    this.isFinal = reason === 'ServicesNotOffered' || status === 400 || status === 422 || reason === 'HTTP 404';
  }
}

/** An upgraded connection to the gateway, of which nothing has been read. */
export async function openTunnel(
  lease: RemoteLease,
  path: 'forward' | 'reverse',
  protocol: string,
  signal: AbortSignal,
): Promise<Duplex> {
  const answer = await lease.upgrade(
    { method: 'POST', path, headers: { Connection: 'Upgrade', Upgrade: protocol }, timeoutSeconds: openSeconds },
    signal,
  );
  if (!answer.socket) throw await refusalOf(answer.response, path);
  const { socket, head } = answer;
  // A session takes over the socket below its stream: what is still on its way out then, Node answers by ending the process.
  if (socket.writableLength > 0) await new Promise<void>((sent) => socket.write('', () => sent()));
  if (head.length > 0) socket.unshift(head);
  return socket;
}

export async function refusalOf(response: Parameters<typeof readBody>[0], what: string): Promise<TunnelRefusal> {
  const body = await readBody(response, what, { maxBytes: 64 * 1024, timeoutSeconds: openSeconds });
  let said: unknown;
  try {
    said = JSON.parse(body.toString('utf8'));
  } catch {
    // Somebody else's page: the status says what there is to say.
  }
  const { reason, detail, title } = isRecord(said) ? said : {};
  const text = (value: unknown) => (typeof value === 'string' ? value.slice(0, 512) : undefined);
  return new TunnelRefusal(
    response.statusCode ?? 0,
    text(reason) ?? `HTTP ${response.statusCode}`,
    text(detail) ?? text(title) ?? `the gateway answered ${response.statusCode}`,
  );
}

/**
 * Widens the session's window, which is 64 KiB by default, and ends the session when the other side stays silent, or has
 * closed its half of the socket: with that half open, as exec and attach need it, nobody else would notice.
 */
export function keep(session: ServerHttp2Session | ClientHttp2Session, socket: Duplex, clock: Clock): void {
  session.on('error', () => undefined);
  if (socket.readableEnded) socket.destroy();
  else socket.once('end', () => socket.destroy());
  const widen = () => {
    if (!session.destroyed) session.setLocalWindowSize(sessionWindowBytes);
  };
  if (session.connecting) session.once('connect', widen);
  else widen();
  let askedAtMs: number | undefined;
  let cancel: (() => void) | undefined;
  const tick = () => {
    if (session.destroyed) return;
    if (askedAtMs === undefined) {
      askedAtMs = clock.monotonicMs();
      session.ping(() => {
        askedAtMs = undefined;
      });
    } else if (clock.monotonicMs() - askedAtMs >= silentSeconds * 1000) {
      end(session);
      return;
    }
    cancel = clock.setTimeout(tick, pingSeconds * 1000);
  };
  cancel = clock.setTimeout(tick, pingSeconds * 1000);
  session.once('close', () => cancel?.());
}

/** Whether the other side answers now. */
export function answers(session: ServerHttp2Session | ClientHttp2Session, clock: Clock): Promise<boolean> {
  return new Promise((resolve) => {
    if (session.destroyed || session.closed) return resolve(false);
    const cancel = clock.setTimeout(() => resolve(false), promptSeconds * 1000);
    session.ping((error) => {
      cancel();
      resolve(error === null);
    });
  });
}

/** At once, and all its streams with it: with an error, or they would look as if they had ended in order. */
export function end(session: Http2Session): void {
  session.destroy(new Error('the tunnel has ended'));
}
