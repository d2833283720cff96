import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { afterEach, describe, expect, it } from 'vitest';
import { connectCluster } from '../../../operator/engine/cluster.ts';
import { ApiError, UnknownOutcomeError } from '../../../operator/engine/errors.ts';
import { readBody } from '../../../operator/engine/http.ts';
import { resources } from '../../../operator/engine/types.ts';
import { manualClock } from '../../support/clock.ts';
import { type MisbehavingServer, misbehavingServer } from '../../support/misbehaving-server.ts';

const json = (response: ServerResponse, code: number, body: unknown, headers = {}) =>
  response.writeHead(code, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
const status = (code: number, reason: string, message: string, details?: object) => ({
  kind: 'Status',
  apiVersion: 'v1',
  status: 'Failure',
  code,
  reason,
  message,
  details,
});
const pod = (name: string) => ({ metadata: { name, namespace: 'a', resourceVersion: '1' } });
const key = { namespace: 'a', name: 'x' };

const servers: MisbehavingServer[] = [];
const folders: string[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close();
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

async function start(
  handle: RequestListener,
  settings: Partial<Parameters<typeof connectCluster>[0]> = {},
  options = {},
) {
  const server = await misbehavingServer(options);
  servers.push(server);
  server.handle(handle);
  return { server, cluster: connectCluster({ name: 'it', kubeconfig: server.kubeconfig, ...settings }) };
}

/** Answers in turn; the last one again and again. */
const inTurn = (...answers: ((response: ServerResponse) => void)[]): RequestListener => {
  let at = 0;
  return (_, response) => answers[Math.min(at++, answers.length - 1)]!(response);
};

const failure = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'no failure',
    (error) => error,
  );

describe('a call', () => {
  it('sends our token and name, and reads the object', async () => {
    const { cluster, server } = await start((_, response) => json(response, 200, pod('x')), { userAgent: 'tester' });
    expect(await cluster.get(resources.pods, key)).toEqual(pod('x'));
    const { headers, url, method } = server.requests[0]!;
    expect([method, url]).toEqual(['GET', '/api/v1/namespaces/a/pods/x']);
    expect(headers).toMatchObject({ authorization: 'Bearer own-secret-token', 'user-agent': 'tester' });
  });

  it('says undefined for what is not there, and throws for what may not be read', async () => {
    const { cluster } = await start(
      inTurn(
        (r) => json(r, 404, status(404, 'NotFound', 'pods "x" not found')),
        (r) => json(r, 403, status(403, 'Forbidden', 'no')),
      ),
    );
    expect(await cluster.get(resources.pods, key)).toBeUndefined();
    expect(await failure(cluster.get(resources.pods, key))).toMatchObject({
      name: 'ApiError',
      code: 403,
      reason: 'Forbidden',
    });
  });

  it('names the fields that the server found invalid', async () => {
    const causes = [{ reason: 'FieldValueInvalid', message: 'must be positive', field: 'spec.gpus' }];
    const { cluster } = await start((_, r) => json(r, 422, status(422, 'Invalid', 'bad', { causes })));
    const error = await failure(cluster.create(resources.pods, pod('x')));
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ reason: 'Invalid', causes });
  });

  it('reads lists in pages and fills in what lists leave out', async () => {
    const { cluster, server } = await start((request, response) => {
      const query = new URL(request.url!, 'http://x').searchParams;
      const second = query.get('continue') === 'more';
      json(response, 200, {
        metadata: second ? { resourceVersion: '7' } : { resourceVersion: '7', continue: 'more' },
        items: [pod(second ? 'two' : 'one')],
      });
    });
    const { items, resourceVersion } = await cluster.list(resources.pods, { namespace: 'a', limit: 1 });
    expect(items.map((p) => [p.apiVersion, p.kind, p.metadata.name])).toEqual([
      ['v1', 'Pod', 'one'],
      ['v1', 'Pod', 'two'],
    ]);
    expect(resourceVersion).toBe('7');
    expect(server.requests).toHaveLength(2);
  });

  it('begins a list again when its pages grew too old', async () => {
    const { cluster, server } = await start(
      inTurn(
        (r) => json(r, 200, { metadata: { resourceVersion: '1', continue: 'x' }, items: [pod('old')] }),
        (r) => json(r, 410, status(410, 'Expired', 'too old')),
        (r) => json(r, 200, { metadata: { resourceVersion: '2' }, items: [pod('new')] }),
      ),
    );
    expect((await cluster.list(resources.pods)).items.map((p) => p.metadata.name)).toEqual(['new']);
    expect(server.requests).toHaveLength(3);
  });

  it('refuses names that would lead elsewhere', async () => {
    const { cluster, server } = await start((_, r) => json(r, 200, {}));
    for (const name of ['', '.', '..'])
      await expect(cluster.get(resources.pods, { namespace: 'a', name })).rejects.toThrow(TypeError);
    await cluster.get(resources.pods, { namespace: 'a', name: '../secrets/x' });
    expect(server.requests.map((r) => r.url)).toEqual(['/api/v1/namespaces/a/pods/..%2Fsecrets%2Fx']);
  });
});

