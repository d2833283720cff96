/**
 * Connections that have not carried a good token yet (wire/unproven.ts): the listener's, by address, and those that a link brings.
 * These count as the link's own, whomever it names: it could name another caller for each.
 */
import type { Server } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { countedAs } from '../wire/counted-as.ts';
import { createUnproven } from '../wire/unproven.ts';
import { type Addresses, type From, overLink } from './addresses.ts';

type Ends = NonNullable<From['socket']>;

export interface Connections {
  /** One that no listener has accepted. `ends`: as requests on it will be from; `caller`: whom it counts for. */
  add(socket: Duplex, ends: Ends, caller: string): void;
  /** It has carried a good token. */
  prove(from: From): void;
  readonly unproven: number;
}

export function watchConnections(
  server: Server,
  addresses: Addresses,
  limits: { readonly ofAddress: number; readonly ofAll: number },
): Connections {
  const unproven = createUnproven({ ofCaller: limits.ofAddress, ofAll: limits.ofAll });
  /** By both ends: below TLS it is another object than above. */
  const keyOf = (ends: Ends) => `${ends.remoteAddress}|${ends.remotePort}`;

  server.on('connection', (socket: Socket) => {
    const { remoteAddress } = socket;
    // A tunnel's, one that a link brought and that was added, or one of many that a proxy brings for all its callers.
    if (remoteAddress === undefined || remoteAddress.startsWith(overLink)) return;
    const address = addresses.of({ headers: {}, socket });
    if (!addresses.isTrusted(address)) unproven.add(keyOf(socket), socket, countedAs(address));
  });

  return {
    add: (socket, ends, caller) => unproven.add(keyOf(ends), socket, caller),
    prove({ socket }) {
      if (socket?.remoteAddress !== undefined) unproven.prove(keyOf(socket));
    },
    get unproven() {
      return unproven.size;
    },
  };
}
