/**
 * Which pods get to a leased node, on real control planes: the default scheduler, the real DaemonSet, Job and disruption
 * controllers, and the shipped policies between them. The provider's node and the consumer's own worker are hollow.
 */
import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { servingCertificates } from '../../operator/adapters/kube/serving-certificate.ts';
import { customResourceDefinition } from '../../operator/api/crd.ts';
import { deviceClass } from '../../operator/api/device-class.ts';
import { kinds } from '../../operator/api/kinds.ts';
import { policies } from '../../operator/api/policies.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { createEventRecorder } from '../../operator/engine/events.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { createVirtualNodes, type NodeSpec, type VirtualNodes } from '../../operator/kubelet/virtual-nodes.ts';
import { RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { startHollowNode } from '../../operator/sandbox/clusters/hollow-node.ts';
import type { ClusterNode } from '../../operator/sandbox/clusters/node.ts';
import { type Plane, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, quiet, scratch, testNamespace } from '../support/clusters.ts';
import { type FakeLease, fakeLease, served } from '../unit/kubelet/fake-lease.ts';

type Json = Record<string, unknown>;
const apps = (plural: string, kind: string) => ({ group: 'apps', version: 'v1', plural, kind, namespaced: true });
const daemonSets = apps('daemonsets', 'DaemonSet');
const deployments = apps('deployments', 'Deployment');
const jobs = { group: 'batch', version: 'v1', plural: 'jobs', kind: 'Job', namespaced: true };
const budgets = {
  group: 'policy',
  version: 'v1',
  plural: 'poddisruptionbudgets',
  kind: 'PodDisruptionBudget',
  namespaced: true,
};

const dir = scratch('scheduling');
let planes: { consumer: Plane; provider: Plane };
const hollow: ClusterNode[] = [];
let consumer: Cluster;
let provider: Cluster;
/** Of the leases; and one that may use none of them. */
let team: string;
let stranger: string;
/** Each has a tenant of its own at the provider. */
const leases: FakeLease[] = [];
const sent = () => leases.flatMap(({ requests }) => requests);
let nodes: VirtualNodes;
const stopping = new AbortController();
let running: Promise<unknown>;
/** Names of the nodes, by lease: `open` is untainted, `spare` of a pool, `claims` shows its GPUs as devices. */
const nodeOf = { train: '', open: '', spare: '', claims: '' };
const worker = 'worker-1';

const tolerateAll = [{ operator: 'Exists' }];
const daemonSet = (name: string): KubeObject =>
  ({
    metadata: { name, namespace: team },
    spec: {
      selector: { matchLabels: { app: name } },
      template: {
        metadata: { labels: { app: name } },
        spec: {
          tolerations: tolerateAll,
          containers: [{ name: 'main', image: 'none', resources: { requests: { cpu: '100m' } } }],
        },
      },
    },
  }) as KubeObject;

beforeAll(async () => {
  const tools = await ensureTools({ need: ['plane', 'hollow'], report: quiet });
  const plane = (its: string) => startPlane({ name: its, dir: join(dir, its), tools, report: quiet });
  const [c, p] = await Promise.all([plane('consumer'), plane('provider')]);
  planes = { consumer: c, provider: p };
  const node = (of: Plane, name: string, gpus: number) =>
    startHollowNode({
      plane: of,
      name,
      dir: join(dir, name),
      gpus: simulatedGpus(name, RTX_4090, gpus),
      report: quiet,
      kwok: tools.kwok!,
    });
  hollow.push(...(await Promise.all([node(c, worker, 0), node(p, 'gpu-hollow', 8)])));
  consumer = connectCluster({ name: 'consumer', kubeconfig: c.kubeconfig });
  provider = connectCluster({ name: 'provider', kubeconfig: p.kubeconfig });
  team = (await testNamespace(c, 'team')).name;
  stranger = (await testNamespace(c, 'stranger')).name;

  // One is there before the policies, as a cluster's network is.
  await consumer.create(daemonSets, daemonSet('older'));
  await applyManifests(
    consumer,
    [...kinds.map(customResourceDefinition), ...policies.flatMap((policy) => policy.manifests), deviceClass],
    { fieldManager: 'test' },
  );
  // What is applied is used some moments later.
  await eventually(async () => {
    const seen = await c.api.call<Pod>('POST', `/api/v1/namespaces/${team}/pods?dryRun=All`, pod('dry', 'train'));
    return seen.spec.nodeSelector !== undefined;
  }, 'the policies');

  nodes = createVirtualNodes({
    cluster: consumer,
    address: '127.0.0.1',
    listenHost: '127.0.0.1',
    kubeletVersion: 'v1.36.3+gpulease.test',
    certificates: servingCertificates({ cluster: consumer, now: () => new Date(), log: silentLog }),
    events: createEventRecorder({ cluster: consumer, controller: 'gpulease.dev/test', instance: 'test' }),
    log: silentLog,
  });
  running = nodes.run(stopping.signal);
  const start = async (name: string, more: Partial<NodeSpec> = {}) => {
    const lease = fakeLease(provider, (await testNamespace(p, `tenant-${name}`)).name);
    leases.push(lease);
    return nodes.start(
      {
        lease: { name, namespace: team, uid: `${name}-0000` },
        leaseId: `0x${'1'.repeat(64)}`,
        providerName: 'acme',
        offerName: 'acme-4090',
        capacityType: 'OnDemand',
        allowedNamespaces: [team],
        served: { ...served(2), resources: { cpu: '64', memory: '512Gi', ephemeralStorage: '20Gi' } },
        healthy: () => ({ ready: true }),
        ...more,
      },
      lease,
    ).name;
  };
  nodeOf.train = await start('train');
  nodeOf.open = await start('open', { untainted: true });
  nodeOf.spare = await start('spare', { pool: 'gpus' });
  nodeOf.claims = await start('claims', { gpusAs: 'Devices' });
  for (const name of Object.values(nodeOf))
    await eventually(async () => nodes.get(name)!.state.ready, `node ${name} to be ready`);
});

afterAll(async () => {
  stopping.abort(new Error('stopped'));
  await running;
  await Promise.all(hollow.map((node) => node.stop()));
  await Promise.all([planes?.consumer.stop(), planes?.provider.stop()]);
  rmSync(dir, { recursive: true, force: true });
});

const gpu = { limits: { 'nvidia.com/gpu': 1 } };
/** As somebody writes it who knows the name of the lease, and nothing else. */
const pod = (name: string, leaseName?: string, spec: Json = {}, labels: Json = {}): Pod =>
  ({
    metadata: {
      name,
      namespace: team,
      labels: { app: name, ...(leaseName && { 'gpulease.dev/lease': leaseName }), ...labels },
    },
    spec: { containers: [{ name: 'main', image: 'none', resources: gpu }], ...spec },
  }) as Pod;
const get = (name: string, namespace = team) => consumer.get<Pod>(resources.pods, { namespace, name });
async function runs(name: string, namespace = team): Promise<Pod> {
  await eventually(async () => (await get(name, namespace))?.status?.phase === 'Running', `pod ${name} to run`);
  return (await get(name, namespace))!;
}
const remove = (name: string, namespace = team) =>
  consumer.delete(resources.pods, { namespace, name }, { gracePeriodSeconds: 0 });

interface Event extends KubeObject {
  reason: string;
  note?: string;
  regarding: { name: string; kind: string };
  series?: { count: number };
  deprecatedCount?: number;
}
const eventsOf = async (name: string, namespace = team) =>
  (await consumer.list<Event>(resources.eventsV1, { namespace })).items.filter(
    ({ regarding }) => regarding.name === name,
  );
const counted = (events: readonly Event[]) =>
  events.reduce((sum, event) => sum + (event.series?.count ?? event.deprecatedCount ?? 1), 0);

function kubectl(...args: string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    execFile(
      planes.consumer.tools.kubectl,
      ['--kubeconfig', planes.consumer.kubeconfigPath, '-n', team, ...args],
      (error, stdout, stderr) => resolve({ code: error ? Number(error.code ?? 1) : 0, output: stdout + stderr }),
    );
  });
}

