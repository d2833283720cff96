/** An allocation that is followed: what its consumer hears, when, and what keeps it from hearing more than its own. */
import { once } from 'node:events';
import http2, { type IncomingHttpHeaders } from 'node:http2';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import tls from 'node:tls';
import { afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { connectGateway } from '../../../operator/adapters/provider/gateway-client.ts';
import type { AllocationInfo } from '../../../operator/api/gateway.ts';
import type { Access, Hex32 } from '../../../operator/api/messages.ts';
import { recordName } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createFollowed } from '../../../operator/gateway/routes/follow.ts';
import { eventually, keys, type ProviderSide, publicUrl, startProviderSide } from '../../support/provider-side.ts';
import { localhostPair, type Pair } from '../adapters/provider/tls.ts';

let pair: Pair;
let ca: string;
beforeAll(async () => {
  ({ ca, pair } = await localhostPair());
});

let side: ProviderSide;
let port: number;
const closing: (() => void)[] = [];
beforeEach(async () => {
  side = await startProviderSide({ tls: pair, settings: { tickSeconds: 0.5 } });
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  ({ port } = side.gateway.app.server.address() as AddressInfo);
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const close of closing.splice(0)) close();
  await side.stop();
});

/** As an operator does it. */
function follow(leaseId: Hex32): { heard: (AllocationInfo | undefined)[]; ended: Promise<unknown> } {
  const dial = (protocol = 'http/1.1') =>
    new Promise<tls.TLSSocket>((resolve) => {
      const options = { host: '127.0.0.1', port, ca, servername: 'localhost', ALPNProtocols: [protocol] };
      const socket = tls.connect(options, () => resolve(socket));
    });
  const client = connectGateway({ url: publicUrl, dial, timeoutSeconds: 3 });
  const access = {
    leaseId,
    provider: keys.provider.address,
    now: () => new Date(),
    signAccess: async (message: Access) => (await side.access(leaseId, { ...message })).signature as `0x${string}`,
  };
  const stop = new AbortController();
  closing.push(
    () => stop.abort(new Error('over')),
    () => client.close(),
  );
  const heard: (AllocationInfo | undefined)[] = [];
  const ended = client
    .lease(access)
    .follow((info) => heard.push(info), stop.signal)
    .catch((error: unknown) => error);
  return { heard, ended };
}
const news = (heard: readonly (AllocationInfo | undefined)[]) => heard.filter((info) => info !== undefined);

const changeNode = (change: (node: { status: { conditions: object[] } }) => void) =>
  side.cluster.change<KubeObject & { status: { conditions: object[] } }>(resources.nodes, { name: 'node-a' }, change);
const breakNode = () =>
  changeNode((node) => {
    node.status.conditions = [{ type: 'Ready', status: 'False', reason: 'KubeletNotReady', message: 'no network' }];
  });

test('says how it is, and at once when its node breaks and is well again', async () => {
  const { leaseId } = await side.lease();
  const { heard } = follow(leaseId);
  await eventually(
    () => news(heard).at(-1)?.nodeReady,
    (ready) => ready === true,
  );
  const started = performance.now();
  breakNode();
  await eventually(
    () => news(heard).at(-1),
    (info) => info?.nodeReady === false,
  );
  expect(performance.now() - started).toBeLessThan(1500);
  expect(news(heard).at(-1)?.nodeMessage).toContain('no network');
  changeNode((node) => {
    node.status.conditions = [{ type: 'Ready', status: 'True' }];
  });
  await eventually(
    () => news(heard).at(-1),
    (info) => info?.nodeReady === true,
  );
});

test('vouchers are no news; the end of the lease is', async () => {
  const { leaseId, token } = await side.lease();
  const { heard } = follow(leaseId);
  await eventually(
    () => news(heard).length,
    (count) => count > 0,
  );
  const before = news(heard).length;
  side.pass(10);
  const voucher = { servedSeconds: 5, last: false, signature: await side.voucher(leaseId, 5) };
  expect(await side.post(`/v1/leases/${leaseId}/vouchers`, voucher, token)).toMatchObject({ status: 200 });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(news(heard)).toHaveLength(before);
  await side.post(`/v1/leases/${leaseId}/release`, {}, token);
  await eventually(
    () => news(heard).at(-1),
    (info) => info?.state === 'Ended',
  );
});

test('every five seconds that all is as it was, and not while the cluster is silent', { timeout: 40_000 }, async () => {
  const leases = [await side.lease(), await side.lease()];
  const followed = leases.map(({ leaseId }) => follow(leaseId));
  const beats = () => followed.map(({ heard }) => heard.filter((info) => info === undefined).length);
  await eventually(beats, (seen) => seen.every((count) => count >= 1), 8000);
  const asked = vi.spyOn(side.cluster, 'get').mockImplementation(() => Promise.reject(new Error('no route to host')));
  const before = beats();
  await new Promise((resolve) => setTimeout(resolve, 6500));
  expect(beats()).toEqual(before);
  asked.mockRestore();
  await eventually(beats, (seen) => seen.every((count, i) => count > before[i]!), 8000);
});

