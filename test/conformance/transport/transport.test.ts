/** What a connection to a gateway must do, whichever way it goes: straight, over a link, by way of a relay. */
import { createHash, randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { UnknownOutcomeError } from '../../../operator/adapters/provider/errors.ts';
import { hasty, type Way, ways } from './ways.ts';

const sha = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

async function read(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

const eventually = async (what: () => boolean, withinMs = 5000): Promise<void> => {
  const until = performance.now() + withinMs;
  while (!what()) {
    if (performance.now() > until) throw new Error(`not within ${withinMs} ms: ${what}`);
    await sleep(10);
  }
};

async function upgrade(way: Way, path: string): Promise<Duplex> {
  const { socket, head } = await way.client.upgrade({
    method: 'POST',
    path,
    headers: { Connection: 'Upgrade', Upgrade: 'test' },
  });
  if (!socket) throw new Error('no upgrade');
  if (head.length > 0) socket.unshift(head);
  return socket;
}

/** All that is said until the end; rejects when it was broken off. */
const readToEnd = (socket: Duplex): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    socket.on('data', (part: Buffer) => parts.push(part));
    socket.once('end', () => resolve(Buffer.concat(parts)));
    socket.once('close', () => reject(new Error('broken off')));
  });

const bodyOf = async (response: IncomingMessage) => JSON.parse((await read(response)).toString());