describe('a busy server', () => {
  it('is asked again after the time it names, also for a write', async () => {
    const clock = manualClock();
    const { cluster, server } = await start(
      inTurn(
        (r) => json(r, 429, status(429, 'TooManyRequests', 'slow down'), { 'retry-after': '3' }),
        (r) => json(r, 201, pod('x')),
      ),
      { clock },
    );
    const created = cluster.create(resources.pods, pod('x'));
    while (clock.pendingTimers === 0) await clock.settle();
    await clock.advance(2999);
    expect(server.requests).toHaveLength(1);
    await clock.advance(500);
    expect(await created).toEqual(pod('x'));
  });

  it('is not asked for ever', async () => {
    const clock = manualClock();
    const { cluster, server } = await start(
      (_, r) => json(r, 429, status(429, 'TooManyRequests', 'slow down'), { 'retry-after': '1' }),
      { clock },
    );
    const answer = failure(cluster.get(resources.pods, key));
    let done = false;
    answer.then(() => {
      done = true;
    });
    while (!done) await clock.advance(1300);
    expect(await answer).toMatchObject({ code: 429, retryAfterSeconds: 1 });
    expect(server.requests).toHaveLength(5);
  });

  it('that refuses an eviction for a disruption budget is not asked again', async () => {
    const details = { causes: [{ reason: 'DisruptionBudget', message: 'needs 1' }], retryAfterSeconds: 10 };
    const { cluster, server } = await start((_, r) =>
      json(r, 429, status(429, 'TooManyRequests', 'Cannot evict', details), { 'retry-after': '10' }),
    );
    const error = await failure(cluster.createSubresource(resources.pods, key, 'eviction', {}));
    expect(error).toMatchObject({ code: 429, retryAfterSeconds: 10 });
    expect(server.requests).toHaveLength(1);
  });

  it('that is unavailable is asked again by reads only', async () => {
    const { cluster, server } = await start((request, r) =>
      server.requests.length > 2 || request.method !== 'GET'
        ? json(r, 503, status(503, 'ServiceUnavailable', 'starting'), { 'retry-after': '0' })
        : json(r, 503, status(503, 'ServiceUnavailable', 'starting'), { 'retry-after': '0' }),
    );
    expect(await failure(cluster.create(resources.pods, pod('x')))).toMatchObject({ name: 'ApiError', code: 503 });
    expect(server.requests).toHaveLength(1);
    expect(await failure(cluster.get(resources.pods, key))).toMatchObject({ code: 503 });
    expect(server.requests).toHaveLength(6);
  });
});

