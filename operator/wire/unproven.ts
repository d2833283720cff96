/**
 * Connections on which nobody has proved who he is yet. Opening them costs nothing, so each caller may have a few, and all together
 * fewer than there is room for; the oldest gives way to the newest. Who has something to say is long done with it, and who only
 * holds connections open loses them; nobody is locked out by either.
 */
import type { Duplex } from 'node:stream';

export interface Unproven {
  /** `key`: by which it is named when it proves itself; `caller`: whom it counts for. */
  add(key: string, socket: Duplex, caller: string): void;
  prove(key: string): void;
  readonly size: number;
}

export function createUnproven(limits: { readonly ofCaller: number; readonly ofAll: number }): Unproven {
  /** In the order in which they came. */
  const open = new Map<string, { readonly socket: Duplex; readonly caller: string }>();
  const ofCallers = new Map<string, Set<string>>();

  function forget(key: string): Duplex | undefined {
    const found = open.get(key);
    if (found === undefined) return undefined;
    open.delete(key);
    const own = ofCallers.get(found.caller);
    own?.delete(key);
    if (own?.size === 0) ofCallers.delete(found.caller);
    return found.socket;
  }
  const oldestOf = (keys: Iterable<string>): string => keys[Symbol.iterator]().next().value as string;

  return {
    add(key, socket, caller) {
      const own = ofCallers.get(caller) ?? new Set();
      ofCallers.set(caller, own);
      own.add(key);
      open.set(key, { socket, caller });
      socket.once('close', () => {
        if (open.get(key)?.socket === socket) forget(key);
      });
      if (own.size > limits.ofCaller) forget(oldestOf(own))?.destroy();
      if (open.size > limits.ofAll) forget(oldestOf(open.keys()))?.destroy();
    },
    prove: (key) => void forget(key),
    get size() {
      return open.size;
    },
  };
}
