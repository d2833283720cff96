/** What of a running pod changes when it is sent anew, and by which way. */
import { describe, expect, test } from 'vitest';
import { type AdmittedPod, admitPod } from '../../../../operator/core/allocation/admit-pod.ts';
import { replacePart, withResourcesOf } from '../../../../operator/core/allocation/replace-pod.ts';

const gib = 1024 ** 3;
const context = {
  namespace: 'gl-0',
  leaseId: 'abc',
  nodeName: 'node-a',
  room: { gpus: 2, cpuMillis: 8000, memoryBytes: 32 * gib, ephemeralBytes: 100 * gib, pods: 10 },
};
const asked = (spec: object = {}, container: object = {}, metadata: object = {}) => ({
  metadata: { name: 'train', ...metadata },
  spec: { containers: [{ name: 'main', image: 'old', ...container }], ...spec },
});
const admitted = (spec: object = {}, container: object = {}, metadata: object = {}): AdmittedPod =>
  admitPod(asked(spec, container, metadata), context, true);
/** As the API server keeps what was admitted first. */
const current = (spec: object = {}, container: object = {}): Record<string, unknown> => {
  const first = admitted(spec, container);
  return {
    ...first,
    metadata: { ...first.metadata, uid: 'u', resourceVersion: '7', labels: { ...first.metadata.labels, kept: 'yes' } },
    spec: { ...first.spec, nodeName: 'node-a', schedulerName: 'default-scheduler' },
    status: { phase: 'Running' },
  };
};
const parts = (there: Record<string, unknown>, wanted: AdmittedPod) =>
  (['ephemeralcontainers', 'pod', 'resize'] as const).filter((part) => replacePart(part, there, wanted) !== undefined);

test('the same pod again is written by no way', () => {
  const resources = { requests: { cpu: '500m', memory: '1Gi' } };
  expect(parts(current({}, { resources }), admitted({}, { resources }))).toEqual([]);
  // Another way to say the same amount is no change.
  const again = { requests: { cpu: '0.5', memory: '1024Mi' } };
  expect(parts(current({}, { resources }), admitted({}, { resources: again }))).toEqual([]);
});

test('images, the deadline and our annotations are changed, and nothing else with them', () => {
  const wanted = admitted(
    { activeDeadlineSeconds: 9 },
    { image: 'new', env: [{ name: 'EVIL', value: '1' }] },
    { annotations: { 'gpulease.dev/a': 'b' } },
  );
  expect(parts(current(), wanted)).toEqual(['pod']);
  expect(replacePart('pod', current(), wanted)).toMatchObject({
    metadata: { uid: 'u', resourceVersion: '7', labels: { kept: 'yes' }, annotations: { 'gpulease.dev/a': 'b' } },
    spec: {
      nodeName: 'node-a',
      schedulerName: 'default-scheduler',
      activeDeadlineSeconds: 9,
      containers: [{ name: 'main', image: 'new', env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'void' }] }],
    },
  });
});

describe('resizing', () => {
  const resources = { requests: { cpu: '1', memory: '1Gi', 'ephemeral-storage': '1Gi' }, limits: { cpu: '2' } };
  const containerOf = (pod: Record<string, unknown> | undefined) =>
    (pod?.spec as { containers: { resources: unknown }[] }).containers[0]!.resources;

  test('changes cpu and memory alone', () => {
    const wanted = admitted(
      {},
      {
        resources: {
          requests: { cpu: '1500m', memory: '2Gi', 'ephemeral-storage': '5Gi' },
          limits: { cpu: '3', 'ephemeral-storage': '6Gi' },
        },
      },
    );
    const there = current({}, { resources });
    expect(parts(there, wanted)).toEqual(['resize']);
    expect(containerOf(replacePart('resize', there, wanted))).toEqual({
      requests: { cpu: '1500m', memory: '2Gi', 'ephemeral-storage': '1Gi' },
      limits: { cpu: '3', memory: '32Gi', 'ephemeral-storage': '100Gi' },
    });
  });

  test('caps the limit at the lease', () => {
    const wanted = admitted({}, { resources: { ...resources, limits: { cpu: '64' } } });
    expect(containerOf(replacePart('resize', current({}, { resources }), wanted))).toMatchObject({
      limits: { cpu: '8' },
    });
  });

  test('changes sidecars, and no container that has had its turn', () => {
    const init = (cpu: string, restartPolicy?: string) => ({
      initContainers: [
        { name: 'i', image: 'x', resources: { requests: { cpu } }, ...(restartPolicy && { restartPolicy }) },
      ],
    });
    expect(parts(current(init('1')), admitted(init('2')))).toEqual([]);
    expect(parts(current(init('1', 'Always')), admitted(init('2', 'Always')))).toEqual(['resize']);
  });

  test('changes the pod as a whole, and the limits of its containers with it', () => {
    const whole = (cpu: string) => ({ resources: { requests: { cpu: '1' }, limits: { cpu } } });
    const next = replacePart('resize', current(whole('2')), admitted(whole('4')));
    expect(next?.spec).toMatchObject({
      resources: { requests: { cpu: '1' }, limits: { cpu: '4', memory: '32Gi' } },
      containers: [{ resources: { limits: { cpu: '4' } } }],
    });
  });

  test('that was refused leaves the rest of the change to be admitted with what the pod has', () => {
    const there = current({}, { resources });
    const body = asked({}, { image: 'new', resources: { requests: { cpu: '100' } } });
    expect(() => admitPod(body, context, true)).toThrow(/more than the lease has/);
    const rest = admitPod(withResourcesOf(there, body), context, true);
    expect(parts(there, rest)).toEqual(['pod']);
  });
});

describe('ephemeral containers', () => {
  const debug = { name: 'debug', image: 'busybox', stdin: true, tty: true, targetContainerName: 'main' };
  test('are added to those that are there, without devices', () => {
    const there = current({ ephemeralContainers: [{ name: 'first', image: 'x' }] });
    const wanted = admitted({ ephemeralContainers: [{ name: 'first', image: 'changed' }, debug] });
    expect(parts(there, wanted)).toEqual(['ephemeralcontainers']);
    const { spec } = replacePart('ephemeralcontainers', there, wanted) as {
      spec: { ephemeralContainers: { name: string; image: string; env?: unknown; resources?: unknown }[] };
    };
    expect(spec.ephemeralContainers.map(({ name, image }) => [name, image])).toEqual([
      ['first', 'x'],
      ['debug', 'busybox'],
    ]);
    expect(spec.ephemeralContainers[1]).toMatchObject({
      ...debug,
      env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'void' }],
    });
    expect(spec.ephemeralContainers[1]).not.toHaveProperty('resources');
  });

  test('are never taken away', () => {
    expect(parts(current({ ephemeralContainers: [debug] }), admitted())).toEqual([]);
  });

  test.each<[string, object]>([
    ['privileged', { securityContext: { privileged: true } }],
    ['to trace processes', { securityContext: { capabilities: { add: ['SYS_PTRACE'] } } }],
    ['with resources', { resources: { limits: { 'nvidia.com/gpu': '1' } } }],
    ['with devices by variable', { env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }] }],
  ])('are refused %s', (_, more) => {
    expect(() => admitted({ ephemeralContainers: [{ ...debug, ...more }] })).toThrow(/ephemeralContainers\[0\]/);
  });

  test('do not come with a new pod', () => {
    expect(() => admitPod(asked({ ephemeralContainers: [debug] }), context)).toThrow(/create it without/);
  });
});
