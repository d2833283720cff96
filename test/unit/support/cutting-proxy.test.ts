/** The wire that fault tests cut must itself be sound: what it says it does to connections, it does. */
import { createServer, connect as dial, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { type CuttingProxy, startCuttingProxy } from '../../support/cutting-proxy.ts';

let wire: CuttingProxy | undefined;
const servers: Server[] = [];
const sockets: Socket[] = [];

afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  await wire?.close();
  for (const server of servers.splice(0)) server.close();
});

/** Answers each connection with its name, then with what it hears. */
async function echo(name: string): Promise<string> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    socket.on('error', () => socket.destroy());
    socket.write(`${name}:`);
    socket.pipe(socket);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `tcp://127.0.0.1:${(server.address() as { port: number }).port}`;
}

interface Client {
  readonly socket: Socket;
  text: string;
  error?: string;
  closed: boolean;
}

function client(port: number): Client {
  const socket = dial({ port, host: '127.0.0.1', allowHalfOpen: true });
  const made: Client = { socket, text: '', closed: false };
  sockets.push(socket);
  socket.on('data', (chunk) => {
    made.text += chunk;
  });
  socket.on('error', (error: NodeJS.ErrnoException) => {
    made.error = error.code;
  });
  socket.on('close', () => {
    made.closed = true;
  });
  return made;
}

const until = async (holds: () => boolean) => {
  for (let i = 0; i < 400 && !holds(); i++) await sleep(10);
  expect(holds()).toBe(true);
};

it('passes bytes on both ways, and a half-closed side does not end the other', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const one = client(wire.port);
  one.socket.end('hello');
  await until(() => one.text === 'a:hello' && one.closed);
  expect(one.error).toBeUndefined();
});

it('resets what is open, and takes new connections', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const one = client(wire.port);
  await until(() => one.text === 'a:');
  wire.reset();
  await until(() => one.closed);
  expect(one.error).toBe('ECONNRESET');
  const two = client(wire.port);
  await until(() => two.text === 'a:');
});

it('takes none while it is cut', async () => {
  wire = await startCuttingProxy(await echo('a'));
  wire.cut();
  const one = client(wire.port);
  await until(() => one.closed);
  expect(one.text).toBe('');
  wire.mend();
  const two = client(wire.port);
  await until(() => two.text === 'a:');
});

it('is silent while frozen, and goes on where it stood', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const one = client(wire.port);
  await until(() => one.text === 'a:');
  wire.freeze();
  one.socket.write('late');
  const two = client(wire.port);
  await sleep(150);
  expect([one.text, one.closed, two.text, two.closed]).toEqual(['a:', false, '', false]);
  wire.mend();
  await until(() => one.text === 'a:late' && two.text === 'a:');
});

it('leaves frozen connections silent for ever when they are forgotten', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const one = client(wire.port);
  await until(() => one.text === 'a:');
  wire.freeze();
  wire.mend({ forget: true });
  one.socket.write('lost');
  const two = client(wire.port);
  await until(() => two.text === 'a:');
  await sleep(100);
  expect([one.text, one.closed]).toEqual(['a:', false]);
});

it('delays, and limits how much goes through in a second', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const one = client(wire.port);
  await until(() => one.text === 'a:');
  wire.delay(150);
  const since = performance.now();
  one.socket.write('x');
  await until(() => one.text === 'a:x');
  expect(performance.now() - since).toBeGreaterThan(280); // there and back
  wire.mend();
  wire.limit(100_000);
  const again = performance.now();
  one.socket.write(Buffer.alloc(20_000, 'y'));
  await until(() => one.text.length === 20_003);
  expect(performance.now() - again).toBeGreaterThan(180);
});

it('deals connections out in turn, and passes over a target that is down', async () => {
  wire = await startCuttingProxy(await echo('a'));
  const other = await echo('b');
  wire.aim(['tcp://127.0.0.1:1', other]);
  for (let i = 0; i < 3; i++) {
    const one = client(wire.port);
    await until(() => one.text === 'b:');
  }
});
