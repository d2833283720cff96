/** The operator, the consumer's side: reads configuration, wires, starts, stops. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { keyFromHex, loadKey, newKeyHex } from '../adapters/chain/key.ts';
import { type ChainAccess, createLeaseMoney } from '../adapters/chain/lease-money.ts';
import type { OutboxFaults } from '../adapters/chain/outbox.ts';
import { createSecretStore } from '../adapters/kube/secret-store.ts';
import { servingCertificates, whoAmI } from '../adapters/kube/serving-certificate.ts';
import { createGateways } from '../adapters/provider/gateways.ts';
import { createRoutes } from '../adapters/provider/routes.ts';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { connectWallet, type WalletClient } from '../adapters/wallet/client.ts';
import { createConsumerControllers, watchConsumer } from '../controllers/consumer/controllers.ts';
import { createOfferWatches } from '../controllers/consumer/offer-watches.ts';
import { createReceipts } from '../controllers/consumer/receipts.ts';
import { loadRecords } from '../controllers/consumer/records.ts';
import { collectRefunds } from '../controllers/consumer/treasury.ts';
import type { LeaseWorld } from '../controllers/consumer/world.ts';
import { parseAmount } from '../core/money/amount.ts';
import { allowancePolicies } from '../core/money/funding.ts';
import { parseValue, type Values } from '../core/offer/rank.ts';
import { walletName, walletNamespace } from '../core/rights/consumer.ts';
import { sleep, systemClock } from '../engine/clock.ts';
import { connectCluster } from '../engine/cluster.ts';
import { createEventRecorder } from '../engine/events.ts';
import { every } from '../engine/every.ts';
import { fenced } from '../engine/fence.ts';
import { runAsLeader } from '../engine/leader.ts';
import { type Cluster, resources } from '../engine/types.ts';
import { createEvictionGuard } from '../kubelet/eviction-guard.ts';
import { createLeaseNodes } from '../kubelet/lease-nodes.ts';
import { createVirtualNodes } from '../kubelet/virtual-nodes.ts';
import { systemTiming } from '../wire/timing.ts';
import { approverPart } from './approver-part.ts';
import { costMetrics } from './cost-metrics.ts';
import { readText } from './gateway-options.ts';
import { budgetMetrics, leaseMetrics, serviceMetrics, strayPods } from './operator-metrics.ts';
import { choice, integer, pairs, parseOptions, portRange, someOf, text, UsageError } from './options.ts';
import { ownAddress } from './own-address.ts';
import { checkReverse, connectionMetrics, listenForLinks, reverseOptions } from './reverse-listener.ts';
import { version } from './version.ts';
import { chainConnection, chainIdOf, walletPart } from './wallet-part.ts';

/** The Kubernetes release whose kubelet API the virtual nodes speak. */
const kubeletVersion = `v1.36.3+gpulease.${version}`;

const usage = `
Leases GPUs from provider clusters for this cluster.

  operator --wallet-key-file FILE --chain ID=URL --max-escrow SYMBOL=AMOUNT [options]

With --with none the wallet and the approver are processes of their own: see wallet --help, approver --help.
`;

