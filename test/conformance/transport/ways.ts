/**
 * The three ways to a gateway, each on real sockets: straight, over a link, by way of a relay. Between any two parts there is a
 * wire that a test can cut. Beyond TLS, all three end at the same server.
 */
import { createHash, randomBytes } from 'node:crypto';
import http2 from 'node:http2';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { type ChainKey, keyFromHex } from '../../../operator/adapters/chain/key.ts';
import {
  gatewayKeyStatement,
  signRegistration,
  verifyRegistration,
} from '../../../operator/adapters/chain/link-proofs.ts';
import { tlsTo } from '../../../operator/adapters/provider/dial.ts';
import { createHttpClient, type HttpClient } from '../../../operator/adapters/provider/http.ts';
import { createRoutes, type Route } from '../../../operator/adapters/provider/routes.ts';
import { audienceOf, gatewayKeyHeader } from '../../../operator/api/link.ts';
import type { GpuProvider } from '../../../operator/api/provider.ts';
import { bringConnections } from '../../../operator/gateway/brought.ts';
import { alpnProtocols } from '../../../operator/gateway/routes/watches.ts';
import { type RelayLimits, startRelay } from '../../../operator/relay/relay.ts';
import { type Offered, offerGateway } from '../../../operator/wire/dial-out.ts';
import { type LinkListener, startLinkListener } from '../../../operator/wire/link-listener.ts';
import { createLinks, type Links } from '../../../operator/wire/links.ts';
import { systemTiming, type Timing } from '../../../operator/wire/timing.ts';
import { provider as builtProvider } from '../../support/builders.ts';
import { type CuttingProxy, startCuttingProxy } from '../../support/cutting-proxy.ts';
import { type Authority, authority, type Pair } from '../../unit/adapters/provider/tls.ts';

export const keys = { provider: keyFromHex('1'.repeat(64)), stranger: keyFromHex('2'.repeat(64)) };
export const silent = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const now = () => new Date();

/** Time goes by so many times as fast. */
export const timing = (factor: number): Timing => ({
  monotonicMs: () => performance.now() * factor,
  setTimeout: (fn, ms) => systemTiming.setTimeout(fn, ms / factor),
});

/** Four seconds of keepalive pass in one: for paths on which nothing is heard any more. */
export const hasty = timing(4);

export interface EndServer {
  readonly server: https.Server;
  readonly pair: Pair;
  readonly take: (connection: Duplex, from: string) => boolean;
  /** TLS connections that are open. */
  readonly open: Set<Duplex>;
  /** Upgrades that ended, in order: whether both directions did so in order. */
  readonly ended: { readonly path: string; readonly inOrder: boolean }[];
  /** Written by /flood, read by nobody. */
  flooded: number;
  close(): void;
}

