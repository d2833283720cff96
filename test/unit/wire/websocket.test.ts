/** WebSocket at both ends, on a pair of sockets; and what a peer that breaks the rules comes to. */
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { systemTiming } from '../../../operator/wire/timing.ts';
import { mask, WebSocketStream } from '../../../operator/wire/websocket.ts';

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0)) close();
});

async function sockets(): Promise<[Socket, Socket]> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const one = connect((server.address() as AddressInfo).port, '127.0.0.1');
  const other = await accepted;
  closing.push(() => {
    one.destroy();
    other.destroy();
    server.close();
  });
  for (const socket of [one, other]) socket.on('error', () => undefined);
  return [one, other];
}

async function pair(): Promise<{ client: WebSocketStream; server: WebSocketStream; raw: [Socket, Socket] }> {
  const raw = await sockets();
  const client = new WebSocketStream(raw[0], 'client', Buffer.alloc(0));
  const server = new WebSocketStream(raw[1], 'server', Buffer.alloc(0));
  for (const one of [client, server]) one.on('error', () => undefined);
  return { client, server, raw };
}

const closed = (stream: WebSocketStream): Promise<string> =>
  new Promise((resolve) => {
    if (stream.destroyed) resolve(stream.errored?.message ?? 'closed');
    stream.once('close', () => resolve(stream.errored?.message ?? 'closed'));
    stream.resume();
  });

const read = async (stream: WebSocketStream, bytes: number): Promise<Buffer> => {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of stream) {
    parts.push(part as Buffer);
    size += (part as Buffer).length;
    if (size >= bytes) break;
  }
  return Buffer.concat(parts);
};

