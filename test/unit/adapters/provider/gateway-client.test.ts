import type { IncomingMessage, ServerResponse } from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Endpoint } from '../../../../operator/adapters/provider/dial.ts';
import {
  GatewayRefusal,
  IdentityMismatchError,
  InvalidAnswerError,
  UnknownOutcomeError,
} from '../../../../operator/adapters/provider/errors.ts';
import { connectGateway } from '../../../../operator/adapters/provider/gateway-client.ts';
import type { Access } from '../../../../operator/api/messages.ts';
import { type Authority, authority, type Pair } from './tls.ts';

const provider = `0x${'a'.repeat(40)}` as const;
const leaseId = `0x${'1'.repeat(64)}` as const;
const info = {
  address: provider,
  networkId: `0x${'2'.repeat(64)}`,
  name: 'acme',
  version: '1',
  rails: [{ chainId: 1, escrow: provider, token: provider, assetSymbol: 'USDC', decimals: 6 }],
  now: '2026-01-01T00:00:00Z',
};
const allocation = {
  leaseId,
  state: 'Serving',
  gpus: 1,
  resources: { cpu: '1', memory: '1Gi', ephemeralStorage: '1Gi' },
  pods: 5,
  nodeLabels: {},
  nodeInfo: {},
  nodeReady: true,
  vouchedSeconds: 0,
  graceSeconds: 60,
};

let ca: Authority;
let pair: Pair;
let stranger: Authority;
beforeAll(async () => {
  [ca, stranger] = await Promise.all([authority('gateway-ca'), authority('somebody')]);
  pair = await ca.issue([{ CN: ['gateway'] }], { san: [{ type: 'dns', value: 'gpu.example.com' }] });
});

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0)) close();
});

type Answer = (request: IncomingMessage, response: ServerResponse, body: string) => void;
async function gateway(answer: Answer) {
  const server = https.createServer({ key: pair.key, cert: pair.cert }, (request, response) => {
    let body = '';
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => answer(request, response, body));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    server,
    url,
    connect: (
      endpoint: Partial<Endpoint> = { caBundle: ca.pem, serverName: 'gpu.example.com' },
      timeoutSeconds = 2,
    ) => {
      const client = connectGateway({ endpoint: { url, ...endpoint }, timeoutSeconds });
      closing.push(() => client.close());
      return client;
    },
  };
}
const json = (response: ServerResponse, status: number, body: unknown) => {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify(body));
};

describe('who answers', () => {
  test.each<[string, () => Partial<Endpoint>, 'answers' | 'mismatch']>([
    ['a name in the certificate, and its CA', () => ({ caBundle: ca.pem, serverName: 'gpu.example.com' }), 'answers'],
    [
      'the CA in base64',
      () => ({ caBundle: Buffer.from(ca.pem).toString('base64'), serverName: 'gpu.example.com' }),
      'answers',
    ],
    ['the key alone', () => ({ spkiSHA256: pair.spki }), 'answers'],
    ['key, CA and name', () => ({ spkiSHA256: pair.spki, caBundle: ca.pem, serverName: 'gpu.example.com' }), 'answers'],
    ['another key', () => ({ spkiSHA256: 'a'.repeat(64) }), 'mismatch'],
    [
      'another key, but the right CA',
      () => ({ spkiSHA256: 'a'.repeat(64), caBundle: ca.pem, serverName: 'gpu.example.com' }),
      'mismatch',
    ],
    ['another CA', () => ({ caBundle: stranger.pem, serverName: 'gpu.example.com' }), 'mismatch'],
    ['another name', () => ({ caBundle: ca.pem, serverName: 'bank.example.com' }), 'mismatch'],
    ['the address, which the certificate does not have', () => ({ caBundle: ca.pem }), 'mismatch'],
    [
      'the key, under a name it does not have',
      () => ({ spkiSHA256: pair.spki, caBundle: ca.pem, serverName: 'x.example.com' }),
      'mismatch',
    ],
    ['the system’s certificates', () => ({}), 'mismatch'],
  ])('is judged by %s', async (_, endpoint, expected) => {
    let asked = 0;
    const { connect } = await gateway((_request, response) => {
      asked++;
      json(response, 200, info);
    });
    const call = connect(endpoint()).info();
    if (expected === 'answers') await expect(call).resolves.toMatchObject({ name: 'acme' });
    else {
      const error = await call.catch((e: unknown) => e);
      expect(error).toBeInstanceOf(IdentityMismatchError);
      expect(String(error)).toMatch(/spec\.endpoint\./);
      expect(asked, 'nothing was sent').toBe(0);
    }
  });
});

