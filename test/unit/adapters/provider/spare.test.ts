import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { createHttpClient } from '../../../../operator/adapters/provider/http.ts';
import { keepSpare } from '../../../../operator/adapters/provider/spare.ts';
import { manualClock } from '../../../support/clock.ts';

const stream = () => new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() });

describe('a spare connection', () => {
  const made: Duplex[] = [];
  let refused = false;
  const dial = async () => {
    if (refused) throw new Error('refused');
    const socket = stream();
    made.push(socket);
    return socket;
  };
  afterEach(() => {
    for (const socket of made.splice(0)) socket.destroy();
    refused = false;
  });

  test('is dialled a moment after a stream was opened, and is what the next one gets', async () => {
    const clock = manualClock();
    const spare = keepSpare(dial, clock);
    expect(await spare.dial()).toBe(made[0]);
    spare.opened();
    spare.opened();
    await clock.advance(24);
    expect(made).toHaveLength(1);
    await clock.advance(1);
    spare.opened();
    await clock.advance(25);
    expect(made).toHaveLength(2);
    expect(await spare.dial()).toBe(made[1]);
    expect(made[1]!.listenerCount('data')).toBe(0);
    expect(await spare.dial()).toBe(made[2]);
    // That of the one which was taken does not end it.
    await clock.advance(10_000);
    expect(made.some((socket) => socket.destroyed)).toBe(false);
    expect(clock.pendingTimers).toBe(0);
  });

  test('is dropped when nobody takes it', async () => {
    const clock = manualClock();
    const spare = keepSpare(dial, clock);
    spare.opened();
    await clock.advance(25);
    await clock.advance(4999);
    expect(made[0]!.destroyed).toBe(false);
    await clock.advance(1);
    expect(made[0]!.destroyed).toBe(true);
    expect(await spare.dial()).toBe(made[1]);
  });

  test.each([
    ['ends', (socket: Duplex) => void socket.push(null)],
    ['breaks', (socket: Duplex) => void socket.destroy(new Error('reset'))],
    [
      'says something that nobody asked for',
      (socket: Duplex) => void socket.push('HTTP/1.1 408 Request Timeout\r\n\r\n'),
    ],
  ])('is not given out when it %s', async (_, spoil) => {
    const clock = manualClock();
    const spare = keepSpare(dial, clock);
    spare.opened();
    await clock.advance(25);
    spoil(made[0]!);
    await sleep(5);
    expect(made[0]!.destroyed).toBe(true);
    expect(await spare.dial()).toBe(made[1]);
    expect(clock.pendingTimers).toBe(0);
  });

  test('that cannot be made fails nobody, and is tried again after the next stream', async () => {
    const clock = manualClock();
    const spare = keepSpare(dial, clock);
    refused = true;
    spare.opened();
    await clock.advance(25);
    await expect(spare.dial()).rejects.toThrow('refused');
    refused = false;
    spare.opened();
    await clock.advance(25);
    expect(made).toHaveLength(1);
    expect(await spare.dial()).toBe(made[0]);
  });

  test('goes when its client is closed, and none is made afterwards', async () => {
    const clock = manualClock();
    const spare = keepSpare(dial, clock);
    spare.opened();
    await clock.advance(25);
    spare.close();
    expect(made[0]!.destroyed).toBe(true);
    spare.opened();
    await clock.advance(100);
    expect(made).toHaveLength(1);

    const other = keepSpare(dial, clock);
    other.opened();
    other.close();
    await clock.advance(100);
    expect(made).toHaveLength(1);
  });
});

test('the second upgrade of a client goes over a connection that was there before it', async () => {
  const seen: { readonly socket: Socket; text: string }[] = [];
  const server = createServer((socket) => {
    const one = { socket, text: '' };
    seen.push(one);
    socket.on('error', () => undefined);
    socket.on('data', (chunk) => {
      one.text += String(chunk);
      if (one.text.endsWith('\r\n\r\n'))
        socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\nhello');
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = createHttpClient({
    host: 'gateway',
    timeoutSeconds: 5,
    spare: true,
    dial: async () => {
      const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
      await once(socket, 'connect');
      return socket;
    },
  });
  const upgrade = async (path: string) => {
    const headers = { Connection: 'Upgrade', Upgrade: 'echo' };
    const { socket, head } = await client.upgrade({ method: 'GET', path, headers });
    const said = head!.length > 0 ? head : (await once(socket!, 'data'))[0];
    expect(String(said)).toBe('hello');
    socket!.destroy();
  };
  try {
    await upgrade('/one');
    await expect.poll(() => seen.length).toBe(2);
    expect(seen[1]!.text).toBe('');
    await upgrade('/two');
    expect(seen[0]!.text).toContain('GET /one ');
    expect(seen[1]!.text).toContain('GET /two ');
  } finally {
    client.close();
    server.close();
  }
  // The spare that the second one brought, too.
  await once(server, 'close');
});
