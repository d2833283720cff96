/** A consumer that pays for a lease, and wants more than that: other leases, other namespaces, more money, more of the node. */
import http2 from 'node:http2';
import type { Duplex } from 'node:stream';
import { signRelease } from '../../../operator/adapters/chain/messages.ts';
import { forwardProtocol } from '../../../operator/api/gateway.ts';
import { type Attack, GotThrough, must, refused } from '../attack.ts';
import { type Asked, access, ask, askOverH2, freshNonce, type Target, voucher, wire } from '../target.ts';

const own = (target: Target, rest = '') => `/v1/leases/${target.mallory.leaseId}${rest}`;
const victims = (target: Target, rest = '') => `/v1/leases/${target.victimLeaseId}${rest}`;

const attack = (name: string, expected: string, run: Attack['run'], more: Partial<Attack> = {}): Attack => ({
  who: 'consumer',
  name,
  expected,
  run,
  ...more,
});

const tokenFor = (name: string, make: (target: Target) => Promise<object>, words?: RegExp): Attack =>
  attack(`a token for ${name}`, '401', async (target) =>
    refused(await ask(target, { method: 'POST', path: own(target, '/token'), body: await make(target) }), 401, words),
  );

/** The same signature, as ECDSA has it twice: s and n − s. */
function mirrored(signature: string): string {
  const n = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
  const bytes = signature.slice(2);
  const s = (n - BigInt(`0x${bytes.slice(64, 128)}`)).toString(16).padStart(64, '0');
  return `0x${bytes.slice(0, 64)}${s}${bytes.slice(128) === '1b' ? '1c' : '1b'}`;
}

const otherChain = (target: Target) => ({ ...target.domain, chainId: 1 });
const otherContract = (target: Target) => ({ ...target.domain, escrow: `0x${'ab'.repeat(20)}` as const });

const signatures: readonly Attack[] = [
  tokenFor('an Access that a stranger signed', (t) => access(t, {}, { signer: t.stranger }), /session key/),
  tokenFor('an Access that has run out', (t) => access(t, { expiresAt: t.nowSeconds() - 1 }), /run out/),
  tokenFor(
    'an Access that holds for a year',
    (t) => access(t, { expiresAt: t.nowSeconds() + 31_536_000 }),
    /300 seconds/,
  ),
  tokenFor('an Access for another gateway', (t) => access(t, { audienceUrl: 'https://evil.example' })),
  tokenFor('an Access for another provider', (t) => access(t, { provider: t.stranger.address })),
  tokenFor('an Access that was signed for another chain', (t) => access(t, {}, { domain: otherChain(t) })),
  tokenFor('an Access that was signed for another contract', (t) => access(t, {}, { domain: otherContract(t) })),
  tokenFor('an Access that was signed for another lease', (t) => access(t, { leaseId: t.victimLeaseId })),
  tokenFor('an Access whose time was changed', async (t) => ({
    ...(await access(t)),
    expiresAt: t.nowSeconds() + 299,
  })),
  attack('an Access a second time', '401', async (target) => {
    const body = await access(target);
    const first = await ask(target, { method: 'POST', path: own(target, '/token'), body });
    must(first.status === 200, `the first: ${first.status} ${first.body}`);
    return refused(await ask(target, { method: 'POST', path: own(target, '/token'), body }), 401, /used before/);
  }),
  attack('an Access a second time, its nonce in capitals', '401', async (target) => {
    const body = await access(target, { nonce: `0x${'ab'.repeat(16)}${freshNonce().slice(34)}` });
    await ask(target, { method: 'POST', path: own(target, '/token'), body });
    const again = { ...body, nonce: `0x${body.nonce.slice(2).toUpperCase()}` };
    return refused(await ask(target, { method: 'POST', path: own(target, '/token'), body: again }), 401);
  }),
  attack('an Access a second time, with the other half of its signature', '401', async (target) => {
    const body = await access(target);
    await ask(target, { method: 'POST', path: own(target, '/token'), body });
    const again = { ...body, signature: mirrored(body.signature) };
    return refused(await ask(target, { method: 'POST', path: own(target, '/token'), body: again }), 401);
  }),
  attack('a token for somebody else’s lease, signed by one’s own key', '401', async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'POST', path: victims(target, '/token') },
        body: await access(target, { leaseId: target.victimLeaseId }),
      }),
      401,
    ),
  ),
];

