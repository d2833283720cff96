/** HTTP/1.1 over whatever `dial` gives: calls with bounded answers, streams, upgrades; and watches, which share connections. */
import http, { type IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { hearOut } from '../../engine/hear-out.ts';
import { pathOnly } from '../../engine/http.ts';
import { createSharedWatches } from '../shared-watches.ts';
import type { Dial } from './dial.ts';
import { IdentityMismatchError, UnknownOutcomeError } from './errors.ts';
import { keepSpare } from './spare.ts';

export interface HttpRequest {
  readonly method: string;
  /** Absolute, with query. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string | string[]>>;
  readonly body?: string | Buffer;
  /** Until the headers of the answer; 0 waits as long as the caller's signal lets it. */
  readonly timeoutSeconds?: number;
}

export type Upgraded =
  | { readonly response: IncomingMessage; readonly socket: Duplex; readonly head: Buffer }
  | { readonly response: IncomingMessage; readonly socket?: undefined; readonly head?: undefined };

export interface HttpClient {
  /** No status is an error. A call shares pooled connections, a stream has its own, a watch shares one with other watches. */
  send(request: HttpRequest, kind: 'call' | 'stream' | 'watch', signal?: AbortSignal): Promise<IncomingMessage>;
  upgrade(request: HttpRequest, signal?: AbortSignal): Promise<Upgraded>;
  /** Ends idle connections. Those in use end by themselves. */
  close(): void;
}

export interface HttpClientOptions {
  readonly host: string;
  readonly dial: Dial;
  readonly timeoutSeconds: number;
  /** After a stream was opened, a connection is held ready for the next one. False. */
  readonly spare?: boolean;
}

/** Node's own agent, with the dialling handed in. */
class DialAgent extends http.Agent {
  readonly #dial: Dial;
  constructor(dial: Dial, options: http.AgentOptions) {
    super(options);
    this.#dial = dial;
  }
  override createConnection(_: unknown, callback?: (error: Error | null, stream: Duplex) => void): undefined {
    this.#dial().then(
      (stream) => callback?.(null, stream),
      (error: Error) => callback?.(error, undefined as unknown as Duplex),
    );
    return undefined;
  }
}

export function createHttpClient(options: HttpClientOptions): HttpClient {
  const { host, dial, timeoutSeconds } = options;
  // As many are kept as there may be: a handshake costs more than the call. The gateway says when it drops idle ones.
  const calls = new DialAgent(dial, { keepAlive: true, maxSockets: 32, maxFreeSockets: 32 });
  // A stream owns its connection, and takes it along when it ends.
  const spare = options.spare ? keepSpare(dial) : undefined;
  const streams = new DialAgent(spare?.dial ?? dial, { keepAlive: false });
  const watches = createSharedWatches({ host, dial, timeoutSeconds });

  function exchange(request: HttpRequest, agent: http.Agent, signal?: AbortSignal): Promise<Upgraded> {
    const what = `${request.method} ${pathOnly(request.path)}`;
    const limit = request.timeoutSeconds ?? timeoutSeconds;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      let connected = false;
      const outgoing = http.request({
        agent,
        method: request.method,
        path: request.path,
        headers: {
          ...request.headers,
          Host: host,
          ...(request.body === undefined ? {} : { 'Content-Length': String(Buffer.byteLength(request.body)) }),
        },
      });
      const timer =
        limit > 0
          ? setTimeout(() => {
              dropIdle(agent);
              giveUp(
                new UnknownOutcomeError(`${what} at ${host}: no answer within ${limit} s`, { neverSent: !connected }),
              );
            }, limit * 1000)
          : undefined;
      const onAbort = () => giveUp(asError(signal?.reason));
      signal?.addEventListener('abort', onAbort, { once: true });
      const settle = () => {
        clearTimeout(timer);
        // From here on, errors of the request are errors of the body, and its reader hears of them.
        outgoing.removeListener('error', fail);
      };
      const fail = (error: Error & { code?: string }) => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        if (signal?.aborted) return reject(signal.reason);
        if (error instanceof UnknownOutcomeError || error instanceof IdentityMismatchError) return reject(error);
        // A pooled connection that the other side had just closed: it never read the request.
        const stale = outgoing.reusedSocket && error.code === 'ECONNRESET' && request.method === 'GET';
        if (stale) return void exchange(request, agent, signal).then(resolve, reject);
        reject(
          new UnknownOutcomeError(`${what} at ${host}: ${error.message || error.code}`, {
            neverSent: !connected,
            cause: error,
          }),
        );
      };
      /** Told at once: a request that is still being dialled for says nothing of its end before that has ended, too. */
      const giveUp = (error: Error) => {
        outgoing.destroy(error);
        fail(error);
      };
      outgoing.once('socket', () => {
        connected = true;
      });
      outgoing.on('error', fail);
      outgoing.once('response', (response) => {
        settle();
        outgoing.on('error', () => response.destroy());
        response.once('close', () => signal?.removeEventListener('abort', onAbort));
        resolve({ response });
      });
      outgoing.once('upgrade', (response, socket: Duplex, head: Buffer) => {
        settle();
        // A reset before the caller listens would end the process; 'close' tells the caller all the same.
        socket.on('error', () => socket.destroy());
        signal?.removeEventListener('abort', onAbort);
        const onLateAbort = () => socket.destroy();
        signal?.addEventListener('abort', onLateAbort, { once: true });
        socket.once('close', () => signal?.removeEventListener('abort', onLateAbort));
        resolve({ response, socket: hearOut(socket), head });
      });
      outgoing.end(request.body);
    });
  }

  return {
    async send(request, kind, signal) {
      const shared = kind === 'watch' ? await watches.open(request, signal) : undefined;
      if (shared) return shared;
      const answer = await exchange(request, kind === 'call' ? calls : streams, signal);
      if (answer.socket) {
        answer.socket.destroy();
        throw new UnknownOutcomeError(`${request.method} ${pathOnly(request.path)}: an upgrade nobody asked for`);
      }
      return answer.response;
    },
    async upgrade(request, signal) {
      const answer = await exchange(request, streams, signal);
      if (answer.socket) spare?.opened();
      return answer;
    },
    close() {
      calls.destroy();
      spare?.close();
      watches.close();
    },
  };
}

/** Where one connection fell silent, those that are kept beside it may have, too: the next call would wait in vain again. */
function dropIdle(agent: http.Agent): void {
  for (const idle of Object.values(agent.freeSockets)) for (const socket of [...(idle ?? [])]) socket.destroy();
}

const asError = (reason: unknown): Error => (reason instanceof Error ? reason : new Error(String(reason)));
