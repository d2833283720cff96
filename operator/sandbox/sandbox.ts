/**
 * Everything on one machine: a consumer cluster with the operator, a provider cluster with the gateway and two GPU nodes,
 * and a chain with the contracts. Every part is the one that is shipped; only the GPUs are simulated.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Interface } from 'ethers';
import { load } from 'js-yaml';
import { type Deployment, type DeployResult, deployContracts } from '../adapters/chain/deploy.ts';
import { keyFromHex } from '../adapters/chain/key.ts';
import { connectRpc } from '../adapters/chain/rpc.ts';
import { applyManifests } from '../adapters/kube/apply-manifests.ts';
import { audience } from '../adapters/wallet/protocol.ts';
import { customResourceDefinition } from '../api/crd.ts';
import { deviceClass } from '../api/device-class.ts';
import { kinds } from '../api/kinds.ts';
import { apiVersion } from '../api/labels.ts';
import type { Address } from '../api/messages.ts';
import { policies } from '../api/policies.ts';
import { csiDriver, storageClass } from '../api/storage-class.ts';
import { ownAddress } from '../cmd/own-address.ts';
import { gpuToken } from '../contracts/generated/gpu-token.ts';
import { mockUsdc } from '../contracts/generated/mock-usdc.ts';
import type { ProcessName } from '../core/rights/rule.ts';
import { connectCluster } from '../engine/cluster.ts';
import type { Cluster } from '../engine/types.ts';
import { applyAccounts, kubeconfigOf, tokenOf } from './accounts.ts';
import { type Anvil, startAnvil } from './chain/anvil.ts';
import { startGpuNode } from './clusters/gpu-node.ts';
import { type GpuModel, H100, RTX_4090, simulatedGpus } from './clusters/gpus.ts';
import type { ClusterNode } from './clusters/node.ts';
import { type Plane, type PlaneOptions, startPlane } from './clusters/plane.ts';
import { createSupervisor, freePorts, type ManagedProcess, type Report, type Supervisor } from './processes.ts';
import { ensureTools } from './tools/tools.ts';

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');

export const namespace = 'gpulease-system';

export interface SandboxOptions {
  readonly dir: string;
  readonly report: Report;
  readonly voucherPeriodSeconds?: number;
  /** Blocks come at this pace; a transaction does not wait for it. */
  readonly blockTimeSeconds?: number;
  readonly claimWindowSeconds?: number;
  /** None of a model: no node of it. */
  readonly gpus?: { readonly h100: number; readonly rtx4090: number };
  /** The gateway lets the pods of this sandbox's consumer use its hosts. */
  readonly trustConsumer?: boolean;
  /** Each part a process and a service account of its own, with the rights of core/rights; else one process a side, as admin. */
  readonly split?: boolean;
  /**
   * How the provider is reached. Reverse: its gateway listens nowhere but at a file, and dials out to the operator. Default: Direct.
   */
  readonly via?: 'Direct' | 'Reverse';
  /** The provider's nodes, instead of one with H100s and one with RTX 4090s. */
  readonly nodes?: readonly SandboxNode[];
  /** Further flags of the two programs. */
  readonly operatorArgs?: readonly string[];
  readonly gatewayArgs?: readonly string[];
  readonly operatorEnv?: Readonly<Record<string, string>>;
  /** Flags of Node.js itself, e.g. for a profile. */
  readonly nodeArgs?: Readonly<Partial<Record<'operator' | 'gateway', readonly string[]>>>;
  /** What is run in place of `operator/cmd/NAME.ts`: a file, and arguments that come before the flags. */
  readonly entries?: Readonly<Partial<Record<'operator' | 'gateway', readonly string[]>>>;
  /** For tests that put something between two parts: called once a connection, answers with the URL that the caller is given. */
  readonly route?: (link: Link, url: string) => Promise<string>;
  /** Further flags of the control planes' programs. */
  readonly planeArgs?: Readonly<Partial<Record<'consumer' | 'provider', NonNullable<PlaneOptions['extraArgs']>>>>;
  /** A gateway or an operator ended that nobody asked to end. Reported in any case. */
  readonly onCrash?: (program: string) => void;
}

