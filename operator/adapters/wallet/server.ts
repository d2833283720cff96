/**
 * The wallet's listener. One caller is let in, by a token of its service account for this audience alone, which the API server
 * confirms; and what it may ask for is judged again behind it (guarded-outbox.ts).
 *
 *   POST /v1/chains/ID/transactions   {key, to, data} → what became of it; the same key again gives the same transaction
 *   GET  /v1/chains/ID/transactions[?known=VERSION]   → all of them
 *   DELETE /v1/chains/ID/transactions?key=KEY         one that is final is forgotten, so that its effect may be wished for again
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Clock } from '../../engine/clock.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';
import type { Payer } from '../chain/guarded-outbox.ts';
import { audience, intentOf, maxRequestBytes, textOf } from './protocol.ts';

export interface WalletServerOptions {
  readonly host: string;
  readonly port: number;
  readonly tls: { readonly cert: string; readonly key: string };
  readonly cluster: Cluster;
  /** As the API server names it. */
  readonly caller: string;
  /** Undefined: a chain that is not ours. Throws while it does not answer. */
  readonly payer: (chainId: number, signal: AbortSignal) => Promise<Payer> | undefined;
  readonly clock: Clock;
  readonly log: Log;
}

export interface WalletServer {
  readonly port: number;
  close(): Promise<void>;
}

/** A token that is revoked counts this much longer. */
const rememberSeconds = 30;
const mostRemembered = 64;
const answerSeconds = 30;
/** One caller with a few connections. */
const mostConnections = 64;

class Problem extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

interface TokenReview extends KubeObject {
  spec: { token: string; audiences: readonly string[] };
  status?: { authenticated?: boolean; audiences?: string[]; user?: { username?: string } };
}

export async function startWalletServer(options: WalletServerOptions): Promise<WalletServer> {
  const { cluster, caller, clock, log } = options;
  const known = new Map<string, { user: string | undefined; untilMs: number }>();

  async function userOf(token: string, signal: AbortSignal): Promise<string | undefined> {
    // Tokens are not kept, not even here.
    const key = createHash('sha256').update(token).digest('hex');
    const before = known.get(key);
    if (before && before.untilMs > clock.monotonicMs()) return before.user;
    const review: TokenReview = { metadata: { name: '' }, spec: { token, audiences: [audience] } };
    const { status } = await cluster.create(resources.tokenReviews, review, signal);
    const good = status?.authenticated === true && status.audiences?.includes(audience) === true;
    const user = good ? status?.user?.username : undefined;
    if (known.size >= mostRemembered) known.delete(known.keys().next().value as string);
    known.set(key, { user, untilMs: clock.monotonicMs() + rememberSeconds * 1000 });
    return user;
  }

  async function authenticate(request: IncomingMessage, signal: AbortSignal): Promise<void> {
    const token = /^Bearer ([A-Za-z0-9._~+/=-]{1,16384})$/i.exec(request.headers.authorization ?? '')?.[1];
    if (token === undefined) throw new Problem(401, 'a token is needed');
    let user: string | undefined;
    try {
      user = await userOf(token, signal);
    } catch (error) {
      log.warn({ error: (error as Error).message }, 'a token could not be reviewed');
      throw new Problem(503, 'the API server does not say whose token this is');
    }
    if (user === undefined) throw new Problem(401, `the token is not one for the audience ${audience}`);
    if (user !== caller) {
      log.warn({ user }, 'somebody else than the operator asked the wallet');
      throw new Problem(403, `${user} may not ask the wallet; it was told to serve ${caller}`);
    }
  }

  async function handle(request: IncomingMessage, signal: AbortSignal): Promise<unknown> {
    const [path = '', query = ''] = (request.url ?? '').split('?', 2);
    const match = /^\/v1\/chains\/([1-9]\d{0,15})\/transactions$/.exec(path);
    // Who is nobody learns nothing, not even what there is.
    await authenticate(request, signal);
    if (!match) throw new Problem(404, 'there is /v1/chains/ID/transactions');
    const opening = options.payer(Number(match[1]), signal);
    if (!opening)
      throw new Problem(404, `the wallet was not given chain ${match[1]}: start it with --chain ${match[1]}=URL`);
    if (request.method === 'GET') {
      const text = textOf(await (await opening).entries(signal));
      const version = createHash('sha256').update(text).digest('base64url').slice(0, 16);
      const same = new URLSearchParams(query).get('known') === version;
      return same ? { version } : { version, entries: JSON.parse(text) };
    }
    if (request.method === 'DELETE') {
      const key = new URLSearchParams(query).get('key') ?? '';
      await (await opening).forget(key, signal).catch((error: Error) => {
        throw new Problem(409, error.message);
      });
      return {};
    }
    if (request.method !== 'POST') throw new Problem(405, 'GET, POST or DELETE');
    const intent = intentOf(await bodyOf(request));
    if (!intent) throw new Problem(400, 'a transaction has key, to and data');
    return (await opening).submit(intent, signal);
  }

  const server = createServer(
    {
      ...options.tls,
      minVersion: 'TLSv1.3',
      requestTimeout: answerSeconds * 1000,
      headersTimeout: 5_000,
      keepAliveTimeout: 60_000,
      maxHeaderSize: 32 * 1024,
      handshakeTimeout: 5_000,
    },
    (request, response) => {
      const left = new AbortController();
      response.once('close', () => left.abort(new Error('the caller has left')));
      // What was asked to be sent is finished although nobody waits for the answer: it will be asked for again.
      const timeout = AbortSignal.timeout(answerSeconds * 1000);
      const signal = request.method === 'POST' ? timeout : AbortSignal.any([left.signal, timeout]);
      handle(request, signal).then(
        (answer) => send(response, 200, answer),
        (error: Error) => {
          if (left.signal.aborted) return;
          const status = error instanceof Problem ? error.status : 503;
          if (status === 503) log.warn({ error: error.message }, 'a request of the operator could not be answered');
          send(response, status, { message: error.message.slice(0, 512) });
        },
      );
    },
  );
  server.maxConnections = mostConnections;
  server.on('tlsClientError', (_error, socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      reject(new Error(`the wallet cannot listen on ${options.host}:${options.port}: ${error.code ?? error.message}`)),
    );
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxRequestBytes) throw new Problem(413, `a request has ${maxRequestBytes} bytes at most`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new Problem(400, 'a request is JSON');
  }
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' }).end(textOf(body));
}
