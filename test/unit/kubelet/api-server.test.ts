/** The kubelet API on loopback, with real TLS: who is let in, and what passes through. */
import http, { type IncomingMessage } from 'node:http';
import https from 'node:https';
import { createServer, connect as netConnect, type Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import tls from 'node:tls';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { remotePodName } from '../../../operator/core/node/names.ts';
import type { Pod } from '../../../operator/core/node/pod.ts';
import { systemClock } from '../../../operator/engine/clock.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createCallers } from '../../../operator/kubelet/api/callers.ts';
import { type KubeletServer, startKubeletServer } from '../../../operator/kubelet/api/server.ts';
import type { RemoteLease } from '../../../operator/kubelet/remote.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';
import { type Authority, authority, type Pair } from '../adapters/provider/tls.ts';
import { served } from './fake-lease.ts';

let ca: Authority;
let stranger: Authority;
let pairs: Record<'serving' | 'apiserver' | 'reader' | 'nobody' | 'forged', Pair>;
beforeAll(async () => {
  [ca, stranger] = await Promise.all([authority('cluster'), authority('stranger')]);
  const client = (from: Authority, user: string, group = 'system:authenticated') =>
    from.issue([{ O: [group] }, { CN: [user] }], { client: true });
  const [serving, apiserver, reader, nobody, forged] = await Promise.all([
    ca.issue([{ CN: ['system:node:n'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] }),
    client(ca, 'kube-apiserver-kubelet-client', 'system:masters'),
    client(ca, 'reader'),
    client(ca, 'nobody'),
    client(stranger, 'kube-apiserver-kubelet-client', 'system:masters'),
  ]);
  pairs = { serving, apiserver, reader, nobody, forged };
});

const pod: Pod = {
  metadata: { name: 'web', namespace: 'team-a', uid: 'u-1' },
  spec: { containers: [{ name: 'main' }], nodeName: 'n' },
  status: {
    phase: 'Running',
    containerStatuses: [{ name: 'main', ready: true, restartCount: 0, image: '', imageID: '', state: { running: {} } }],
  },
};
const remote = `kube/pods/${remotePodName('web', 'u-1')}`;

let cluster: FakeCluster;
let failing: string | undefined;
let server: KubeletServer;
let asked: { method: string; path: string; headers?: Record<string, string | string[]> }[];
/** What the provider answers to logs and upgrades. */
let provider: { raw: RemoteLease['raw']; upgrade: RemoteLease['upgrade'] };
const closing: (() => void)[] = [];

interface Review extends KubeObject {
  spec: {
    token?: string;
    user?: string;
    groups?: string[];
    resourceAttributes?: { verb: string; subresource: string; name: string };
  };
}

beforeEach(async () => {
  cluster = fakeCluster();
  asked = [];
  failing = undefined;
  cluster.intercept((request) => {
    const { spec } = (request.body ?? {}) as Review;
    if (request.resource?.plural === failing) return { code: 500, body: { message: 'etcd is down' } };
    if (request.resource?.plural === 'tokenreviews')
      return {
        code: 201,
        body: {
          status:
            spec.token === 'good'
              ? { authenticated: true, user: { username: 'robot', groups: ['g'] } }
              : { authenticated: false },
        },
      };
    if (request.resource?.plural === 'subjectaccessreviews') {
      const { verb } = spec.resourceAttributes!;
      const allowed =
        spec.user === 'robot' || spec.groups?.includes('system:masters') || (spec.user === 'reader' && verb === 'get');
      return { code: 201, body: { status: { allowed } } };
    }
    return undefined;
  });
  provider = {
    raw: async () => {
      throw new Error('silent');
    },
    upgrade: async () => {
      throw new Error('silent');
    },
  };
  server = await start(ca.pem);
});
afterEach(async () => {
  await server.close();
  for (const close of closing.splice(0)) close();
});

function start(clientCaPem: string | undefined): Promise<KubeletServer> {
  return startKubeletServer({
    nodeName: 'n',
    host: '127.0.0.1',
    port: 0,
    certificate: { certificatePem: pairs.serving.cert, privateKeyPem: pairs.serving.key, renewAt: new Date() },
    clientCaPem,
    callers: createCallers({ cluster, clock: systemClock, verifiesCertificates: () => clientCaPem !== undefined }),
    lease: {
      allocation: async () => served(),
      raw: (request, signal) => {
        asked.push(request);
        return provider.raw(request, signal);
      },
      upgrade: (request, signal) => {
        asked.push(request);
        return provider.upgrade(request, signal);
      },
    },
    podOf: async (namespace, name) => (namespace === 'team-a' && name === 'web' ? pod : undefined),
    podsHere: () => [pod],
    podOfRemote: (name) => (name === remotePodName('web', 'u-1') ? pod : undefined),
    served: () => served(),
    kubeletVersion: 'v1.36.3+gpulease.test',
    heartbeatLastsSeconds: 40,
    now: () => new Date(),
    log: silentLog,
  });
}

type Who = { pair?: Pair; token?: string };
const call = (path: string, who: Who, method = 'GET'): Promise<{ status: number; body: string }> =>
  new Promise((resolve, reject) => {
    const request = https.request(
      {
        host: '127.0.0.1',
        port: server.port,
        path,
        method,
        ca: ca.pem,
        agent: false,
        ...(who.pair && { cert: who.pair.cert, key: who.pair.key }),
        headers: who.token === undefined ? {} : { Authorization: `Bearer ${who.token}` },
      },
      (response) => {
        let body = '';
        response.on('data', (chunk) => {
          body += chunk;
        });
        response.on('end', () => resolve({ status: response.statusCode!, body }));
      },
    );
    request.on('error', reject);
    request.end();
  });

describe('who is let in', () => {
  test.each<[string, () => Who, string, string, number]>([
    ['nobody', () => ({}), 'GET', '/pods', 401],
    ['nobody, even for a path that does not exist', () => ({}), 'GET', '/nothing', 401],
    ['a token that the cluster does not know', () => ({ token: 'bad' }), 'GET', '/pods', 401],
    ['a certificate of another CA that names the API server', () => ({ pair: pairs.forged }), 'GET', '/pods', 401],
    ['a user without the right', () => ({ pair: pairs.nobody }), 'GET', '/pods', 403],
    [
      'a user without the right, for a path that does not exist',
      () => ({ pair: pairs.nobody }),
      'GET',
      '/nothing',
      403,
    ],
    ['a reader who reads', () => ({ pair: pairs.reader }), 'GET', '/pods', 200],
    ['a token that is known', () => ({ token: 'good' }), 'GET', '/runningpods/', 200],
    ['the API server', () => ({ pair: pairs.apiserver }), 'GET', '/healthz', 200],
    ['the API server, for what is switched off', () => ({ pair: pairs.apiserver }), 'GET', '/logs/', 405],
    ['the API server, for what is not offered', () => ({ pair: pairs.apiserver }), 'POST', '/run/a/b/c', 501],
    ['the API server, that writes where one only reads', () => ({ pair: pairs.apiserver }), 'POST', '/pods', 405],
    ['the API server, for what no kubelet has', () => ({ pair: pairs.apiserver }), 'GET', '/nothing', 404],
  ])('%s', async (_, who, method, path, status) => {
    expect((await call(path, who(), method)).status).toBe(status);
  });

  test('a reader gets no shell, though a WebSocket is opened by GET', async () => {
    const { status } = await upgradeCall('GET', '/exec/team-a/web/main?command=sh', { pair: pairs.reader });
    expect(status).toBe(403);
    expect(asked).toEqual([]);
  });

  test('an upgrade by nobody is turned away', async () => {
    expect((await upgradeCall('POST', '/exec/team-a/web/main?command=sh', {})).status).toBe(401);
  });

  test('a certificate of any CA counts for nothing where no CA is known', async () => {
    await server.close();
    server = await start(undefined);
    expect((await call('/pods', { pair: pairs.apiserver })).status).toBe(401);
  });

  test('and is asked about once in a while, not at each call', async () => {
    for (let i = 0; i < 5; i++) await call('/pods', { token: 'good' });
    const reviews = cluster.requests.filter((r) => /reviews/.test(r.resource?.plural ?? ''));
    expect(reviews.map((r) => r.resource?.plural)).toEqual(['tokenreviews', 'subjectaccessreviews']);
  });

  test('nobody, while the cluster does not say who calls; and it is not the provider’s fault', async () => {
    failing = 'tokenreviews';
    expect(await call('/pods', { token: 'good' })).toEqual({
      status: 503,
      body: 'the cluster did not say who calls: try again\n',
    });
  });

  test('nobody, while the cluster does not say what they may', async () => {
    failing = 'subjectaccessreviews';
    expect(await call('/pods', { pair: pairs.reader })).toEqual({
      status: 503,
      body: 'the cluster did not say what they may: try again\n',
    });
  });

  test('a new certificate and CA are used without a restart', async () => {
    const next = await stranger.issue([{ CN: ['system:node:n'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
    server.renew({ certificatePem: next.cert, privateKeyPem: next.key, renewAt: new Date() }, stranger.pem);
    await expect(call('/pods', { pair: pairs.apiserver })).rejects.toThrow(/certificate/);
  });
});

const body = (status: number, text: string): IncomingMessage => {
  const stream = new PassThrough();
  stream.end(text);
  return Object.assign(stream, { statusCode: status, headers: {}, complete: true }) as unknown as IncomingMessage;
};

describe('figures', () => {
  const get = (path: string) => call(path, { pair: pairs.apiserver });
  const remoteName = remotePodName('web', 'u-1');
  const summary = (...pods: object[]) => JSON.stringify({ node: {}, pods });
  const stats = { podRef: { name: remoteName, namespace: 'gl', uid: 'r' }, containers: [{ name: 'main' }] };

  test('are asked for under the lease, and told with the consumer’s names', async () => {
    provider.raw = async () => body(200, summary(stats, { podRef: { name: 'else', namespace: 'gl', uid: 'e' } }));
    const { status, body: text } = await get('/stats/summary');
    expect(status).toBe(200);
    expect(asked.map(({ method, path }) => `${method} ${path}`)).toEqual(['GET kube/node/stats']);
    expect(JSON.parse(text)).toMatchObject({
      node: { nodeName: 'n', memory: { availableBytes: 16 * 1024 ** 3 } },
      pods: [{ podRef: { name: 'web', namespace: 'team-a', uid: 'u-1' } }],
    });
    expect(text).not.toContain('else');
  });

  test.each([
    ['/metrics/resource', 'kube/node/metrics/resource', 'pod_cpu_usage_seconds_total'],
    ['/metrics/cadvisor', 'kube/node/metrics/cadvisor', 'container_network_errors_total'],
    ['/metrics/probes', 'kube/node/metrics/probes', 'prober_probe_total'],
  ])('of %s come from %s', async (path, from, name) => {
    provider.raw = async () => body(200, `${name}{namespace="gl",pod="${remoteName}"} 1\n${name}{pod="else"} 1\n`);
    const { status, body: text } = await get(path);
    expect(status).toBe(200);
    expect(asked[0]!.path).toBe(from);
    expect(text).toContain(`\n${name}{namespace="team-a",pod="web"} 1\n`.slice(text.startsWith(name) ? 1 : 0));
    expect(text).not.toContain('"else"');
  });

  test('that several ask for at once are asked for once', async () => {
    const waiting = new PassThrough();
    provider.raw = async () =>
      Object.assign(waiting, { statusCode: 200, headers: {}, complete: true }) as unknown as IncomingMessage;
    const told = Promise.all([get('/metrics/resource'), get('/metrics/resource'), get('/metrics/resource')]);
    await expect.poll(() => asked.length).toBe(1);
    // All three have been let in by then.
    await new Promise((resolve) => setTimeout(resolve, 200));
    waiting.end('');
    expect((await told).map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(asked).toHaveLength(1);
  });

  test.each([
    ['is silent', undefined, 502, /^the provider did not answer: silent\n$/],
    [
      'has no kubelet',
      [501, JSON.stringify({ detail: 'no kubelet that measures' })],
      501,
      /^no kubelet that measures\n$/,
    ],
    ['knows no such page', [404, JSON.stringify({ detail: 'leases have …' })], 404, /leases have/],
    ['answers nonsense', [200, 'nonsense'], 502, /is no summary/],
  ] as const)('of a provider that %s are none, in words', async (_, answer, status, words) => {
    if (answer) provider.raw = async () => body(answer[0], answer[1]);
    const told = await get('/stats/summary');
    expect(told.status).toBe(status);
    expect(told.body).toMatch(words);
  });

  test('of itself are told without the provider', async () => {
    expect((await get('/metrics')).body).toContain('kubelet_running_pods 1\n');
    expect(JSON.parse((await get('/configz')).body)).toMatchObject({
      kubeletconfig: { port: server.port, maxPods: 20, authentication: { x509: { clientCAFile: expect.anything() } } },
    });
    expect(asked).toEqual([]);
  });
});

describe('logs', () => {
  const logs = (query = '') => call(`/containerLogs/team-a/web/main${query}`, { pair: pairs.apiserver });

  test('are piped from the provider’s pod', async () => {
    provider.raw = async () => body(200, 'line 1\nline 2\n');
    expect(await logs('?tailLines=2')).toEqual({ status: 200, body: 'line 1\nline 2\n' });
    expect(asked[0]?.path).toBe(`${remote}/log?container=main&tailLines=2`);
    expect(JSON.stringify(asked)).not.toMatch(/[Aa]uthorization/);
  });

  test('end with their connection, so that no reader is handed the last line and the end at once', async () => {
    provider.raw = async () => body(200, 'line 1\n');
    const said = await new Promise<string>((resolve, reject) => {
      const socket = tls.connect({ host: '127.0.0.1', port: server.port, ca: ca.pem, ...pairs.apiserver });
      let text = '';
      socket.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
      socket.on('end', () => resolve(text));
      socket.on('error', reject);
      socket.write('GET /containerLogs/team-a/web/main HTTP/1.1\r\nHost: n\r\n\r\n');
    });
    const [head = '', text] = said.split('\r\n\r\n');
    expect(head).toMatch(/^connection: close$/im);
    expect(head).not.toMatch(/^(transfer-encoding|content-length)/im);
    expect(text).toBe('line 1\n');
  });

  test('begin before there is a line, and arrive as they are written', async () => {
    const stream = new PassThrough();
    provider.raw = async () => Object.assign(stream, { statusCode: 200, headers: {} }) as unknown as IncomingMessage;
    const lines: string[] = [];
    const began = new Promise<void>((resolve, reject) => {
      const request = https.get(
        {
          host: '127.0.0.1',
          port: server.port,
          path: '/containerLogs/team-a/web/main?follow=true',
          ca: ca.pem,
          ...pairs.apiserver,
          agent: false,
        },
        (response) => {
          response.on('data', (chunk: Buffer) => lines.push(chunk.toString()));
          resolve();
        },
      );
      request.on('error', reject);
      closing.push(() => request.destroy());
    });
    await began;
    stream.write('a');
    await expect.poll(() => lines).toEqual(['a']);
    stream.write('b');
    await expect.poll(() => lines).toEqual(['a', 'b']);
  });

  test.each([
    [
      'a Kubernetes status',
      400,
      JSON.stringify({
        kind: 'Status',
        message: `container "main" in pod "${remotePodName('web', 'u-1')}" is waiting to start`,
      }),
      400,
      'container "main" in pod "web" is waiting to start\n',
    ],
    [
      'a problem document',
      410,
      JSON.stringify({ title: 'Gone', detail: 'the lease has ended' }),
      410,
      'the lease has ended\n',
    ],
    ['a 401, which is not the caller’s', 401, '{}', 502, '{}\n'],
  ])('that are refused by %s say so in plain text', async (_, status, text, expected, message) => {
    provider.raw = async () => body(status, text);
    expect(await logs()).toEqual({ status: expected, body: message });
  });

  test('of a silent provider are a 502', async () => {
    expect((await logs()).status).toBe(502);
  });

  test.each([
    ['/containerLogs/team-b/web/main', 404],
    ['/containerLogs/team-a/web/other', 404],
    ['/exec/team-a/web/main', 400],
  ])('%s is %i, and nobody is asked', async (path, status) => {
    expect((await call(path, { pair: pairs.apiserver })).status).toBe(status);
    expect(asked).toEqual([]);
  });
});

/** Opens an upgrade by hand. */
async function upgradeCall(
  method: string,
  path: string,
  who: Who,
  early = '',
): Promise<{ status: number; head: string; socket: tls.TLSSocket; rest: () => string; ended: () => boolean }> {
  const socket = tls.connect({
    host: '127.0.0.1',
    port: server.port,
    ca: ca.pem,
    allowHalfOpen: true,
    ...(who.pair && { cert: who.pair.cert, key: who.pair.key }),
  } as tls.ConnectionOptions);
  closing.push(() => socket.destroy());
  socket.write(
    `${method} ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nAuthorization: Bearer mine\r\n\r\n${early}`,
  );
  let text = '';
  let ended = false;
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  socket.on('end', () => {
    ended = true;
  });
  await expect.poll(() => text.includes('\r\n\r\n')).toBe(true);
  const at = text.indexOf('\r\n\r\n');
  const head = text.slice(0, at);
  return { status: Number(head.split(' ')[1]), head, socket, rest: () => text.slice(at + 4), ended: () => ended };
}

/** A provider that upgrades: a real TCP pair, the far end of which is returned. */
async function upgrading(head = ''): Promise<{ readonly far: Promise<Socket> }> {
  let far: (socket: Socket) => void;
  const farEnd = new Promise<Socket>((resolve) => {
    far = resolve;
  });
  const listener = createServer({ allowHalfOpen: true }, (socket) => far(socket));
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  closing.push(() => listener.close());
  const { port } = listener.address() as { port: number };
  provider.upgrade = async () => {
    const socket = netConnect({ port, host: '127.0.0.1', allowHalfOpen: true });
    const response = {
      statusCode: 101,
      headers: {
        upgrade: 'SPDY/3.1',
        connection: 'Upgrade',
        'x-stream-protocol-version': 'v4.channel.k8s.io',
        'set-cookie': ['stay=home'],
      },
    } as unknown as IncomingMessage;
    return { response, socket, head: Buffer.from(head) };
  };
  return { far: farEnd };
}

describe('exec, attach and port-forward', () => {
  const exec = '/exec/team-a/web/main?input=1&output=1&command=sh';

  test('repeat the upgrade at the provider, and answer with its 101', async () => {
    await upgrading();
    const { status, head } = await upgradeCall('POST', exec, { pair: pairs.apiserver });
    expect(status).toBe(101);
    expect(head.toLowerCase()).toContain('x-stream-protocol-version: v4.channel.k8s.io');
    expect(head).not.toContain('stay=home');
    expect(asked[0]).toMatchObject({
      method: 'POST',
      path: `${remote}/exec?container=main&stdin=true&stdout=true&command=sh`,
      headers: { upgrade: 'SPDY/3.1', connection: 'Upgrade', 'x-stream-protocol-version': 'v4.channel.k8s.io' },
    });
    expect(Object.keys(asked[0]!.headers!)).toHaveLength(3);
  });

  test('carry every byte both ways, also those that came early', async () => {
    const { far: farEnd } = await upgrading('server first');
    const { socket, rest } = await upgradeCall('POST', exec, { pair: pairs.apiserver }, 'client first');
    const far = await farEnd;
    let heard = Buffer.alloc(0);
    far.on('data', (chunk: Buffer) => {
      heard = Buffer.concat([heard, chunk]);
    });
    await expect.poll(rest).toBe('server first');
    const blob = Buffer.alloc(3_000_000, 'abc');
    socket.write(blob);
    await expect.poll(() => heard.length, { timeout: 5000 }).toBe(12 + blob.length);
    expect(heard.subarray(0, 12).toString()).toBe('client first');
    far.write('answer');
    await expect.poll(rest).toBe('server firstanswer');
  });

  test('keep one direction open when the other has ended', async () => {
    const { far: farEnd } = await upgrading();
    const { socket, rest, ended } = await upgradeCall('POST', exec, { pair: pairs.apiserver });
    const far = await farEnd;
    const inputEnded = new Promise((resolve) => far.once('end', resolve));
    far.resume();
    socket.end('last input');
    await inputEnded;
    far.write('output after the end of input');
    await expect.poll(rest).toBe('output after the end of input');
    expect(ended()).toBe(false);
    far.end();
    await expect.poll(ended).toBe(true);
  });

  test('end at the provider when the caller is gone', async () => {
    const { far: farEnd } = await upgrading();
    const { socket } = await upgradeCall('POST', exec, { pair: pairs.apiserver });
    const far = await farEnd;
    const gone = new Promise((resolve) => far.once('close', resolve));
    far.on('error', () => undefined);
    far.resume();
    far.once('end', () => far.end());
    socket.destroy();
    await gone;
  });

  test('refused by the provider are refused here, with its words', async () => {
    provider.upgrade = async () => ({
      response: body(403, JSON.stringify({ title: 'Forbidden', detail: 'not yours' })),
    });
    const { status, rest } = await upgradeCall('POST', exec, { pair: pairs.apiserver });
    expect(status).toBe(403);
    await expect.poll(rest).toBe('not yours\n');
  });

  test('leave nobody connected who is turned away and does not go', async () => {
    const { status, socket } = await upgradeCall('POST', exec, {});
    expect(status).toBe(401);
    socket.on('error', () => undefined);
    // It keeps its own half open, and finds that nobody is there.
    const closed = new Promise((resolve) => socket.once('close', resolve));
    const talking = setInterval(() => socket.write('more'), 10);
    await closed;
    clearInterval(talking);
  });

  test('take commands of any reasonable length', async () => {
    await upgrading();
    const { status } = await upgradeCall('POST', `${exec}&command=${'x'.repeat(100_000)}`, { pair: pairs.apiserver });
    expect(status).toBe(101);
  });
});

test('plain HTTP gets nothing', async () => {
  await expect(
    new Promise((resolve, reject) =>
      http.get({ host: '127.0.0.1', port: server.port, path: '/pods' }, resolve).on('error', reject),
    ),
  ).rejects.toThrow();
});

test('pods are told with the UIDs that the consumer knows', async () => {
  const { body: text } = await call('/runningpods/', { pair: pairs.apiserver });
  expect(JSON.parse(text).items.map((item: Pod) => item.metadata.uid)).toEqual(['u-1']);
  expect(cluster.objects(resources.pods)).toEqual([]);
});

test('who sends half a request is answered within seconds, and dropped', { timeout: 30_000 }, async () => {
  const socket = tls.connect({ port: server.port, host: '127.0.0.1', ca: ca.pem });
  closing.push(() => socket.destroy());
  socket.write('GET /healthz HTTP/1.1\r\nHost: n\r\nX-Slow: ');
  let said = '';
  socket.on('data', (chunk) => {
    said += String(chunk);
  });
  await new Promise((resolve) => socket.once('close', resolve));
  expect(said).toMatch(/^HTTP\/1.1 408 /);
});

test('a certificate that was renewed while nobody called is shown to the next caller', async () => {
  const shown = () =>
    new Promise<string>((resolve, reject) => {
      const socket = tls.connect({ port: server.port, host: '127.0.0.1', ca: ca.pem }, () => {
        resolve(socket.getPeerX509Certificate()!.fingerprint256);
        socket.destroy();
      });
      socket.on('error', reject);
    });
  const next = await ca.issue([{ CN: ['system:node:n'] }], { san: [{ type: 'ip', value: '127.0.0.1' }] });
  server.renew({ privateKeyPem: next.key, certificatePem: next.cert, renewAt: new Date(8.64e15) }, ca.pem);
  const first = await shown();
  server.renew(
    { privateKeyPem: pairs.serving.key, certificatePem: pairs.serving.cert, renewAt: new Date(8.64e15) },
    ca.pem,
  );
  expect(await shown()).not.toBe(first);
});
