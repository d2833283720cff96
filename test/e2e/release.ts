/** Both charts as Helm installs them, with the values that a person would write for the clusters of the test. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { dump, load } from 'js-yaml';
import { labels } from '../../operator/api/labels.ts';
import { knownValues, type Schema } from '../../operator/sandbox/charts/known-values.ts';
import { command } from '../../operator/sandbox/command.ts';
import { root } from '../../operator/sandbox/image/builder.ts';
import type { KindCluster } from '../../operator/sandbox/kind/pair.ts';
import { CHAIN_ID } from './chain.ts';
import { GATEWAY_NODE_PORT, type Lab, REVERSE_NODE_PORT, REVERSE_PORT, type Shipped, STORAGE_CLASS } from './lab.ts';

export const NAMESPACE = 'gpulease-system';
export const PROVIDER_NAME = 'e2e';
/** With the wallet's key, and the settling key: accounts that the listening processes cannot read. */
const WALLET_NAMESPACE = 'gpulease-wallet';
const PROVISIONER_NAMESPACE = 'gpulease-provisioner';
/** Of every process of ours, in either cluster. */
export const OUR_NAMESPACES = [NAMESPACE, WALLET_NAMESPACE, PROVISIONER_NAMESPACE];

// The provider's cluster has one node, which it rents out; elsewhere our own processes run beside those.
const tolerations = [{ key: labels.offered, operator: 'Exists' }];

const railsOf = ({ chain: { deployment } }: Lab) => [
  { chainId: CHAIN_ID, escrow: deployment.escrow, token: deployment.tokens.USDC!.address, assetSymbol: 'USDC' },
];

export interface Release {
  readonly name: string;
  /** Folder of the chart. */
  readonly chart: string;
  readonly cluster: KindCluster;
  readonly values: object;
  /** Values that are written for this tree's chart and that an earlier one does not know. */
  readonly unknownValues: readonly string[];
  /** Of Secrets with keys that the chart takes for given: namespace, name, key. */
  readonly keys: readonly { readonly namespace: string; readonly name: string; readonly key: string }[];
}

/** What a release is given beside the values of every test. */
export interface Change {
  /** Of every process: it is then made anew. */
  readonly podAnnotations?: Readonly<Record<string, string>>;
  /** Where the provider's gateway dials out to; nobody can connect to it then. */
  readonly dialOut?: readonly string[];
  /** Uninstallation of the operator while leases are open. */
  readonly onOpenLeases?: 'End' | 'Refuse';
}

export function operatorRelease(
  lab: Lab,
  version: Shipped = lab.current,
  { podAnnotations, onOpenLeases }: Change = {},
): Release {
  const { chain, consumer, operatorWay } = lab;
  const pods = { replicas: 1, ...(podAnnotations && { podAnnotations }) };
  return release(version, 'operator', consumer, {
    values: {
      image: { ...version.image, pullPolicy: 'Never' },
      chains: [{ id: CHAIN_ID, rpcUrls: [chain.inCluster] }],
      wallet: {
        namespace: WALLET_NAMESPACE,
        createNamespace: false,
        maxEscrow: { USDC: '1000' },
        dailyLimit: { USDC: '1000' },
        rails: railsOf(lab).map(({ chainId, escrow, token }) => ({ chainId, escrow, token })),
        ...pods,
      },
      approver: pods,
      operator: {
        flags: {
          ...{ voucherPeriodSeconds: 5, chainTickSeconds: 1, refundSeconds: 2, closeTimeoutSeconds: 20 },
        },
        ...pods,
      },
      reverse: {
        enabled: true,
        urls: [`wss://${operatorWay.host}:${operatorWay.port}`],
        port: REVERSE_PORT,
        service: { type: 'NodePort', nodePort: REVERSE_NODE_PORT },
      },
      ...(onOpenLeases && { uninstall: { onOpenLeases } }),
    },
    keys: [{ namespace: WALLET_NAMESPACE, name: 'gpulease-wallet-key', key: chain.walletKey }],
  });
}

export function providerRelease(
  lab: Lab,
  version: Shipped = lab.current,
  { podAnnotations, dialOut }: Change = {},
): Release {
  const { chain, chainWay, gateway, provider } = lab;
  const pods = { replicas: 1, tolerations, ...(podAnnotations && { podAnnotations }) };
  return release(version, 'provider', provider, {
    values: {
      image: { ...version.image, pullPolicy: 'Never' },
      provider: { name: PROVIDER_NAME, publicUrls: dialOut ? [] : [`https://${gateway.host}:${gateway.port}`] },
      chains: [{ id: CHAIN_ID, rpcUrls: [`http://${chainWay.host}:${chainWay.port}`] }],
      rails: railsOf(lab),
      offers: {
        rtx4090: { model: 'RTX4090', interconnect: 'PCIe', prices: [{ assetSymbol: 'USDC', perGpuHour: '0.34' }] },
      },
      provisioner: { namespace: PROVISIONER_NAMESPACE, createNamespace: false, ...pods },
      setup: { tolerations },
      uninstall: { tolerations, drainSeconds: 5 },
      tests: { tolerations },
      gateway: {
        service: dialOut ? { type: 'ClusterIP' } : { type: 'NodePort', nodePort: GATEWAY_NODE_PORT },
        flags: {
          chainInterval: 1,
          tick: 1,
          storageClass: STORAGE_CLASS,
          maxStorage: '1Gi',
          ...(dialOut && { dialOut }),
        },
        ...pods,
      },
    },
    keys: [NAMESPACE, PROVISIONER_NAMESPACE].map((namespace) => ({
      namespace,
      name: 'gpulease-provider-key',
      key: chain.providerKey,
    })),
  });
}

