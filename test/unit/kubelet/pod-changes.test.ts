/** What changes while a pod runs: its spec, its Services, its ConfigMaps and Secrets, its tokens. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { remoteObjectName } from '../../../operator/core/node/names.ts';
import type { Container, Pod } from '../../../operator/core/node/pod.ts';
import { serviceLinksName, serviceLinksOf } from '../../../operator/core/node/service-links.ts';
import { tokenSecretName } from '../../../operator/core/node/token-wish.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { serviceAccountVolume } from '../core/node/builders.ts';
import { aWhile, eventually, remoteNameOf, type World, world } from './world.ts';

interface Data extends KubeObject {
  data?: Record<string, string>;
  type?: string;
}
interface Service extends KubeObject {
  spec: object;
}

let w: World;
beforeEach(() => {
  w = world();
});
afterEach(() => w.stop());

const running = {
  phase: 'Running',
  startTime: '2026-01-01T00:00:00Z',
  containerStatuses: [
    { name: 'main', ready: true, restartCount: 0, image: 'i', imageID: 'id', state: { running: {} } },
  ],
};
async function runs(change?: (pod: Pod) => void): Promise<Pod> {
  const pod = w.bind('web', change);
  await eventually(() => expect(w.remote(pod)).toBeDefined());
  w.say(pod, running);
  await eventually(() => expect(w.pod('web')?.status?.phase).toBe('Running'));
  return pod;
}
const change = (mutate: (pod: Pod) => void) =>
  w.consumer.change<Pod>(resources.pods, { namespace: 'team-a', name: 'web' }, mutate);
const puts = () => w.lease.requests.filter((r) => r.method === 'PUT' && r.path.startsWith('kube/pods/'));
const condition = (type: string) => w.pod('web')?.status?.conditions?.find((c) => c.type === type);
const told = (reason: string) => w.told.filter((t) => t.reason === reason).map((t) => t.message);
const tenantObject = (resource: typeof resources.configMaps | typeof resources.secrets, name: string) =>
  w.provider.object<Data>(resource, { namespace: 'tenant', name });
/** The gateway's answer to a pod that is sent anew, until it is stopped. */
const answer = (
  problem: { status: number; reason: string; detail: string },
  when: (pod: Pod) => boolean = () => true,
) =>
  w.provider.intercept(({ method, resource, body }) =>
    method === 'PUT' && resource?.plural === 'pods' && when(body as Pod)
      ? { code: problem.status, body: { type: 'x', title: 'no', ...problem } }
      : undefined,
  );

describe('Services', () => {
  const service = (name: string, clusterIP = '10.1.1.1'): Service => ({
    metadata: { name, namespace: 'team-a' },
    spec: { clusterIP, ports: [{ port: 80, protocol: 'TCP' }] },
  });
  const links = () => tenantObject(resources.configMaps, serviceLinksName(serviceLinksOf('team-a', true)));

  test('are told to a pod as they are when it starts, and to its next container as they are then', async () => {
    w.consumer.seed<Service>(resources.services, service('db'));
    await w.start();
    const pod = await runs();
    expect(links()?.data).toMatchObject({ DB_SERVICE_HOST: '10.1.1.1' });
    expect(w.remote(pod)?.spec.containers[0]?.envFrom?.[0]?.configMapRef?.name).toBe(links()?.metadata.name);
    w.consumer.seed<Service>(resources.services, service('cache', '10.1.1.2'));
    await eventually(() => expect(links()?.data).toMatchObject({ CACHE_SERVICE_HOST: '10.1.1.2' }));
    w.consumer.erase(resources.services, { namespace: 'team-a', name: 'db' });
    await eventually(() => expect(links()?.data).not.toHaveProperty('DB_SERVICE_HOST'));
    // A change of Services is no change of the pod.
    expect(puts()).toEqual([]);
    expect(w.told).toEqual([]);
  });

  test('of other namespaces, and other fields of them, write nothing', async () => {
    w.consumer.seed<Service>(resources.services, service('db'));
    await w.start();
    await runs();
    const before = w.lease.requests.filter((r) => r.method !== 'GET').length;
    w.consumer.seed<Service>(resources.services, { ...service('x'), metadata: { name: 'x', namespace: 'team-b' } });
    w.consumer.change<Service>(resources.services, { namespace: 'team-a', name: 'db' }, (it) => {
      it.metadata.labels = { a: 'b' };
    });
    await aWhile(600);
    expect(w.lease.requests.filter((r) => r.method !== 'GET')).toHaveLength(before);
  });
});

