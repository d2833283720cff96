/**
 * A SPDY caller of exec and attach takes it for success when its connection ends and nobody told it how the command ended: a
 * job that waits for an exit code would go on after a cut as after a zero. The protocol v4.channel.k8s.io always tells, in a
 * Status on the stream of errors; so where the provider's side is over and none has passed, we tell that it was lost.
 *
 * This is all that is looked at in a stream: where frames begin, and whether one carries a status. What of a frame has arrived
 * waits for its rest, so that ours is never put into the middle of another. WebSocket callers need none of it: a close without a
 * word is an error to them.
 *
 * Frames: wire/exec-status.ts.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { Transform } from 'node:stream';
import { spdyErrorStream, spdyStatus } from '../../wire/exec-status.ts';

const headerBytes = 8;
/** No client of Kubernetes sends frames of a tenth of it. */
const longestFrame = 4 * 1024 * 1024;

const lost = 'the connection to the provider was lost: whether the command ended, and how, is not known';

/** To be put before a caller of exec or attach; undefined where the protocol needs, or allows, no such thing. */
export function tellLoss(answered: IncomingHttpHeaders): Transform | undefined {
  const isSpdy = answered.upgrade?.toLowerCase() === 'spdy/3.1';
  if (!isSpdy || answered['x-stream-protocol-version'] !== 'v4.channel.k8s.io') return undefined;
  let held: Buffer = Buffer.alloc(0);
  let told = false;
  return new Transform({
    transform(chunk: Buffer, _, done) {
      if (told) return done(null, chunk);
      const bytes = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      let at = 0;
      while (!told && bytes.length - at >= headerBytes) {
        const length = bytes.readUIntBE(at + 5, 3);
        // Not what it should be: then it is passed on as it is.
        if (length > longestFrame) told = true;
        const next = at + headerBytes + length;
        if (bytes.length < next) break;
        // A data frame has no control bit, so its first four bytes are the number of its stream.
        if (bytes.readUInt32BE(at) === spdyErrorStream && length > 0) told = true;
        at = next;
      }
      if (told) at = bytes.length;
      held = bytes.subarray(at);
      done(null, bytes.subarray(0, at));
    },
    flush(done) {
      if (told) done();
      else done(null, spdyStatus(lost));
    },
  });
}
