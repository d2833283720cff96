/** The watches of all leases over few connections, where the gateway can; and as before where it cannot. */
import http2 from 'node:http2';
import https from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { connectGateway } from '../../../../operator/adapters/provider/gateway-client.ts';
import { type Authority, authority, type Pair } from './tls.ts';

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
  readonly watches: { path: string; response: Response; authorization?: string }[];
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
    it.watches.push({ path, response, authorization });
    response.on('close', () =>
      it.watches.splice(
        it.watches.findIndex((one) => one.response === response),
        1,
      ),
    );
  };
  const keys = { key: pair.key, cert: pair.cert };
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
