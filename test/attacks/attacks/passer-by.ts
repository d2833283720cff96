/** Somebody on the internet, without a lease: bytes that are no HTTP, or almost; waiting; flooding; guessing; other people's papers. */
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { type Attack, must, refused } from '../attack.ts';
import { access, ask, askOverH2, heard, raw, type Target, wire } from '../target.ts';

const http = (line: string, headers: readonly string[] = [], body = ''): string =>
  [line, 'host: gateway', ...headers, '', body].join('\r\n');
const json = 'content-type: application/json';

/** A second request, hidden where a careless server would find it. */
const smuggled = 'GET /v1/provider HTTP/1.1\r\nhost: gateway\r\n\r\n';

const malformed: readonly (readonly [name: string, bytes: string, statuses: readonly number[]])[] = [
  [
    'two different lengths of one body',
    http('POST /v1/quotes HTTP/1.1', [json, 'content-length: 2', 'content-length: 40'], `{}${smuggled}`),
    [400],
  ],
  [
    'a length and chunks: a request smuggled behind them',
    http('POST /v1/quotes HTTP/1.1', [json, 'content-length: 5', 'transfer-encoding: chunked'], `0\r\n\r\n${smuggled}`),
    [400],
  ],
  [
    'chunks, written so that a proxy does not see it',
    http('POST /v1/quotes HTTP/1.1', [json, 'transfer-encoding: \x0bchunked'], `0\r\n\r\n${smuggled}`),
    [400],
  ],
  [
    'a transfer encoding after chunked',
    http('POST /v1/quotes HTTP/1.1', [json, 'transfer-encoding: chunked, identity'], `0\r\n\r\n${smuggled}`),
    [400],
  ],
  [
    'a length of a chunk that overflows',
    http('POST /v1/quotes HTTP/1.1', [json, 'transfer-encoding: chunked'], `fffffffffffffffff\r\n{}\r\n0\r\n\r\n`),
    [400, 413],
  ],
  ['a negative length', http('POST /v1/quotes HTTP/1.1', [json, 'content-length: -1'], '{}'), [400]],
  ['a space before the colon of a header', http('GET /v1/offers HTTP/1.1', ['x-a : b']), [400]],
  ['a header that is folded into the next line', http('GET /v1/offers HTTP/1.1', ['x-a: b', ' c: d']), [400]],
  ['a zero byte in a header', http('GET /v1/offers HTTP/1.1', ['x-a: b\0c']), [400]],
  ['lines that end with a bare return', 'GET /v1/offers HTTP/1.1\rhost: gateway\r\r', [400, 408]],
  ['no Host', 'GET /v1/offers HTTP/1.1\r\n\r\n', [400]],
  ['HTTP/2 without being asked for it (h2c, prior knowledge)', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', [400]],
  [
    'an upgrade to h2c, past everything that reads HTTP/1.1',
    http('GET /v1/offers HTTP/1.1', [
      'connection: upgrade, http2-settings',
      'upgrade: h2c',
      'http2-settings: AAMAAABkAAQCAAAAAAIAAAAA',
    ]),
    [404],
  ],
  ['CONNECT, to be a proxy to the cloud’s metadata', 'CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: x\r\n\r\n', [405]],
  ['a whole URL of somebody else as path', http('GET http://169.254.169.254/latest/meta-data HTTP/1.1'), [404, 400]],
  ['an expectation that nobody can meet', http('POST /v1/quotes HTTP/1.1', ['expect: 200-ok']), [417]],
  ['headers without end', http('GET /v1/offers HTTP/1.1', Array<string>(20_000).fill(`x-a: ${'b'.repeat(80)}`)), [431]],
  ['SSH instead of HTTP', 'SSH-2.0-OpenSSH_9.2\r\n', [400]],
];

const bodies: readonly (readonly [name: string, body: string, statuses: readonly number[]])[] = [
  ['a body of two megabytes', JSON.stringify({ offerName: 'x'.repeat(2_000_000) }), [413]],
  ['ten thousand brackets', '['.repeat(10_000), [400]],
  [
    'a quote with a hundred thousand letters, from who has proved nothing',
    `{"offerName":"${'x'.repeat(100_000)}"}`,
    [413],
  ],
  ['a prototype for everybody', '{"__proto__":{"gpus":1},"constructor":{"prototype":{"x":1}}}', [400]],
  ['a number that no machine holds', '{"offerName":"rtx4090","gpus":1e400}', [400]],
  ['strings where numbers belong', '{"offerName":"rtx4090","gpus":"1; DROP TABLE leases","maxSeconds":"60"}', [400]],
];

/** RFC 9113 §4.1 */
function frame(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(9);
  header.writeUIntBE(payload.length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(stream, 5);
  return Buffer.concat([header, payload]);
}

/** Connections that a process has accepted on this port: those that wait for it have no inode yet. Linux, /proc/net/tcp. */
function heldConnections(port: number): number {
  const at = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const established = '01';
  return readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[1]?.endsWith(at) && fields[3] === established && fields[9] !== '0').length;
}

const lease = (target: Target) => `/v1/leases/${target.victimLeaseId}`;

const seal = (content: object, key: Uint8Array) => {
  const text = Buffer.from(JSON.stringify(content)).toString('base64url');
  return `${text}.${createHmac('sha256', key).update(`gpulease-token.${text}`).digest('base64url')}`;
};

const papers: readonly Attack[] = (
  [
    ['a quote that nobody signed', (q) => ({ ...q, signature: `0x${'11'.repeat(65)}` }), 401],
    ['a quote with another price', (q) => ({ ...q, quote: { ...q.quote, pricePerGpuHour: '1' } }), 401],
    ['a quote with more GPUs', (q) => ({ ...q, quote: { ...q.quote, gpus: 16 } }), 401],
    [
      'a quote made out to somebody else',
      (q) => ({ ...q, quote: { ...q.quote, consumer: `0x${'12'.repeat(20)}` } }),
      401,
    ],
    ['a quote, said to be of another chain', (q) => ({ ...q, chainId: 1 }), 422],
    ['a quote, said to be of another contract', (q) => ({ ...q, escrow: `0x${'ab'.repeat(20)}` }), 422],
    ['a quote with a better node than was signed for', (q) => ({ ...q, node: { ...q.node, gpus: 8 } }), 422],
    ['a quote of another provider', (q) => ({ ...q, quote: { ...q.quote, provider: `0x${'12'.repeat(20)}` } }), 401],
  ] as [string, (quote: Target['mallory']['quote']) => object, number][]
).map(([name, change, status]) => ({
  who: 'passer-by',
  name,
  expected: String(status),
  run: async (target) =>
    refused(await ask(target, { method: 'POST', path: '/v1/leases', body: change(target.mallory.quote) }), status),
}));

export const passerBy: readonly Attack[] = [
  ...malformed.map(
    ([name, bytes, statuses]): Attack => ({
      who: 'passer-by',
      name,
      expected: statuses.join(' or '),
      async run(target) {
        const answer = await raw(target, bytes, 12);
        const seen = refused(answer, statuses);
        must(
          Number(answer.headers.answers) === 1,
          `${seen}, and ${answer.headers.answers} answers in all: it was split`,
        );
        return seen;
      },
    }),
  ),
  ...bodies.map(
    ([name, body, statuses]): Attack => ({
      who: 'passer-by',
      name,
      expected: statuses.join(' or '),
      run: async (target) => refused(await ask(target, { method: 'POST', path: '/v1/quotes', body }), statuses),
    }),
  ),
  {
    who: 'passer-by',
    name: 'a body that is said to have ten gigabytes',
    expected: '413, before any of it is read',
    async run(target) {
      const bytes = http('POST /v1/quotes HTTP/1.1', [json, 'content-length: 10737418240'], '{');
      return refused(await raw(target, bytes, 5), 413);
    },
  },
  ...(
    [
      ['a megabyte without a token, for a lease', 'POST', '/vouchers'],
      ['a megabyte without a token, for its Services', 'PUT', '/services'],
      ['a megabyte without a token, for a pod', 'POST', '/kube/pods'],
    ] as const
  ).map(
    ([name, method, rest]): Attack => ({
      who: 'passer-by',
      name,
      expected: '401, before any of it is read',
      async run(target) {
        const head = http(`${method} ${lease(target)}${rest} HTTP/1.1`, [json, 'content-length: 1000000'], '{');
        // Had it waited for the rest, there would be no answer for half a minute.
        return refused(await raw(target, head, 3), 401);
      },
    }),
  ),
  {
    who: 'passer-by',
    name: 'six hundred bodies that grow to a megabyte and never end',
    expected: '413, and the gateway keeps none of them',
    needs: 'clusters',
    slow: true,
    async run(target) {
      const before = target.real!.gatewayMemory();
      const sockets: TLSSocket[] = [];
      let refusals = 0;
      for (let i = 0; i < 600; i++) {
        const socket = await wire(target);
        socket.once('data', (chunk: Buffer) => {
          if (chunk.toString('latin1').startsWith('HTTP/1.1 413')) refusals += 1;
        });
        // In chunks, so that its length is not known before.
        socket.write(http('POST /v1/leases HTTP/1.1', [json, 'transfer-encoding: chunked']));
        const chunk = Buffer.alloc(250_000, 0x20);
        for (let part = 0; part < 4; part++) {
          socket.write(`${chunk.length.toString(16)}\r\n`);
          socket.write(chunk);
          socket.write('\r\n');
        }
        sockets.push(socket);
      }
      for (let i = 0; i < 100 && refusals < 350; i++) await sleep(100);
      const grown = (target.real!.gatewayMemory() - before) / 1e6;
      const honest = await target.honest();
      for (const socket of sockets) socket.destroy();
      // The address is ours as well: until it may ask again.
      await sleep(4000);
      must(honest === undefined, `an honest caller meanwhile: ${honest}`);
      must(grown < 250, `${grown.toFixed(0)} MB more`);
      return `${refusals} told 413, ${grown.toFixed(0)} MB more`;
    },
  },
  {
    who: 'passer-by',
    name: 'a header that comes one letter a second',
    expected: '408 within 15 s',
    slow: true,
    async run(target) {
      const socket = await wire(target);
      socket.write('GET /v1/offers HTTP/1.1\r\nhost: gateway\r\nx-slow: ');
      const drip = setInterval(() => socket.write('a'), 1000);
      const { text, closed, ms } = await heard(socket, 20);
      clearInterval(drip);
      must(closed && ms < 15_000, `still open after ${ms} ms`);
      must(text.startsWith('HTTP/1.1 408'), `closed after ${ms} ms with ${text.slice(0, 40)}`);
      return `408 after ${(ms / 1000).toFixed(1)} s`;
    },
  },
  {
    who: 'passer-by',
    name: 'a body that comes one letter a second',
    expected: '408 within 35 s',
    slow: true,
    async run(target) {
      const socket = await wire(target);
      socket.write(http('POST /v1/quotes HTTP/1.1', [json, 'content-length: 1000'], '{'));
      const drip = setInterval(() => socket.write(' '), 1000);
      const { text, closed, ms } = await heard(socket, 45);
      clearInterval(drip);
      must(closed && ms < 36_000, `still open after ${ms} ms`);
      return `${/HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 'closed'} after ${(ms / 1000).toFixed(1)} s`;
    },
  },
  {
    who: 'passer-by',
    name: '10,000 connections that say nothing',
    expected: 'few stay open, others are answered meanwhile',
    slow: true,
    async run(target) {
      const sockets: Socket[] = [];
      for (let i = 0; i < 10_000; i++) {
        const socket = connect({ host: target.host, port: target.port });
        socket.on('error', () => undefined);
        socket.resume();
        sockets.push(socket);
        if (i % 250 === 249) await sleep(25);
      }
      const askedAt = performance.now();
      const honest = await target.honest();
      const ms = Math.round(performance.now() - askedAt);
      let most = 0;
      for (let i = 0; i < 20; i++) {
        most = Math.max(most, heldConnections(target.port));
        await sleep(100);
      }
      for (const socket of sockets) socket.destroy();
      // Those that it has not accepted yet it will find closed, one after the other.
      for (let good = 0, i = 0; good < 5 && i < 300; i++) {
        good = (await target.honest().catch(() => 'no answer')) === undefined ? good + 1 : 0;
        await sleep(100);
      }
      must(honest === undefined, `an honest caller meanwhile: ${honest}`);
      must(most > 0 && most <= 1100, `the gateway holds ${most} of them`);
      return `it holds ${most} of them, an honest call took ${ms} ms`;
    },
  },
  {
    who: 'passer-by',
    name: '100,000 streams of HTTP/2, reset at once (CVE-2023-44487)',
    expected: 'the connection ends, others are answered',
    async run(target) {
      const socket = await wire(target, { ALPNProtocols: ['h2'] });
      socket.resume();
      // GET https://x/ from the static table (RFC 7541, appendix A), and a reset of it.
      const headers = Buffer.from([0x82, 0x87, 0x84, 0x41, 0x01, 0x78]);
      const cancel = Buffer.from([0, 0, 0, 8]);
      socket.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), frame(4, 0, 0, Buffer.alloc(0))]));
      let sent = 0;
      for (let id = 1; sent < 100_000 && !socket.destroyed && socket.writable; ) {
        const batch: Buffer[] = [];
        for (let i = 0; i < 500; i++, sent++, id += 2) batch.push(frame(1, 0x05, id, headers), frame(3, 0, id, cancel));
        if (!socket.write(Buffer.concat(batch)))
          await Promise.race([once(socket, 'drain'), once(socket, 'close'), sleep(5000)]);
        await sleep(1);
      }
      for (let i = 0; i < 100 && !socket.destroyed; i++) await sleep(100);
      const ended = socket.destroyed;
      socket.destroy();
      must(ended, `${sent} were taken`);
      return `the connection was ended after ${sent}`;
    },
  },
  {
    who: 'passer-by',
    name: 'something else than a watch over HTTP/2',
    expected: '400',
    run: async (target) =>
      refused(
        await askOverH2(target, { ':method': 'POST', ':path': '/v1/quotes', 'content-type': 'application/json' }, '{}'),
        400,
        /watches and nothing else/,
      ),
  },
  {
    who: 'passer-by',
    name: 'TLS 1.1',
    expected: 'no handshake',
    run: (target) =>
      wire(target, { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }).then(
        () => must(false, 'a connection') as never,
        (error: Error) => {
          const seen = (error as { code?: string }).code ?? error.message;
          // Its own no: a client that cannot speak it proves nothing.
          must(/ALERT_PROTOCOL_VERSION/.test(seen), seen);
          return `none: ${seen}`;
        },
      ),
  },
  {
    who: 'passer-by',
    name: 'quotes without end, under a new X-Forwarded-For each',
    expected: '429 with Retry-After',
    slow: true,
    async run(target) {
      let text = '';
      const startedAt = performance.now();
      // Fifty at a time, on as many connections as it takes: whoever sends a thousand at once may be cut off for that.
      while (performance.now() - startedAt < 60_000 && !/ 429 /.test(text)) {
        const requests = Array.from({ length: 50 }, (_, i) =>
          http(
            'POST /v1/quotes HTTP/1.1',
            [json, 'content-length: 2', `x-forwarded-for: 10.0.${text.length % 256}.${i}`],
            '{}',
          ),
        );
        const more = await Promise.all(
          Array.from({ length: 8 }, async () => {
            const socket = await wire(target);
            let came = '';
            socket.on('data', (chunk: Buffer) => {
              came += chunk.toString('latin1');
            });
            socket.write(requests.join(''));
            const answers = () => came.match(/HTTP\/1\.1 \d{3} /g)?.length ?? 0;
            for (let turn = 0; turn < 400 && answers() < requests.length && !socket.destroyed; turn++) await sleep(25);
            socket.destroy();
            return came;
          }),
        );
        text += more.join('');
      }
      const refusals = text.match(/HTTP\/1\.1 429 /g)?.length ?? 0;
      const answered = text.match(/HTTP\/1\.1 400 /g)?.length ?? 0;
      const seconds = (performance.now() - startedAt) / 1000;
      must(refusals > 0, `no 429, ${answered} were answered in ${seconds.toFixed(0)} s`);
      must(/\r\nretry-after: \d+\r\n/i.test(text), 'no Retry-After');
      // The address is ours as well: until it may ask again.
      await sleep(4000);
      return `429 after ${answered} requests`;
    },
  },
  ...(
    [
      ['a token of letters', () => 'abcdef.abcdef'],
      ['a token sealed with no key', (t) => seal({ l: t.victimLeaseId, e: t.nowSeconds() + 600 }, new Uint8Array(32))],
      [
        'a JWT that says that it is not signed',
        (t) => {
          const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
          return `${part({ alg: 'none' })}.${part({ l: t.victimLeaseId, e: 1e12 })}`;
        },
      ],
      ['a token of ten thousand letters', () => `${'A'.repeat(10_000)}.${'A'.repeat(40)}`],
    ] as [string, (target: Target) => string][]
  ).map(
    ([name, token]): Attack => ({
      who: 'passer-by',
      name,
      expected: '401',
      run: async (target) => refused(await ask(target, { path: lease(target), token: token(target) }), 401),
    }),
  ),
  {
    who: 'passer-by',
    name: 'exec without a token',
    expected: '401, no upgrade',
    run: async (target) =>
      refused(
        await ask(target, {
          method: 'POST',
          path: `${lease(target)}/kube/pods/p/exec?command=sh`,
          headers: { connection: 'Upgrade', upgrade: 'SPDY/3.1' },
        }),
        401,
      ),
  },
  {
    who: 'passer-by',
    name: 'names of a lease that climb: ..%2f..%2fapi%2fv1%2fsecrets',
    expected: '404',
    run: async (target) => refused(await ask(target, { path: '/v1/leases/..%2f..%2fapi%2fv1%2fsecrets' }), 404),
  },
  ...['/metrics', '/api/v1/secrets', '/debug/pprof', '/.git/config', '/v1/leases', '//evil.example/v1'].map(
    (path): Attack => ({
      who: 'passer-by',
      name: `what may lie about: ${path}`,
      expected: '404 or 405',
      run: async (target) => refused(await ask(target, { path }), [404, 405]),
    }),
  ),
  {
    who: 'passer-by',
    name: 'words that steer a terminal, or begin another line, for the gateway’s log',
    expected: 'each line is one of its own, and plain',
    needs: 'clusters',
    async run(target) {
      const mark = `mark-${Date.now()}`;
      const steering = `${mark}\u001b]0;root\u0007\u001b[2J\r\n{"level":"error","msg":"${mark}"}`;
      const answers = [
        await ask(target, { path: `/v1/${encodeURIComponent(steering)}`, headers: { 'user-agent': mark } }),
        await ask(target, { method: 'POST', path: '/v1/quotes', body: { offerName: steering, consumer: steering } }),
        await ask(target, {
          ...{ method: 'POST', path: `/v1/leases/${target.mallory.leaseId}/token` },
          body: { ...(await access(target)), audienceUrl: `https://x/${steering}` },
        }),
        await ask(target, {
          ...{ method: 'POST', path: `/v1/leases/${target.mallory.leaseId}/kube/pods` },
          ...{ token: await target.token(), body: { metadata: { name: steering }, spec: { containers: [] } } },
        }),
        await ask(target, {
          ...{
            method: 'DELETE',
            path: `/v1/leases/${target.mallory.leaseId}/kube/pods/${encodeURIComponent(steering)}`,
          },
          token: await target.token(),
        }),
      ];
      must(
        answers.every(({ status }) => status >= 400 && status < 500),
        answers.map(({ status }) => status).join(', '),
      );
      const lines = target
        .real!.gatewayLog()
        .split('\n')
        .filter((line) => line !== '');
      must(lines.length > 0, 'there is no log');
      const odd = lines.find((line) => {
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
        if (/[\u0000-\u001f\u007f-\u009f]/.test(line)) return true;
        return line.startsWith('{"level":"error","msg":"mark-');
      });
      must(odd === undefined, odd?.slice(0, 200) ?? '');
      return `${answers.map(({ status }) => status).join(', ')}; ${lines.length} lines, all plain`;
    },
  },
  ...papers,
];