test('what could not be read when it changed is told with the next beat', { timeout: 20_000 }, async () => {
  const { leaseId } = await side.lease();
  const { heard } = follow(leaseId);
  await eventually(
    () => news(heard).length,
    (count) => count > 0,
  );
  const real = side.cluster.get.bind(side.cluster);
  let failed = 0;
  vi.spyOn(side.cluster, 'get').mockImplementation((...args) => {
    if (failed > 0) return real(...args) as never;
    failed += 1;
    return Promise.reject(new Error('ECONNRESET'));
  });
  breakNode();
  await eventually(
    () => news(heard).at(-1),
    (info) => info?.nodeReady === false,
    9000,
  );
  expect(failed).toBe(1);
});

test('ends when the lease is forgotten, and is refused for one that never was', async () => {
  const { leaseId } = await side.lease();
  const { heard, ended } = follow(leaseId);
  await eventually(
    () => news(heard).length,
    (count) => count > 0,
  );
  await side.cluster.delete(resources.secrets, { namespace: 'gpulease-system', name: recordName(leaseId) });
  expect(await ended).toBeUndefined();
  expect(await follow(leaseId).ended).toMatchObject({ reason: expect.stringMatching(/LeaseNotFound|EscrowNotFound/) });
});

test('a gateway that stops ends it in order', async () => {
  const { leaseId } = await side.lease();
  const { heard, ended } = follow(leaseId);
  await eventually(
    () => news(heard).length,
    (count) => count > 0,
  );
  const started = performance.now();
  await side.gateway.close();
  await ended;
  expect(performance.now() - started).toBeLessThan(2000);
});

/** By hand, over either protocol. */
async function raw(protocol: 'h1' | 'h2', leaseId: string, headers: Record<string, string>) {
  const path = `/v1/leases/${leaseId}`;
  const options = { host: '127.0.0.1', port, ca, servername: 'localhost' };
  if (protocol === 'h1') {
    const request = https.get({ ...options, path, headers, agent: false });
    closing.push(() => request.destroy());
    request.on('error', () => undefined);
    const [response] = await once(request, 'response');
    return { status: response.statusCode as number, type: String(response.headers['content-type']), body: response };
  }
  const session = http2.connect(`https://localhost:${port}`, { ca, ALPNProtocols: ['h2'] } as object);
  session.on('error', () => undefined);
  closing.push(() => session.destroy());
  const stream = session.request({ ':path': path, ...headers });
  stream.on('error', () => undefined);
  const [answer] = (await once(stream, 'response')) as [IncomingHttpHeaders];
  return { status: Number(answer[':status']), type: String(answer['content-type']), body: stream };
}
const events = (token?: string) => ({
  accept: 'text/event-stream',
  ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
});

test.each(['h1', 'h2'] as const)('over %s: an event stream, for the token of this lease alone', async (protocol) => {
  const [mine, other] = [await side.lease(), await side.lease()];
  const answer = await raw(protocol, mine.leaseId, events(mine.token));
  expect(answer).toMatchObject({ status: 200, type: 'text/event-stream' });
  const [first] = await once(answer.body, 'data');
  expect(String(first)).toMatch(/^data: \{.*"state":"Serving".*\}\n\n$/);
  expect((await raw(protocol, mine.leaseId, events())).status).toBe(401);
  expect((await raw(protocol, mine.leaseId, events(other.token))).status).toBe(401);
});

test.each(['h1', 'h2'] as const)('over %s: nobody has more of it open than he could use', async (protocol) => {
  const { leaseId, token } = await side.lease();
  for (let i = 0; i < 8; i += 1) expect((await raw(protocol, leaseId, events(token))).status).toBe(200);
  expect((await raw(protocol, leaseId, events(token))).status).toBe(429);
  for (const close of closing.splice(0)) close();
  await eventually(
    async () => (await raw(protocol, leaseId, events(token))).status,
    (status) => status === 200,
  );
});

test('a caller that does not read is dropped', async () => {
  let tell: (info: AllocationInfo | undefined) => void = () => undefined;
  const followed = createFollowed({
    followAllocation: (_leaseId, given, signal) => {
      tell = given;
      return new Promise((resolve) => signal.addEventListener('abort', () => resolve()));
    },
  });
  const { info } = await side.lease();
  const opening = followed.open(info.leaseId as Hex32);
  tell(info);
  const stream = await opening;
  stream.on('error', () => undefined);
  for (let i = 0; i < 200; i += 1) tell({ ...info, nodeMessage: `${i} `.repeat(300) });
  expect(stream.destroyed).toBe(true);
});
