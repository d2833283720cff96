/** An HTTP server on loopback that does what each test tells it to, good or bad, and a kubeconfig for it. */
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import { createServer as createTlsServer, type ServerOptions } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';

export interface MisbehavingServer {
  readonly kubeconfig: string;
  readonly port: number;
  /** Replaces what it does. */
  handle(listener: RequestListener): void;
  handleUpgrade(listener: (request: IncomingMessage, socket: Duplex, head: Buffer) => void): void;
  readonly requests: readonly IncomingMessage[];
  readonly connections: number;
  close(): Promise<void>;
}

export async function misbehavingServer(
  options: { tls?: ServerOptions; user?: object; cluster?: object } = {},
): Promise<MisbehavingServer> {
  let listener: RequestListener = (_, response) => response.writeHead(404).end();
  const requests: IncomingMessage[] = [];
  const sockets = new Set<Socket>();
  let connections = 0;
  const onRequest: RequestListener = (request, response) => {
    requests.push(request);
    listener(request, response);
  };
  const server: Server = options.tls ? createTlsServer(options.tls, onRequest) : createServer(onRequest);
  server.on('connection', (socket) => {
    connections++;
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const kubeconfig = JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'it',
    contexts: [{ name: 'it', context: { cluster: 'it', user: 'me' } }],
    clusters: [
      {
        name: 'it',
        cluster: {
          server: `${options.tls ? 'https' : 'http'}://127.0.0.1:${port}`,
          ...(options.cluster ?? { 'insecure-skip-tls-verify': true }),
        },
      },
    ],
    users: [{ name: 'me', user: options.user ?? { token: 'own-secret-token' } }],
  });
  return {
    kubeconfig,
    port,
    handle: (next) => {
      listener = next;
    },
    handleUpgrade: (handler) => {
      server.removeAllListeners('upgrade');
      server.on('upgrade', (request, socket, head) => {
        requests.push(request);
        handler(request, socket, head);
      });
    },
    requests,
    get connections() {
      return connections;
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}
