/**
 * Two companies on one machine: a consumer's cluster and a provider's, each by kind and on a network of its own, a chain in the
 * consumer's, GPUs (simulated, by the kubelet's own device plugin API) in the provider's, and the image in both.
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connectCluster } from '../../operator/engine/cluster.ts';
import type { Cluster } from '../../operator/engine/types.ts';
import { checkOut, choosePrevious, gitIn, type Version } from '../../operator/sandbox/charts/previous.ts';
import { type DevicePlugin, startDevicePlugin } from '../../operator/sandbox/clusters/device-plugin.ts';
import { gpuLabels, RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE, writeImages } from '../../operator/sandbox/clusters/images.ts';
import { ensurePrograms, whereIs } from '../../operator/sandbox/command.ts';
import {
  type Builder,
  type BuiltImage,
  commitTime,
  contextHash,
  findBuilder,
  root,
} from '../../operator/sandbox/image/builder.ts';
import { ANVIL_IMAGE, anvilArchive } from '../../operator/sandbox/kind/anvil-image.ts';
import { type Docker, ensureDocker } from '../../operator/sandbox/kind/docker.ts';
import { ensureNodeImage } from '../../operator/sandbox/kind/node-image.ts';
import {
  deleteKindCluster,
  ensureKindCluster,
  type KindCluster,
  type KindOptions,
  openWay,
  type Way,
} from '../../operator/sandbox/kind/pair.ts';
import { ensureKind } from '../../operator/sandbox/kind/programs.ts';
import type { Report } from '../../operator/sandbox/processes.ts';
import { until } from '../../operator/sandbox/scenario.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { CHAIN_NODE_PORT, type Chain, startChain } from './chain.ts';
import { type RunningRelay, startRelay } from './relay.ts';

export const GPUS = 4;
export const GATEWAY_NODE_PORT = 30443;
/** Where gateways dial in to the operator. */
export const REVERSE_NODE_PORT = 30944;
export const REVERSE_PORT = 9444;
export const CHARTS = ['charts/operator', 'charts/provider'];
const names = { consumer: 'gpulease-e2e-consumer', provider: 'gpulease-e2e-provider' } as const;
const ways = {
  gateway: 'gpulease-e2e-way-to-gateway',
  chain: 'gpulease-e2e-way-to-chain',
  operator: 'gpulease-e2e-way-to-operator',
  mistake: 'gpulease-e2e-way-by-mistake',
  relay: 'gpulease-e2e-relay',
} as const;

/** What the provider's tenants may have claims of. */
export const STORAGE_CLASS = 'folders';

/** A version of gpulease with its image, which both clusters have. */
export interface Shipped extends Version {
  readonly image: { readonly repository: string; readonly tag: string };
  readonly built: BuiltImage;
}

export interface Lab {
  readonly dir: string;
  readonly docker: Docker;
  readonly kubectl: string;
  readonly consumer: KindCluster;
  readonly provider: KindCluster;
  readonly consumerCluster: Cluster;
  readonly providerCluster: Cluster;
  readonly chain: Chain;
  /** The provider's gateway, as the consumer's pods reach it. */
  readonly gateway: Way;
  /** The chain, as the provider's pods reach it. */
  readonly chainWay: Way;
  /** Where gateways dial in to the consumer's operator, as the provider's pods reach it. */
  readonly operatorWay: Way;
  readonly relay: RunningRelay;
  /** What must not be there: a way from the consumer's pods to a port of the provider's node. */
  mistake(targetPort: number): Promise<Way>;
  readonly current: Shipped;
  /** What is upgraded from; or why there is nothing. */
  readonly previous: Shipped | { readonly none: string };
  readonly plugin: DevicePlugin;
  readonly report: Report;
  readonly signal: AbortSignal;
  /** Deletes clusters, ways and, where it is ours, the Docker daemon; `keep` leaves all but the device plugin. */
  stop(keep: boolean): Promise<void>;
}

export interface LabOptions {
  readonly dir: string;
  readonly report: Report;
  readonly signal: AbortSignal;
  /** Uses what an earlier run kept. */
  readonly reuse: boolean;
  /** Revision that is upgraded from; `none` for none. Default: the last release, or the commit before. */
  readonly from?: string;
}