describe.each(Object.entries(ways))('%s', (name, make) => {
  let way: Way;
  beforeAll(async () => {
    way = await make({});
  });
  afterAll(() => way?.close());
  const call = (path: string, body?: Buffer) => way.client.send({ method: body ? 'POST' : 'GET', path, body }, 'call');

  test('carries requests, on connections that are used again', async () => {
    for (let turn = 0; turn < 50; turn++)
      expect(await bodyOf(await call('/echo', Buffer.from('x'.repeat(turn))))).toMatchObject({ size: turn });
    expect(way.end.open.size).toBeLessThanOrEqual(2);
  });

  test('carries large bodies both ways, unchanged', async () => {
    const body = randomBytes(12 * 1024 * 1024);
    expect(await bodyOf(await call('/echo', body))).toEqual({ method: 'POST', size: body.length, hash: sha(body) });
    const answer = await read(await call('/bytes/15000001'));
    expect(answer.length).toBe(15_000_001);
    expect(answer.every((byte) => byte === 7)).toBe(true);
  });

  test('carries watches, which share one connection', async () => {
    const before = way.end.open.size;
    const open = await Promise.all(
      ['/a', '/b', '/c'].map((path) => way.client.send({ method: 'GET', path, timeoutSeconds: 5 }, 'watch')),
    );
    for (const [at, response] of open.entries()) {
      const first: Buffer = await new Promise((resolve) => response.once('data', resolve));
      expect(first.toString()).toMatch(new RegExp(`^/${'abc'[at]} \\d`));
    }
    expect(way.end.open.size).toBe(before + 1);
    for (const response of open) response.destroy();
  });

  test('ends one direction after the other, as exec does', async () => {
    const socket = await upgrade(way, '/exec');
    const input = randomBytes(3 * 1024 * 1024);
    const said = readToEnd(socket);
    socket.end(input);
    expect((await said).toString()).toBe(`exit 7 ${sha(input)}`);
    await eventually(() => way.end.ended.some((one) => one.path === '/exec'));
    expect(way.end.ended.find((one) => one.path === '/exec')).toMatchObject({ inOrder: true });
  });

  test('goes on listening to who has ended first', async () => {
    const socket = await upgrade(way, '/leave-first');
    socket.resume();
    await new Promise((resolve) => socket.once('end', resolve));
    socket.write(Buffer.alloc(100_000));
    await sleep(50);
    socket.end(Buffer.alloc(23));
    await eventually(() => way.end.ended.some((one) => one.path === 'heard 100023'));
  });

  test('carries 100 streams at once', async () => {
    const sockets = await Promise.all(Array.from({ length: 100 }, () => upgrade(way, '/echo')));
    await Promise.all(
      sockets.map(async (socket, at) => {
        const said = Buffer.alloc(64 * 1024 + at, at);
        const heard = readToEnd(socket);
        for (let from = 0; from < said.length; from += 5000) socket.write(said.subarray(from, from + 5000));
        socket.end();
        expect((await heard).equals(said)).toBe(true);
      }),
    );
    await eventually(() => way.end.open.size < 60, 20_000);
  });

  test('holds up who sends to a reader that stands still, and nobody else', async () => {
    const stalled = await way.client.send({ method: 'GET', path: '/flood' }, 'stream');
    stalled.pause();
    for (let before = -1; way.end.flooded !== before; await sleep(300)) before = way.end.flooded;
    const held = way.end.flooded;
    expect(held, 'what is on its way has a bound').toBeLessThan(32 * 1024 * 1024);
    const body = randomBytes(8 * 1024 * 1024);
    expect(await bodyOf(await call('/echo', body))).toMatchObject({ size: body.length });
    // A few buffers may still have been filled; a reader that stands still for ever is sent no more than that.
    expect(way.end.flooded).toBeLessThan(held + 8 * 1024 * 1024);
    stalled.destroy();
  });

  test('tells a connection that was cut from one that ended', async () => {
    const response = await way.client.send({ method: 'GET', path: '/bytes/1000000000' }, 'stream');
    const socket = await upgrade(way, '/echo');
    const heard = readToEnd(socket).then(
      () => 'ended',
      () => 'broken off',
    );
    const body = read(response).then(
      () => 'whole',
      () => 'broken off',
    );
    socket.write('hello');
    await sleep(100);
    for (const wire of way.wires) wire.cut();
    expect(await body).toBe('broken off');
    // A socket that was reset has no end, however it is told.
    expect(await heard).toBe('broken off');
    await eventually(() => way.end.open.size === 0, 10_000);
    for (const wire of way.wires) wire.mend();
    const at = performance.now();
    await eventuallyServed(way);
    expect(performance.now() - at).toBeLessThan(5000);
  });

  test('is back within 5 s of an outage, however long, for calls and watches', async () => {
    for (const wire of way.wires) wire.cut();
    await sleep(4000);
    const asked = { method: 'GET', path: '/echo', timeoutSeconds: 3 };
    const lost = way.client.send(asked, 'call').catch((error: unknown) => error);
    expect(await Promise.race([lost, sleep(6000).then(() => 'waits for ever')])).toBeInstanceOf(UnknownOutcomeError);
    for (const wire of way.wires) wire.mend();
    const at = performance.now();
    await eventuallyServed(way);
    const watch = await way.client.send({ method: 'GET', path: '/again', timeoutSeconds: 5 }, 'watch');
    await new Promise((resolve) => watch.once('data', resolve));
    expect(performance.now() - at).toBeLessThan(5000);
    watch.destroy();
  }, 30_000);

  test('lives through a hiccup of the path', async () => {
    const socket = await upgrade(way, '/echo');
    for (const wire of way.wires) wire.freeze();
    socket.write('before');
    await sleep(1500);
    for (const wire of way.wires) wire.mend();
    const heard: Buffer = await new Promise((resolve, reject) => {
      socket.once('data', resolve);
      socket.once('close', () => reject(new Error('broken off')));
    });
    expect(heard.toString()).toBe('before');
    socket.destroy();
  });

  if (name !== 'direct')
    test('hands over from one process of the gateway to the next: what is open goes on there', async () => {
      const socket = await upgrade(way, '/echo');
      const close = await way.replace!();
      const closed = close();
      expect(await bodyOf(await call('/echo', Buffer.from('new')))).toMatchObject({ size: 3 });
      socket.write('still');
      const heard: Buffer = await new Promise((resolve) => socket.once('data', resolve));
      expect(heard.toString()).toBe('still');
      const ended = readToEnd(socket);
      socket.end();
      await ended;
      // No longer than its last connection: pooled ones are told to go.
      way.client.close();
      await closed;
      await eventuallyServed(way);
    }, 40_000);
});

async function eventuallyServed(way: Way): Promise<void> {
  for (;;) {
    try {
      const response = await way.client.send({ method: 'GET', path: '/echo' }, 'call');
      response.resume();
      return;
    } catch (error) {
      if (!(error instanceof UnknownOutcomeError)) throw error;
      await sleep(50);
    }
  }
}

describe.each([
  ['reverse', ways.reverse],
  ['relay', ways.relay],
] as const)('%s, where a path falls silent for good', (_, make) => {
  let way: Way;
  afterEach(() => way?.close());
  test('finds out, and dials anew', async () => {
    way = await make({ clock: hasty });
    await eventuallyServed(way);
    const socket = await upgrade(way, '/echo');
    const gone = new Promise((resolve) => socket.once('close', resolve));
    for (const wire of way.wires) wire.freeze();
    await sleep(500);
    // A router that was restarted: what was there before is silent for ever, what comes new is well.
    for (const wire of way.wires) wire.mend({ forget: true });
    await gone;
    await eventuallyServed(way);
  });
});