describe('ConfigMaps and Secrets that are mounted', () => {
  const mounts = (pod: Pod) => {
    pod.spec.volumes = [
      { name: 'c', configMap: { name: 'conf' } },
      { name: 's', secret: { secretName: 'keys' } },
    ];
  };
  const at = (name: string) => ({ namespace: 'team-a', name });
  beforeEach(() => {
    w.consumer.seed<Data>(resources.configMaps, { metadata: at('conf'), data: { a: '1' } });
    w.consumer.seed<Data>(resources.secrets, { metadata: at('keys'), data: { k: 'eA==' }, type: 'Opaque' });
  });
  const conf = () => tenantObject(resources.configMaps, remoteObjectName('ConfigMap', 'team-a', 'conf'));
  const keys = () => tenantObject(resources.secrets, remoteObjectName('Secret', 'team-a', 'keys'));

  test('are carried as soon as they change, without a poll', async () => {
    w.objectPollSeconds = 3600;
    await w.start();
    await runs(mounts);
    // Watched: each by its own name.
    await eventually(() =>
      expect(
        w.consumer.requests.filter((r) => r.watch && r.query.get('fieldSelector')?.startsWith('metadata.name=')),
      ).toHaveLength(2),
    );
    const from = Date.now();
    w.consumer.change<Data>(resources.configMaps, at('conf'), (it) => {
      it.data = { a: '2' };
    });
    w.consumer.change<Data>(resources.secrets, at('keys'), (it) => {
      it.data = { k: 'eQ==' };
    });
    await eventually(() => expect([conf()?.data, keys()?.data]).toEqual([{ a: '2' }, { k: 'eQ==' }]));
    expect(Date.now() - from).toBeLessThan(1000);
    w.consumer.erase(resources.configMaps, at('conf'));
    await eventually(() => expect(conf()).toBeUndefined());
    w.consumer.seed<Data>(resources.configMaps, { metadata: at('conf'), data: { a: '3' } });
    await eventually(() => expect(conf()?.data).toEqual({ a: '3' }));
  });

  test('are read once for many pods', async () => {
    w.objectPollSeconds = 3600;
    await w.start();
    await runs(mounts);
    // The watch may have told of it while it was carried: then it is read once more, within a second.
    await aWhile(1300);
    const reads = () =>
      w.consumer.requests.filter((r) => r.method === 'GET' && r.name !== undefined && r.resource?.plural === 'secrets')
        .length;
    const before = reads();
    for (const name of ['a', 'b', 'c']) w.bind(name, mounts);
    await eventually(() => expect(w.remotes()).toHaveLength(4));
    expect(reads()).toBe(before);
  });

  test('are polled where they may not be watched', async () => {
    w.consumer.intercept(({ watch, resource }) =>
      watch && resource?.plural === 'secrets'
        ? { code: 403, body: { kind: 'Status', reason: 'Forbidden', message: 'secrets "keys" is forbidden' } }
        : undefined,
    );
    await w.start();
    await runs(mounts);
    w.consumer.change<Data>(resources.secrets, at('keys'), (it) => {
      it.data = { k: 'eQ==' };
    });
    await eventually(() => expect(keys()?.data).toEqual({ k: 'eQ==' }));
    expect(w.consumer.requests.filter((r) => r.watch && r.resource?.plural === 'secrets')).toHaveLength(1);
  });

  test('that are missing are told of to each pod that names them', async () => {
    w.consumer.erase(resources.configMaps, at('conf'));
    await w.start();
    w.bind('one', mounts);
    await eventually(() => expect(told('MandatoryConfigMapNotFound')).toHaveLength(1));
    w.bind('two', mounts);
    await eventually(() => expect(told('MandatoryConfigMapNotFound')).toHaveLength(2));
    await aWhile(500);
    expect(told('MandatoryConfigMapNotFound')).toHaveLength(2);
  });
});

