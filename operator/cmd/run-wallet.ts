/** The wallet, alone: reads configuration, wires, starts, stops. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { type ChainKey, loadKey, loadKeyText } from '../adapters/chain/key.ts';
import { remoteSigner } from '../adapters/chain/remote-signer.ts';
import { selfSigned } from '../adapters/gateway/certificate.ts';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { serverName } from '../adapters/wallet/protocol.ts';
import { startWalletServer } from '../adapters/wallet/server.ts';
import { labels, managedBy } from '../api/labels.ts';
import { walletName } from '../core/rights/consumer.ts';
import { systemClock } from '../engine/clock.ts';
import { connectCluster } from '../engine/cluster.ts';
import { every } from '../engine/every.ts';
import { fenced } from '../engine/fence.ts';
import { runAsLeader } from '../engine/leader.ts';
import { type Cluster, type KubeObject, resources } from '../engine/types.ts';
import { readText } from './gateway-options.ts';
import { UsageError } from './options.ts';
import { localAddress, ownAddress } from './own-address.ts';
import { version } from './version.ts';
import { parseWalletOptions } from './wallet-options.ts';
import { walletPart } from './wallet-part.ts';

type WalletSettings = NonNullable<ReturnType<typeof parseWalletOptions>>;

const fieldManager = 'gpulease-wallet';
const publishSeconds = 60;

/** Runs until SIGTERM or SIGINT. Throws UsageError for configuration that cannot be right. */
export async function runWallet(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const options = parseWalletOptions(args, env);
  if (!options) return;
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const { signal } = stop;
  const { namespace } = options;
  const log = createLog({ name: 'wallet', level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const metrics = createMetrics();
  const connection = {
    name: 'consumer',
    kubeconfig: options.kubeconfig,
    userAgent: `gpulease-wallet/${version}`,
    metrics: metrics.engine,
  };
  const api = connectCluster(connection);
  const key = await keyOf(options, api, signal);
  const address = options.advertise ? localAddress('--advertise', options.advertise) : ownAddress('--advertise');
  let leading = false;
  let serving = false;
  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    // A replica that waits for the lock is ready to take over.
    ready: () => ({ serving: !leading || serving || 'the wallet has not said yet where it is' }),
  });
  log.info({ version, wallet: key.address, operationsPort: operations.port }, 'wallet starts');

  const lead = async (leadSignal: AbortSignal, isLeader = () => true): Promise<void> => {
    leading = true;
    const cluster = fenced(api, isLeader);
    const chains = walletPart({
      cluster,
      namespace,
      key,
      chains: options.chain,
      rules: { rails: options.railList, ...(options.provider.length > 0 && { providers: options.provider }) },
      limits: { amounts: new Map(options.dailyLimit), transactions: options.dailyTransactions },
      now: () => new Date(),
      log,
    });
    // Transactions that an earlier process stored are looked after before anything new is asked for.
    for (const chain of chains.values())
      await chain
        .outbox(leadSignal)
        .catch((error: Error) => log.warn({ chainId: chain.chainId, error: error.message }, 'chain not reachable yet'));
    const tls = await selfSigned([serverName], new Date());
    const server = await startWalletServer({
      host: options.host,
      port: options.port,
      tls,
      cluster,
      caller: options.operatorAccount,
      payer: (chainId, outer) => chains.get(chainId)?.outbox(outer),
      clock: systemClock,
      log,
    });
    const url = `https://${address.includes(':') ? `[${address}]` : address}:${server.port}`;
    const place: KubeObject & { data: Record<string, string> } = {
      apiVersion: 'v1',
      kind: 'ConfigMap',
      metadata: { name: walletName, namespace, labels: { [labels.managedBy]: managedBy } },
      data: { url, certificate: tls.cert, wallet: key.address, chains: [...chains.keys()].join(',') },
    };
    // Again and again: what somebody changed comes back.
    let publishedAtMs = Number.NEGATIVE_INFINITY;
    const publish = async () => {
      if (systemClock.monotonicMs() - publishedAtMs < publishSeconds * 1000) return;
      await cluster.apply<KubeObject>(resources.configMaps, place, { fieldManager }, leadSignal);
      if (!serving) log.info({ url, operator: options.operatorAccount }, 'wallet serves');
      serving = true;
      publishedAtMs = systemClock.monotonicMs();
    };
    const tick = async () => {
      for (const chain of chains.values()) {
        // One that was away at the start is dialled again here, for what is stored for it.
        await chain.outbox(leadSignal);
        await chain.tick(leadSignal);
      }
    };
    await Promise.all([
      every(2, 'publishing where the wallet is', publish, { log, signal: leadSignal }),
      every(options.chainTickSeconds, 'looking after transactions', tick, { log, signal: leadSignal }),
    ]);
    await server.close();
  };

  if (options.leaderElection === 'off') await lead(signal);
  else {
    const identity = `${hostname()}_${process.pid}_${randomBytes(4).toString('hex')}`;
    const leader = runAsLeader(
      {
        cluster: connectCluster(connection),
        namespace,
        name: 'gpulease-wallet',
        identity,
        log,
        metrics: metrics.engine,
        onLead: lead,
      },
      signal,
    );
    if ((await leader.ended) === 'lost') {
      // Whoever leads now must be alone: leave at once, and let Kubernetes start us again as a follower.
      log.error({}, 'leadership lost; ending the process');
      process.exit(1);
    }
  }
  await operations.close();
  log.info({}, 'wallet stopped');
}

async function keyOf(options: WalletSettings, cluster: Cluster, signal: AbortSignal): Promise<ChainKey> {
  const { namespace, keyFile, keyPasswordFile, keySecret, signerUrl, signerAccount, signerTokenFile } = options;
  if (keyFile !== undefined)
    return loadKey(keyFile, keyPasswordFile && readText('key-password-file', keyPasswordFile).trim());
  if (keySecret !== undefined) {
    const secret = await cluster.get<KubeObject & { data?: Record<string, string> }>(
      resources.secrets,
      { namespace, name: keySecret },
      signal,
    );
    const field = (name: string) => {
      const encoded = secret?.data?.[name];
      return encoded === undefined ? undefined : Buffer.from(encoded, 'base64').toString('utf8').trim();
    };
    const key = field('key');
    if (key === undefined)
      throw new UsageError(`--key-secret: Secret ${namespace}/${keySecret} has no field "key", or is not there`);
    return loadKeyText(`of Secret ${namespace}/${keySecret}`, key, field('password'));
  }
  if (signerTokenFile !== undefined) readText('signer-token-file', signerTokenFile);
  return remoteSigner({
    url: signerUrl!,
    address: signerAccount!,
    ...(signerTokenFile !== undefined && { token: () => readFileSync(signerTokenFile, 'utf8').trim() }),
  });
}