/** What a kubelet would say; a hollow one ends pods of Jobs only, and knows of none. */
async function endJobsAtProvider(): Promise<void> {
  const { items } = await provider.list<Pod>(resources.pods, {});
  for (const { metadata, status } of items) {
    if (!metadata.name.startsWith('batch-') || status?.phase !== 'Running') continue;
    const state = { terminated: { exitCode: 0, reason: 'Completed', finishedAt: new Date().toISOString() } };
    const containerStatuses = status.containerStatuses?.map((one) => ({ ...one, ready: false, state }));
    await provider.patch(
      resources.pods,
      { namespace: metadata.namespace, name: metadata.name },
      { status: { phase: 'Succeeded', containerStatuses } },
      { type: 'strategic', subresource: 'status' },
    );
  }
}

describe('a pod gets to a leased node', () => {
  test('by the label of its lease, and nothing else', async () => {
    await consumer.create(resources.pods, pod('by-label', 'train'));
    expect((await runs('by-label')).spec.nodeName).toBe(nodeOf.train);
    await remove('by-label');
  });

  test('by the label of a pool', async () => {
    await consumer.create(resources.pods, pod('by-pool', undefined, {}, { 'gpulease.dev/pool': 'gpus' }));
    expect((await runs('by-pool')).spec.nodeName).toBe(nodeOf.spare);
    await remove('by-pool');
  });

  test('by what its GPU is like, among the labels of feature discovery', async () => {
    const matchExpressions = [
      { key: 'nvidia.com/gpu.product', operator: 'In', values: ['NVIDIA-GeForce-RTX-4090'] },
      { key: 'gpulease.dev/lease', operator: 'In', values: ['spare'] },
    ];
    const affinity = {
      nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchExpressions }] } },
    };
    await consumer.create(resources.pods, pod('by-product', undefined, { affinity, tolerations: tolerateAll }));
    expect((await runs('by-product')).spec.nodeName).toBe(nodeOf.spare);
    await remove('by-product');
  });

  test('without any label when its lease is untainted', async () => {
    await consumer.create(resources.pods, pod('unlabelled'));
    expect((await runs('unlabelled')).spec.nodeName).toBe(nodeOf.open);
    await remove('unlabelled');
  });

  test('as part of a Job, which ends', async () => {
    await consumer.create(jobs, {
      metadata: { name: 'batch', namespace: team },
      spec: {
        completions: 4,
        parallelism: 2,
        template: {
          metadata: { labels: { 'gpulease.dev/lease': 'train' } },
          spec: { ...pod('x').spec, restartPolicy: 'Never' },
        },
      },
    } as KubeObject);
    await eventually(async () => {
      await endJobsAtProvider();
      const job = await consumer.get<KubeObject & { status?: { succeeded?: number } }>(jobs, {
        namespace: team,
        name: 'batch',
      });
      return job?.status?.succeeded === 4;
    }, 'the Job to complete');
    const { items } = await consumer.list<Pod>(resources.pods, { namespace: team, labelSelector: 'job-name=batch' });
    expect(items.map((one) => one.spec.nodeName)).toEqual(items.map(() => nodeOf.train));
  });
});

