import { describe, expect, test } from 'vitest';
import type { Pod, PodStatus } from '../../../../operator/core/node/pod.ts';
import { patchedStatus, sameStatus, statusPatch } from '../../../../operator/core/node/same-status.ts';
import { lostStatus, refusedStatus, translateStatus } from '../../../../operator/core/node/translate-status.ts';
import { pod } from './builders.ts';

const now = new Date('2026-03-01T12:00:00.000Z');
const earlier = '2026-03-01T11:00:00Z';
const view = { nodeAddress: '10.0.0.9', podIP: 'None' as const };
const running = {
  phase: 'Running',
  hostIP: '192.168.7.7',
  podIP: '10.214.1.2',
  podIPs: [{ ip: '10.214.1.2' }],
  qosClass: 'Burstable',
  startTime: earlier,
  conditions: [
    { type: 'PodScheduled', status: 'True', lastTransitionTime: earlier },
    { type: 'Initialized', status: 'True', lastTransitionTime: earlier },
    { type: 'ContainersReady', status: 'True', lastTransitionTime: earlier },
    { type: 'Ready', status: 'True', lastTransitionTime: earlier },
  ],
  containerStatuses: [
    {
      name: 'main',
      ready: true,
      started: true,
      restartCount: 2,
      image: 'busybox:1',
      imageID: 'sha256:1',
      containerID: 'containerd://abc',
      state: { running: { startedAt: earlier } },
      lastState: { terminated: { exitCode: 137, reason: 'OOMKilled', finishedAt: earlier } },
    },
  ],
};
const translate = (status: unknown, consumer: Pod = pod(), more: object = {}) =>
  translateStatus({ metadata: {}, status }, consumer, { ...view, ...more }, now);
const ready = (status: PodStatus | undefined) => status?.conditions?.find((c) => c.type === 'Ready');

describe('a running pod', () => {
  test('shows what its containers do', () => {
    expect(translate(running)).toMatchObject({
      phase: 'Running',
      startTime: earlier,
      containerStatuses: running.containerStatuses,
    });
  });

  test('says nothing more of why it was not ready', () => {
    const was = [
      { type: 'Ready', status: 'False', reason: 'ContainersNotReady', message: 'with unready status: [main]' },
    ];
    const before = { ...pod(), status: { conditions: was } };
    // Null takes a field out of what is stored; one that is only left out would stay.
    expect(ready(translate(running, before))).toMatchObject({ status: 'True', reason: null, message: null });
  });

  test('shows no address of the provider’s network, and the virtual node as its host', () => {
    const status = translate(running);
    expect(status).toMatchObject({ hostIP: '10.0.0.9', hostIPs: [{ ip: '10.0.0.9' }] });
    expect(JSON.stringify(status)).not.toMatch(/10\.214|192\.168/);
  });

  test('shows its address where the lease says that it is routable', () => {
    expect(translate(running, pod(), { podIP: 'Provider' })).toMatchObject({
      podIP: '10.214.1.2',
      podIPs: [{ ip: '10.214.1.2' }],
    });
    for (const ip of ['fd00::1', '::1', '1:2:3:4:5:6:7:8'])
      expect(translate({ ...running, podIPs: [{ ip }] }, pod(), { podIP: 'Provider' })?.podIP).toBe(ip);
    for (const ip of ['1::2::3', '1:2:3', 'g::1', '1:2:3:4:5:6:7:8:9', ':::', '127.0.0.01'])
      expect(translate({ ...running, podIPs: [{ ip }] }, pod(), { podIP: 'Provider' })?.podIP).toBeUndefined();
    const odd = { ...running, podIPs: [{ ip: '10.0.0.999' }, { ip: 'x' }] };
    expect(translate(odd, pod(), { podIP: 'Provider' })?.podIP).toBeUndefined();
  });

  test('leaves PodScheduled and the QoS class to the consumer', () => {
    const status = translate(running);
    expect(status?.conditions?.map((c) => c.type)).not.toContain('PodScheduled');
    expect(status).not.toHaveProperty('qosClass');
  });

  test('keeps the time of a condition that did not change, and takes its own clock for one that did', () => {
    const consumer = pod();
    consumer.status = { conditions: [{ type: 'Initialized', status: 'True', lastTransitionTime: earlier }] };
    const status = translate(running, consumer);
    expect(status?.conditions?.find((c) => c.type === 'Initialized')?.lastTransitionTime).toBe(earlier);
    expect(ready(status)?.lastTransitionTime).toBe('2026-03-01T12:00:00Z');
  });

  test('is not ready before the consumer’s readiness gates are', () => {
    const consumer = pod({ readinessGates: [{ conditionType: 'lb/attached' }] });
    expect(ready(translate(running, consumer))).toMatchObject({ status: 'False', reason: 'ReadinessGatesNotReady' });
    consumer.status = { conditions: [{ type: 'lb/attached', status: 'True' }] };
    expect(ready(translate(running, consumer))).toMatchObject({ status: 'True' });
  });

  test('is not ready while its node is not', () => {
    expect(ready(translate(running, pod(), { nodeReady: false }))).toMatchObject({
      status: 'False',
      reason: 'NodeNotReady',
    });
  });
});

