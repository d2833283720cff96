/** exec, attach and port-forward: bytes go both ways, unread. */
import { once } from 'node:events';
import http, { request } from 'node:http';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { Refusal } from '../../../operator/core/allocation/refusal.ts';
import { type StreamOptions, serveStreams } from '../../../operator/gateway/routes/streams.ts';
import { join } from '../../../operator/wire/upgraded.ts';
import type { FakeRequest } from '../../support/fake-cluster.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
let lease: Awaited<ReturnType<ProviderSide['lease']>>;
let port: number;
beforeEach(async () => {
  side = await startProviderSide();
  lease = await side.lease();
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  port = (side.gateway.app.server.address() as { port: number }).port;
});
afterEach(() => side.stop());

const path = (rest: string, leaseId: string = lease.leaseId) => `/v1/leases/${leaseId}/kube/${rest}`;

interface Opened {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  readonly socket?: Socket;
  readonly head?: Buffer;
  readonly body?: string;
}

function open(
  rest: string,
  headers: Record<string, string> = {},
  method = 'POST',
  leaseId: string = lease.leaseId,
): Promise<Opened> {
  return new Promise((resolve, reject) => {
    const outgoing = request({
      ...{ host: '127.0.0.1', port, method, path: path(rest, leaseId), agent: false },
      headers: { authorization: `Bearer ${lease.token}`, connection: 'Upgrade', upgrade: 'SPDY/3.1', ...headers },
    });
    outgoing.on('upgrade', (response, socket, head) =>
      resolve({ status: response.statusCode!, headers: response.headers, socket: socket as Socket, head }),
    );
    outgoing.on('response', (response) => {
      let body = '';
      response.on('data', (chunk) => {
        body += String(chunk);
      });
      response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, body }));
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

/** Stands for the API server behind the upgrade, at the other end of a real connection. */
async function upstream(): Promise<{ asked: () => FakeRequest; far: Socket }> {
  const server = createServer({ allowHalfOpen: true });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const near = connect({ port: (server.address() as { port: number }).port, allowHalfOpen: true });
  const [far] = (await once(server, 'connection')) as [Socket];
  server.close();
  far.on('error', () => undefined);
  let asked: FakeRequest | undefined;
  side.cluster.onUpgrade((given) => {
    asked = given;
    return {
      socket: near,
      head: Buffer.from('early '),
      headers: {
        upgrade: 'SPDY/3.1',
        connection: 'Upgrade',
        'x-stream-protocol-version': 'v4.channel.k8s.io',
        'x-internal': 'secret',
      },
    };
  });
  return { asked: () => asked!, far };
}

test('the upgrade is repeated with the tenant’s token, and nothing of the caller’s but the protocol', async () => {
  const { asked, far } = await upstream();
  const { status, headers, socket, head } = await open(
    'pods/train/exec?command=sh&command=-c&command=exit%207&stdin=true&tty=true',
    {
      'x-stream-protocol-version': 'v4.channel.k8s.io',
      cookie: 'a=b',
      'x-remote-user': 'admin',
      connection: 'Upgrade, Authorization',
    },
  );
  expect(status).toBe(101);
  expect(headers).toMatchObject({ upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'v4.channel.k8s.io' });
  expect(headers).not.toHaveProperty('x-internal');
  expect(asked()).toMatchObject({
    method: 'POST',
    path: `/api/v1/namespaces/${tenantNamespace(lease.leaseId)}/pods/train/exec`,
  });
  expect(asked().query.getAll('command')).toEqual(['sh', '-c', 'exit 7']);
  expect(asked().headers).toMatchObject({
    connection: 'Upgrade',
    'x-stream-protocol-version': 'v4.channel.k8s.io',
  });
  for (const name of ['cookie', 'x-remote-user', 'authorization']) expect(asked().headers).not.toHaveProperty(name);
  expect(asked().as).not.toContain(lease.token);

  let seen = String(head);
  socket!.on('data', (chunk) => {
    seen += String(chunk);
  });
  await eventually(
    () => seen,
    (text) => text === 'early ',
  );
  socket!.write('ls\n');
  expect(String((await once(far, 'data'))[0])).toBe('ls\n');
  far.write('bin etc\n');
  await eventually(
    () => seen,
    (text) => text === 'early bin etc\n',
  );
  // The far side ends in order: what it said last arrives, then the end.
  far.end('bye');
  await eventually(
    () => seen,
    (text) => text.endsWith('bye'),
  );
  socket!.destroy();
});

test('whoever goes away takes the other side along', async () => {
  const { far } = await upstream();
  const { socket } = await open('pods/train/attach?stdout=true');
  socket!.resetAndDestroy();
  far.resume();
  await once(far, 'end');

  const second = await upstream();
  const again = await open('pods/train/portforward', {}, 'GET');
  again.socket!.on('error', () => undefined);
  second.far.destroy(new Error('the node is gone'));
  again.socket!.resume();
  await once(again.socket!, 'close');
});

test('a refusal of the API server is told as a problem', async () => {
  side.cluster.onUpgrade(() => ({
    code: 404,
    body: { kind: 'Status', reason: 'NotFound', message: 'pods "train" not found' },
  }));
  const { status, body } = await open('pods/train/exec?command=sh');
  expect(status).toBe(404);
  expect(JSON.parse(body!)).toMatchObject({ reason: 'NotFound', detail: 'pods "train" not found' });
});

test.each([
  ['a path that takes none', 'pods/train/log', {}, 400],
  ['an unknown query', 'pods/train/exec?cmd=sh', {}, 400],
  ['no token', 'pods/train/exec?command=sh', { authorization: 'Bearer x.y' }, 401],
])('no upgrade: %s', async (_name, rest, headers, status) => {
  expect((await open(rest, headers)).status).toBe(status);
});

test('a gateway that stops ends its streams', async () => {
  const { far } = await upstream();
  const { socket } = await open('pods/train/exec?command=sh');
  socket!.on('error', () => undefined);
  socket!.resume();
  const closed = once(socket!, 'close');
  await side.gateway.close();
  await closed;
  await eventually(
    () => far.destroyed || far.readableEnded,
    (ended) => ended,
  );
});

test('twenty megabytes through a half-closed connection arrive whole, and so does the answer', async () => {
  const size = 20 * 1024 * 1024;
  // Far side: counts until the end, then answers.
  const sink = createServer({ allowHalfOpen: true }, (socket) => {
    let count = 0;
    socket.on('data', (chunk) => {
      count += chunk.length;
    });
    socket.on('end', () => socket.end(`got ${count}`));
  });
  const hub: Server = createServer({ allowHalfOpen: true }, (socket) => {
    join(
      socket,
      connect({ port: (sink.address() as { port: number }).port, allowHalfOpen: true }),
      Buffer.alloc(0),
      Buffer.alloc(0),
    );
  });
  await Promise.all([sink, hub].map((server) => once(server.listen(0, '127.0.0.1'), 'listening')));
  const socket = connect({ port: (hub.address() as { port: number }).port, allowHalfOpen: true });
  let answer = '';
  socket.on('data', (chunk) => {
    answer += String(chunk);
  });
  for (let sent = 0; sent < size; sent += 64 * 1024) {
    if (!socket.write(Buffer.alloc(64 * 1024, 1))) await once(socket, 'drain');
  }
  socket.end();
  await once(socket, 'close');
  expect(answer).toBe(`got ${size}`);
  for (const server of [sink, hub]) server.close();
});

test('who is turned away and keeps its half open does not count as a stream for ever', async () => {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  socket.resume();
  socket.write(
    `POST ${path('pods/p/exec')}?command=sh HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nAuthorization: Bearer no.no\r\n\r\n`,
  );
  await once(socket, 'end');
  const connections = () =>
    new Promise<number>((resolve) => side.gateway.app.server.getConnections((_, count) => resolve(count)));
  await eventually(connections, (count) => count === 0);
  socket.destroy();
});

test('what a caller said before it left is still delivered', async () => {
  const { far } = await upstream();
  const { socket } = await open('pods/train/portforward', {}, 'GET');
  far.pause();
  const blob = Buffer.alloc(4_000_000, 7);
  socket!.end(blob, () => socket!.destroy());
  await new Promise((resolve) => setTimeout(resolve, 200));
  let size = 0;
  far.on('data', (chunk) => {
    size += chunk.length;
  });
  far.resume();
  await once(far, 'end');
  expect(size).toBe(blob.length);
});

test('a token that the API server no longer takes is replaced once', async () => {
  const asked: FakeRequest[] = [];
  side.cluster.onUpgrade((given) => {
    asked.push(given);
    return { code: 401, body: { kind: 'Status', reason: 'Unauthorized' } };
  });
  const minted = () => side.cluster.requests.filter((one) => one.path.endsWith('/token')).length;
  const before = minted();
  const { status } = await open('pods/train/exec?command=sh');
  expect(status).toBe(503);
  expect(asked).toHaveLength(2);
  expect(minted()).toBe(before + 2);
});

test('no lease takes all streams', async () => {
  const opened: Opened[] = [];
  for (let i = 0; i < 250; i++) {
    await upstream();
    opened.push(await open('pods/train/exec?command=sh'));
  }
  expect(new Set(opened.map(({ status }) => status))).toEqual(new Set([101]));
  const more = await open('pods/train/exec?command=sh');
  expect([more.status, JSON.parse(more.body!).detail]).toEqual([429, '250 streams of this lease are open: close some']);
  const other = await side.lease();
  await upstream();
  const theirs = await open(
    'pods/train/exec?command=sh',
    { authorization: `Bearer ${other.token}` },
    'POST',
    other.leaseId,
  );
  expect(theirs.status).toBe(101);
  opened[0]!.socket!.resetAndDestroy();
  await upstream();
  await eventually(
    async () => (await open('pods/train/exec?command=sh')).status,
    (status) => status === 101,
  );
});

test('who is turned away takes nobody’s place, however slowly it leaves', async () => {
  const server = http.createServer();
  const streams = serveStreams(server, {
    maxStreams: 1,
    service: { tenant: async (leaseId: string) => ({ leaseId }), token: async () => 'token' },
    callers: {
      check(_leaseId: string, { headers }: { headers: { authorization?: string } }) {
        if (headers.authorization !== 'good') throw new Refusal('Unauthorized', 'no');
      },
    },
    upstream: {
      async upgrade() {
        return { response: Object.assign(new PassThrough().end('{}'), { statusCode: 404, headers: {} }) };
      },
    },
    log: { error: () => undefined },
  } as unknown as StreamOptions);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const asking = async (authorization: string) => {
    const socket = connect({ port: (server.address() as { port: number }).port, allowHalfOpen: true });
    socket.write(
      `POST /v1/leases/0x${'1'.repeat(64)}/kube/pods/p/exec?command=sh HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\nauthorization: ${authorization}\r\n\r\n`,
    );
    return { socket, status: String((await once(socket, 'data'))[0]).slice(9, 12) };
  };
  const strangers = [await asking('bad'), await asking('bad'), await asking('bad')];
  expect(strangers.map(({ status }) => status)).toEqual(['401', '401', '401']);
  expect(streams.open).toBe(3);
  const consumer = await asking('good');
  expect(consumer.status).toBe('404');
  for (const { socket } of [...strangers, consumer]) socket.destroy();
  await streams.end();
  server.close();
});
