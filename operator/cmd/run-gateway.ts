/** The provider's side, gateway and provisioner, in one process or two: reads configuration, wires, starts, stops. */
import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { hostname } from 'node:os';
import { Counter, Gauge, type Registry } from 'prom-client';
import { loadKey } from '../adapters/chain/key.ts';
import type { OutboxRecord } from '../adapters/chain/outbox.ts';
import { createEscrowChains } from '../adapters/gateway/escrow-chains.ts';
import { createKubeletPages } from '../adapters/gateway/kubelet-pages.ts';
import { createNotary } from '../adapters/gateway/notary.ts';
import { randomKey, sharedPair, sharedSecret } from '../adapters/gateway/shared-secret.ts';
import { createSecretStore } from '../adapters/kube/secret-store.ts';
import { createSharedWatches } from '../adapters/shared-watches.ts';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { linkUrlOf } from '../api/link.ts';
import type { Address } from '../api/messages.ts';
import { createProvider } from '../controllers/provider/provider.ts';
import { type CounterName, type Counters, counterNames } from '../controllers/provider/world.ts';
import { familyOf } from '../core/node/service.ts';
import { systemClock } from '../engine/clock.ts';
import { connectCluster } from '../engine/cluster.ts';
import { readCredentials } from '../engine/credentials.ts';
import { isAlreadyExists } from '../engine/errors.ts';
import { runAsLeader } from '../engine/leader.ts';
import { type Cluster, type KubeObject, resources } from '../engine/types.ts';
import { createGateway } from '../gateway/app.ts';
import { dialOut } from './dial-out.ts';
import { type GatewaySettings, parseGatewayOptions, parseProvisionerOptions, readText } from './gateway-options.ts';
import { UsageError } from './options.ts';
import { localAddress, ownAddress } from './own-address.ts';
import { servingPair } from './serving-pair.ts';
import { version } from './version.ts';

/** Of one watch of a tenant that is not read. Thousands of them stay bearable. */
const tenantWindowBytes = 128 * 1024;

/** Runs until SIGTERM or SIGINT. Throws UsageError for configuration that cannot be right. */
export async function runGateway(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const options = parseGatewayOptions(args, env);
  if (options)
    await runProvider('gateway', { listens: true, provisions: options.with.includes('provisioner') }, options);
}

/** The same without a listener. */
export async function runProvisioner(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const options = parseProvisionerOptions(args, env);
  if (options) await runProvider('provisioner', { listens: false, provisions: true }, options);
}

