import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import tls from 'node:tls';
import { afterEach, expect, test } from 'vitest';
import { dialTls, tlsTo } from '../../../../operator/adapters/provider/dial.ts';
import { IdentityMismatchError } from '../../../../operator/adapters/provider/errors.ts';
import { authority, type Pair } from './tls.ts';

const open: { destroy?(): void; close?(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0)) (one.destroy ?? one.close)?.call(one);
});

async function gateway(pair: Pair): Promise<tls.Server> {
  const server = tls.createServer({ cert: pair.cert, key: pair.key }, (socket) => {
    socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  open.push(server);
  return server;
}
const urlOf = (server: tls.Server) => `https://127.0.0.1:${(server.address() as AddressInfo).port}`;

async function resumed(dial: ReturnType<typeof dialTls>): Promise<boolean> {
  const socket = (await dial()) as tls.TLSSocket;
  open.push(socket);
  if (!socket.isSessionReused()) await once(socket, 'session');
  return socket.isSessionReused();
}

test('a second connection takes up the session of the first', async () => {
  const ca = await authority('ca');
  const server = await gateway(await ca.issue([{ CN: ['gateway'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] }));
  const dial = dialTls({ url: urlOf(server), caBundle: ca.pem }, 5);
  expect(await resumed(dial)).toBe(false);
  expect(await resumed(dial)).toBe(true);
});

test('a pinned key is looked at when a session is taken up, too', async () => {
  const ca = await authority('ca');
  const pair = await ca.issue([{ CN: ['gateway'] }]);
  const server = await gateway(pair);
  const dial = dialTls({ url: urlOf(server), spkiSHA256: pair.spki }, 5);
  expect(await resumed(dial)).toBe(false);
  expect(await resumed(dial)).toBe(true);

  const port = (server.address() as AddressInfo).port;
  server.close();
  for (const one of open) one.destroy?.();
  await once(server, 'close');
  const other = await ca.issue([{ CN: ['gateway'] }]);
  const impostor = tls.createServer({ cert: other.cert, key: other.key }).listen(port, '127.0.0.1');
  await once(impostor, 'listening');
  open.push(impostor);
  await expect(dial()).rejects.toThrow(IdentityMismatchError);
});

test('a session is taken up for the pins that it was made with, and for no others', async () => {
  const ca = await authority('ca');
  const pair = await ca.issue([{ CN: ['gateway'] }]);
  const start = tlsTo({ url: urlOf(await gateway(pair)) }, 5);
  const dial = () => start('http/1.1', undefined, pair.spki);
  expect(await resumed(dial)).toBe(false);
  expect(await resumed(dial)).toBe(true);
  await expect(start('http/1.1', undefined, 'a'.repeat(64))).rejects.toThrow(IdentityMismatchError);
});
