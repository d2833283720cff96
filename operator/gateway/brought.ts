/**
 * Connections that no listener accepted: a link brought them. They are served as those of the listener are, TLS first; all that
 * differs is who is asked for the caller's address, since there is no socket that would know it. Whoever dialled us, or carries
 * others to us, may say anything there, so what a link brings is bounded by itself as well.
 */
import type { Server } from 'node:http';
import type { Duplex } from 'node:stream';
import tls, { type SecureContext, type TLSSocket } from 'node:tls';
import { overLink } from './addresses.ts';
import type { Connections } from './connections.ts';
import { alpnProtocols } from './routes/watches.ts';

export interface Brought {
  /** Takes the connection as one of this caller, brought by the link to this place. False: there are as many as there may be. */
  take(connection: Duplex, from: string, place: string): boolean;
  /** New certificate. */
  setTls(pair: { key: string; cert: string }): void;
  readonly open: number;
  end(): void;
}

const handshakeMs = 10_000;

export function bringConnections(
  server: Server,
  options: {
    readonly tls?: { key: string; cert: string };
    readonly maxConnections: number;
    readonly connections: Pick<Connections, 'add'>;
  },
): Brought {
  const open = new Set<Duplex>();
  /** In place of a port: each connection is another one. */
  let taken = 0;
  const contextOf = (pair: { key: string; cert: string }): SecureContext =>
    tls.createSecureContext({ ...pair, minVersion: 'TLSv1.2' });
  let secureContext = options.tls && contextOf(options.tls);

  const named = <S extends Duplex>(socket: S, ends: object): S =>
    Object.defineProperties(socket, Object.fromEntries(Object.entries(ends).map(([name, value]) => [name, { value }])));

  return {
    take(connection, from, place) {
      if (open.size >= options.maxConnections) return false;
      open.add(connection);
      connection.once('close', () => open.delete(connection));
      taken += 1;
      const ends = { remoteAddress: overLink + from.slice(0, 64), remotePort: taken, linkedBy: place };
      options.connections.add(connection, ends, overLink + place);
      if (!secureContext) {
        server.emit('connection', named(connection, ends));
        return true;
      }
      const socket: TLSSocket = new tls.TLSSocket(connection as never, {
        isServer: true,
        secureContext,
        ALPNProtocols: alpnProtocols,
      });
      named(socket, ends);
      const timer = setTimeout(() => connection.destroy(), handshakeMs);
      socket.on('error', () => socket.destroy());
      socket.once('close', () => {
        clearTimeout(timer);
        connection.destroy();
      });
      socket.once('secure', () => {
        clearTimeout(timer);
        // What a TLS server of Node does before it tells: without it HTTP/2 would wait for a handshake that is over.
        Object.assign(socket, { secureConnecting: false });
        server.emit('secureConnection', socket);
      });
      return true;
    },
    setTls(pair) {
      secureContext = contextOf(pair);
    },
    get open() {
      return open.size;
    },
    end() {
      for (const connection of open) connection.destroy();
    },
  };
}