async function runProvider(
  program: 'gateway' | 'provisioner',
  { listens, provisions }: { readonly listens: boolean; readonly provisions: boolean },
  options: GatewaySettings,
): Promise<void> {
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const { signal } = stop;
  const log = createLog({ name: program, level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const metrics = createMetrics();
  const now = () => new Date();
  const { namespace } = options;

  const key = await loadKey(
    options.keyFile,
    options.keyPasswordFile && readText('key-password-file', options.keyPasswordFile).trim(),
  );
  const connection = {
    name: 'provider',
    kubeconfig: options.kubeconfig,
    userAgent: `gpulease-${program}/${version}`,
    metrics: metrics.engine,
  };
  const cluster = connectCluster({
    ...connection,
    shareWatches(to) {
      const watches = createSharedWatches({ ...to, windowBytes: tenantWindowBytes });
      stop.signal.addEventListener('abort', () => watches.close(), { once: true });
      return watches;
    },
  });
  const chains = createEscrowChains({
    rails: options.rails,
    rpcUrls: options.rpcUrls,
    key,
    payee: options.payee ?? key.address,
    store: (chainId) =>
      createSecretStore<OutboxRecord>({
        cluster,
        namespace: options.privateNamespace ?? namespace,
        name: `gpulease-gateway-outbox-${chainId}`,
      }),
    now,
    log,
  });
  const notary = createNotary(key);
  const reverse =
    listens && options.consumerServices === 'on'
      ? {
          address: options.tunnelAddress
            ? localAddress('--tunnel-address', options.tunnelAddress)
            : ownAddress('--tunnel-address'),
          ports: options.tunnelPorts,
        }
      : undefined;
  const nodePages = createKubeletPages({
    cluster,
    credentials: readCredentials(options.kubeconfig),
    ca: kubeletCa(options.kubeletCertificateAuthority),
    insecure: options.kubeletInsecureTls,
    clock: systemClock,
    log,
  });
  if (options.kubeletInsecureTls) {
    log.warn({}, 'certificates of kubelets are not verified: whoever answers at a node’s address learns our token');
  }
  const provider = createProvider({
    cluster,
    namespace,
    name: options.name,
    version,
    notary,
    chains,
    terms: { provider: notary.address, maxUnpaid: options.maxUnpaid, quoteSeconds: options.quoteSeconds },
    provisions,
    tenant: {
      ...(options.gatewayAccount !== undefined && { gatewayAccount: options.gatewayAccount }),
      deniedCidrs: options.denyEgress,
      podSecurity: options.podRules.podSecurity,
      gateway: {
        namespace,
        ...(options.gatewayPods.length > 0 ? { podLabels: Object.fromEntries(options.gatewayPods) } : {}),
        cidrs: options.gatewayCidr,
      },
    },
    podRules: options.podRules,
    trustedConsumers: options.trustedConsumer,
    storage: options.storage,
    ...(reverse ? { services: { family: familyOf(reverse.address) } } : {}),
    kubeletPods: async (node, tenant, asking) => {
      const { pods } = JSON.parse(await nodePages.read(node, 'stats', tenant, asking)) as { pods: unknown[] };
      return pods.length;
    },
    held: () => options.held === true,
    knownConsumers: options.knownConsumer,
    settings: {
      tickSeconds: options.tick,
      chainIntervalSeconds: options.chainInterval,
      settleIntervalSeconds: options.settleInterval,
      settleThreshold: options.settleThreshold,
      settlePatienceSeconds: options.settlePatience,
      retentionSeconds: options.retention,
    },
    now,
    log,
    metrics: metrics.engine,
    counters: countersOn(metrics.registry),
  });

  showFigures(metrics.registry, () => (provider.synced ? provider.figures() : undefined));

  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    ready: () => ({ chains: chains.connected, cluster: provider.synced }),
  });
  log.info({ version, provider: notary.address, namespace, operationsPort: operations.port }, `${program} starts`);

  if (provisions) await ensureNamespace(cluster, namespace, signal);
  const listener = listens ? await createListener() : undefined;
  const work: Promise<unknown>[] = [chains.connect(signal), provider.watch(signal)];
  const identity = `${hostname()}_${process.pid}_${randomBytes(4).toString('hex')}`;
  if (provisions && options.leaderElection === 'off') work.push(provider.lead(signal));
  else if (provisions) {
    const leader = runAsLeader(
      {
        cluster: connectCluster(connection),
        namespace,
        // One lock, so that a provisioner of its own and a gateway that takes it in never lead at once.
        name: 'gpulease-gateway',
        identity,
        log,
        metrics: metrics.engine,
        onLead: (leadSignal) => provider.lead(leadSignal),
      },
      signal,
    );
    work.push(
      leader.ended.then((how) => {
        // Whoever leads now must be alone: leave at once, and let Kubernetes start us again as a follower.
        if (how === 'lost') throw new Error('leadership lost; ending the process');
      }),
    );
  }
  await listener?.open();

  try {
    await Promise.all(work);
  } finally {
    stop.abort(new Error('stopping'));
    // What does not end by then ends with the process: one that serves nothing must not stay, or nobody starts another.
    const late = setTimeout(() => {
      log.error({ seconds: closeSeconds }, 'not everything could be closed in time; ending the process');
      process.exit(1);
    }, closeSeconds * 1000);
    await listener?.close();
    await Promise.allSettled(work);
    nodePages.close();
    await operations.close();
    clearTimeout(late);
    log.info({}, `${program} stopped`);
  }

  async function createListener(): Promise<{ open(): Promise<void>; close(): Promise<void> }> {
    const { key: tokenKey } = await sharedSecret(
      cluster,
      { namespace, name: 'gpulease-gateway-access' },
      () => ({ key: randomKey() }),
      signal,
    );
    const tls = await serving(options, notary.address, cluster, signal);
    const gateway = createGateway({
      service: provider.service,
      upstream: cluster,
      nodePages,
      tokenKey: tokenKey!,
      // Who reaches us over a link signs for the account, as there is no URL.
      publicUrls: [...options.publicUrl, ...(options.dialOut.length > 0 ? [linkUrlOf(notary.address)] : [])],
      now,
      log,
      tls: tls.pair,
      podRules: options.podRules,
      reverse,
      requestsPerSecond: options.requestsPerSecond,
      walletRequestsPerSecond: options.walletRequestsPerSecond,
      unprovenConnections: options.unprovenConnections,
      trustedProxies: options.trustedProxy,
    });

    let links: { close(): Promise<void> } | undefined;
    return {
      async open() {
        // What an earlier process left behind when it was killed.
        if ('path' in options.at) rmSync(options.at.path, { force: true });
        await gateway.app.listen(options.at);
        void tls.follow(gateway.setTls, { log, signal });
        const address =
          'path' in options.at
            ? options.at.path
            : `${options.at.host}:${(gateway.app.server.address() as AddressInfo).port}`;
        links = dialOut({
          places: options.dialOut,
          ca: options.dialOutCa && readText('dial-out-ca', options.dialOutCa),
          key,
          certPem: () => tls.pair.cert,
          take: gateway.take,
          now,
          log,
          registry: metrics.registry,
        });
        log.info(
          {
            address,
            url: options.publicUrl[0],
            spkiSHA256: tls.spkiSHA256,
            provider: notary.address,
          },
          'gateway listening',
        );
      },
      async close() {
        // Who has links open is told that this process goes, before its streams end.
        const unlinked = links?.close();
        await gateway.close();
        await unlinked;
      },
    };
  }
}

