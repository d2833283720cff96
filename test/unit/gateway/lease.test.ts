/** The life of one lease, as a consumer sees it over HTTP. */
import { afterEach, describe, expect, test } from 'vitest';
import { verifyRelease } from '../../../operator/adapters/chain/messages.ts';
import type { AllocationInfo, ReleaseReceipt } from '../../../operator/api/gateway.ts';
import { allocationInfo, offerList, providerInfo, signedQuote } from '../../../operator/api/gateway.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import {
  domain,
  eventually,
  gpuNode,
  keys,
  offer,
  type ProviderSide,
  startProviderSide,
} from '../../support/provider-side.ts';

let side: ProviderSide;
afterEach(() => side.stop());

const stateOf = async (leaseId: string, token: string): Promise<AllocationInfo> =>
  (await side.get(`/v1/leases/${leaseId}`, token)).body;

describe('from quote to refund', () => {
  test('tells who it is and what it rents out', async () => {
    side = await startProviderSide();
    expect(providerInfo.parse((await side.get('/v1/provider')).body)).toMatchObject({ address: keys.provider.address });
    const { offers } = offerList.parse((await side.get('/v1/offers')).body);
    expect(offers).toMatchObject([
      { name: 'rtx4090', total: 2, available: 2, largestAvailable: 2, memoryMiB: 24564, region: 'eu-1' },
    ]);
    expect(offers[0]!.labels).not.toHaveProperty('provider.example/secret');
  });

  test('serves, is paid, releases, and closes with the last voucher', async () => {
    side = await startProviderSide();
    const { leaseId, token, quote, info } = await side.lease();
    signedQuote.parse(quote);
    allocationInfo.parse(info);
    expect(info).toMatchObject({ state: 'Serving', gpus: 1, nodeReady: true, vouchedSeconds: 0, graceSeconds: 600 });
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [{ available: 1 }] });

    side.pass(60);
    const signature = await side.voucher(leaseId, 58);
    expect(
      await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 58, last: false, signature }, token),
    ).toMatchObject({
      status: 200,
      body: { servedSeconds: 58 },
    });
    expect(await stateOf(leaseId, token)).toMatchObject({ vouchedSeconds: 58 });

    side.pass(2);
    const last = await side.voucher(leaseId, 61, true);
    expect(
      await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 61, last: true, signature: last }, token),
    ).toMatchObject({
      body: { servedSeconds: 61 },
    });
    const receipt = await eventually(
      async () => (await side.post(`/v1/leases/${leaseId}/release`, {}, token)).body as ReleaseReceipt,
      (seen) => seen.state === 'Ended',
    );
    await verifyRelease(
      domain,
      { message: { leaseId, servedSeconds: receipt.servedSeconds! }, signature: receipt.signature as `0x${string}` },
      keys.provider.address,
    );
    expect(receipt.servedSeconds).toBe(61);
    const escrow = await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (seen) => seen.closed,
    );
    expect(escrow).toMatchObject({ servedSeconds: 61, closeReason: 'LastVoucher', claimed: (340_000n * 61n) / 3600n });
    expect(side.chain.sent).toEqual(['close']);
    await eventually(
      () => side.cluster.object(resources.namespaces, { name: tenantNamespace(leaseId) }),
      (seen) => seen === undefined,
    );
    await eventually(
      async () => (await side.get('/v1/offers')).body,
      (seen) => (seen as { offers: { available: number }[] }).offers[0]!.available === 2,
    );
    expect(await stateOf(leaseId, token)).toMatchObject({ state: 'Ended', reason: 'Released' });
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 410, body: { reason: 'LeaseEnded' } });
  });

  test('asking twice for the allocation gives the same one', async () => {
    side = await startProviderSide();
    const { quote, info } = await side.lease();
    const again = await side.post('/v1/leases', quote);
    expect(again.body).toMatchObject({ leaseId: info.leaseId, state: 'Serving' });
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [{ available: 1 }] });
  });

  test('gives the profile "trusted" to whom the provider trusts, and takes it back at once', async () => {
    side = await startProviderSide({ trustedConsumers: [keys.consumer.address.toUpperCase().replace('0X', '0x')] });
    const { leaseId, info, token } = await side.lease();
    expect(info).toMatchObject({ tenantProfile: 'trusted' });
    const { metadata } = side.cluster.object(resources.namespaces, { name: tenantNamespace(leaseId) })!;
    expect(metadata.labels).toMatchObject({ 'pod-security.kubernetes.io/enforce': 'privileged' });

    const { cluster, chain } = side;
    await side.stop();
    side = await startProviderSide({ cluster, chain });
    expect(await stateOf(leaseId, token)).toMatchObject({ state: 'Serving', tenantProfile: 'baseline' });
    const hostile = { metadata: { name: 'p' }, spec: { hostNetwork: true, containers: [{ name: 'c', image: 'i' }] } };
    expect(await side.post(`/v1/leases/${leaseId}/kube/pods`, hostile, token)).toMatchObject({
      status: 422,
      body: { reason: 'PodRefused' },
    });
  });

  test('trusts nobody unless told to', async () => {
    side = await startProviderSide();
    const { leaseId, info } = await side.lease();
    expect(info).toMatchObject({ tenantProfile: 'baseline' });
    const { metadata } = side.cluster.object(resources.namespaces, { name: tenantNamespace(leaseId) })!;
    expect(metadata.labels).toMatchObject({ 'pod-security.kubernetes.io/enforce': 'baseline' });
  });

  test('allocates nothing before the escrow is on chain', async () => {
    side = await startProviderSide();
    const quote = await side.quote();
    expect(await side.post('/v1/leases', quote)).toMatchObject({
      status: 409,
      body: { reason: 'EscrowNotFound' },
      headers: { 'retry-after': '1' },
    });
    expect(side.cluster.objects(resources.configMaps)).toEqual([]);
    side.pass(300);
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 410, body: { reason: 'QuoteExpired' } });
  });

  test('a chain that does not answer is neither a yes nor a no', async () => {
    side = await startProviderSide();
    const quote = await side.quote();
    side.open(quote);
    side.chain.unreachable = true;
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 503 });
    side.chain.unreachable = false;
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 200, body: { state: 'Serving' } });
  });

  test('an escrow with other terms than the quote opens nothing', async () => {
    side = await startProviderSide();
    const quote = await side.quote();
    const leaseId = side.open(quote);
    const escrow = side.chain.state.leases.get(leaseId)!;
    side.chain.state = { ...side.chain.state, leases: new Map([[leaseId, { ...escrow, pricePerGpuHour: 1n }]]) };
    expect(await side.post('/v1/leases', quote)).toMatchObject({
      status: 422,
      body: { reason: 'EscrowMismatch', detail: expect.stringContaining('pricePerGpuHour') },
    });
  });

  test('a quote that we did not sign, or that was changed, opens nothing', async () => {
    side = await startProviderSide();
    const quote = await side.quote();
    side.open(quote);
    const cheaper = { ...quote, quote: { ...quote.quote, pricePerGpuHour: '1' } };
    expect(await side.post('/v1/leases', cheaper)).toMatchObject({ status: 401, body: { reason: 'Unauthorized' } });
    const larger = { ...quote, node: { ...quote.node, gpus: 2 } };
    expect(await side.post('/v1/leases', larger)).toMatchObject({
      status: 422,
      body: { detail: expect.stringContaining('specHash') },
    });
  });
});