describe('resizing', () => {
  const ask = (cpu: string) =>
    change((pod) => {
      pod.spec.containers[0]!.resources = { requests: { cpu } };
    });
  beforeEach(() => w.start());

  test('is carried, and what the provider’s kubelet says of it comes back and goes', async () => {
    const pod = await runs((p) => {
      p.spec.containers[0]!.resources = { requests: { cpu: '1' } };
    });
    ask('2');
    await eventually(() => expect(w.remote(pod)?.spec.containers[0]?.resources?.requests?.cpu).toBe('2'));
    const given = {
      allocatedResources: { cpu: '1' },
      resources: { requests: { cpu: '1', memory: '0' }, limits: { cpu: '8' } },
    };
    w.say(pod, {
      conditions: [{ type: 'PodResizePending', status: 'True', reason: 'Deferred', message: 'node is full' }],
      containerStatuses: [{ ...running.containerStatuses[0], ...given }],
    });
    await eventually(() => expect(condition('PodResizePending')).toMatchObject({ status: 'True', reason: 'Deferred' }));
    // Only what the consumer's container asks for: the limit is the provider's.
    expect(w.pod('web')?.status?.containerStatuses?.[0]).toMatchObject({ allocatedResources: { cpu: '1' } });
    expect(w.pod('web')?.status?.containerStatuses?.[0]?.resources).toEqual({ requests: { cpu: '1' } });
    w.say(pod, { conditions: [{ type: 'Ready', status: 'True' }] });
    await eventually(() => expect(condition('PodResizePending')).toBeUndefined());
  });

  test('beyond the lease is infeasible; other changes of the pod go on', async () => {
    const pod = await runs();
    const stop = answer({ status: 422, reason: 'ResizeRefused', detail: 'cpu: is more than the lease has (8)' });
    ask('99');
    await eventually(() =>
      expect(condition('PodResizePending')).toMatchObject({ status: 'True', reason: 'Infeasible' }),
    );
    expect(condition('PodResizePending')?.message).toContain('more than the lease has (8)');
    expect(told('ResizeRefused')).toHaveLength(1);
    expect(w.pod('web')?.status?.phase).toBe('Running');
    await aWhile();
    const tried = puts().length;
    await aWhile(500);
    expect(puts()).toHaveLength(tried);
    stop();
    change((p) => {
      p.spec.containers[0]!.resources = {};
      p.spec.containers[0]!.image = 'busybox:2';
    });
    await eventually(() => expect(w.remote(pod)?.spec.containers[0]?.image).toBe('busybox:2'));
    await eventually(() => expect(condition('PodResizePending')).toBeUndefined());
  });

  test('that was refused stays so when we are restarted', async () => {
    await runs();
    answer({ status: 422, reason: 'ResizeRefused', detail: 'no' });
    ask('99');
    await eventually(() => expect(condition('PodResizePending')?.reason).toBe('Infeasible'));
    await w.stop();
    await w.start();
    await aWhile(500);
    expect(condition('PodResizePending')?.reason).toBe('Infeasible');
  });

  test('that finds no room now is deferred, also over a restart, until there is some', async () => {
    const pod = await runs();
    const stop = answer({ status: 409, reason: 'CapacityExhausted', detail: 'exceeded quota' });
    ask('7');
    await eventually(() => expect(condition('PodResizePending')).toMatchObject({ status: 'True', reason: 'Deferred' }));
    expect(told('ResizeDeferred')).toHaveLength(1);
    await w.stop();
    const tried = puts().length;
    // What the gateway wrote before it found no room.
    const wanted = (puts()[0]!.body as Pod).metadata.annotations!;
    w.provider.change<Pod>(resources.pods, { namespace: 'tenant', name: remoteNameOf(pod) }, (remote) => {
      remote.metadata.annotations = wanted;
    });
    await w.start();
    await eventually(() => expect(puts().length).toBeGreaterThan(tried));
    expect(condition('PodResizePending')?.reason).toBe('Deferred');
    stop();
    w.say(pod, { message: 'anything that wakes us' });
    await eventually(() => expect(w.remote(pod)?.spec.containers[0]?.resources?.requests?.cpu).toBe('7'));
    await eventually(() => expect(condition('PodResizePending')).toBeUndefined());
    const settled = puts().length;
    w.say(pod, { message: 'and again' });
    await aWhile();
    expect(puts()).toHaveLength(settled);
  });

  test('by a gateway that does nothing of the kind is told as such', async () => {
    await runs((p) => {
      p.spec.containers[0]!.resources = { requests: { cpu: '1' } };
    });
    w.provider.intercept(({ method, resource, name }) =>
      method === 'PUT' && resource?.plural === 'pods'
        ? { code: 200, body: w.provider.object(resources.pods, { namespace: 'tenant', name: name! }) }
        : undefined,
    );
    ask('2');
    await eventually(() => expect(told('ResizeRefused')[0]).toMatch(/does not resize/));
  });
});