describe('a namespace that may not use a lease', () => {
  const named = { 'gpulease.dev/lease': 'train', 'gpulease.dev/lease-namespace': '' };

  test('keeps its pod Pending, with the reason in its events, and nothing of it leaves', async () => {
    const intruder = pod('intruder', 'train', {}, { ...named, 'gpulease.dev/lease-namespace': team });
    intruder.metadata.namespace = stranger;
    await consumer.create(resources.pods, intruder);
    await eventually(
      async () => (await eventsOf('intruder', stranger)).some(({ note }) => note?.includes('may not use lease')),
      'the reason',
    );
    const [event] = (await eventsOf('intruder', stranger)).filter(({ note }) => note?.includes('may not use lease'));
    expect(event).toMatchObject({ reason: 'FailedScheduling' });
    expect(event!.note).toContain(
      `pods of namespace ${stranger} may not use lease ${team}/train: add the namespace to spec.access.namespaces`,
    );
    const stays = await get('intruder', stranger);
    expect(stays?.spec.nodeName).toBeUndefined();
    expect(stays?.status?.phase).toBe('Pending');
    expect(JSON.stringify(sent())).not.toContain('intruder');
    await remove('intruder', stranger);
  });

  test.each([
    ['an untainted one', {}],
    ['those whose taints they tolerate', { tolerations: tolerateAll }],
  ])('has its pods run elsewhere, though leased nodes have far more room: %s', async (_, spec) => {
    for (const name of ['plain-1', 'plain-2', 'plain-3']) {
      const plain = pod(name, undefined, { containers: [{ name: 'main', image: 'none' }], ...spec });
      plain.metadata.namespace = stranger;
      await consumer.create(resources.pods, plain);
      expect((await runs(name, stranger)).spec.nodeName).toBe(worker);
      await remove(name, stranger);
    }
    expect(JSON.stringify(sent())).not.toContain('plain-');
  });
});

