/** Watches over few connections, where the server can: of all leases at a gateway, of all tenants at an API server. */
import http2 from 'node:http2';
import https from 'node:https';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import tls, { type TLSSocket } from 'node:tls';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { connectGateway } from '../../../operator/adapters/provider/gateway-client.ts';
import { createSharedWatches } from '../../../operator/adapters/shared-watches.ts';
import { connectCluster } from '../../../operator/engine/cluster.ts';
import { type Authority, authority, type Pair } from './provider/tls.ts';

let ca: Authority;
let pair: Pair;
beforeAll(async () => {
  ca = await authority('gateway-ca');
  pair = await ca.issue([{ CN: ['gateway'] }], { san: [{ type: 'dns', value: 'gpu.example.com' }] });
});
const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0).reverse()) close();
});

type Request = http2.Http2ServerRequest;
type Response = http2.Http2ServerResponse;

interface Gateway {
  readonly url: string;
  /** Connections that were made, by what is spoken on them. */
  readonly made: string[];
  /** Watches that are open, by path; each a way to write on. */
  readonly watches: { path: string; response: Response; authorization?: string; certificate?: string }[];
  readonly sockets: Set<Socket>;
  tokens: number;
}

async function gateway(
  options: { h2?: boolean; maxConcurrentStreams?: number; refuseFirst?: boolean } = {},
): Promise<Gateway> {
  const it: Gateway = { url: '', made: [], watches: [], sockets: new Set(), tokens: 0 };
  const answer = (request: Request, response: Response) => {
    const path = request.url;
    request.resume();
    if (path.endsWith('/token')) {
      it.tokens += 1;
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ token: `t${it.tokens}`, expiresAt: Math.floor(Date.now() / 1000) + 600 }));
      return;
    }
    const { authorization } = request.headers;
    if (options.refuseFirst && authorization === 'Bearer t1') {
      response.writeHead(401, { 'content-type': 'application/problem+json' });
      response.end('{"title":"Unauthorized","status":401,"type":"about:blank"}');
      return;
    }
    response.writeHead(200, { 'content-type': 'application/json' });
    response.write(`{"path":"${path}"}\n`);
    const certificate = (request.socket as TLSSocket).getPeerCertificate()?.subject?.CN as string | undefined;
    it.watches.push({ path, response, authorization, certificate });
    response.on('close', () =>
      it.watches.splice(
        it.watches.findIndex((one) => one.response === response),
        1,
      ),
    );
  };
  const keys = { key: pair.key, cert: pair.cert, requestCert: true, rejectUnauthorized: false };
  const server =
    options.h2 === false
      ? https.createServer(keys, answer as never)
      : http2.createSecureServer(
          { ...keys, allowHTTP1: true, settings: { maxConcurrentStreams: options.maxConcurrentStreams ?? 100 } },
          answer,
        );
  server.on('secureConnection', (socket) => {
    it.made.push(String(socket.alpnProtocol));
    it.sockets.add(socket);
  });
  server.on('tlsClientError', () => it.made.push('refused'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    for (const socket of it.sockets) socket.destroy();
    server.close();
  });
  return Object.assign(it, { url: `https://127.0.0.1:${(server.address() as AddressInfo).port}` });
}

function leasesAt({ url }: Gateway) {
  const client = connectGateway({
    endpoint: { url, caBundle: ca.pem, serverName: 'gpu.example.com' },
    timeoutSeconds: 2,
  });
  closing.push(() => client.close());
  return (number: number) =>
    client.lease({
      leaseId: `0x${String(number).repeat(64)}`,
      provider: `0x${'a'.repeat(40)}`,
      signAccess: async () => '0x12',
      now: () => new Date(),
    });
}

const request = { method: 'GET', path: 'kube/pods?watch=true' };
async function firstLine(response: AsyncIterable<Buffer>): Promise<string> {
  for await (const chunk of response) return String(chunk);
  return '';
}

test('of several leases share one connection, each with its own token', async () => {
  const at = await gateway();
  const lease = leasesAt(at);
  const responses = await Promise.all([1, 2, 3].map((number) => lease(number).raw(request)));
  expect(responses.map(({ statusCode }) => statusCode)).toEqual([200, 200, 200]);
  expect(responses[0]!.headers['content-type']).toBe('application/json');
  expect(at.made.filter((protocol) => protocol === 'h2')).toHaveLength(1);
  expect(new Set(at.watches.map(({ authorization }) => authorization)).size).toBe(3);
  expect(await firstLine(responses[1]!)).toContain(`/v1/leases/0x${'2'.repeat(64)}/kube/pods?watch=true`);
  // Whoever stopped reading took its own watch along, and no other.
  await expect.poll(() => at.watches.length).toBe(2);
});

