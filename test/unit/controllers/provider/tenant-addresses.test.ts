import { beforeEach, expect, test } from 'vitest';
import {
  createTenantAddresses,
  type TenantAddresses,
} from '../../../../operator/controllers/provider/tenant-addresses.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { type ManualClock, manualClock } from '../../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../../support/fake-cluster.ts';

const namespace = 'gl-00112233445566778899';
let cluster: FakeCluster;
let clock: ManualClock;
let addresses: TenantAddresses;

const podAt = (name: string, ip: string, more: { inNamespace?: string; phase?: string; hostNetwork?: boolean } = {}) =>
  cluster.seed(resources.pods, {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: more.inNamespace ?? namespace },
    spec: { containers: [{ name: 'c', image: 'i' }], hostNetwork: more.hostNetwork },
    status: { phase: more.phase ?? 'Running', podIPs: [{ ip }] },
  } as KubeObject);

beforeEach(() => {
  cluster = fakeCluster();
  clock = manualClock();
  addresses = createTenantAddresses(cluster, clock);
});

test('a pod of the tenant is known by its address, and nobody else', async () => {
  podAt('mine', '10.0.0.1');
  podAt('other', '10.0.0.2', { inNamespace: 'gl-99887766554433221100' });
  podAt('over', '10.0.0.3', { phase: 'Succeeded' });
  podAt('on-its-host', '10.0.0.4', { hostNetwork: true });
  expect(await addresses.has(namespace, '10.0.0.1')).toBe(true);
  for (const address of ['10.0.0.2', '10.0.0.3', '10.0.0.4', '10.0.0.5', '', 'x'])
    expect(await addresses.has(namespace, address), address).toBe(false);
});

test('what was heard holds for a second', async () => {
  expect(await addresses.has(namespace, '10.0.0.1')).toBe(false);
  podAt('mine', '10.0.0.1');
  expect(await addresses.has(namespace, '10.0.0.1')).toBe(false);
  await clock.advance(1000);
  expect(await addresses.has(namespace, '10.0.0.1')).toBe(true);
});