export interface SandboxNode {
  readonly name: string;
  readonly model: GpuModel;
  readonly gpus: number;
  /** False: the provider keeps it for itself. */
  readonly offered?: boolean;
  /** Of a hollow node, see `NodeOptions`. */
  readonly capacity?: Readonly<Record<string, string>>;
}

/** Who calls whom: the name of the way from one part to another. */
export type Link =
  | 'operator-to-cluster'
  | 'operator-to-gateway'
  | 'gateway-to-operator'
  | 'operator-to-chain'
  | 'gateway-to-cluster'
  | 'gateway-to-chain';

export interface Sandbox {
  readonly dir: string;
  readonly consumer: Plane;
  readonly provider: Plane;
  readonly consumerCluster: Cluster;
  readonly providerCluster: Cluster;
  readonly nodes: readonly ClusterNode[];
  /** No real kubelet: pods are simulated. */
  readonly simulated: boolean;
  readonly chain: Anvil;
  readonly deployment: Deployment;
  readonly wallet: Address;
  readonly providerAddress: Address;
  /** As consumers reach it; by Reverse, as it reaches them. */
  readonly gatewayUrl: string;
  /** host:port where it listens; by Reverse, a file. */
  readonly gatewayListens: string;
  readonly operator: ManagedProcess;
  readonly gateway: ManagedProcess;
  /** Where the sides are split. */
  readonly parts?: Readonly<Record<'wallet' | 'approver' | 'provisioner', ManagedProcess>>;
  /** Ports of /metrics, /livez and /readyz. */
  readonly operations: { readonly operator: number; readonly gateway: number };
  /** A second operator or gateway beside the first, under a name and a user of its own. Ends with the sandbox. */
  startReplica(of: 'operator' | 'gateway', name: string, signal?: AbortSignal): Promise<Replica>;
  readonly kubectl: string;
  stop(): Promise<void>;
}

export interface Replica {
  readonly process: ManagedProcess;
  readonly operationsPort: number;
  /** Of a gateway: where it listens. */
  readonly url?: string;
}

export async function startSandbox(given: SandboxOptions, signal?: AbortSignal): Promise<Sandbox> {
  // Tests that start a sandbox are run once more with the sides split by this.
  const options = { ...given, split: given.split ?? process.env.GPULEASE_SANDBOX_SPLIT === '1' };
  const { dir, report } = options;
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const stops: (() => Promise<void>)[] = [];
  const stop = async () => {
    for (const one of stops.splice(0).reverse()) await one();
  };
  try {
    return await build(options, stops, stop, signal);
  } catch (error) {
    await stop().catch((also: Error) => report(`while clearing up: ${also.message}`));
    throw error;
  }
}

