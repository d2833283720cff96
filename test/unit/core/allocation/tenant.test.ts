import { describe, expect, test } from 'vitest';
import { guardObjects } from '../../../../operator/core/allocation/guard.ts';
import { checkQuery, kubeTarget, upstreamPath } from '../../../../operator/core/allocation/kube-path.ts';
import { tenantNamespace } from '../../../../operator/core/allocation/record.ts';
import { gatewayRole, tenantLimits, tenantRole } from '../../../../operator/core/allocation/rights.ts';
import { escrowOfTenant, tenantObjects } from '../../../../operator/core/allocation/tenant.ts';

const leaseId = `0x${'aB'.repeat(32)}` as const;
const room = { gpus: 2, cpuMillis: 7500, memoryBytes: 8 * 1024 ** 3, ephemeralBytes: 1024 ** 3, pods: 20 };
const escrow = `0x${'Ee'.repeat(20)}` as const;
const lease = { leaseId, chainId: 42161, escrow, room, nodeName: 'node-a' };
const options = { deniedCidrs: ['203.0.113.0/24', '2001:db8::/32'] };
const objects = tenantObjects(lease, options);
const find = (kind: string) =>
  objects.find(({ object }) => object.kind === kind)!.object as unknown as Record<string, never>;
const quotaOf = (name: string, of = objects) => {
  const quota = of.find(({ object }) => object.kind === 'ResourceQuota' && object.metadata.name === name);
  return (quota!.object.spec as { hard: Record<string, string> }).hard;
};

describe('a tenant', () => {
  test('is a namespace of its own, named after the lease, under baseline pod security', () => {
    expect(tenantNamespace(leaseId)).toBe('gl-abababababababababab');
    expect(find('Namespace')).toMatchObject({
      metadata: {
        name: 'gl-abababababababababab',
        labels: { 'pod-security.kubernetes.io/enforce': 'baseline', 'gpulease.dev/tenant': 'true' },
      },
    });
    for (const { object } of objects.slice(1)) expect(object.metadata.namespace).toBe(tenantNamespace(leaseId));
  });

  test('tells where its money is, should its record be lost', () => {
    const noted = (find('Namespace').metadata as unknown as { annotations: Record<string, string> }).annotations;
    expect(escrowOfTenant(noted)).toEqual({ chainId: 42161, escrow, leaseId: leaseId.toLowerCase() });
    for (const wrong of ['', '1/0x12/0x34', `x/${escrow}/${leaseId}`, `1/${escrow}/${leaseId}/more`])
      expect(escrowOfTenant({ 'gpulease.dev/escrow': wrong }), wrong).toBeUndefined();
    expect(escrowOfTenant(undefined)).toBeUndefined();
  });

  test('of a trusted consumer has no pod security below the gateway', () => {
    const [first, ...others] = tenantObjects({ ...lease, tenantProfile: 'trusted' }, options);
    expect(first!.object.metadata.labels).toMatchObject({ 'pod-security.kubernetes.io/enforce': 'privileged' });
    expect(others).toEqual(objects.slice(1));
  });

  test('has exactly what was leased', () => {
    expect(quotaOf('bought')).toMatchObject({
      'requests.nvidia.com/gpu': '2',
      'requests.cpu': '7500m',
      'requests.memory': '8Gi',
      pods: '20',
      persistentvolumeclaims: '0',
      'requests.storage': '0',
    });
    expect(quotaOf('lease')).toMatchObject({ services: '0' });
  });

  test('stores as much as its provider let it when the lease began', () => {
    const storage = { className: 'fast', bytes: 50 * 1024 ** 3 };
    const quota = quotaOf('bought', tenantObjects({ ...lease, storage }, options));
    expect(quota).toMatchObject({ persistentvolumeclaims: '100', 'requests.storage': '50Gi' });
  });

  test('has nothing that was paid for in the quota that its gateway may raise', () => {
    expect(
      Object.keys(quotaOf(tenantLimits)).filter((name) => /cpu|memory|gpu|pods|storage|claims/.test(name)),
    ).toEqual([]);
  });

  test('may read and write its own objects, and nothing that leads further', () => {
    const { rules } = tenantRole;
    const all = rules.flatMap(({ resources }) => resources);
    expect(all.sort()).toEqual([
      'configmaps',
      'events',
      'persistentvolumeclaims',
      'pods',
      'pods/attach',
      'pods/ephemeralcontainers',
      'pods/exec',
      'pods/log',
      'pods/portforward',
      'pods/resize',
      'secrets',
    ]);
    expect(rules.flatMap(({ verbs }) => verbs)).not.toContain('*');
    expect(rules.flatMap(({ verbs }) => verbs)).not.toContain('patch');
  });

  test('is acted for by a gateway that has none of its rights, and can make none but its token', () => {
    const held = gatewayRole.rules.flatMap(({ resources, verbs }) =>
      resources.flatMap((resource) => verbs.map((verb) => `${verb} ${resource}`)),
    );
    for (const right of [
      'create pods',
      'create pods/exec',
      'get secrets',
      'list secrets',
      'create clusterroles',
      'escalate clusterroles',
    ]) {
      expect(held).not.toContain(right);
    }
    const named = (resource: string) =>
      gatewayRole.rules.find(({ resources }) => resources.includes(resource))!.resourceNames;
    expect(named('serviceaccounts/token')).toEqual(['tenant']);
    expect(named('clusterroles')).toEqual(['gpulease-tenant', 'gpulease-gateway-in-tenant']);
  });

  test('reaches itself, DNS and the internet, not the provider’s networks', () => {
    const { spec } = find('NetworkPolicy') as unknown as {
      spec: { ingress: object; egress: { to: { ipBlock?: { cidr: string; except: string[] } }[] }[] };
    };
    expect(spec.ingress).toEqual([{ from: [{ podSelector: {} }] }]);
    const [v4, v6] = spec.egress.at(-1)!.to.map(({ ipBlock }) => ipBlock!);
    expect(v4!.except).toEqual(
      expect.arrayContaining(['10.0.0.0/8', '169.254.0.0/16', '192.168.0.0/16', '203.0.113.0/24']),
    );
    expect(v6!.except).toEqual(expect.arrayContaining(['fc00::/7', '2001:db8::/32']));
  });

  test('is exempt from the policy that guards the GPUs', () => {
    expect(guardObjects().binding.spec.matchResources.namespaceSelector.matchExpressions).toEqual([
      { key: 'gpulease.dev/tenant', operator: 'DoesNotExist' },
    ]);
  });
});