describe('a lease that shows its GPUs as devices', () => {
  const claims = (plural: string, kind: string) => ({
    group: 'resource.k8s.io',
    version: 'v1',
    plural,
    kind,
    namespaced: true,
  });
  const request = (count: number, expression: string) => ({
    devices: {
      requests: [
        {
          name: 'gpu',
          exactly: { deviceClassName: 'gpulease.dev', count, selectors: [{ cel: { expression } }] },
        },
      ],
    },
  });
  const template = (name: string, count: number, expression: string) =>
    consumer.create(claims('resourceclaimtemplates', 'ResourceClaimTemplate'), {
      metadata: { name, namespace: team },
      spec: { spec: request(count, expression) },
    } as KubeObject);
  const claiming = (name: string, templateName: string): Pod =>
    pod(name, 'claims', {
      containers: [{ name: 'main', image: 'none', resources: { claims: [{ name: 'gpu' }] } }],
      resourceClaims: [{ name: 'gpu', resourceClaimTemplateName: templateName }],
    });

  test('serves claims, and the provider is asked for as many GPUs', async () => {
    const node = await consumer.get<KubeObject & { status?: { allocatable?: Json } }>(resources.nodes, {
      name: nodeOf.claims,
    });
    expect(node?.status?.allocatable).not.toHaveProperty('nvidia.com/gpu');
    await template('pair', 2, "device.attributes['gpulease.dev'].productName.startsWith('NVIDIA-')");
    await consumer.create(resources.pods, claiming('claimant', 'pair'));
    expect((await runs('claimant')).spec.nodeName).toBe(nodeOf.claims);
    const { body } = sent().find((one) => one.method === 'POST' && JSON.stringify(one.body).includes('claimant'))!;
    const { spec } = body as { spec: { resourceClaims?: unknown; containers: { resources: Json }[] } };
    expect(spec.containers[0]?.resources).toMatchObject({ limits: { 'nvidia.com/gpu': '2' } });
    expect(spec.resourceClaims).toBeUndefined();

    // They are taken: the next one waits, and gets them when they are free.
    await template('single', 1, 'true');
    await consumer.create(resources.pods, claiming('next', 'single'));
    await eventually(
      async () => (await eventsOf('next')).some((e) => e.note?.includes('cannot allocate all claims')),
      'the wait',
    );
    await remove('claimant');
    expect((await runs('next')).spec.nodeName).toBe(nodeOf.claims);
    await remove('next');
  });

  test('takes its slice along when it ends', async () => {
    const slices = {
      group: 'resource.k8s.io',
      version: 'v1',
      plural: 'resourceslices',
      kind: 'ResourceSlice',
      namespaced: false,
    };
    expect(await consumer.get(slices, { name: nodeOf.claims })).toBeDefined();
    await eventually(() => nodes.remove(nodeOf.claims), 'the node to go');
    await eventually(
      async () => (await consumer.get(slices, { name: nodeOf.claims })) === undefined,
      'the slice to go',
    );
  });
});

describe('DaemonSets that tolerate everything', () => {
  const podsOf = async (name: string) =>
    (await consumer.list<Pod>(resources.pods, { namespace: team, labelSelector: `app=${name}` })).items;
  const status = async (name: string) =>
    (await consumer.get<KubeObject & { status?: Record<string, number> }>(daemonSets, { namespace: team, name }))
      ?.status;

  test('make pods for the workers, none for leased nodes, and stay quiet', { timeout: 180_000 }, async () => {
    await consumer.create(daemonSets, daemonSet('newer'));
    await eventually(async () => (await status('newer'))?.numberReady === 1, 'the pod of the worker');
    expect(await status('newer')).toMatchObject({ desiredNumberScheduled: 1, currentNumberScheduled: 1 });
    expect((await podsOf('newer')).map((one) => one.spec.nodeName)).toEqual([worker]);

    // The one from before: a pod a leased node, bound nowhere, so that it takes nothing of what is leased.
    const where = async () => (await podsOf('older')).map((one) => one.spec.nodeName ?? 'nowhere').sort();
    await eventually(async () => (await where()).length === 4, 'the pods of the older one').catch(async () => {
      expect(await where()).toEqual(['nowhere', 'nowhere', 'nowhere', worker]);
    });
    const unbound = (await podsOf('older')).filter((one) => one.spec.nodeName === undefined);
    expect(unbound).toHaveLength(3);
    const about = async () => {
      const all = await Promise.all(
        ['older', 'newer', ...unbound.map((one) => one.metadata.name)].map((name) => eventsOf(name)),
      );
      return counted(all.flat());
    };
    await sleep(3000);
    const before = await about();
    await sleep(60_000);
    const after = await about();
    console.log(JSON.stringify({ daemonSetEvents: before, in60SecondsMore: after - before }));
    expect(after - before).toBeLessThanOrEqual(3);
    expect((await podsOf('older')).map((one) => one.metadata.uid).sort()).toEqual(
      [...unbound, ...(await podsOf('older')).filter((one) => one.spec.nodeName)].map((one) => one.metadata.uid).sort(),
    );
  });

  test('that were there before leave the leased nodes with their next rollout', async () => {
    expect((await kubectl('rollout', 'restart', 'daemonset/older')).code).toBe(0);
    const { code, output } = await kubectl('rollout', 'status', 'daemonset/older', '--timeout=60s');
    expect(code, output).toBe(0);
    await eventually(async () => (await podsOf('older')).length === 1, 'the unbound pods to go');
    expect(await status('older')).toMatchObject({ desiredNumberScheduled: 1 });
  });
});

