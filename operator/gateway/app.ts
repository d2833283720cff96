/**
 * The gateway's HTTP server, version 1 of the protocol in api/gateway.ts.
 *
 * It faces the internet: bodies, headers, waiting and connections are bounded, every error is a problem document, and no
 * request can end the process.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Server as HttpsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import Fastify, { type FastifyInstance } from 'fastify';
import { maxBodyBytes } from '../api/gateway.ts';
import type { PodRules } from '../core/allocation/pod-rules.ts';
import { Refusal } from '../core/allocation/refusal.ts';
import { leaveSoon } from '../wire/leave-soon.ts';
import { createAddresses } from './addresses.ts';
import { createAudit } from './audit.ts';
import { bringConnections } from './brought.ts';
import { createCallers } from './callers.ts';
import { watchConnections } from './connections.ts';
import { createNonces } from './nonces.ts';
import { acceptJsonOnly } from './plugins/json.ts';
import { createRateLimit } from './plugins/limits.ts';
import { answerWithProblems } from './plugins/problems.ts';
import { problemOf, problemType } from './problem.ts';
import { batchRoutes } from './routes/batch.ts';
import { createFollowed } from './routes/follow.ts';
import { kubeRoutes } from './routes/kube.ts';
import { leaseRoutes } from './routes/leases.ts';
import { providerRoutes } from './routes/provider.ts';
import { serviceRoutes } from './routes/services.ts';
import { serveStreams } from './routes/streams.ts';
import { alpnProtocols, serveWatches } from './routes/watches.ts';
import type { GatewayLog, GatewayService, NodePages, Upstream } from './service.ts';
import { createTenantCalls } from './tenant-calls.ts';
import { createLeaseTokens } from './tokens.ts';
import { createTunnels, type TunnelOptions } from './tunnels/tunnels.ts';

export interface GatewayOptions {
  readonly service: GatewayService;
  readonly upstream: Upstream;
  /** Without: tenants get no metrics, and are told so. */
  readonly nodePages?: NodePages;
  /** Shared by all replicas, at least 32 bytes. */
  readonly tokenKey: Uint8Array;
  /** URLs under which consumers reach this gateway; an Access for any other is refused. */
  readonly publicUrls: readonly string[];
  readonly now: () => Date;
  readonly log: GatewayLog;
  /** PEM. Without: plain HTTP, for tests and behind a proxy that ends TLS. */
  readonly tls?: { readonly key: string; readonly cert: string };
  /** What the provider chose for the pods of all tenants. Default: Pod Security baseline and nothing more. */
  readonly podRules?: PodRules;
  /** How pods of tenants reach Services of their consumers. Absent: they do not. */
  readonly reverse?: TunnelOptions['reverse'];
  readonly maxConnections?: number;
  /** Connections on which nobody has proved to be a consumer, of one address; of all: half of `maxConnections`. */
  readonly unprovenConnections?: number;
  /** Requests without a token, for each address. */
  readonly requestsPerSecond?: number;
  /** Requests with one, for each account that pays. */
  readonly walletRequestsPerSecond?: number;
  /** Addresses and networks of proxies whose X-Forwarded-For is believed. */
  readonly trustedProxies?: readonly string[];
}

export interface Gateway {
  readonly app: FastifyInstance;
  /** What it answers to, as it was declared. */
  readonly routes: readonly { readonly method: string; readonly url: string }[];
  /**
   * Serves a connection that the link to this place brought. `from`: whom requests without a token are counted for, as it says.
   * False: too many.
   */
  take(connection: Duplex, from: string, place?: string): boolean;
  /** New certificate, without a restart. */
  setTls(tls: { key: string; cert: string }): void;
  /** Tells sessions why, ends streams and watches, waits for ordinary requests. */
  close(): Promise<void>;
}

/** A link brings many callers, whom it names itself: all of them may ask as often as so many addresses may. */
const callersOfPlace = 10;

/** As Go's HTTP server has it, and so every API server and kubelet. */
const maxHeaderBytes = 1024 * 1024;