describe('paths of the proxy', () => {
  test.each([
    ['pods', ['GET', 'POST']],
    ['pods/a-1', ['GET', 'PUT', 'DELETE']],
    ['pods/a/log', ['GET']],
    ['pods/a/exec', ['GET', 'POST']],
    ['configmaps/kube-root-ca.crt', ['GET', 'PUT', 'DELETE']],
    ['events', ['GET']],
    ['persistentvolumeclaims', ['GET', 'POST']],
    ['persistentvolumeclaims/a', ['GET', 'DELETE']],
    ['node', ['GET']],
  ])('%s', (path, methods) => {
    expect(kubeTarget(path)?.methods).toEqual(methods);
  });

  test.each([
    '',
    'pods/',
    'pods//log',
    'pods/a/b',
    'pods/a/log/x',
    'pods/../x',
    'pods/..',
    'pods/A',
    'pods/a..b',
    'configmaps/a/log',
    'events/x',
    'persistentvolumeclaims/a/status',
    'persistentvolumes',
    'persistentvolumes/a',
    'node/status',
    'nodes',
    'serviceaccounts',
    'pods/a%2fb',
    'pods/a?x',
  ])('"%s" does not exist', (path) => {
    expect(kubeTarget(path)).toBeUndefined();
  });

  test('are put together anew', () => {
    expect(upstreamPath('gl-0', kubeTarget('pods/a/log')!)).toBe('/api/v1/namespaces/gl-0/pods/a/log');
  });

  test.each([
    ['pods', 'GET', 'watch=true&resourceVersion=5&labelSelector=a%3Db', undefined],
    ['pods', 'GET', 'watch=maybe', 'watch'],
    ['pods', 'POST', 'dryRun=All', 'dryRun'],
    ['pods/a', 'DELETE', 'gracePeriodSeconds=0&uid=x', undefined],
    ['pods/a', 'DELETE', 'gracePeriodSeconds=-1', 'gracePeriodSeconds'],
    ['pods/a/log', 'GET', 'follow=true&tailLines=5&container=main', undefined],
    ['pods/a/log', 'GET', 'insecureSkipTLSVerifyBackend=true', 'insecureSkipTLSVerifyBackend'],
    ['pods/a/exec', 'POST', 'command=sh&command=-c&command=a%20b&stdin=1', undefined],
    ['pods/a/attach', 'POST', 'command=sh', 'command'],
    ['pods/a/portforward', 'GET', 'ports=80,443', undefined],
    ['pods/a', 'GET', '__proto__=1', '__proto__'],
  ])('%s %s ?%s', (path, method, query, refused) => {
    const result = checkQuery(kubeTarget(path)!, method, new URLSearchParams(query));
    expect('refused' in result ? result.refused : undefined).toBe(refused);
    if ('query' in result)
      expect(new URLSearchParams(result.query.map(([key, value]): [string, string] => [key, value])).toString()).toBe(
        new URLSearchParams(query).toString(),
      );
  });
});
