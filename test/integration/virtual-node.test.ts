/**
 * The virtual node between two real clusters: what Kubernetes itself makes of it. No gateway here; that road is walked in
 * lease.test.ts. The consumer's API server verifies the kubelet's certificate, so certificates are the cluster's own.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import tls from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  createCertificateApprover,
  servingCertificates,
  whoAmI,
} from '../../operator/adapters/kube/serving-certificate.ts';
import { evictionGuardName } from '../../operator/core/node/eviction.ts';
import { remotePodName } from '../../operator/core/node/names.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { type Node, nodeNameOf } from '../../operator/core/node/virtual-node.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { createEventRecorder } from '../../operator/engine/events.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { createEvictionGuard, type EvictionGuard } from '../../operator/kubelet/eviction-guard.ts';
import { createVirtualNodes, type VirtualNodes } from '../../operator/kubelet/virtual-nodes.ts';
import { startGpuNode } from '../../operator/sandbox/clusters/gpu-node.ts';
import { RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { ClusterNode } from '../../operator/sandbox/clusters/node.ts';
import { type Plane, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import { freePorts } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, quiet, scratch, testNamespace } from '../support/clusters.ts';
import { type FakeLease, fakeLease, served } from '../unit/kubelet/fake-lease.ts';

const dir = scratch('virtual-node');
let planes: { consumer: Plane; provider: Plane };
let real: ClusterNode;
let consumer: Cluster;
let provider: Cluster;
let namespace: string;
let tenant: string;
let lease: FakeLease;
let health = { ready: true, reason: 'ProviderUnreachable', message: 'cut for the test' };
let nodes: VirtualNodes;
let stopping: AbortController;
let running: Promise<unknown>;
let name: string;

async function serve(evictionGuard?: EvictionGuard): Promise<void> {
  stopping = new AbortController();
  const common = { cluster: consumer, now: () => new Date(), log: silentLog };
  nodes = createVirtualNodes({
    cluster: consumer,
    address: '127.0.0.1',
    listenHost: '127.0.0.1',
    kubeletVersion: 'v1.36.3+gpulease.test',
    certificates: servingCertificates(common),
    events: createEventRecorder({ cluster: consumer, controller: 'gpulease.dev/test', instance: 'test' }),
    log: silentLog,
    evictionGuard,
    objectPollSeconds: 1,
  });
  const approver = createCertificateApprover({
    ...common,
    isOurNode: (node) => nodes.get(node) !== undefined,
    addresses: ['127.0.0.1'],
    requesters: [await whoAmI(consumer)],
  });
  running = Promise.all([nodes.run(stopping.signal), approver.run(stopping.signal)]);
  const start = (leaseName: string, healthy: () => typeof health, connection: FakeLease) =>
    nodes.start(
      {
        lease: { name: leaseName, namespace, uid: `${leaseName}-0000` },
        leaseId: `0x${'1'.repeat(64)}`,
        providerName: 'acme',
        offerName: 'acme-4090',
        capacityType: 'OnDemand',
        allowedNamespaces: [namespace],
        served: served(2),
        healthy,
      },
      connection,
    );
  const node = start('train', () => health, lease);
  // Kubernetes evicts nobody while all nodes of a cluster are down: another one has to be up.
  start('other', () => ({ ...health, ready: true }), fakeLease(provider, 'nowhere'));
  name = node.name;
  await eventually(async () => node.state.ready, 'the virtual node to be ready');
}

async function stop(): Promise<void> {
  stopping.abort(new Error('stopped'));
  await running;
}

beforeAll(async () => {
  const tools = await ensureTools({ need: ['plane'], report: quiet });
  const plane = (its: string, verifyKubelets: boolean) =>
    startPlane({ name: its, dir: join(dir, its), tools, report: quiet, verifyKubelets });
  const [c, p] = await Promise.all([plane('consumer', true), plane('provider', false)]);
  planes = { consumer: c, provider: p };
  real = await startGpuNode({
    plane: p,
    name: 'vn-real',
    dir: join(dir, 'node'),
    gpus: simulatedGpus('vn-real', RTX_4090, 2),
    report: quiet,
  });
  consumer = connectCluster({ name: 'consumer', kubeconfig: c.kubeconfig });
  provider = connectCluster({ name: 'provider', kubeconfig: p.kubeconfig });
  namespace = (await testNamespace(c, 'team')).name;
  tenant = (await testNamespace(p, 'tenant')).name;
  lease = fakeLease(provider, tenant);
  await serve();
});
afterAll(async () => {
  if (stopping) await stop();
  await real?.stop();
  await Promise.all([planes?.consumer.stop(), planes?.provider.stop()]);
  rmSync(dir, { recursive: true, force: true });
});

const script = 'trap "exit 0" TERM; echo "I am $NAME on $NODE"; while true; do sleep 0.2; done';
function pod(podName: string, spec: Partial<Pod['spec']> = {}, command = script): Pod {
  const field = (fieldPath: string) => ({ fieldRef: { fieldPath } });
  return {
    metadata: { name: podName, namespace, labels: { app: podName } },
    spec: {
      terminationGracePeriodSeconds: 2,
      restartPolicy: 'Never',
      nodeSelector: { 'gpulease.dev/lease': 'train' },
      tolerations: [
        { key: 'gpulease.dev/lease', operator: 'Exists' },
        { key: 'virtual-kubelet.io/provider', operator: 'Exists' },
      ],
      containers: [
        {
          name: 'main',
          image: TOOLS_IMAGE,
          command: ['sh', '-c', command],
          env: [
            { name: 'NAME', valueFrom: field('metadata.name') },
            { name: 'NODE', valueFrom: field('spec.nodeName') },
          ],
        },
      ],
      ...spec,
    },
  };
}
const key = (podName: string) => ({ namespace, name: podName });
const get = (podName: string) => consumer.get<Pod>(resources.pods, key(podName));
const phase = (podName: string, wanted: string) =>
  eventually(async () => (await get(podName))?.status?.phase === wanted, `pod ${podName} to be ${wanted}`);
async function run(podName: string, spec: Partial<Pod['spec']> = {}, command?: string): Promise<Pod> {
  await consumer.create(resources.pods, pod(podName, spec, command));
  await phase(podName, 'Running');
  return (await get(podName))!;
}
const remoteOf = (its: Pod) =>
  provider.get<Pod>(resources.pods, { namespace: tenant, name: remotePodName(its.metadata.name, its.metadata.uid!) });

function kubectl(args: string[], input?: Buffer): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = execFile(
      planes.consumer.tools.kubectl,
      ['--kubeconfig', planes.consumer.kubeconfigPath, '-n', namespace, ...args],
      { maxBuffer: 1 << 26, encoding: 'latin1' },
      (error, stdout, stderr) => resolve({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
    );
    child.stdin?.end(input);
  });
}

const over = { reason: 'Expired', message: 'its term is over.' };

describe('Kubernetes and the node', () => {
  test('its certificate is the cluster’s, for the node and its address', async () => {
    const { port } = nodes.get(name)!.state;
    const handshake = () =>
      new Promise<tls.PeerCertificate>((resolve, reject) => {
        const socket = tls.connect({ host: '127.0.0.1', port: port!, ca: planes.consumer.caPem }, () => {
          resolve(socket.getPeerCertificate());
          socket.destroy();
        });
        socket.on('error', reject);
      });
    await eventually(async () => (await handshake()).subject.CN === `system:node:${name}`, 'a signed certificate');
    // The other node may still be waiting for its own.
    await eventually(async () => (await consumer.list(resources.csrs)).items.length === 0, 'requests to be taken away');
  });

  test('it is Ready, tainted, with the leased capacity, and beats', async () => {
    const node = await consumer.get<Node & KubeObject>(resources.nodes, { name });
    expect(node?.status?.allocatable).toMatchObject({ 'nvidia.com/gpu': '2', cpu: '8', memory: '16Gi', pods: '20' });
    expect(node?.spec.taints?.map((t) => t.key)).toEqual(
      expect.arrayContaining(['gpulease.dev/lease', 'virtual-kubelet.io/provider']),
    );
    const beat = await consumer.get<KubeObject & { spec: { renewTime: string } }>(resources.leases, {
      namespace: 'kube-node-lease',
      name,
    });
    expect(Date.now() - Date.parse(beat!.spec.renewTime)).toBeLessThan(15_000);
  });

  test('a pod of it runs on the real node, within 3 s', async () => {
    const from = Date.now();
    const web = await run('web', {
      containers: pod('web').spec.containers.map((c) => ({ ...c, resources: { limits: { 'nvidia.com/gpu': 1 } } })),
    });
    expect(Date.now() - from).toBeLessThan(3000);
    expect(web.spec.nodeName).toBe(name);
    expect(web.status?.podIP).toBeUndefined();
    expect((await remoteOf(web))?.spec.nodeName).toBe('vn-real');
  });

  const seconds = { operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 2 };
  const evictedSoon = [
    ...pod('x').spec.tolerations!,
    { key: 'node.kubernetes.io/not-ready', ...seconds },
    { key: 'node.kubernetes.io/unreachable', ...seconds },
  ];
  const nodeNow = async () => (await consumer.get<Node & KubeObject>(resources.nodes, { name }))!;
  const taintedToEvict = async () =>
    (await nodeNow()).spec.taints?.some((t) => t.key.startsWith('node.kubernetes.io/') && t.effect === 'NoExecute');

  test('where the policy is, Kubernetes evicts nobody from a NotReady node, and the pod is as its author wrote it', async () => {
    const guard = createEvictionGuard({ cluster: consumer, log: silentLog });
    const stopGuard = new AbortController();
    const guarding = guard.run(stopGuard.signal);
    await eventually(async () => guard.holds === true, 'the policy to be made');
    await stop();
    await serve(guard);
    const spared = await run('spared', { tolerations: evictedSoon });
    health = { ...health, ready: false };
    nodes.get(name)!.refresh();
    // The controller marks the node, so that nothing new is put there, and would have marked it for eviction as well.
    await eventually(
      async () => (await nodeNow()).spec.taints?.some((t) => t.key === 'node.kubernetes.io/not-ready') === true,
      'the NoSchedule taint',
    );
    await sleep(8000);
    expect(await taintedToEvict()).toBe(false);
    const after = await get('spared');
    expect(after?.metadata).toMatchObject({ uid: spared.metadata.uid, generation: 1 });
    expect(after?.metadata.deletionTimestamp).toBeUndefined();
    expect(after?.spec.tolerations).toEqual(expect.arrayContaining(evictedSoon));
    health = { ...health, ready: true };
    nodes.get(name)!.refresh();
    await eventually(
      async () =>
        (await nodeNow()).spec.taints?.every((t) => t.key.startsWith('gpulease') || t.key.startsWith('virtual')) ===
        true,
      'the taint to go',
    );

    stopGuard.abort();
    await guarding;
    await stop();
    const named = { name: evictionGuardName };
    await consumer.delete(resources.mutatingPolicyBindings, named);
    await consumer.delete(resources.mutatingPolicies, named);
    await serve();
    await consumer.delete(resources.pods, key('spared'), { gracePeriodSeconds: 1 });
  });

  test('it outlives a NotReady node, although it asked to be evicted after 2 s', async () => {
    const kept = await run('kept', { tolerations: evictedSoon });
    await eventually(
      async () => !(await get('kept'))?.spec.tolerations?.some((t) => t.tolerationSeconds !== undefined),
      'tolerations without seconds',
    );
    health = { ...health, ready: false };
    nodes.get(name)!.refresh();
    await eventually(
      async () =>
        (await consumer.get<Node & KubeObject>(resources.nodes, { name }))?.spec.taints?.some(
          (t) => t.key === 'node.kubernetes.io/not-ready' && t.effect === 'NoExecute',
        ) === true,
      'the NoExecute taint',
    );
    await sleep(5000);
    const after = await get('kept');
    expect(after?.metadata).toMatchObject({ uid: kept.metadata.uid });
    expect(after?.metadata.deletionTimestamp).toBeUndefined();
    expect(after?.status?.conditions?.find((c) => c.type === 'Ready')?.status).toBe('False');
    health = { ...health, ready: true };
    nodes.get(name)!.refresh();
    await eventually(
      async () => (await get('kept'))?.status?.conditions?.find((c) => c.type === 'Ready')?.status === 'True',
      'the pod to be ready again',
    );
  });

  test('a restart of ours goes on with the same pods, and a deletion made meanwhile is carried out', async () => {
    const [stays, goes] = [await run('stays'), await run('goes')];
    const before = await remoteOf(stays);
    await stop();
    await consumer.delete(resources.pods, key('goes'), { gracePeriodSeconds: 1 });
    await serve();
    await eventually(async () => (await get('goes')) === undefined, 'the deleted pod to go');
    expect(await remoteOf(goes)).toBeUndefined();
    expect((await remoteOf(stays))?.metadata.uid).toBe(before?.metadata.uid);
    expect((await get('stays'))?.status?.phase).toBe('Running');
  });

  test('draining honours a PodDisruptionBudget until the deadline', async () => {
    const guarded = await run('guarded');
    await consumer.create(
      { group: 'policy', version: 'v1', plural: 'poddisruptionbudgets', kind: 'PodDisruptionBudget', namespaced: true },
      {
        metadata: { name: 'guard', namespace },
        spec: { minAvailable: 1, selector: { matchLabels: { app: 'guarded' } } },
      } as KubeObject,
    );
    await sleep(1000);
    const first = await nodes.drain(name, new Date(Date.now() + 60_000), over);
    expect(first.blocked.map((b) => b.pod)).toEqual([`${namespace}/guarded`]);
    expect(first.left).toBeGreaterThan(1);
    await eventually(
      async () => (await nodes.drain(name, new Date(Date.now() + 60_000), over)).left === 1,
      'all others to go',
    );
    expect((await get('guarded'))?.metadata.deletionTimestamp).toBeUndefined();
    await eventually(async () => (await nodes.drain(name, new Date(0), over)).left === 0, 'the last one to go');
    await eventually(async () => (await remoteOf(guarded)) === undefined, 'it to go at the provider');
    await consumer.patch(resources.nodes, { name }, { spec: { unschedulable: null } });
  });
});

describe.runIf(process.env.GPULEASE_NODES !== 'hollow')('through the API server', () => {
  beforeAll(async () => {
    await run('shell');
  });
  const blob = randomBytes(20_000_000);
  const sha = (data: Buffer) => createHash('sha256').update(data).digest('hex');

  test('logs, with the pod’s own name and node in them', async () => {
    await eventually(async () => (await kubectl(['logs', 'shell'])).stdout === `I am shell on ${name}\n`, 'the log');
    const wrong = await kubectl(['logs', 'shell', '--previous']);
    expect(wrong.stderr).toContain('"shell"');
  });

  test.each([
    ['WebSocket', {}],
    ['SPDY', { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: 'false' }],
  ])('exec by %s: exit code, both outputs, 20 MB of input', async (_, env) => {
    Object.assign(process.env, env);
    try {
      const both = await kubectl(['exec', 'shell', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7']);
      expect(both).toMatchObject({ code: 7, stdout: 'out\n' });
      expect(both.stderr).toContain('err\n');
      const hashed = await kubectl(['exec', '-i', 'shell', '--', 'sha256sum'], blob);
      expect(hashed.stdout).toBe(`${sha(blob)}  -\n`);
      const echoed = await kubectl(['exec', '-i', 'shell', '--', 'cat'], blob);
      expect(sha(Buffer.from(echoed.stdout, 'latin1'))).toBe(sha(blob));
    } finally {
      for (const variable of Object.keys(env)) delete process.env[variable];
    }
  });

  test('port-forward', async () => {
    await kubectl([
      'exec',
      'shell',
      '--',
      'sh',
      '-c',
      'mkdir -p /tmp/w; echo web > /tmp/w/index.html; httpd -p 8080 -h /tmp/w',
    ]);
    const [port] = await freePorts(1);
    const forward: ChildProcess = spawn(
      planes.consumer.tools.kubectl,
      ['--kubeconfig', planes.consumer.kubeconfigPath, '-n', namespace, 'port-forward', 'shell', `${port}:8080`],
      { stdio: 'ignore' },
    );
    try {
      for (let i = 0; i < 5; i++)
        await eventually(async () => (await (await fetch(`http://127.0.0.1:${port}/`)).text()) === 'web\n', 'the page');
    } finally {
      forward.kill('SIGTERM');
    }
  });

  test('attach, and logs that follow', async () => {
    await run('talks', {}, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done');
    const follow = async (args: string[]) => {
      const child = spawn(
        planes.consumer.tools.kubectl,
        ['--kubeconfig', planes.consumer.kubeconfigPath, '-n', namespace, ...args],
        { stdio: ['ignore', 'pipe', 'ignore'] },
      );
      let text = '';
      child.stdout.on('data', (chunk) => {
        text += chunk;
      });
      try {
        await eventually(async () => (text.match(/line \d+\n/g) ?? []).length >= 5, `${args[0]} to go on`);
      } finally {
        child.kill('SIGTERM');
      }
    };
    await follow(['logs', '-f', 'talks', '--tail=1']);
    await follow(['attach', 'talks']);
  });
});

test('a lease that has ended leaves nothing of its node behind, though its provider is silent', async () => {
  await run('last');
  lease.cut = true;
  await eventually(() => nodes.remove(name), 'the node to go');
  expect(await consumer.get(resources.nodes, { name })).toBeUndefined();
  expect(await get('last')).toBeUndefined();
  expect(await consumer.get(resources.leases, { namespace: 'kube-node-lease', name })).toBeUndefined();
  expect(nodeNameOf({ name: 'train', namespace, uid: 'train-0000' })).toBe(name);
});