/** What a gateway is, as far as bytes go: HTTP/1.1 with upgrades, HTTP/2 for watches, over TLS. */
export async function endServer(ca: Authority): Promise<EndServer> {
  const pair = await ca.issue([{ CN: ['gateway'] }], { san: [{ type: 'dns', value: 'gpu.example.com' }] });
  const open = new Set<Duplex>();
  const it = { flooded: 0, ended: [] as { path: string; inOrder: boolean }[] };
  const server = https.createServer(
    { key: pair.key, cert: pair.cert, ALPNProtocols: alpnProtocols, allowHalfOpen: true } as https.ServerOptions,
    (request, response) => {
      response.on('error', () => response.destroy());
      if (request.url === '/flood') {
        // As fast as it is taken.
        const chunk = Buffer.alloc(65_536, 1);
        const more = () => {
          while (!response.destroyed && response.write(chunk)) it.flooded += chunk.length;
          it.flooded += chunk.length;
        };
        response.on('drain', more);
        more();
        return;
      }
      const bytes = /^\/bytes\/(\d+)$/.exec(request.url ?? '');
      if (bytes) {
        response.writeHead(200, { 'content-length': bytes[1]! });
        const chunk = Buffer.alloc(65_536, 7);
        let left = Number(bytes[1]);
        const more = () => {
          while (left > 0) {
            const piece = left < chunk.length ? chunk.subarray(0, left) : chunk;
            left -= piece.length;
            if (!response.write(piece)) return void response.once('drain', more);
          }
          response.end();
        };
        more();
        return;
      }
      const paced = /^\/paced\/(\d+)\/(\d+)$/.exec(request.url ?? '');
      if (paced) {
        // As a line of so many bytes a second would bring them, as far as the reader takes them.
        const [perSecond, total] = [Number(paced[1]), Number(paced[2])];
        const chunk = Buffer.alloc(65_536, 7);
        const from = performance.now();
        let sent = 0;
        const more = () => {
          const due = Math.min(total, ((performance.now() - from) / 1000) * perSecond);
          while (sent < due) {
            const piece = chunk.subarray(0, Math.min(chunk.length, total - sent));
            sent += piece.length;
            // The buffer is full: on as soon as it is not, with what has become due by then.
            if (!response.write(piece) && sent < total) return void response.once('drain', more);
          }
          if (sent < total && !response.destroyed) return void setTimeout(more, 1);
          response.end();
        };
        more();
        return;
      }
      if (request.url === '/from') return void response.end(String(request.socket.remoteAddress));
      const hash = createHash('sha256');
      let size = 0;
      request.on('data', (chunk: Buffer) => {
        size += chunk.length;
        hash.update(chunk);
      });
      request.on('end', () => response.end(JSON.stringify({ method: request.method, size, hash: hash.digest('hex') })));
    },
  );
  const http1 = server.listeners('secureConnection') as ((socket: Duplex) => void)[];
  server.removeAllListeners('secureConnection');
  server.on('secureConnection', (socket) => {
    open.add(socket);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => open.delete(socket));
    if (socket.alpnProtocol !== 'h2') {
      for (const listener of http1) listener.call(server, socket);
      return;
    }
    socket.once('end', () => socket.destroy());
    const session = http2.performServerHandshake(socket, { settings: { maxConcurrentStreams: 1000 } });
    session.on('error', () => session.destroy());
    session.on('stream', (stream, headers) => {
      stream.on('error', () => stream.destroy());
      stream.respond({ ':status': 200 });
      let at = 0;
      const timer = setInterval(() => stream.write(`${headers[':path']} ${at++}\n`), 10);
      stream.once('close', () => clearInterval(timer));
    });
  });
  server.on('upgrade', (request, socket: Duplex, head) => {
    socket.on('error', () => socket.destroy());
    if (head.length > 0) socket.unshift(head);
    socket.write('HTTP/1.1 101 Switching Protocols\r\nupgrade: test\r\nconnection: Upgrade\r\n\r\n');
    const path = request.url ?? '';
    socket.once('close', () =>
      it.ended.push({ path, inOrder: socket.readableEnded && socket.writableFinished && !socket.errored }),
    );
    if (path === '/echo') {
      socket.pipe(socket);
      return;
    }
    // As exec does: reads its input to the end, says what it was, and leaves.
    if (path === '/exec') {
      const hash = createHash('sha256');
      socket.on('data', (chunk) => hash.update(chunk));
      socket.on('end', () => socket.end(`exit 7 ${hash.digest('hex')}`));
      return;
    }
    // Leaves first, and still listens.
    if (path === '/leave-first') {
      let size = 0;
      socket.end('bye');
      socket.on('data', (chunk: Buffer) => {
        size += chunk.length;
      });
      socket.on('end', () => it.ended.push({ path: `heard ${size}`, inOrder: true }));
      return;
    }
    socket.resume();
  });
  const brought = bringConnections(server, {
    ...{ tls: pair, maxConnections: 4096 },
    connections: { add: () => undefined },
  });
  return Object.assign(it, {
    server,
    pair,
    take: (connection: Duplex, from: string) => brought.take(connection, from, 'link'),
    open,
    close() {
      brought.end();
      for (const socket of open) socket.destroy();
      server.close();
    },
  });
}

export interface Way {
  readonly name: string;
  readonly end: EndServer;
  readonly route: Route;
  readonly client: HttpClient;
  /** Every wire between the two ends. */
  readonly wires: readonly CuttingProxy[];
  /** Another process of the gateway takes over; resolves once it is linked. Not for a direct way. */
  replace?(): Promise<() => Promise<void>>;
  close(): Promise<void>;
}

export const providerAt = (endpoint: Partial<GpuProvider['spec']['endpoint']>, address = keys.provider.address) =>
  builtProvider({ endpoint: endpoint as GpuProvider['spec']['endpoint'], identity: { address } });

export interface Options {
  readonly clock?: Timing;
  readonly timeoutSeconds?: number;
  readonly limits?: Partial<RelayLimits>;
}