describe('capacity', () => {
  test('a third lease that does not fit is told so, released and refunded', async () => {
    side = await startProviderSide();
    const third = await side.quote();
    await side.lease();
    await side.lease();
    await expect(side.quote()).rejects.toThrow('CapacityExhausted');
    const leaseId = side.open(third);
    expect(await side.post('/v1/leases', third)).toMatchObject({ status: 409, body: { reason: 'CapacityExhausted' } });
    const token = await side.token(leaseId);
    expect((await side.post(`/v1/leases/${leaseId}/release`, {}, token)).body).toMatchObject({
      state: 'Ended',
      servedSeconds: 0,
    });
  });

  test('what was refused for want of room is allocated when there is room again', async () => {
    side = await startProviderSide();
    const waiting = await side.quote();
    const one = await side.lease({ gpus: 2 });
    side.open(waiting);
    expect(await side.post('/v1/leases', waiting)).toMatchObject({ status: 409 });
    await eventually(
      async () => (await side.post(`/v1/leases/${one.leaseId}/release`, {}, one.token)).body as ReleaseReceipt,
      (seen) => seen.state === 'Ended',
    );
    await eventually(
      async () => (await side.post('/v1/leases', waiting)).status,
      (seen) => seen === 200,
    );
  });

  test('two gateways and twenty consumers never share a GPU', async () => {
    side = await startProviderSide({ objects: [gpuNode('node-a', 3), gpuNode('node-b', 2)] });
    const other = await startProviderSide({ cluster: side.cluster, chain: side.chain, follower: true });
    try {
      const quotes = await Promise.all(Array.from({ length: 20 }, () => side.quote()));
      for (const quote of quotes) side.open(quote);
      // Each is asked for at both, at the same moment.
      const answers = await Promise.all(
        quotes.flatMap((quote) => [side.post('/v1/leases', quote), other.post('/v1/leases', quote)]),
      );
      const statuses = answers.map((answer) => answer.status);
      expect(statuses.every((status) => status === 200 || status === 409)).toBe(true);
      const ledgers = side.cluster.objects<KubeObject & { data: Record<string, string> }>(resources.configMaps);
      const held = ledgers.map(
        (map) => JSON.parse(map.data['ledger.json']!) as { node: string; entries: Record<string, { gpus: number }> },
      );
      for (const { node, entries } of held) {
        const sum = Object.values(entries).reduce((gpus, one) => gpus + one.gpus, 0);
        expect(sum, node).toBeLessThanOrEqual(node === 'node-a' ? 3 : 2);
      }
      const leases = held.flatMap(({ entries }) => Object.keys(entries));
      expect(new Set(leases).size).toBe(leases.length);
      const told = answers.filter(({ status }) => status === 200).map(({ body }) => (body as AllocationInfo).leaseId);
      expect(new Set(leases)).toEqual(new Set(told));
      expect(leases).toHaveLength(5);
    } finally {
      await other.stop();
    }
  });

  test('a node that is cordoned, unready or not offered is not rented out', async () => {
    side = await startProviderSide({
      objects: [
        gpuNode('cordoned', 2, { spec: { unschedulable: true } }),
        gpuNode('unready', 2, {
          status: { allocatable: { 'nvidia.com/gpu': '2' }, conditions: [{ type: 'Ready', status: 'False' }] },
        }),
      ],
    });
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [{ total: 0, available: 0 }] });
  });

  test('what pods of the provider’s own hold is not sold; what tenants’ pods hold is counted once', async () => {
    side = await startProviderSide({ objects: [gpuNode('node-a', 3)] });
    const quote = await side.quote({ gpus: 3 });
    const gpuPod = (name: string, namespace: string) =>
      ({
        metadata: { name, namespace },
        spec: { nodeName: 'node-a', containers: [{ resources: { limits: { 'nvidia.com/gpu': '1' } } }] },
        status: { phase: 'Running' },
      }) as KubeObject;
    side.cluster.seed(resources.pods, gpuPod('own', 'default'), gpuPod('train', `gl-${'0'.repeat(20)}`));
    // Sold a moment before: the reservation looks at the node itself.
    side.open(quote);
    expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 409, body: { reason: 'CapacityExhausted' } });
    await eventually(
      async () => (await side.get('/v1/offers')).body as { offers: { available: number }[] },
      ({ offers }) => offers[0]!.available === 2,
    );
  });

  test('an offer without an accepted price is not shown, and says why', async () => {
    side = await startProviderSide({ offers: [offer('doge', { prices: [{ assetSymbol: 'DOGE', perGpuHour: '1' }] })] });
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [] });
    const stored = await eventually(
      () =>
        side.cluster.object<KubeObject & { status?: { conditions?: { reason: string; message: string }[] } }>(
          resources.gpuOffers,
          { name: 'doge' },
        ),
      (seen) => seen?.status?.conditions !== undefined,
    );
    expect(stored!.status!.conditions![0]).toMatchObject({
      reason: 'RailNotAccepted',
      message: expect.stringContaining('USDC'),
    });
  });

  test('held: runs what runs, and quotes nothing new', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    side.held = true;
    await expect(side.quote()).rejects.toThrow('Held');
    expect((await side.get('/v1/offers')).body).toMatchObject({ offers: [{ available: 0 }] });
    expect(await stateOf(leaseId, token)).toMatchObject({ state: 'Serving' });
  });
});

