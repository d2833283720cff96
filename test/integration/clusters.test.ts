import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startGpuNode } from '../../operator/sandbox/clusters/gpu-node.ts';
import { H100, RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { ClusterNode, RealNode } from '../../operator/sandbox/clusters/node.ts';
import { ensureNodePackages } from '../../operator/sandbox/clusters/node-packages.ts';
import { type Plane, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import { identityOf } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, quiet, scratch, testNamespace } from '../support/clusters.ts';

const dir = scratch('clusters');
const packages = await ensureNodePackages({ report: quiet });
if (!packages.available)
  process.stderr.write(`no real node here (${packages.reason}): the hollow one is tested instead\n`);

let consumer: Plane;
let provider: Plane;
let node: ClusterNode;
const crashes: string[] = [];
const onCrash = (error: Error) => crashes.push(error.message);
const gpus = simulatedGpus('h100-a', H100, 8);
const startNode = (name: string, its = simulatedGpus(name, RTX_4090, 2)) =>
  startGpuNode({ plane: provider, name, dir: join(dir, name), gpus: its, region: 'eu-north', report: quiet, onCrash });

beforeAll(async () => {
  const tools = await ensureTools({ need: ['plane'], report: quiet });
  const start = (name: string) => startPlane({ name, dir: join(dir, name), tools, report: quiet, onCrash });
  [consumer, provider] = await Promise.all([start('consumer'), start('provider')]);
  node = await startNode('h100-a', gpus);
});

afterAll(async () => {
  await node?.stop();
  await Promise.all([consumer?.stop(), provider?.stop()]);
  rmSync(dir, { recursive: true, force: true });
});

interface Pod {
  readonly metadata: { readonly uid: string };
  readonly status: {
    readonly phase: string;
    readonly containerStatuses?: readonly { readonly containerID: string; readonly restartCount: number }[];
  };
}

async function runPod(namespace: string, name: string, gpuCount: number, script: string): Promise<Pod> {
  await provider.api.call('POST', `/api/v1/namespaces/${namespace}/pods`, {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [
        {
          name: 'main',
          image: TOOLS_IMAGE,
          command: ['sh', '-c', script],
          securityContext: { runAsUser: 1000, runAsNonRoot: true, allowPrivilegeEscalation: false },
          resources: { limits: { 'nvidia.com/gpu': String(gpuCount) } },
        },
      ],
    },
  });
  const path = `/api/v1/namespaces/${namespace}/pods/${name}`;
  await eventually(
    async () => (await provider.api.call<Pod>('GET', path)).status.phase === 'Running',
    `${name} to run`,
  );
  return provider.api.call<Pod>('GET', path);
}

const allocatable = async (name: string) =>
  (await provider.api.call<{ status: { allocatable: Record<string, string> } }>('GET', `/api/v1/nodes/${name}`)).status
    .allocatable['nvidia.com/gpu'];

describe('a control plane of real programs', () => {
  it('runs beside another one, each with its own data', async () => {
    const namespace = await testNamespace(consumer, 'only-here');
    const there = await provider.api.request('GET', `/api/v1/namespaces/${namespace.name}`);
    expect(there.status).toBe(404);
  });

  it('knows a caller by the user and groups of its certificate', async () => {
    const kubeconfig = join(dir, 'alice.kubeconfig');
    writeFileSync(kubeconfig, await consumer.issueKubeconfig('alice', ['team-a']));
    const kubectl = (...args: string[]) =>
      execFileSync(consumer.tools.kubectl, ['--kubeconfig', kubeconfig, ...args], { encoding: 'utf8' });
    const who = JSON.parse(kubectl('auth', 'whoami', '--output=json')) as { status: { userInfo: object } };
    expect(who.status.userInfo).toMatchObject({ username: 'alice', groups: ['team-a', 'system:authenticated'] });
  });

  it('goes on with the same data when its API server and its etcd are killed and started again', async () => {
    const namespace = await testNamespace(consumer, 'survivor');
    await consumer.kill('kube-apiserver');
    await expect(consumer.api.call('GET', '/api/v1/namespaces')).rejects.toThrow();
    await consumer.kill('etcd');
    await consumer.restart('etcd');
    await consumer.restart('kube-apiserver');
    expect((await consumer.api.request('GET', `/api/v1/namespaces/${namespace.name}`)).status).toBe(200);
    expect(crashes).toEqual([]); // these were wanted
  });
});

