/**
 * The life of pods on a leased node, as Kubernetes' own controllers and kubectl see it: real control planes, real kubelet, the
 * whole road through operator and gateway. What is asserted is what the same pod would show on a node of one's own.
 */
import { execFile, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { cpuMillisOf } from '../../operator/core/allocation/room.ts';
import { remoteObjectName, remotePodName } from '../../operator/core/node/names.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { tokenSecretName } from '../../operator/core/node/token-wish.ts';
import { downwardAnnotation } from '../../operator/core/node/translate-pod.ts';
import { type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';
import { lease, leaseManifest, namespaceReady, offersReady, until } from '../../operator/sandbox/scenario.ts';
import { quiet, scratch } from '../support/clusters.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

const run = promisify(execFile);
const ns = 'ml';
let sandbox: Sandbox;
const figures: Record<string, unknown> = {};

const jobs: Resource = { group: 'batch', version: 'v1', plural: 'jobs', kind: 'Job', namespaced: true };
const statefulSets: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'statefulsets',
  kind: 'StatefulSet',
  namespaced: true,
};

beforeAll(async () => {
  sandbox = await startSandbox({ dir: scratch('pod-life'), report: quiet, voucherPeriodSeconds: 2 });
  await namespaceReady(sandbox);
  await offersReady(sandbox);
  const access = { access: { serviceAccountTokens: 'Bound' }, term: { durationSeconds: 3600 } };
  await lease(sandbox, [leaseManifest('train', 'RTX4090', '0.60', access)], quiet);
  // Looked at last: a kubelet measures volumes once a minute.
  const fills = 'dd if=/dev/zero of=/v/big bs=1M count=8; sleep 3600';
  await pod(
    'evicted',
    podSpec(
      fills,
      { volumes: [{ name: 'v', emptyDir: { sizeLimit: '1Mi' } }] },
      { volumeMounts: [{ name: 'v', mountPath: '/v' }] },
    ),
  );
});
afterAll(async () => {
  await sandbox?.stop();
  console.log(JSON.stringify(figures));
});

// --- words -----------------------------------------------------------------------------------------------------------

const placed = {
  nodeSelector: { 'gpulease.dev/lease': 'train' },
  tolerations: [{ operator: 'Exists' }],
  terminationGracePeriodSeconds: 1,
};
const container = (script: string, more: object = {}) => ({
  name: 'main',
  image: TOOLS_IMAGE,
  command: ['sh', '-c', script],
  ...more,
});
const podSpec = (script: string, spec: object = {}, more: object = {}) => ({
  ...placed,
  restartPolicy: 'Never',
  containers: [container(script, more)],
  ...spec,
});
const forever = 'trap "exit 0" TERM; while true; do sleep 1 & wait $!; done';
const apply = (kind: string, name: string, spec: object, metadata: object = {}) => {
  const apiVersion = kind === 'Job' ? 'batch/v1' : kind === 'StatefulSet' || kind === 'Deployment' ? 'apps/v1' : 'v1';
  const object = { apiVersion, kind, metadata: { name, namespace: ns, ...metadata }, spec } as KubeObject;
  return applyManifests(sandbox.consumerCluster, [object], { fieldManager: 'kubectl' });
};
const pod = (name: string, spec: object, metadata: object = {}) => apply('Pod', name, spec, metadata);

const get = (name: string) => sandbox.consumerCluster.get<Pod>(resources.pods, { namespace: ns, name });
const podsOf = async (selector: string) =>
  (await sandbox.consumerCluster.list<Pod & KubeObject>(resources.pods, { namespace: ns, labelSelector: selector }))
    .items;
/** Waits until the pod is as wanted, and gives it back. */
const when = (name: string, what: string, holds: (pod: Pod) => boolean, seconds = 60): Promise<Pod> =>
  until(`pod ${name} ${what}`, seconds, async () => {
    const now = await get(name);
    return now && holds(now) ? now : undefined;
  });
const phase = (name: string, wanted: string, seconds = 60) =>
  when(name, wanted, (it) => it.status?.phase === wanted, seconds);
const gone = (name: string, seconds = 40) =>
  until(`pod ${name} gone`, seconds, async () => ((await get(name)) ? undefined : true));
const main = (it: Pod) => it.status?.containerStatuses?.find(({ name }) => name === 'main');
const condition = (it: Pod, type: string) => it.status?.conditions?.find((c) => c.type === type);

const kubectl = async (...args: string[]) => {
  const config = ['--kubeconfig', sandbox.consumer.kubeconfigPath, '-n', ns];
  const { stdout, stderr } = await run(sandbox.kubectl, [...config, ...args], { maxBuffer: 1 << 24 });
  return { stdout, stderr };
};
const log = async (name: string, ...more: string[]) => (await kubectl('logs', name, ...more)).stdout;
const remove = async (...names: string[]) => void (await kubectl('delete', 'pod', '--wait=false', ...names));
const inPod = async (name: string, script: string) =>
  (await kubectl('exec', name, '-c', 'main', '--', 'sh', '-c', script)).stdout;
const events = async (name: string) => {
  const { stdout } = await kubectl('get', 'events', '--field-selector', `involvedObject.name=${name}`, '-o', 'json');
  return (JSON.parse(stdout) as { items: { reason: string; message: string; note?: string }[] }).items;
};
const atProvider = async (its: Pod) => {
  const name = remotePodName(its.metadata.name, its.metadata.uid!);
  const { items } = await sandbox.providerCluster.list<Pod & KubeObject>(resources.pods, {
    fieldSelector: `metadata.name=${name}`,
  });
  return items[0];
};

// --- controllers of Kubernetes ---------------------------------------------------------------------------------------

describe('a Job', () => {
  test('tries again as often as it says, with exit codes, and then has failed', async () => {
    await apply('Job', 'fails', { backoffLimit: 1, template: { spec: podSpec('echo trying; exit 3') } });
    await until('the Job having failed', 90, async () => {
      const job = await sandbox.consumerCluster.get<KubeObject & { status?: { conditions?: { type: string }[] } }>(
        jobs,
        {
          namespace: ns,
          name: 'fails',
        },
      );
      return job?.status?.conditions?.some((c) => c.type === 'Failed') ? true : undefined;
    });
    const tried = await podsOf('job-name=fails');
    expect(tried).toHaveLength(2);
    for (const it of tried)
      expect(it.status).toMatchObject({
        phase: 'Failed',
        containerStatuses: [{ state: { terminated: { exitCode: 3, reason: 'Error' } } }],
      });
  });

  test('that is indexed gives each pod its index, by variable and by host name', async () => {
    await apply('Job', 'indexed', {
      completionMode: 'Indexed',
      completions: 3,
      parallelism: 3,
      template: { spec: podSpec('echo index $JOB_COMPLETION_INDEX on $(hostname)') },
    });
    await kubectl('wait', 'job/indexed', '--for=condition=Complete', '--timeout=60s');
    const pods = await podsOf('job-name=indexed');
    const lines = await Promise.all(pods.map((it) => log(it.metadata.name)));
    expect(lines.sort()).toEqual([0, 1, 2].map((i) => `index ${i} on indexed-${i}\n`));
  });

  test('with a sidecar is complete when its own container is', async () => {
    await apply('Job', 'sidecar', {
      template: {
        spec: podSpec(
          'until test -f /shared/ready; do sleep 0.1; done; cat /shared/ready',
          {
            volumes: [{ name: 'shared', emptyDir: {} }],
            initContainers: [
              {
                ...container(`echo from the sidecar > /shared/ready; ${forever}`, { restartPolicy: 'Always' }),
                name: 'side',
                volumeMounts: [{ name: 'shared', mountPath: '/shared' }],
              },
            ],
          },
          { volumeMounts: [{ name: 'shared', mountPath: '/shared' }] },
        ),
      },
    });
    await kubectl('wait', 'job/sidecar', '--for=condition=Complete', '--timeout=60s');
    const [it] = await podsOf('job-name=sidecar');
    expect(await log(it!.metadata.name, '-c', 'main')).toBe('from the sidecar\n');
    expect(it?.status?.initContainerStatuses?.[0]?.state?.terminated).toBeDefined();
  });
});

test('a StatefulSet’s pod that is deleted comes back under its name, as another pod', async () => {
  await apply('StatefulSet', 'db', {
    serviceName: 'db',
    replicas: 1,
    selector: { matchLabels: { app: 'db' } },
    template: { metadata: { labels: { app: 'db' } }, spec: { ...podSpec(forever), restartPolicy: 'Always' } },
  });
  const first = await phase('db-0', 'Running');
  expect(await inPod('db-0', 'hostname')).toBe('db-0\n');
  await remove('db-0');
  const second = await when(
    'db-0',
    'anew',
    (it) => it.metadata.uid !== first.metadata.uid && it.status?.phase === 'Running',
  );
  expect(await atProvider(first)).toBeUndefined();
  expect(await atProvider(second)).toBeDefined();
  await sandbox.consumerCluster.delete(statefulSets, { namespace: ns, name: 'db' });
  await gone('db-0');
});

test('a Deployment rolls over to another image without a gap', async () => {
  const spec = (value: string) => ({
    replicas: 2,
    selector: { matchLabels: { app: 'web' } },
    template: {
      metadata: { labels: { app: 'web' } },
      spec: { ...podSpec(forever, {}, { env: [{ name: 'VERSION', value }] }), restartPolicy: 'Always' },
    },
  });
  await apply('Deployment', 'web', spec('1'));
  await kubectl('rollout', 'status', 'deployment/web', '--timeout=60s');
  await apply('Deployment', 'web', spec('2'));
  await kubectl('rollout', 'status', 'deployment/web', '--timeout=60s');
  const [it] = (await podsOf('app=web')).filter(({ metadata }) => !metadata.deletionTimestamp);
  expect(await inPod(it!.metadata.name, 'echo $VERSION')).toBe('2\n');
  await kubectl('delete', 'deployment', 'web');
});

// --- what a kubelet reports ------------------------------------------------------------------------------------------

describe('a pod shows, as a kubelet reports it,', () => {
  test('that it was killed for its memory, and was started again', async () => {
    const hungry = 'test -f /v/again && sleep 3600; touch /v/again; x=a; while true; do x=$x$x; done';
    await pod(
      'hungry',
      podSpec(
        hungry,
        { restartPolicy: 'Always', volumes: [{ name: 'v', emptyDir: {} }] },
        {
          resources: { limits: { memory: '32Mi' } },
          volumeMounts: [{ name: 'v', mountPath: '/v' }],
        },
      ),
    );
    const it = await when(
      'hungry',
      'restarted',
      (p) => (main(p)?.restartCount ?? 0) > 0 && !!main(p)?.state?.running,
      90,
    );
    expect(main(it)?.lastState?.terminated).toMatchObject({ exitCode: 137, reason: 'OOMKilled' });
    await remove('hungry');
  });

  test('that its image cannot be had, in its status and in events', async () => {
    await pod('no-image', podSpec('true', {}, { image: 'registry.invalid/none:1' }));
    const it = await when('no-image', 'waiting for its image', (p) =>
      ['ErrImagePull', 'ImagePullBackOff'].includes(main(p)?.state?.waiting?.reason ?? ''),
    );
    expect(it.status?.phase).toBe('Pending');
    expect(main(it)?.state?.waiting?.message).toContain('registry.invalid/none:1');
    await until('the event', 20, async () =>
      (await events('no-image')).some((e) => e.reason === 'Failed') ? true : undefined,
    );
    await remove('no-image');
    await gone('no-image');
  });

  test('that its init containers ran one after the other, or failed', async () => {
    const volumes = [{ name: 'v', emptyDir: {} }];
    const mounts = { volumeMounts: [{ name: 'v', mountPath: '/v' }] };
    const init = (name: string, script: string) => ({ ...container(script, mounts), name });
    await pod(
      'inits',
      podSpec(
        'cat /v/log',
        { volumes, initContainers: [init('one', 'echo 1 >> /v/log'), init('two', 'echo 2 >> /v/log')] },
        mounts,
      ),
    );
    await pod('bad-init', podSpec('true', { initContainers: [{ ...container('exit 7'), name: 'one' }] }));
    const done = await phase('inits', 'Succeeded');
    expect(await log('inits')).toBe('1\n2\n');
    expect(done.status?.initContainerStatuses?.map((s) => s.state?.terminated?.exitCode)).toEqual([0, 0]);
    const bad = await phase('bad-init', 'Failed');
    expect(bad.status?.initContainerStatuses?.[0]?.state?.terminated?.exitCode).toBe(7);
    expect(condition(bad, 'Initialized')?.status).toBe('False');
  });

  test('that its deadline passed, also one that was set later', async () => {
    await pod('deadline', podSpec(forever));
    await phase('deadline', 'Running');
    await kubectl('patch', 'pod', 'deadline', '-p', '{"spec":{"activeDeadlineSeconds":3}}');
    const it = await phase('deadline', 'Failed', 40);
    expect(it.status?.reason).toBe('DeadlineExceeded');
  });

  test('its last words, and once it has ended nothing else any more', async () => {
    await pod('words', podSpec('echo all is done > /dev/termination-log; exit 0'));
    const it = await phase('words', 'Succeeded');
    expect(main(it)?.state?.terminated).toMatchObject({ exitCode: 0, reason: 'Completed', message: 'all is done\n' });
    await sandbox.providerCluster.delete(resources.pods, {
      namespace: (await atProvider(it))!.metadata.namespace!,
      name: remotePodName('words', it.metadata.uid!),
    });
    await until('it to go at the provider', 20, async () => ((await atProvider(it)) ? undefined : true));
    await sleep(1000);
    expect((await get('words'))?.status).toEqual(it.status);
  });

  test('that it is ready when its probe and its gates say so', async () => {
    await pod(
      'gated',
      podSpec(
        forever,
        { readinessGates: [{ conditionType: 'example.com/go' }] },
        {
          readinessProbe: { exec: { command: ['test', '-f', '/tmp/ready'] }, periodSeconds: 1 },
        },
      ),
    );
    const started = await phase('gated', 'Running');
    expect(condition(started, 'ContainersReady')?.status).toBe('False');
    await inPod('gated', 'touch /tmp/ready');
    const waits = await when(
      'gated',
      'its containers ready',
      (p) => condition(p, 'ContainersReady')?.status === 'True',
    );
    expect(condition(waits, 'Ready')).toMatchObject({ status: 'False', reason: 'ReadinessGatesNotReady' });
    const go = JSON.stringify({ status: { conditions: [{ type: 'example.com/go', status: 'True' }] } });
    await kubectl('patch', 'pod', 'gated', '--subresource=status', '-p', go);
    await when('gated', 'ready', (p) => condition(p, 'Ready')?.status === 'True');
    await remove('gated');
  });
});

test('hooks run after the start and before the end', async () => {
  await pod(
    'hooks',
    podSpec(
      `sleep 1; cat /tmp/started; ${forever}`,
      { terminationGracePeriodSeconds: 20 },
      {
        lifecycle: {
          postStart: { exec: { command: ['sh', '-c', 'echo post-start > /tmp/started'] } },
          preStop: { exec: { command: ['sh', '-c', 'echo pre-stop > /proc/1/fd/1; sleep 1'] } },
        },
      },
    ),
  );
  await phase('hooks', 'Running');
  const follow = spawn(sandbox.kubectl, [
    ...['--kubeconfig', sandbox.consumer.kubeconfigPath, '-n', ns],
    ...['logs', '-f', 'hooks'],
  ]);
  let text = '';
  follow.stdout.on('data', (chunk) => (text += chunk));
  await until('the first hook', 20, () => (text.includes('post-start') ? true : undefined));
  await remove('hooks');
  await until('the second hook', 20, () => (text.includes('pre-stop') ? true : undefined));
  follow.kill();
  await gone('hooks');
});

test('a deletion’s grace may be cut short, and then takes no longer than on a node of one’s own', async () => {
  const spec = podSpec('trap "" TERM; while true; do sleep 1; done', { terminationGracePeriodSeconds: 15 });
  await pod('slow', spec);
  const it = await phase('slow', 'Running');
  // Beside it, on the same kubelet, a pod of the provider's own.
  const plain = { namespace: 'default', name: 'slow' };
  const { nodeName } = (await atProvider(it))!.spec;
  await sandbox.providerCluster.create<Pod & KubeObject>(resources.pods, {
    metadata: plain,
    spec: { ...(spec as unknown as Pod['spec']), nodeSelector: {}, nodeName },
  } as Pod & KubeObject);
  const plainNow = () => sandbox.providerCluster.get<Pod & KubeObject>(resources.pods, plain);
  await until('the plain pod to run', 30, async () =>
    (await plainNow())?.status?.phase === 'Running' ? true : undefined,
  );
  await Promise.all([remove('slow'), sandbox.providerCluster.delete(resources.pods, plain)]);
  await until('the end at the provider', 20, async () =>
    (await atProvider(it))?.metadata.deletionTimestamp ? true : undefined,
  );
  await sleep(1000);
  expect((await get('slow'))?.metadata.deletionGracePeriodSeconds).toBe(15);
  const from = Date.now();
  const ended = (look: () => Promise<unknown>) =>
    until('its end', 30, async () => ((await look()) ? undefined : (Date.now() - from) / 1000));
  await Promise.all([
    kubectl('delete', 'pod', 'slow', '--grace-period=1', '--wait=false'),
    sandbox.providerCluster.delete(resources.pods, plain, { gracePeriodSeconds: 1 }),
  ]);
  await until('the shorter grace at the provider', 5, async () => {
    const remote = await atProvider(it);
    return !remote || remote.metadata.deletionGracePeriodSeconds === 1 ? true : undefined;
  });
  const [leasedSeconds, plainSeconds] = await Promise.all([ended(() => get('slow')), ended(plainNow)]);
  Object.assign(figures, { graceCutShort: { leasedSeconds, plainSeconds } });
  expect(leasedSeconds).toBeLessThan(plainSeconds + 4);
});

// --- changes of a pod that runs --------------------------------------------------------------------------------------

describe('of a pod that runs', () => {
  const limits = { limits: { cpu: '500m', memory: '64Mi' }, requests: { cpu: '100m', memory: '32Mi' } };
  beforeAll(async () => {
    await pod(
      'live',
      podSpec(
        forever,
        {
          restartPolicy: 'Always',
          volumes: [
            {
              name: 'info',
              downwardAPI: { items: [{ path: 'labels', fieldRef: { fieldPath: 'metadata.labels' } }] },
            },
          ],
        },
        { resources: limits, volumeMounts: [{ name: 'info', mountPath: '/info' }] },
      ),
      { labels: { stage: 'one' } },
    );
    await phase('live', 'Running');
  });

  test('the resources change in place, within the lease', async () => {
    const before = (await get('live'))!;
    const resize = (cpu: string) =>
      kubectl(
        ...['patch', 'pod', 'live', '--subresource=resize', '-p'],
        JSON.stringify({
          spec: { containers: [{ name: 'main', resources: { requests: { cpu }, limits: { cpu: '700m' } } }] },
        }),
      );
    const from = Date.now();
    await resize('200m');
    const it = await when('live', 'resized', (p) => main(p)?.resources?.limits?.cpu === '700m', 60);
    figures.resizeSeconds = (Date.now() - from) / 1000;
    expect(main(it)?.resources).toMatchObject({
      requests: { cpu: '200m', memory: '32Mi' },
      limits: { cpu: '700m', memory: '64Mi' },
    });
    expect(main(it)?.allocatedResources).toMatchObject({ cpu: '200m' });
    expect(main(it)).toMatchObject({ restartCount: 0, containerID: main(before)!.containerID });
    expect((await atProvider(it))?.spec.containers[0]?.resources?.requests?.cpu).toBe('200m');
  });

  test('more than there is room for now waits until there is', async () => {
    const allocatable = (await sandbox.consumerCluster.get<KubeObject & { status: { allocatable: { cpu: string } } }>(
      resources.nodes,
      {
        name: (await get('live'))!.spec.nodeName!,
      },
    ))!.status.allocatable.cpu;
    const millis = Number(cpuMillisOf(allocatable));
    await pod('hog', podSpec(forever, {}, { resources: { requests: { cpu: `${Math.round(millis / 2)}m` } } }));
    await phase('hog', 'Running');
    const cpu = `${Math.round(millis * 0.7)}m`;
    const body = { spec: { containers: [{ name: 'main', resources: { requests: { cpu }, limits: { cpu } } }] } };
    await kubectl('patch', 'pod', 'live', '--subresource=resize', '-p', JSON.stringify(body));
    const it = await when('live', 'deferred', (p) => condition(p, 'PodResizePending')?.reason === 'Deferred');
    expect(condition(it, 'PodResizePending')?.message).toContain('no room');
    expect(it.status?.phase).toBe('Running');
    expect(main(it)?.allocatedResources?.cpu).toBe('200m');
    await remove('hog');
    const after = await when('live', 'resized', (p) => main(p)?.allocatedResources?.cpu === cpu, 60);
    expect(main(after)?.restartCount).toBe(0);
    await when('live', 'at rest', (p) => condition(p, 'PodResizePending') === undefined);
  });

  test('a container comes for debugging, by kubectl', async () => {
    await kubectl(
      ...['debug', 'live', '--profile=baseline', '--image', TOOLS_IMAGE, '--target=main', '-c', 'debugger'],
      ...['--', 'sh', '-c', 'echo debugged $(hostname); sleep 30'],
    );
    const it = await when(
      'live',
      'debugged',
      (p) => p.status?.ephemeralContainerStatuses?.some((s) => s.name === 'debugger' && s.state?.running) === true,
    );
    expect(it.spec.ephemeralContainers).toHaveLength(1);
    await until('its log', 20, async () =>
      (await log('live', '-c', 'debugger')) === 'debugged live\n' ? true : undefined,
    );
  });

  test('one that may not run says why, where kubectl debug shows it', async () => {
    const debug = spawn(sandbox.kubectl, [
      ...['--kubeconfig', sandbox.consumer.kubeconfigPath, '-n', ns],
      ...['debug', '-i', 'live', '--image', TOOLS_IMAGE, '-c', 'tracer', '--', 'true'],
    ]);
    let text = '';
    for (const stream of [debug.stdout, debug.stderr]) stream.on('data', (chunk) => (text += chunk));
    try {
      await until('the words', 30, () => (text.includes('--profile=baseline') ? true : undefined));
    } finally {
      debug.kill();
    }
  });

  test('a new label is shown in its file, and a new image starts anew in its place', async () => {
    const from = Date.now();
    await kubectl('label', 'pod', 'live', '--overwrite', 'stage=two');
    const shown = downwardAnnotation('metadata.labels');
    await until('the label at the provider', 10, async () =>
      (await atProvider((await get('live'))!))?.metadata.annotations?.[shown]?.includes('stage="two"')
        ? true
        : undefined,
    );
    figures.labelCarriedSeconds = (Date.now() - from) / 1000;
    await until('the file', 120, async () =>
      (await inPod('live', 'cat /info/labels')).includes('stage="two"') ? true : undefined,
    );
    figures.labelInFileSeconds = (Date.now() - from) / 1000;
    await kubectl('set', 'image', 'pod/live', 'main=registry.invalid/none:2');
    await until('the image at the provider', 20, async () =>
      (await atProvider((await get('live'))!))?.spec.containers[0]?.image === 'registry.invalid/none:2'
        ? true
        : undefined,
    );
    await remove('live');
    await gone('live');
  });
});

test('Services are told as they are when a container starts; their later changes touch no pod', async () => {
  const service = (name: string) =>
    apply('Service', name, { selector: { app: 'none' }, ports: [{ port: 8080, name: 'http' }] });
  await service('first');
  await pod('told', podSpec('env | grep _SERVICE_HOST | sort; exec sleep 3600', { restartPolicy: 'Always' }));
  const before = await phase('told', 'Running');
  const seen = await until('its variables', 20, async () => (await log('told')) || undefined);
  expect(seen).toMatch(/^FIRST_SERVICE_HOST=10\.[\d.]+\nKUBERNETES_SERVICE_HOST=10\.[\d.]+\n$/);
  await service('second');
  await sleep(2000);
  const { metadata } = (await atProvider(before))!;
  expect(metadata.generation ?? 1).toBe(1);
  await inPod('told', 'kill -9 1 || kill 1').catch(() => undefined);
  await pod('told-later', podSpec('env | grep _SERVICE_HOST | sort'));
  await phase('told-later', 'Succeeded');
  expect(await log('told-later')).toContain('SECOND_SERVICE_HOST=');
  await pod('told-nothing', podSpec('env | grep _SERVICE_HOST | sort', { enableServiceLinks: false }));
  await phase('told-nothing', 'Succeeded');
  expect(await log('told-nothing')).toMatch(/^KUBERNETES_SERVICE_HOST=[\d.]+\n$/);
  await remove('told');
});

test('a mounted ConfigMap is carried within a second of its change; the file follows when the kubelet looks', async () => {
  const data = (value: string) =>
    applyManifests(
      sandbox.consumerCluster,
      [
        {
          apiVersion: 'v1',
          kind: 'ConfigMap',
          metadata: { name: 'conf', namespace: ns },
          data: { key: value },
        } as KubeObject,
      ],
      { fieldManager: 'kubectl' },
    );
  await data('one');
  await pod(
    'mounted',
    podSpec(
      forever,
      { volumes: [{ name: 'c', configMap: { name: 'conf' } }] },
      {
        volumeMounts: [{ name: 'c', mountPath: '/c' }],
      },
    ),
  );
  const it = await phase('mounted', 'Running');
  const { namespace } = (await atProvider(it))!.metadata;
  const remote = () =>
    sandbox.providerCluster.get<KubeObject & { data?: Record<string, string> }>(resources.configMaps, {
      namespace,
      name: remoteObjectName('ConfigMap', ns, 'conf'),
    });
  await sleep(1000);
  const from = Date.now();
  await data('two');
  await until('the object', 10, async () => ((await remote())?.data?.key === 'two' ? true : undefined));
  figures.configMapCarriedSeconds = (Date.now() - from) / 1000;
  await until('the file', 120, async () => ((await inPod('mounted', 'cat /c/key')) === 'two' ? true : undefined));
  figures.configMapInFileSeconds = (Date.now() - from) / 1000;
  expect(figures.configMapCarriedSeconds).toBeLessThan(5);
  await remove('mounted');
});

test('a token of its account is where it usually is, bound to the pod, short, and gone with it', async () => {
  const dir = '/var/run/secrets/kubernetes.io/serviceaccount';
  await pod('account', podSpec(forever));
  const it = await phase('account', 'Running');
  const token = await inPod('account', `cat ${dir}/token`);
  expect(await inPod('account', `cat ${dir}/namespace`)).toBe(ns);
  expect(await inPod('account', `cat ${dir}/ca.crt`)).toContain('BEGIN CERTIFICATE');
  const claims = JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString()) as {
    exp: number;
    iat: number;
    sub: string;
    'kubernetes.io': { pod: { name: string; uid: string } };
  };
  expect(claims.exp - claims.iat).toBeLessThanOrEqual(3600);
  expect(claims.sub).toBe(`system:serviceaccount:${ns}:default`);
  expect(claims['kubernetes.io'].pod).toEqual({ name: 'account', uid: it.metadata.uid });
  const review = async () =>
    (
      await sandbox.consumerCluster.create<KubeObject & { spec: object; status?: { authenticated?: boolean } }>(
        resources.tokenReviews,
        { metadata: { name: '' }, spec: { token } },
      )
    ).status?.authenticated;
  expect(await review()).toBe(true);
  const remote = (await atProvider(it))!;
  const secret = () =>
    sandbox.providerCluster.get<KubeObject>(resources.secrets, {
      namespace: remote.metadata.namespace,
      name: tokenSecretName(remote.metadata.name),
    });
  expect((await secret())?.metadata.ownerReferences).toMatchObject([{ kind: 'Pod', uid: remote.metadata.uid }]);
  await remove('account');
  await gone('account');
  await until('the Secret to go', 20, async () => ((await secret()) ? undefined : true));
  // API servers remember for ten seconds that a token was good.
  await until('the token to be worth nothing', 30, async () => ((await review()) ? undefined : true));
  const all = await kubectl('get', 'events,pods', '-o', 'yaml');
  expect(all.stdout).not.toContain(token);
});

