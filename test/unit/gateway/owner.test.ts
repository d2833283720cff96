/** The owner's controls and the first contact, as consumers meet them over HTTP. */
import { afterEach, describe, expect, test } from 'vitest';
import type { AllocationInfo } from '../../../operator/api/gateway.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { eventually, keys, offer, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
afterEach(() => side.stop());

const key = { namespace: 'gpulease-system', name: 'gpulease-controls' };
async function write(data: Record<string, string>): Promise<void> {
  const object = { apiVersion: 'v1', kind: 'ConfigMap', metadata: key, data } as unknown as KubeObject;
  await side.cluster.apply(resources.configMaps, object, { fieldManager: 'test' });
}
const quoted = async () => {
  try {
    await side.quote();
    return { status: 200, body: {} };
  } catch (error) {
    return (error as { answer: { status: number; body: { reason?: string; detail?: string } } }).answer;
  }
};
const allocationOf = async (leaseId: string, token: string) =>
  (await side.get(`/v1/leases/${leaseId}`, token)).body as AllocationInfo;

describe('the owner', () => {
  test('holds: no quotes, no leases, nothing on offer; what runs goes on; and serves again', async () => {
    side = await startProviderSide();
    const early = await side.quote();
    const { leaseId, token } = await side.lease();
    await write({ mode: 'Hold', message: 'new switches' });
    const refused = await eventually(quoted, ({ status }) => status === 503);
    expect(refused.body).toMatchObject({ reason: 'Held', detail: expect.stringContaining('new switches') });
    side.open(early);
    expect(await side.post('/v1/leases', early)).toMatchObject({ status: 503, body: { reason: 'Held' } });
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [{ available: 0 }] });
    expect(await allocationOf(leaseId, token)).toMatchObject({ state: 'Serving' });
    await write({ mode: 'Serve' });
    await eventually(quoted, ({ status }) => status === 200);
    expect((await side.post('/v1/leases', early)).status).toBe(200);
  });

  test('drains: each lease is told until when, goes on until then, and may stay when he changes his mind', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    await write({ mode: 'HoldAndDrain', drainSeconds: '60' });
    const told = await eventually(
      () => allocationOf(leaseId, token),
      (info) => info.leaveBy !== undefined,
    );
    expect(told.state).toBe('Serving');
    expect(Math.abs(Date.parse(told.leaveBy!) / 1000 - side.nowSeconds() - 60)).toBeLessThan(5);
    await write({ mode: 'Hold' });
    await eventually(
      () => allocationOf(leaseId, token),
      (info) => info.leaveBy === undefined,
    );
    await write({ mode: 'HoldAndDrain', drainSeconds: '60' });
    await eventually(
      () => allocationOf(leaseId, token),
      (info) => info.leaveBy !== undefined,
    );
    side.pass(61);
    await eventually(
      () => allocationOf(leaseId, token),
      (info) => info.state === 'Ended',
    );
    expect(await allocationOf(leaseId, token)).toMatchObject({ reason: 'Maintenance' });
    side.pass(700);
    const escrow = await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (seen) => seen.closed,
    );
    expect(escrow).toMatchObject({ closeReason: 'ProviderMaintenance', claimed: 0n, refunded: escrow.deposit });
  });

  test('blocks an account: its leases end at once, it gets no other, and what it signed for is settled', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    side.pass(20);
    const signature = await side.voucher(leaseId, 10);
    await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 10, last: false, signature }, token);
    await write({ blocked: `${keys.consumer.address}  # spams` });
    const refused = await eventually(quoted, ({ status }) => status === 403);
    expect(refused.body).toMatchObject({ reason: 'Blocked' });
    await eventually(
      () => allocationOf(leaseId, token),
      (info) => info.state === 'Ended',
    );
    side.pass(700);
    const escrow = await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (seen) => seen.closed,
    );
    expect(escrow).toMatchObject({ servedSeconds: 10, closeReason: 'ProviderPolicy' });
  });

  test('changes a price for new quotes alone: what was signed holds', async () => {
    side = await startProviderSide();
    const before = await side.quote();
    const dearer = offer('rtx4090', { prices: [{ assetSymbol: 'USDC', perGpuHour: '0.50' }] });
    await side.cluster.apply(resources.gpuOffers, dearer, { fieldManager: 'test' });
    await eventually(
      async () => (await side.quote()).quote.pricePerGpuHour,
      (price) => price === '500000',
    );
    expect(before.quote.pricePerGpuHour).toBe('340000');
    side.open(before);
    expect((await side.post('/v1/leases', before)).status).toBe(200);
  });
});

describe('first contact', () => {
  test('a stranger gets one lease, and another one when something of it was settled', async () => {
    side = await startProviderSide({ knownConsumers: [] });
    const early = await side.quote();
    const { leaseId, token } = await side.lease();
    expect(await quoted()).toMatchObject({ status: 409, body: { reason: 'FirstContact' } });
    side.open(early);
    expect(await side.post('/v1/leases', early)).toMatchObject({ status: 409, body: { reason: 'FirstContact' } });

    side.pass(20);
    const last = await side.voucher(leaseId, 10, true);
    await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 10, last: true, signature: last }, token);
    await eventually(
      () => side.chain.state.leases.get(leaseId)!.closed,
      (closed) => closed,
    );
    // Of two at once now.
    await eventually(
      async () => (await side.post('/v1/leases', early)).status,
      (status) => status === 200,
    );
    await eventually(quoted, ({ status }) => status === 200);
    expect((await side.lease()).info.state).toBe('Serving');
  });

  test('two of a stranger at the same moment, at two replicas: not both', async () => {
    side = await startProviderSide({ knownConsumers: [] });
    const other = await startProviderSide({
      knownConsumers: [],
      cluster: side.cluster,
      chain: side.chain,
      follower: true,
    });
    try {
      const quotes = [await side.quote(), await side.quote()];
      for (const quote of quotes) side.open(quote);
      const answers = await Promise.all([side.post('/v1/leases', quotes[0]), other.post('/v1/leases', quotes[1])]);
      expect(answers.filter(({ status }) => status === 200).length).toBeLessThan(2);
      for (const { status, body } of answers)
        if (status !== 200) expect(body).toMatchObject({ reason: 'FirstContact' });
      // Where both were turned away, one comes again and is served.
      await eventually(
        async () =>
          (await Promise.all(quotes.map((quote) => side.post('/v1/leases', quote)))).filter(
            ({ status }) => status === 200,
          ).length,
        (served) => served === 1,
      );
    } finally {
      await other.stop();
    }
  });
});