const crossing: readonly Attack[] = (
  [
    ['the allocation', { path: '' }],
    ['pods', { path: '/kube/pods' }],
    ['Secrets', { path: '/kube/secrets' }],
    ['a pod made', { method: 'POST', path: '/kube/pods', body: {} }],
    ['a pod deleted', { method: 'DELETE', path: '/kube/pods/train' }],
    [
      'exec',
      { method: 'POST', path: '/kube/pods/p/exec?command=sh', headers: { connection: 'Upgrade', upgrade: 'SPDY/3.1' } },
    ],
    [
      'the tunnel to its pods',
      { method: 'POST', path: '/forward', headers: { connection: 'Upgrade', upgrade: forwardProtocol } },
    ],
    ['its Services', { method: 'PUT', path: '/services', body: { services: [] } }],
    ['its end', { method: 'POST', path: '/release', body: {} }],
  ] as [string, Asked][]
).map(([name, asked]) =>
  attack(`somebody else’s lease with one’s own token: ${name}`, '401', async (target) =>
    refused(await ask(target, { ...asked, path: victims(target, asked.path), token: await target.token() }), 401),
  ),
);

const vouching: readonly Attack[] = (
  [
    ['of a stranger', (t) => voucher(t, { servedSeconds: 1 }, { signer: t.stranger }), 422],
    ['for another chain', (t) => voucher(t, { servedSeconds: 1 }, { domain: otherChain(t) }), 422],
    ['for another contract', (t) => voucher(t, { servedSeconds: 1 }, { domain: otherContract(t) }), 422],
    ['of another lease', (t) => voucher(t, { servedSeconds: 1, leaseId: t.victimLeaseId }), 422],
    ['for more seconds than passed', (t) => voucher(t, { servedSeconds: 3000 }), 422],
    [
      'whose seconds were changed',
      async (t) => ({ ...(await voucher(t, { servedSeconds: 1 })), servedSeconds: 2 }),
      422,
    ],
    ['that was made the last one', async (t) => ({ ...(await voucher(t, { servedSeconds: 1 })), last: true }), 422],
    [
      'whose signature is an Access',
      async (t) => ({ servedSeconds: 1, last: false, signature: (await access(t)).signature }),
      422,
    ],
    [
      'of fewer than no seconds',
      async (t) => ({ ...(await voucher(t, { servedSeconds: 1 })), servedSeconds: -1 }),
      400,
    ],
    ['of half a second', async (t) => ({ ...(await voucher(t, { servedSeconds: 1 })), servedSeconds: 0.5 }), 400],
    ['of 2^53 seconds', async (t) => ({ ...(await voucher(t, { servedSeconds: 1 })), servedSeconds: 2 ** 53 }), 400],
    [
      'with a signature of a kilobyte',
      async () => ({ servedSeconds: 1, last: false, signature: `0x${'1b'.repeat(1024)}` }),
      422,
    ],
  ] as [string, (target: Target) => Promise<object>, number][]
).map(([name, make, status]) =>
  attack(`a voucher ${name}`, String(status), async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'POST', path: own(target, '/vouchers') },
        ...{ body: await make(target), token: await target.token() },
      }),
      status,
    ),
  ),
);

const money: readonly Attack[] = [
  attack('an earlier voucher after a later one, to owe less', 'the later one stays', async (target) => {
    const token = await target.token();
    const put = async (servedSeconds: number) =>
      ask(target, {
        method: 'POST',
        path: own(target, '/vouchers'),
        body: await voucher(target, { servedSeconds }),
        token,
      });
    const later = await put(2);
    must(later.status === 200, `the later one: ${later.status} ${later.body}`);
    const earlier = await put(1);
    const stored = JSON.parse(earlier.body) as { servedSeconds?: number };
    must(earlier.status !== 200 || (stored.servedSeconds ?? 0) >= 2, `${earlier.status} ${earlier.body}`);
    return `${earlier.status}, ${stored.servedSeconds ?? 2} s are stored`;
  }),
  attack('a Release signed by the consumer in place of a voucher', '422', async (target) => {
    const { signature } = await signRelease(target.mallory.session, target.domain, {
      ...{ leaseId: target.mallory.leaseId, servedSeconds: 1 },
    });
    const body = { servedSeconds: 1, last: false, signature };
    return refused(
      await ask(target, { method: 'POST', path: own(target, '/vouchers'), body, token: await target.token() }),
      422,
    );
  }),
];

