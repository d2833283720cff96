/** What the right to watch one object is, on a real API server: a role that names a Secret lets it be watched, and no other. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { systemClock } from '../../operator/engine/clock.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { createFollowedObjects, type FollowedRef } from '../../operator/kubelet/followed.ts';
import { eventually, planes, type TestNamespace, testNamespace } from '../support/clusters.ts';

let cluster: Cluster;
let limited: Cluster;
let namespace: TestNamespace;
const stops: (() => void)[] = [];

beforeAll(async () => {
  const { consumer } = await planes();
  cluster = connectCluster({ name: 'consumer', kubeconfig: consumer.kubeconfigPath });
  namespace = await testNamespace(consumer, 'followed');
  const inside = (name: string) => ({ name, namespace: namespace.name });
  await cluster.create(resources.serviceAccounts, { metadata: inside('operator') });
  await cluster.create(resources.roles, {
    metadata: inside('operator'),
    rules: [
      { apiGroups: [''], resources: ['secrets'], verbs: ['get'] },
      { apiGroups: [''], resources: ['secrets'], resourceNames: ['keys'], verbs: ['list', 'watch'] },
    ],
  } as KubeObject);
  await cluster.create(resources.roleBindings, {
    metadata: inside('operator'),
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'operator' },
    subjects: [{ kind: 'ServiceAccount', name: 'operator', namespace: namespace.name }],
  } as KubeObject);
  const { status } = await cluster.createSubresource<{ status: { token: string } }>(
    resources.serviceAccounts,
    inside('operator'),
    'token',
    { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 600 } },
  );
  limited = { ...cluster, raw: (request, _, signal) => cluster.raw(request, { as: status.token }, signal) };
});
afterAll(async () => {
  for (const stop of stops) stop();
  await namespace?.remove();
});

test('by its name it is watched; without a name, or by another, it is not', async () => {
  const followed = createFollowedObjects({ cluster: limited, clock: systemClock, log: silentLog });
  let changes = 0;
  const ref = (name: string): FollowedRef => ({ kind: 'Secret', namespace: namespace.name, name });
  const keys = followed.follow(ref('keys'), () => changes++);
  const other = followed.follow(ref('other'), () => undefined);
  stops.push(keys.stop, other.stop);
  await eventually(async () => keys.live, 'the watch of the Secret that the role names');
  const before = changes;
  await cluster.create(resources.secrets, { metadata: { name: 'keys', namespace: namespace.name } });
  await eventually(async () => changes > before, 'its change to be told');
  expect(other.live).toBe(false);
  const all = await limited.raw({ method: 'GET', path: `/api/v1/namespaces/${namespace.name}/secrets?watch=true` });
  expect(all.statusCode).toBe(403);
  all.resume();
});
