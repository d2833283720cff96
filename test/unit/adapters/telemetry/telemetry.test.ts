import { describe, expect, it } from 'vitest';
import { createLog } from '../../../../operator/adapters/telemetry/log.ts';
import { createMetrics } from '../../../../operator/adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../../../../operator/adapters/telemetry/operations-server.ts';
import { createController, watches } from '../../../../operator/engine/controller.ts';
import { ApiError } from '../../../../operator/engine/errors.ts';
import { createInformer } from '../../../../operator/engine/informer.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { manualClock } from '../../../support/clock.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

function logged(act: (log: ReturnType<typeof createLog>) => void, options = {}) {
  const lines: string[] = [];
  act(createLog({ name: 'test', level: 'debug', pretty: false, write: (line) => void lines.push(line), ...options }));
  return lines.join('');
}
const jwt = 'eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJrdWJlcm5l.c2lnbmF0dXJlLXBhcnQ';

describe('the log', () => {
  it('writes one JSON object a line, with the fields of its parents', () => {
    const line = logged((log) => log.child({ lease: 'a/x' }).info({ served: 30n, at: new Date(0) }, 'paid'));
    expect(JSON.parse(line)).toMatchObject({
      level: 'info',
      name: 'test',
      lease: 'a/x',
      served: '30',
      at: '1970-01-01T00:00:00.000Z',
      msg: 'paid',
    });
    expect(line.endsWith('}\n')).toBe(true);
  });

  it.each([
    ['a header', { headers: { authorization: 'Bearer abcdef123456', accept: 'x' } }],
    ['a token field', { token: 'abcdef123456' }],
    ['a key field, deep inside', { a: { b: [{ privateKey: 'abcdef123456' }] } }],
    ['a kubeconfig', { kubeconfig: 'users: [{token: abcdef123456}]' }],
    ['a token in a text', { note: `it sent ${jwt} to us` }],
    ['a bearer token in a text', { note: 'Authorization: Bearer abcdef123456' }],
    ['a PEM key', { note: '-----BEGIN EC PRIVATE KEY-----\nabcdef123456\n-----END EC PRIVATE KEY-----' }],
    ['a PEM key cut off', { note: '-----BEGIN PRIVATE KEY-----\nabcdef123456' }],
    ['credentials in a URL', { rpc: 'https://user:abcdef123456@rpc.example.com/v1' }],
    ['an error', { error: new Error(`refused: token=abcdef123456 ${jwt}`) }],
    ['the cause of an error', { error: new Error('x', { cause: new Error('Bearer abcdef123456') }) }],
    ['bytes', { key: Buffer.from('abcdef123456') }],
  ])('does not tell secrets: %s', (_, fields) => {
    for (const pretty of [true, false]) {
      const text = logged((log) => log.child(fields).error(fields, `x ${JSON.stringify(fields)}`), { pretty });
      expect(text).not.toMatch(/abcdef123456|eyJhbGci|YWJjZGVm/);
      expect(text.length).toBeGreaterThan(20);
    }
  });

  it('leaves readable what is no secret', () => {
    const fields = { tokenAddress: '0xA0b8', publicKey: 'k', leaseId: `0x${'ab'.repeat(32)}`, tokens: 3, keyId: 'x' };
    expect(JSON.parse(logged((log) => log.info(fields, 'm')))).toMatchObject(fields);
  });

  it('survives whatever it is given', () => {
    const loop: Record<string, unknown> = { a: 1 };
    loop.self = loop;
    const text = logged((log) => {
      log.info(loop, 'loop');
      log.warn({ error: null, nothing: undefined, f: () => 1, big: 'x'.repeat(100_000) }, 'odd');
      log.error({ error: new ApiError({ code: 409, reason: 'Conflict', message: 'no' }, 'PUT /x') }, 'refused');
    });
    const [first, second, third] = text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(first.self).toBe('[again]');
    expect(second.big.length).toBeLessThan(10_000);
    expect(third.error).toMatchObject({ type: 'ApiError', code: 409, reason: 'Conflict', message: 'PUT /x: no' });
  });

  it('is short and safe for people', () => {
    const text = logged(
      (log) => log.warn({ lease: 'a/x', note: 'two words\u001b[2J', error: new Error('why') }, 'odd'),
      {
        pretty: true,
      },
    );
    expect(text).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} WARN {2}test: odd {2}lease=a\/x note="two words\\u001b\[2J" error=why\n$/,
    );
  });

  it('says nothing below its level', () => {
    expect(logged((log) => log.debug({}, 'x'), { level: 'info' })).toBe('');
  });
});