/** Paths below kube/. A careless proxy would resolve, decode or join them. */
const climbing = [
  '../../../../../api/v1/namespaces/kube-system/secrets',
  'pods/../../../../kube-system/pods',
  'pods/%2e%2e%2f%2e%2e%2fkube-system%2fsecrets',
  'pods/%252e%252e%252f%252e%252e%252fkube-system%252fsecrets',
  'pods/..%5c..%5ckube-system%5csecrets',
  'pods/..;/..;/kube-system/secrets',
  'pods/%c0%ae%c0%ae%c0%af%c0%ae%c0%ae%c0%afkube-system',
  'pods/x%00/log',
  'pods/x%0d%0ahost:%20evil',
  '/pods',
  'pods//log',
  './pods',
  'pods/.',
  'pods%3fnamespace=kube-system',
  'pods%23',
  'PODS',
  'namespaces/kube-system/pods',
  'nodes',
  'services',
  'serviceaccounts/tenant/token',
  'pods/p/proxy/',
  'pods/p/status',
  'pods/p/eviction',
  'pods/p/binding',
  'pods/p/ephemeralcontainers',
  'node/proxy/run/kube-system/x/y',
  'node/metrics/../../../secrets',
];

const upgrade = { connection: 'Upgrade', upgrade: 'SPDY/3.1' };

/** What is upgraded goes another way through the gateway, which reads the path by itself. */
const climbingStreams = [
  'pods/../../../kube-system/pods/p/exec?command=sh',
  'pods/..%2f..%2fkube-system%2fpods%2fp/exec?command=sh',
  'pods/p%2fexec?command=sh',
  'pods//p/exec?command=sh',
  'pods/p/exec/?command=sh',
  'pods/p/proxy?command=sh',
  'nodes/n/proxy',
  'pods/p/log?follow=true',
  'pods?watch=true',
];

const queries = [
  'pods?namespace=kube-system',
  'pods?watch=true&allNamespaces=true',
  'secrets?watch=true&fieldSelector=metadata.namespace%3Dkube-system&pretty=1',
  'pods?dryRun=All',
  'pods?fieldManager=x&force=true',
  'pods/p/exec?command=sh&namespace=kube-system',
  'pods/p/log?insecureSkipTLSVerifyBackend=true',
  'pods/p/portforward?ports=0x50',
  'pods/p/attach?command=sh',
];

const paths: readonly Attack[] = [
  ...climbing.map((rest) =>
    attack(`kube/${rest}`, '400, 404 or 405', async (target) =>
      refused(await ask(target, { path: own(target, `/kube/${rest}`), token: await target.token() }), [400, 404, 405]),
    ),
  ),
  ...queries.map((rest) =>
    attack(`kube/${rest}`, '400, for the query', async (target) =>
      // Streams are asked for as they must be: otherwise it is that which is refused.
      refused(
        await ask(target, {
          ...{ path: own(target, `/kube/${rest}`), token: await target.token() },
          ...(/\/(exec|attach|portforward)\?/.test(rest) ? { headers: upgrade } : {}),
        }),
        400,
        /the query parameter/,
      ),
    ),
  ),
  ...climbingStreams.map((rest) =>
    attack(`an upgrade of kube/${rest}`, '400, 404 or 405', async (target) =>
      refused(
        await ask(target, { path: own(target, `/kube/${rest}`), token: await target.token(), headers: upgrade }),
        [400, 404, 405],
      ),
    ),
  ),
  attack('a watch of another namespace, over HTTP/2', '400 or 404', async (target) => {
    const authorization = `Bearer ${await target.token()}`;
    const path = own(target, '/kube/../../../../api/v1/namespaces/kube-system/secrets?watch=true');
    return refused(await askOverH2(target, { ':method': 'GET', ':path': path, authorization }), [400, 404]);
  }),
  attack('a patch, past the admission', '405', async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'PATCH', path: own(target, '/kube/pods/p'), token: await target.token() },
        body: [{ op: 'add', path: '/spec/hostNetwork', value: true }],
        headers: { 'content-type': 'application/json' },
      }),
      405,
    ),
  ),
  attack('all pods deleted at once', '405', async (target) =>
    refused(await ask(target, { method: 'DELETE', path: own(target, '/kube/pods'), token: await target.token() }), 405),
  ),
];

