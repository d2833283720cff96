/** How offers reach consumers: at once when they change, once when they do not. */
import type { AddressInfo } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { selfSigned, spkiSha256 } from '../../../operator/adapters/gateway/certificate.ts';
import { createGateways } from '../../../operator/adapters/provider/gateways.ts';
import { createOfferWatches } from '../../../operator/controllers/consumer/offer-watches.ts';
import type { Gateways } from '../../../operator/controllers/consumer/ports.ts';
import { systemClock } from '../../../operator/engine/clock.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { provider } from '../../support/builders.ts';
import { eventually, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
afterEach(() => side?.stop());

const ask = (headers: Record<string, string> = {}) =>
  side.gateway.app.inject({ method: 'GET', url: '/v1/offers', headers });

const cordon = () =>
  side.cluster.change<KubeObject & { spec?: { unschedulable?: boolean } }>(
    resources.nodes,
    { name: 'node-a' },
    (node) => {
      node.spec = { ...node.spec, unschedulable: true };
    },
  );

test('offers that have not changed are not sent again', async () => {
  side = await startProviderSide();
  const first = await ask();
  expect(first.statusCode).toBe(200);
  const etag = String(first.headers.etag);
  expect(etag).toMatch(/^"[0-9a-f]{32}"$/);
  const again = await ask({ 'if-none-match': etag });
  expect({ status: again.statusCode, body: again.body, etag: again.headers.etag }).toEqual({
    status: 304,
    body: '',
    etag,
  });
  expect((await ask({ 'if-none-match': '"another"' })).statusCode).toBe(200);
  expect((await ask({ 'if-none-match': 'no tag at all' })).statusCode).toBe(200);
});

test('who waits hears of a node that is cordoned, and of nothing before', async () => {
  side = await startProviderSide();
  const etag = String((await ask()).headers.etag);
  let answered = false;
  const waiting = ask({ 'if-none-match': etag, prefer: 'wait=25' }).then((answer) => {
    answered = true;
    return answer;
  });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(answered).toBe(false);
  const started = performance.now();
  cordon();
  const answer = await waiting;
  expect(answer.statusCode).toBe(200);
  expect(JSON.parse(answer.body)).toMatchObject({ offers: [{ name: 'rtx4090', available: 0 }] });
  expect(performance.now() - started).toBeLessThan(5000);
});

test('a gateway that stops answers those who wait', async () => {
  side = await startProviderSide();
  const etag = String((await ask()).headers.etag);
  const waiting = ask({ 'if-none-match': etag, prefer: 'wait=25' });
  await new Promise((resolve) => setTimeout(resolve, 100));
  const started = performance.now();
  await side.gateway.close();
  await waiting;
  expect(performance.now() - started).toBeLessThan(3000);
});

test('a consumer’s operator hears of it within five seconds, with one question at a time', async () => {
  const tls = await selfSigned(['127.0.0.1'], new Date());
  side = await startProviderSide({ tls });
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = side.gateway.app.server.address() as AddressInfo;
  const gateways = createGateways({ signAccess: async () => '0x', now: () => new Date(), log: silentLog });
  const stop = new AbortController();
  const heard: number[] = [];
  let questions = 0;
  const counted: Gateways = {
    ...gateways,
    of: (it) => {
      const gateway = gateways.of(it);
      return {
        ...gateway,
        offersAfter: (tag, seconds, signal) => {
          questions += 1;
          return gateway.offersAfter(tag, seconds, signal);
        },
      };
    },
  };
  const watches = createOfferWatches({
    gateways: counted,
    changed: () => heard.push(performance.now()),
    clock: systemClock,
    log: silentLog,
    signal: stop.signal,
  });
  const it = provider({
    endpoint: { via: 'Direct', url: `https://127.0.0.1:${port}`, spkiSHA256: spkiSha256(tls.cert) },
  });
  watches.keep(it);
  watches.keep(it);
  await eventually(
    () => questions,
    (seen) => seen === 2,
  );
  const started = performance.now();
  cordon();
  await eventually(
    () => heard.length,
    (seen) => seen === 1,
  );
  const ms = Math.round(heard[0]! - started);
  console.log(JSON.stringify({ offerChangeHeardAfterMs: ms, questions }));
  expect(ms).toBeLessThan(5000);
  stop.abort(new Error('over'));
  gateways.forget(it.metadata.name);
});