async function build(
  options: SandboxOptions,
  stops: (() => Promise<void>)[],
  stop: () => Promise<void>,
  signal?: AbortSignal,
): Promise<Sandbox> {
  const {
    dir,
    report,
    voucherPeriodSeconds = 5,
    blockTimeSeconds = 1,
    claimWindowSeconds = 30,
    gpus = { h100: 8, rtx4090: 2 },
  } = options;
  const keep = <T extends { stop(): Promise<void> }>(part: T): T => {
    stops.push(() => part.stop());
    return part;
  };
  const tools = await ensureTools({ need: ['plane'], report }, signal);

  report('starting two control planes (etcd, kube-apiserver, controller-manager, scheduler) and a chain (anvil)');
  const plane = (name: 'consumer' | 'provider') =>
    startPlane({ name, dir: join(dir, name), tools, report, extraArgs: options.planeArgs?.[name] }, signal).then(keep);
  const [consumer, provider, chain] = await Promise.all([
    plane('consumer'),
    plane('provider'),
    startAnvil(
      { dir: join(dir, 'chain'), report, blockTimeSeconds, mineAtOnceToo: true, slotsInAnEpoch: 4 },
      signal,
    ).then(keep),
  ]);
  const consumerCluster = connectCluster({ name: 'consumer', kubeconfig: consumer.kubeconfig });
  const providerCluster = connectCluster({ name: 'provider', kubeconfig: provider.kubeconfig });

  const wanted: readonly SandboxNode[] = options.nodes ?? [
    ...(gpus.h100 > 0 ? [{ name: 'gpu-h100', model: H100, gpus: gpus.h100 }] : []),
    ...(gpus.rtx4090 > 0 ? [{ name: 'gpu-4090', model: RTX_4090, gpus: gpus.rtx4090 }] : []),
  ];
  report(
    `joining ${wanted.length} GPU nodes to the provider (kubelet, containerd, device plugin) and deploying the contracts`,
  );
  const node = ({ name, model, gpus: count, offered = true, capacity }: SandboxNode) =>
    startGpuNode(
      {
        plane: provider,
        name,
        dir: join(dir, name),
        gpus: simulatedGpus(name, model, count),
        labels: offered ? { 'gpulease.dev/offered': 'true' } : {},
        capacity,
        report,
      },
      signal,
    ).then(keep);
  const [nodes, deployed] = await Promise.all([
    Promise.all(wanted.map(node)),
    deploy(chain, claimWindowSeconds, signal),
    applyManifests(
      consumerCluster,
      [...crds(), ...policies.flatMap((policy) => policy.manifests), deviceClass, storageClass, csiDriver, ...base()],
      { fieldManager: 'sandbox' },
      signal,
    ),
    applyManifests(providerCluster, [...crds(), ...base()], { fieldManager: 'sandbox' }, signal),
  ]);
  const { deployment, wallet, walletKey, providerKey, providerAddress } = deployed;
  await Promise.all([established(consumerCluster, signal), established(providerCluster, signal)]);
  if (options.split)
    await Promise.all([
      applyAccounts(consumerCluster, 'consumer', signal),
      applyAccounts(providerCluster, 'provider', signal),
    ]);
  await applyManifests(providerCluster, offers(), { fieldManager: 'sandbox' }, signal);

  report('starting the gateway and the operator');
  const programs: Supervisor = keep(
    createSupervisor({ dir: join(dir, 'programs'), report, onCrash: (_, name) => options.onCrash?.(name) }),
  );
  const secret = (name: string, text: string) => {
    const file = join(dir, name);
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  };
  const route = options.route ?? (async (_: Link, url: string) => url);
  const addresses = secret('addresses.json', JSON.stringify(deployment));
  const [gatewayPort = 0] = await freePorts(1);
  const reverse = options.via === 'Reverse';
  const ownUrl = `https://127.0.0.1:${gatewayPort}`;
  // Consumers sign for the address by which they reach the gateway; a gateway that dials out, for that by which it reaches them.
  const gatewayUrl = await route(reverse ? 'gateway-to-operator' : 'operator-to-gateway', ownUrl);
  const linkUrl = gatewayUrl.replace(/^https:/, 'wss:');
  const socketOf = (name: string) => join(dir, `${name}.sock`);
  const serving = await provider.issueServing('gateway', ['127.0.0.1', 'localhost']);
  const [tlsCert, tlsKey] = [
    secret('gateway.crt', serving.certificatePem),
    secret('gateway.key', serving.privateKeyPem),
  ];
  const atOperator = reverse ? await consumer.issueServing('reverse', ['127.0.0.1']) : undefined;
  const linkFlags = (of: 'gateway' | 'operator'): string[] =>
    !atOperator
      ? []
      : of === 'gateway'
        ? ['--dial-out', linkUrl, '--dial-out-ca', secret('reverse-ca.crt', consumer.caPem)]
        : [
            ...['--reverse-listen', `127.0.0.1:${gatewayPort}`, '--reverse-url', linkUrl],
            ...['--reverse-tls-cert', secret('reverse.crt', atOperator.certificatePem)],
            ...['--reverse-tls-key', secret('reverse.key', atOperator.privateKeyPem)],
          ];
  const providerKeyFile = secret('provider.key', providerKey);
  const walletKeyFile = secret('wallet.key', walletKey);
  const atProvider = { server: await route('gateway-to-cluster', provider.server) };
  const atConsumer = { server: await route('operator-to-cluster', consumer.server) };
  const gatewayChain = `${chain.chainId}=${await route('gateway-to-chain', chain.rpcUrl)}`;
  const operatorChain = `${chain.chainId}=${await route('operator-to-chain', chain.rpcUrl)}`;

  const providerPace = [
    ...['--chain-interval', '1', '--tick', '1'],
    ...(options.trustConsumer ? ['--trusted-consumer', wallet] : []),
    ...(options.gatewayArgs ?? []),
  ];

  // What Node.js was asked for besides, a profile say, it writes at its end, and takes its time.
  const stopTimeoutSeconds = options.nodeArgs ? 60 : undefined;

  const startGateway = async (name: string, port: number, abort?: AbortSignal): Promise<Replica> => {
    const [operationsPort = 0] = await freePorts(1);
    const kubeconfig = options.split
      ? await kubeconfigOf(provider, providerCluster, 'gateway', atProvider, abort)
      : await provider.issueKubeconfig(`gpulease-${name}`, ['system:masters'], atProvider);
    const started = await programs.start(
      {
        name,
        command: process.execPath,
        args: [
          ...shippedFlags('gateway'),
          ...(options.nodeArgs?.gateway ?? []),
          ...(options.entries?.gateway ?? [join(root, 'operator/cmd/gateway.ts')]),
          '--kubeconfig',
          secret(`${name}.kubeconfig`, kubeconfig),
          '--namespace',
          namespace,
          '--listen',
          reverse ? `unix:${socketOf(name)}` : `127.0.0.1:${port}`,
          ...(reverse ? linkFlags('gateway') : ['--public-url', gatewayUrl]),
          '--tls-cert',
          tlsCert,
          '--tls-key',
          tlsKey,
          '--key-file',
          providerKeyFile,
          '--chain',
          gatewayChain,
          '--addresses',
          addresses,
          '--operations-port',
          String(operationsPort),
          ...(options.split ? ['--with', 'none'] : []),
          ...providerPace,
        ],
        // Its only consumer has several leases from the start. Not a flag: gateways of earlier commits are run here, too.
        env: { ...shippedEnv, GPULEASE_KNOWN_CONSUMER: wallet },
        ready: () => ready(operationsPort),
        readyTimeoutSeconds: 60,
        stopTimeoutSeconds,
      },
      abort,
    );
    return { process: started, operationsPort, url: `https://127.0.0.1:${port}` };
  };
  const startOperator = async (name: string, abort?: AbortSignal): Promise<Replica> => {
    const [operationsPort = 0] = await freePorts(1);
    const kubeconfig = options.split
      ? await kubeconfigOf(consumer, consumerCluster, 'operator', atConsumer, abort)
      : await consumer.issueKubeconfig(`gpulease-${name}`, ['system:masters'], atConsumer);
    const started = await programs.start(
      {
        name,
        command: process.execPath,
        args: [
          ...shippedFlags('operator'),
          ...(options.nodeArgs?.operator ?? []),
          ...(options.entries?.operator ?? [join(root, 'operator/cmd/operator.ts')]),
          '--kubeconfig',
          secret(`${name}.kubeconfig`, kubeconfig),
          '--namespace',
          namespace,
          '--chain',
          operatorChain,
          ...(options.split
            ? [
                ...['--with', 'none', '--wallet-token-file'],
                secret('wallet.token', await tokenOf(consumerCluster, 'operator', audience, abort)),
              ]
            : ['--wallet-key-file', walletKeyFile]),
          '--max-escrow',
          'USDC=1000',
          '--max-escrow',
          'GPU=1000',
          '--voucher-period-seconds',
          String(voucherPeriodSeconds),
          '--chain-tick-seconds',
          '1',
          '--refund-seconds',
          '2',
          '--close-timeout-seconds',
          '20',
          '--operations-port',
          String(operationsPort),
          ...linkFlags('operator'),
          ...(options.operatorArgs ?? []),
        ],
        env: { ...shippedEnv, ...options.operatorEnv },
        ready: () => ready(operationsPort),
        readyTimeoutSeconds: 60,
        stopTimeoutSeconds,
      },
      abort,
    );
    return { process: started, operationsPort };
  };
  /** The three that are processes of their own where the sides are split. */
  const startPart = async (name: 'wallet' | 'approver' | 'provisioner', args: readonly string[]) => {
    const [operationsPort = 0] = await freePorts(1);
    const [plane, cluster, at] =
      name === 'provisioner' ? [provider, providerCluster, atProvider] : [consumer, consumerCluster, atConsumer];
    const kubeconfig = secret(`${name}.kubeconfig`, await kubeconfigOf(plane, cluster, name, at, signal));
    return programs.start(
      {
        name,
        command: process.execPath,
        args: [
          ...shippedFlags(name),
          join(root, `operator/cmd/${name}.ts`),
          ...['--kubeconfig', kubeconfig, '--operations-port', String(operationsPort)],
          ...args,
        ],
        ready: () => ready(operationsPort),
        readyTimeoutSeconds: 60,
        stopTimeoutSeconds,
      },
      signal,
    );
  };
  const startParts = async () => {
    const money = ['--addresses', addresses, '--chain'];
    const [provisioner, walletProcess, approver] = await Promise.all([
      startPart('provisioner', [...['--key-file', providerKeyFile, ...money, gatewayChain, ...providerPace]]),
      startPart('wallet', [
        ...['--key-file', walletKeyFile, ...money, operatorChain, '--listen', '0.0.0.0:0', '--chain-tick-seconds', '1'],
        ...['--daily-limit', 'USDC=1000', '--daily-limit', 'GPU=1000'],
      ]),
      startPart('approver', ['--address', ownAddress('--node-address')]),
    ]);
    return { provisioner, wallet: walletProcess, approver };
  };
  const parts = options.split ? await startParts() : undefined;
  const gateway = await startGateway('gateway', gatewayPort, signal);
  const operator = await startOperator('operator', signal);
  await applyManifests(
    consumerCluster,
    [gpuProvider(reverse ? undefined : gatewayUrl, provider.caPem, providerAddress, deployment)],
    { fieldManager: 'sandbox' },
    signal,
  );
  return {
    dir,
    consumer,
    provider,
    consumerCluster,
    providerCluster,
    nodes,
    simulated: nodes.some((n) => n.simulated),
    chain,
    deployment,
    wallet,
    providerAddress,
    gatewayUrl,
    gatewayListens: reverse ? socketOf('gateway') : `127.0.0.1:${gatewayPort}`,
    operator: operator.process,
    gateway: gateway.process,
    ...(parts && { parts }),
    operations: { operator: operator.operationsPort, gateway: gateway.operationsPort },
    async startReplica(of, name, abort) {
      if (of === 'operator') return startOperator(name, abort);
      const [port = 0] = await freePorts(1);
      return startGateway(name, port, abort);
    },
    kubectl: tools.kubectl,
    stop,
  };
}