function kubeletCa(file: string | undefined): string | undefined {
  if (file === undefined) return undefined;
  const pem = readText('kubelet-certificate-authority', file);
  if (!pem.includes('-----BEGIN CERTIFICATE-----'))
    throw new UsageError(`--kubelet-certificate-authority: ${file} holds no PEM certificate`);
  return pem;
}

/** Streams are ended at once; only what is being answered is waited for. */
const closeSeconds = 10;

async function ensureNamespace(cluster: Cluster, name: string, signal: AbortSignal): Promise<void> {
  if ((await cluster.get(resources.namespaces, { name }, signal)) !== undefined) return;
  try {
    await cluster.create<KubeObject>(
      resources.namespaces,
      { apiVersion: 'v1', kind: 'Namespace', metadata: { name } },
      signal,
    );
  } catch (error) {
    if (!isAlreadyExists(error)) throw error;
  }
}

function serving(options: GatewaySettings, provider: Address, cluster: Cluster, signal: AbortSignal) {
  const urls = options.publicUrl.length > 0 ? options.publicUrl : [linkUrlOf(provider)];
  return servingPair({
    flags: { cert: 'tls-cert', key: 'tls-key' },
    certFile: options.tlsCert,
    keyFile: options.tlsKey,
    hosts: urls.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, '')),
    stored: (make) => sharedPair(cluster, { namespace: options.namespace, name: 'gpulease-gateway-tls' }, make, signal),
    now: () => new Date(),
  });
}

function showFigures(
  registry: Registry,
  figures: () => { leases: Readonly<Record<string, number>>; sold: number; cleaning: number; free: number } | undefined,
): void {
  const registers = [registry];
  new Gauge({
    name: 'gpulease_gateway_leases',
    help: 'Leases with a record here, by state.',
    labelNames: ['state'],
    registers,
    collect() {
      this.reset();
      for (const [state, count] of Object.entries(figures()?.leases ?? {})) this.set({ state }, count);
    },
  });
  new Gauge({
    name: 'gpulease_gateway_gpus',
    help: 'GPUs of offered nodes: sold, held until their last tenant is gone (cleaning), or free to be sold.',
    labelNames: ['state'],
    registers,
    collect() {
      const now = figures();
      if (now === undefined) return;
      this.set({ state: 'sold' }, now.sold);
      this.set({ state: 'cleaning' }, now.cleaning);
      this.set({ state: 'free' }, now.free);
    },
  });
}

function countersOn(registry: Registry): Counters {
  const counters = new Map<CounterName, Counter>();
  const labelNames: Record<CounterName, string[]> = {
    gpulease_gateway_quotes_total: ['offer'],
    gpulease_gateway_allocations_total: ['offer'],
    gpulease_gateway_vouchers_total: [],
    gpulease_gateway_endings_total: ['reason'],
    gpulease_gateway_orphans_total: ['kind'],
    gpulease_gateway_settlements_total: ['kind'],
    gpulease_gateway_settlement_refusals_total: ['name'],
  };
  for (const [name, help] of Object.entries(counterNames) as [CounterName, string][]) {
    counters.set(name, new Counter({ name, help, labelNames: labelNames[name], registers: [registry] }));
  }
  return { count: (name, labels) => counters.get(name)?.inc({ ...labels }) };
}
