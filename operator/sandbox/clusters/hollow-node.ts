/**
 * A hollow node, for machines without root or containerd: kwok says that its pods run, and no container does.
 *
 * Same labels, same capacity, same Node object as a real one, so that everything up to the pod works as it would. What a pod
 * prints cannot be seen: its log is one line that says so.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createSupervisor, endLeftovers, freePorts, type Supervisor } from '../processes.ts';
import { gpuLabels } from './gpus.ts';
import type { ClusterNode, NodeOptions } from './node.ts';
import { forgetNode, isReady } from './node-object.ts';
import { hostAddress } from './plane.ts';

/** `kwok` is among the tools of `ensureTools({ need: ['hollow'] })`. */
export async function startHollowNode(
  options: NodeOptions & { readonly kwok: string },
  signal?: AbortSignal,
): Promise<ClusterNode> {
  const { plane, name, gpus, report } = options;
  const started = Date.now();
  const ip = hostAddress();
  const { supervisor, dir } = await prepare(options);
  const healthy = new Map(gpus.map((gpu) => [gpu.uuid, true]));
  try {
    await createNodeObject(options, signal);
    await startKwok({ ...options, dir, supervisor, manages: [name], selector: `--manage-single-node=${name}` }, signal);
    report(
      `${name}: hollow node ready after ${((Date.now() - started) / 1000).toFixed(1)} s, ${gpus.length} GPUs: pods are simulated`,
    );
    let ending: Promise<void> | undefined;
    return {
      name,
      simulated: true,
      ip,
      gpus,
      get pids() {
        return supervisor.pids;
      },
      async setHealth(uuid, well) {
        if (!healthy.has(uuid)) throw new Error(`no GPU ${uuid} here; there are: ${[...healthy.keys()].join(', ')}`);
        healthy.set(uuid, well);
        const allocatable = { 'nvidia.com/gpu': String([...healthy.values()].filter(Boolean).length) };
        await plane.api.call('PATCH', `/api/v1/nodes/${name}/status`, { status: { allocatable } });
      },
      powerOff: () => supervisor.get('kwok').kill('SIGKILL'),
      stop() {
        ending ??= (async () => {
          await supervisor.stop();
          await forgetNode(plane, name);
        })();
        return ending;
      },
    };
  } catch (error) {
    await supervisor.stop();
    await forgetNode(plane, name);
    throw error;
  }
}

export interface HollowFleet {
  readonly names: readonly string[];
  readonly pids: Readonly<Record<string, number>>;
  /** Safe to repeat. */
  stop(): Promise<void>;
}

/** Many hollow nodes alike, kept by one kwok: `name`-0, `name`-1, …; each has as many GPUs as `gpus`, of the same model. */
export async function startHollowFleet(
  options: NodeOptions & { readonly kwok: string; readonly count: number },
  signal?: AbortSignal,
): Promise<HollowFleet> {
  const { plane, name, count, report } = options;
  const started = Date.now();
  const { supervisor, dir } = await prepare(options);
  const names = Array.from({ length: count }, (_, i) => `${name}-${i}`);
  const forget = async () => {
    for (const one of names) await forgetNode(plane, one);
  };
  try {
    for (const one of names)
      await createNodeObject({ ...options, name: one, labels: { ...options.labels, [fleetLabel]: name } }, signal);
    const selector = `--manage-nodes-with-label-selector=${fleetLabel}=${name}`;
    await startKwok({ ...options, dir, supervisor, manages: names, selector }, signal);
    report(`${name}: ${count} hollow nodes ready after ${((Date.now() - started) / 1000).toFixed(1)} s`);
    let ending: Promise<void> | undefined;
    return {
      names,
      get pids() {
        return supervisor.pids;
      },
      stop() {
        ending ??= supervisor.stop().then(forget);
        return ending;
      },
    };
  } catch (error) {
    await supervisor.stop();
    await forget();
    throw error;
  }
}

const fleetLabel = 'gpulease.dev/sandbox-fleet';

async function prepare(options: NodeOptions): Promise<{ supervisor: Supervisor; dir: string }> {
  const dir = resolve(options.dir);
  await endLeftovers(dir, options.report);
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return { dir, supervisor: createSupervisor({ dir, report: options.report, onCrash: options.onCrash }) };
}

/** Resolves when all nodes that it manages are Ready. */
async function startKwok(
  options: NodeOptions & {
    readonly kwok: string;
    readonly supervisor: Supervisor;
    readonly manages: readonly string[];
    readonly selector: string;
  },
  signal?: AbortSignal,
): Promise<void> {
  const { plane, name, dir, kwok, supervisor, manages, selector } = options;
  const [port = 0] = await freePorts(1);
  const ip = hostAddress();
  const serving = await plane.issueServing(`system:node:${name}`, [name, ip], ['system:nodes']);
  const write = (file: string, content: string) => {
    writeFileSync(join(dir, file), content, { mode: 0o600 });
    return join(dir, file);
  };
  const log = write(
    'pod.log',
    `${new Date().toISOString()} stdout F This pod is simulated: no container was started for it.\n`,
  );
  await supervisor.start(
    {
      name: 'kwok',
      command: kwok,
      args: [
        `--kubeconfig=${write('kubeconfig', await plane.issueKubeconfig('gpulease-kwok', ['system:masters']))}`,
        selector,
        '--node-lease-duration-seconds=40',
        `--config=${join(import.meta.dirname, 'hollow-stages.yaml')}`,
        `--config=${write('logs.yaml', logsConfig(log))}`,
        `--server-address=${ip}:${port}`,
        `--node-ip=${ip}`,
        `--node-port=${port}`,
        `--cidr=10.215.${createHash('sha256').update(name).digest()[0]}.0/24`,
        `--tls-cert-file=${write('kwok.crt', serving.certificatePem)}`,
        `--tls-private-key-file=${write('kwok.key', serving.privateKeyPem)}`,
      ],
      readyTimeoutSeconds: 120,
      // The last one first: it is the last to become so.
      ready: async (abort) => {
        for (const one of manages.toReversed()) if (!(await isReady(plane, one, abort))) return false;
        return true;
      },
    },
    signal,
  );
}

async function createNodeObject(
  { plane, name, gpus, labels, taints, region, zone, capacity }: NodeOptions,
  signal?: AbortSignal,
): Promise<void> {
  const resources = {
    cpu: '32',
    memory: '256Gi',
    'ephemeral-storage': '1Ti',
    pods: '200',
    ...capacity,
    'nvidia.com/gpu': String(gpus.length),
  };
  await forgetNode(plane, name); // of an earlier node of this name, with another machine's capacity
  await plane.api.call(
    'POST',
    '/api/v1/nodes',
    {
      apiVersion: 'v1',
      kind: 'Node',
      metadata: {
        name,
        labels: {
          'kubernetes.io/arch': process.arch === 'x64' ? 'amd64' : process.arch,
          'kubernetes.io/hostname': name,
          'kubernetes.io/os': 'linux',
          ...gpuLabels(gpus, { region: region ?? 'local', zone: zone ?? 'local-a' }),
          ...labels,
        },
      },
      spec: { taints: taints ?? [] },
      status: { capacity: resources, allocatable: resources },
    },
    signal,
  );
}

function logsConfig(file: string): string {
  return JSON.stringify({
    apiVersion: 'kwok.x-k8s.io/v1alpha1',
    kind: 'ClusterLogs',
    metadata: { name: 'simulated' },
    spec: { logs: [{ logsFile: file }] },
  });
}
