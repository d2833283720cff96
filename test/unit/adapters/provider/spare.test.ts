import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { type SpareDial, withSpare } from '../../../../operator/adapters/provider/spare.ts';

let server: net.Server;
let accepted: Socket[];
let dialled: Socket[];
let spare: SpareDial;

beforeEach(async () => {
  accepted = [];
  dialled = [];
  server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined);
    accepted.push(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  spare = withSpare(dial);
});
afterEach(() => {
  vi.useRealTimers();
  spare.close();
  for (const socket of [...accepted, ...dialled]) socket.destroy();
  server.close();
});

async function dial(): Promise<Socket> {
  const { port } = server.address() as AddressInfo;
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  await once(socket, 'connect');
  socket.on('error', () => undefined);
  dialled.push(socket);
  return socket;
}

async function prepared(): Promise<Socket> {
  spare.prepare();
  await vi.waitUntil(() => dialled.length > 0 && accepted.length > 0);
  await Promise.resolve();
  return dialled[0]!;
}

test('gives what was made ahead, once, and it can be used', async () => {
  const first = await prepared();
  const socket = (await spare.dial()) as Socket;
  expect(socket).toBe(first);
  accepted[0]!.once('data', (data) => accepted[0]!.end(`you said ${data}`));
  socket.end('hello');
  let heard = '';
  for await (const chunk of socket) heard += chunk;
  expect(heard).toBe('you said hello');
  expect(await spare.dial()).not.toBe(first);
});

test('makes one at a time', async () => {
  spare.prepare();
  const first = await prepared();
  spare.prepare();
  await sleep(50);
  expect(dialled).toEqual([first]);
});

test.each([
  ['ended', (socket: Socket) => socket.end()],
  ['reset', (socket: Socket) => socket.resetAndDestroy()],
  ['answered unasked', (socket: Socket) => socket.write('HTTP/1.1 408 Request Timeout\r\n\r\n')],
])('one that the other side has %s is not given', async (_, by) => {
  const first = await prepared();
  by(accepted[0]!);
  await sleep(50);
  const socket = await spare.dial();
  expect(socket).not.toBe(first);
  expect(first.destroyed).toBe(true);
});

test('is not held open for long', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const first = await prepared();
  vi.advanceTimersByTime(1_900);
  expect(first.destroyed).toBe(false);
  vi.advanceTimersByTime(200);
  expect(first.destroyed).toBe(true);
});

test('what cannot be made ahead is the next caller’s to find out', async () => {
  let calls = 0;
  const failing = withSpare(() => {
    calls += 1;
    return Promise.reject(new Error('nobody answers'));
  });
  failing.prepare();
  await sleep(10);
  await expect(failing.dial()).rejects.toThrow('nobody answers');
  expect(calls).toBe(2);
});

test('what is on its way when it closes is dropped', async () => {
  spare.prepare();
  spare.close();
  await vi.waitUntil(() => dialled[0]?.destroyed === true);
});

test('HTTP/2 is asked for from the start of a connection', async () => {
  const first = await prepared();
  expect(await spare.dial('h2')).not.toBe(first);
  expect(await spare.dial()).toBe(first);
});
