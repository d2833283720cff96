import { describe, expect, test } from 'vitest';
import { tellLoss } from '../../../operator/kubelet/api/loss.ts';

const v4 = { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'v4.channel.k8s.io' };

function frame(stream: number, payload: string | Buffer, flags = 0): Buffer {
  const data = Buffer.from(payload);
  const header = Buffer.alloc(8);
  header.writeUInt32BE(stream, 0);
  header.writeUInt32BE(((flags << 24) | data.length) >>> 0, 4);
  return Buffer.concat([header, data]);
}
/** SYN_REPLY and the like: version 3, type 2. */
const control = (payload: string): Buffer => {
  const bytes = frame(0, payload);
  bytes.writeUInt32BE(0x80030002, 0);
  return bytes;
};
const said = frame(1, '{"status":"Success"}', 1);

/** What a caller gets of what the provider said, in chunks of that many bytes. */
async function passed(bytes: Buffer, chunkBytes: number): Promise<Buffer> {
  const through = tellLoss(v4)!;
  const out: Buffer[] = [];
  through.on('data', (chunk: Buffer) => out.push(chunk));
  for (let at = 0; at < bytes.length; at += chunkBytes) through.write(bytes.subarray(at, at + chunkBytes));
  through.end();
  await new Promise((resolve) => through.once('end', resolve));
  return Buffer.concat(out);
}

const output = Buffer.concat([control('reply'), frame(5, 'out'), frame(7, ''), frame(5, Buffer.alloc(70_000, 'x'))]);

describe.each([1, 3, 8, 9, 4096, 1_000_000])('in chunks of %i bytes', (size) => {
  test.each<[string, Buffer]>([
    ['a success', Buffer.concat([output, said, frame(5, '', 1)])],
    ['a status before the last output', Buffer.concat([said, output])],
    ['a status alone', said],
  ])('what ends with %s comes as it was', async (_, bytes) => {
    expect((await passed(bytes, size)).equals(bytes)).toBe(true);
  });

  test.each<[string, Buffer, Buffer]>([
    ['nothing', Buffer.alloc(0), Buffer.alloc(0)],
    ['output', output, output],
    ['half a frame', Buffer.concat([output, frame(5, 'cut off').subarray(0, 11)]), output],
    ['half a header', Buffer.concat([output, Buffer.from([0, 0, 0])]), output],
    ['half a status', Buffer.concat([output, said.subarray(0, 12)]), output],
    ['an empty status', Buffer.concat([output, frame(1, '', 1)]), Buffer.concat([output, frame(1, '', 1)])],
  ])('what ends with %s is told to be lost, between two frames', async (_, bytes, kept) => {
    const got = await passed(bytes, size);
    expect(got.subarray(0, kept.length).equals(kept)).toBe(true);
    const told = got.subarray(kept.length);
    expect([told.readUInt32BE(0), told[4], told.readUIntBE(5, 3)]).toEqual([1, 1, told.length - 8]);
    expect(JSON.parse(told.subarray(8).toString())).toMatchObject({
      kind: 'Status',
      status: 'Failure',
      message: expect.stringContaining('was lost'),
    });
  });
});

test('what are no frames goes through as it is', async () => {
  const bytes = Buffer.alloc(100_000, 0xff);
  expect((await passed(bytes, 4096)).equals(bytes)).toBe(true);
});

test('what has arrived of a frame waits for no longer than its rest', async () => {
  const through = tellLoss(v4)!;
  const out: number[] = [];
  through.on('data', (chunk: Buffer) => out.push(chunk.length));
  through.write(frame(5, 'one'));
  through.write(frame(5, 'two').subarray(0, 9));
  await new Promise((resolve) => setImmediate(resolve));
  expect(out).toEqual([11]);
  through.write(frame(5, 'two').subarray(9));
  await new Promise((resolve) => setImmediate(resolve));
  expect(out).toEqual([11, 11]);
  through.destroy();
});

test.each([
  ['WebSocket', { upgrade: 'websocket', 'sec-websocket-protocol': 'v5.channel.k8s.io' }],
  [
    'older protocols, which do not always tell',
    { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'v3.channel.k8s.io' },
  ],
  ['port-forwards', { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'portforward.k8s.io' }],
  ['nothing agreed on', { upgrade: 'SPDY/3.1' }],
])('%s need no such thing', (_, headers) => {
  expect(tellLoss(headers)).toBeUndefined();
});