/** What a run left behind that was kept, or killed. */
export async function takeDown(dir: string, report: Report): Promise<void> {
  const kind = await ensureKind({ report });
  const docker = await ensureDocker(report);
  try {
    await clear(docker, kind, dir);
  } finally {
    await docker.stop();
  }
}

async function clear(docker: Docker, kind: string, dir: string): Promise<void> {
  for (const way of Object.values(ways)) await docker.run(['rm', '--force', way]).catch(() => undefined);
  for (const name of Object.values(names)) await deleteKindCluster(name, { docker, kind, dir });
}

export async function startLab({ dir, report, signal, reuse, from }: LabOptions): Promise<Lab> {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const tools = await ensureTools({ need: ['plane'], report }, signal);
  const kind = await ensureKind({ report }, signal);
  const docker = await ensureDocker(report, signal);
  const stops: (() => Promise<unknown>)[] = [];
  try {
    const image = await ensureNodeImage(docker, report, signal);
    const builder = await findBuilder('auto', report, signal);
    const here: Version = { called: 'this work tree', folder: root, sourceDateEpoch: await commitTime() };
    const current = await shipped(here, builder, report, signal);
    const before = await previousVersion(from, dir, report, signal);
    const previous = 'none' in before ? before : await shipped(before, builder, report, signal);
    const archiveOf = (name: string, file: string) =>
      once(async () => {
        await builder.save(name, join(dir, file), signal);
        return join(dir, file);
      });
    const imageName = nameOf(current);
    const archive = archiveOf(imageName, 'image.tar');
    const images: [string, () => Promise<string>][] = [[imageName, archive]];
    if (!('none' in previous) && nameOf(previous) !== imageName)
      images.push([nameOf(previous), archiveOf(nameOf(previous), 'previous-image.tar')]);
    const known = await docker.run(['image', 'inspect', imageName], { signal }).catch(() => undefined);
    if (known === undefined)
      await docker.run(['load', '--quiet', '--input', await archive()], { signal, timeoutSeconds: 900 });

    if (!reuse) await clear(docker, kind, dir);
    const options: KindOptions = { docker, kind, kubectl: tools.kubectl, image, dir, report };
    const plugins = join(dir, 'device-plugins');
    mkdirSync(plugins, { recursive: true });
    const [consumer, provider] = await Promise.all([
      ensureKindCluster(names.consumer, options, {}, signal),
      // The device plugin runs here, and talks to the kubelet there.
      ensureKindCluster(names.provider, options, { '/var/lib/kubelet/device-plugins': plugins }, signal),
    ]);
    report('loading the images into both clusters');
    const busybox = once(async () => {
      const file = join(dir, 'busybox.tar');
      await ensurePrograms('an image for pods', { busybox: 'busybox-static' }, report, signal);
      writeImages(file, whereIs('busybox')!);
      return file;
    });
    const loadInto = async (cluster: KindCluster, chain: boolean) => {
      for (const [name, file] of images) await cluster.load(name, file);
      await cluster.load(TOOLS_IMAGE, busybox);
      if (chain) await cluster.load(ANVIL_IMAGE, () => anvilArchive(report, signal));
    };
    await Promise.all([loadInto(consumer, true), loadInto(provider, false)]);

    report(`giving the provider's node ${GPUS} GPUs (simulated)`);
    const gpus = simulatedGpus(provider.node, RTX_4090, GPUS);
    const plugin = await startDevicePlugin({ socketDir: plugins, gpus, report });
    stops.push(() => plugin.stop());
    const labels = {
      ...gpuLabels(gpus, { region: 'eu-central', zone: 'eu-central-1a' }),
      'gpulease.dev/offered': 'true',
    };
    await provider.kubectl([
      'label',
      'node',
      provider.node,
      '--overwrite',
      ...Object.entries(labels).map(([key, value]) => `${key}=${value}`),
    ]);
    await provider.kubectl(['apply', '-f', '-'], { input: JSON.stringify(folders) });

    const chain = await startChain(consumer, join(dir, 'contracts.json'), signal);
    report(`contracts deployed: escrow ${chain.deployment.escrow}`);
    const way = (name: keyof typeof ways, from: KindCluster, to: KindCluster, targetPort: number, port: number) =>
      openWay({ docker, name: ways[name], from, to, targetPort, port, image: imageName }, signal);
    const [gateway, chainWay, operatorWay, relay] = await Promise.all([
      way('gateway', consumer, provider, GATEWAY_NODE_PORT, 8443),
      way('chain', provider, consumer, CHAIN_NODE_PORT, 8545),
      way('operator', provider, consumer, REVERSE_NODE_PORT, REVERSE_PORT),
      startRelay({ docker, name: ways.relay, consumer, provider, image: imageName }, signal),
    ]);
    const connected = (cluster: KindCluster) =>
      connectCluster({ name: cluster.name, kubeconfig: readFileSync(cluster.kubeconfig, 'utf8') });
    const lab: Lab = {
      dir,
      docker,
      kubectl: tools.kubectl,
      consumer,
      provider,
      consumerCluster: connected(consumer),
      providerCluster: connected(provider),
      chain,
      gateway,
      chainWay,
      operatorWay,
      relay,
      mistake: (targetPort) => way('mistake', consumer, provider, targetPort, targetPort),
      current,
      previous,
      plugin,
      report,
      signal,
      async stop(keep) {
        for (const stop of stops.splice(0).reverse()) await stop();
        if (keep) return;
        await clear(docker, kind, dir);
        await docker.stop();
      },
    };
    await until(
      "the provider's node having GPUs",
      60,
      async () => {
        const said = await provider.kubectl([
          'get',
          'node',
          provider.node,
          '-o',
          'jsonpath={.status.allocatable.nvidia\\.com/gpu}',
        ]);
        return Number(said) === GPUS || undefined;
      },
      signal,
    );
    return lab;
  } catch (error) {
    for (const stop of stops.splice(0).reverse()) await stop().catch(() => undefined);
    throw error;
  }
}

