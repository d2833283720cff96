/**
 * Clusters of kind, each on a network of its own, as those of two companies are: from one to the other nothing gets but what
 * a `Way` lets through.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { dump } from 'js-yaml';
import { command } from '../command.ts';
import type { Report } from '../processes.ts';
import type { Docker } from './docker.ts';
import { type NodeImage, REPOSITORY } from './node-image.ts';

export interface KindOptions {
  readonly docker: Docker;
  readonly kind: string;
  readonly kubectl: string;
  readonly image: NodeImage;
  /** For kubeconfigs and configurations. */
  readonly dir: string;
  readonly report: Report;
}

export interface KindCluster {
  /** As kind knows it. */
  readonly name: string;
  /** For callers on this machine. */
  readonly kubeconfig: string;
  /** The name of its one node, which is its container's. */
  readonly node: string;
  readonly nodeIp: string;
  /** This machine's address on the cluster's network: what its pods reach of us. */
  readonly machineIp: string;
  kubectl(
    args: readonly string[],
    options?: { input?: string; timeoutSeconds?: number; signal?: AbortSignal },
  ): Promise<string>;
  /** An image of an archive, into the node, unless it is there. */
  load(image: string, archive: () => Promise<string>, signal?: AbortSignal): Promise<void>;
}

/** Folders of this machine that a node sees, by the path there. */
export type Mounts = Readonly<Record<string, string>>;

/** Docker's network of a cluster. */
export const networkOf = (name: string) => name;

/** Creates a cluster, or takes the one of this name that is there. */
export async function ensureKindCluster(
  name: string,
  options: KindOptions,
  mounts: Mounts = {},
  signal?: AbortSignal,
): Promise<KindCluster> {
  const { docker, kind, kubectl, image, dir, report } = options;
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const kubeconfig = join(dir, `${name}.kubeconfig`);
  // Its own network: Docker lets nothing pass from one bridge to another.
  const env = { ...docker.env, KUBECONFIG: kubeconfig, KIND_EXPERIMENTAL_DOCKER_NETWORK: networkOf(name) };
  const run = (args: readonly string[], timeoutSeconds = 300) => command(kind, args, { env, timeoutSeconds, signal });
  const node = `${name}-control-plane`;
  const existing = (await run(['get', 'clusters'])).split('\n').includes(name);
  if (existing) {
    report(`taking the cluster ${name}, which is there`);
    await run(['export', 'kubeconfig', '--name', name]);
  } else {
    const config = join(dir, `${name}.yaml`);
    writeFileSync(config, dump(configuration(image, mounts)));
    const since = Date.now();
    report(`creating the cluster ${name}`);
    // --retain: what went wrong is in the node, and would be gone.
    await run(
      ['create', 'cluster', '--name', name, '--image', image.name, '--config', config, '--wait', '180s', '--retain'],
      900,
    ).catch(async (error: Error) => {
      const logs = await docker.run(['logs', '--tail', '30', node]).catch(() => '');
      throw new Error(`${error.message}\nthe node said:\n${logs}`);
    });
    report(`created ${name} in ${Math.round((Date.now() - since) / 1000)} s`);
  }
  const inspect = async (format: string) =>
    (await docker.run(['inspect', '--format', format, node], { signal })).trim();
  const nodeIp = await inspect('{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}');
  const machineIp = await inspect('{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}');
  const cluster: KindCluster = {
    name,
    node,
    nodeIp,
    machineIp,
    kubeconfig,
    kubectl: (args, { input, timeoutSeconds = 120, signal: stop = signal } = {}) =>
      command(kubectl, ['--kubeconfig', kubeconfig, ...args], { input, timeoutSeconds, signal: stop }),
    load: async (name, archive, stop = signal) => {
      const there = await docker.run(['exec', node, 'ctr', '-n', 'k8s.io', 'images', 'ls', '-q'], { signal: stop });
      // Names without a registry are Docker's own, which containerd writes out.
      if (there.split('\n').some((one) => one === name || one === `docker.io/library/${name}`)) return;
      const file = await archive();
      await command(kind, ['load', 'image-archive', file, '--name', cluster.name], {
        env,
        timeoutSeconds: 600,
        signal: stop,
      });
    },
  };
  await cluster.kubectl(['wait', '--for=condition=Ready', `node/${node}`, '--timeout=300s'], { timeoutSeconds: 330 });
  // Ready comes before the default ServiceAccount, without which pods are refused.
  for (const deadline = Date.now() + 60_000; ; await sleep(200, undefined, { signal })) {
    const found = await cluster.kubectl(['get', 'serviceaccount', 'default']).then(
      () => true,
      () => false,
    );
    if (found) return cluster;
    if (Date.now() > deadline) throw new Error(`${name} has made no default ServiceAccount within a minute`);
  }
}