const impersonating: readonly Attack[] = [
  attack(
    'headers that make one an administrator: Impersonate-User, X-Remote-User',
    'they go no further: only the tenant’s own is seen',
    async (target) => {
      const headers = {
        'impersonate-user': 'kubernetes-admin',
        'impersonate-group': 'system:masters',
        'x-remote-user': 'kubernetes-admin',
        'x-remote-group': 'system:masters',
      };
      const answer = await ask(target, { path: own(target, '/kube/secrets'), token: await target.token(), headers });
      // Had they gone on, the API server would have refused: a tenant's account may impersonate nobody.
      must(answer.status === 200, `${answer.status} ${answer.body.slice(0, 200)}`);
      const { items = [] } = JSON.parse(answer.body) as { items?: { metadata: { namespace: string } }[] };
      const foreign = items.find(({ metadata }) => target.real && metadata.namespace !== target.real.tenantNamespace);
      must(foreign === undefined, `a Secret of ${foreign?.metadata.namespace}`);
      return `200, ${items.length} Secrets, all its own`;
    },
    { needs: 'clusters' },
  ),
  attack('two Authorization headers, the second of somebody else', '401, or the first alone counts', async (target) => {
    const token = await target.token();
    const socket = await wire(target);
    socket.write(
      `GET ${victims(target)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\nauthorization: Bearer x.y\r\nconnection: close\r\n\r\n`,
    );
    const text = await new Promise<string>((resolve) => {
      let all = '';
      socket.on('data', (chunk: Buffer) => {
        all += chunk.toString('latin1');
      });
      socket.once('end', () => resolve(all));
    });
    socket.destroy();
    must(/^HTTP\/1\.1 40[01] /.test(text), text.slice(0, 100));
    return text.slice(9, 12);
  }),
  attack('Connection: authorization, so that a proxy drops the token', 'the token counts, or 401', async (target) => {
    const answer = await ask(target, { path: victims(target), headers: { connection: 'close, authorization' } });
    return refused(answer, 401);
  }),
];