describe('somebody empties a leased node', () => {
  const deployment = (name: string): KubeObject =>
    ({
      metadata: { name, namespace: team },
      spec: {
        replicas: 2,
        selector: { matchLabels: { app: name } },
        template: { metadata: { labels: pod(name, 'train').metadata.labels }, spec: pod(name).spec },
      },
    }) as KubeObject;
  const here = async (app: string) =>
    (await consumer.list<Pod>(resources.pods, { namespace: team, labelSelector: `app=${app}` })).items.filter(
      (one) => !one.metadata.deletionTimestamp,
    );
  const ready = async (app: string) =>
    (await here(app)).filter((one) => one.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True'));

  test('kubectl cordon keeps new pods away, and the node stays as it is otherwise', async () => {
    expect((await kubectl('cordon', nodeOf.spare)).code).toBe(0);
    await consumer.create(resources.pods, pod('late', undefined, {}, { 'gpulease.dev/pool': 'gpus' }));
    await eventually(async () => (await eventsOf('late')).some((e) => e.note?.includes('unschedulable')), 'the reason');
    nodes.get(nodeOf.spare)!.refresh();
    await sleep(500);
    expect((await get('late'))?.spec.nodeName).toBeUndefined();
    expect((await kubectl('uncordon', nodeOf.spare)).code).toBe(0);
    expect((await runs('late')).spec.nodeName).toBe(nodeOf.spare);
    await remove('late');
  });

  test('kubectl drain waits for a PodDisruptionBudget, and is done when it allows', async () => {
    await consumer.create(deployments, deployment('web'));
    await eventually(async () => (await ready('web')).length === 2, 'both pods');
    await consumer.create(budgets, {
      metadata: { name: 'web', namespace: team },
      spec: { minAvailable: 1, selector: { matchLabels: { app: 'web' } } },
    } as KubeObject);
    await eventually(async () => {
      const budget = await consumer.get<KubeObject & { status?: { disruptionsAllowed?: number } }>(budgets, {
        namespace: team,
        name: 'web',
      });
      return budget?.status?.disruptionsAllowed === 1;
    }, 'the budget to be counted');
    const first = await kubectl('drain', nodeOf.train, '--timeout=8s');
    expect(first.code, first.output).not.toBe(0);
    expect(first.output).toContain('disruption budget');
    // One went, and its successor has no node to go to; the other is guarded.
    expect((await ready('web')).map((one) => one.spec.nodeName)).toEqual([nodeOf.train]);

    await consumer.delete(budgets, { namespace: team, name: 'web' });
    const second = await kubectl('drain', nodeOf.train, '--timeout=60s');
    expect(second.code, second.output).toBe(0);
    expect((await here('web')).filter((one) => one.spec.nodeName)).toEqual([]);
    await kubectl('uncordon', nodeOf.train);
    await eventually(async () => (await ready('web')).length === 2, 'both pods to be back');
  });

  test('at the end of its lease it takes no pods, not even such as tolerate everything', async () => {
    const why = { reason: 'Expired', message: 'the term of 3600 s is over.' };
    const later = () => new Date(Date.now() + 60_000);
    await nodes.drain(nodeOf.train, later(), why);
    await consumer.create(resources.pods, pod('stubborn', 'train', { tolerations: tolerateAll }));
    await eventually(
      async () =>
        (await eventsOf('stubborn')).some((e) =>
          e.note?.includes(`lease ${team}/train ends: its node takes no more pods`),
        ),
      'the reason',
    );
    await eventually(async () => (await nodes.drain(nodeOf.train, later(), why)).left === 0, 'the node to be empty');
    expect((await get('stubborn'))?.spec.nodeName).toBeUndefined();
    const described = await kubectl('describe', 'node', nodeOf.train);
    expect(described.output).toMatch(/LeaseEnding\s+True.*Expired\s+the term of 3600 s is over/);
    await eventually(() => nodes.remove(nodeOf.train), 'the node to go');
    expect((await kubectl('get', 'gpuaccess', 'leased-nodes', '-o', 'jsonpath={.spec.nodes}')).output).not.toContain(
      nodeOf.train,
    );
  });
});
