/**
 * What a user sees who sends something wrong. Every answer is a problem document that names the fix, and the gateway goes on
 * answering.
 */

import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { problem } from '../../../operator/api/gateway.ts';
import { keys, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
let lease: { leaseId: string; token: string };
beforeAll(async () => {
  side = await startProviderSide();
  lease = await side.lease();
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
});
afterAll(() => side.stop());
afterEach(async () => {
  expect((await side.get('/v1/provider')).status, 'still answering').toBe(200);
});

interface Sent {
  readonly method?: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  readonly url: string;
  readonly payload?: string | Buffer;
  readonly type?: string;
  readonly token?: string;
}

async function send({ method = 'POST', url, payload, type = 'application/json', token }: Sent) {
  const response = await side.gateway.app.inject({
    method,
    url,
    payload,
    headers: {
      ...(payload === undefined ? {} : { 'content-type': type }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
  });
  expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
  expect(response.body).not.toMatch(/\bat .*\.(ts|js):\d+/);
  const body = problem.parse(JSON.parse(response.body));
  expect(body.status).toBe(response.statusCode);
  return body;
}

const quote = {
  offerName: 'rtx4090',
  consumer: keys.consumer.address,
  leaseRef: `0x${'9'.repeat(64)}`,
  chainId: 31337,
  escrow: '0x00000000000000000000000000000000000e5c01',
  token: '0x0000000000000000000000000000000000005dc1',
  gpus: 1,
  maxSeconds: 3600,
  startTimeoutSeconds: 900,
};
const quoted = (changes: object): Sent => ({ url: '/v1/quotes', payload: JSON.stringify({ ...quote, ...changes }) });

describe('bodies', () => {
  const table: [string, Sent, number, RegExp][] = [
    ['JSON that is cut off', { url: '/v1/quotes', payload: '{"offerName": "rtx' }, 400, /not valid JSON|malformed/],
    [
      'another type of content',
      { url: '/v1/quotes', payload: 'offerName=rtx4090', type: 'application/x-www-form-urlencoded' },
      415,
      /Content-Type: application\/json/,
    ],
    [
      'two mebibytes',
      { url: '/v1/quotes', payload: JSON.stringify({ offerName: 'x'.repeat(2 * 1024 * 1024) }) },
      413,
      /larger than this gateway takes/,
    ],
    [
      'bytes that are not UTF-8',
      { url: '/v1/quotes', payload: Buffer.from([0x22, 0xff, 0xfe, 0x22]) },
      400,
      /not UTF-8/,
    ],
    [
      'a prototype for everybody',
      { url: '/v1/quotes', payload: '{"__proto__": {"gpus": 1}}' },
      400,
      /malformed|not valid JSON/,
    ],
    ['nothing at all', { url: '/v1/quotes', payload: '' }, 400, /./],
    ['a number where a list was meant', { url: '/v1/leases', payload: '7' }, 400, /./],
    ['ten thousand brackets', { url: '/v1/quotes', payload: '['.repeat(10_000) }, 400, /./],
    ['a long body of who has proved nothing', { url: '/v1/leases', payload: ' '.repeat(20_000) }, 413, /larger than/],
  ];
  test.each(table)('%s', async (_name, sent, status, detail) => {
    const body = await send(sent);
    expect(body.status).toBe(status);
    expect(body.detail).toMatch(detail);
  });

  test('a field of the wrong type is named, with what was given', async () => {
    const body = await send(quoted({ gpus: 'two', consumer: '0x12' }));
    expect(body).toMatchObject({ status: 400 });
    expect(body.errors).toMatchObject([
      { field: 'consumer', given: '0x12' },
      { field: 'gpus', given: 'two' },
    ]);
  });
});

describe('quotes', () => {
  const table: [string, object, number, string, RegExp][] = [
    ['an unknown offer', { offerName: 'b200' }, 404, 'OfferNotFound', /no offer "b200"/],
    [
      'a token that is not taken',
      { token: `0x${'1'.repeat(40)}` },
      422,
      'RailNotAccepted',
      /accepted: USDC on chain 31337/,
    ],
    ['another chain', { chainId: 1 }, 422, 'RailNotAccepted', /accepted: USDC on chain 31337/],
    ['a term beyond the offer', { maxSeconds: 90_000 }, 422, 'TermNotAccepted', /60 to 86400 seconds, not 90000/],
    ['more GPUs than any node has', { gpus: 16 }, 409, 'CapacityExhausted', /largest lease that fits now has 1/],
    ['more memory than any node has', { requests: { memory: '4Ti' } }, 409, 'CapacityExhausted', /4Ti memory/],
  ];
  test.each(table)('%s', async (_name, changes, status, reason, detail) => {
    const body = await send(quoted(changes));
    expect(body).toMatchObject({ status, reason, type: `gpulease:${reason}` });
    expect(body.detail).toMatch(detail);
  });

  test('resources that are no quantities', async () => {
    expect(await send(quoted({ requests: { cpu: 'lots' } }))).toMatchObject({
      status: 400,
      errors: [{ field: 'requests', message: expect.stringContaining('"lots" is not a quantity') }],
    });
  });
});

describe('paths', () => {
  test.each([
    ['a path that is not there', 'GET', '/v2/offers', 404],
    ['a method that is not there', 'DELETE', '/v1/offers', 405],
    ['a lease id that is none', 'GET', '/v1/leases/..%2f..%2fetc', 404],
    ['a path that is no URL', 'GET', '/v1/leases/%zz', 400],
  ] as const)('%s', async (_name, method, url, status) => {
    expect(await send({ method, url })).toMatchObject({ status });
  });
});

describe('who may', () => {
  const at = (path: string) => `/v1/leases/${lease.leaseId}${path}`;

  test('no token, a wrong one, one of another lease, one that ran out', async () => {
    expect(await send({ method: 'GET', url: at('') })).toMatchObject({
      status: 401,
      detail: expect.stringContaining('Access signature'),
    });
    expect(await send({ method: 'GET', url: at(''), token: 'abc.def' })).toMatchObject({
      status: 401,
      detail: 'the token is not one of this gateway',
    });
    expect(await send({ method: 'GET', url: at(''), token: `${lease.token}x` })).toMatchObject({ status: 401 });
    const other = `/v1/leases/0x${'8'.repeat(64)}`;
    expect(await send({ method: 'GET', url: other, token: lease.token })).toMatchObject({
      status: 401,
      detail: 'the token is for another lease',
    });
  });

  test('an Access that is forged, late, too long, for another gateway or provider, or used before', async () => {
    const ask = async (changes: object, signer = keys.session) => {
      const access = await side.access(lease.leaseId as `0x${string}`, changes as Record<string, unknown>, signer);
      return send({ url: at('/token'), payload: JSON.stringify(access) });
    };
    const now = side.nowSeconds();
    expect(await ask({}, keys.stranger)).toMatchObject({ status: 401, detail: expect.stringContaining('session key') });
    expect(await ask({ expiresAt: now - 1 })).toMatchObject({
      status: 401,
      detail: expect.stringContaining('run out'),
    });
    expect(await ask({ expiresAt: now + 3600 })).toMatchObject({
      status: 401,
      detail: expect.stringContaining('300 seconds'),
    });
    expect(await ask({ audienceUrl: 'https://evil.example' })).toMatchObject({
      status: 401,
      detail: expect.stringContaining('https://gpu.example.com:8443'),
    });
    expect(await ask({ provider: keys.stranger.address })).toMatchObject({ status: 401 });
    const access = await side.access(lease.leaseId as `0x${string}`);
    const payload = JSON.stringify(access);
    expect((await side.post(at('/token'), access)).status).toBe(200);
    expect(await send({ url: at('/token'), payload })).toMatchObject({
      status: 401,
      detail: expect.stringContaining('used before'),
    });
    // Signed for something else than what is sent.
    expect(
      await send({
        url: at('/token'),
        payload: JSON.stringify({ ...(await side.access(lease.leaseId as `0x${string}`)), expiresAt: now + 200 }),
      }),
    ).toMatchObject({ status: 401 });
  });

  test('a lease that nobody knows', async () => {
    const leaseId = `0x${'7'.repeat(64)}` as const;
    expect(
      await send({ url: `/v1/leases/${leaseId}/token`, payload: JSON.stringify(await side.access(leaseId)) }),
    ).toMatchObject({
      status: 404,
      reason: 'LeaseNotFound',
    });
  });
});

describe('the narrow proxy', () => {
  const ask = (method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, payload?: string) =>
    send({ method, url: `/v1/leases/${lease.leaseId}/kube/${path}`, token: lease.token, payload });

  test.each([
    ['everybody’s Secrets', 'GET', 'api/v1/secrets?watch=true', 404],
    ['nodes', 'GET', 'nodes', 404],
    ['services', 'POST', 'services', 404],
    ['the way up', 'GET', '../../../../api/v1/namespaces', 404],
    ['the way up, hidden', 'GET', 'pods/%2e%2e%2f%2e%2e%2fkube-system%2fsecrets', 404],
    ['another namespace', 'GET', 'pods/x/../../../kube-system/pods', 404],
    ['a name with a slash', 'GET', 'pods/a%2fb%2fc', 404],
    ['the pod’s status', 'PUT', 'pods/a/status', 404],
    ['a raw patch', 'PATCH', 'pods/a', 405],
    ['all pods deleted', 'DELETE', 'pods', 405],
    ['events made up', 'POST', 'events', 405],
    ['exec without an upgrade', 'POST', 'pods/a/exec?command=sh', 400],
    ['a query that is not known', 'GET', 'pods?pretty=true&dryRun=All', 400],
    ['a token of the tenant’s account', 'POST', 'serviceaccounts/tenant/token', 404],
  ] as const)('%s', async (_name, method, path, status) => {
    const before = side.cluster.requests.filter((request) => request.as !== undefined).length;
    expect(await ask(method, path, method === 'PUT' || method === 'POST' ? '{}' : undefined)).toMatchObject({ status });
    expect(side.cluster.requests.filter((request) => request.as !== undefined)).toHaveLength(before);
  });
});

describe('what is not HTTP', () => {
  const raw = (text: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const { port } = side.gateway.app.server.address() as AddressInfo;
      const socket = connect(port, '127.0.0.1', () => socket.write(text));
      let answer = '';
      socket.on('data', (chunk) => {
        answer += chunk;
      });
      socket.on('close', () => resolve(answer));
      socket.on('error', reject);
    });

  test('nonsense is told that it is, and cut off', async () => {
    expect(await raw('hello there\r\n\r\n')).toMatch(/^HTTP\/1\.1 400 .*problem\+json/s);
  });

  test('endless headers', async () => {
    expect(await raw(`GET / HTTP/1.1\r\nhost: x\r\n${'a: b\r\n'.repeat(20_000)}\r\n`)).toMatch(/^HTTP\/1\.1 431 /);
  });

  test('half a request is waited for ten seconds', async () => {
    const asked = Date.now();
    const answer = await raw('GET /v1/offers HTTP/1.1\r\nhost: x\r\nx-slow');
    expect(answer).toMatch(/^HTTP\/1\.1 408 .*problem\+json/s);
    expect(Date.now() - asked).toBeLessThan(15_000);
  });

  test('an upgrade to where there is none, and one without a token', async () => {
    const upgrade = (path: string, more = '') =>
      raw(`GET ${path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n${more}\r\n`);
    expect(await upgrade('/v1/offers')).toMatch(/^HTTP\/1\.1 404 .*problem\+json/s);
    expect(await upgrade(`/v1/leases/${lease.leaseId}/kube/pods/a/exec`)).toMatch(
      /^HTTP\/1\.1 401 .*www-authenticate: Bearer/s,
    );
    expect(await upgrade(`/v1/leases/${lease.leaseId}/kube/pods`, `authorization: Bearer ${lease.token}\r\n`)).toMatch(
      /^HTTP\/1\.1 400 /,
    );
  });
});

test('too many requests from one address are told to wait', async () => {
  const slow = await startProviderSide({ requestsPerSecond: 1 });
  try {
    const answers = await Promise.all(Array.from({ length: 10 }, () => slow.post('/v1/quotes', { ...quote })));
    expect(answers.filter(({ status }) => status === 429).length).toBeGreaterThan(3);
    expect(answers.find(({ status }) => status === 429)!.headers['retry-after']).toBe('1');
  } finally {
    await slow.stop();
  }
});