describe('an unknown outcome', () => {
  it.each([
    ['a reset before any answer', (r: ServerResponse) => r.socket?.destroy()],
    [
      'an answer that breaks off',
      (r: ServerResponse) => {
        r.writeHead(201, { 'content-length': '100' }).write('{"metadata":');
        setTimeout(() => r.socket?.destroy(), 5);
      },
    ],
    ['an answer that is not JSON', (r: ServerResponse) => r.writeHead(200).end('<html>')],
    ['an answer that is no object', (r: ServerResponse) => r.writeHead(200).end('null')],
    ['an error inside the server', (r: ServerResponse) => json(r, 500, status(500, 'InternalError', 'etcd timed out'))],
    ['a gateway that gave up', (r: ServerResponse) => r.writeHead(504).end('upstream timed out')],
  ])('%s leaves a write unknown, and it is not repeated', async (_, answer) => {
    const { cluster, server } = await start((_request, response) => void answer(response));
    const error = await failure(cluster.create(resources.pods, pod('x')));
    expect(error).toBeInstanceOf(UnknownOutcomeError);
    expect((error as UnknownOutcomeError).neverSent).toBe(false);
    expect(server.requests).toHaveLength(1);
  });

  it('a server that says nothing is given up after the time-out', async () => {
    const { cluster } = await start(() => undefined, { timeoutSeconds: 0.05 });
    expect(String(await failure(cluster.create(resources.pods, pod('x'))))).toContain('no answer within 0.05 s');
  });

  it('an answer that trickles is given up too', async () => {
    const { cluster } = await start((_, r) => void r.writeHead(200).write('{'), { timeoutSeconds: 0.05 });
    expect(String(await failure(cluster.create(resources.pods, pod('x'))))).toContain('did not end within');
  });

  it('an endless answer is cut', async () => {
    const { cluster } = await start(
      (_, r) => {
        r.writeHead(200);
        const more = () => {
          while (!r.destroyed && r.write(Buffer.alloc(65536, 32)));
        };
        r.on('drain', more);
        more();
      },
      { maxResponseBytes: 1_000_000 },
    );
    expect(String(await failure(cluster.create(resources.pods, pod('x'))))).toContain('longer than 1000000 bytes');
  });

  it('a refused connection certainly did nothing', async () => {
    const { cluster, server } = await start(() => undefined);
    await server.close();
    expect(await failure(cluster.create(resources.pods, pod('x')))).toMatchObject({
      name: 'UnknownOutcomeError',
      neverSent: true,
    });
  });

  it('a read is tried once more on a fresh connection', async () => {
    const { cluster, server } = await start(
      inTurn(
        (r) => r.socket?.destroy(),
        (r) => json(r, 200, pod('x')),
      ),
    );
    expect(await cluster.get(resources.pods, key)).toEqual(pod('x'));
    expect(server.requests).toHaveLength(2);
  });

  it('a caller that stops waiting gets its own reason back', async () => {
    const { cluster } = await start(() => undefined);
    const stop = new AbortController();
    const answer = failure(cluster.get(resources.pods, key, stop.signal));
    setTimeout(() => stop.abort(new Error('enough')), 20);
    expect(String(await answer)).toBe('Error: enough');
  });

  it('no error names a token, a header or a query', async () => {
    const { cluster } = await start((_, r) => r.socket?.destroy());
    const error = (await failure(
      cluster.raw({ method: 'GET', path: '/x?secret=1' }, { as: 'their-token' }),
    )) as UnknownOutcomeError;
    expect(`${error.stack} ${(error.cause as Error).stack}`).not.toMatch(/their-token|own-secret-token|secret=1/);
  });
});

