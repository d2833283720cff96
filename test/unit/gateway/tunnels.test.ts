/** The two tunnels at the gateway, and the Services behind one of them: who may open them, and what may be asked for. */
import { once } from 'node:events';
import { request } from 'node:http';
import http2, { type ClientHttp2Session } from 'node:http2';
import { createServer, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { maxTunnelStreams } from '../../../operator/api/gateway.ts';
import { fieldManager } from '../../../operator/controllers/provider/tenants.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

const reverse = { address: '127.0.0.1', ports: { from: 43_000, to: 43_999 } };
let side: ProviderSide;
let lease: Awaited<ReturnType<ProviderSide['lease']>>;
let port: number;

async function begin(options: Parameters<typeof startProviderSide>[0] = { reverse }): Promise<void> {
  side = await startProviderSide(options);
  lease = await side.lease();
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  port = (side.gateway.app.server.address() as { port: number }).port;
}
beforeEach(() => begin());
afterEach(() => side.stop());

interface Opened {
  readonly status: number;
  readonly body?: { reason?: string; detail?: string };
  readonly socket?: Socket;
}

function open(
  name: string,
  headers: Record<string, string> = {},
  method = 'POST',
  id: string = lease.leaseId,
): Promise<Opened> {
  return new Promise((resolve, reject) => {
    const outgoing = request({
      ...{ host: '127.0.0.1', port, method, path: `/v1/leases/${id}/${name}`, agent: false },
      headers: {
        authorization: `Bearer ${lease.token}`,
        connection: 'Upgrade',
        upgrade: `gpulease-${name}`,
        ...headers,
      },
    });
    outgoing.on('upgrade', (response, socket, head) => {
      socket.on('error', () => undefined);
      if (head.length > 0) socket.unshift(head);
      resolve({ status: response.statusCode!, socket: socket as Socket });
    });
    outgoing.on('response', (response) => {
      let body = '';
      response.on('data', (chunk) => {
        body += String(chunk);
      });
      response.on('end', () => resolve({ status: response.statusCode!, body: JSON.parse(body) }));
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

describe.each(['forward', 'reverse'])('the tunnel %s', (name) => {
  test('opens for the lease’s token', async () => {
    const { status, socket } = await open(name);
    expect(status).toBe(101);
    socket!.destroy();
  });

  test.each([
    ['no token', { authorization: 'Bearer x.y' }, 'POST', undefined, 401],
    ['another protocol', { upgrade: 'SPDY/3.1' }, 'POST', undefined, 400],
    ['another method', {}, 'GET', undefined, 405],
    ['a name that is none of a lease', {}, 'POST', '0x12', 404],
    ['the token of another lease', {}, 'POST', `0x${'7'.repeat(64)}`, 401],
  ])('and not for %s', async (_name, headers, method, id, status) => {
    expect((await open(name, headers, method, id)).status).toBe(status);
  });

  test('is no ordinary request', async () => {
    expect((await side.post(`/v1/leases/${lease.leaseId}/${name}`, {}, lease.token)).status).toBe(400);
    expect((await side.get(`/v1/leases/${lease.leaseId}/${name}`, lease.token)).status).toBe(405);
  });

  test('ends with the gateway', async () => {
    const { socket } = await open(name);
    socket!.resume();
    const closed = once(socket!, 'close');
    await side.gateway.close();
    await closed;
  });

  test('leaves its oldest for the newest', async () => {
    const all = await Promise.all(Array.from({ length: 9 }, () => open(name)));
    await eventually(
      () => all.filter(({ socket }) => socket?.resume().destroyed).length,
      (gone) => gone >= 1,
    );
    for (const { socket } of all) socket?.destroy();
  });
});

describe('through the forward tunnel', () => {
  let session: ClientHttp2Session;
  const namespace = () => tenantNamespace(lease.leaseId);
  beforeEach(async () => {
    const { socket } = await open('forward');
    session = http2.connect('http://lease', { createConnection: () => socket! });
    session.on('error', () => undefined);
  });
  afterEach(() => session.destroy());

  async function ask(authority: string, headers: Record<string, string> = {}) {
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority, ...headers }, { endStream: false });
    stream.on('error', () => undefined);
    const [answer] = (await once(stream, 'response')) as [Record<string, unknown>];
    return { status: answer[':status'], stream };
  }
  const pod = (name: string, spec: object, status: object, inNamespace = namespace()) =>
    side.cluster.seed(resources.pods, { metadata: { name, namespace: inNamespace }, spec, status } as KubeObject);

  test('a pod of the tenant is reached, with the tenant’s own token', async () => {
    const server = createServer((socket) => socket.on('error', () => undefined).end('here I am'));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    pod('web', {}, { phase: 'Running', podIP: '127.0.0.1' });
    const { status, stream } = await ask(`web:${(server.address() as { port: number }).port}`);
    expect(status).toBe(200);
    expect(String((await once(stream, 'data'))[0])).toBe('here I am');
    const asked = side.cluster.requests.findLast(({ name }) => name === 'web');
    expect(asked?.as).toBeDefined();
    expect(asked?.as).not.toContain(lease.token);
    server.close();
  });

  test.each<[string, string, number]>([
    ['a pod that is not there', 'nobody:80', 404],
    ['a pod of somebody else', 'stranger:80', 404],
    ['a pod on its host’s network', 'host:80', 403],
    ['a pod that has no address yet', 'starting:80', 409],
    ['a pod that has ended', 'done:80', 409],
    ['an address that is none', 'odd:80', 409],
    ['a port that is none', 'web:0', 400],
    ['a port beyond all', 'web:70000', 400],
    ['a bare name', 'web', 400],
    ['an address', '10.0.0.1:80', 404],
    ['the loopback by its IPv6 name', '[::1]:80', 400],
  ])('not %s', async (_name, authority, status) => {
    pod('stranger', {}, { phase: 'Running', podIP: '127.0.0.1' }, 'default');
    pod('host', { hostNetwork: true }, { phase: 'Running', podIP: '127.0.0.1' });
    pod('starting', {}, { phase: 'Pending' });
    pod('done', {}, { phase: 'Succeeded', podIP: '127.0.0.1' });
    pod('odd', {}, { phase: 'Running', podIP: 'example.com' });
    expect((await ask(authority)).status).toBe(status);
  });

  test('nothing but a connection', async () => {
    const stream = session.request({ ':method': 'GET', ':path': '/', ':authority': 'web:80' });
    stream.on('error', () => undefined);
    expect(((await once(stream, 'response')) as [Record<string, unknown>])[0][':status']).toBe(400);
  });

  test('nobody, when the pod does not take it', async () => {
    pod('web', {}, { phase: 'Running', podIP: '127.0.0.1' });
    expect((await ask('web:1')).status).toBe(502);
  });

  test('no more than a lease may have open at once', async () => {
    const sockets: Socket[] = [];
    const server = createServer((socket) => void sockets.push(socket.on('error', () => undefined)));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    pod('web', {}, { phase: 'Running', podIP: '127.0.0.1' });
    const authority = `web:${(server.address() as { port: number }).port}`;
    // Two tunnels share one budget, so that a second one is no way round it.
    const { socket } = await open('forward');
    const second = http2.connect('http://lease', { createConnection: () => socket! });
    second.on('error', () => undefined);
    const first = session;
    const statuses: unknown[] = [];
    for (const through of [first, second]) {
      session = through;
      const answers = await Promise.all(Array.from({ length: maxTunnelStreams / 2 + 20 }, () => ask(authority)));
      statuses.push(...answers.map(({ status }) => status));
    }
    expect(statuses.filter((status) => status === 200)).toHaveLength(maxTunnelStreams);
    expect(statuses.filter((status) => status === 429)).toHaveLength(40);
    first.destroy();
    second.destroy();
    server.close();
    for (const each of sockets) each.destroy();
  });
});

describe('the Services of a lease', () => {
  const put = (body: unknown, token = lease.token) =>
    side.gateway.app
      .inject({
        method: 'PUT',
        url: `/v1/leases/${lease.leaseId}/services`,
        headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
        payload: JSON.stringify(body),
      })
      .then((answer) => ({ status: answer.statusCode, body: answer.json() }));
  const one = { namespace: 'ml', name: 'db', ports: [{ port: 80 }] };

  test.each<[string, unknown]>([
    ['no list', {}],
    ['a name that is none', { services: [{ ...one, name: 'Db' }] }],
    ['a name with a path in it', { services: [{ ...one, namespace: '../x' }] }],
    ['a port that is none', { services: [{ ...one, ports: [{ port: 0 }] }] }],
    ['too many', { services: Array.from({ length: 33 }, (_, i) => ({ ...one, name: `db-${i}` })) }],
    ['too many ports', { services: [{ ...one, ports: Array.from({ length: 17 }, (_, i) => ({ port: i + 1 })) }] }],
    ['one twice', { services: [one, one] }],
  ])('are refused: %s', async (_name, body) => {
    expect((await put(body)).status).toBe(400);
    expect(side.cluster.objects(resources.services)).toEqual([]);
  });

  test('are none without the lease’s token', async () => {
    expect((await put({ services: [one] }, 'x.y')).status).toBe(401);
  });

  test('replace each other, quota and all', async () => {
    const names = () => side.cluster.objects(resources.services).map(({ metadata }) => metadata.name.slice(0, 7));
    const quota = () =>
      side.cluster
        .objects<KubeObject & { spec: { hard: Record<string, string> } }>(resources.resourceQuotas)
        .find(({ metadata }) => metadata.name === 'lease')?.spec.hard.services;
    expect((await put({ services: [one, { ...one, name: 'api' }] })).status).toBe(200);
    expect([names(), quota()]).toEqual([['svc-db-', 'svc-api'], '2']);
    expect((await put({ services: [one] })).status).toBe(200);
    expect([names(), quota()]).toEqual([['svc-db-'], '1']);
    expect((await put({ services: [] })).status).toBe(200);
    expect([names(), quota()]).toEqual([[], '0']);
  });

  test('leave the rest of the quota alone: that of an older tenant has all that was bought in it', async () => {
    type Quota = KubeObject & { spec: { hard: Record<string, string> } };
    const key = { namespace: tenantNamespace(lease.leaseId), name: 'lease' };
    const { spec } = side.cluster.object<Quota>(resources.resourceQuotas, key)!;
    const older = { metadata: key, spec: { hard: { ...spec.hard, pods: '20' } } };
    await side.cluster.apply(resources.resourceQuotas, older as Quota, { fieldManager });
    expect((await put({ services: [one] })).status).toBe(200);
    expect(side.cluster.object<Quota>(resources.resourceQuotas, key)?.spec.hard).toMatchObject({
      services: '1',
      pods: '20',
      'count/secrets': '1000',
    });
  });

  test('wait for a quota that is counted a moment later', async () => {
    side.cluster.failNext({
      method: 'PATCH',
      resource: 'services',
      fail: 403,
      reason: 'Forbidden',
      message:
        'services "svc-db" is forbidden: exceeded quota: lease, requested: services=1, used: services=0, limited: services=0',
      times: 3,
    });
    expect((await put({ services: [one] })).status).toBe(200);
  });

  test('are not carried by a provider that does not want to', async () => {
    await side.stop();
    await begin({});
    expect(await put({ services: [one] })).toMatchObject({ status: 403, body: { reason: 'ServicesNotOffered' } });
    expect(await open('reverse')).toMatchObject({ status: 403, body: { reason: 'ServicesNotOffered' } });
    expect((await open('forward')).status).toBe(101);
  });
});