describe('what a provider may not do', () => {
  test.each<Pod['status']>([{ phase: 'Succeeded' }, { phase: 'Failed' }])('bring back a pod that is %o', (status) => {
    const consumer = pod();
    consumer.status = status;
    expect(translate(running, consumer)).toBeUndefined();
  });

  test('speak of containers that the pod does not have', () => {
    const status = translate({ ...running, containerStatuses: [{ name: 'miner', ready: true }] });
    expect(status?.containerStatuses).toBeUndefined();
  });

  test('fill the status', () => {
    const long = 'x'.repeat(1_000_000);
    const status = translate({
      phase: 'Running',
      message: long,
      reason: long,
      extra: long,
      conditions: Array.from({ length: 10_000 }, (_, i) => ({ type: `x/${i}`, status: 'True', message: long })),
      containerStatuses: [
        {
          name: 'main',
          image: long,
          imageID: long,
          containerID: long,
          state: { waiting: { reason: long, message: long } },
        },
      ],
    });
    expect(JSON.stringify(status).length).toBeLessThan(8_000);
  });

  test.each([
    ['no object', 7],
    ['a phase nobody knows', { phase: 'Mining' }],
    ['fields of other types', { phase: 3, conditions: {}, containerStatuses: 'x', startTime: 1 }],
    [
      'containers of other types',
      { containerStatuses: [null, 3, { name: 'main', restartCount: -1, ready: 'yes', state: 4 }] },
    ],
  ])('break anything with %s', (_, status) => {
    expect(translate(status)).toMatchObject({ phase: 'Pending', startTime: '2026-03-01T12:00:00Z' });
  });

  test('make a failed container succeed with an exit code that is none', () => {
    const ended = { name: 'main', state: { terminated: { exitCode: '0', signal: 9000 } } };
    const status = translate({ phase: 'Failed', containerStatuses: [ended] });
    expect(status?.containerStatuses?.[0]?.state).toEqual({ terminated: { exitCode: 255 } });
  });
});

describe('a pod that is over', () => {
  test('refused: says why, and was never started', () => {
    const status = refusedStatus(pod(), 'NamespaceNotAllowed', 'm'.repeat(5000), now);
    expect(status).toMatchObject({ phase: 'Failed', reason: 'NamespaceNotAllowed' });
    expect(status.message?.length).toBe(1024);
    expect(status.startTime).toBeUndefined();
  });

  test('lost: each container counts as killed, one that had ended as it ended', () => {
    const consumer = pod({ containers: [{ name: 'main' }, { name: 'done' }] });
    consumer.status = {
      containerStatuses: [
        {
          name: 'main',
          ready: true,
          restartCount: 1,
          image: 'i',
          imageID: 'id',
          state: { running: { startedAt: earlier } },
        },
        {
          name: 'done',
          ready: false,
          restartCount: 0,
          image: 'i',
          imageID: 'id',
          state: { terminated: { exitCode: 0 } },
        },
      ],
    };
    const status = lostStatus(consumer, 'PodGoneAtProvider', 'gone', now);
    expect(status.containerStatuses?.map((c) => c.state?.terminated?.exitCode)).toEqual([137, 0]);
    expect(status.containerStatuses?.[0]).toMatchObject({ restartCount: 1, ready: false });
  });
});

