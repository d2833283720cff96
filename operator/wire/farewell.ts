/**
 * The last word to a caller of exec or attach whose stream we end ourselves: a SPDY caller would take silence for success, and
 * everybody wants to know why. All bytes pass at once; only where frames end is followed, since between two of them is the only
 * place for a word of ours.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { Transform, type TransformCallback } from 'node:stream';
import { spdyErrorStream, spdyStatus, webSocketStatus } from './exec-status.ts';

/** How a protocol is framed: as many bytes of a header as tell the length of the frame, and what is told at the end. */
interface Framing {
  /** Bytes of the header, as far as the first ones say. */
  headerBytes(header: Buffer): number;
  payloadBytes(header: Buffer): number;
  /** The far side has told how the command ended: nothing is to be added. */
  tellsEnd(header: Buffer, payloadBytes: number): boolean;
  lastWord(message: string): Buffer;
}

const spdy: Framing = {
  headerBytes: () => 8,
  payloadBytes: (header) => header.readUIntBE(5, 3),
  // A data frame has no control bit, so its first four bytes are the number of its stream.
  tellsEnd: (header, length) => header.readUInt32BE(0) === spdyErrorStream && length > 0,
  lastWord: spdyStatus,
};

const webSocket: Framing = {
  headerBytes(header) {
    if (header.length < 2) return 2;
    const length = header[1]! & 0x7f;
    return 2 + (length === 127 ? 8 : length === 126 ? 2 : 0) + (header[1]! & 0x80 ? 4 : 0);
  },
  payloadBytes(header) {
    const length = header[1]! & 0x7f;
    if (length === 126) return header.readUInt16BE(2);
    // Beyond what a number holds: nobody sends it, and no frame begins after it in our time.
    return length === 127 ? Number(header.readBigUInt64BE(2)) : length;
  },
  tellsEnd: (header) => (header[0]! & 0x0f) === 0x08,
  lastWord: webSocketStatus,
};

export interface Farewell extends Transform {
  /** Ends the caller's side with this word, as soon as the frame that is on its way has passed. What comes later is dropped. */
  say(message: string): void;
}

/** Undefined where the protocol has no place for a word. */
export function farewellFor(answered: IncomingHttpHeaders): Farewell | undefined {
  const upgrade = answered.upgrade?.toLowerCase();
  if (upgrade === 'spdy/3.1' && answered['x-stream-protocol-version'] === 'v4.channel.k8s.io') return following(spdy);
  const protocol = String(answered['sec-websocket-protocol'] ?? '');
  if (upgrade === 'websocket' && /^v[45]\.channel\.k8s\.io$/.test(protocol)) return following(webSocket);
  return undefined;
}

function following(framing: Framing): Farewell {
  /** Of the frame that is on its way: what of its header has passed, and how much of its payload is still to come. */
  let header: Buffer = Buffer.alloc(0);
  let left = 0;
  let told = false;
  let message: string | undefined;
  let over = false;

  /** How many of these bytes belong to the frame on its way, up to its end. */
  function follow(bytes: Buffer): number {
    let at = 0;
    while (at < bytes.length) {
      if (left === 0) {
        const wanted = framing.headerBytes(header);
        const part = bytes.subarray(at, at + wanted - header.length);
        header = header.length === 0 ? part : Buffer.concat([header, part]);
        at += part.length;
        const needed = framing.headerBytes(header);
        if (header.length < needed) continue;
        left = framing.payloadBytes(header);
        told ||= framing.tellsEnd(header, left);
        header = Buffer.alloc(0);
      } else {
        const part = Math.min(left, bytes.length - at);
        left -= part;
        at += part;
      }
      if (message !== undefined && left === 0 && header.length === 0) return at;
    }
    return at;
  }

  const isBetween = () => left === 0 && header.length === 0;

  function leave(): void {
    over = true;
    if (!told && message !== undefined) stream.push(framing.lastWord(message));
    stream.push(null);
  }

  const stream = new Transform({
    transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback) {
      if (over) return done();
      const passed = follow(chunk);
      stream.push(passed === chunk.length ? chunk : chunk.subarray(0, passed));
      if (message !== undefined && isBetween()) leave();
      done();
    },
    flush(done) {
      if (over) return done();
      over = true;
      done();
    },
  }) as Farewell;
  stream.say = (words) => {
    if (over || message !== undefined) return;
    message = words;
    if (isBetween()) leave();
  };
  return stream;
}