export async function deleteKindCluster(
  name: string,
  { docker, kind, dir }: Pick<KindOptions, 'docker' | 'kind' | 'dir'>,
): Promise<void> {
  const kubeconfig = join(dir, `${name}.kubeconfig`);
  await command(kind, ['delete', 'cluster', '--name', name], { env: { ...docker.env, KUBECONFIG: kubeconfig } });
  await docker.run(['network', 'rm', networkOf(name)]).catch(() => undefined); // was never made
}

function configuration(image: NodeImage, mounts: Mounts): object {
  const patch = (kind: string, fields: object) => dump({ kind, ...fields });
  return {
    kind: 'Cluster',
    apiVersion: 'kind.x-k8s.io/v1alpha4',
    // Node images made here bring their own network and their own kube-proxy.
    ...(image.madeHere && { networking: { disableDefaultCNI: true, kubeProxyMode: 'none' } }),
    kubeadmConfigPatches: [
      ...(image.madeHere
        ? [
            patch('ClusterConfiguration', { imageRepository: REPOSITORY }),
            patch('InitConfiguration', { skipPhases: ['preflight', 'addon/kube-proxy'] }),
          ]
        : []),
      // Control groups v1 are refused by kubelets since 1.35 unless they are told.
      patch('KubeletConfiguration', { failCgroupV1: false }),
    ],
    nodes: [
      {
        role: 'control-plane',
        extraMounts: Object.entries(mounts).map(([containerPath, hostPath]) => ({ hostPath, containerPath })),
      },
    ],
  };
}

/** One port of one cluster, shown on the network of another: its other side's load balancer, a container on both networks. */
export interface Way {
  /** Where it is reached from the cluster that it leads from. */
  readonly host: string;
  readonly port: number;
  close(): Promise<void>;
}

export interface WayOptions {
  readonly docker: Docker;
  readonly name: string;
  readonly from: KindCluster;
  readonly to: KindCluster;
  /** Of `to`'s node. */
  readonly targetPort: number;
  /** At which it is shown. */
  readonly port: number;
  /** An image with Node.js that the Docker daemon has. */
  readonly image: string;
}

export async function openWay(options: WayOptions, signal?: AbortSignal): Promise<Way> {
  const { docker, name, from, to, targetPort, port, image } = options;
  await docker.run(['rm', '--force', name], { signal }).catch(() => undefined);
  const script = `const net = require('node:net');
net.createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
  const far = net.connect({ host: '${to.nodeIp}', port: ${targetPort}, allowHalfOpen: true, noDelay: true });
  near.pipe(far).pipe(near);
  near.on('error', () => far.destroy()).on('close', () => far.destroy());
  far.on('error', () => near.destroy()).on('close', () => near.destroy());
}).listen(${port}, '0.0.0.0');`;
  await docker.run(
    [
      ...['create', '--name', name, '--network', networkOf(from.name), '--label', 'gpulease.dev/way=true'],
      ...['--read-only', '--cap-drop', 'ALL', '--user', '65532:65532', '--entrypoint', 'node', image, '-e', script],
    ],
    { signal },
  );
  await docker.run(['network', 'connect', networkOf(to.name), name], { signal });
  await docker.run(['start', name], { signal });
  const format = `{{(index .NetworkSettings.Networks "${networkOf(from.name)}").IPAddress}}`;
  const host = (await docker.run(['inspect', '--format', format, name], { signal })).trim();
  return {
    host,
    port,
    async close() {
      await docker.run(['rm', '--force', name]);
    },
  };
}

/** The address of an API server on its cluster's own network. */
export const apiServerOf = (cluster: KindCluster) => ({ host: cluster.nodeIp, port: 6443 });

export const readKubeconfig = (cluster: KindCluster) => readFileSync(cluster.kubeconfig, 'utf8');
