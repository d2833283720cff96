/** Watches that share a connection: what they bring, what else is not answered there, and how they end. */
import { once } from 'node:events';
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import https from 'node:https';
import { PassThrough } from 'node:stream';
import tls from 'node:tls';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { alpnProtocols, serveWatches, type WatchOptions } from '../../../operator/gateway/routes/watches.ts';
import { manualClock } from '../../support/clock.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';
import { localhostPair, type Pair } from '../adapters/provider/tls.ts';

let pair: Pair;
let ca: string;
beforeAll(async () => {
  ({ ca, pair } = await localhostPair());
});

let side: ProviderSide;
let port: number;
let session: ClientHttp2Session;
const closing: (() => void)[] = [];
beforeEach(async () => {
  side = await startProviderSide({ tls: pair });
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  ({ port } = side.gateway.app.server.address() as { port: number });
  session = connect(port);
});
afterEach(async () => {
  session.destroy();
  for (const close of closing.splice(0)) close();
  await side.stop();
});

function connect(to: number): ClientHttp2Session {
  const socket = tls.connect({ host: '127.0.0.1', port: to, ca, servername: 'localhost', ALPNProtocols: ['h2'] });
  const made = http2.connect('https://localhost', { createConnection: () => socket });
  made.on('error', () => undefined);
  return made;
}

interface Asked {
  readonly stream: ClientHttp2Stream;
  readonly status: number;
  readonly headers: Record<string, unknown>;
  /** What came so far. */
  text(): string;
}

async function ask(path: string, token: string | undefined, method = 'GET', on = session): Promise<Asked> {
  const stream = on.request(
    { ':path': path, ':method': method, ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) },
    { endStream: true },
  );
  stream.on('error', () => undefined);
  let text = '';
  stream.on('data', (chunk) => {
    text += String(chunk);
  });
  const [headers] = (await once(stream, 'response')) as [Record<string, unknown>];
  return { stream, status: Number(headers[':status']), headers, text: () => text };
}

const watchOf = (leaseId: string, kind = 'pods') => `/v1/leases/${leaseId}/kube/${kind}?watch=true`;
const podIn = (leaseId: `0x${string}`, name: string) =>
  ({
    metadata: { name, namespace: tenantNamespace(leaseId) },
    spec: { containers: [{ name: 'main', image: 'x' }] },
  }) as KubeObject;