describe('how a lease ends', () => {
  test('unpaid beyond its grace: suspended, pods ended, closed on chain, room given back', async () => {
    // 0.0005 USDC at 0.34 an hour: five seconds.
    side = await startProviderSide({ maxUnpaid: '0.0005' });
    const { leaseId, token, info } = await side.lease();
    expect(info.graceSeconds).toBe(5);
    // Looked at every few moments: time passes in steps that count.
    for (let step = 0; step < 8; step += 1) {
      side.pass(1);
      await new Promise((resolve) => setTimeout(resolve, 120));
    }
    const seen = await eventually(
      () => stateOf(leaseId, token),
      ({ state }) => state === 'Suspended' || state === 'Ended',
    );
    expect(seen).toMatchObject({ reason: 'Unpaid' });
    await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (escrow) => escrow.closed,
    );
    expect(side.chain.state.leases.get(leaseId)).toMatchObject({ closeReason: 'ProviderUnpaid', servedSeconds: 0 });
    await eventually(
      () => stateOf(leaseId, token),
      ({ state }) => state === 'Ended',
    );
    expect(await side.quote({ gpus: 2 })).toBeDefined();
  });

  test('time in which the gateway was away is nobody’s debt', async () => {
    side = await startProviderSide({ maxUnpaid: '0.0005' });
    const { leaseId, token } = await side.lease();
    await new Promise((resolve) => setTimeout(resolve, 150));
    // One jump of ten minutes: nobody looked meanwhile.
    side.pass(600);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(token).toBeDefined();
    expect(await stateOf(leaseId, await side.token(leaseId))).toMatchObject({ state: 'Serving' });
  });

  test('closing asked for on chain: torn down, the stored voucher settled inside the window', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    side.pass(20);
    const signature = await side.voucher(leaseId, 19);
    await side.post(`/v1/leases/${leaseId}/vouchers`, { servedSeconds: 19, last: false, signature }, token);
    side.chain.call({ do: 'requestClose', from: keys.consumer.address, leaseId });
    await eventually(
      () => stateOf(leaseId, token),
      ({ state }) => state === 'Ended',
    );
    await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (escrow) => escrow.servedSeconds === 19,
    );
    side.pass(700);
    await eventually(
      () => side.chain.state.leases.get(leaseId)!,
      (escrow) => escrow.closed,
    );
    // Past the claim window anybody may close it, and the gateway does.
    expect(side.chain.sent).toEqual(['settle', 'finalize']);
    expect(side.chain.state.leases.get(leaseId)).toMatchObject({ closeReason: 'ConsumerRequested', servedSeconds: 19 });
  });

  test('the term is over: ended as Expired', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease({ maxSeconds: 60, startTimeoutSeconds: 30 });
    side.pass(91);
    const fresh = await side.token(leaseId);
    expect(token).toBeDefined();
    await eventually(
      () => stateOf(leaseId, fresh),
      ({ state }) => state === 'Ended',
    );
    expect(await stateOf(leaseId, fresh)).toMatchObject({ reason: 'Expired' });
  });

  test('pods are ended before the release is signed', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    const namespace = tenantNamespace(leaseId);
    side.cluster.seed(resources.pods, {
      metadata: { name: 'busy', namespace },
      spec: { nodeName: 'node-a', terminationGracePeriodSeconds: 3600 },
    } as KubeObject);
    expect(await side.post(`/v1/leases/${leaseId}/release`, {}, token)).toMatchObject({
      status: 202,
      body: { state: 'Ending' },
    });
    const pod = await eventually(
      () => side.cluster.object(resources.pods, { namespace, name: 'busy' }),
      (seen) => seen?.metadata.deletionTimestamp !== undefined,
    );
    expect(pod!.metadata.deletionGracePeriodSeconds).toBe(30);
    expect(await side.post(`/v1/leases/${leaseId}/release`, {}, token)).toMatchObject({ status: 202 });
    side.cluster.erase(resources.pods, { namespace, name: 'busy' });
    await eventually(
      async () => (await side.post(`/v1/leases/${leaseId}/release`, {}, token)).status,
      (status) => status === 200,
    );
  });
});

