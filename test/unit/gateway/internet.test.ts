/** Who asks, from where and how often; who holds connections open; what is written down of it; and the last word of a restart. */
import { once } from 'node:events';
import { request } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import type { Log } from '../../../operator/engine/types.ts';
import { createAddresses } from '../../../operator/gateway/addresses.ts';
import { pathInWords } from '../../../operator/gateway/audit.ts';
import { createRateLimit } from '../../../operator/gateway/plugins/limits.ts';
import { createLeaseTokens } from '../../../operator/gateway/tokens.ts';
import { countedAs } from '../../../operator/wire/counted-as.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide | undefined;
afterEach(async () => {
  await side?.stop();
  side = undefined;
});

const listen = async (of: ProviderSide): Promise<number> => {
  await of.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  return (of.gateway.app.server.address() as AddressInfo).port;
};

describe('where a request comes from', () => {
  const trusted = createAddresses(['10.0.0.0/8', '2001:db8::/32', '192.0.2.1']);
  test.each([
    ['nobody is believed who is not named', '203.0.113.9', '1.2.3.4', '203.0.113.9'],
    ['a proxy of ours is', '10.1.2.3', '1.2.3.4', '1.2.3.4'],
    ['what the caller wrote before it is not', '10.1.2.3', '6.6.6.6, 1.2.3.4', '1.2.3.4'],
    ['of several proxies of ours, the caller before the first', '10.1.2.3', '6.6.6.6, 1.2.3.4, 10.9.9.9', '1.2.3.4'],
    ['what is no address ends the search', '10.1.2.3', '1.2.3.4, <script>', '10.1.2.3'],
    ['an empty header says nothing', '10.1.2.3', '', '10.1.2.3'],
    ['IPv4 inside IPv6 is IPv4', '::ffff:10.1.2.3', '1.2.3.4', '1.2.3.4'],
    ['IPv6 through a proxy', '2001:db8::7', '2a00:1::1', '2a00:1::1'],
    ['a tunnel has none', undefined, '1.2.3.4', 'unknown'],
  ])('%s', (_name, remoteAddress, told, expected) => {
    expect(trusted.of({ headers: { 'x-forwarded-for': told }, socket: { remoteAddress } })).toBe(expected);
  });

  test('a network is what it says, or refused', () => {
    expect(() => createAddresses(['10.0.0.0/33'])).toThrow('10.0.0.0/33');
    expect(() => createAddresses(['proxy.example'])).toThrow('proxy.example');
  });

  test.each([
    ['203.0.113.9', '203.0.113.9'],
    ['2a00:1:2:3:4:5:6:7', '2a00:1:2:3::/64'],
    ['2a00:1::9', '2a00:1:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ])('%s is counted as %s', (address, expected) => expect(countedAs(address)).toBe(expected));
});

describe('buckets', () => {
  const bucket = (callers?: number) => {
    let ms = 0;
    const limit = createRateLimit({ perSecond: 2, burst: 4, now: () => new Date(ms), detail: 'too often', callers });
    const pass = (more: number) => {
      ms += more;
    };
    const taken = (who: string) => {
      try {
        limit.take(who);
        return undefined;
      } catch (error) {
        return (error as { retryAfterSeconds: number }).retryAfterSeconds;
      }
    };
    return { limit, taken, pass };
  };

  test('a burst, then as many as flow in; who is refused waits as long as told and not longer', () => {
    const { taken, pass } = bucket();
    expect([1, 2, 3, 4].map(() => taken('a'))).toEqual([undefined, undefined, undefined, undefined]);
    for (let i = 0; i < 100; i++) expect(taken('a')).toBe(1);
    expect(taken('b')).toBeUndefined();
    pass(1000);
    expect([taken('a'), taken('a'), taken('a')]).toEqual([undefined, undefined, 1]);
  });

  test('the table is bounded', () => {
    const { taken } = bucket(2);
    for (let i = 0; i < 4; i++) taken('a');
    expect(taken('a')).toBe(1);
    taken('b');
    taken('c');
    expect(taken('a'), 'forgotten').toBeUndefined();
  });

  test('what was given back may be taken again', () => {
    const { limit, taken } = bucket();
    for (let i = 0; i < 4; i++) taken('a');
    limit.give('a');
    expect([taken('a'), taken('a')]).toEqual([undefined, 1]);
  });
});

describe('limits over HTTP', () => {
  const get = (of: ProviderSide, leaseId: string, authorization: string) =>
    of.gateway.app.inject({ method: 'GET', url: `/v1/leases/${leaseId}`, headers: { authorization } });

  test('who guesses tokens is told to wait, and who has a good one is not', async () => {
    side = await startProviderSide({ requestsPerSecond: 1 });
    const { leaseId, token } = await side.lease();
    const guesses = await Promise.all(Array.from({ length: 12 }, () => get(side!, leaseId, 'Bearer a.b')));
    expect(guesses.map(({ statusCode }) => statusCode)).toContain(429);
    expect(guesses.at(-1)!.headers['retry-after']).toBe('1');
    expect((await get(side, leaseId, `Bearer ${token}`)).statusCode).toBe(200);
  });

  test('tokens that were signed for do not count against the address', async () => {
    side = await startProviderSide({ requestsPerSecond: 1 });
    const { leaseId } = await side.lease();
    for (let i = 0; i < 12; i++) await side.token(leaseId);
  });

  test('an account that asks too often is told to wait, with all its leases; another is not', async () => {
    side = await startProviderSide({ gateway: { walletRequestsPerSecond: 1 } });
    const one = await side.lease();
    const two = await side.lease();
    const answers = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        get(side!, [one, two][i % 2]!.leaseId, `Bearer ${[one, two][i % 2]!.token}`),
      ),
    );
    expect(answers.filter(({ statusCode }) => statusCode === 429).length).toBeGreaterThan(2);
  });

  test('X-Forwarded-For of a stranger does not make him somebody else', async () => {
    side = await startProviderSide({ requestsPerSecond: 1 });
    const answers = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        side!.gateway.app.inject({
          ...{ method: 'POST', url: '/v1/quotes', payload: '{}' },
          headers: { 'content-type': 'application/json', 'x-forwarded-for': `10.0.0.${i}` },
        }),
      ),
    );
    expect(answers.map(({ statusCode }) => statusCode)).toContain(429);
  });
});