describe('answers', () => {
  test.each<[string, Answer, new (...args: never[]) => Error, RegExp]>([
    [
      'a refusal with its reason',
      (_q, r) =>
        json(r, 409, { type: 'x', title: 'Conflict', status: 409, reason: 'CapacityExhausted', detail: 'no GPUs' }),
      GatewayRefusal,
      /no GPUs/,
    ],
    [
      'a 404 of some proxy',
      (_q, r) => {
        r.writeHead(404);
        r.end('<html>');
      },
      GatewayRefusal,
      /HTTP 404/,
    ],
    [
      'a 502 of some proxy',
      (_q, r) => {
        r.writeHead(502);
        r.end('<html>');
      },
      UnknownOutcomeError,
      /502/,
    ],
    [
      'what is not JSON',
      (_q, r) => {
        r.end('hello');
      },
      UnknownOutcomeError,
      /not JSON/,
    ],
    [
      'JSON that the protocol does not know',
      (_q, r) => json(r, 200, { ...info, address: 'me' }),
      InvalidAnswerError,
      /address/,
    ],
    [
      'half an answer',
      (_q, r) => {
        r.writeHead(200, { 'Content-Length': '100' });
        r.write('{');
        setTimeout(() => r.destroy(), 20);
      },
      UnknownOutcomeError,
      /broke off/,
    ],
    [
      'an endless one',
      (_q, r) => {
        const t = setInterval(() => r.write('x'.repeat(1 << 18)), 1);
        r.on('close', () => clearInterval(t));
      },
      UnknownOutcomeError,
      /longer than/,
    ],
    ['silence', () => undefined, UnknownOutcomeError, /no answer within/],
  ])('with %s are told apart', async (_, answer, kind, message) => {
    const { connect } = await gateway(answer);
    const error = await connect(undefined, 0.5)
      .info()
      .catch((e: unknown) => e);
    expect(error).toBeInstanceOf(kind);
    expect(String(error)).toMatch(message);
  });

  test('that never come, from nobody, were never sent', async () => {
    const { url, server } = await gateway((_q, r) => json(r, 200, info));
    await new Promise((resolve) => server.close(resolve));
    const error = await connectGateway({ endpoint: { url } })
      .info()
      .catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UnknownOutcomeError);
    expect((error as UnknownOutcomeError).neverSent).toBe(true);
  });

  test('go over the connections of the calls before them', async () => {
    let connections = 0;
    const { connect, server } = await gateway((_q, r) => void setTimeout(() => json(r, 200, info), 20));
    server.on('secureConnection', () => {
      connections += 1;
    });
    const client = connect();
    for (let wave = 0; wave < 3; wave += 1) await Promise.all(Array.from({ length: 20 }, () => client.info()));
    expect(connections).toBe(20);
  });

  test.each([
    ['who waits no longer', 0.05, 10],
    ['the time is up', 10, 0.05],
  ])('that never come, for want of a connection, are not waited for when %s', async (_name, ownSeconds, allSeconds) => {
    // Neither made nor refused, as behind a router that forgot everything.
    const dial = () => new Promise<never>(() => undefined);
    const client = connectGateway({ url: 'https://gpu.example.com', dial, timeoutSeconds: allSeconds });
    const from = Date.now();
    await expect(client.info(AbortSignal.timeout(ownSeconds * 1000))).rejects.toThrow();
    expect(Date.now() - from).toBeLessThan(2000);
  });

  test('the reason and status of a refusal can be acted on', async () => {
    const { connect } = await gateway((_q, r) => {
      r.setHeader('Retry-After', '1');
      json(r, 409, { type: 'x', title: 'Conflict', status: 409, reason: 'EscrowNotFound' });
    });
    const error = await connect()
      .info()
      .catch((e: unknown) => e);
    expect(error).toMatchObject({ status: 409, reason: 'EscrowNotFound', retryAfterSeconds: 1 });
  });
});