describe('ephemeral containers', () => {
  beforeEach(() => w.start());
  const debug = (more: Partial<Container> = {}): Container => ({ name: 'debug', image: 'busybox', ...more });
  const add = (container: Container) =>
    change((pod) => {
      pod.spec.ephemeralContainers = [...(pod.spec.ephemeralContainers ?? []), container];
    });
  const waiting = (name: string) =>
    w.pod('web')?.status?.ephemeralContainerStatuses?.find((s) => s.name === name)?.state?.waiting;

  test('come to the running pod, and their state comes back', async () => {
    const pod = await runs();
    add(debug());
    await eventually(() => expect(w.remote(pod)?.spec.ephemeralContainers?.[0]).toMatchObject({ name: 'debug' }));
    w.say(pod, {
      ephemeralContainerStatuses: [
        { name: 'debug', ready: false, restartCount: 0, image: 'i', imageID: 'i', state: { running: {} } },
      ],
    });
    await eventually(() =>
      expect(w.pod('web')?.status?.ephemeralContainerStatuses?.[0]?.state).toEqual({ running: {} }),
    );
  });

  test('that were there before the pod was come after it', async () => {
    const pod = w.bind('web', (it) => {
      it.spec.ephemeralContainers = [debug()];
    });
    await eventually(() => expect(w.remote(pod)?.spec.ephemeralContainers?.[0]).toMatchObject({ name: 'debug' }));
    const first = w.lease.requests.find((r) => r.method === 'POST' && r.path === 'kube/pods');
    expect((first?.body as Pod).spec).not.toHaveProperty('ephemeralContainers');
    await aWhile();
    expect(puts()).toHaveLength(1);
  });

  test('that may not run say why where kubectl debug looks, and hold up nothing', async () => {
    const pod = await runs();
    add(debug({ securityContext: { capabilities: { add: ['SYS_PTRACE'] } } }));
    await eventually(() => expect(waiting('debug')?.message).toMatch(/--profile=baseline/));
    expect(told('EphemeralContainerNotCarried')).toHaveLength(1);
    add(debug({ name: 'second' }));
    await eventually(() => expect(w.remote(pod)?.spec.ephemeralContainers?.map((c) => c.name)).toEqual(['second']));
  });

  test('that the provider refuses say its words, and hold up nothing either', async () => {
    const pod = await runs();
    answer({ status: 422, reason: 'PodRefused', detail: 'spec.ephemeralContainers[0].image: not from here' }, (sent) =>
      (sent.spec.ephemeralContainers ?? []).some((c) => c.name === 'debug'),
    );
    add(debug());
    await eventually(() => expect(waiting('debug')?.message).toMatch(/not from here/));
    change((p) => {
      p.spec.containers[0]!.image = 'busybox:2';
    });
    await eventually(() => expect(w.remote(pod)?.spec.containers[0]?.image).toBe('busybox:2'));
    expect(waiting('debug')?.message).toMatch(/not from here/);
    await w.stop();
    await w.start();
    w.say(pod, { message: 'anything that wakes us' });
    await eventually(() => expect(w.pod('web')?.status?.message).toMatch(/wakes/));
    expect(waiting('debug')?.message).toMatch(/not from here/);
  });
});

