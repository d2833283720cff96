/**
 * The attacks of `npm run test:attacks` that need no clusters, against the real gateway with TLS over an API server in memory.
 * Those that wait half a minute are left to the command.
 */
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { keyFromHex } from '../../../operator/adapters/chain/key.ts';
import { selfSigned } from '../../../operator/adapters/gateway/certificate.ts';
import { attackAll } from '../../attacks/attack.ts';
import { attacks } from '../../attacks/attacks/all.ts';
import { access, ask, type Target } from '../../attacks/target.ts';
import { domain, keys, type ProviderSide, publicUrl, startProviderSide, usdc } from '../../support/provider-side.ts';

let side: ProviderSide;
let target: Target;
beforeAll(async () => {
  side = await startProviderSide({ tls: await selfSigned(['127.0.0.1'], new Date()), requestsPerSecond: 400 });
  const lease = await side.lease();
  const theirs = await side.quote();
  const victimLeaseId = side.open(theirs, undefined, keys.stranger);
  await side.post('/v1/leases', theirs);
  side.pass(120);
  side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  await once(side.gateway.app.server, 'listening');
  const at: Target = {
    host: '127.0.0.1',
    port: (side.gateway.app.server.address() as AddressInfo).port,
    publicUrl,
    domain,
    usdc,
    provider: keys.provider.address,
    stranger: keyFromHex(`0x${'5'.repeat(64)}`),
    mallory: { consumer: keys.consumer.address, session: keys.session, leaseId: lease.leaseId, quote: lease.quote },
    victimLeaseId,
    nowSeconds: side.nowSeconds,
    async token() {
      const body = await access(at);
      const answer = await ask(at, { method: 'POST', path: `/v1/leases/${lease.leaseId}/token`, body });
      if (answer.status !== 200) throw new Error(`no token: ${answer.status} ${answer.body}`);
      return (JSON.parse(answer.body) as { token: string }).token;
    },
    async honest() {
      const { status, body } = await ask(at, { path: '/v1/offers' });
      return status === 200 ? undefined : `${status} ${body}`;
    },
  };
  target = at;
}, 60_000);
afterAll(() => side.stop());

const quick = attacks.filter(({ needs, slow }) => needs === undefined && !slow);

test(`${quick.length} attacks are refused, and the gateway goes on answering`, async () => {
  expect(quick.length).toBeGreaterThan(100);
  const rows = await attackAll(quick, target, { has: new Set() });
  const through = rows.filter(({ verdict }) => verdict !== 'refused');
  expect(through.map(({ attack, seen }) => `${attack.who}, ${attack.name}: ${seen}`)).toEqual([]);
}, 120_000);
