/**
 * Connections on which nobody has proved to be a consumer yet. Opening them costs nothing, so each address may have a few,
 * and all together less than the listener takes: there the oldest gives way to the newest. Who has something to say is long
 * done with it, and who only holds connections open loses them; nobody is locked out by either.
 *
 * A connection that has carried a good token is none of these any more.
 */
import type { Server } from 'node:http';
import type { Socket } from 'node:net';
import type { Addresses, From } from './addresses.ts';
import { countedAs } from './addresses.ts';

export interface Connections {
  /** It has carried a good token. */
  prove(from: From): void;
  readonly unproven: number;
}

interface Unproven {
  readonly socket: Socket;
  readonly caller: string;
}

export function watchConnections(
  server: Server,
  addresses: Addresses,
  limits: { readonly ofAddress: number; readonly ofAll: number },
): Connections {
  /** By both ends of it, in the order in which they came: below TLS it is another object than above. */
  const unproven = new Map<string, Unproven>();
  const ofCallers = new Map<string, Set<string>>();

  const keyOf = (socket: { remoteAddress?: string; remotePort?: number }) =>
    `${socket.remoteAddress}|${socket.remotePort}`;

  function forget(key: string): Unproven | undefined {
    const found = unproven.get(key);
    if (found === undefined) return undefined;
    unproven.delete(key);
    const own = ofCallers.get(found.caller);
    own?.delete(key);
    if (own?.size === 0) ofCallers.delete(found.caller);
    return found;
  }

  server.on('connection', (socket: Socket) => {
    const { remoteAddress } = socket;
    // A tunnel's, or one of many that a proxy brings for all its callers.
    if (remoteAddress === undefined) return;
    const address = addresses.of({ headers: {}, socket });
    const caller = addresses.isTrusted(address) ? undefined : countedAs(address);
    if (caller === undefined) return;
    const key = keyOf(socket);
    const own = ofCallers.get(caller) ?? new Set();
    ofCallers.set(caller, own);
    own.add(key);
    unproven.set(key, { socket, caller });
    socket.once('close', () => {
      if (unproven.get(key)?.socket === socket) forget(key);
    });
    if (own.size > limits.ofAddress) forget(own.values().next().value as string)?.socket.destroy();
    if (unproven.size > limits.ofAll) forget(unproven.keys().next().value as string)?.socket.destroy();
  });

  return {
    prove({ socket }) {
      if (socket?.remoteAddress !== undefined) forget(keyOf(socket));
    },
    get unproven() {
      return unproven.size;
    },
  };
}
