/** The end of a connection on which the last word has been said. */
import type { Duplex } from 'node:stream';

const leaveMs = 1000;

/**
 * What the other side still sends is read for a moment, and dropped: a connection that is closed over unread bytes is reset, and
 * a reset takes along what was said last. Not until the other side closes its half, which it may never do.
 */
export function leaveSoon(socket: Duplex): void {
  if (socket.destroyed) return;
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), leaveMs);
  timer.unref();
  socket.once('end', () => socket.destroy());
  socket.once('close', () => clearTimeout(timer));
}
