/** A tenant's claims to the provider's storage, through the gateway. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { parseGatewayOptions } from '../../../operator/cmd/gateway-options.ts';
import { UsageError } from '../../../operator/cmd/options.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { type ProviderSide, startProviderSide } from '../../support/provider-side.ts';

let side: ProviderSide;
afterEach(() => side?.stop());

const storage = { className: 'fast', bytes: 10 * 1024 ** 3 };
const claim = (name = 'data-1', size = '1Gi') => ({
  metadata: { name },
  spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: size } } },
});
type Lease = Awaited<ReturnType<ProviderSide['lease']>>;

async function ask(lease: Lease, method: 'GET' | 'POST' | 'PUT' | 'DELETE', path: string, body?: object) {
  const response = await side.gateway.app.inject({
    method,
    url: `/v1/leases/${lease.leaseId}/kube/${path}`,
    headers: { authorization: `Bearer ${lease.token}`, ...(body ? { 'content-type': 'application/json' } : {}) },
    payload: body ? JSON.stringify(body) : undefined,
  });
  return { status: response.statusCode, body: JSON.parse(response.body) as Record<string, unknown> };
}

const quota = (lease: Lease) =>
  side.cluster.object<KubeObject & { spec: { hard: Record<string, string> } }>(resources.resourceQuotas, {
    namespace: tenantNamespace(lease.leaseId),
    name: 'bought',
  })?.spec.hard;

test('a claim is made in the tenant’s namespace, as its account, and taken away', async () => {
  side = await startProviderSide({ storage });
  const lease = await side.lease();
  const namespace = tenantNamespace(lease.leaseId);
  expect(lease.info).toMatchObject({ storage: '10Gi' });
  expect(quota(lease)).toMatchObject({ 'requests.storage': '10Gi', persistentvolumeclaims: '100' });

  expect(await ask(lease, 'POST', 'persistentvolumeclaims', claim())).toMatchObject({ status: 201 });
  expect(side.cluster.object(resources.persistentVolumeClaims, { namespace, name: 'data-1' })).toMatchObject({
    spec: { storageClassName: 'fast', accessModes: ['ReadWriteOnce'] },
  });
  expect(side.cluster.requests.at(-1)).toMatchObject({ as: expect.any(String) });
  expect(await ask(lease, 'POST', 'persistentvolumeclaims', claim())).toMatchObject({
    status: 409,
    body: { reason: 'AlreadyExists' },
  });
  expect(await ask(lease, 'GET', 'persistentvolumeclaims/data-1')).toMatchObject({ status: 200 });
  expect(await ask(lease, 'PUT', 'persistentvolumeclaims/data-1', claim('data-1', '9Gi'))).toMatchObject({
    status: 405,
  });
  expect(await ask(lease, 'DELETE', 'persistentvolumeclaims/data-1')).toMatchObject({ status: 200 });
  expect(await ask(lease, 'GET', 'persistentvolumeclaims/data-1')).toMatchObject({
    status: 404,
    body: { reason: 'NotFound' },
  });
});

test('a claim past the quota is told that there is no room', async () => {
  side = await startProviderSide({ storage });
  const lease = await side.lease();
  side.cluster.intercept((request) =>
    request.method === 'POST' && request.resource?.plural === 'persistentvolumeclaims'
      ? { code: 403, body: { kind: 'Status', reason: 'Forbidden', message: 'exceeded quota: lease, requested: …' } }
      : undefined,
  );
  expect(await ask(lease, 'POST', 'persistentvolumeclaims', claim())).toMatchObject({
    status: 409,
    body: { reason: 'CapacityExhausted' },
  });
});

test('a provider that offers none says so, and its tenants have a quota of none', async () => {
  side = await startProviderSide();
  const lease = await side.lease();
  expect(lease.info).not.toHaveProperty('storage');
  expect(quota(lease)).toMatchObject({ 'requests.storage': '0', persistentvolumeclaims: '0' });
  expect(await ask(lease, 'POST', 'persistentvolumeclaims', claim())).toMatchObject({
    status: 422,
    body: { detail: expect.stringContaining('offers no storage') },
  });
});

test('what a lease may store is what was offered when it began, whatever the gateway is told later', async () => {
  side = await startProviderSide({ storage });
  const lease = await side.lease();
  const { cluster, chain } = side;
  await side.stop();
  side = await startProviderSide({ cluster, chain });
  expect(await side.get(`/v1/leases/${lease.leaseId}`, lease.token)).toMatchObject({ body: { storage: '10Gi' } });
  expect(await ask(lease, 'POST', 'persistentvolumeclaims', claim())).toMatchObject({ status: 201 });
});

test('what leases may store is said in two flags', () => {
  const dir = mkdtempSync(join(tmpdir(), 'gpulease-storage-'));
  try {
    const rails = join(dir, 'rails.json');
    const address = `0x${'a'.repeat(40)}`;
    writeFileSync(rails, JSON.stringify([{ chainId: 1, escrow: address, token: address }]));
    const chain = ['--chain', '1=http://127.0.0.1:1', '--rails', rails];
    const storage = ['--storage-class', 'fast', '--max-storage', '500Gi'];
    expect(parseGatewayOptions(args(...chain, ...storage), {})?.storage).toEqual({
      className: 'fast',
      bytes: 500 * 1024 ** 3,
    });
    expect(parseGatewayOptions(args(...chain), {})?.storage).toBeUndefined();
  } finally {
    rmSync(dir, { recursive: true });
  }
});

const args = (...more: string[]) => ['--key-file', 'k', '--public-url', 'https://gpu.example.com', ...more];
test.each([
  ['a class without a size', ['--storage-class', 'fast'], /given together/],
  ['a size without a class', ['--max-storage', '10Gi'], /given together/],
  ['a size that is none', ['--storage-class', 'fast', '--max-storage', 'much'], /such as 100Gi/],
  ['a size of nothing', ['--storage-class', 'fast', '--max-storage', '0'], /such as 100Gi/],
  ['a class that is a path', ['--storage-class', '../x', '--max-storage', '1Gi'], /name of a StorageClass/],
])('a gateway is not started with %s', (_, more, said) => {
  expect(() => parseGatewayOptions(args(...more), {})).toThrow(UsageError);
  expect(() => parseGatewayOptions(args(...more), {})).toThrow(said);
});