describe('vouchers', () => {
  test('are stored before they are acknowledged, and only ever grow', async () => {
    side = await startProviderSide();
    const { leaseId, token } = await side.lease();
    side.pass(100);
    const send = async (servedSeconds: number, last = false, signer = keys.session) =>
      side.post(
        `/v1/leases/${leaseId}/vouchers`,
        { servedSeconds, last, signature: await side.voucher(leaseId, servedSeconds, last, signer) },
        token,
      );
    expect(await send(50)).toMatchObject({ status: 200, body: { servedSeconds: 50 } });
    expect(await send(40)).toMatchObject({ status: 200, body: { servedSeconds: 50 } });
    expect(await send(90, false, keys.stranger)).toMatchObject({ status: 422, body: { reason: 'VoucherRefused' } });
    // 100 passed, 60 of skew, and a few of the test itself.
    expect(await send(300)).toMatchObject({
      status: 422,
      body: { reason: 'VoucherRefused', detail: expect.stringContaining('have passed') },
    });
    expect(await send(4000)).toMatchObject({ status: 422, body: { detail: expect.stringContaining('3600') } });
    const full = side.cluster.intercept(({ method, resource }) =>
      method === 'PUT' && resource?.plural === 'secrets'
        ? { code: 403, body: { kind: 'Status', reason: 'Forbidden' } }
        : undefined,
    );
    expect(await send(60)).toMatchObject({ status: 503 });
    full();
    expect(await stateOf(leaseId, token)).toMatchObject({ vouchedSeconds: 50 });
    expect(await send(60)).toMatchObject({ status: 200 });
  });
});
