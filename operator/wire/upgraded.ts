/**
 * Two sockets after an upgrade, joined. Nobody changes what passes, so exit codes, terminal sizes, half-closed input and
 * port-forward frames come through as they are, in SPDY as in WebSocket.
 */
import type { Socket } from 'node:net';
import type { Duplex, Transform } from 'node:stream';

/** A side that has heard all there was may take this long to leave. */
const leaveMs = 5000;
/** A peer that is gone without a word is noticed within minutes, also by a stream on which nothing is due. */
const keepAliveMs = 30_000;

/**
 * Both ways, until both have ended. `aHead`: what came from `a` before it was a bare socket; likewise `bHead`. `before`: what
 * `b` says goes through it on its way to `a`.
 */
export function join(
  a: Duplex,
  b: Duplex,
  aHead: Buffer,
  bHead: Buffer,
  { before, leaveWithinMs = leaveMs }: { readonly before?: Transform; readonly leaveWithinMs?: number } = {},
): void {
  const toA = before ?? a;
  before?.pipe(a);
  a.once('close', () => before?.destroy());
  for (const [from, way, to] of [
    [a, b, b],
    [b, toA, a],
  ] as [Duplex & Partial<Socket>, Duplex, Duplex][]) {
    from.setNoDelay?.(true);
    from.setTimeout?.(0);
    from.setKeepAlive?.(true, keepAliveMs);
    from.on('error', () => from.destroy());
    from.once('close', () => {
      if (to.destroyed) return;
      // What is on its way to `to` arrives, however slowly it reads: it may be a terminal that somebody has halted. What it
      // still says, nobody hears; it is read all the same, since to leave it unread would reset the connection.
      way.end();
      to.unpipe();
      to.resume();
      const heard = () => {
        const timer = setTimeout(() => to.destroy(), leaveWithinMs);
        timer.unref();
        to.once('close', () => clearTimeout(timer));
      };
      if (to.writableFinished) heard();
      else to.once('finish', heard);
    });
  }
  if (aHead.length > 0) b.write(aHead);
  if (bHead.length > 0) toA.write(bHead);
  // Ending one direction ends it on the other side, and leaves the opposite direction open.
  a.pipe(b);
  b.pipe(toA);
}
