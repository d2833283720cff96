import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { remoteObjectName } from '../../../operator/core/node/names.ts';
import type { Pod } from '../../../operator/core/node/pod.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import type { EvictionGuard } from '../../../operator/kubelet/eviction-guard.ts';
import { aWhile, eventually, nodeName, remoteNameOf, type World, world } from './world.ts';

const running = {
  phase: 'Running',
  startTime: '2026-01-01T00:00:00Z',
  conditions: [
    { type: 'ContainersReady', status: 'True' },
    { type: 'Ready', status: 'True' },
  ],
  containerStatuses: [
    {
      name: 'main',
      ready: true,
      restartCount: 0,
      image: 'i',
      imageID: 'id',
      state: { running: { startedAt: '2026-01-01T00:00:00Z' } },
    },
  ],
};
const ended = (exitCode: number) => ({
  phase: exitCode === 0 ? 'Succeeded' : 'Failed',
  containerStatuses: [
    { name: 'main', ready: false, restartCount: 0, image: 'i', imageID: 'id', state: { terminated: { exitCode } } },
  ],
});

let w: World;
beforeEach(async () => {
  w = world();
});
afterEach(() => w.stop());

const statusWrites = () => w.consumer.writes.filter((r) => r.resource?.plural === 'pods' && r.subresource === 'status');
const posts = (kind: string) => w.lease.requests.filter((r) => r.method === 'POST' && r.path === `kube/${kind}`);
const carried = async (name = 'web', change?: (pod: Pod) => void): Promise<Pod> => {
  const pod = w.bind(name, change);
  await eventually(() => expect(w.pod(name)?.status?.startTime).toBeDefined());
  return pod;
};
interface Data extends KubeObject {
  data?: Record<string, string>;
  type?: string;
}
const configMap = (name: string, data: Record<string, string>, namespace = 'team-a'): Data => ({
  metadata: { name, namespace },
  data,
});
const usesConfig = (pod: Pod) => {
  pod.spec.volumes = [{ name: 'v', configMap: { name: 'conf' } }];
};
const remoteConfig = (name = 'conf') =>
  w.provider.object<Data>(resources.configMaps, {
    namespace: 'tenant',
    name: remoteObjectName('ConfigMap', 'team-a', name),
  });

test('a pod is looked at where there is something to do, and not for what was reported of it, or is only on its way', async () => {
  w.evictionGuard = { holds: true, onChange: () => undefined } as unknown as EvictionGuard;
  w.firstReportSeconds = 60;
  await w.start();
  const pod = w.bind('web');
  await eventually(() => expect(w.remote(pod)).toBeDefined());
  w.say(pod, { conditions: [{ type: 'PodScheduled', status: 'True' }] });
  await eventually(() => expect(w.looks).toBe(1));
  w.say(pod, running);
  await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
  await aWhile();
  // Sent, and reported.
  expect(w.looks).toBe(2);

  w.consumer.change<Pod>(resources.pods, { namespace: 'team-a', name: 'web' }, (p) => {
    p.metadata.labels = { a: 'b' };
  });
  await eventually(() => expect(w.looks).toBe(3));
  w.consumer.change<Pod>(resources.pods, { namespace: 'team-a', name: 'web' }, (p) => {
    p.status!.conditions!.push({ type: 'example.com/gate', status: 'True' });
  });
  await eventually(() => expect(w.looks).toBe(4));

  await w.consumer.delete(resources.pods, { namespace: 'team-a', name: 'web' });
  await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
  await aWhile();
  expect(w.looks).toBe(5);
  w.say(pod, { message: 'its containers stop' });
  await eventually(() => expect(w.pod('web')?.status?.message).toBe('its containers stop'));
  w.provider.erase(resources.pods, { namespace: 'tenant', name: remoteNameOf(pod) });
  await eventually(() => expect(w.pod('web')).toBeUndefined());
});