describe('a node with simulated GPUs', () => {
  it('shows the labels and the capacity of a GPU machine', async () => {
    const object = await provider.api.call<{
      metadata: { labels: Record<string, string> };
      status: { capacity: object };
    }>('GET', '/api/v1/nodes/h100-a');
    expect(object.metadata.labels).toMatchObject({
      'nvidia.com/gpu.product': 'NVIDIA-H100-80GB-HBM3',
      'nvidia.com/gpu.memory': '81559',
      'nvidia.com/gpu.count': '8',
      'nvidia.com/gpu.family': 'hopper',
      'nvidia.com/gpu.present': 'true',
      'topology.kubernetes.io/region': 'eu-north',
    });
    expect(object.status.capacity).toMatchObject({ 'nvidia.com/gpu': '8' });
  });

  it('says whether its pods are simulated', () => {
    expect(node.simulated).toBe(!packages.available);
  });

  it('runs a pod that asks for two GPUs, and hands it two of its UUIDs', async () => {
    const namespace = await testNamespace(provider, 'gpu-pod');
    const script = 'echo "$NVIDIA_VISIBLE_DEVICES"; trap "exit 0" TERM; while :; do sleep 0.2; done';
    await runPod(namespace.name, 'two', 2, script);
    const log = `/api/v1/namespaces/${namespace.name}/pods/two/log`;
    const print = async () => (await provider.api.request('GET', log)).text;
    await eventually(async () => (await print()).length > 0, 'the first line of the log');
    const [line = ''] = (await print()).trim().split('\n');
    if (node.simulated) return expect(line).toContain('This pod is simulated');
    const given = line.split(',');
    expect(new Set(given).size).toBe(2);
    expect(gpus.map((gpu) => gpu.uuid)).toEqual(expect.arrayContaining(given));
    await namespace.remove();
  });

  it('offers less when a GPU breaks, and all of them when it is well again', async () => {
    const [first] = gpus;
    await node.setHealth(first?.uuid ?? '', false);
    await eventually(async () => (await allocatable('h100-a')) === '7', 'one GPU less');
    await node.setHealth(first?.uuid ?? '', true);
    await eventually(async () => (await allocatable('h100-a')) === '8', 'all GPUs');
    await expect(node.setHealth('GPU-none', false)).rejects.toThrow('no GPU GPU-none here');
  });

  it.runIf(packages.available)(
    'keeps its pods and finds its device plugin again when kubelet and containerd are killed',
    async () => {
      const real = node as RealNode;
      const namespace = await testNamespace(provider, 'kubelet-dies');
      const before = await runPod(
        namespace.name,
        'one',
        1,
        'echo "$NVIDIA_VISIBLE_DEVICES"; trap "exit 0" TERM; while :; do sleep 0.2; done',
      );
      const registrations = real.devicePlugin.registrations;
      await real.restart('kubelet', { signal: 'SIGKILL' });
      await eventually(
        async () => real.devicePlugin.registrations > registrations,
        'the device plugin to register again',
      );
      await eventually(async () => (await allocatable('h100-a')) === '8', 'all GPUs');
      const after = await provider.api.call<Pod>('GET', `/api/v1/namespaces/${namespace.name}/pods/one`);
      expect(after.status.containerStatuses?.[0]?.containerID).toBe(before.status.containerStatuses?.[0]?.containerID);
      expect(after.status.containerStatuses?.[0]?.restartCount).toBe(0);
      await real.restart('containerd', { signal: 'SIGKILL' });
      const log = `/api/v1/namespaces/${namespace.name}/pods/one/log`;
      await eventually(
        async () => (await provider.api.request('GET', log)).text.startsWith('GPU-'),
        'the log to be readable',
      );
      await namespace.remove();
    },
  );

  it.runIf(packages.available)(
    'reaches pods of other nodes, and pods reach the API server by its Service',
    async () => {
      const other = await startNode('rtx-a');
      const namespace = await testNamespace(provider, 'network');
      const pinned = { 'nvidia.com/gpu.product': RTX_4090.product };
      const pod = (name: string, nodeSelector: object, command: string) =>
        provider.api.call('POST', `/api/v1/namespaces/${namespace.name}/pods`, {
          apiVersion: 'v1',
          kind: 'Pod',
          metadata: { name },
          spec: {
            nodeSelector,
            restartPolicy: 'Never',
            terminationGracePeriodSeconds: 0,
            containers: [{ name: 'main', image: TOOLS_IMAGE, command: ['sh', '-c', command] }],
          },
        });
      await pod('server', pinned, 'mkdir /tmp/w; echo hello >/tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w');
      const path = `/api/v1/namespaces/${namespace.name}/pods`;
      const status = async (name: string) =>
        (await provider.api.call<{ status: { phase: string; podIP?: string } }>('GET', `${path}/${name}`)).status;
      await eventually(async () => (await status('server')).phase === 'Running', 'the server pod to run');
      const address = `http://${(await status('server')).podIP}:8080/`;
      await eventually(
        async () => (await (await fetch(address)).text()) === 'hello\n',
        'the server to answer this machine',
      );
      const call = `timeout 5 wget -qO- ${address} && timeout 5 nc -w 2 "$KUBERNETES_SERVICE_HOST" 443 </dev/null && echo reached`;
      await pod('client', { 'nvidia.com/gpu.product': H100.product }, call);
      await eventually(async () => (await status('client')).phase === 'Succeeded', 'the client pod to succeed');
      expect((await provider.api.request('GET', `${path}/client/log`)).text).toBe('hello\nreached\n');
      await other.stop();
    },
  );

  it('leaves no process, mount, interface, rule or control group when stopped, and starts again', async () => {
    const settings = kernelSettings();
    for (let round = 0; round < 2; round++) {
      const short = await startNode('short');
      const pids = Object.values(short.pids);
      expect(pids.map((pid) => identityOf(pid))).not.toContain(undefined);
      if (packages.available) expect(tracesOf(short)).not.toEqual(NO_TRACES);
      await short.stop();
      expect(pids.map((pid) => identityOf(pid))).toEqual(pids.map(() => undefined));
      expect(tracesOf(short)).toEqual(NO_TRACES);
      expect(kernelSettings()).toEqual(settings);
      expect((await provider.api.request('GET', '/api/v1/nodes/short')).status).toBe(404);
    }
  });

  it.runIf(packages.available)('clears away what a node that lost its power has left', async () => {
    const lost = await startNode('lost');
    const pids = Object.values(lost.pids);
    await lost.powerOff();
    await eventually(async () => pids.every((pid) => identityOf(pid) === undefined), 'every process to be gone');
    await lost.stop();
    expect(tracesOf(lost)).toEqual(NO_TRACES);
    expect(crashes).toEqual([]);
  });
});