test('names inside are those of this cluster, and newer fields do what they say', async () => {
  await pod('dotted.name', podSpec('hostname'));
  await pod('whole', podSpec('hostname', { subdomain: 'sub', setHostnameAsFQDN: true }));
  await pod(
    'filed',
    podSpec(
      'echo $GREETING from $POD_NS',
      {
        volumes: [{ name: 'v', emptyDir: {} }],
        initContainers: [
          {
            ...container(`echo "GREETING='hello'" > /v/env`, { volumeMounts: [{ name: 'v', mountPath: '/v' }] }),
            name: 'writes',
          },
        ],
      },
      {
        env: [
          { name: 'GREETING', valueFrom: { fileKeyRef: { volumeName: 'v', path: 'env', key: 'GREETING' } } },
          { name: 'POD_NS', valueFrom: { fieldRef: { fieldPath: 'metadata.namespace' } } },
        ],
      },
    ),
  );
  await pod(
    'whole-limits',
    podSpec('echo ok', { resources: { requests: { cpu: '100m' }, limits: { cpu: '200m', memory: '64Mi' } } }),
  );
  await Promise.all(['dotted.name', 'whole', 'filed', 'whole-limits'].map((name) => phase(name, 'Succeeded')));
  expect(await log('dotted.name')).toBe('dotted.name\n');
  expect(await log('whole')).toBe(`whole.sub.${ns}.svc.cluster.local\n`);
  expect(await log('filed')).toBe(`hello from ${ns}\n`);
  expect((await atProvider((await get('whole-limits'))!))?.spec.resources).toMatchObject({
    requests: { cpu: '100m' },
    limits: { cpu: '200m', memory: '64Mi' },
  });
});

test('a pod that takes more room than it said is evicted, and shows it as such', async () => {
  const it = await phase('evicted', 'Failed', 180);
  expect(it.status).toMatchObject({ reason: 'Evicted', message: expect.stringContaining('exceeds the limit "1Mi"') });
  await until('the event', 20, async () =>
    (await events('evicted')).some((e) => e.reason === 'Evicted') ? true : undefined,
  );
});