describe('credentials', () => {
  it('are read again after a 401, once', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gpulease-'));
    folders.push(folder);
    writeFileSync(join(folder, 'token'), 'first\n');
    const { server } = await start(() => undefined, {}, { user: { tokenFile: 'token' } });
    writeFileSync(join(folder, 'config'), server.kubeconfig);
    server.handle((request, r) => {
      writeFileSync(join(folder, 'token'), 'second\n');
      if (request.headers.authorization === 'Bearer second') json(r, 200, pod('x'));
      else json(r, 401, status(401, 'Unauthorized', 'Unauthorized'));
    });
    const cluster = connectCluster({ name: 'it', kubeconfig: join(folder, 'config') });
    expect(await cluster.get(resources.pods, key)).toEqual(pod('x'));
    expect(server.requests.map((r) => r.headers.authorization)).toEqual(['Bearer first', 'Bearer second']);
  });

  it('come from a plugin, whose output is never repeated', async () => {
    const token = (text: string) => ({
      user: { exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'printf', args: ['%s', text] } },
    });
    const good = await start((_, r) => json(r, 200, pod('x')), {}, token('{"status":{"token":"from-plugin"}}'));
    await good.cluster.get(resources.pods, key);
    expect(good.server.requests[0]?.headers.authorization).toBe('Bearer from-plugin');
    const bad = await start((_, r) => json(r, 200, pod('x')), {}, token('secret-from-plugin'));
    const error = await failure(bad.cluster.create(resources.pods, pod('x')));
    expect(error).toMatchObject({ name: 'UnknownOutcomeError', neverSent: true });
    expect(JSON.stringify(error) + (error as Error).stack).not.toContain('secret-from-plugin');
  });

  it.each([
    ['no such file', '/nonexistent/config', /ENOENT/],
    ['not YAML', 'a: [\n', /not the JSON or YAML/],
    ['no current context', 'kind: Config\nclusters: []\nusers: []\ncontexts: []\n', /names no current cluster/],
    ['not in a cluster', 'in-cluster', /KUBERNETES_SERVICE_HOST is not set/],
  ])('say what is wrong with a kubeconfig: %s', (_, kubeconfig, message) => {
    expect(() => connectCluster({ name: 'it', kubeconfig })).toThrow(message);
  });

  it('go through the proxy that the kubeconfig names, and a guest\u2019s without them too', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gpulease-'));
    folders.push(folder);
    const subject = ['-subj', '/CN=server', '-addext', 'subjectAltName=IP:127.0.0.1'];
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'key'];
    execFileSync('openssl', ['req', '-x509', '-days', '1', ...key, ...subject, '-out', 'crt'], {
      cwd: folder,
      stdio: 'ignore',
    });
    const certificate = readFileSync(join(folder, 'crt'));
    const tunnels: string[] = [];
    const proxy = createServer().on('connect', (request, socket: Socket) => {
      tunnels.push(request.url ?? '');
      const [host, port] = (request.url ?? '').split(':');
      const onward = connect(Number(port), host, () => {
        socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
        onward.pipe(socket).pipe(onward);
      });
      for (const end of [socket, onward]) end.on('error', () => end.destroy());
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const { port } = proxy.address() as AddressInfo;
    try {
      const { cluster, server } = await start(
        (request, r) => json(r, 200, { authorization: request.headers.authorization }),
        {},
        {
          tls: { key: readFileSync(join(folder, 'key')), cert: certificate },
          cluster: {
            'certificate-authority-data': certificate.toString('base64'),
            'proxy-url': `http://127.0.0.1:${port}`,
          },
        },
      );
      expect(await cluster.get(resources.pods, { namespace: 'a', name: 'x' })).toEqual({
        authorization: 'Bearer own-secret-token',
      });
      const response = await cluster.raw({ method: 'GET', path: '/api' }, { as: 'theirs' });
      const body = await readBody(response, 'GET /api', { maxBytes: 1000, timeoutSeconds: 5 });
      expect(JSON.parse(body.toString())).toEqual({ authorization: 'Bearer theirs' });
      expect(tunnels).toEqual([`127.0.0.1:${server.port}`, `127.0.0.1:${server.port}`]);
    } finally {
      proxy.closeAllConnections();
      proxy.close();
    }
  });

  it('of ours never go with somebody else’s token, not even the certificate', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gpulease-'));
    folders.push(folder);
    const make = (name: string) =>
      execFileSync(
        'openssl',
        [
          'req',
          '-x509',
          '-newkey',
          'ec',
          '-pkeyopt',
          'ec_paramgen_curve:P-256',
          '-nodes',
          '-days',
          '1',
          '-subj',
          `/CN=${name}`,
          '-addext',
          'subjectAltName=IP:127.0.0.1',
          '-keyout',
          `${name}.key`,
          '-out',
          `${name}.crt`,
        ],
        { cwd: folder, stdio: 'ignore' },
      );
    make('server');
    make('client');
    const read = (name: string) => readFileSync(join(folder, name));
    const seen: [string | undefined, string | undefined][] = [];
    const { cluster } = await start(
      (request, response) => {
        const peer = (request.socket as TLSSocket).getPeerCertificate();
        seen.push([peer?.subject?.CN as string | undefined, request.headers.authorization]);
        json(response, 200, { headers: request.headers });
      },
      {},
      {
        tls: { key: read('server.key'), cert: read('server.crt'), requestCert: true, rejectUnauthorized: false },
        cluster: { 'certificate-authority-data': read('server.crt').toString('base64') },
        user: {
          'client-certificate-data': read('client.crt').toString('base64'),
          'client-key-data': read('client.key').toString('base64'),
          as: 'somebody',
        },
      },
    );
    const headers = {
      authorization: 'Bearer smuggled',
      'Impersonate-User': 'admin',
      'X-Remote-User': 'admin',
      host: 'elsewhere',
      accept: 'text/plain',
    };
    for (let round = 0; round < 3; round++) {
      await cluster.get(resources.pods, key);
      const response = await cluster.raw({ method: 'GET', path: '/api', headers }, { as: 'their-token' });
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk);
      const got = JSON.parse(Buffer.concat(chunks).toString()).headers;
      expect(got).toMatchObject({ authorization: 'Bearer their-token', accept: 'text/plain' });
      expect(Object.keys(got).filter((name) => /impersonate|x-remote/.test(name))).toEqual([]);
      expect(got.host).toContain('127.0.0.1');
    }
    expect(seen).toEqual(
      Array.from({ length: 3 }, () => [
        ['client', undefined],
        [undefined, 'Bearer their-token'],
      ]).flat(),
    );
    await expect(cluster.raw({ method: 'GET', path: '/api' }, { as: '' })).rejects.toThrow('not a bearer token');
  });
});

