/**
 * One connection more than there are streams. Each stream takes a connection of its own, and whoever has just opened one often opens
 * the next: a loop of `kubectl exec`, `kubectl cp`, an editor. The next finds its handshake done, which is a fifth of what a leased
 * node adds to an exec.
 */
import type { Duplex } from 'node:stream';
import { systemTiming, type Timing } from '../../wire/timing.ts';

/** Later than the stream's own first bytes, which it would hold up; while the program starts, both sides have nothing to do. */
const afterMs = 25;
/** Gateways wait 10 s for a request. */
const forMs = 5000;

export interface Spare {
  /** The one that is there, or a new one. */
  dial(): Promise<Duplex>;
  /** A stream was opened: there may be another soon. */
  opened(): void;
  close(): void;
}

export function keepSpare(dial: () => Promise<Duplex>, timing: Timing = systemTiming): Spare {
  let spare: { readonly socket: Duplex; letGo(): void; drop(): void } | undefined;
  let filling = false;
  let cancelFill: (() => void) | undefined;
  let closed = false;

  function fill(): void {
    dial()
      .then(
        (socket) => (closed ? void socket.destroy() : hold(socket)),
        // Nobody waits for it. The next stream dials itself, and tells what is wrong.
        () => undefined,
      )
      .finally(() => {
        filling = false;
      });
  }

  function hold(socket: Duplex): void {
    const ends = ['data', 'end', 'error', 'close'] as const;
    const letGo = () => {
      spare = undefined;
      cancelDrop();
      for (const event of ends) socket.off(event, drop);
    };
    const drop = () => {
      letGo();
      socket.on('error', () => undefined); // of what is thrown away
      socket.destroy();
    };
    const cancelDrop = timing.setTimeout(drop, forMs);
    // It is read, or nobody would hear of its end. Before a request a gateway has nothing to say but that.
    for (const event of ends) socket.on(event, drop);
    spare = { socket, letGo, drop };
  }

  return {
    async dial() {
      const found = spare;
      if (found === undefined || found.socket.destroyed) return dial();
      found.letGo();
      return found.socket;
    },
    opened() {
      if (closed || filling || spare !== undefined) return;
      filling = true;
      cancelFill = timing.setTimeout(fill, afterMs);
    },
    close() {
      closed = true;
      cancelFill?.();
      spare?.drop();
    },
  };
}