describe('one Access, one token', () => {
  test('a replay at another replica gives the same token, and no later one', () => {
    let ms = 1_000_000;
    const key = Buffer.alloc(32, 1);
    const replica = () => createLeaseTokens(key, () => new Date(ms));
    const first = replica().issue(`0x${'1'.repeat(64)}`, 1200);
    ms += 100_000;
    expect(replica().issue(`0x${'1'.repeat(64)}`, 1200)).toEqual(first);
  });
});

describe('connections that prove nothing', () => {
  test('beyond as many as one address may have, the oldest goes; one that carried a good token stays', async () => {
    side = await startProviderSide({ gateway: { unprovenConnections: 8 } });
    const { leaseId, token } = await side.lease();
    const port = await listen(side);
    const sockets: Socket[] = [];
    const open = async () => {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined);
      sockets.push(socket);
      await once(socket, 'connect');
      return socket;
    };
    const proven = await open();
    proven.write(`GET /v1/leases/${leaseId} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\n\r\n`);
    expect(String((await once(proven, 'data'))[0])).toContain('200 OK');
    const idle: Socket[] = [];
    for (let i = 0; i < 20; i++) idle.push(await open());
    await eventually(
      () => idle.filter((socket) => socket.destroyed || socket.readableEnded || socket.closed).length,
      (gone) => gone >= 12,
    );
    expect(idle.slice(-8).every((socket) => !socket.destroyed)).toBe(true);
    proven.write(`GET /v1/provider HTTP/1.1\r\nhost: x\r\n\r\n`);
    expect(String((await once(proven, 'data'))[0])).toContain('200 OK');
    for (const socket of sockets) socket.destroy();
  });
});

