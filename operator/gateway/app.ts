/**
 * The gateway's HTTP server, version 1 of the protocol in api/gateway.ts.
 *
 * It faces the internet: bodies, headers, waiting and connections are bounded, every error is a problem document, and no
 * request can end the process.
 */
import type { Server } from 'node:http';
import type { Server as HttpsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import Fastify, { type FastifyInstance } from 'fastify';
import { maxBodyBytes } from '../api/gateway.ts';
import type { PodRules } from '../core/allocation/pod-rules.ts';
import { createNonces } from './nonces.ts';
import { acceptJsonOnly } from './plugins/json.ts';
import { createRateLimit } from './plugins/limits.ts';
import { answerWithProblems } from './plugins/problems.ts';
import { problemOf, problemType } from './problem.ts';
import { kubeRoutes } from './routes/kube.ts';
import { leaseRoutes } from './routes/leases.ts';
import { providerRoutes } from './routes/provider.ts';
import { serviceRoutes } from './routes/services.ts';
import { serveStreams } from './routes/streams.ts';
import { alpnProtocols, serveWatches } from './routes/watches.ts';
import type { GatewayLog, GatewayService, NodePages, Upstream } from './service.ts';
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
  /** Requests without a token, for each address. */
  readonly requestsPerSecond?: number;
}

export interface Gateway {
  readonly app: FastifyInstance;
  /** New certificate, without a restart. */
  setTls(tls: { key: string; cert: string }): void;
  /** Ends streams and watches, waits for ordinary requests. */
  close(): Promise<void>;
}

/** As Go's HTTP server has it, and so every API server and kubelet. */
const maxHeaderBytes = 1024 * 1024;

export function createGateway(options: GatewayOptions): Gateway {
  const { service, upstream, now, log, publicUrls, podRules } = options;
  // Who sends half a request is cut off by the second, not at Node's leisure of half a minute.
  // The command of an exec is part of its URL.
  const listener = { connectionsCheckingInterval: 2_000, maxHeaderSize: maxHeaderBytes };
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
    return503OnClosing: true,
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
  server.headersTimeout = 10_000;
  server.maxConnections = options.maxConnections ?? 4096;
  server.maxRequestsPerSocket = 0;

  acceptJsonOnly(app);
  answerWithProblems(app, log);
  app.addHook('onSend', async (_request, reply) => {
    reply.header('cache-control', 'no-store');
    reply.header('x-content-type-options', 'nosniff');
  });

  const tokens = createLeaseTokens(options.tokenKey, now);
  const perSecond = options.requestsPerSecond ?? 50;
  const limit = createRateLimit({ perSecond, burst: perSecond * 4, now });
  providerRoutes(app, service, limit);
  leaseRoutes(app, { service, tokens, nonces: createNonces(now), limit, publicUrls, now });
  kubeRoutes(app, { service, tokens, upstream, nodePages: options.nodePages, podRules });
  serviceRoutes(app, { service, tokens });
  const tunnels = createTunnels({ service, tokens, upstream, log, reverse: options.reverse });
  const streams = serveStreams(server, { service, tokens, upstream, podRules, log, tunnels });
  const watches = options.tls ? serveWatches(server as HttpsServer, { service, tokens, upstream, log }) : undefined;

  return {
    app,
    setTls(tls) {
      if ('setSecureContext' in server && typeof server.setSecureContext === 'function') server.setSecureContext(tls);
    },
    async close() {
      streams.end();
      watches?.end();
      tunnels.end();
      await app.close();
    },
  };
}

/** What the HTTP parser gives up on: no request yet, so an answer by hand. */
function answerBroken(error: Error & { code?: string }, socket: Duplex): void {
  // Who did not even finish the TLS handshake can be told nothing: what is written waits for it, and holds the socket for ever.
  const ofHttp = error.code?.startsWith('HPE_') || error.code === 'ERR_HTTP_REQUEST_TIMEOUT';
  if (!ofHttp || !socket.writable) {
    socket.destroy();
    return;
  }
  const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400;
  const problem = problemOf(
    status,
    status === 408 ? 'the request took too long to arrive' : 'this is not a valid HTTP request',
  );
  const body = JSON.stringify(problem);
  socket.end(
    `HTTP/1.1 ${status} ${problem.title}\r\ncontent-type: ${problemType}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
    // Not when the caller closes its half, which it may never do.
    () => socket.destroy(),
  );
}
