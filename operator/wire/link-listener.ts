/**
 * Where links are dialled: a TLS server that upgrades to WebSocket and does nothing else. It faces the internet, so handshakes,
 * headers, addresses and connections are bounded, and who has not said who it is by ten seconds is gone. Until then a connection
 * is one of few that its address may have, so that nobody who only holds them open keeps gateways out.
 */
import type { IncomingMessage } from 'node:http';
import https from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { linkPath, linkProtocol, reachPath, reachProtocol } from '../api/link.ts';
import { countedAs } from './counted-as.ts';
import { admit, type Doorkeeper, NotAdmitted } from './introduction.ts';
import { openLink } from './link.ts';
import type { Links } from './links.ts';
import { createPace } from './pace.ts';
import type { Timing } from './timing.ts';
import { createUnproven } from './unproven.ts';
import { acceptWebSocket, refuseUpgrade, type WebSocketStream } from './websocket.ts';

export interface LinkLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  debug(fields: object, message: string): void;
}

export interface LinkListenerOptions {
  readonly host: string;
  readonly port: number;
  /** PEM. */
  readonly tls: { readonly key: string; readonly cert: string };
  readonly keeper: Doorkeeper;
  readonly links: Links;
  readonly clock: Timing;
  readonly log: LinkLog;
  readonly maxConnections?: number;
  /** Of one address, before they have said who they are; of all: half of `maxConnections`. */
  readonly unprovenConnections?: number;
  /** New connections of one address. */
  readonly perSecond?: number;
  readonly burst?: number;
  /** A consumer asks for a provider. Absent: nobody may. Answers why not, or undefined when it took the connection. */
  readonly onReach?: (provider: string, from: string) => string | ((socket: WebSocketStream) => void);
  readonly onRefused?: (why: 'rate' | 'registration' | 'full') => void;
}

export interface LinkListener {
  readonly port: number;
  /** Connections that are open, in whatever state. */
  readonly connections: number;
  setTls(tls: { key: string; cert: string }): void;
  /** No new ones. Those that are open are the caller's to end. */
  close(): Promise<void>;
}

const withinSeconds = 10;

export async function startLinkListener(options: LinkListenerOptions): Promise<LinkListener> {
  const { keeper, links, clock, log, maxConnections = 4096 } = options;
  const pace = createPace({
    perSecond: options.perSecond ?? 5,
    burst: options.burst ?? 50,
    monotonicMs: () => clock.monotonicMs(),
  });
  const sockets = new Set<Duplex>();
  const unproven = createUnproven({
    ofCaller: options.unprovenConnections ?? 128,
    ofAll: Math.ceil(maxConnections / 2),
  });
  /** By both ends: below TLS it is another object than above. */
  const keyOf = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress}|${remotePort}`;
  const addressOf = ({ remoteAddress = '' }: Socket) => remoteAddress.replace(/^::ffff:/, '');

  const server = https.createServer(
    {
      ...options.tls,
      minVersion: 'TLSv1.2',
      ALPNProtocols: ['http/1.1'],
      handshakeTimeout: withinSeconds * 1000,
      headersTimeout: withinSeconds * 1000,
      requestTimeout: withinSeconds * 1000,
      connectionsCheckingInterval: 2000,
      keepAliveTimeout: 1000,
      maxHeaderSize: 16 * 1024,
    },
    (request, response) => {
      // For load balancers. There is nothing else to be had without an upgrade.
      const healthy = request.url === '/healthz' && request.method === 'GET';
      response.writeHead(healthy ? 200 : 404, { 'content-type': 'text/plain', connection: 'close' });
      response.end(healthy ? 'ok\n' : 'links are made here, by an upgrade to WebSocket\n');
    },
  );
  server.maxConnections = maxConnections;
  server.on('drop', () => options.onRefused?.('full'));
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => sockets.delete(socket));
    unproven.add(keyOf(socket), socket, countedAs(addressOf(socket)));
  });
  server.on('secureConnection', (socket) => socket.on('error', () => socket.destroy()));

  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const from = addressOf(request.socket);
    const key = keyOf(request.socket);
    if (!pace.take(countedAs(from))) {
      options.onRefused?.('rate');
      return refuseUpgrade(socket, 429, 'too many connections from this address');
    }
    const path = (request.url ?? '').split('?', 1)[0]!;
    if (path === linkPath) {
      const stream = acceptWebSocket(request, socket, head, linkProtocol);
      if (stream) void linked(stream, from, key);
      return;
    }
    const provider = path.startsWith(reachPath) ? path.slice(reachPath.length) : '';
    if (!options.onReach || !/^0x[0-9a-fA-F]{40}$/.test(provider))
      return refuseUpgrade(socket, 404, `there is no such path here: gateways dial ${linkPath}`);
    const taken = options.onReach(provider.toLowerCase(), from);
    if (typeof taken === 'string') {
      options.onRefused?.('full');
      return refuseUpgrade(socket, 503, taken);
    }
    const stream = acceptWebSocket(request, socket, head, reachProtocol);
    if (stream) {
      stream.on('error', () => undefined);
      // Nobody proves anything here: from now on it is one of the consumers, who have bounds of their own.
      unproven.prove(key);
      taken(stream);
    }
  });

  async function linked(stream: WebSocketStream, from: string, key: string): Promise<void> {
    stream.on('error', () => undefined);
    try {
      const { provider, instance } = await admit(stream, keeper, clock, from);
      unproven.prove(key);
      const link = await openLink(stream, clock, withinSeconds);
      links.add(provider, instance, from, link);
      log.info({ provider, from }, 'a gateway has dialled in');
      void link.ended.then(() => log.info({ provider, from }, 'the link of a gateway has ended'));
    } catch (error) {
      const refused = error instanceof NotAdmitted;
      if (refused) options.onRefused?.('registration');
      log[refused ? 'warn' : 'debug']({ from, error: (error as Error)?.message }, 'a link was not made');
      // Who was refused is told before it is gone.
      const cancel = clock.setTimeout(() => stream.destroy(), refused ? 2000 : 0);
      stream.once('close', cancel);
    }
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  server.on('error', (error) => log.warn({ error: error.message }, 'the listener for links has a problem'));

  return {
    port: (server.address() as AddressInfo).port,
    get connections() {
      return sockets.size;
    },
    setTls: (tls) => server.setSecureContext(tls),
    close() {
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeIdleConnections();
      });
    },
  };
}