function release(
  version: Shipped,
  chart: 'operator' | 'provider',
  cluster: KindCluster,
  { values, keys }: Pick<Release, 'values' | 'keys'>,
): Release {
  const folder = join(version.folder, 'charts', chart);
  const schema = JSON.parse(readFileSync(join(folder, 'values.schema.json'), 'utf8')) as Schema;
  const known = knownValues(schema, values);
  return {
    name: `gpulease-${chart}`,
    chart: folder,
    cluster,
    // Of this tree's chart nothing is left out: Helm is to refuse what it does not know.
    values: version.folder === root ? values : (known.values as object),
    unknownValues: version.folder === root ? [] : known.dropped,
    keys,
  };
}

export class Helm {
  readonly #helm: string;
  readonly #dir: string;
  constructor(helm: string, dir: string) {
    this.#helm = helm;
    this.#dir = join(dir, 'helm');
    mkdirSync(this.#dir, { recursive: true });
  }

  run({ cluster }: Release, args: readonly string[], timeoutSeconds = 300, signal?: AbortSignal): Promise<string> {
    const env = {
      HELM_CACHE_HOME: join(this.#dir, 'cache'),
      HELM_CONFIG_HOME: join(this.#dir, 'config'),
      HELM_DATA_HOME: join(this.#dir, 'data'),
    };
    return command(this.#helm, [...args, '--kubeconfig', cluster.kubeconfig, '--namespace', NAMESPACE], {
      env,
      timeoutSeconds,
      signal,
    });
  }

  /** Installs, or upgrades what is installed; waits until all of it is ready. */
  async install(release: Release, signal?: AbortSignal): Promise<void> {
    const { name, chart, cluster, values, keys } = release;
    for (const { namespace, name: secret, key } of keys) {
      const manifests = [
        { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } },
        { apiVersion: 'v1', kind: 'Secret', metadata: { namespace, name: secret }, stringData: { key } },
      ];
      await cluster.kubectl(['apply', '-f', '-'], { input: manifests.map((one) => dump(one)).join('---\n') });
    }
    const file = join(this.#dir, `${name}.yaml`);
    writeFileSync(file, dump(values));
    const args = [
      'upgrade',
      '--install',
      name,
      chart,
      '--values',
      file,
      '--create-namespace',
      '--wait',
      '--timeout',
      '10m',
    ];
    await this.run(release, args, 630, signal).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await story(cluster)}`);
    });
  }

  async test(release: Release, signal?: AbortSignal): Promise<void> {
    await this.run(release, ['test', release.name, '--logs', '--timeout', '3m'], 200, signal);
  }

  async uninstall(release: Release, signal?: AbortSignal): Promise<void> {
    await this.run(release, ['uninstall', release.name, '--wait', '--timeout', '10m'], 620, signal).catch(
      async (error: Error) => {
        throw new Error(`${error.message}\n${await story(release.cluster)}`);
      },
    );
  }
}

/** What a person would look at first when a release does not come up. */
export async function story(cluster: KindCluster): Promise<string> {
  const parts = await Promise.all(
    [
      ['get', 'pods', '-A', '-o', 'wide'],
      ['-n', NAMESPACE, 'get', 'events', '--sort-by=.lastTimestamp'],
      ['-n', NAMESPACE, 'logs', '--selector', 'app.kubernetes.io/name', '--tail=15', '--prefix', '--all-containers'],
    ].map((args) => cluster.kubectl(args).catch((error: Error) => error.message)),
  );
  return parts.map((part) => part.slice(-4000)).join('\n');
}

/**
 * The GpuProvider that the provider's chart shows to consumers, as they would paste it: whatever document of its ConfigMap is
 * one, with the asset's limits that a consumer adds.
 */
export async function gpuProviderFor(lab: Lab): Promise<string> {
  const said = await lab.provider.kubectl([
    '-n',
    NAMESPACE,
    'get',
    'configmap',
    'gpulease-for-consumers',
    '-o',
    'json',
  ]);
  const { data = {} } = JSON.parse(said) as { data?: Record<string, string> };
  for (const text of Object.values(data)) {
    for (const part of text.split(/^---$/m)) {
      const object = part.includes('GpuProvider') ? (load(part) as { kind?: string } | undefined) : undefined;
      if (object?.kind === 'GpuProvider') return dump(object);
    }
  }
  throw new Error(`the ConfigMap gpulease-for-consumers holds no GpuProvider, only ${Object.keys(data).join(', ')}`);
}