export function createGateway(options: GatewayOptions): Gateway {
  const { service, upstream, now, log, publicUrls, podRules } = options;
  // Who sends half a request is cut off by the second, not at Node's leisure of half a minute.
  // The command of an exec is part of its URL.
  // Who names no host is told so by us: Node would answer with no word.
  const listener = { connectionsCheckingInterval: 2_000, maxHeaderSize: maxHeaderBytes, requireHostHeader: false };
  const app = Fastify({
    ...(options.tls
      ? {
          https: {
            ...listener,
            ...options.tls,
            minVersion: 'TLSv1.2',
            ALPNProtocols: alpnProtocols,
            handshakeTimeout: 10_000,
            // A socket that is half-closed still carries what the other half has to say.
            allowHalfOpen: true,
          },
        }
      : { http: listener }),
    bodyLimit: maxBodyBytes,
    requestTimeout: 30_000,
    keepAliveTimeout: 75_000,
    connectionTimeout: 0,
    routerOptions: { maxParamLength: 512 },
    return503OnClosing: false,
    forceCloseConnections: true,
    frameworkErrors: (
      _error: unknown,
      _request: unknown,
      reply: { code(status: number): { type(type: string): { send(body: string): void } } },
    ) => {
      reply
        .code(400)
        .type(problemType)
        .send(JSON.stringify(problemOf(400, 'the path is not a valid URL')));
    },
    clientErrorHandler: (error: Error & { code?: string }, socket: Duplex) => answerBroken(error, socket),
  } as object) as unknown as FastifyInstance;

  const server = app.server as Server;
  const { maxConnections = 4096 } = options;
  server.headersTimeout = 10_000;
  server.maxConnections = maxConnections;
  server.maxRequestsPerSocket = 0;
  server.on('connect', (_request, socket: Duplex) => answerByHand(socket, 405, 'this is no proxy'));
  server.on('checkExpectation', (_request: IncomingMessage, response: ServerResponse) => {
    const body = JSON.stringify(problemOf(417, 'of expectations, only 100-continue is met'));
    response.writeHead(417, { 'content-type': problemType, connection: 'close' }).end(body);
  });

  const routes: { method: string; url: string }[] = [];
  app.addHook('onRoute', ({ method, url }) => {
    for (const one of [method].flat()) routes.push({ method: one, url });
  });
  let closing = false;
  app.addHook('onRequest', async (request, reply) => {
    if (closing) {
      reply.header('connection', 'close');
      throw new Refusal(503, 'the gateway restarts: try again', { retryAfterSeconds: 2 });
    }
    if (request.raw.httpVersion !== '1.0' && !request.headers.host)
      throw new Refusal(400, 'the Host header is missing');
  });

  acceptJsonOnly(app);
  answerWithProblems(app, log);
  app.addHook('onSend', async (_request, reply) => {
    reply.header('cache-control', 'no-store');
    reply.header('x-content-type-options', 'nosniff');
  });

  const tokens = createLeaseTokens(options.tokenKey, now);
  const perSecond = options.requestsPerSecond ?? 50;
  const walletPerSecond = options.walletRequestsPerSecond ?? 500;
  const addresses = createAddresses(options.trustedProxies);
  const connections = watchConnections(server, addresses, {
    ofAddress: options.unprovenConnections ?? 1024,
    ofAll: Math.ceil(maxConnections / 2),
  });
  const callers = createCallers({
    tokens,
    addresses,
    connections,
    ofAddress: createRateLimit({
      ...{ perSecond, burst: perSecond * 4, now },
      detail: 'too many requests from this address: wait a little',
    }),
    ofPlace: createRateLimit({
      ...{ perSecond: perSecond * callersOfPlace, burst: perSecond * 4 * callersOfPlace, now },
      detail: 'too many requests come over this link: wait a little',
    }),
    // A burst of pods is many calls at once, and then none for long.
    ofWallet: createRateLimit({
      ...{ perSecond: walletPerSecond, burst: walletPerSecond * 10, now },
      detail: 'too many requests of this account: wait a little',
    }),
    walletOf: (leaseId) => service.consumerOf(leaseId),
  });
  const audit = createAudit(log, callers);
  app.addHook('onResponse', async (request, reply) => {
    audit(request.raw, reply.statusCode, reply.elapsedTime / 1000);
  });

  providerRoutes(app, service, callers);
  const followed = createFollowed(service);
  leaseRoutes(app, { service, followed, tokens, callers, nonces: createNonces(now), publicUrls, now });
  const calls = createTenantCalls({ service, upstream, podRules });
  kubeRoutes(app, { service, callers, calls, nodePages: options.nodePages });
  batchRoutes(app, { service, callers, calls, audit, log });
  serviceRoutes(app, { service, callers });
  const tunnels = createTunnels({ service, callers, upstream, log, reverse: options.reverse });
  const streams = serveStreams(server, { service, callers, upstream, log, audit, tunnels });
  const watches = options.tls
    ? serveWatches(server as HttpsServer, { service, followed, callers, upstream, log })
    : undefined;

  const brought = bringConnections(server, { tls: options.tls, maxConnections: server.maxConnections, connections });

  return {
    app,
    routes,
    take: (connection, from, place = from) => brought.take(connection, from, place),
    setTls(tls) {
      brought.setTls(tls);
      if ('setSecureContext' in server && typeof server.setSecureContext === 'function') server.setSecureContext(tls);
    },
    async close() {
      closing = true;
      followed.end();
      await streams.end();
      watches?.end();
      tunnels.end();
      const closed = app.close();
      // What is being answered has until now; a link has connections that stay for ever otherwise.
      await closed;
      brought.end();
    },
  };
}

/** What the HTTP parser gives up on: no request yet, so an answer by hand. */
function answerBroken(error: Error & { code?: string }, socket: Duplex): void {
  // Who did not even finish the TLS handshake can be told nothing: what is written waits for it, and holds the socket for ever.
  // What follows the first mistake is as wrong, and was answered with it.
  if (answered.has(socket)) return;
  const ofHttp = error.code?.startsWith('HPE_') || error.code === 'ERR_HTTP_REQUEST_TIMEOUT';
  if (!ofHttp || !socket.writable) {
    socket.destroy();
    return;
  }
  const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400;
  answerByHand(
    socket,
    status,
    status === 408 ? 'the request took too long to arrive' : 'this is not a valid HTTP request',
  );
}

const answered = new WeakSet<Duplex>();

function answerByHand(socket: Duplex, status: number, detail: string): void {
  answered.add(socket);
  const problem = problemOf(status, detail);
  const body = JSON.stringify(problem);
  socket.on('error', () => socket.destroy());
  socket.end(
    `HTTP/1.1 ${status} ${problem.title}\r\ncontent-type: ${problemType}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
    () => leaveSoon(socket),
  );
}
