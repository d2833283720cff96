/**
 * How a caller of exec or attach is told how its command ended: by a Status on the stream of errors.
 *
 * SPDY, v4.channel.k8s.io: the stream of errors is the first that a caller opens (client-go, tools/remotecommand), hence
 * number 1. Frames: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/#TOC-2.2-Framing
 * WebSocket, v4 and v5.channel.k8s.io: channel 3, in a binary message. Frames: RFC 6455 §5.2
 */

export const spdyErrorStream = 1;
const lastFrame = 0x01;
const errorChannel = 3;

/** A failure of which nobody knows how the command ended. */
const failure = (message: string): Buffer =>
  Buffer.from(
    JSON.stringify({
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Failure',
      reason: 'InternalError',
      message,
      code: 500,
    }),
  );

export function spdyStatus(message: string): Buffer {
  const payload = failure(message);
  const header = Buffer.alloc(8);
  header.writeUInt32BE(spdyErrorStream, 0);
  header.writeUInt32BE(((lastFrame << 24) | payload.length) >>> 0, 4);
  return Buffer.concat([header, payload]);
}

/** The status, and the close that ends a WebSocket: 1001, going away. */
export function webSocketStatus(message: string): Buffer {
  const payload = Buffer.concat([Buffer.from([errorChannel]), failure(message)]);
  // A control frame has 125 bytes at most, two of them for the code.
  const reason = Buffer.from(message).subarray(0, 123);
  const close = Buffer.concat([Buffer.from([0x88, reason.length + 2, 0x03, 0xe9]), reason]);
  return Buffer.concat([messageHeader(payload.length), payload, close]);
}

function messageHeader(length: number): Buffer {
  if (length < 126) return Buffer.from([0x82, length]);
  const header = Buffer.from([0x82, 126, 0, 0]);
  header.writeUInt16BE(length, 2);
  return header;
}
