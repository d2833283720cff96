import { expect, test } from 'vitest';
import type { Pod } from '../../../operator/core/node/pod.ts';
import type { KubeObject } from '../../../operator/engine/types.ts';
import { alikeParts } from '../../../operator/kubelet/alike.ts';

const podOf = (name: string, cpu = '1'): Pod & KubeObject => ({
  metadata: { name, namespace: 'team', labels: { app: 'web' }, annotations: { own: name } },
  spec: {
    nodeName: `node-of-${name}`,
    tolerations: [{ key: 'gpulease.dev/leased', operator: 'Exists' }],
    containers: [
      { name: 'main', image: 'web:1', resources: { requests: { cpu } }, volumeMounts: [{ name, mountPath: '/token' }] },
    ],
    volumes: [
      { name, projected: { sources: [{ configMap: { name: 'kube-root-ca.crt' } }] } },
      { name: 'data', emptyDir: {} },
    ],
  },
  status: { phase: 'Running' },
});

test('a pod keeps its content, and shares with its like what both have', () => {
  const keep = alikeParts();
  const [first, second] = [keep(podOf('a')), keep(podOf('b'))];
  expect(first).toEqual(podOf('a'));
  expect(second).toEqual(podOf('b'));
  expect(second.spec.tolerations).toBe(first.spec.tolerations);
  expect(second.metadata.labels).toBe(first.metadata.labels);
  expect(second.spec.containers[0]?.resources).toBe(first.spec.containers[0]?.resources);
  expect(second.spec.volumes?.[0]?.projected).toBe(first.spec.volumes?.[0]?.projected);
});

test('what differs is its own', () => {
  const keep = alikeParts();
  keep(podOf('a'));
  expect(keep(podOf('b', '2'))).toEqual(podOf('b', '2'));
  const none = { metadata: { name: 'bare', namespace: 'team' }, spec: { containers: [] } };
  expect(Object.keys(keep(none).spec)).toEqual(['containers']);
});

test('of many Deployments those in use are remembered', () => {
  const keep = alikeParts(20);
  const first = keep(podOf('a'));
  for (let i = 0; i < 50; i++) {
    keep({
      metadata: { name: `n${i}`, namespace: 'team', labels: { app: `a${i}` } },
      spec: { containers: [], nodeSelector: { of: `n${i}` } },
    });
    expect(keep(podOf('b')).spec.tolerations).toBe(first.spec.tolerations);
  }
});