test('end as the gateway ends them, in order or not', async () => {
  const at = await gateway();
  const lease = leasesAt(at);
  const [orderly, broken] = await Promise.all([1, 2].map((number) => lease(number).raw(request)));
  const read = async (response: AsyncIterable<Buffer>) => {
    let text = '';
    for await (const chunk of response) text += String(chunk);
    return text;
  };
  const reading = [read(orderly!), read(broken!)];
  const outcomes = Promise.allSettled(reading);
  const of = (number: number) => at.watches.find(({ path }) => path.includes(`0x${number}`))!.response;
  of(2).stream.destroy(new Error('the API server is gone'));
  of(1).end('{"last":1}\n');
  const [first, second] = await outcomes;
  expect(first).toMatchObject({ status: 'fulfilled', value: expect.stringContaining('"last"') });
  expect(orderly!.complete).toBe(true);
  expect(second!.status).toBe('rejected');
  expect(broken!.complete).toBe(false);
});

test('go on over another connection when theirs is lost', async () => {
  const at = await gateway();
  const lease = leasesAt(at);
  const first = await lease(1).raw(request);
  const reading = (async () => {
    for await (const _ of first);
  })().then(
    () => first.complete,
    () => false,
  );
  for (const socket of at.sockets) socket.destroy();
  expect(await reading).toBe(false);
  const again = await lease(1).raw(request);
  expect(again.statusCode).toBe(200);
  expect(at.made.filter((protocol) => protocol === 'h2')).toHaveLength(2);
});

test('take a second connection where one may hold no more', async () => {
  const at = await gateway({ maxConcurrentStreams: 2 });
  const lease = leasesAt(at);
  for (const number of [1, 2, 3, 4, 5]) expect((await lease(number).raw(request)).statusCode).toBe(200);
  expect(at.made.filter((protocol) => protocol === 'h2')).toHaveLength(3);
});

test('are given up one by one', async () => {
  const at = await gateway();
  const lease = leasesAt(at);
  const stop = new AbortController();
  const responses = await Promise.all([lease(1).raw(request, stop.signal), lease(2).raw(request)]);
  stop.abort(new Error('enough'));
  await expect.poll(() => at.watches.map(({ path }) => path.slice(11, 14))).toEqual(['0x2']);
  responses[1]!.destroy();
  await expect(lease(3).raw(request, stop.signal)).rejects.toThrow('enough');
});

test('are asked for once more with a new token', async () => {
  const at = await gateway({ refuseFirst: true });
  const response = await leasesAt(at)(1).raw(request);
  expect(response.statusCode).toBe(200);
  expect(at.tokens).toBe(2);
});

test('have connections of their own at a gateway that speaks HTTP/1.1 only, which is not asked each time', async () => {
  const at = await gateway({ h2: false });
  const lease = leasesAt(at);
  for (const number of [1, 2, 3]) {
    const response = await lease(number).raw(request);
    expect(response.statusCode).toBe(200);
    expect(await firstLine(response)).toContain('/kube/pods?watch=true');
  }
  expect(at.made.filter((protocol) => protocol === 'refused')).toHaveLength(1);
});

test('from nobody were never sent', async () => {
  const at = await gateway();
  const lease = leasesAt(at)(1);
  await lease.raw(request); // has its token
  for (const close of closing.splice(0, 1)) close();
  await new Promise((resolve) => setTimeout(resolve, 50));
  await expect(lease.raw(request)).rejects.toMatchObject({ name: 'UnknownOutcomeError', neverSent: true });
});

const pods = (over: 'watches' | 'streams' = 'watches') =>
  ({ method: 'GET', path: '/api/v1/pods?watch=true', over }) as const;

/** Who we are by a certificate. */
async function clusterAt({ url }: Gateway, caPem = ca.pem) {
  const us = await ca.issue([{ CN: ['us'] }], { client: true });
  const base64 = (text: string) => Buffer.from(text).toString('base64');
  const kubeconfig = JSON.stringify({
    'current-context': 'it',
    contexts: [{ name: 'it', context: { cluster: 'it', user: 'us' } }],
    clusters: [
      {
        name: 'it',
        cluster: { server: url, 'certificate-authority-data': base64(caPem), 'tls-server-name': 'gpu.example.com' },
      },
    ],
    users: [{ name: 'us', user: { 'client-certificate-data': base64(us.cert), 'client-key-data': base64(us.key) } }],
  });
  return connectCluster({
    name: 'it',
    kubeconfig,
    shareWatches(to) {
      const watches = createSharedWatches(to);
      closing.push(() => watches.close());
      return watches;
    },
  });
}