async function listening(server: https.Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

/** The gateway's end of a link, as cmd/dial-out.ts has it. */
export function offer(
  end: EndServer,
  place: { readonly url: string; readonly ca: string; readonly audienceUrl?: string },
  options: { readonly clock?: Timing; readonly key?: ChainKey; readonly onFailure?: (error: Error) => void } = {},
): Offered {
  const { clock = systemTiming, key = keys.provider } = options;
  const statement = gatewayKeyStatement(key, () => end.pair.cert, now);
  const start = tlsTo({ url: place.url.replace('wss:', 'https:'), caBundle: place.ca }, 60);
  return offerGateway(
    {
      url: place.audienceUrl ?? place.url,
      dial: () => start('http/1.1'),
      clock,
      instance: `0x${randomBytes(32).toString('hex')}`,
      own: { provider: key.address, sign: (message) => signRegistration(key, message), now },
      onFailure: options.onFailure,
      onConnection: (asked) => {
        void statement().then((header) => {
          asked.accept({ [gatewayKeyHeader]: header });
          end.take(asked.stream, asked.from || 'link');
        });
      },
    },
    new AbortController().signal,
  );
}

export const isLinked = async (offered: Offered): Promise<void> => {
  if (!(await offered.keeper.within(120))) throw new Error(`not linked: ${offered.keeper.lastError}`);
};

/** The listener's public name stays while wires before it come and go. */
export const publicUrl = 'wss://links.example.com:9444';

async function direct({ timeoutSeconds = 20 }: Options): Promise<Way> {
  const ca = await authority('ca');
  const end = await endServer(ca);
  const wire = await startCuttingProxy(`https://127.0.0.1:${await listening(end.server)}`);
  const routeOf = createRoutes({ clock: systemTiming, now, timeoutSeconds });
  const route = routeOf(providerAt({ via: 'Direct', url: wire.url, caBundle: ca.pem, serverName: 'gpu.example.com' }));
  const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds });
  return {
    name: 'direct',
    end,
    route,
    client,
    wires: [wire],
    async close() {
      client.close();
      route.close();
      end.close();
      await wire.close();
    },
  };
}

/** Where gateways dial in at an operator that knows our provider alone. */
export async function operatorListener(
  ca: Authority,
  links: Links,
  more: Pick<Parameters<typeof startLinkListener>[0], 'clock' | 'perSecond' | 'burst' | 'unprovenConnections'>,
): Promise<LinkListener> {
  return startLinkListener({
    host: '127.0.0.1',
    port: 0,
    tls: await ca.issue([{ CN: ['operator'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] }),
    links,
    keeper: {
      audiences: new Set([audienceOf(publicUrl)]),
      verify: verifyRegistration,
      refuses: (account) => (account === keys.provider.address.toLowerCase() ? undefined : { why: 'not known here' }),
      now,
    },
    log: silent,
    ...more,
  });
}

/** Another process of the gateway takes its place; gives back the end of the first. */
async function replaced(offers: ReturnType<typeof offer>[], next: ReturnType<typeof offer>) {
  const [old] = offers.splice(0);
  offers.push(next);
  await isLinked(next);
  return () => old!.close(20);
}

async function reverse({ clock = systemTiming, timeoutSeconds = 20 }: Options): Promise<Way> {
  const ca = await authority('ca');
  const end = await endServer(ca);
  const links = createLinks({ clock, now });
  const listener = await operatorListener(ca, links, { clock });
  const wire = await startCuttingProxy(`https://127.0.0.1:${listener.port}`);
  const place = { url: wire.url.replace('https:', 'wss:'), ca: ca.pem, audienceUrl: publicUrl };
  const offers = [offer(end, place, { clock })];
  const route = createRoutes({ links, clock, now, timeoutSeconds })(providerAt({ via: 'Reverse' }));
  const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds });
  await isLinked(offers[0]!);
  return {
    name: 'reverse',
    end,
    route,
    client,
    wires: [wire],
    replace: () => replaced(offers, offer(end, place, { clock })),
    async close() {
      client.close();
      route.close();
      await Promise.all(offers.map((one) => one.close(0)));
      links.endAll();
      end.close();
      await wire.close();
      await listener.close();
    },
  };
}

async function relay({ clock = systemTiming, timeoutSeconds = 20, limits }: Options): Promise<Way> {
  const ca = await authority('ca');
  const end = await endServer(ca);
  const own = await ca.issue([{ CN: ['relay'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
  const between = await startRelay({
    host: '127.0.0.1',
    port: 0,
    tls: own,
    audiences: new Set([audienceOf(publicUrl)]),
    verify: verifyRegistration,
    limits,
    clock,
    now,
    log: silent,
  });
  const target = `https://127.0.0.1:${between.port}`;
  const [gatewayWire, consumerWire] = await Promise.all([startCuttingProxy(target), startCuttingProxy(target)]);
  const place = { url: gatewayWire.url.replace('https:', 'wss:'), ca: ca.pem, audienceUrl: publicUrl };
  const offers = [offer(end, place, { clock })];
  const route = createRoutes({ clock, now, timeoutSeconds })(
    providerAt({ via: 'Relay', relay: { url: consumerWire.url, caBundle: ca.pem } }),
  );
  const client = createHttpClient({ host: 'gateway', dial: route.dial, timeoutSeconds });
  await isLinked(offers[0]!);
  return {
    name: 'relay',
    end,
    route,
    client,
    wires: [gatewayWire, consumerWire],
    replace: () => replaced(offers, offer(end, place, { clock })),
    async close() {
      client.close();
      route.close();
      await Promise.all(offers.map((one) => one.close(0)));
      end.close();
      await Promise.all([gatewayWire.close(), consumerWire.close()]);
      await between.close(0);
    },
  };
}

export const ways = { direct, reverse, relay } as const;