describe('an unchanged status writes nothing', () => {
  const stored = translate(running)!;
  test('as the API server stores it', () => {
    const normalised = {
      ...stored,
      qosClass: 'Burstable',
      conditions: [...stored.conditions!.map((c) => ({ ...c, lastProbeTime: null })), { type: 'lb/x', status: 'True' }],
    };
    Reflect.deleteProperty(normalised, 'reason');
    expect(sameStatus(normalised, stored)).toBe(true);
  });
  test.each<[string, Partial<PodStatus>]>([
    ['phase', { phase: 'Failed' }],
    ['reason', { reason: 'Evicted' }],
    ['condition', { conditions: [{ type: 'Ready', status: 'False' }] }],
    ['container', { containerStatuses: [{ ...stored.containerStatuses![0]!, restartCount: 3 }] }],
  ])('but a changed %s does', (_, change) => {
    expect(sameStatus(stored, { ...stored, ...change })).toBe(false);
  });
  test('as it is after it was written, beside the conditions of others', () => {
    const before: PodStatus = {
      qosClass: 'Burstable',
      conditions: [
        { type: 'lb/x', status: 'True' },
        { type: 'Ready', status: 'False' },
        { type: 'DisruptionTarget', status: 'True' },
      ],
    };
    const wanted: PodStatus = {
      ...stored,
      conditions: [...stored.conditions!, { type: 'DisruptionTarget', $patch: 'delete' }],
    };
    const after = patchedStatus(before, wanted);
    expect(sameStatus(after, wanted)).toBe(true);
    expect(after).toMatchObject({ qosClass: 'Burstable', phase: 'Running' });
    expect(after.conditions?.map(({ type }) => type).toSorted()).toEqual(
      ['lb/x', ...stored.conditions!.map(({ type }) => type)].toSorted(),
    );
  });
  test('but a message that went away does', () => {
    expect(sameStatus({ ...stored, message: 'old' }, stored)).toBe(false);
  });
});

describe('what a container was given', () => {
  const consumer = pod({
    containers: [
      {
        name: 'main',
        resources: { limits: { 'nvidia.com/gpu': 1 }, requests: { cpu: '1', 'nvidia.com/gpu': 1 } },
        volumeMounts: [{ name: 'v', mountPath: '/v' }],
      },
    ],
  });
  const given = (more: object) =>
    translate({ ...running, containerStatuses: [{ ...running.containerStatuses[0], ...more }] }, consumer)
      ?.containerStatuses?.[0];

  test('is shown of what it asked for, and of nothing that the provider added', () => {
    expect(
      given({
        allocatedResources: { cpu: '500m', memory: '0', 'nvidia.com/gpu': '1' },
        resources: {
          limits: { cpu: '8', memory: '16Gi', 'nvidia.com/gpu': '1' },
          requests: { cpu: '500m', memory: '0' },
        },
        allocatedResourcesStatus: [
          { name: 'nvidia.com/gpu', resources: [{ resourceID: 'GPU-1', health: 'Unhealthy', message: 'XID 79' }] },
          { name: 'example.com/x', resources: [] },
        ],
        volumeMounts: [
          { name: 'v', mountPath: '/v', readOnly: true, recursiveReadOnly: 'Disabled' },
          { name: 'theirs', mountPath: '/t' },
        ],
        user: { linux: { uid: 7, gid: 8, supplementalGroups: [9, -1, 'x'] } },
        stopSignal: 'SIGUSR1',
      }),
    ).toMatchObject({
      allocatedResources: { cpu: '500m', 'nvidia.com/gpu': '1' },
      resources: { limits: { 'nvidia.com/gpu': '1' }, requests: { cpu: '500m' } },
      allocatedResourcesStatus: [
        { name: 'nvidia.com/gpu', resources: [{ resourceID: 'GPU-1', health: 'Unhealthy', message: 'XID 79' }] },
      ],
      volumeMounts: [{ name: 'v', mountPath: '/v', readOnly: true, recursiveReadOnly: 'Disabled' }],
      user: { linux: { uid: 7, gid: 8, supplementalGroups: [9] } },
      stopSignal: 'SIGUSR1',
    });
  });

  test.each<[string, object]>([
    ['amounts that are none', { allocatedResources: { cpu: 'many' }, resources: { requests: { cpu: -1 } } }],
    [
      'words of health that Kubernetes does not have',
      {
        allocatedResourcesStatus: [{ name: 'nvidia.com/gpu', resources: [{ resourceID: 'a', health: 'Fine' }] }],
      },
    ],
    ['users below nobody', { user: { linux: { uid: -1, gid: 0 } } }],
    [
      'things of other shapes',
      { allocatedResources: [], resources: 'x', volumeMounts: {}, user: 1, stopSignal: 'rm -rf' },
    ],
  ])('is not shown from %s', (_, more) => {
    const { allocatedResources, user, stopSignal, volumeMounts, allocatedResourcesStatus, resources } =
      given(more) ?? {};
    expect({ allocatedResources, user, stopSignal, volumeMounts }).toEqual({});
    expect(resources ?? {}).toEqual({});
    expect((allocatedResourcesStatus ?? []).flatMap((status) => status.resources)).toEqual([]);
  });

  test('as a whole pod, is shown where the pod asks as a whole', () => {
    const whole = pod({ resources: { requests: { cpu: '2' } } });
    const status = {
      ...running,
      resources: { requests: { cpu: '2' }, limits: { cpu: '8' } },
      allocatedResources: { cpu: '2' },
    };
    expect(translate(status, whole)).toMatchObject({
      resources: { requests: { cpu: '2' } },
      allocatedResources: { cpu: '2' },
    });
    expect(translate(status)).not.toHaveProperty('resources');
  });
});