describe('what is malformed is told so, as a problem', () => {
  const raw = async (text: string): Promise<string> => {
    side = await startProviderSide();
    const socket = connect(await listen(side), '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write(text);
    let answer = '';
    socket.on('data', (chunk) => {
      answer += String(chunk);
    });
    await Promise.race([once(socket, 'close'), sleep(1500)]);
    socket.destroy();
    return answer;
  };
  test.each([
    ['no Host', 'GET /v1/offers HTTP/1.1\r\n\r\n', 400],
    ['an expectation that nobody meets', 'POST /v1/quotes HTTP/1.1\r\nhost: x\r\nexpect: miracles\r\n\r\n', 417],
    ['a proxy is wanted', 'CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n', 405],
    ['two lengths', 'POST /v1/quotes HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}', 400],
    [
      'a length and chunks',
      'POST /v1/quotes HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
      400,
    ],
    ['a method that nobody knows', 'TRACE /v1/offers HTTP/1.1\r\nhost: x\r\n\r\n', 404],
    ['HTTP/2 without TLS', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
  ])('%s', async (_name, text, status) => {
    expect(await raw(text)).toMatch(new RegExp(`^HTTP/1\\.1 ${status} [^]*problem\\+json[^]*"status":${status}`));
  });
});

describe('the audit log', () => {
  test('has a line for each call that may change something, and nothing of what was sent', async () => {
    const lines: Record<string, unknown>[] = [];
    const silent = () => undefined;
    const info = (fields: object) => void lines.push({ ...fields });
    const log = { debug: silent, warn: silent, error: silent, info };
    side = await startProviderSide({ log: Object.assign(log, { child: () => log }) as unknown as Log });
    const { leaseId, token } = await side.lease();
    const signature = await side.voucher(leaseId, 1);
    await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 1, last: false, signature }, token);
    await side.post(`/v1/leases/${leaseId}/kube/secrets`, { metadata: { name: 's' }, data: { k: 'aHVzaA==' } }, token);
    await side.get(`/v1/leases/${leaseId}`, token);
    await side.post(`/v1/leases/${leaseId}/vouchers`, {}, 'no.no');
    const audited = lines.filter((line) => 'audit' in line);
    expect(audited.map(({ audit, path, status }) => [audit, path, status])).toEqual([
      ['POST', '/v1/leases', 200],
      ['POST', 'token', 200],
      ['POST', 'vouchers', expect.any(Number)],
      ['POST', 'kube/secrets', expect.any(Number)],
    ]);
    for (const line of audited) expect(line).toMatchObject({ leaseId, address: '127.0.0.1' });
    const text = JSON.stringify(audited);
    for (const secret of [token, signature, 'aHVzaA==', 'authorization']) expect(text).not.toContain(secret);
  });

  test('shows no query and nothing that steers a terminal, and is short', () => {
    const leaseId = `0x${'1'.repeat(64)}` as const;
    const shown = (rest: string) => pathInWords(`/v1/leases/${leaseId}/${rest}`, leaseId);
    expect(shown('kube/pods/p/exec?command=password')).toBe('kube/pods/p/exec');
    expect(shown('kube/pods/\u001b[2Jx')).toBe('kube/pods/?[2Jx');
    expect(shown('x'.repeat(10_000))).toHaveLength(200);
  });
});

describe('a restart', () => {
  async function session(
    headers: Record<string, string>,
  ): Promise<{ socket: Socket; far: Socket; text: () => string }> {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    const port = await listen(side);
    const server = createServer({ allowHalfOpen: true });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const near = connect({ port: (server.address() as AddressInfo).port, allowHalfOpen: true });
    const [far] = (await once(server, 'connection')) as [Socket];
    server.close();
    far.on('error', () => undefined);
    side.cluster.onUpgrade(() => ({
      socket: near,
      head: Buffer.alloc(0),
      headers: { connection: 'Upgrade', ...headers },
    }));
    const outgoing = request({
      ...{ host: '127.0.0.1', port, method: 'POST', agent: false },
      path: `/v1/leases/${leaseId}/kube/pods/p/exec?command=sh&stdout=true`,
      headers: { authorization: `Bearer ${token}`, connection: 'Upgrade', upgrade: headers.upgrade! },
    });
    outgoing.end();
    const [, socket] = (await once(outgoing, 'upgrade')) as [unknown, Socket];
    let heard = '';
    socket.on('data', (chunk) => {
      heard += chunk.toString('latin1');
    });
    socket.on('error', () => undefined);
    socket.once('end', () => socket.end());
    return { socket, far, text: () => heard };
  }

  test.each([
    ['SPDY', { upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'v4.channel.k8s.io' }],
    ['WebSocket', { upgrade: 'websocket', 'sec-websocket-protocol': 'v5.channel.k8s.io' }],
  ])('tells a session of %s why it ends', async (_name, headers) => {
    const { socket, text } = await session(headers);
    const closed = once(socket, 'close');
    await side!.gateway.close();
    await closed;
    expect(text()).toContain('"status":"Failure"');
    expect(text()).toContain('gateway restarts');
  });

  test('ends a port-forward without a word that it could take for data', async () => {
    const { socket, text } = await session({ upgrade: 'SPDY/3.1', 'x-stream-protocol-version': 'portforward.k8s.io' });
    const closed = once(socket, 'close');
    await side!.gateway.close();
    await closed;
    expect(text()).toBe('');
  });
});