test('many share one connection, and each brings what is its own', async () => {
  const leases = [await side.lease(), await side.lease()];
  const watches = await Promise.all(
    leases.flatMap(({ leaseId, token }) => [ask(watchOf(leaseId), token), ask(watchOf(leaseId, 'events'), token)]),
  );
  expect(watches.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
  expect(watches[0]!.headers).toMatchObject({ 'content-type': 'application/json', 'cache-control': 'no-store' });
  side.cluster.seed(resources.pods, podIn(leases[0]!.leaseId, 'first'), podIn(leases[1]!.leaseId, 'second'));
  await eventually(
    () => watches.map((watch) => watch.text()),
    ([one, , other]) => one!.includes('"first"') && other!.includes('"second"'),
  );
  expect(watches[0]!.text()).not.toContain('"second"');
  // As the tenant's account, and as nobody else.
  const asked = side.cluster.requests.filter(({ watch, as }) => watch && as !== undefined);
  expect(asked).toHaveLength(4);

  const before = side.cluster.openWatches;
  watches[0]!.stream.close(http2.constants.NGHTTP2_CANCEL);
  await eventually(
    () => side.cluster.openWatches,
    (open) => open === before - 1,
  );
  side.cluster.seed(resources.pods, podIn(leases[1]!.leaseId, 'third'));
  await eventually(
    () => watches[2]!.text(),
    (text) => text.includes('"third"'),
  );
});

test.each<[string, number, (leaseId: string) => [path: string, token?: string, method?: string]]>([
  ['nobody', 401, (id) => [watchOf(id)]],
  ['somebody with a token of their own making', 401, (id) => [watchOf(id), 'a.b']],
  ['whoever wants a list', 400, (id) => [`/v1/leases/${id}/kube/pods`, 'token']],
  ['whoever wants a list, with a query', 400, (id) => [`/v1/leases/${id}/kube/pods?limit=1`, 'token']],
  ['whoever wants one pod', 400, (id) => [`/v1/leases/${id}/kube/pods/x?watch=true`, 'token']],
  ['whoever sends something', 400, (id) => [watchOf(id), 'token', 'POST']],
  ['whoever wants an offer', 400, () => ['/v1/offers?watch=true', 'token']],
  ['whoever asks what is not known', 400, (id) => [`${watchOf(id)}&as=admin`, 'token']],
])('%s is told %d, with a problem document', async (_who, status, asking) => {
  const lease = await side.lease();
  const [path, token, method] = asking(lease.leaseId);
  const answer = await ask(path, token === 'token' ? lease.token : token, method);
  await once(answer.stream, 'close');
  expect(answer.status).toBe(status);
  expect(answer.headers['content-type']).toBe('application/problem+json');
  expect(JSON.parse(answer.text())).toMatchObject({ status });
  expect(side.cluster.requests.filter(({ as }) => as !== undefined)).toEqual([]);
});

test('what the API server says no to keeps its word', async () => {
  const { leaseId, token } = await side.lease();
  side.cluster.intercept(({ path, watch }) =>
    watch && path.includes(tenantNamespace(leaseId))
      ? { code: 410, body: { kind: 'Status', reason: 'Expired', message: 'too old', code: 410 } }
      : undefined,
  );
  const answer = await ask(`${watchOf(leaseId)}&resourceVersion=1`, token);
  await once(answer.stream, 'close');
  expect(answer.status).toBe(410);
  expect(JSON.parse(answer.text())).toMatchObject({ reason: 'Expired' });
});

test('one that breaks off does not look as if it had ended', async () => {
  const { leaseId, token } = await side.lease();
  const stream = new PassThrough();
  side.cluster.intercept(({ path, watch }) =>
    watch && path.includes(tenantNamespace(leaseId)) ? { code: 200, stream } : undefined,
  );
  const answer = await ask(watchOf(leaseId), token);
  stream.write('{"type":"ADDED"');
  await eventually(answer.text, (text) => text !== '');
  stream.destroy(new Error('the API server is gone'));
  await expect(once(answer.stream, 'close')).rejects.toThrow('INTERNAL_ERROR');
});

test('whoever speaks HTTP/1.1 too is given that, and everything', async () => {
  const socket = tls.connect({
    host: '127.0.0.1',
    port,
    ca,
    servername: 'localhost',
    ALPNProtocols: ['h2', 'http/1.1'],
  });
  await once(socket, 'secureConnect');
  expect(socket.alpnProtocol).toBe('http/1.1');
  socket.write('GET /v1/provider HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n');
  let text = '';
  for await (const chunk of socket) text += String(chunk);
  expect(text).toContain('HTTP/1.1 200 OK');
});

test('a gateway that stops ends them', async () => {
  const { leaseId, token } = await side.lease();
  const answer = await ask(watchOf(leaseId), token);
  const ended = once(answer.stream, 'close');
  await side.gateway.close();
  await ended;
  expect(session.destroyed || session.closed).toBe(true);
});

/** Watches alone, whose answers come from here. */
async function watchesOf(limits: Pick<WatchOptions, 'maxWatches' | 'maxWatchesOfLease' | 'timing'>) {
  const server = https.createServer({ ...pair, ALPNProtocols: alpnProtocols });
  const answers: PassThrough[] = [];
  const watches = serveWatches(server, {
    ...limits,
    service: {
      tenant: async (leaseId: string) => ({ leaseId }),
      token: async () => 'token',
      forgetToken: () => undefined,
    },
    callers: { check: () => undefined },
    upstream: {
      async raw() {
        const answer = Object.assign(new PassThrough(), { statusCode: 200, headers: {}, complete: false });
        answers.push(answer);
        return answer;
      },
    },
    log: silentLog,
  } as unknown as WatchOptions);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    watches.end();
    server.close();
  });
  return { watches, answers, port: (server.address() as { port: number }).port };
}

