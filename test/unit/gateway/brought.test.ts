/** The gateway serves a connection that a link brought as one that its listener accepted. */
import http2 from 'node:http2';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import tls from 'node:tls';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { selfSigned } from '../../../operator/adapters/gateway/certificate.ts';
import { createGateway, type Gateway } from '../../../operator/gateway/app.ts';

let pair: { cert: string; key: string };
beforeAll(async () => {
  pair = await selfSigned(['gateway'], new Date());
});
const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

function gateway(
  options: {
    tls?: typeof pair;
    requestsPerSecond?: number;
    maxConnections?: number;
    unprovenConnections?: number;
  } = {},
): Gateway {
  const made = createGateway({
    service: { info: () => ({ name: 'here' }), offers: () => ({ offers: [] }) } as never,
    upstream: {} as never,
    tokenKey: Buffer.alloc(32, 1),
    publicUrls: ['https://x'],
    now: () => new Date('2026-01-01T00:00:00Z'),
    log: quiet as never,
    ...options,
  });
  closing.push(() => made.close());
  return made;
}

/** Two ends of a connection that no listener of the gateway knows. */
async function ends(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const one = connect((server.address() as AddressInfo).port, '127.0.0.1');
  const pairOf: [Socket, Socket] = [one, await accepted];
  for (const socket of pairOf) socket.on('error', () => undefined);
  closing.push(() => {
    one.destroy();
    server.close();
  });
  return pairOf;
}

const secure = (socket: Socket, ALPNProtocols = ['http/1.1']): Promise<tls.TLSSocket> =>
  new Promise((resolve, reject) => {
    const made = tls.connect({ socket, rejectUnauthorized: false, ALPNProtocols }, () => resolve(made));
    made.once('error', reject);
  });

const ask = (socket: NodeJS.ReadWriteStream, what = 'GET /v1/provider HTTP/1.1\r\nhost: x\r\n\r\n'): Promise<string> =>
  new Promise((resolve) => {
    let said = '';
    socket.on('data', (part) => {
      said += part;
      if (/\r\n\r\n.*}/s.test(said)) resolve(said);
    });
    socket.write(what);
  });

test('by TLS, and with its own certificate', async () => {
  const [here, there] = await ends();
  const it = gateway({ tls: pair });
  await it.app.ready();
  expect(it.take(there, '192.0.2.1')).toBe(true);
  expect(await ask(await secure(here))).toMatch(/^HTTP\/1.1 200 .*"name":"here"/s);
});

test('with a certificate that was renewed since', async () => {
  const [here, there] = await ends();
  const it = gateway({ tls: pair });
  await it.app.ready();
  const next = await selfSigned(['renewed'], new Date());
  it.setTls(next);
  it.take(there, '192.0.2.1');
  const socket = await secure(here);
  expect(socket.getPeerX509Certificate()?.subjectAltName).toMatch(/renewed/);
});

test('over HTTP/2, for watches', async () => {
  const [here, there] = await ends();
  const it = gateway({ tls: pair });
  await it.app.ready();
  it.take(there, '192.0.2.1');
  const socket = await secure(here, ['h2']);
  expect(socket.alpnProtocol).toBe('h2');
  const session = http2.connect('https://x', { createConnection: () => socket });
  session.on('error', () => undefined);
  closing.push(() => session.destroy());
  const status = await new Promise((resolve) =>
    session.request({ ':path': '/v1/leases/x/kube/pods?watch=true' }).once('response', (h) => resolve(h[':status'])),
  );
  expect(status).toBe(404);
});

test('and counts requests for whoever the link says that it is for', async () => {
  const it = gateway({ tls: pair, requestsPerSecond: 1 });
  await it.app.ready();
  const from = async (address: string) => {
    const [here, there] = await ends();
    it.take(there, address);
    const said = await ask(
      await secure(here),
      'POST /v1/quotes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}',
    );
    return said.slice(9, 12);
  };
  const told: string[] = [];
  for (let turn = 0; turn < 6; turn++) told.push(await from('192.0.2.1'));
  expect(told.slice(0, 4).every((one) => one !== '429')).toBe(true);
  expect(told.slice(4)).toEqual(['429', '429']);
  expect(await from('192.0.2.2')).not.toBe('429');
});

test('but no more than it may have, and none that says nothing', async () => {
  const it = gateway({ tls: pair, maxConnections: 2 });
  await it.app.ready();
  const [, first] = await ends();
  const [, second] = await ends();
  const [, third] = await ends();
  expect([first, second, third].map((socket) => it.take(socket, '192.0.2.1'))).toEqual([true, true, false]);
  await new Promise<void>((resolve) => {
    first.once('close', () => resolve());
    first.destroy();
  });
  expect(it.take(third, '192.0.2.1')).toBe(true);
});

test('nor does it get more by naming somebody else for each', async () => {
  const it = gateway({ tls: pair, requestsPerSecond: 1 });
  await it.app.ready();
  const quote = 'POST /v1/quotes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}';
  const told: string[] = [];
  // Ten addresses' worth, which is forty requests at once: fifteen callers with three each are more than that.
  for (let caller = 0; caller < 15; caller++) {
    const [here, there] = await ends();
    it.take(there, `192.0.2.${caller}`, 'relay.example.com');
    const socket = await secure(here);
    for (let turn = 0; turn < 3; turn++) told.push((await ask(socket, quote)).slice(9, 12));
  }
  expect(told.slice(0, 40)).not.toContain('429');
  expect(told.slice(40)).toEqual(['429', '429', '429', '429', '429']);
  // Who comes by another link is none the worse.
  const [here, there] = await ends();
  it.take(there, '192.0.2.1', 'other.example.com');
  expect((await ask(await secure(here), quote)).slice(9, 12)).not.toBe('429');
});

test('and the oldest that says nothing gives way, whomever it is said to be from', async () => {
  const it = gateway({ tls: pair, unprovenConnections: 2 });
  await it.app.ready();
  const taken: Socket[] = [];
  const brings = async (from: string, place: string) => {
    const [, there] = await ends();
    it.take(there, from, place);
    taken.push(there);
  };
  await brings('192.0.2.1', 'other.example.com');
  for (const from of ['a', 'b', 'c', 'd']) await brings(from, 'relay.example.com');
  expect(taken.map(({ destroyed }) => destroyed)).toEqual([false, true, true, false, false]);
});