/** Flags of Node.js with which `npm run` starts a program: of its memory, mostly. */
export function shippedFlags(program: ProcessName): string[] {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  return scripts[program]!.split(' ').filter((word) => word.startsWith('--'));
}

/** What the image sets for the same. */
const shippedEnv = { MALLOC_ARENA_MAX: '2' };

/** Accounts of the local chain, by what they do here. All hold play money and have well-known keys. */
const roles = { deployer: 0, consumer: 1, provider: 2, feeRecipient: 3 } as const;

async function deploy(chain: Anvil, claimWindowSeconds: number, signal?: AbortSignal) {
  const account = (role: keyof typeof roles) => chain.accounts[roles[role]]!;
  const rpc = await connectRpc({ urls: [chain.rpcUrl], chainId: chain.chainId }, signal);
  const { deployment }: DeployResult = await deployContracts(
    {
      rpc,
      key: keyFromHex(account('deployer').privateKey),
      claimWindowSeconds,
      feeRecipient: account('feeRecipient').address as Address,
      tokens: [
        { name: 'USDC', source: 'mock', feeBps: 200 },
        { name: 'GPU', source: 'gpu', feeBps: 0 },
      ],
    },
    signal,
  );
  const wallet = account('consumer').address as Address;
  const send = (to: Address, data: string) =>
    chain.rpc('eth_sendTransaction', { from: account('deployer').address, to, data });
  await send(
    deployment.tokens.USDC!.address,
    new Interface(mockUsdc.abi).encodeFunctionData('mint', [wallet, 1_000_000000n]),
  );
  await send(
    deployment.tokens.GPU!.address,
    new Interface(gpuToken.abi).encodeFunctionData('transfer', [wallet, 1_000n * 10n ** 18n]),
  );
  return {
    deployment,
    wallet,
    walletKey: account('consumer').privateKey,
    providerKey: account('provider').privateKey,
    providerAddress: account('provider').address as Address,
  };
}

