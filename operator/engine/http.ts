/**
 * One HTTP exchange with an API server. Every way in which an answer can fail to arrive becomes an UnknownOutcomeError
 * here, so that nobody above has to know socket errors.
 */
import http, { type IncomingMessage } from 'node:http';
import https from 'node:https';
import type { Duplex } from 'node:stream';
import type { Access } from './credentials.ts';
import { UnknownOutcomeError } from './errors.ts';
import { hearOut } from './hear-out.ts';

export interface Outgoing {
  readonly method: string;
  /** Absolute, with query. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string | string[]>>;
  readonly body?: string | Buffer;
  /** Until the headers of the answer; 0 waits as long as the caller's signal lets it. */
  readonly timeoutSeconds: number;
}

export type Answer = { response: IncomingMessage; socket?: undefined } | Upgraded;
export interface Upgraded {
  readonly response: IncomingMessage;
  readonly socket: Duplex;
  readonly head: Buffer;
}

/** `request.reusedSocket` does not tell: it is not set where a request has waited for the one before it. */
const connected = new WeakSet<Duplex>();

/** Sends, and resolves with the headers of the answer. The signal also ends the answer's body. */
export function send(server: URL, access: Access, outgoing: Outgoing, signal?: AbortSignal): Promise<Answer> {
  const { method, timeoutSeconds } = outgoing;
  const what = `${method} ${pathOnly(outgoing.path)}`;
  return new Promise<Answer>((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    let reachedServer = false;
    let timer: NodeJS.Timeout | undefined;
    const secure = server.protocol === 'https:';
    const request = (secure ? https : http).request({
      host: server.hostname.replace(/^\[|\]$/g, ''),
      port: server.port || (secure ? 443 : 80),
      method,
      path: pathAt(server, outgoing.path),
      headers: { ...outgoing.headers, ...access.headers },
      agent: access.agent,
    });

    const onAbort = () => request.destroy(asError(signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    const answered = (response: IncomingMessage) => {
      clearTimeout(timer);
      // From here on, errors of the request are errors of the body, and its reader hears of them.
      request.on('error', () => response.destroy());
      response.once('close', () => signal?.removeEventListener('abort', onAbort));
    };
    const fail = (error: unknown) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      if (signal?.aborted) return reject(signal.reason);
      reject(
        error instanceof UnknownOutcomeError
          ? error
          : new UnknownOutcomeError(`${what} at ${server.host}: ${wordsOf(error)}`, {
              neverSent: !reachedServer,
              cause: error,
            }),
      );
    };

    request.once('socket', (socket) => {
      reachedServer = connected.has(socket);
      // It will not connect again: a listener would stay on it for ever, and all that it knows with it.
      if (reachedServer) return;
      socket.once(secure ? 'secureConnect' : 'connect', () => {
        reachedServer = true;
        connected.add(socket);
      });
    });
    request.once('error', fail);
    request.once('response', (response) => {
      answered(response);
      resolve({ response });
    });
    request.once('upgrade', (response, socket, head) => {
      answered(response);
      signal?.addEventListener('abort', () => socket.destroy(), { once: true });
      // A reset before the caller listens would end the process; 'close' tells the caller all the same.
      socket.on('error', () => socket.destroy());
      (socket as NodeJS.Socket & Duplex & { setNoDelay?(on: boolean): void }).setNoDelay?.(true);
      resolve({ response, socket: hearOut(socket), head });
    });
    if (timeoutSeconds > 0) {
      timer = setTimeout(() => {
        request.destroy(
          new UnknownOutcomeError(`${what} at ${server.host}: no answer within ${timeoutSeconds} s`, {
            neverSent: !reachedServer,
          }),
        );
      }, timeoutSeconds * 1000);
    }
    request.end(outgoing.body);
  });
}

/** Reads a body to its end, at most `maxBytes` of it. Handlers and no iterator, as every call does it. */
export function readBody(
  response: IncomingMessage,
  what: string,
  { maxBytes, timeoutSeconds }: { maxBytes: number; timeoutSeconds: number },
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const settle = () => {
      clearTimeout(timer);
      response.off('data', take);
      response.off('close', cut);
    };
    const fail = (why: string, cause?: unknown) => {
      settle();
      response.destroy();
      reject(new UnknownOutcomeError(`${what}: the answer ${why}`, { cause }));
    };
    const cut = () => fail('broke off');
    const timer = setTimeout(() => fail(`did not end within ${timeoutSeconds} s`), timeoutSeconds * 1000);
    const take = (chunk: Buffer) => {
      size += chunk.length;
      if (size > maxBytes) fail(`is longer than ${maxBytes} bytes`);
      else chunks.push(chunk);
    };
    if (response.closed) return cut();
    response.on('data', take);
    response.on('error', (error) => fail(`broke off: ${wordsOf(error)}`, error));
    response.once('close', cut);
    response.once('end', () => {
      if (!response.complete) return cut();
      settle();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks));
    });
  });
}

/** Anything but JSON is kept as text, a page of it: it may be a proxy's explanation. */
export function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text.slice(0, 2048);
  }
}

/** An API server may live below a path of its own. */
export const pathAt = (server: URL, path: string): string => server.pathname.replace(/\/$/, '') + path;

/** Queries hold selectors, and sometimes more than a log should: only the path is named in errors. */
export const pathOnly = (path: string): string => path.split('?', 1)[0] ?? path;

const asError = (reason: unknown): Error => (reason instanceof Error ? reason : new Error(String(reason)));

function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown error';
  const { code } = error as NodeJS.ErrnoException;
  return code && !error.message.includes(code) ? `${code}: ${error.message}` : error.message;
}