export const operatorOptions = {
  with: someOf(
    "What this process does beside the operator's own work, where it is no process of its own.",
    ['wallet', 'approver'],
    'wallet,approver',
  ),
  kubeconfig: text(
    'Kubeconfig of the consumer cluster; "in-cluster" for a pod\'s own service account.',
    'FILE',
    'in-cluster',
  ),
  namespace: text('Where the operator keeps its Secrets and its leader lock.', 'NAME', 'gpulease-system'),
  walletKeyFile: text('Key of the account that pays: 32 bytes in hexadecimal, or a keystore.', 'FILE'),
  walletPasswordFile: text('Password of the keystore.', 'FILE'),
  walletNamespace: text('Where a wallet that is a process of its own says where it is.', 'NAME', walletNamespace),
  walletTokenFile: text(
    'Token that is shown to such a wallet: of this account, for the audience gpulease-wallet. Read anew for each request.',
    'FILE',
    '/var/run/secrets/gpulease/wallet/token',
  ),
  chain: pairs('Chain that leases may be paid on, and its JSON-RPC endpoints.', 'ID=URL[,URL]'),
  tokenValue: pairs(
    'What one whole token is worth, in a unit of your choice: by this, prices in different tokens are compared where a lease takes several. Without it for one of them, a lease takes the first that can be paid with, in its own order.',
    'SYMBOL=AMOUNT',
  ),
  gasValue: pairs(
    "What one whole unit of a chain's own currency is worth, in the same unit: by this, gas is counted in when rails are compared. Needs --token-value too.",
    'ID=AMOUNT',
  ),
  maxEscrow: pairs('Most that may be locked in all escrows together, in whole tokens.', 'SYMBOL=AMOUNT'),
  allowance: choice(
    'What the escrow contracts may take out of the wallet between deposits. Standing: an allowance without limit, which the first opening brings along with a signature (EIP-2612) where the token can, and which only openings and top-ups of this wallet use; the cheapest. PerDeposit: none; each deposit is signed for by itself (EIP-3009) where the token can, approved by itself where it cannot, and so are top-ups.',
    allowancePolicies,
    'Standing',
  ),
  nodeAddress: text(
    'Address of this process as the API server reaches it. Default: the first address of this machine that is not loopback.',
    'IP',
  ),
  servicePorts: portRange(
    "Ports of this process at which Services of the consumer's cluster reach pods on leased nodes, one for each port of a pod.",
    '20000-29999',
  ),
  clusterDomain: text(
    "Domain of the consumer's cluster: the end of the names of its Services, and of a pod's whole host name.",
    'NAME',
    'cluster.local',
  ),
  ...reverseOptions,
  voucherPeriodSeconds: integer('How often served seconds are vouched for.', 'SECONDS', 1, 600, 60),
  depositSeconds: integer('A deposit covers at most so long ahead.', 'SECONDS', 60, 86_400, 7200),
  lowWaterSeconds: integer(
    'A deposit is topped up when it covers less than this: so long may no chain answer, the drain counted in, before a lease ends for it.',
    'SECONDS',
    30,
    86_400,
    3600,
  ),
  nodeLostSeconds: integer('A node that was not Ready for so long is given up.', 'SECONDS', 60, 86_400, 1800),
  releaseTimeoutSeconds: integer(
    'How long a provider may take to let go before the contract is asked.',
    'SECONDS',
    5,
    86_400,
    600,
  ),
  closeTimeoutSeconds: integer(
    'How long a provider may take to close an escrow it has let go of.',
    'SECONDS',
    5,
    86_400,
    120,
  ),
  chainTickSeconds: integer('How often transactions under way are looked after.', 'SECONDS', 1, 60, 3),
  sweepSeconds: integer('How often is looked for what no lease stands behind.', 'SECONDS', 1, 86_400, 60),
  receiptRetentionDays: integer(
    'Receipts of settled leases are removed when their month ended so long ago; 0 keeps them for ever. Export them before.',
    'DAYS',
    0,
    36_500,
    800,
  ),
  refundSeconds: integer('How often refunds are collected from the escrows.', 'SECONDS', 1, 86_400, 300),
  leaderElection: choice('Leader lock, so that several replicas can run.', ['on', 'off'], 'on'),
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

/** Points at which a test stops the world. */
export interface OperatorFaults {
  readonly outbox?: OutboxFaults;
  /** Another clock than the machine's. */
  readonly now?: () => Date;
  /** Stands between the lease controller and what it touches. */
  readonly world?: (world: LeaseWorld) => LeaseWorld;
}

/** Runs until SIGTERM or SIGINT. Throws UsageError for configuration that cannot be right. */
export async function runOperator(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  faults: OperatorFaults = {},
): Promise<void> {
  const options = parseOptions(usage, operatorOptions, args, env);
  if (!options) return;
  const withWallet = options.with.includes('wallet');
  if (withWallet && !options.walletKeyFile)
    throw new UsageError('--wallet-key-file is missing: the key of the account that pays');
  if (!withWallet && options.walletKeyFile)
    throw new UsageError('--wallet-key-file is for the wallet, which is a process of its own: give it the key there');
  if (options.chain.length === 0)
    throw new UsageError('--chain is missing: e.g. --chain 42161=https://rpc.example.com');

  checkReverse(options);

  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const { signal } = stop;
  const log = createLog({ name: 'operator', level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const metrics = createMetrics();
  const now = faults.now ?? (() => new Date());
  const clock = { ...systemClock, now };
  const { namespace } = options;

  const key =
    options.walletKeyFile === undefined
      ? undefined
      : await loadKey(
          options.walletKeyFile,
          options.walletPasswordFile && readFileSync(options.walletPasswordFile, 'utf8').trim(),
        );
  const connection = {
    name: 'consumer',
    kubeconfig: options.kubeconfig,
    userAgent: `gpulease-operator/${version}`,
    metrics: metrics.engine,
  };
  const api = connectCluster(connection);
  const maxEscrow = new Map(options.maxEscrow);
  for (const [symbol, amount] of maxEscrow) {
    try {
      parseAmount(amount, 6);
    } catch (error) {
      throw new UsageError(`--max-escrow ${symbol}=${amount}: ${(error as Error).message}`);
    }
  }
  const values = valuesOf(options.tokenValue, options.gasValue);
  const address = options.nodeAddress ?? ownAddress('--node-address');
  let leading = false;
  let stale = () => 0;
  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    // A replica that waits for the lock is ready to take over; the leader is when its view of the cluster is fresh.
    ready: () => ({ watch: !leading || stale() < 120 || 'the API server has said nothing for two minutes' }),
  });
  log.info(
    { version, with: options.with, wallet: key?.address, nodeAddress: address, operationsPort: operations.port },
    'operator starts',
  );

  /** Its address is in every quote, so nothing begins without it; what runs at providers goes on meanwhile. */
  const findWallet = async (cluster: Cluster, leadSignal: AbortSignal): Promise<WalletClient | undefined> => {
    const place = { namespace: options.walletNamespace, name: walletName };
    const token = () => readText('wallet-token-file', options.walletTokenFile).trim();
    let told: string | undefined;
    while (!leadSignal.aborted) {
      try {
        const found = await connectWallet({ cluster, place, token, clock }, leadSignal);
        log.info({ wallet: found.address }, 'the wallet is found');
        return found;
      } catch (error) {
        const { message } = error as Error;
        if (message !== told) log.warn({ error: message }, 'the wallet is not found yet; trying again');
        told = message;
        await sleep(systemClock, 1000, leadSignal).catch(() => undefined);
      }
    }
    return undefined;
  };

  const identity = `${hostname()}_${process.pid}_${randomBytes(4).toString('hex')}`;
  const lead = async (leadSignal: AbortSignal, isLeader = () => true): Promise<void> => {
    leading = true;
    const cluster = fenced(api, isLeader);
    const clusterUid = (await cluster.get(resources.namespaces, { name: 'kube-system' }, leadSignal))?.metadata.uid;
    if (!clusterUid)
      throw new Error('the cluster has no namespace kube-system, whose UID names this cluster in every lease');
    const session = keyFromHex(await sessionKey(cluster, namespace, leadSignal));
    const own =
      key &&
      walletPart({
        cluster,
        namespace,
        key,
        chains: options.chain,
        rules: {},
        limits: {},
        now,
        log,
        faults: faults.outbox,
      });
    const elsewhere = own ? undefined : await findWallet(cluster, leadSignal);
    const wallet = key ?? elsewhere;
    if (!wallet) return; // Stopped before there was one.
    const chains: ReadonlyMap<number, ChainAccess> =
      own ??
      new Map(
        options.chain.map(([id, urls]) => {
          const connection = chainConnection(chainIdOf(id), urls.split(','), log);
          const payer = elsewhere!.payer(connection.chainId);
          return [connection.chainId, { ...connection, outbox: async () => payer }];
        }),
      );

    const money = createLeaseMoney({ wallet, session, clusterUid, chains, monotonicMs: clock.monotonicMs });
    const records = await loadRecords(cluster, namespace, clock, leadSignal);
    const receipts = createReceipts(cluster, namespace);
    const events = createEventRecorder({ cluster, controller: 'gpulease.dev/operator', instance: identity, log });
    const watched = watchConsumer({ cluster, log, metrics: metrics.engine });
    const { leases, providers, offers, budgets } = watched;
    stale = () => Math.max(leases.staleSeconds, providers.staleSeconds);
    // A link that came or went is looked at now, not at the next probe.
    const linkChanged = (name: string) => controllers.provider.enqueue({ name });
    const { refused } = connectionMetrics(metrics.registry, () => gateways.routes());
    const reverse = await listenForLinks(
      {
        ...options,
        cluster,
        providers: () => providers.list(),
        synced: () => providers.synced,
        onChange: ({ metadata }) => linkChanged(metadata.name),
        refused,
        now,
        log,
      },
      leadSignal,
    );
    const timeoutSeconds = 10;
    const gateways = createGateways({
      signAccess: money.signAccess,
      now,
      log,
      timeoutSeconds,
      routeOf: createRoutes({ links: reverse?.links, clock: systemTiming, now, timeoutSeconds, onChange: linkChanged }),
    });

    const approver = options.with.includes('approver')
      ? approverPart({
          cluster,
          operator: await whoAmI(cluster, leadSignal),
          addresses: [address],
          closed: [namespace],
          clock,
          log,
        })
      : undefined;
    const evictionGuard = createEvictionGuard({ cluster, clock, log });
    const nodes = createVirtualNodes({
      cluster,
      address,
      evictionGuard,
      kubeletVersion,
      certificates: servingCertificates({ cluster, now, log }),
      callers: {},
      servicePorts: options.servicePorts,
      clusterDomain: options.clusterDomain,
      events,
      clock,
      log,
      metrics: metrics.engine,
      onStrayPod: strayPods(metrics.registry),
    });
    serviceMetrics(metrics.registry, () => nodes.traffic());
    const leaseNodes = createLeaseNodes({
      cluster,
      nodes,
      connect: (quote) => {
        const provider = providers.get({ name: quote.providerName });
        return provider && gateways.connection(provider, quote);
      },
      now,
      log,
      onChange: (lease) => controllers.lease.enqueue(lease),
    });

    const world: LeaseWorld = {
      ...watched,
      cluster,
      clusterUid,
      providerBook: new Map(),
      records,
      receipts,
      gateways,
      money,
      nodes: leaseNodes,
      events,
      log,
      now,
      settings: {
        voucherPeriodSeconds: options.voucherPeriodSeconds,
        depositSeconds: options.depositSeconds,
        lowWaterSeconds: Math.min(options.lowWaterSeconds, Math.floor(options.depositSeconds / 2)),
        nodeLostSeconds: options.nodeLostSeconds,
        releaseTimeoutSeconds: options.releaseTimeoutSeconds,
        closeTimeoutSeconds: options.closeTimeoutSeconds,
        maxEscrow: (symbol, decimals) => {
          const amount = maxEscrow.get(symbol);
          return amount === undefined ? undefined : parseAmount(amount, decimals);
        },
        allowance: options.allowance,
        values,
      },
      hints: new Map(),
      metrics: {
        ...leaseMetrics(metrics.registry, () => records.all()),
        ...costMetrics(
          metrics.registry,
          () => records.all(),
          (name) => offers.get({ name }),
        ),
      },
    };
    budgetMetrics(metrics.registry, () => budgets.list());
    const controllers = createConsumerControllers({
      world,
      leaseWorld: faults.world,
      offerWatches: (changed) => createOfferWatches({ gateways, changed, clock: systemClock, log, signal: leadSignal }),
      metrics: metrics.engine,
    });

    // Transactions that an earlier process stored are looked after before anything new is wished for.
    await Promise.all(
      [...(own?.values() ?? [])].map((chain) =>
        chain
          .outbox(leadSignal)
          .catch((error: Error) =>
            log.warn({ chainId: chain.chainId, error: error.message }, 'chain not reachable yet'),
          ),
      ),
    );
    const least = () => 0n;
    const regularly = (seconds: number, what: string, work: () => Promise<void>) =>
      every(seconds, what, work, { log, signal: leadSignal });
    await Promise.all([
      controllers.run(leadSignal),
      approver?.run(leadSignal),
      evictionGuard.run(leadSignal),
      nodes.run(leadSignal),
      // A loop each: a chain that is away holds up none of the others.
      ...[...(own?.values() ?? [])].map((chain) =>
        regularly(options.chainTickSeconds, `looking after transactions on chain ${chain.chainId}`, () =>
          chain.tick(leadSignal),
        ),
      ),
      regularly(options.sweepSeconds, 'sweeping', () => controllers.sweep(leadSignal)),
      regularly(86_400, 'removing old receipts', async () => {
        if (options.receiptRetentionDays === 0) return;
        const oldest = new Date(now().getTime() - options.receiptRetentionDays * 86_400_000);
        const removed = await receipts.removeBefore(oldest, leadSignal);
        if (removed > 0) log.info({ removed }, 'receipts were removed: their retention is over');
      }),
      regularly(options.refundSeconds, 'collecting refunds', () =>
        collectRefunds(money, providers, least, log, leadSignal),
      ),
    ]);
    elsewhere?.close();
    leaseNodes.close();
    await reverse?.close();
    await events.flush();
  };

  if (options.leaderElection === 'off') await lead(signal);
  else {
    const leader = runAsLeader(
      {
        cluster: connectCluster(connection),
        namespace,
        name: 'gpulease-operator',
        identity,
        log,
        metrics: metrics.engine,
        onLead: lead,
      },
      signal,
    );
    const ended = await leader.ended;
    if (ended === 'lost') {
      // Whoever leads now must be alone: leave at once, and let Kubernetes start us again as a follower.
      log.error({}, 'leadership lost; ending the process');
      process.exit(1);
    }
  }
  await operations.close();
  log.info({}, 'operator stopped');
}

function valuesOf(
  tokens: readonly (readonly [string, string])[],
  chains: readonly (readonly [string, string])[],
): Values {
  const read = (flag: string, [name, amount]: readonly [string, string]) => {
    try {
      return [name, parseValue(amount)] as const;
    } catch (error) {
      throw new UsageError(`--${flag} ${name}=${amount}: ${(error as Error).message}`);
    }
  };
  const ofToken = new Map(tokens.map((pair) => read('token-value', pair)));
  const ofGas = new Map(chains.map((pair) => [chainIdOf(pair[0], 'gas-value'), read('gas-value', pair)[1]] as const));
  return { token: (symbol) => ofToken.get(symbol), gas: (id) => ofGas.get(id) };
}

/** The key that signs vouchers and access: made once a cluster, kept in a Secret. */
async function sessionKey(cluster: Cluster, namespace: string, signal: AbortSignal): Promise<`0x${string}`> {
  const store = createSecretStore<{ key: `0x${string}` }>({ cluster, namespace, name: 'session-key' });
  const { value, version: stored } = await store.load(signal);
  if (value) return value.key;
  const key = newKeyHex();
  await store.save({ key }, stored, signal);
  return key;
}