describe('tokens of service accounts', () => {
  const automatic = (pod: Pod) => {
    pod.spec.serviceAccountName = 'trainer';
    pod.spec.volumes = [serviceAccountVolume];
    pod.spec.containers[0]!.volumeMounts = [
      { name: serviceAccountVolume.name, mountPath: '/var/run/secrets/kubernetes.io/serviceaccount' },
    ];
  };
  const secretOf = (pod: Pod) => tenantObject(resources.secrets, tokenSecretName(remoteNameOf(pod)));
  const asked = () => w.consumer.requests.filter((r) => r.subresource === 'token');
  beforeEach(() => {
    w.consumer.seed(resources.serviceAccounts, { metadata: { name: 'trainer', namespace: 'team-a' } });
    w.consumer.seed<Data>(resources.configMaps, {
      metadata: { name: 'kube-root-ca.crt', namespace: 'team-a' },
      data: { 'ca.crt': 'PEM' },
    });
  });

  test('are asked for only where the lease lets them out', async () => {
    await w.start();
    const pod = await runs(automatic);
    await aWhile();
    expect(asked()).toEqual([]);
    expect(secretOf(pod)).toBeUndefined();
    expect(w.remote(pod)?.spec.volumes).toBeUndefined();
  });

  test('are bound to the pod, and lie in a Secret that the remote pod owns', async () => {
    await w.start({ serviceAccountTokens: 'Bound' });
    const pod = await runs(automatic);
    await eventually(() => expect(secretOf(pod)).toBeDefined());
    expect(asked()[0]).toMatchObject({
      name: 'trainer',
      namespace: 'team-a',
      body: {
        spec: {
          audiences: [],
          expirationSeconds: 3600,
          boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: 'web', uid: pod.metadata.uid },
        },
      },
    });
    const remote = w.remote(pod)!;
    expect(secretOf(pod)?.metadata.ownerReferences).toEqual([
      { apiVersion: 'v1', kind: 'Pod', name: remote.metadata.name, uid: remote.metadata.uid },
    ]);
    const token = Buffer.from(Object.values(secretOf(pod)!.data!)[0]!, 'base64').toString();
    expect(token).toMatch(/^fake-token-of-team-a-trainer/);
    // Nowhere else.
    expect(JSON.stringify([w.told, w.pod('web'), remote])).not.toContain(token);
    // The pod came first: its Secret belongs to it.
    const posts = w.lease.requests.filter((r) => r.method === 'POST').map((r) => r.path);
    expect(posts.lastIndexOf('kube/secrets')).toBeGreaterThan(posts.indexOf('kube/pods'));
    await aWhile(500);
    expect(asked()).toHaveLength(1);
  });

  test('are given anew after a restart of ours, since nobody knows how old they are', async () => {
    await w.start({ serviceAccountTokens: 'Bound' });
    const pod = await runs(automatic);
    await eventually(() => expect(secretOf(pod)).toBeDefined());
    const before = secretOf(pod)?.data;
    await w.stop();
    await w.start({ serviceAccountTokens: 'Bound' });
    await eventually(() => expect(secretOf(pod)?.data).not.toEqual(before));
    expect(puts()).toEqual([]);
  });

  test('go when the pod has ended', async () => {
    await w.start({ serviceAccountTokens: 'Bound' });
    const pod = await runs(automatic);
    await eventually(() => expect(secretOf(pod)).toBeDefined());
    w.say(pod, { phase: 'Succeeded' });
    await eventually(() => expect(secretOf(pod)).toBeUndefined());
  });

  test('go when the lease lets them out no longer, and are not given to pods that were started without', async () => {
    await w.start({ serviceAccountTokens: 'Bound' });
    const pod = await runs(automatic);
    await eventually(() => expect(secretOf(pod)).toBeDefined());
    await w.stop();
    await w.start({ serviceAccountTokens: 'None' });
    // As a gateway has it: volumes of a pod that runs stay as they are.
    w.provider.intercept(({ method, resource, name }) =>
      method === 'PUT' && resource?.plural === 'pods'
        ? { code: 200, body: w.provider.object(resources.pods, { namespace: 'tenant', name: name! }) }
        : undefined,
    );
    const without = w.bind('without', automatic);
    await eventually(() => expect(w.remote(without)).toBeDefined());
    await w.stop();
    await w.start({ serviceAccountTokens: 'Bound' });
    await aWhile(500);
    expect(secretOf(without)).toBeUndefined();
  });

  test('that cannot be had are told of, and the pod waits', async () => {
    w.consumer.erase(resources.serviceAccounts, { namespace: 'team-a', name: 'trainer' });
    await w.start({ serviceAccountTokens: 'Bound' });
    const pod = w.bind('web', automatic);
    await eventually(() => expect(told('TokenNotCarried')[0]).toMatch(/trainer/));
    w.consumer.seed(resources.serviceAccounts, { metadata: { name: 'trainer', namespace: 'team-a' } });
    await eventually(() => expect(secretOf(pod)).toBeDefined());
  });
});

test('a runtime class that stays behind is told of once', async () => {
  await w.start();
  await runs((pod) => {
    pod.spec.runtimeClassName = 'kata';
  });
  change((pod) => {
    pod.metadata.labels = { a: 'b' };
  });
  await aWhile();
  expect(told('RuntimeClassLeftBehind')).toEqual([expect.stringContaining('kata')]);
});

test('addresses that are no more are taken out of the status, so that it stays valid', async () => {
  await w.start({ podIP: 'Provider' });
  const pod = await runs();
  w.say(pod, { podIP: '10.0.0.1', podIPs: [{ ip: '10.0.0.1' }] });
  await eventually(() => expect(w.pod('web')?.status?.podIPs).toEqual([{ ip: '10.0.0.1' }]));
  w.say(pod, { podIP: '10.0.0.2', podIPs: [{ ip: '10.0.0.2' }] });
  await eventually(() => expect(w.pod('web')?.status?.podIPs).toEqual([{ ip: '10.0.0.2' }]));
});
