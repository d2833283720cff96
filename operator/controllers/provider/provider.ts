/**
 * The provider's side as one thing: what every replica does (watch, and answer consumers), and what only the leader does
 * (write statuses, stop what is unpaid, take down what has ended, settle).
 */
import { labels as ownLabels } from '../../api/labels.ts';
import type { Hex32 } from '../../api/messages.ts';
import { type Controls, noControls } from '../../core/allocation/controls.ts';
import { freeOn } from '../../core/allocation/inventory.ts';
import type { PodRules } from '../../core/allocation/pod-rules.ts';
import { asDecided } from '../../core/allocation/proof.ts';
import type { QuoteTerms } from '../../core/allocation/quote.ts';
import { leaseIdOfRecordName } from '../../core/allocation/record.ts';
import type { TenantOptions, TenantStorage } from '../../core/allocation/tenant.ts';
import { parseAmount } from '../../core/money/amount.ts';
import type { Family } from '../../core/node/service.ts';
import { type Clock, sleep, systemClock } from '../../engine/clock.ts';
import { createController, watches } from '../../engine/controller.ts';
import { every } from '../../engine/every.ts';
import { createInformer } from '../../engine/informer.ts';
import type { EngineMetrics } from '../../engine/metrics.ts';
import { type Cluster, type Controller, type Log, type ObjectKey, resources } from '../../engine/types.ts';
import { type AllocationOptions, createAllocationReconciler, keyOfLease } from './allocation.ts';
import { type AllocationFeed, createAllocationFeed } from './allocation-feed.ts';
import { createVoucherCheck, proveByChain, untilProvisioned } from './belief.ts';
import { createChainView } from './chain-view.ts';
import { watchControls } from './controls.ts';
import { watchKnownConsumers } from './known-consumers.ts';
import { createLeaseService, type LeaseService } from './leases.ts';
import { createLedgers } from './ledgers.ts';
import { createOfferFeed, type OfferFeed } from './offer-feed.ts';
import { createOfferReconciler, createTaintReconciler, ensurePolicies, type OffersOptions } from './offers.ts';
import { provision } from './provision.ts';
import { createRecords, type RecordSecret, readRecord, recordOfSecret, recordSelector } from './records.ts';
import { createResidue, type KubeletPods } from './residue.ts';
import { settleAll } from './settlement.ts';
import { createStock } from './stock.ts';
import { sweep } from './sweep.ts';
import { createTenantAddresses } from './tenant-addresses.ts';
import { createTenantServices } from './tenant-services.ts';
import { createTenants } from './tenants.ts';
import type { Chains, Counters, EscrowChain, Notary } from './world.ts';

export interface ProviderOptions {
  readonly cluster: Cluster;
  /** Where records and ledgers are kept. */
  readonly namespace: string;
  readonly name: string;
  readonly version: string;
  readonly notary: Notary;
  readonly chains: Chains;
  readonly terms: QuoteTerms;
  readonly tenant: TenantOptions;
  /** For the pods of all tenants. Default: Pod Security baseline and nothing more. */
  readonly podRules?: PodRules;
  /** Accounts of consumers that are given the profile `trusted`. None by default. */
  readonly trustedConsumers?: readonly string[];
  /** What each lease that begins from now on may store in PersistentVolumeClaims. Nothing by default. */
  readonly storage?: TenantStorage;
  /** Whether pods of tenants may reach Services of their consumers, through tunnels at an address of this family. */
  readonly services?: { readonly family: Family };
  /** False: another process does, and this one waits for it. */
  readonly provisions?: boolean;
  /** How many pods of a tenant a node still runs, in its kubelet's word. Absent: that of the API server is all there is. */
  readonly kubeletPods?: KubeletPods;
  /** No new leases, whatever the owner's controls say. */
  readonly held: () => boolean;
  /** Accounts of consumers that are no strangers, though they never paid here. */
  readonly knownConsumers?: readonly string[];
  readonly settings: {
    readonly tickSeconds: number;
    readonly chainIntervalSeconds: number;
    readonly settleIntervalSeconds: number;
    /** Whole tokens. */
    readonly settleThreshold: string;
    readonly settlePatienceSeconds: number;
    readonly retentionSeconds: number;
  };
  readonly now: () => Date;
  readonly clock?: Clock;
  readonly log: Log;
  readonly metrics?: EngineMetrics;
  readonly counters: Counters;
}

export interface Provider {
  readonly service: LeaseService & {
    readonly offersAfter: OfferFeed['after'];
    readonly followAllocation: AllocationFeed['follow'];
  };
  readonly synced: boolean;
  /** For dashboards: leases by state, GPUs by whether they are sold. */
  figures(): {
    readonly leases: Readonly<Record<string, number>>;
    readonly sold: number;
    readonly cleaning: number;
    readonly free: number;
  };
  /** For every replica. Resolves when the signal fires. */
  watch(signal: AbortSignal): Promise<void>;
  /** For the leader. Resolves when the signal fires. */
  lead(signal: AbortSignal): Promise<void>;
}