test('of tenants at an API server share one, with their tokens and nothing of ours', async () => {
  const at = await gateway();
  const cluster = await clusterAt(at);
  for (const token of ['a', 'b', 'c']) expect((await cluster.raw(pods(), { as: token })).statusCode).toBe(200);
  expect(at.made).toEqual(['h2']);
  expect(at.watches.map(({ authorization, certificate }) => [authorization, certificate])).toEqual([
    ['Bearer a', undefined],
    ['Bearer b', undefined],
    ['Bearer c', undefined],
  ]);
  // A stream, and what is asked as ourselves, have connections as ever.
  await cluster.raw(pods('streams'), { as: 'd' });
  await cluster.raw(pods());
  expect(at.made.filter((protocol) => protocol === 'h2')).toHaveLength(1);
  expect(at.watches.map(({ certificate }) => certificate)).toEqual([undefined, undefined, undefined, undefined, 'us']);
});

test('are sent to nobody but the API server that the kubeconfig means', async () => {
  const at = await gateway();
  const cluster = await clusterAt(at, (await authority('another-ca')).pem);
  await expect(cluster.raw(pods(), { as: 'a' })).rejects.toMatchObject({
    name: 'UnknownOutcomeError',
    neverSent: true,
  });
  expect(at.watches).toEqual([]);
});

const dialAt = (port: number) => () =>
  new Promise<TLSSocket>((resolve, reject) => {
    const socket = tls.connect(
      { host: '127.0.0.1', port, ca: ca.pem, servername: 'gpu.example.com', ALPNProtocols: ['h2'] },
      () => resolve(socket),
    );
    socket.once('error', reject);
  });

function sharedAt(port: number, options: { windowBytes?: number; silentSeconds?: number }) {
  const watches = createSharedWatches({ host: 'it', dial: dialAt(port), timeoutSeconds: 2, ...options });
  closing.push(() => watches.close());
  return async (path: string) => (await watches.open({ method: 'GET', path }))!;
}

test('whose readers stand still hold up nobody', async () => {
  const at = await gateway();
  const open = sharedAt(Number(new URL(at.url).port), { windowBytes: 65_536 });
  // More than the connection's window, which is four of these.
  for (let number = 0; number < 16; number++) await open(`/still/${number}`);
  for (const { response } of at.watches) response.write(Buffer.alloc(1 << 18));
  const reading = await open('/read');
  const { response } = at.watches.at(-1)!;
  let read = 0;
  reading.on('data', (chunk: Buffer) => {
    read += chunk.length;
  });
  response.write(Buffer.alloc(1 << 18));
  await expect.poll(() => read).toBeGreaterThan(1 << 18);
  // And of the others no more is here than they may have.
  expect(at.watches.slice(0, 16).every((one) => one.response.stream.writableLength > 0)).toBe(true);
});

test('over a path that is lost without a word break off, and go on over another one', async () => {
  const at = await gateway();
  const target = Number(new URL(at.url).port);
  let lost = false;
  const sockets: Socket[] = [];
  const path = createServer((socket) => {
    const onwards = connect(target, '127.0.0.1');
    sockets.push(socket, onwards);
    for (const [from, to] of [
      [socket, onwards],
      [onwards, socket],
    ] as const) {
      from.on('error', () => undefined);
      from.on('data', (chunk) => lost || to.write(chunk));
    }
  });
  await new Promise<void>((resolve) => path.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    for (const socket of sockets) socket.destroy();
    path.close();
  });
  const open = sharedAt((path.address() as AddressInfo).port, { silentSeconds: 0.4 });
  const first = await open('/first');
  const broken = new Promise<Error>((resolve) => first.once('error', resolve));
  first.resume();
  await new Promise((resolve) => setTimeout(resolve, 1000));
  expect(first.destroyed).toBe(false); // It is quiet, and answers.
  lost = true;
  expect((await broken).message).toBe('the connection was ended');
  lost = false;
  expect((await open('/second')).statusCode).toBe(200);
  expect(at.made).toEqual(['h2', 'h2']);
});