describe('a lease', () => {
  const signed: Access[] = [];
  async function lease(options: { life?: number; accepts?: (token: string) => boolean } = {}) {
    signed.length = 0;
    let clock = new Date('2026-01-01T00:00:00Z');
    const seen: { method: string; path: string; auth?: string; body: string }[] = [];
    let issued = 0;
    const { connect, url } = await gateway((request, response, body) => {
      seen.push({ method: request.method!, path: request.url!, auth: request.headers.authorization, body });
      if (request.url?.endsWith('/token')) {
        const expiresAt = Math.floor(clock.getTime() / 1000) + (options.life ?? 600);
        return json(response, 200, { token: `t${++issued}`, expiresAt });
      }
      const token = request.headers.authorization?.replace('Bearer ', '') ?? '';
      if (options.accepts && !options.accepts(token))
        return json(response, 401, { type: 'x', title: 'Unauthorized', status: 401, reason: 'Unauthorized' });
      if (request.url?.includes('/kube/')) return response.end(`carried ${request.url}`);
      if (request.url?.endsWith('/vouchers')) return json(response, 200, JSON.parse(body));
      if (request.url?.endsWith('/release')) return json(response, 202, { state: 'Ending' });
      return json(response, 200, allocation);
    });
    const connection = connect().lease({
      leaseId,
      provider,
      signAccess: async (message) => {
        signed.push(message);
        return '0x1234';
      },
      now: () => clock,
    });
    return {
      connection,
      seen,
      url,
      pass: (seconds: number) => {
        clock = new Date(clock.getTime() + seconds * 1000);
      },
      tokens: () => issued,
    };
  }

  test('is opened by a signature for this gateway, this lease, and minutes', async () => {
    const { connection, url, seen } = await lease();
    expect(await connection.allocation()).toMatchObject({ state: 'Serving' });
    expect(signed[0]).toMatchObject({ provider, leaseId, audienceUrl: url, expiresAt: 1767225600 + 120 });
    expect(signed[0]!.nonce).toMatch(/^0x[0-9a-f]{64}$/);
    expect(JSON.parse(seen[0]!.body)).not.toHaveProperty('leaseId');
    expect(seen[1]?.auth).toBe('Bearer t1');
  });

  test('uses one token for many calls, and one fetch for many callers', async () => {
    const { connection, tokens } = await lease();
    await Promise.all(Array.from({ length: 10 }, () => connection.allocation()));
    await connection.voucher({ servedSeconds: 5, last: false, signature: '0x12' });
    expect(tokens()).toBe(1);
  });

  test('renews its token before it ends', async () => {
    const { connection, tokens, pass } = await lease();
    await connection.allocation();
    pass(470);
    await connection.allocation();
    expect(tokens()).toBe(1);
    pass(20);
    await connection.allocation();
    expect(tokens()).toBe(2);
    expect(new Set(signed.map((access) => access.nonce)).size).toBe(2);
  });

  test('asks once more with a new token when the gateway has forgotten the old one', async () => {
    const { connection, tokens } = await lease({ accepts: (token) => token !== 't1' });
    expect(await connection.allocation()).toMatchObject({ state: 'Serving' });
    expect(tokens()).toBe(2);
  });

  test('gives up when a new token is not taken either', async () => {
    const { connection, tokens } = await lease({ accepts: () => false });
    await expect(connection.allocation()).rejects.toMatchObject({ status: 401, reason: 'Unauthorized' });
    expect(tokens()).toBe(2);
  });

  test('carries requests under its own path, with the token', async () => {
    const { connection } = await lease();
    const answer = await connection.raw({ method: 'GET', path: 'kube/pods/x/log?follow=true' });
    let text = '';
    for await (const chunk of answer) text += chunk;
    expect(text).toBe(`carried /v1/leases/${leaseId}/kube/pods/x/log?follow=true`);
  });

  test('releases, and says that it is not over yet', async () => {
    const { connection } = await lease();
    expect(await connection.release()).toEqual({ state: 'Ending' });
  });
});