describe('a pod that is bound to the node', () => {
  beforeEach(() => w.start());

  test('runs at the provider, once, and shows what it does there', async () => {
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    expect(w.pod('web')?.status?.conditions?.map((c) => [c.type, c.status])).toEqual(
      expect.arrayContaining([
        ['PodScheduled', 'True'],
        ['Ready', 'True'],
      ]),
    );
    expect(posts('pods')).toHaveLength(1);
  });

  test('takes its ConfigMaps and Secrets along, and none that it does not name', async () => {
    w.consumer.seed<Data>(resources.configMaps, configMap('conf', { a: '1' }), configMap('other', { b: '2' }));
    w.consumer.seed<Data>(resources.secrets, {
      metadata: { name: 'keys', namespace: 'team-a' },
      data: { k: 'eA==' },
      type: 'Opaque',
    });
    await carried('web', (pod) => {
      usesConfig(pod);
      pod.spec.containers[0]!.envFrom = [{ secretRef: { name: 'keys' } }];
    });
    expect(remoteConfig()?.data).toEqual({ a: '1' });
    const secret = w.provider.objects<Data>(resources.secrets);
    expect(secret).toHaveLength(1);
    expect(secret[0]).toMatchObject({ type: 'Opaque', data: { k: 'eA==' } });
    expect(w.provider.objects(resources.configMaps)).toHaveLength(1);
  });

  test('sees a ConfigMap change, appear, and go', async () => {
    const pod = await carried('web', usesConfig);
    expect(remoteConfig()).toBeUndefined();
    await eventually(() => expect(w.told.map((t) => t.reason)).toContain('MandatoryConfigMapNotFound'));
    w.consumer.seed<Data>(resources.configMaps, configMap('conf', { a: '1' }));
    await eventually(() => expect(remoteConfig()?.data).toEqual({ a: '1' }));
    w.consumer.change<Data>(resources.configMaps, { namespace: 'team-a', name: 'conf' }, (c) => {
      c.data = { a: '2' };
    });
    await eventually(() => expect(remoteConfig()?.data).toEqual({ a: '2' }));
    w.consumer.erase(resources.pods, { namespace: 'team-a', name: pod.metadata.name });
    await eventually(() => expect(remoteConfig()).toBeUndefined());
  });

  test('keeps a ConfigMap for another pod that needs it', async () => {
    w.consumer.seed<Data>(resources.configMaps, configMap('conf', { a: '1' }));
    const [first] = [await carried('one', usesConfig), await carried('two', usesConfig)];
    w.consumer.erase(resources.pods, { namespace: 'team-a', name: first.metadata.name });
    await aWhile(600);
    expect(remoteConfig()?.data).toEqual({ a: '1' });
  });

  test('never takes a token of the cluster along, though it is a Secret', async () => {
    w.consumer.seed<Data>(resources.secrets, {
      metadata: { name: 'token', namespace: 'team-a' },
      data: { token: 'eA==' },
      type: 'kubernetes.io/service-account-token',
    });
    await carried('web', (pod) => {
      pod.spec.containers[0]!.envFrom = [{ secretRef: { name: 'token' } }];
    });
    await aWhile();
    expect(posts('secrets')).toHaveLength(0);
  });

  test('tolerates a node that is not ready for as long as it takes', async () => {
    await carried('web', (pod) => {
      pod.spec.tolerations = [
        { key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
        { key: 'x', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
      ];
    });
    await eventually(() =>
      expect(w.pod('web')?.spec.tolerations?.map((t) => t.tolerationSeconds)).toEqual([undefined, 300]),
    );
  });

  test('keeps its tolerations while a policy spares it from eviction, and not when there is none after all', async () => {
    const handlers: (() => void)[] = [];
    const guard = { holds: undefined as boolean | undefined, onChange: (h: () => void) => void handlers.push(h) };
    await w.stop();
    w.evictionGuard = { ...guard, run: async () => undefined };
    Object.defineProperty(w.evictionGuard, 'holds', { get: () => guard.holds });
    await w.start();
    await carried('web', (pod) => {
      pod.spec.tolerations = [{ key: 'node.kubernetes.io/not-ready', effect: 'NoExecute', tolerationSeconds: 300 }];
    });
    const seconds = () => w.pod('web')?.spec.tolerations?.[0]?.tolerationSeconds;
    const become = async (holds: boolean) => {
      guard.holds = holds;
      for (const handler of handlers) handler();
    };
    await aWhile();
    expect(seconds()).toBe(300);
    await become(true);
    await aWhile();
    expect(seconds()).toBe(300);
    await become(false);
    await eventually(() => expect(seconds()).toBeUndefined());
  });

  test('takes a new image along, in the whole object', async () => {
    const pod = await carried();
    w.say(pod, running);
    w.consumer.change<Pod>(resources.pods, { namespace: 'team-a', name: 'web' }, (p) => {
      p.spec.containers[0]!.image = 'busybox:2';
    });
    await eventually(() => expect(w.remote(pod)?.spec.containers[0]?.image).toBe('busybox:2'));
    await aWhile();
    expect(w.lease.requests.filter((r) => r.method === 'PUT' && r.path.startsWith('kube/pods/'))).toHaveLength(1);
  });

  test('ends as it ended, whatever is said later', async () => {
    const pod = await carried();
    w.say(pod, ended(0));
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Succeeded'));
    w.say(pod, running);
    await aWhile();
    expect(w.pod('web')?.status?.phase).toBe('Succeeded');
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await aWhile();
    expect(w.pod('web')?.status?.phase).toBe('Succeeded');
    expect(w.remotes()).toHaveLength(0);
  });

  test('and runs at once is told of once', async () => {
    const pod = w.bind('web', (p) => {
      p.spec.tolerations = [
        { key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
      ];
    });
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    await aWhile();
    expect(statusWrites()).toHaveLength(1);
    // Raised by ourselves, so that nobody waits for us to have seen it.
    expect(w.pod('web')?.metadata.generation).toBe(2);
    expect(w.pod('web')?.status?.observedGeneration).toBe(2);
  });

  test('and whose report the watch does not show yet is not told of again', async () => {
    const pod = await carried();
    let reports = 0;
    w.consumer.intercept(({ method, subresource }) => {
      if (method !== 'PATCH' || subresource !== 'status') return undefined;
      reports += 1;
      return { code: 200, body: { metadata: pod.metadata } };
    });
    w.say(pod, running);
    await eventually(() => expect(reports).toBe(1));
    w.say(pod, { ...running, hostIP: '9.9.9.9' });
    await aWhile();
    expect(reports).toBe(1);
    w.say(pod, ended(0));
    await eventually(() => expect(reports).toBe(2));
  });

  test('that did not change writes nothing', async () => {
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    await aWhile();
    const before = w.consumer.writes.length;
    w.say(pod, { ...running, hostIP: '9.9.9.9' });
    await aWhile();
    expect(w.consumer.writes.slice(before).filter((r) => r.resource?.plural === 'pods')).toEqual([]);
  });
});

describe('a pod that may not run here', () => {
  beforeEach(() => w.start());

  test('of another namespace is refused, and nothing of it is sent', async () => {
    w.consumer.seed<Data>(resources.secrets, { metadata: { name: 'keys', namespace: 'team-b' }, data: { k: 'eA==' } });
    w.consumer.seed<Pod & KubeObject>(resources.pods, {
      metadata: { name: 'intruder', namespace: 'team-b' },
      spec: {
        nodeName,
        tolerations: [{ operator: 'Exists' }],
        containers: [{ name: 'main', envFrom: [{ secretRef: { name: 'keys' } }] }],
      },
    });
    await eventually(() =>
      expect(w.pod('intruder', 'team-b')?.status).toMatchObject({ phase: 'Failed', reason: 'NamespaceNotAllowed' }),
    );
    expect(w.pod('intruder', 'team-b')?.status?.message).toMatch(/spec\.access\.namespaces/);
    expect(w.lease.requests.filter((r) => r.method !== 'GET')).toEqual([]);
    expect(w.consumer.requests.filter((r) => r.resource?.plural === 'secrets')).toEqual([]);
  });

  test('with a host path is refused here, with the field', async () => {
    w.bind('bad', (pod) => {
      pod.spec.volumes = [{ name: 'v', hostPath: { path: '/' } }];
    });
    await eventually(() => expect(w.pod('bad')?.status?.reason).toBe('HostAccessRefused'));
    expect(w.pod('bad')?.status?.message).toMatch(/spec\.volumes\[0\]\.hostPath/);
    expect(posts('pods')).toHaveLength(0);
  });

  test('by the provider’s word fails with that word', async () => {
    w.provider.intercept((request) =>
      request.method === 'POST' && request.resource?.plural === 'pods'
        ? {
            code: 422,
            body: {
              type: 'gpulease:PodRefused',
              title: 'Refused',
              status: 422,
              reason: 'PodRefused',
              detail: 'spec.x: no',
            },
          }
        : undefined,
    );
    w.bind('web');
    await eventually(() => expect(w.pod('web')?.status).toMatchObject({ phase: 'Failed', reason: 'PodRefused' }));
    expect(w.pod('web')?.status?.message).toMatch(/spec\.x: no/);
  });

  test('and that a controller makes anew at once, waits once there are many', async () => {
    const owned = (name: string) =>
      w.bind(name, (pod) => {
        pod.spec.volumes = [{ name: 'v', hostPath: { path: '/' } }];
        pod.metadata.ownerReferences = [
          { apiVersion: 'apps/v1', kind: 'ReplicaSet', name: 'web', uid: 'set-1', controller: true },
        ];
      });
    const names = Array.from({ length: 25 }, (_, index) => `web-${index}`);
    names.forEach(owned);
    const failed = () => names.filter((name) => w.pod(name)?.status?.phase === 'Failed');
    await eventually(() => expect(failed()).toHaveLength(20));
    const waiting = names.filter((name) => !failed().includes(name));
    const isTold = (name: string) => w.told.some((e) => e.pod.endsWith(`/${name}`) && e.reason === 'HostAccessRefused');
    await eventually(() => expect(waiting.filter(isTold)).toHaveLength(5));
    expect(failed()).toHaveLength(20);
    // One of nobody's making fails as before: nobody makes it anew.
    w.bind('bare', (pod) => {
      pod.spec.volumes = [{ name: 'v', hostPath: { path: '/' } }];
    });
    await eventually(() => expect(w.pod('bare')?.status?.phase).toBe('Failed'));
  });

  test('yet, because earlier pods still count, waits and says so', async () => {
    let full = true;
    w.provider.intercept((request) =>
      full && request.method === 'POST' && request.resource?.plural === 'pods'
        ? {
            code: 409,
            body: { type: 'x', title: 'Conflict', status: 409, reason: 'CapacityExhausted', detail: 'quota' },
          }
        : undefined,
    );
    w.bind('web');
    await eventually(() => expect(w.told.map((t) => t.reason)).toContain('NotYetCarried'));
    expect(w.pod('web')?.status?.phase).toBe('Pending');
    full = false;
    await eventually(() => expect(w.remotes()).toHaveLength(1));
  });

  test('yet, because the provider refuses its ConfigMap, waits and says so', async () => {
    w.consumer.seed<Data>(resources.configMaps, configMap('conf', { NVIDIA_VISIBLE_DEVICES: 'all' }));
    w.provider.intercept((request) =>
      request.method === 'POST' &&
      request.resource?.plural === 'configmaps' &&
      JSON.stringify(request.body).includes('NVIDIA')
        ? {
            code: 422,
            body: { type: 'x', title: 'Refused', status: 422, reason: 'PodRefused', detail: 'data.NVIDIA: no' },
          }
        : undefined,
    );
    w.bind('web', usesConfig);
    await eventually(() => expect(w.told.map((t) => t.reason)).toContain('ObjectNotCarried'));
    expect(w.told.find((t) => t.reason === 'ObjectNotCarried')?.message).toMatch(/data\.NVIDIA: no/);
    expect(posts('pods')).toHaveLength(0);
    w.consumer.change<Data>(resources.configMaps, { namespace: 'team-a', name: 'conf' }, (c) => {
      c.data = { a: '1' };
    });
    await eventually(() => expect(w.remotes()).toHaveLength(1));
  });

  test('and is of a DaemonSet stays Pending, with one event', async () => {
    w.bind('ds', (pod) => {
      pod.metadata.ownerReferences = [
        { apiVersion: 'apps/v1', kind: 'DaemonSet', name: 'd', uid: 'u', controller: true },
      ];
    });
    await eventually(() => expect(w.told).toHaveLength(1));
    w.consumer.change<Pod>(resources.pods, { namespace: 'team-a', name: 'ds' }, (p) => {
      p.metadata.labels = { x: 'y' };
    });
    await aWhile();
    expect(w.told.map((t) => t.reason)).toEqual(['DaemonSetNotCarried']);
    expect(w.pod('ds')?.status?.phase).toBe('Pending');
    expect(posts('pods')).toHaveLength(0);
  });
});

describe('a pod that is deleted', () => {
  beforeEach(() => w.start());
  const remove = (name: string, gracePeriodSeconds?: number) =>
    w.consumer.delete(resources.pods, { namespace: 'team-a', name }, { gracePeriodSeconds });

  test('gets its grace at the provider, and goes when it has gone there', async () => {
    const pod = await carried();
    w.say(pod, running);
    await remove('web', 17);
    await eventually(() => expect(w.remote(pod)?.metadata.deletionGracePeriodSeconds).toBe(17));
    await aWhile();
    expect(w.pod('web')?.metadata.deletionTimestamp).toBeDefined();
    w.say(pod, ended(143));
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await eventually(() => expect(w.pod('web')).toBeUndefined());
  });

  test('costs no question that the provider has answered by itself, and no report that says nothing new', async () => {
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    const [asked, written] = [w.lease.requests.length, statusWrites().length];
    await remove('web', 1);
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await eventually(() => expect(w.pod('web')).toBeUndefined());
    await aWhile();
    expect(w.lease.requests.slice(asked).map((r) => r.method)).toEqual(['DELETE']);
    expect(statusWrites()).toHaveLength(written);
    const removals = w.consumer.writes.filter((r) => r.method === 'DELETE' && r.resource?.plural === 'pods');
    expect(removals).toHaveLength(2); // the user's, and ours at its end
  });

  test('shows how it ended to whoever holds it by a finalizer', async () => {
    const pod = await carried('job', (p) => {
      p.metadata.finalizers = ['batch.kubernetes.io/job-tracking'];
    });
    w.say(pod, running);
    await remove('job', 5);
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await eventually(() => expect(w.pod('job')?.status?.phase).toBe('Failed'));
  });

  test('before its provider has taken it shows that holder that it failed', async () => {
    w.provider.intercept(({ method, resource }) =>
      method === 'POST' && resource?.plural === 'pods'
        ? {
            code: 409,
            body: { type: 'x', title: 'Conflict', status: 409, reason: 'CapacityExhausted', detail: 'quota' },
          }
        : undefined,
    );
    w.bind('job', (p) => {
      p.metadata.finalizers = ['batch.kubernetes.io/job-tracking'];
    });
    await eventually(() => expect(w.told.map(({ reason }) => reason)).toContain('NotYetCarried'));
    await remove('job', 5);
    await eventually(() => expect(w.pod('job')?.status?.phase).toBe('Failed'));
  });

  test('by force is ended at the provider too', async () => {
    const pod = await carried();
    w.say(pod, running);
    w.consumer.erase(resources.pods, { namespace: 'team-a', name: 'web' });
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
    await eventually(() => expect(w.strays).toEqual(['acme']));
    expect(w.told.find(({ reason }) => reason === 'StrayPodEnded')).toMatchObject({
      pod: 'team-a/train',
      message: expect.stringContaining('team-a/web still ran at acme'),
    });
  });

  test('in the usual way leaves no stray', async () => {
    const pod = await carried();
    w.say(pod, running);
    await remove('web', 1);
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await eventually(() => expect(w.pod('web')).toBeUndefined());
    expect(w.strays).toEqual([]);
  });

  test('and made anew under its name is another pod there, the old one ended', async () => {
    const old = await carried();
    w.say(old, running);
    w.consumer.erase(resources.pods, { namespace: 'team-a', name: 'web' });
    const next = await carried();
    await eventually(() => expect(w.remote(old)?.metadata.deletionTimestamp).toBeDefined());
    expect(w.remote(next)?.metadata.deletionTimestamp).toBeUndefined();
  });

  test('while the provider is silent waits for its word', async () => {
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    w.lease.cut = true;
    await remove('web', 1);
    await aWhile(800);
    expect(w.pod('web')?.metadata.deletionTimestamp).toBeDefined();
    w.lease.cut = false;
    await eventually(() => expect(w.remote(pod)?.metadata.deletionTimestamp).toBeDefined());
  });
});

describe('silence and facts', () => {
  test('a provider that is silent ends nothing, and the same pod goes on when it is back', async () => {
    await w.start();
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    const { uid } = w.remote(pod)!.metadata;
    w.lease.cut = true;
    w.provider.endWatches('broken');
    await aWhile(500);
    expect(w.pod('web')?.status?.phase).toBe('Running');
    w.lease.cut = false;
    await aWhile(800);
    expect(w.remote(pod)?.metadata.uid).toBe(uid);
    expect(posts('pods')).toHaveLength(1);
  });

  test('a pod that the serving provider no longer has is lost, and not made again', async () => {
    await w.start();
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await eventually(() =>
      expect(w.pod('web')?.status).toMatchObject({ phase: 'Failed', reason: 'PodGoneAtProvider' }),
    );
    expect(posts('pods')).toHaveLength(1);
  });

  test('one that is gone while the lease is not served is not lost yet', async () => {
    await w.start();
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    w.lease.state = 'Suspended';
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await aWhile(500);
    expect(w.pod('web')?.status?.phase).toBe('Running');
  });

  test('a 404 in somebody else’s words is no fact', async () => {
    await w.start();
    const pod = await carried();
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
    w.provider.intercept((request) =>
      request.method === 'GET' && request.name !== undefined && request.resource?.plural === 'pods'
        ? { code: 404, body: { message: 'default backend' } }
        : undefined,
    );
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remotes()[0]!.metadata.name });
    await aWhile(500);
    expect(w.pod('web')?.status?.phase).toBe('Running');
  });

  test('an answer that was lost makes no second pod', async () => {
    await w.start();
    w.provider.failNext({ method: 'POST', resource: 'pods', fail: 'answer-lost' });
    const pod = await carried();
    expect(w.remotes()).toHaveLength(1);
    w.say(pod, running);
    await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
  });
});

describe('after a restart', () => {
  test('the same pods run, and what happened meanwhile is seen', async () => {
    await w.start();
    const [kept, done, lost] = [await carried('kept'), await carried('done'), await carried('lost')];
    for (const pod of [kept, done, lost]) w.say(pod, running);
    await eventually(() => expect(w.pod('lost')?.status?.phase).toBe('Running'));
    const { uid } = w.remote(kept)!.metadata;
    await w.stop();
    w.say(done, ended(0));
    w.provider.erase(resources.pods, { namespace: 'tenant', name: w.remote(lost)!.metadata.name });
    const late = w.bind('late');
    await w.start();
    await eventually(() => expect(w.pod('done')?.status?.phase).toBe('Succeeded'));
    await eventually(() => expect(w.pod('lost')?.status?.phase).toBe('Failed'));
    await eventually(() => expect(w.remote(late)).toBeDefined());
    expect(w.remote(kept)?.metadata.uid).toBe(uid);
    expect(posts('pods')).toHaveLength(4);
  });

  test('nothing is deleted because it is not known yet', async () => {
    await w.start();
    const pod = await carried();
    w.say(pod, running);
    await w.stop();
    const before = w.lease.requests.length;
    await w.start();
    await aWhile(500);
    expect(w.lease.requests.slice(before).filter((r) => r.method === 'DELETE')).toEqual([]);
    expect(w.pod('web')?.status?.phase).toBe('Running');
  });
});

describe('events of the provider', () => {
  beforeEach(() => w.start());
  const event = (name: string, involved: string, more: object = {}): KubeObject =>
    ({
      metadata: { name, namespace: 'tenant', creationTimestamp: new Date().toISOString() },
      involvedObject: { kind: 'Pod', name: involved, namespace: 'tenant' },
      type: 'Warning',
      reason: 'Failed',
      message: `cannot pull for ${involved} in tenant`,
      lastTimestamp: new Date().toISOString(),
      ...more,
    }) as KubeObject;

  test('are told on the pod, in its own names', async () => {
    const pod = await carried();
    w.provider.seed(resources.events, event('e1', w.remote(pod)!.metadata.name));
    await eventually(() =>
      expect(w.told).toContainEqual({
        pod: 'team-a/web',
        type: 'Warning',
        reason: 'Failed',
        message: 'cannot pull for web in team-a',
      }),
    );
  });

  test('about others, or in words that are none, are not told', async () => {
    const pod = await carried();
    const name = w.remote(pod)!.metadata.name;
    w.provider.seed(
      resources.events,
      event('e1', 'somebody-else'),
      event('e2', name, { reason: 'not a reason' }),
      event('e3', name, { involvedObject: { kind: 'Node', name } }),
    );
    await aWhile();
    expect(w.told).toEqual([]);
  });

  test('in floods are told in part', async () => {
    const pod = await carried();
    const name = w.remote(pod)!.metadata.name;
    w.provider.seed(
      resources.events,
      ...Array.from({ length: 500 }, (_, i) => event(`e${i}`, name, { message: `${i}` })),
    );
    await aWhile();
    expect(w.told.length).toBeGreaterThan(10);
    expect(w.told.length).toBeLessThanOrEqual(30);
  });
});
