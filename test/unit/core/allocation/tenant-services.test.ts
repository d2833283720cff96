import { describe, expect, test } from 'vitest';
import { tenantObjects } from '../../../../operator/core/allocation/tenant.ts';
import {
  tenantServiceObject,
  tenantServiceOf,
  tunnelSlice,
  withoutTunnel,
} from '../../../../operator/core/allocation/tenant-services.ts';

const context = { namespace: 'gl-abababababababababab', leaseId: 'ab', family: 'IPv4' as const };
const wanted = { namespace: 'ml', name: 'db', ports: [{ name: 'pg', port: 5432 }, { port: 9187 }] };
const object = (change: Partial<typeof wanted> = {}) => tenantServiceObject({ ...wanted, ...change }, context);

describe('a Service of the consumer at the provider', () => {
  test('has an address, its ports, no selector, and says what it stands for', () => {
    const made = object();
    expect(made).toMatchObject({
      metadata: { namespace: context.namespace, annotations: { 'gpulease.dev/service': 'ml/db' } },
      spec: {
        type: 'ClusterIP',
        ports: [
          { name: 'pg', port: 5432, protocol: 'TCP' },
          { name: 'port-9187', port: 9187, protocol: 'TCP' },
        ],
      },
    });
    expect(made.metadata.name).toMatch(/^svc-db-[0-9a-f]{20}$/);
    expect(made.spec.selector).toBeUndefined();
    expect(tenantServiceOf(made)).toEqual({
      namespace: 'ml',
      name: 'db',
      ports: [
        { name: 'pg', port: 5432 },
        { name: 'port-9187', port: 9187 },
      ],
    });
  });

  test('has its address before it has a port, and none of these is served', () => {
    const made = object({ ports: [] });
    expect(made.spec.ports).toHaveLength(1);
    expect(tenantServiceOf(made)).toEqual({ namespace: 'ml', name: 'db', ports: [] });
  });

  test('is one of two that share a name in two namespaces', () => {
    expect(object().metadata.name).not.toBe(object({ namespace: 'prod' }).metadata.name);
    // And not of two whose names could be put together alike.
    expect(object({ namespace: 'a', name: 'b-c' }).metadata.name).not.toBe(
      object({ namespace: 'a-b', name: 'c' }).metadata.name,
    );
  });

  test('is one that Kubernetes accepts, whatever ports are asked for', () => {
    const ports = [{ port: 80 }, { port: 80 }, { name: 'x', port: 81 }, { name: 'x', port: 82 }];
    expect(object({ ports }).spec.ports?.map(({ port }) => port)).toEqual([80, 81]);
  });

  test('is none of ours when somebody made up its annotation', () => {
    const made = object();
    made.metadata.annotations = { 'gpulease.dev/service': 'kube-system/dns' };
    expect(tenantServiceOf(made)).toBeUndefined();
  });

  test('ends at the tunnel, on the ports where it listens', () => {
    const made = object();
    made.metadata.uid = 'u';
    const of = tenantServiceOf(made)!;
    const place = { address: '10.0.0.7', ports: new Map([['db.ml:5432', 20_001]]), holder: 'h' };
    const slice = tunnelSlice(made, of, place, 'ab')!;
    expect(slice).toMatchObject({
      metadata: {
        labels: {
          'kubernetes.io/service-name': made.metadata.name,
          'endpointslice.kubernetes.io/managed-by': 'gpulease.dev',
        },
        annotations: { 'gpulease.dev/tunnel': 'h' },
        ownerReferences: [{ kind: 'Service', uid: 'u' }],
      },
      addressType: 'IPv4',
      endpoints: [{ addresses: ['10.0.0.7'], conditions: { ready: true } }],
      ports: [{ name: 'pg', port: 20_001 }],
    });
    expect(withoutTunnel(slice).endpoints?.[0]?.conditions?.ready).toBe(false);
    expect(tunnelSlice(made, of, { ...place, ports: new Map() }, 'ab')).toBeUndefined();
  });
});

describe('the tenant', () => {
  const leaseId = `0x${'aB'.repeat(32)}` as const;
  const room = { gpus: 1, cpuMillis: 1000, memoryBytes: 1024 ** 3, ephemeralBytes: 1024 ** 3, pods: 20 };
  const lease = { leaseId, chainId: 31337, escrow: `0x${'1'.repeat(40)}`, room, nodeName: 'node-a' };
  const gateway = { namespace: 'gpulease-system', podLabels: { app: 'gateway' }, cidrs: ['192.0.2.7/32'] };
  const peers = [
    {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'gpulease-system' } },
      podSelector: { matchLabels: { app: 'gateway' } },
    },
    { ipBlock: { cidr: '192.0.2.7/32' } },
  ];
  const specOf = (kind: string, ...args: Parameters<typeof tenantObjects>) =>
    tenantObjects(...args).find(({ object }) => object.kind === kind)!.object.spec as Record<string, never>;

  test('may have no Services until the gateway allows as many as the lease names', () => {
    const quotas = tenantObjects(lease, { deniedCidrs: [] }).filter(({ object }) => object.kind === 'ResourceQuota');
    expect(quotas.map(({ object }) => (object.spec as { hard: Record<string, string> }).hard.services)).toEqual([
      undefined,
      '0',
    ]);
  });

  test('is reached by the gateway, and reaches of it what is its own', () => {
    const { ingress, egress } = specOf('NetworkPolicy', lease, { deniedCidrs: [], gateway }, [20_001, 20_002]);
    expect(ingress).toContainEqual({ from: peers, ports: [{ protocol: 'TCP' }] });
    expect(egress).toContainEqual({
      to: peers,
      ports: [
        { protocol: 'TCP', port: 20_001 },
        { protocol: 'TCP', port: 20_002 },
      ],
    });
  });

  test('reaches nothing of the gateway while it has no tunnel', () => {
    const { ingress, egress } = specOf('NetworkPolicy', lease, { deniedCidrs: [], gateway });
    expect(ingress).toHaveLength(2);
    expect(JSON.stringify(egress)).not.toContain('gpulease-system');
    const without = specOf('NetworkPolicy', lease, { deniedCidrs: [] });
    expect(without.ingress).toHaveLength(1);
  });
});