const NO_TRACES = { mounts: [], interfaces: [], rules: [], groups: [], folders: [] };

/** Everything that this node could leave on the machine; other sandboxes may be running on it. */
function tracesOf(its: ClusterNode): typeof NO_TRACES | object {
  if (!packages.available) return NO_TRACES;
  const cable = `gplease${its.ip.split('.')[2]}`;
  const group = `gpulease-${createHash('sha256').update(join(dir, its.name)).digest('hex').slice(0, 8)}`;
  const list = (table: string) =>
    execFileSync(packages.programs.iptables, ['-w', '-t', table, '-S'], { encoding: 'utf8' }).split('\n');
  const hierarchies = existsSync('/sys/fs/cgroup/cgroup.controllers') ? [''] : readdirSync('/sys/fs/cgroup');
  return {
    mounts: readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .filter((line) => line.includes(join(dir, its.name))),
    interfaces: readdirSync('/sys/class/net').filter((name) => name === cable),
    rules: ['filter', 'nat'].flatMap(list).filter((rule) => rule.split(' ').includes(cable)),
    groups: hierarchies.filter((folder) => existsSync(join('/sys/fs/cgroup', folder, group))),
    folders: ['var-lib', 'var-log'].filter((folder) => existsSync(join(dir, its.name, folder))),
  };
}

/** What a kubelet would set on a machine that it owns. */
function kernelSettings(): string[] {
  return ['vm/overcommit_memory', 'kernel/panic', 'kernel/panic_on_oops'].map((file) =>
    existsSync(`/proc/sys/${file}`) ? readFileSync(`/proc/sys/${file}`, 'utf8').trim() : '',
  );
}
