import { describe, expect, it } from 'vitest';
import { applyManifests } from '../../../../operator/adapters/kube/apply-manifests.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { manualClock } from '../../../support/clock.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

const widgets = { group: 'test.dev', version: 'v1', plural: 'widgets', kind: 'Widget', namespaced: true };
const crd = {
  apiVersion: 'apiextensions.k8s.io/v1',
  kind: 'CustomResourceDefinition',
  metadata: { name: 'widgets.test.dev' },
};
const widget = {
  apiVersion: 'test.dev/v1',
  kind: 'Widget',
  metadata: { name: 'w', namespace: 'a' },
  spec: { size: 1 },
};
const namespace = { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'a' } };

/** Serves discovery, and the custom kind only once its definition has been there for a while. */
function start() {
  const clock = manualClock();
  const cluster = fakeCluster({ clock, resources: [widgets] });
  let servedAtMs = Number.POSITIVE_INFINITY;
  const list = (entries: readonly { plural: string; kind: string; namespaced: boolean }[]) => ({
    resources: entries.map(({ plural, kind, namespaced }) => ({ name: plural, kind, namespaced })),
  });
  cluster.intercept((request) => {
    if (request.method === 'PATCH' && request.resource?.plural === 'customresourcedefinitions')
      servedAtMs = clock.monotonicMs() + 1000;
    if (request.path === '/api/v1') return { code: 200, body: list([resources.namespaces, resources.secrets]) };
    if (request.path === '/apis/apiextensions.k8s.io/v1') return { code: 200, body: list([resources.crds]) };
    if (request.path === '/apis/test.dev/v1' && clock.monotonicMs() >= servedAtMs)
      return { code: 200, body: list([widgets, { ...widgets, plural: 'widgets/status' }]) };
    if (request.resource?.plural === 'customresourcedefinitions' && request.method === 'GET')
      return {
        code: 200,
        body: {
          metadata: crd.metadata,
          status: {
            conditions: [{ type: 'Established', status: clock.monotonicMs() >= servedAtMs ? 'True' : 'False' }],
          },
        },
      };
    return undefined;
  });
  return { clock, cluster };
}

async function within<T>(clock: ReturnType<typeof manualClock>, promise: Promise<T>): Promise<T> {
  let over = false;
  const end = () => {
    over = true;
  };
  promise.then(end, end);
  while (!over) await clock.advance(500);
  return promise;
}

describe('applying manifests', () => {
  it('takes them in any order, and waits for new kinds', async () => {
    const { clock, cluster } = start();
    const stored = await within(
      clock,
      applyManifests(cluster, [widget, null, { kind: 'List', items: [namespace, crd] }], { fieldManager: 'test' }),
    );
    expect(stored.map((object) => object.kind)).toEqual(['Widget', 'Namespace', 'CustomResourceDefinition']);
    expect(cluster.writes.map((request) => request.resource?.kind)).toEqual([
      'Namespace',
      'CustomResourceDefinition',
      'Widget',
    ]);
    const before = cluster.revision;
    await within(clock, applyManifests(cluster, [widget, namespace], { fieldManager: 'test' }));
    expect(cluster.revision).toBe(before);
  });

  it('says what is not served', async () => {
    const { clock, cluster } = start();
    await expect(
      within(clock, applyManifests(cluster, [widget], { fieldManager: 'test', timeoutSeconds: 5 })),
    ).rejects.toThrow('fake serves no test.dev/v1 Widget; is its CRD installed?');
  });

  it('refuses what is no manifest', async () => {
    const { cluster } = start();
    await expect(applyManifests(cluster, [{ kind: 'Pod' }], { fieldManager: 'test' })).rejects.toThrow(
      'not a manifest',
    );
  });
});
