/**
 * A connection made ahead. Who runs one command in a container often runs the next: that one finds its connection made, and
 * waits for no handshake. One at a time, for some seconds, after which nothing is held open.
 */
import type { Duplex } from 'node:stream';
import type { Dial } from './dial.ts';

/** Long enough for the next command of a script, and too short for many things to happen to it. */
const keptMs = 2000;

export interface SpareDial {
  /** Gives the connection that is ready, or makes one. */
  readonly dial: Dial;
  /** Makes one for the next caller, where none is there. One that cannot be made is left to the caller to find out. */
  prepare(): void;
  close(): void;
}

export function withSpare(dial: Dial): SpareDial {
  let spare: Duplex | undefined;
  let release: () => void = () => undefined;
  let making = false;
  let closed = false;

  function keep(socket: Duplex): void {
    const drop = () => {
      release();
      socket.destroy();
    };
    const timer = setTimeout(drop, keptMs);
    timer.unref();
    const ends = ['end', 'error', 'close'] as const;
    for (const end of ends) socket.on(end, drop);
    spare = socket;
    release = () => {
      clearTimeout(timer);
      for (const end of ends) socket.off(end, drop);
      spare = undefined;
    };
  }

  return {
    async dial(protocol) {
      if (spare === undefined || protocol === 'h2') return dial(protocol);
      const socket = spare;
      release();
      if (socket.readableLength === 0) return socket;
      // Nothing was asked, so what it says is why it will not be asked.
      socket.destroy();
      return dial(protocol);
    },
    prepare() {
      if (spare || making || closed) return;
      making = true;
      dial()
        .then((socket) => (closed ? void socket.destroy() : keep(socket)))
        .catch(() => undefined)
        .finally(() => {
          making = false;
        });
    },
    close() {
      closed = true;
      const socket = spare;
      release();
      socket?.destroy();
    },
  };
}