const crds = () => kinds.map((kind) => customResourceDefinition(kind) as never);
const base = () => [{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } }] as never[];

/** Prices of the day: RunPod's community and secure list, 2026-09-25. The network's own token carries no fee, so it costs less. */
function offers() {
  const offer = (name: string, model: string, interconnect: string, usdc: string, gpu: string) => ({
    apiVersion,
    kind: 'GpuOffer',
    metadata: { name },
    spec: {
      model,
      interconnect,
      prices: [
        { assetSymbol: 'USDC', perGpuHour: usdc },
        { assetSymbol: 'GPU', perGpuHour: gpu },
      ],
    },
  });
  return [
    offer('h100-sxm', 'H100-SXM', 'NVLink', '2.69', '2.64'),
    offer('rtx4090', 'RTX4090', 'PCIe', '0.34', '0.3335'),
  ] as never[];
}

function gpuProvider(url: string | undefined, caPem: string, address: Address, deployment: Deployment) {
  const rails = Object.entries(deployment.tokens).map(([assetSymbol, token]) => ({
    chainId: deployment.chainId,
    escrow: deployment.escrow,
    token: token.address,
    assetSymbol,
    maxEscrow: '500',
  }));
  return {
    apiVersion,
    kind: 'GpuProvider',
    metadata: { name: 'sandbox' },
    spec: {
      // By Reverse the account is all that is known of it.
      endpoint: url ? { url, caBundle: Buffer.from(caPem).toString('base64') } : { via: 'Reverse' },
      identity: { address },
      payment: { rails },
      probe: { intervalSeconds: 2, timeoutSeconds: 2, failureThreshold: 3 },
    },
  } as never;
}

async function established(cluster: Cluster, signal?: AbortSignal): Promise<void> {
  for (const kind of kinds) {
    for (;;) {
      const crd = await cluster.get<never>(
        {
          group: 'apiextensions.k8s.io',
          version: 'v1',
          plural: 'customresourcedefinitions',
          kind: 'CustomResourceDefinition',
          namespaced: false,
        },
        { name: `${kind.plural}.gpulease.dev` },
        signal,
      );
      const conditions = (crd as { status?: { conditions?: { type: string; status: string }[] } } | undefined)?.status
        ?.conditions;
      if (conditions?.some((c) => c.type === 'Established' && c.status === 'True')) break;
      await sleep(100, undefined, { signal });
    }
  }
}

async function ready(port: number): Promise<boolean> {
  const answer = await fetch(`http://127.0.0.1:${port}/readyz`);
  return answer.ok;
}

/** The manifests of an example, in order of their file names as given. */
export function example(name: string, ...files: string[]): never[] {
  return files.map((file) => load(readFileSync(join(root, 'examples', name, file), 'utf8')) as never);
}