describe('a WebSocket', () => {
  test('says words first, in order, and then carries bytes', async () => {
    const { client, server } = await pair();
    server.say('one');
    server.say('two');
    server.write(Buffer.from('bytes'));
    expect(await client.heard(5, systemTiming)).toBe('one');
    expect(await client.heard(5, systemTiming)).toBe('two');
    expect((await read(client, 5)).toString()).toBe('bytes');
  });

  test.each([1, 125, 126, 65_535, 65_536, 300_001])('carries %i bytes both ways, unchanged', async (size) => {
    const { client, server } = await pair();
    const sent = Buffer.from(Array.from({ length: size }, (_, at) => (at * 7) & 255));
    client.write(Buffer.from(sent));
    expect((await read(server, size)).equals(sent)).toBe(true);
    const back = await pair();
    back.server.write(Buffer.from(sent));
    expect((await read(back.client, size)).equals(sent)).toBe(true);
  });

  test('leaves nothing of what a client says readable on the way', async () => {
    const [one, other] = await sockets();
    const client = new WebSocketStream(one, 'client', Buffer.alloc(0));
    client.write(Buffer.from('a secret that is long enough to be found'));
    const seen: Buffer = await new Promise((resolve) => other.once('data', resolve));
    expect(seen.includes('secret')).toBe(false);
    expect(seen[1]! & 0x80).toBe(0x80);
  });

  test('holds up a sender whose reader stands still', async () => {
    const { client, server } = await pair();
    let sent = 0;
    const chunk = Buffer.alloc(65_536);
    while (sent < 200 << 20 && client.write(chunk)) sent += chunk.length;
    const until = performance.now() + 500;
    while (performance.now() < until) {
      if (!client.writableNeedDrain) {
        client.write(chunk);
        sent += chunk.length;
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    // Buffers of both sockets and both streams.
    expect(sent).toBeLessThan(32 << 20);
    server.destroy();
  });

  test('ends in order when one side does', async () => {
    const { client, server } = await pair();
    client.end('bye');
    expect((await read(server, 4)).toString()).toBe('bye');
    expect(await closed(server)).toBe('closed');
    expect(await closed(client)).toBe('closed');
  });

  test('tells a connection that broke from one that ended', async () => {
    const { server, raw } = await pair();
    const ended = closed(server);
    raw[0].resetAndDestroy();
    expect(await ended).toMatch(/ECONNRESET|broken off/);
    const second = await pair();
    const other = closed(second.server);
    second.raw[0].end();
    expect(await other).toMatch(/without saying so/);
  });

  test('waits for words no longer than it was told', async () => {
    const { client } = await pair();
    await expect(client.heard(0.05, systemTiming)).rejects.toThrow(/nothing was said within/);
  });
});

/** A frame of a client that is masked with zeros: what is in it stands there as it is. */
const frame = (first: number, length: number[], payload = Buffer.alloc(0), masked = true): Buffer =>
  Buffer.concat([
    Buffer.from([first, (masked ? 0x80 : 0) | length[0]!, ...length.slice(1), ...(masked ? [0, 0, 0, 0] : [])]),
    payload,
  ]);

describe('a peer that breaks the rules is cut off:', () => {
  test.each<[string, Buffer, RegExp]>([
    ['bytes that are not masked', frame(0x82, [2], Buffer.from('hi'), false), /masked/],
    ['an extension', frame(0xc2, [0]), /extension/],
    ['a kind that there is not', frame(0x83, [0]), /of a kind/],
    ['a control frame in parts', frame(0x09, [0]), /control/],
    ['a control frame that is long', frame(0x89, [126, 1, 0], Buffer.alloc(256)), /control/],
    ['a part of nothing', frame(0x80, [1], Buffer.from('x')), /out of order/],
    [
      'a message within a message',
      Buffer.concat([frame(0x02, [1], Buffer.from('x')), frame(0x82, [1], Buffer.from('y'))]),
      /out of order/,
    ],
    ['a frame without measure', frame(0x82, [127, 0x7f, 255, 255, 255, 255, 255, 255, 255]), /too long/],
    ['a long speech', frame(0x81, [127, 0, 0, 0, 0, 0, 1, 0, 0]), /too long/],
    [
      'a long speech in parts',
      Buffer.concat([
        frame(0x01, [126, 0x1f, 0], Buffer.alloc(0x1f00)),
        frame(0x00, [126, 0x1f, 0], Buffer.alloc(0x1f00)),
      ]),
      /too long/,
    ],
    [
      'words without end',
      Buffer.concat(Array.from({ length: 6 }, () => frame(0x81, [1], Buffer.from('x')))),
      /more than anybody asked for/,
    ],
  ])('%s', async (_, bytes, why) => {
    const [one, other] = await sockets();
    const server = new WebSocketStream(other, 'server', Buffer.alloc(0));
    const end = closed(server);
    one.write(bytes);
    expect(await end).toMatch(why);
    expect(other.destroyed).toBe(true);
  });

  test('none of this cuts off who keeps them: parts, pings between them, one byte at a time', async () => {
    const [one, other] = await sockets();
    const server = new WebSocketStream(other, 'server', Buffer.alloc(0));
    const said = server.heard(10, systemTiming);
    const bytes = Buffer.concat([
      frame(0x01, [2], Buffer.from('he')),
      frame(0x89, [2], Buffer.from('??')),
      frame(0x80, [3], Buffer.from('llo')),
      frame(0x02, [2], Buffer.from('by')),
      frame(0x8a, [0]),
      frame(0x80, [3], Buffer.from('tes')),
    ]);
    const pongs: Buffer[] = [];
    one.on('data', (part: Buffer) => pongs.push(part));
    for (const byte of bytes) {
      one.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await said).toBe('hello');
    expect((await read(server, 5)).toString()).toBe('bytes');
    expect(Buffer.concat(pongs).toString('latin1')).toBe('\x8a\x02??');
  });

  test('pings without end make nothing grow', async () => {
    const [one, other] = await sockets();
    const server = new WebSocketStream(other, 'server', Buffer.alloc(0));
    server.resume();
    const many = Buffer.concat(Array.from({ length: 2000 }, () => frame(0x89, [125], Buffer.alloc(125))));
    // Nobody reads the answers.
    one.pause();
    for (let turn = 0; turn < 20; turn++) {
      one.write(many);
      await new Promise((resolve) => setTimeout(resolve, 5));
      expect(other.writableLength).toBeLessThan(128 * 1024);
    }
  });
});

test('masks as RFC 6455 does, whatever the alignment', () => {
  const key = Buffer.from([0xa1, 0x00, 0x37, 0xfe]);
  for (let shift = 0; shift < 4; shift++)
    for (const length of [0, 1, 3, 4, 5, 17, 64])
      for (let offset = 0; offset < 4; offset++) {
        const room = Buffer.alloc(shift + length, 0x5a);
        const bytes = room.subarray(shift);
        mask(bytes, key, offset);
        expect([...bytes]).toEqual(Array.from({ length }, (_, at) => 0x5a ^ key[(offset + at) & 3]!));
        expect([...room.subarray(0, shift)].every((byte) => byte === 0x5a)).toBe(true);
      }
});
