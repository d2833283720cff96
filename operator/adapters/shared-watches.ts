/**
 * Watches over few connections: HTTP/2, where the server speaks it. A connection of its own for each watch costs 70 KB here and
 * as much there. A consumer has three watches a lease at a provider's gateway, and a gateway two at its API server.
 *
 * Watches only: what else there is may be large, and a busy connection would delay it.
 */
import type { IncomingMessage } from 'node:http';
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { UnknownOutcomeError } from '../engine/errors.ts';
import { pathOnly } from '../engine/http.ts';
import type { SharedWatches, WatchRequest } from '../engine/types.ts';
import { systemTiming, type Timing } from '../wire/timing.ts';
import { keep } from '../wire/tunnel.ts';

interface Shared {
  readonly session: ClientHttp2Session;
  watches: number;
}

/** A server that does not speak it is asked again after so long: it may have been replaced by a newer one. */
const askAgainMs = 10 * 60_000;
const idleMs = 30_000;
/** What of one watch may be on its way unread. Few bytes would bound a burst of pods by the distance to it. */
const wideBytes = 4 * 1024 * 1024;
/** However many the server allows on one connection. */
const mostOnOne = 2000;

export interface SharedWatchesOptions {
  /** For errors, and the requests' authority. */
  readonly host: string;
  readonly dial: (protocol: 'h2') => Promise<Duplex>;
  /** For settings, and for the headers of an answer where its request does not say. */
  readonly timeoutSeconds: number;
  /** What one watch, whose reader stands still, may hold here. Its neighbours go on. Default: 4 MiB. */
  readonly windowBytes?: number;
  readonly timing?: Timing;
  /** A connection on which the other side says nothing for so long, although asked, is dead. Default: 9. */
  readonly silentSeconds?: number;
}

export function createSharedWatches(options: SharedWatchesOptions): SharedWatches & { close(): void } {
  const { host, dial, timeoutSeconds, windowBytes = wideBytes, timing = systemTiming, silentSeconds = 9 } = options;
  const shared = new Set<Shared>();
  let connecting: Promise<Shared | undefined> | undefined;
  let unspokenUntil = 0;

  const hasRoom = ({ session, watches }: Shared): boolean =>
    !session.closed &&
    !session.destroyed &&
    watches < Math.min(mostOnOne, session.remoteSettings?.maxConcurrentStreams ?? mostOnOne);

  async function connect(): Promise<Shared | undefined> {
    let socket: Duplex;
    try {
      socket = await dial('h2');
    } catch (error) {
      if (!saysNoSuchProtocol(error)) throw error;
      unspokenUntil = performance.now() + askAgainMs;
      return undefined;
    }
    if ((socket as Partial<TLSSocket>).alpnProtocol !== 'h2') {
      socket.destroy();
      unspokenUntil = performance.now() + askAgainMs;
      return undefined;
    }
    const session = http2.connect(`https://${host}`, {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: windowBytes },
      maxSessionMemory: 64,
    });
    return new Promise((resolve, reject) => {
      const failed = (error?: Error) => {
        clearTimeout(timer);
        session.destroy();
        reject(
          new UnknownOutcomeError(`${host}: ${error?.message ?? 'the connection ended at once'}`, {
            neverSent: true,
            cause: error,
          }),
        );
      };
      const timer = setTimeout(
        () => failed(new Error(`no settings within ${timeoutSeconds} s`)),
        timeoutSeconds * 1000,
      );
      session.once('error', failed);
      session.once('close', failed);
      // Only then is it known how many watches there may be.
      session.once('remoteSettings', () => {
        clearTimeout(timer);
        session.off('error', failed);
        session.off('close', failed);
        const one: Shared = { session, watches: 0 };
        session.on('error', () => session.destroy());
        session.once('close', () => shared.delete(one));
        // A path may be lost with something under way, for which the kernel waits a quarter of an hour. And Node does not always
        // say that a connection has ended (nodejs/node#61304): all watches would wait on it, and all that come.
        keep(session, socket, timing, { pingSeconds: silentSeconds / 2, silentSeconds, windowBytes: windowBytes * 4 });
        session.setTimeout(idleMs, () => {
          if (one.watches === 0) session.close();
        });
        shared.add(one);
        resolve(one);
      });
    });
  }

  async function withRoom(): Promise<Shared | undefined> {
    for (;;) {
      const found = [...shared].find(hasRoom);
      if (found) return found;
      if (performance.now() < unspokenUntil) return undefined;
      connecting ??= connect().finally(() => {
        connecting = undefined;
      });
      if (!(await connecting)) return undefined;
    }
  }

  function ask(one: Shared, request: WatchRequest, signal?: AbortSignal): Promise<IncomingMessage> {
    const what = `${request.method} ${pathOnly(request.path)} at ${host}`;
    const limit = request.timeoutSeconds ?? timeoutSeconds;
    return new Promise((resolve, reject) => {
      const headers = Object.fromEntries(
        Object.entries(request.headers ?? {}).map(([name, value]) => [name.toLowerCase(), value]),
      );
      let stream: ClientHttp2Stream;
      try {
        stream = one.session.request(
          { ...headers, ':method': request.method, ':path': request.path },
          { endStream: true },
        );
      } catch (error) {
        reject(new UnknownOutcomeError(`${what}: ${(error as Error).message}`, { neverSent: true, cause: error }));
        return;
      }
      one.watches += 1;
      const timer =
        limit > 0
          ? setTimeout(() => stream.destroy(new Error(`no answer within ${limit} s`)), limit * 1000)
          : undefined;
      const onAbort = () => stream.close(http2.constants.NGHTTP2_CANCEL);
      signal?.addEventListener('abort', onAbort, { once: true });
      let why: Error | undefined;
      stream.on('error', (error) => {
        why = error;
      });
      stream.once('close', () => {
        one.watches -= 1;
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        if (signal?.aborted) reject(signal.reason);
        else reject(new UnknownOutcomeError(`${what}: ${why?.message ?? 'the stream was closed'}`, { cause: why }));
      });
      stream.once('response', (answer) => {
        clearTimeout(timer);
        resolve(asMessage(stream, answer));
      });
    });
  }

  return {
    async open(request, signal) {
      signal?.throwIfAborted();
      const one = await withRoom();
      signal?.throwIfAborted();
      return one && ask(one, request, signal);
    },
    close() {
      for (const { session } of shared) session.close();
    },
  };
}

/** What readers of an answer look at: status, headers, body, and whether it came to its end. */
function asMessage(stream: ClientHttp2Stream, answer: http2.IncomingHttpHeaders): IncomingMessage {
  const message = Object.assign(stream, { statusCode: Number(answer[':status']), headers: answer, complete: false });
  stream.once('end', () => {
    message.complete = stream.rstCode === http2.constants.NGHTTP2_NO_ERROR;
  });
  return message as unknown as IncomingMessage;
}

const saysNoSuchProtocol = (error: unknown): boolean =>
  error instanceof Error &&
  (error.cause as NodeJS.ErrnoException | undefined)?.code === 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL';