describe('connections', () => {
  const answer: RequestListener = (_, response) => void setTimeout(() => json(response, 200, pod('x')), 20);
  const wave = (call: () => Promise<unknown>) => Promise.all(Array.from({ length: 40 }, call));

  it('of one burst carry the next', async () => {
    const { cluster, server } = await start(answer);
    await wave(() => cluster.get(resources.pods, key));
    await wave(() => cluster.get(resources.pods, key));
    expect(server.requests).toHaveLength(80);
    expect(server.connections).toBe(40);
  });

  it('that served before are known to be open by a request that has waited for one', async () => {
    const { cluster } = await start((request, response) => {
      if (request.url?.includes('pods')) json(response, 201, pod('x'));
      else response.socket?.destroy();
    });
    const warnings: Error[] = [];
    const warned = (warning: Error) => void warnings.push(warning);
    process.on('warning', warned);
    // A dozen for each connection that there may be: a listener for each would be too many for Node.
    const calls = Array.from({ length: 64 * 12 }, () => cluster.create(resources.pods, pod('x')));
    const broken = Array.from({ length: 64 }, () => failure(cluster.create(resources.services, pod('x'))));
    await Promise.all(calls);
    expect(new Set((await Promise.all(broken)).map((error) => (error as UnknownOutcomeError).neverSent))).toEqual(
      new Set([false]),
    );
    process.off('warning', warned);
    expect(warnings).toEqual([]);
  });

  it('are shared by short raw requests too, and by nobody else’s', async () => {
    const { cluster, server } = await start(answer);
    const short = async () => {
      const response = await cluster.raw({ method: 'GET', path: '/api', over: 'calls' }, { as: 'theirs' });
      await readBody(response, 'it', { maxBytes: 1000, timeoutSeconds: 1 });
    };
    await wave(short);
    await wave(short);
    expect(server.connections).toBe(40);
    await cluster.get(resources.pods, key);
    expect(server.connections).toBe(41);
  });

  it('with certificates that are none say so', async () => {
    const bad = Buffer.from('-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----').toString('base64');
    const { cluster } = await start(
      answer,
      {},
      {
        cluster: { server: 'https://127.0.0.1:1', 'insecure-skip-tls-verify': true },
        user: { 'client-certificate-data': bad, 'client-key-data': bad },
      },
    );
    expect(await failure(cluster.get(resources.pods, key))).toMatchObject({
      name: 'UnknownOutcomeError',
      message: expect.stringContaining('cannot be used'),
    });
  });
});

