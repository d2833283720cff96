/** What counts against a node that is for rent. */
import { expect, test } from 'vitest';
import { createStock } from '../../../../operator/controllers/provider/stock.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

const node = {
  metadata: {
    name: 'node-a',
    labels: { 'gpulease.dev/offered': 'true', 'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090' },
  },
  status: {
    allocatable: { cpu: '10', memory: '10Gi', 'ephemeral-storage': '100Gi', pods: '110', 'nvidia.com/gpu': '2' },
    conditions: [{ type: 'Ready', status: 'True' }],
  },
} as KubeObject;
const pod = (name: string, namespace: string, labels: Record<string, string> = {}) =>
  ({
    metadata: { name, namespace, labels },
    spec: { nodeName: 'node-a', containers: [{ name: 'main', resources: { requests: { cpu: '1' } } }] },
    status: { phase: 'Running' },
  }) as KubeObject;

const tenant = 'gl-0123456789abcdef0123';

test('pods of the provider count, pods of tenants do not and are not even watched', async () => {
  const cluster = fakeCluster({ name: 'provider' });
  cluster.seed(resources.nodes, node);
  cluster.seed(
    resources.pods,
    pod('daemon', 'kube-system'),
    pod('leased', tenant, { 'gpulease.dev/lease-id': 'a1' }),
    pod('by-hand', tenant),
  );
  const stock = createStock(cluster, 'gpulease-system', silentLog);
  const stop = new AbortController();
  const running = stock.run(stop.signal);
  await stock.waitForSync(stop.signal);

  expect(
    stock.pods
      .list()
      .map(({ metadata }) => metadata.name)
      .toSorted(),
  ).toEqual(['by-hand', 'daemon']);
  // Ten, less one of the daemon, less a twentieth.
  const cpuMillis = 10_000 - 1_000 - 500;
  expect(stock.onOffer().map(({ sellable }) => sellable.cpuMillis)).toEqual([cpuMillis]);
  expect((await stock.sellableNow('node-a', 'nvidia.com/gpu'))?.cpuMillis).toBe(cpuMillis);
  stop.abort(new Error('over'));
  await running;
});

test('what is free is counted anew only for pods that hold room on a node for rent', async () => {
  const cluster = fakeCluster({ name: 'provider' });
  const bare = { ...node, metadata: { name: 'node-b' } };
  cluster.seed(resources.nodes, node, bare);
  const stock = createStock(cluster, 'gpulease-system', silentLog);
  const stop = new AbortController();
  const running = stock.run(stop.signal);
  await stock.waitForSync(stop.signal);

  const there = pod('daemon', 'kube-system');
  const change = (changes: object) => ({ ...there, ...changes }) as typeof there;
  const on = (nodeName: string | undefined) => change({ spec: { nodeName, containers: [] } });
  const updated = (object: KubeObject) => ({ type: 'updated' as const, object, old: there });
  expect(stock.countsAnew({ type: 'added', object: there })).toBe(true);
  expect(stock.countsAnew({ type: 'added', object: on(undefined) })).toBe(false);
  expect(stock.countsAnew({ type: 'added', object: on('node-b') })).toBe(false);
  expect(stock.countsAnew({ type: 'added', object: pod('by-hand', tenant) })).toBe(false);
  expect(stock.countsAnew(updated(change({ metadata: { ...there.metadata, resourceVersion: '9' } })))).toBe(false);
  expect(stock.countsAnew(updated(change({ status: { phase: 'Succeeded' } })))).toBe(true);
  // Resized in place.
  const wants = { requests: { cpu: '2' } };
  expect(
    stock.countsAnew(
      updated(change({ spec: { nodeName: 'node-a', containers: [{ name: 'main', resources: wants }] } })),
    ),
  ).toBe(true);
  expect(stock.countsAnew({ type: 'deleted', object: there, old: there })).toBe(true);
  stop.abort(new Error('over'));
  await running;
});
