/** Both charts as Helm installs them, with the values that a person would write for the clusters of the test. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { dump, load } from 'js-yaml';
import { labels } from '../../operator/api/labels.ts';
import { command } from '../../operator/sandbox/command.ts';
import { root } from '../../operator/sandbox/image/builder.ts';
import type { KindCluster } from '../../operator/sandbox/kind/pair.ts';
import { CHAIN_ID } from './chain.ts';
import { GATEWAY_NODE_PORT, type Lab } from './lab.ts';

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
  readonly chart: string;
  readonly cluster: KindCluster;
  readonly values: object;
  /** Of Secrets with keys that the chart takes for given: namespace, name, key. */
  readonly keys: readonly { readonly namespace: string; readonly name: string; readonly key: string }[];
}

export function operatorRelease(lab: Lab, change: object = {}): Release {
  const { chain, image, consumer } = lab;
  return {
    name: 'gpulease-operator',
    chart: 'charts/operator',
    cluster: consumer,
    values: {
      image: { ...image, pullPolicy: 'Never' },
      chains: [{ id: CHAIN_ID, rpcUrls: [chain.inCluster] }],
      wallet: {
        namespace: WALLET_NAMESPACE,
        createNamespace: false,
        maxEscrow: { USDC: '1000' },
        dailyLimit: { USDC: '1000' },
        rails: railsOf(lab).map(({ chainId, escrow, token }) => ({ chainId, escrow, token })),
        replicas: 1,
        ...change,
      },
      approver: { replicas: 1, ...change },
      operator: {
        replicas: 1,
        flags: { voucherPeriodSeconds: 5, chainTickSeconds: 1, refundSeconds: 2, closeTimeoutSeconds: 20 },
        ...change,
      },
    },
    keys: [{ namespace: WALLET_NAMESPACE, name: 'gpulease-wallet-key', key: chain.walletKey }],
  };
}

export function providerRelease(lab: Lab, change: object = {}): Release {
  const { chain, chainWay, gateway, image, provider } = lab;
  return {
    name: 'gpulease-provider',
    chart: 'charts/provider',
    cluster: provider,
    values: {
      image: { ...image, pullPolicy: 'Never' },
      provider: { name: PROVIDER_NAME, publicUrls: [`https://${gateway.host}:${gateway.port}`] },
      chains: [{ id: CHAIN_ID, rpcUrls: [`http://${chainWay.host}:${chainWay.port}`] }],
      rails: railsOf(lab),
      offers: {
        rtx4090: { model: 'RTX4090', interconnect: 'PCIe', prices: [{ assetSymbol: 'USDC', perGpuHour: '0.34' }] },
      },
      provisioner: { namespace: PROVISIONER_NAMESPACE, createNamespace: false, replicas: 1, tolerations, ...change },
      setup: { tolerations },
      uninstall: { tolerations },
      tests: { tolerations },
      gateway: {
        replicas: 1,
        tolerations,
        service: { type: 'NodePort', nodePort: GATEWAY_NODE_PORT },
        flags: { chainInterval: 1, tick: 1 },
        ...change,
      },
    },
    keys: [NAMESPACE, PROVISIONER_NAMESPACE].map((namespace) => ({
      namespace,
      name: 'gpulease-provider-key',
      key: chain.providerKey,
    })),
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
      cwd: root,
    });
  }

  /** Installs, or upgrades what is installed; waits until all of it is ready. */
  async install(release: Release, charts = root, signal?: AbortSignal): Promise<void> {
    const { name, chart, cluster, values, keys } = release;
    if (!existsSync(join(charts, chart, 'Chart.yaml'))) throw new Error(`there is no ${chart} in ${charts}`);
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
      join(charts, chart),
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