describe('an upgrade', () => {
  const request = {
    method: 'POST',
    path: '/api/v1/namespaces/a/pods/x/exec?command=sh',
    headers: { Connection: 'Upgrade', Upgrade: 'SPDY/3.1', 'X-Stream-Protocol-Version': ['v4.channel.k8s.io', 'v3'] },
  };

  it('hands over the socket, and what came with the 101', async () => {
    const { cluster, server } = await start(() => undefined);
    server.handleUpgrade((_, socket) => {
      socket.write(
        'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nearly',
      );
      socket.on('data', (data) => socket.write(`<${data}>`));
      socket.on('end', () => socket.end('bye'));
    });
    const { response, socket, head } = (await cluster.upgrade(request, { as: 'theirs' })) as {
      response: import('node:http').IncomingMessage;
      socket: import('node:stream').Duplex;
      head: Buffer;
    };
    expect(response.statusCode).toBe(101);
    expect(response.headers['x-stream-protocol-version']).toBe('v4.channel.k8s.io');
    expect(server.requests[0]?.headers).toMatchObject({ upgrade: 'SPDY/3.1', authorization: 'Bearer theirs' });
    expect(server.requests[0]?.rawHeaders.filter((h) => /^v[34]/.test(h))).toEqual(['v4.channel.k8s.io', 'v3']);
    const got: Buffer[] = [head];
    socket.on('data', (data: Buffer) => got.push(data));
    socket.write('hello');
    await new Promise((resolve) => setTimeout(resolve, 30));
    socket.end(); // half-closed: the other side still speaks
    await new Promise((resolve) => socket.once('end', resolve));
    expect(Buffer.concat(got).toString()).toBe('early<hello>bye');
  });

  it('that is refused answers with the refusal', async () => {
    const { cluster } = await start((_, r) => json(r, 403, status(403, 'Forbidden', 'no exec for you')));
    const { response, socket } = await cluster.upgrade(request);
    expect([response.statusCode, socket]).toEqual([403, undefined]);
    response.resume();
  });
});

describe('a raw request', () => {
  it('streams the answer, and ends it with the signal', async () => {
    const { cluster } = await start((_, r) => void r.writeHead(200).write('first line\n'));
    const stop = new AbortController();
    const response = await cluster.raw({ method: 'GET', path: '/log', timeoutSeconds: 0 }, undefined, stop.signal);
    const got: string[] = [];
    const reading = (async () => {
      for await (const chunk of response) {
        got.push(String(chunk));
        stop.abort(new Error('enough'));
      }
    })();
    await expect(reading).rejects.toThrow();
    expect(got).toEqual(['first line\n']);
  });

  it('answers with any status', async () => {
    const { cluster } = await start((_, r) => r.writeHead(418).end('teapot'));
    const response = await cluster.raw({ method: 'GET', path: '/x' });
    expect(response.statusCode).toBe(418);
    response.resume();
  });
});