test('no lease takes all of them, whatever connections it has', async () => {
  const { port: to } = await watchesOf({ maxWatchesOfLease: 2 });
  const [one, other] = [connect(to), connect(to)];
  closing.push(
    () => one.destroy(),
    () => other.destroy(),
  );
  const [its, another] = [watchOf(`0x${'1'.repeat(64)}`), watchOf(`0x${'2'.repeat(64)}`)];
  const first = await ask(its, 'x', 'GET', one);
  await ask(its, 'x', 'GET', other);
  const more = await ask(its, 'x', 'GET', other);
  expect([more.status, more.headers['retry-after']]).toEqual([429, '5']);
  expect((await ask(another, 'x', 'GET', other)).status).toBe(200);
  first.stream.close(http2.constants.NGHTTP2_CANCEL);
  await eventually(
    async () => (await ask(its, 'x', 'GET', other)).status,
    (status) => status === 200,
  );
});

test('there is an end to how many there may be, and those that are there go on', async () => {
  const { watches, answers, port: to } = await watchesOf({ maxWatches: 2 });
  // On two connections, as a single one is held to it by its settings.
  const [one, other] = [connect(to), connect(to)];
  closing.push(
    () => one.destroy(),
    () => other.destroy(),
  );
  const path = watchOf(`0x${'1'.repeat(64)}`);
  const first = await ask(path, 'x', 'GET', one);
  await ask(path, 'x', 'GET', one);
  expect(watches.open).toBe(2);
  expect((await ask(path, 'x', 'GET', other)).status).toBe(503);
  answers[0]!.write('still here\n');
  await eventually(first.text, (text) => text.includes('still here'));
  first.stream.close(http2.constants.NGHTTP2_CANCEL);
  await eventually(
    () => watches.open,
    (open) => open === 1,
  );
  expect((await ask(path, 'x', 'GET', other)).status).toBe(200);
});

test('whoever gives up thousands at once, as after a standstill of this side, may ask again on the same connection', async () => {
  const { leaseId, token } = await side.lease();
  expect((await ask(watchOf(leaseId), token)).status).toBe(200);
  for (let given = 0; given < 3000; given++) {
    const stream = session.request({ ':path': watchOf(leaseId), authorization: `Bearer ${token}` });
    stream.on('error', () => undefined);
    stream.close(http2.constants.NGHTTP2_CANCEL);
  }
  await eventually(
    async () => (await ask(watchOf(leaseId), token)).status,
    (status) => status === 200,
  );
  expect(session.destroyed).toBe(false);
});

test('a caller that is gone without a word has none any more', async () => {
  const clock = manualClock();
  const { watches, port: to } = await watchesOf({ timing: clock });
  const gone = tls.connect({ host: '127.0.0.1', port: to, ca, servername: 'localhost', ALPNProtocols: ['h2'] });
  gone.on('error', () => undefined);
  closing.push(() => gone.destroy());
  const alive = connect(to);
  closing.push(() => alive.destroy());
  expect((await ask(watchOf(`0x${'1'.repeat(64)}`), 'x', 'GET', alive)).status).toBe(200);
  // It says hello (RFC 9113, 3.4: the preface, empty SETTINGS), and nothing ever after.
  gone.write(
    Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])]),
  );
  let ended = false;
  gone.once('close', () => {
    ended = true;
  });
  gone.resume();
  await eventually(
    async () => {
      await clock.advance(10_000);
      await new Promise((resolve) => setTimeout(resolve, 20));
      return ended;
    },
    (is) => is,
  );
  expect(watches.open).toBe(1);
  expect(alive.destroyed).toBe(false);
});
