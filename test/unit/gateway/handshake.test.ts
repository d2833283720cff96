/** Callers who never get as far as a request must not be kept: each would hold one of the gateway's connections for ever. */
import { connect } from 'node:net';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { selfSigned } from '../../../operator/adapters/gateway/certificate.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { createGateway } from '../../../operator/gateway/app.ts';
import { eventually } from '../../support/clusters.ts';

const { cert, key } = await selfSigned(['127.0.0.1'], new Date());
const gateway = createGateway({
  service: {} as never,
  upstream: {} as never,
  tokenKey: Buffer.alloc(32, 1),
  publicUrls: ['https://127.0.0.1'],
  now: () => new Date(),
  log: silentLog,
  tls: { cert, key },
});
let port = 0;
beforeAll(async () => {
  await gateway.app.listen({ host: '127.0.0.1', port: 0 });
  port = (gateway.app.server.address() as { port: number }).port;
});
afterAll(() => gateway.close());

const connections = () =>
  new Promise<number>((resolve) => gateway.app.server.getConnections((_, count) => resolve(count)));

it('lets go of callers who never finish the TLS handshake, after ten seconds', async () => {
  const sockets = Array.from({ length: 5 }, () => connect({ port, host: '127.0.0.1', allowHalfOpen: true }));
  for (const [index, socket] of sockets.entries()) {
    socket.on('error', () => socket.destroy());
    // Some leave at once, some stay and say nothing.
    if (index % 2 === 0) socket.end();
  }
  await eventually(async () => (await connections()) === 5, 'five callers');
  await eventually(async () => (await connections()) === 0, 'the gateway letting go of them', 15);
  expect(gateway.app.server.listening).toBe(true);
  for (const socket of sockets) socket.destroy();
});