/** Volumes are folders of the node: of Kubernetes' own making, which kind's clusters are set up for, and so without an image. */
const folders = {
  apiVersion: 'storage.k8s.io/v1',
  kind: 'StorageClass',
  metadata: { name: STORAGE_CLASS },
  provisioner: 'kubernetes.io/host-path',
  volumeBindingMode: 'WaitForFirstConsumer',
};

export const nameOf = ({ image }: Shipped) => `${image.repository}:${image.tag}`;

async function previousVersion(
  from: string | undefined,
  dir: string,
  report: Report,
  signal: AbortSignal,
): Promise<Version | { readonly none: string }> {
  const choice = from === 'none' ? { none: 'as asked for' } : await choosePrevious(gitIn(root, signal), from);
  if ('none' in choice) {
    report(`nothing to upgrade from (${choice.none}): this tree's charts are upgraded to themselves with other values`);
    return choice;
  }
  const version = await checkOut(choice, root, join(dir, 'previous'), signal);
  const lacking = CHARTS.filter((chart) => !existsSync(join(version.folder, chart, 'Chart.yaml')));
  if (lacking.length > 0) throw new Error(`${version.called} has no ${lacking.join(', ')}: name another by --from`);
  report(`the upgrade will be from ${version.called}`);
  return version;
}

/** A version with its image, which is built unless that was done before. */
async function shipped(version: Version, builder: Builder, report: Report, signal: AbortSignal): Promise<Shipped> {
  // Its tag changes with every file that it is made of.
  const image = { repository: 'localhost/gpulease', tag: `e2e-${contextHash(version.folder).slice(0, 12)}` };
  const name = `${image.repository}:${image.tag}`;
  const found = await builder.find(name, signal);
  if (found) {
    report(`the image of ${version.called} is there: ${name}, ${found.digest}`);
    return { ...version, image, built: found };
  }
  const since = Date.now();
  report(`building the image of ${version.called}: ${name}, with ${builder.name}`);
  const { sourceDateEpoch, folder: context } = version;
  const built = await builder.build({ tag: name, sourceDateEpoch, context }, signal);
  report(`built in ${Math.round((Date.now() - since) / 1000)} s: ${built.digest}`);
  return { ...version, image, built };
}

/** The same answer for all that ask. */
function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => {
    made ??= make();
    return made;
  };
}