describe('conditions that pass', () => {
  const pending = { type: 'PodResizePending', status: 'True', reason: 'Deferred', message: 'node is full' };
  const stored: Pod = { ...pod(), status: { conditions: [pending] } };
  test('come and go with what the kubelet says', () => {
    const conditions = (reported: object[], consumer: Pod) =>
      translate({ ...running, conditions: reported }, consumer)?.conditions?.filter(
        (c) => c.type === 'PodResizePending',
      );
    expect(conditions([pending], pod())).toMatchObject([pending]);
    expect(conditions([], pod())).toEqual([]);
    expect(conditions([], stored)).toEqual([{ type: 'PodResizePending', $patch: 'delete' }]);
  });

  test('are written as long as they are stored, and no longer', () => {
    const gone = { conditions: [{ type: 'PodResizePending', $patch: 'delete' as const }] };
    expect(sameStatus(stored.status, gone)).toBe(false);
    expect(sameStatus({}, gone)).toBe(true);
  });

  test('say that a resize was refused, where the kubelet never heard of it', () => {
    const status = translate(running, pod(), { resize: { reason: 'Infeasible', message: 'too much' } });
    expect(status?.conditions).toContainEqual(
      expect.objectContaining({ type: 'PodResizePending', status: 'True', reason: 'Infeasible', message: 'too much' }),
    );
  });
});

test('an ephemeral container that was not carried waits, in words', () => {
  const withheld = [{ name: 'debug', message: 'not here' }];
  expect(translate(running, pod(), { withheld })?.ephemeralContainerStatuses).toMatchObject([
    { name: 'debug', state: { waiting: { message: 'not here' } } },
  ]);
});

test('of two addresses of one family only the first is shown: Kubernetes would refuse the whole status', () => {
  const podIPs = [{ ip: '10.0.0.1' }, { ip: '10.0.0.2' }];
  expect(translate({ ...running, podIPs }, pod(), { podIP: 'Provider' })?.podIPs).toEqual([{ ip: '10.0.0.1' }]);
  const dual = [{ ip: '10.0.0.1' }, { ip: 'fd00::1' }];
  expect(translate({ ...running, podIPs: dual }, pod(), { podIP: 'Provider' })?.podIPs).toEqual(dual);
});

test('addresses that changed are taken away by name, as Kubernetes merges them', () => {
  const stored = { podIPs: [{ ip: '10.0.0.1' }], hostIPs: [{ ip: '1.1.1.1' }] };
  expect(statusPatch(stored, { podIPs: [{ ip: '10.0.0.2' }], hostIPs: [{ ip: '1.1.1.1' }] })).toEqual({
    podIPs: [{ ip: '10.0.0.1', $patch: 'delete' }, { ip: '10.0.0.2' }],
    hostIPs: [{ ip: '1.1.1.1' }],
  });
});
