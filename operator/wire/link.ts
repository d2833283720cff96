/**
 * One link: HTTP/2 on a WebSocket, each stream a raw connection. Who was dialled opens them, the gateway takes them.
 *
 * A stream may hold so much unread that a far reader keeps its pace; the window of the whole link is as wide as HTTP/2 has it, so
 * that a reader which stands still holds up nobody but itself. What that may add up to in memory is bounded by `maxSessionMemory`:
 * past it no further connections are made, those that are there go on.
 */
import http2, {
  type ClientHttp2Stream,
  type Http2Session,
  type IncomingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import type { Duplex } from 'node:stream';
import { fromHeader, maxLinkStreams } from '../api/link.ts';
import type { Timing } from './timing.ts';
import { end, keep } from './tunnel.ts';

/** Of one raw connection. */
const streamWindowBytes = 4 << 20;
const linkWindowBytes = 2 ** 31 - 1;
const maxSessionMebibytes = 512;

/** Faster than a tunnel's: all that a provider serves waits until a link that is dead is known to be. */
const pace = { pingSeconds: 5, silentSeconds: 9, windowBytes: linkWindowBytes };

export const linkSession = {
  settings: {
    enablePush: false,
    initialWindowSize: streamWindowBytes,
    maxConcurrentStreams: maxLinkStreams,
    maxHeaderListSize: 4096,
  },
  maxHeaderListPairs: 16,
  maxSessionMemory: maxSessionMebibytes,
  maxSessionInvalidFrames: 10,
  maxSessionRejectedStreams: 100,
} as const;

export interface Connected {
  readonly connection: Duplex;
  /** What came with the answer. */
  readonly headers: IncomingHttpHeaders;
}

/** The end that opens connections. */
export interface LinkOut {
  /** Open now. */
  readonly connections: number;
  /** False: it is dead, ends in its own time, or is full. */
  readonly usable: boolean;
  /** The other side takes this link out of use; what is open goes on. */
  readonly draining: Promise<void>;
  readonly ended: Promise<void>;
  /** `from`: whom to tell that it is for. Rejects when the other side says no, or nothing in time. */
  connect(from: string, withinSeconds: number): Promise<Connected>;
  /** Takes no more connections; those that are open go on. */
  drain(): void;
  end(): void;
}

/** The end that takes them. */
export interface LinkIn {
  readonly connections: number;
  /** The other side takes this link out of use; what is open goes on. */
  readonly draining: Promise<void>;
  readonly ended: Promise<void>;
  drain(): void;
  end(): void;
}

/** The other side refused the connection, or there is nobody: a fact of now. */
export class NotConnected extends Error {
  override readonly name = 'NotConnected';
}

/** Resolves once the other side has spoken HTTP/2. */
export function openLink(socket: Duplex, clock: Timing, withinSeconds: number): Promise<LinkOut> {
  const session = http2.connect('http://gateway', { ...linkSession, createConnection: () => socket });
  keep(session, socket, clock, pace);
  let connections = 0;
  const room = () => connections < Math.min(maxLinkStreams, session.remoteSettings?.maxConcurrentStreams ?? 0);

  const link: LinkOut = {
    get connections() {
      return connections;
    },
    get usable() {
      return !session.closed && !session.destroyed && room();
    },
    ...endsOf(session),
    drain: () => {
      if (!session.destroyed) session.close();
    },
    end: () => end(session),
    connect(from, seconds) {
      return new Promise((resolve, reject) => {
        if (session.closed || session.destroyed) return reject(new NotConnected('the link has ended'));
        if (!room()) return reject(new NotConnected(`the link carries ${connections} connections: no more fit`));
        const stream = session.request(
          { ':method': 'CONNECT', ':authority': 'gateway', [fromHeader]: from },
          { endStream: false },
        );
        connections += 1;
        stream.once('close', () => {
          connections -= 1;
        });
        rawConnection(stream);
        const cancel = clock.setTimeout(() => fail(new NotConnected(`no answer within ${seconds} s`)), seconds * 1000);
        const fail = (error: Error) => {
          cancel();
          reject(error);
          stream.destroy(error);
        };
        const onError = (error: Error) => fail(new NotConnected(error.message));
        const onClose = () => fail(new NotConnected('the connection was refused'));
        stream.once('error', onError);
        stream.once('close', onClose);
        stream.once('response', (headers) => {
          stream.off('error', onError);
          stream.off('close', onClose);
          if (headers[':status'] !== 200)
            return fail(new NotConnected(String(headers[whyHeader] ?? `answered ${headers[':status']}`).slice(0, 512)));
          cancel();
          resolve({ connection: stream, headers });
        });
      });
    },
  };
  return new Promise((resolve, reject) => {
    const cancel = clock.setTimeout(
      () => session.destroy(new NotConnected(`nothing of HTTP/2 was said within ${withinSeconds} s`)),
      withinSeconds * 1000,
    );
    let why: Error | undefined;
    session.on('error', (error) => {
      why = error;
    });
    session.once('close', () => {
      cancel();
      reject(why ?? new NotConnected('the link ended at once'));
    });
    // Only then is it known how many connections there may be.
    session.once('remoteSettings', () => {
      cancel();
      resolve(link);
    });
  });
}

/** Says why with a refusal. */
const whyHeader = 'gpulease-why';

export interface TakeOptions {
  readonly clock: Timing;
  /**
   * A connection, and for whom. Call `accept` with what is to be told, or `refuse`; until then no byte of it is read. `stream`
   * may be gone by itself.
   */
  readonly onConnection: (asked: {
    readonly from: string;
    readonly stream: Duplex;
    accept(headers?: Record<string, string>): void;
    refuse(status: number, why: string): void;
  }) => void;
}

export function takeLink(socket: Duplex, { clock, onConnection }: TakeOptions): LinkIn {
  const session = http2.performServerHandshake(socket, linkSession as http2.ServerSessionOptions);
  keep(session, socket, clock, pace);
  let connections = 0;
  session.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    rawConnection(stream);
    if (headers[':method'] !== 'CONNECT') return void stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
    connections += 1;
    stream.once('close', () => {
      connections -= 1;
    });
    const from = String(headers[fromHeader] ?? '').slice(0, 64);
    const fits = () => !stream.destroyed && !stream.headersSent;
    onConnection({
      from,
      stream,
      accept(more = {}) {
        if (fits()) stream.respond({ ':status': 200, ...more });
      },
      refuse(status, why) {
        // Without the end of a body: both ends know that there is none after a no.
        if (fits()) stream.respond({ ':status': status, [whyHeader]: printable(why) }, { endStream: true });
      },
    });
  });
  return {
    get connections() {
      return connections;
    },
    ...endsOf(session),
    drain: () => {
      if (!session.destroyed) session.close();
    },
    end: () => end(session),
  };
}

const endsOf = (session: Http2Session) => ({
  draining: new Promise<void>((resolve) => {
    session.once('goaway', () => resolve());
    session.once('close', () => resolve());
  }),
  ended: new Promise<void>((resolve) => session.once('close', () => resolve())),
});

const printable = (words: string): string => words.replace(/[^\x20-\x7e]/g, ' ').slice(0, 512);

/**
 * A stream of HTTP/2 as a connection: TLS on it must not take for an end what was a break. Node shows a stream that was reset, or
 * whose session died, as ended; here it is destroyed with an error instead, before its reader sees that.
 */
function rawConnection(stream: ClientHttp2Stream | ServerHttp2Stream): void {
  // Whoever uses it listens, too; nobody may be there yet, or any more.
  stream.on('error', () => undefined);
  const push = stream.push;
  stream.push = (chunk, encoding) => {
    if (chunk === null && (stream.rstCode ?? 0) !== 0) {
      stream.destroy(new Error('the connection was broken off'));
      return false;
    }
    return push.call(stream, chunk, encoding);
  };
}