describe('metrics', () => {
  it('tell of controllers, queues and informers under the usual names', async () => {
    const clock = manualClock();
    const { registry, engine } = createMetrics({ processMetrics: false });
    const cluster = fakeCluster({ clock });
    const informer = createInformer({ cluster, resource: resources.secrets, clock, metrics: engine });
    const controller = createController({
      name: 'lease',
      watches: [watches(informer)],
      clock,
      metrics: engine,
      reconcile: async (key) => {
        if (key.name === 'bad') throw new Error('no');
        return key.name === 'again' ? { requeueAfterSeconds: 100 } : {};
      },
    });
    const stop = new AbortController();
    const done = [informer.run(stop.signal), controller.run(stop.signal)];
    cluster.seed(
      resources.secrets,
      ...['good', 'bad', 'again'].map((name) => ({ metadata: { name, namespace: 'a' } })),
    );
    await clock.advance(10);
    const text = await registry.metrics();
    for (const line of [
      'controller_runtime_reconcile_total{controller="lease",result="success"} 1',
      'controller_runtime_reconcile_total{controller="lease",result="requeue_after"} 1',
      'controller_runtime_reconcile_total{controller="lease",result="error"} 1',
      'controller_runtime_reconcile_errors_total{controller="lease"} 1',
      'controller_runtime_max_concurrent_reconciles{controller="lease"} 4',
      'workqueue_depth{name="lease"} 2',
      'workqueue_adds_total{name="lease"} 3',
      'workqueue_retries_total{name="lease"} 1',
      'workqueue_work_duration_seconds_count{name="lease"} 3',
      'gpulease_informer_objects{cluster="fake",resource="secrets"} 3',
      'gpulease_informer_synced{cluster="fake",resource="secrets"} 1',
      'gpulease_informer_lists_total{cluster="fake",resource="secrets"} 1',
    ])
      expect(text).toContain(line);
    stop.abort();
    await Promise.all(done);
    expect(await registry.metrics()).not.toContain('workqueue_depth{name="lease"}');
  });
});

describe('the operations server', () => {
  it('answers, says what fails and why, and refuses the rest', async () => {
    const { registry } = createMetrics({ processMetrics: false });
    let leader: true | string = true;
    const server = await startOperationsServer({
      port: 0,
      host: '127.0.0.1',
      registry,
      live: () => ({ process: true }),
      ready: async () => ({ synced: true, leader }),
    });
    try {
      const get = async (path: string, init?: RequestInit) => {
        const response = await fetch(`http://127.0.0.1:${server.port}${path}`, init);
        return [response.status, await response.text()];
      };
      expect(await get('/livez')).toEqual([200, 'ok\n']);
      expect(await get('/readyz?verbose')).toEqual([200, '[+]synced ok\n[+]leader ok\nreadyz check passed\n']);
      leader = 'waiting, Bearer abcdef123456';
      expect(await get('/readyz')).toEqual([
        503,
        '[+]synced ok\n[-]leader failed: waiting, Bearer [redacted]\nreadyz check failed\n',
      ]);
      expect((await get('/metrics'))[1]).toContain('# TYPE workqueue_depth gauge');
      expect((await get('/'))[0]).toBe(404);
      expect((await get('/metrics', { method: 'POST' }))[0]).toBe(405);
      await expect(
        startOperationsServer({ port: server.port, host: '127.0.0.1', registry, live: () => ({}), ready: () => ({}) }),
      ).rejects.toThrow(`cannot listen on port ${server.port}: EADDRINUSE`);
    } finally {
      await server.close();
    }
  });
});
