/**
 * One TCP connection in two halves: a socket here, a stream of a tunnel there. Each direction ends by itself, and what one
 * side breaks off is broken off on the other: who reads until the end must not take a broken answer for a whole one.
 */
import type { Http2Stream } from 'node:http2';
import { Socket } from 'node:net';
import type { Duplex, Readable, Transform } from 'node:stream';

const keepAliveMs = 30_000;

/** `through`: what each direction passes on its way; one is made for each. */
export function join(one: Duplex, other: Duplex, through?: () => Transform): void {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    if (from instanceof Socket) {
      from.setNoDelay(true);
      from.setKeepAlive(true, keepAliveMs);
    }
    from.on('error', () => from.destroy());
    const said: Readable = through ? from.pipe(through()) : from;
    said.pipe(to, { end: false });
    said.once('end', () => {
      if (wasReset(from)) breakOff(to);
      else to.end();
    });
    from.once('close', () => {
      if (from.readableEnded && !wasReset(from) && !from.errored) return;
      breakOff(to);
      if (said !== from) said.destroy();
    });
  }
}

/** A stream whose session died has been reset, though its reader sees an end. */
const wasReset = (end: Duplex): boolean => ((end as Partial<Http2Stream>).rstCode ?? 0) !== 0;

/** Ends it so that the other side cannot take it for an end in order: by RST of TCP, or of the stream. */
export function breakOff(end: Duplex): void {
  if (end.destroyed) return;
  if (end instanceof Socket) end.resetAndDestroy();
  // With an error: to close it would first say that it ends.
  else end.destroy(new Error('broken off'));
}
