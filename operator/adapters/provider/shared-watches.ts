/**
 * The watches of all leases of one gateway, over few connections: HTTP/2, where the gateway speaks it. A connection of its own
 * for each watch costs 70 KB here and as much there, and there are two a lease.
 *
 * Watches only: a log whose reader stands still would hold up its neighbours once it has filled the connection's window.
 */
import type { IncomingMessage } from 'node:http';
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { pathOnly } from '../../engine/http.ts';
import type { Dial } from './dial.ts';
import { UnknownOutcomeError } from './errors.ts';
import type { HttpRequest } from './http.ts';

export interface SharedWatches {
  /** The answer's headers are there, its body follows. Undefined: this gateway does not speak HTTP/2. */
  open(request: HttpRequest, signal?: AbortSignal): Promise<IncomingMessage | undefined>;
  /** Ends what idles. Watches in use end by themselves. */
  close(): void;
}

interface Shared {
  readonly session: ClientHttp2Session;
  watches: number;
}

/** A gateway that does not speak it is asked again after so long: it may have been replaced by a newer one. */
const askAgainMs = 10 * 60_000;
const idleMs = 30_000;
/** What may be on its way unread. Few bytes would bound a burst of pods by the distance to the provider. */
const windowBytes = 4 * 1024 * 1024;
/** However many the gateway allows on one connection. */
const mostOnOne = 2000;

export function createSharedWatches(options: { host: string; dial: Dial; timeoutSeconds: number }): SharedWatches {
  const { host, dial, timeoutSeconds } = options;
  const shared = new Set<Shared>();
  let connecting: Promise<Shared | undefined> | undefined;
  let unspokenUntil = 0;

  const hasRoom = ({ session, watches }: Shared): boolean =>
    !session.closed &&
    !session.destroyed &&
    watches < Math.min(mostOnOne, session.remoteSettings?.maxConcurrentStreams ?? mostOnOne);

  async function connect(): Promise<Shared | undefined> {
    let socket: Awaited<ReturnType<Dial>>;
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
        session.setLocalWindowSize(windowBytes * 4);
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

  function ask(one: Shared, request: HttpRequest, signal?: AbortSignal): Promise<IncomingMessage> {
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