describe('an allocation that is followed', () => {
  const access = {
    leaseId,
    provider,
    now: () => new Date(),
    signAccess: async () => `0x${'9'.repeat(130)}` as const,
  };
  const token = (request: IncomingMessage, response: ServerResponse): boolean => {
    if (!request.url?.endsWith('/token')) return false;
    json(response, 200, { token: 't', expiresAt: Math.floor(Date.now() / 1000) + 600 });
    return true;
  };
  async function heard(answer: Answer): Promise<(string | undefined)[]> {
    const { connect } = await gateway(
      (request, response, body) => token(request, response) || answer(request, response, body),
    );
    const found: (string | undefined)[] = [];
    const stop = new AbortController();
    closing.push(() => stop.abort(new Error('over')));
    await connect()
      .lease(access)
      .follow((info) => found.push(info?.state), stop.signal);
    return found;
  }
  const data = (value: unknown) => `data: ${JSON.stringify(value)}\n\n`;
  const stream = (response: ServerResponse) =>
    response.writeHead(200, { 'Content-Type': 'text/event-stream; charset=utf-8' });

  test('is told as it comes, in whatever pieces', async () => {
    const text = `${data(allocation)}:\n\n${data({ ...allocation, state: 'Suspended', nodeMessage: 'größer' })}`;
    const bytes = Buffer.from(text);
    const found = await heard((_, response) => {
      stream(response);
      for (let at = 0; at < bytes.length; at += 7) response.write(bytes.subarray(at, at + 7));
      response.end();
    });
    expect(found).toEqual(['Serving', undefined, 'Suspended']);
  });

  test('a gateway that knows of no following is asked: once, as it answers', async () => {
    expect(await heard((_, response) => json(response, 200, allocation))).toEqual(['Serving']);
    const refusing: Answer = (request, response) =>
      request.headers.accept === 'text/event-stream'
        ? json(response, 400, { type: 'about:blank', title: 'no', status: 400, detail: 'watches and nothing else' })
        : json(response, 200, allocation);
    expect(await heard(refusing)).toEqual(['Serving']);
  });

  test.each<[string, Answer, new (...args: never[]) => Error, RegExp]>([
    [
      'is refused',
      (_, response) =>
        json(response, 404, { type: 'about:blank', title: 'gone', status: 404, reason: 'LeaseNotFound' }),
      GatewayRefusal,
      /gone|LeaseNotFound/,
    ],
    [
      'breaks off',
      (_, response) => {
        stream(response);
        response.write(data(allocation));
        setTimeout(() => response.destroy(), 50);
      },
      Error,
      /broke off|aborted|reset/i,
    ],
    [
      'is not what the protocol allows',
      (_, response) => {
        stream(response);
        response.end(data({ ...allocation, gpus: 'many' }));
      },
      InvalidAnswerError,
      /gpus/,
    ],
    [
      'has no end',
      (_, response) => {
        stream(response);
        response.end(`data: ${'x'.repeat(2_000_000)}`);
      },
      Error,
      /a line longer than 1572864 bytes/,
    ],
  ])('an answer that %s is an error', async (_, answer, kind, message) => {
    const error = await heard(answer).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(kind);
    expect(String(error)).toMatch(message);
  });
});
