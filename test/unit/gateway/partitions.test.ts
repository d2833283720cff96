/** A lease of parts of GPUs, from its quote to its end. */
import { afterEach, expect, test } from 'vitest';
import { createLedgers } from '../../../operator/controllers/provider/ledgers.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { eventually, gpuNode, offer, type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
afterEach(() => side?.stop());

const product = 'NVIDIA-H100-80GB-HBM3';
const mig = 'nvidia.com/mig-1g.10gb';
interface Labelled extends KubeObject {
  metadata: KubeObject['metadata'] & { labels: Record<string, string> };
  status: { allocatable: Record<string, string> };
}
const mixedNode = (): KubeObject => {
  const node = gpuNode('node-a', 1) as Labelled;
  node.metadata.labels = {
    ...node.metadata.labels,
    'nvidia.com/gpu.product': product,
    'nvidia.com/gpu.memory': '81559',
    'nvidia.com/mig.strategy': 'mixed',
    [`${mig}.product`]: `${product}-MIG-1g.10gb`,
    [`${mig}.memory`]: '9728',
    [`${mig}.count`]: '3',
  };
  node.status.allocatable[mig] = '3';
  return node;
};
const offers = [offer('whole', { model: 'H100-SXM' }), offer('part', { model: 'H100-SXM', partition: 'MIG-1g.10gb' })];
const ledgerOf = () => createLedgers(side.cluster, 'gpulease-system').get('node-a');

test('is promised, counted, named and taken back as what it is', async () => {
  side = await startProviderSide({ objects: [mixedNode()], offers });
  const lease = await side.lease({ offerName: 'part', gpus: 2 });
  const namespace = tenantNamespace(lease.leaseId);
  expect(lease.quote.node).toMatchObject({ model: 'H100-SXM', partition: 'MIG-1g.10gb', gpus: 2 });
  expect(lease.info).toMatchObject({
    gpus: 2,
    nodeReady: true,
    nodeLabels: { 'nvidia.com/gpu.product': `${product}-MIG-1g.10gb`, 'nvidia.com/gpu.memory': '9728' },
  });
  expect((await ledgerOf()).entries[lease.leaseId]).toMatchObject({ gpus: 2, device: mig });
  expect(side.cluster.object(resources.resourceQuotas, { namespace, name: 'bought' })).toMatchObject({
    spec: { hard: { [`requests.${mig}`]: '2' } },
  });
  expect(side.cluster.object(resources.namespaces, { name: namespace })).toMatchObject({
    metadata: { annotations: { 'gpulease.dev/node': 'node-a', 'gpulease.dev/device': mig } },
  });

  const made = await side.gateway.app.inject({
    method: 'POST',
    url: `/v1/leases/${lease.leaseId}/kube/pods`,
    headers: { authorization: `Bearer ${lease.token}`, 'content-type': 'application/json' },
    payload: JSON.stringify({
      metadata: { name: 'p' },
      spec: { containers: [{ name: 'main', image: 'a', resources: { limits: { 'nvidia.com/gpu': 1 } } }] },
    }),
  });
  expect(made.statusCode).toBe(201);
  expect(side.cluster.object(resources.pods, { namespace, name: 'p' })).toMatchObject({
    spec: { containers: [{ resources: { limits: { [mig]: '1' }, requests: { [mig]: '1' } } }] },
  });

  // Whole GPUs are there as before, and one part is left.
  const seen = (await side.get('/v1/offers')).body as { offers: { name: string; available: number }[] };
  expect(Object.fromEntries(seen.offers.map(({ name, available }) => [name, available]))).toEqual({
    whole: 1,
    part: 1,
  });
  await expect(side.lease({ offerName: 'part', gpus: 2 })).rejects.toThrow('CapacityExhausted');
});

test('whole GPUs are promised in the words that they always were', async () => {
  side = await startProviderSide({ objects: [mixedNode()], offers });
  const { quote, leaseId } = await side.lease({ offerName: 'whole' });
  expect(quote.node).not.toHaveProperty('partition');
  expect((await ledgerOf()).entries[leaseId]).not.toHaveProperty('device');
});

test('GPUs that are cut up anew between quote and escrow are not given for what was promised', async () => {
  side = await startProviderSide({ objects: [mixedNode()], offers });
  const quote = await side.quote({ offerName: 'whole' });
  side.open(quote);
  side.cluster.change<Labelled>(resources.nodes, { name: 'node-a' }, (node) => {
    node.metadata.labels['nvidia.com/gpu.product'] = `${product}-SHARED`;
    node.status.allocatable['nvidia.com/gpu'] = '4';
  });
  await eventually(
    async () => {
      const { offers } = (await side.get('/v1/offers')).body as { offers: { name: string; total: number }[] };
      return offers.find(({ name }) => name === 'whole')?.total;
    },
    (total) => total === 0,
  );
  expect(await side.post('/v1/leases', quote)).toMatchObject({ status: 409, body: { reason: 'CapacityExhausted' } });
});

test('GPUs that are cut up anew under a lease are not what it pays for', async () => {
  side = await startProviderSide({ objects: [mixedNode()], offers });
  const { leaseId, token } = await side.lease({ offerName: 'whole' });
  side.cluster.change<Labelled>(resources.nodes, { name: 'node-a' }, (node) => {
    node.metadata.labels['nvidia.com/gpu.product'] = `${product}-MIG-1g.10gb`;
    node.status.allocatable['nvidia.com/gpu'] = '7';
  });
  await eventually(
    async () => (await side.get(`/v1/leases/${leaseId}`, token)).body as { nodeReady: boolean; nodeMessage?: string },
    ({ nodeReady, nodeMessage }) => !nodeReady && nodeMessage === 'the GPUs of the node are MIG-1g.10gb now, not None',
  );
});

test('GPUs are held until the namespace of their last tenant is gone, though the lease may be settled', async () => {
  side = await startProviderSide();
  const { leaseId, token } = await side.lease({ gpus: 2 });
  const name = tenantNamespace(leaseId);
  side.cluster.change<KubeObject>(resources.namespaces, { name }, (namespace) => {
    namespace.metadata.finalizers = ['example.com/slow'];
  });
  await eventually(
    async () => (await side.post(`/v1/leases/${leaseId}/release`, undefined, token)).body as { state: string },
    ({ state }) => state === 'Ended',
  );
  await eventually(
    async () => (await ledgerOf()).entries[leaseId]?.cleaning,
    (why) => why === `namespace ${name} is being deleted`,
  );
  await expect(side.lease()).rejects.toThrow('CapacityExhausted');
  expect(side.provider.figures()).toMatchObject({ sold: 0, cleaning: 2, free: 0 });
  await eventually(
    () =>
      side.cluster.object<KubeObject & { status?: { conditions?: { message?: string }[] } }>(resources.gpuOffers, {
        name: 'rtx4090',
      })?.status?.conditions?.[0]?.message,
    (message) => message?.includes(`held until their last tenant is gone: node-a: namespace ${name}`) === true,
  );
  side.cluster.change<KubeObject>(resources.namespaces, { name }, (namespace) => {
    namespace.metadata.finalizers = [];
  });
  await eventually(
    async () => Object.keys((await ledgerOf()).entries).length,
    (held) => held === 0,
  );
  expect(await side.lease()).toMatchObject({ info: { state: 'Serving' } });
});