/** 429 at last, memory as before. */
const hoarding: readonly Attack[] = [
  attack(
    'more logs and watches than a lease may read, none of them read',
    '429 for the rest',
    async (target) => {
      const token = await target.token();
      const sockets = [];
      let refusals = 0;
      for (let i = 0; i < 320; i++) {
        const socket = await wire(target);
        socket.once('data', (chunk: Buffer) => {
          if (chunk.toString('latin1').startsWith('HTTP/1.1 429')) refusals += 1;
          socket.pause();
        });
        socket.write(
          `GET ${own(target, '/kube/pods?watch=true')} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\n\r\n`,
        );
        sockets.push(socket);
      }
      for (let i = 0; i < 100 && refusals < 70; i++) await new Promise((resolve) => setTimeout(resolve, 100));
      const honest = await target.honest();
      for (const socket of sockets) socket.destroy();
      must(honest === undefined, `an honest caller meanwhile: ${honest}`);
      must(refusals >= 70, `${refusals} of 320 were refused`);
      return `${320 - refusals} were served, ${refusals} told 429`;
    },
    { needs: 'clusters', slow: true },
  ),
  attack(
    'more watches than a lease may have, on one connection of HTTP/2',
    '429 for the rest',
    async (target) => {
      const authorization = `Bearer ${await target.token()}`;
      const socket = await wire(target, { ALPNProtocols: ['h2'] });
      const session = http2.connect('https://gateway', { createConnection: () => socket });
      session.on('error', () => undefined);
      let [served, refusals] = [0, 0];
      for (let i = 0; i < 320; i++) {
        const stream = session.request({ ':path': own(target, '/kube/pods?watch=true'), authorization });
        stream.on('error', () => undefined);
        stream.once('response', (headers) => {
          if (headers[':status'] === 429) refusals += 1;
          if (headers[':status'] === 200) served += 1;
        });
      }
      for (let i = 0; i < 200 && served + refusals < 320; i++) await new Promise((resolve) => setTimeout(resolve, 100));
      const honest = await target.honest();
      session.destroy();
      must(honest === undefined, `an honest caller meanwhile: ${honest}`);
      must(refusals >= 70 && served > 0, `${served} were served, ${refusals} of 320 were refused`);
      return `${served} were served, ${refusals} told 429`;
    },
    { needs: 'clusters', slow: true },
  ),
  attack('a hundred thousand brackets for a voucher', '400', async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'POST', path: own(target, '/vouchers'), token: await target.token() },
        body: '['.repeat(100_000),
      }),
      400,
    ),
  ),
  attack('33 Services', '400', async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'PUT', path: own(target, '/services'), token: await target.token() },
        body: {
          services: Array.from({ length: 33 }, (_, i) => ({ namespace: 'a', name: `s${i}`, ports: [{ port: 80 }] })),
        },
      }),
      400,
    ),
  ),
  attack('a Service whose name is a host, to be written into hosts files', '400', async (target) =>
    refused(
      await ask(target, {
        ...{ method: 'PUT', path: own(target, '/services'), token: await target.token() },
        body: { services: [{ namespace: 'a', name: 'x\n127.0.0.1 kubernetes', ports: [{ port: 80 }] }] },
      }),
      400,
    ),
  ),
];

/** CONNECT through the tunnel to where no pod of the tenant is. It is no pod's name, or none of its pods': nothing is dialled. */
const tunnelled = [
  ['127.0.0.1:22', 404],
  ['127.0.0.1:its own port', 404],
  ['169.254.169.254:80', 404],
  ['kubernetes.default:443', 404],
  ['10.0.0.1:10250', 404],
  ['p%2f..:80', 400],
  ['p:99999', 400],
] as const;

const tunnels = tunnelled.map(([name, expected]) =>
  attack(`through the tunnel to ${name}`, String(expected), async (target) => {
    const authority = name.replace('its own port', String(target.port));
    const socket = await wire(target);
    socket.write(
      `POST ${own(target, '/forward')} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${await target.token()}\r\nconnection: Upgrade\r\nupgrade: ${forwardProtocol}\r\n\r\n`,
    );
    const head = await new Promise<string>((resolve) =>
      socket.once('data', (c: Buffer) => resolve(c.toString('latin1'))),
    );
    must(head.startsWith('HTTP/1.1 101'), head.slice(0, 120));
    const session = http2.connect('http://gateway', { createConnection: () => socket as Duplex as never });
    session.on('error', () => undefined);
    try {
      return await new Promise<string>((resolve, reject) => {
        const stream = session.request({ ':method': 'CONNECT', ':authority': authority });
        // Silence, or a 502, would be the far side's: then it was dialled.
        const wrong = (seen: string) => reject(new GotThrough(`${seen} (expected ${expected})`));
        stream.setTimeout(20_000, () => wrong('no answer'));
        stream.once('response', (headers) => {
          if (headers[':status'] === expected) resolve(`${expected}`);
          else wrong(`${headers[':status']}`);
        });
        stream.once('error', (error) => wrong(`reset: ${error.message}`));
        stream.once('close', () => wrong('closed'));
      });
    } finally {
      session.destroy();
    }
  }),
);

export const consumer: readonly Attack[] = [
  ...signatures,
  ...crossing,
  ...vouching,
  ...money,
  ...paths,
  ...impersonating,
  ...hoarding,
  ...tunnels,
];
