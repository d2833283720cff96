/** The last word to a caller whose stream we end: after a whole frame, never inside one, and only where nobody has told yet. */
import { expect, test } from 'vitest';
import { spdyStatus, webSocketStatus } from '../../../operator/wire/exec-status.ts';
import { type Farewell, farewellFor } from '../../../operator/wire/farewell.ts';

const spdy = { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'v4.channel.k8s.io' };
const webSocket = { upgrade: 'websocket', 'sec-websocket-protocol': 'v5.channel.k8s.io' };

function spdyFrame(stream: number, text: string): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32BE(stream, 0);
  header.writeUInt32BE(text.length, 4);
  return Buffer.concat([header, Buffer.from(text)]);
}

function webSocketFrame(channel: number, text: string): Buffer {
  const payload = Buffer.concat([Buffer.from([channel]), Buffer.from(text)]);
  const { length } = payload;
  if (length < 126) return Buffer.concat([Buffer.from([0x82, length]), payload]);
  if (length < 65_536) return Buffer.concat([Buffer.from([0x82, 126, length >> 8, length & 255]), payload]);
  const header = Buffer.alloc(10);
  header.set([0x82, 127]);
  header.writeBigUInt64BE(BigInt(length), 2);
  return Buffer.concat([header, payload]);
}

const cases = [
  {
    name: 'SPDY',
    headers: spdy,
    frames: [spdyFrame(3, 'out'), spdyFrame(5, 'x'.repeat(300)), spdyFrame(3, '')],
    status: spdyFrame(1, '{"status":"Success"}'),
    word: spdyStatus('why'),
  },
  {
    name: 'WebSocket',
    headers: webSocket,
    frames: [webSocketFrame(1, 'out'), webSocketFrame(2, 'x'.repeat(300)), webSocketFrame(1, 'y'.repeat(70_000))],
    status: Buffer.from([0x88, 2, 0x03, 0xe8]),
    word: webSocketStatus('why'),
  },
];

async function heard(stream: Farewell, chunks: readonly Buffer[], sayAfter: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  stream.on('data', (part: Buffer) => parts.push(part));
  const ended = new Promise((resolve) => stream.once('end', resolve));
  for (const [index, chunk] of chunks.entries()) {
    if (index === sayAfter) stream.say('why');
    stream.write(chunk);
    await new Promise(setImmediate);
  }
  if (sayAfter >= chunks.length) stream.say('why');
  await ended;
  return Buffer.concat(parts);
}

const inPieces = (bytes: Buffer, size: number): Buffer[] =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size));

for (const { name, headers, frames, status, word } of cases) {
  const all = Buffer.concat(frames);
  const ends = frames.map((_, i) => Buffer.concat(frames.slice(0, i + 1)).length);

  test.each([
    1, 7, 13, 4096, 1_000_000,
  ])(`${name}, in pieces of %i bytes: the word follows a whole frame`, async (size) => {
    const pieces = inPieces(all, size);
    for (const after of new Set([0, 1, Math.floor(pieces.length / 2), pieces.length])) {
      const sent = Math.min(after * size, all.length);
      // Between two frames at once, else when the one on its way has passed.
      const passed = sent === 0 ? 0 : ends.find((end) => end >= sent)!;
      const got = await heard(farewellFor(headers)!, pieces, after);
      expect(got.equals(Buffer.concat([all.subarray(0, passed), word])), `after ${sent} bytes`).toBe(true);
    }
  });

  test(`${name}: where the end was told already, nothing is added`, async () => {
    const got = await heard(farewellFor(headers)!, [frames[0]!, status], 2);
    expect(got.equals(Buffer.concat([frames[0]!, status]))).toBe(true);
  });

  test(`${name}: what ends by itself passes as it is`, async () => {
    const stream = farewellFor(headers)!;
    const parts: Buffer[] = [];
    stream.on('data', (part: Buffer) => parts.push(part));
    stream.write(all);
    stream.end();
    await new Promise((resolve) => stream.once('end', resolve));
    stream.say('too late');
    expect(Buffer.concat(parts).equals(all)).toBe(true);
  });
}

test.each([
  ['port-forward of SPDY', { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'portforward.k8s.io' }],
  ['an old protocol', { upgrade: 'websocket', 'sec-websocket-protocol': 'channel.k8s.io' }],
  ['no upgrade', {}],
])('there is no place for a word in %s', (_name, headers) => {
  expect(farewellFor(headers)).toBeUndefined();
});

test('the close of a WebSocket fits into a control frame, however long the word is', () => {
  const bytes = webSocketStatus('y'.repeat(1000));
  const close = bytes.subarray(-(2 + 125));
  expect([close[0], close[1], close.readUInt16BE(2)]).toEqual([0x88, 125, 1001]);
});