const guardSeconds = 300;
const sweepSeconds = 60;
const againSeconds = 10;

export function createProvider(options: ProviderOptions): Provider {
  const { cluster, namespace, chains, now, log, metrics, counters, settings } = options;
  const clock = options.clock ?? systemClock;
  const stock = createStock(cluster, namespace, log);
  const records = createRecords(cluster, namespace);
  const ledgers = createLedgers(cluster, namespace);
  const tenants = createTenants({ cluster, now, log, tenant: options.tenant });
  const watched = createInformer<RecordSecret>({
    cluster,
    resource: resources.secrets,
    namespace,
    labelSelector: recordSelector,
    indexes: { consumer: (secret) => [secret.metadata.labels?.[ownLabels.consumer] ?? ''] },
    log,
    metrics,
  });
  const controls = watchControls(cluster, namespace, log);
  const always = [...(options.knownConsumers ?? []), ...(options.trustedConsumers ?? [])];
  const known = watchKnownConsumers(cluster, namespace, new Set(always.map((one) => one.toLowerCase())), log);
  const chainView = createChainView();
  const trusted = new Set(options.trustedConsumers?.map((consumer) => consumer.toLowerCase()));
  let leases: Controller | undefined;
  const changed = (leaseId: Hex32) => leases?.enqueue(keyOfLease(namespace, leaseId));

  /** Before the owner's word has been read, nothing is promised that it might forbid. */
  function controlsNow(): Controls {
    if (options.held() || !controls.informer.synced) return { ...noControls, ...controls.now, mode: heldMode() };
    return controls.now;
  }
  const heldMode = () => (controls.now.mode === 'Serve' ? 'Hold' : controls.now.mode);

  function cached(leaseId: Hex32) {
    const secret = watched.synced ? watched.get(keyOfLease(namespace, leaseId)) : undefined;
    return secret && recordOfSecret(secret);
  }

  const provisioning = { stock, records, ledgers, tenants, now, log, counters };
  const service = createLeaseService({
    provision:
      options.provisions === false
        ? (record, signal) => untilProvisioned(record, { records, watched, namespace, clock }, signal)
        : (record, signal) => provision(provisioning, record, signal),
    name: options.name,
    version: options.version,
    notary: options.notary,
    terms: options.terms,
    controls: controlsNow,
    known: (consumer) => known.has(consumer),
    recordsOf: (consumer) =>
      watched
        .byIndex('consumer', consumer.toLowerCase())
        .map((secret) => readRecord(secret, log))
        .filter((record) => record !== undefined),
    trusted: (consumer) => trusted.has(consumer.toLowerCase()),
    storage: options.storage,
    chains,
    stock,
    records,
    ledgers,
    tenants,
    tenantAddresses: createTenantAddresses(cluster, clock),
    tenantServices:
      options.services && createTenantServices({ cluster, tenant: options.tenant, ...options.services, clock }),
    now,
    log,
    counters,
    changed,
    cached,
  });

  const allocations = createAllocationFeed({
    allocation: service.allocation,
    watched: service.allocationSeen,
    nodeOf: (leaseId) => cached(leaseId)?.nodeName,
    clock,
    log,
  });
  watched.onChange(({ object }) => {
    const leaseId = leaseIdOfRecordName(object.metadata.name);
    if (leaseId !== undefined) allocations.recordChanged(leaseId);
  });
  stock.nodes.onChange(({ object }) => allocations.nodeChanged(object.metadata.name));

  const feed = createOfferFeed({
    offers: () => service.offers(),
    tagOf: (offers) => options.notary.hashJson(offers).slice(2, 34),
    clock,
  });
  const stirred = () => feed.stir();
  for (const informer of [stock.nodes, stock.offers, stock.ledgers]) informer.onChange(stirred);
  stock.pods.onChange((change) => {
    if (stock.countsAnew(change)) feed.stir();
  });

  const acceptedAssets = () => {
    try {
      return chains.rails().map((rail) => rail.assetSymbol);
    } catch {
      // Not connected yet: nothing is known about what is accepted.
      return undefined;
    }
  };

  /** Ends the pause between two rounds of settlements: an escrow is waited for at the other end. */
  let wake = new AbortController();

  return {
    service: { ...service, offersAfter: feed.after, followAllocation: allocations.follow },
    get synced() {
      return stock.synced && watched.synced && controls.informer.synced && known.informer.synced;
    },

    figures() {
      const leases: Record<string, number> = {};
      for (const secret of watched.list()) {
        const record = readRecord(secret, log);
        if (record !== undefined) leases[record.state] = (leases[record.state] ?? 0) + 1;
      }
      const nodes = stock.onOffer();
      return {
        leases,
        sold: nodes.reduce((sum, one) => sum + one.sold.gpus - (one.cleaning?.gpus ?? 0), 0),
        cleaning: nodes.reduce((sum, one) => sum + (one.cleaning?.gpus ?? 0), 0),
        free: nodes.reduce((sum, one) => sum + freeOn(one).gpus, 0),
      };
    },

    async watch(signal) {
      await Promise.all([
        stock.run(signal),
        watched.run(signal),
        controls.informer.run(signal),
        known.informer.run(signal),
      ]);
    },

    async lead(signal) {
      // The owner's word among them: a lease that drains must not be let go on because it was not read yet.
      const informers = [stock, watched, controls.informer, known.informer];
      await Promise.all(informers.map((informer) => informer.waitForSync(signal)));
      const settlementPause = async (): Promise<void> => {
        wake = new AbortController();
        const pause = AbortSignal.any([signal, wake.signal]);
        await sleep(clock, settings.chainIntervalSeconds * 1000, pause).catch(() => undefined);
      };
      const allocation: AllocationOptions = {
        // A moment later: the round reads the watched records, which hear of it only now.
        ended: () => void clock.setTimeout(() => wake.abort(new Error('a lease has ended')), 200),
        namespace,
        watched,
        stock,
        records,
        ledgers,
        tenants,
        residue: createResidue({ cluster, kubeletPods: options.kubeletPods, now, log }),
        now,
        log,
        counters,
        chain: chainView,
        prove: (record, signal) => proveByChain(record, { chains, notary: options.notary, now }, signal),
        decided: (record) =>
          asDecided(record, {
            trusted: trusted.has(record.quote.consumer.toLowerCase()),
            storage: options.storage,
          }),
        vouched: createVoucherCheck(options.notary, chainView),
        owner(consumer) {
          const { mode, blocked, drainSeconds } = controls.now;
          return {
            blocked: blocked.has(consumer.toLowerCase()),
            ...(mode === 'HoldAndDrain' ? { drainSeconds } : {}),
          };
        },
        tickSeconds: settings.tickSeconds,
        retentionSeconds: settings.retentionSeconds,
      };
      const engine = { clock, log, metrics };
      leases = createController({
        name: 'allocation',
        reconcile: createAllocationReconciler(allocation),
        watches: [watches(watched)],
        concurrency: 16,
        ...engine,
      });
      const offersOptions: OffersOptions = { cluster, stock, ledgers, acceptedAssets, now, log };
      const allOffers = (): ObjectKey[] => stock.offers.list().map((offer) => ({ name: offer.metadata.name }));
      const offers = createController({
        name: 'offer',
        reconcile: createOfferReconciler(offersOptions),
        watches: [
          watches(stock.offers),
          watches(stock.nodes, allOffers),
          watches(stock.ledgers, allOffers),
          watches(stock.pods, (change) => (stock.countsAnew(change) ? allOffers() : [])),
        ],
        concurrency: 1,
        ...engine,
      });
      const taints = createController({
        name: 'offered-node',
        reconcile: createTaintReconciler(offersOptions),
        watches: [watches(stock.nodes)],
        concurrency: 2,
        ...engine,
      });
      const rules = (chain: { chainId: number; escrow: string; claimWindowSeconds: number }, token: string) => {
        const rail = chains
          .rails()
          .find((one) => one.chainId === chain.chainId && one.token.toLowerCase() === token.toLowerCase());
        return {
          // A token that is no longer a rail is settled only at the end.
          thresholdUnits: rail === undefined ? 2n ** 127n : parseAmount(settings.settleThreshold, rail.decimals),
          intervalSeconds: settings.settleIntervalSeconds,
          patienceSeconds: settings.settlePatienceSeconds,
          claimWindowSeconds: chain.claimWindowSeconds,
        };
      };
      const rounds = { failed: new Set<EscrowChain>(), busy: new Set<EscrowChain>() };
      const settlement = {
        ...{ watched, records, chains, view: chainView, rounds, rules, now, log, counters, changed },
        async paid(consumer: string, roundSignal: AbortSignal) {
          if (!known.has(consumer)) await known.add(consumer, Math.floor(now().getTime() / 1000), roundSignal);
        },
      };
      const repeated = { log, signal, clock, againSeconds };
      await Promise.all([
        leases.run(signal),
        offers.run(signal),
        taints.run(signal),
        every(0, 'settling', () => settleAll(settlement, signal).finally(settlementPause), repeated),
        every(
          guardSeconds,
          'applying the admission policies',
          () => ensurePolicies(cluster, options.podRules, signal),
          repeated,
        ),
        every(sweepSeconds, 'sweeping', () => sweep({ ...allocation, chains }, signal), repeated),
      ]);
      leases = undefined;
    },
  };
}
