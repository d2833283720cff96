/** Where a tenant is: what its namespace says, and what its pods show. */
import { expect, test } from 'vitest';
import { annotations } from '../../../../operator/api/labels.ts';
import { createTenants } from '../../../../operator/controllers/provider/tenants.ts';
import { tenantNamespace } from '../../../../operator/core/allocation/record.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

const leaseId = `0x${'a1'.repeat(32)}` as const;
const name = tenantNamespace(leaseId);

async function placeOf(given: { readonly saysNode?: string | 'nothing'; readonly podOn?: string }): Promise<string> {
  const cluster = fakeCluster();
  const { saysNode, podOn } = given;
  if (saysNode !== undefined)
    cluster.seed(resources.namespaces, {
      ...{ apiVersion: 'v1', kind: 'Namespace' },
      metadata: { name, annotations: saysNode === 'nothing' ? {} : { [annotations.tenantNode]: saysNode } },
    } as KubeObject);
  if (podOn !== undefined)
    cluster.seed(resources.pods, {
      ...{ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'p', namespace: name }, spec: { nodeName: podOn } },
    } as KubeObject);
  const tenants = createTenants({ cluster, now: () => new Date(0), log: silentLog, tenant: { deniedCidrs: [] } });
  return tenants.place(leaseId, 'gpu-1');
}

test.each<[string, Parameters<typeof placeOf>[0], string]>([
  ['gone, where there is no namespace', {}, 'gone'],
  ['here, where its namespace says so', { saysNode: 'gpu-1' }, 'here'],
  ['here, where its namespace says nothing', { saysNode: 'nothing' }, 'here'],
  ['elsewhere, where its namespace says so', { saysNode: 'gpu-2', podOn: 'gpu-2' }, 'elsewhere'],
  ['here, where a pod of it is, whatever its namespace says', { saysNode: 'gpu-2', podOn: 'gpu-1' }, 'here'],
])('it is %s', async (_name, given, place) => {
  expect(await placeOf(given)).toBe(place);
});
