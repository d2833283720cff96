/** The controllers of the consumer's side together: what each watches, and which change wakes which of them. */
import type { GpuBudget } from '../../api/budget.ts';
import type { GpuLease } from '../../api/lease.ts';
import type { GpuOffer } from '../../api/offer.ts';
import type { GpuProvider } from '../../api/provider.ts';
import type { Clock } from '../../engine/clock.ts';
import { createController, watches } from '../../engine/controller.ts';
import { createInformer, type InformerSettings } from '../../engine/informer.ts';
import type { EngineMetrics } from '../../engine/metrics.ts';
import {
  type Cluster,
  type Controller,
  type KubeObject,
  type Log,
  type ObjectKey,
  resources,
} from '../../engine/types.ts';
import { labelsOnly, reconcileBudget } from './budget.ts';
import { reconcileLease } from './lease.ts';
import type { OfferWatches } from './offer-watches.ts';
import { createSweep, reconcileOrphan, type Sweep } from './orphans.ts';
import { reconcileProvider } from './provider.ts';
import type { LeaseWorld } from './world.ts';

type Watched = Pick<LeaseWorld, 'leases' | 'providers' | 'offers' | 'budgets' | 'namespaces'>;

export function watchConsumer(informer: { readonly cluster: Cluster; readonly log: Log } & InformerSettings): Watched {
  return {
    leases: createInformer<GpuLease>({ ...informer, resource: resources.gpuLeases }),
    providers: createInformer<GpuProvider>({ ...informer, resource: resources.gpuProviders }),
    offers: createInformer<GpuOffer>({ ...informer, resource: resources.gpuOffers }),
    budgets: createInformer<GpuBudget>({ ...informer, resource: resources.gpuBudgets }),
    namespaces: createInformer<KubeObject>({ ...informer, resource: resources.namespaces, trim: labelsOnly }),
  };
}

export interface ConsumerControllersOptions {
  readonly world: Omit<LeaseWorld, 'onCommitted'>;
  /** What leases are reconciled in, where that is to go wrong in a test. */
  readonly leaseWorld?: (world: LeaseWorld) => LeaseWorld;
  /** Who waits at gateways for changes, and calls back with the provider's name. */
  readonly offerWatches?: (changed: (provider: string) => void) => OfferWatches;
  readonly clock?: Clock;
  readonly metrics?: EngineMetrics;
}

export interface ConsumerControllers {
  readonly lease: Controller;
  readonly provider: Controller;
  /** Looks for what no lease stands behind. */
  readonly sweep: Sweep;
  /** With all that they watch, until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
}

export function createConsumerControllers(options: ConsumerControllersOptions): ConsumerControllers {
  const { leaseWorld = (world) => world, offerWatches, clock, metrics } = options;
  const { leases, providers, offers, budgets, namespaces, log } = options.world;
  const world: LeaseWorld = {
    ...options.world,
    onCommitted: () => {
      for (const { metadata } of budgets.list()) budget.enqueue({ name: metadata.name });
    },
  };
  const keysOf = (which: (lease: GpuLease) => boolean): ObjectKey[] => leases.list().filter(which).map(keyOf);
  const waiting = () => keysOf(({ status }) => !status?.quote);
  const open = () => keysOf(({ status }) => !status?.endedAt);
  const common = { clock, log, metrics };

  const lease = createController({
    ...common,
    name: 'lease',
    reconcile: reconcileLease(leaseWorld(world)),
    watches: [
      watches(leases, unlessStatus),
      // New offers are what a waiting lease waits for.
      watches(offers, waiting),
      watches(providers, waiting),
      // A limit that was raised lets leases go on that wait for it, or that run out of money.
      watches(budgets, (change) => (unlessStatus(change).length > 0 ? open() : [])),
      // Nothing is decided before it is known which budget is whose.
      watches(namespaces, () => []),
    ],
    concurrency: 16,
  });
  const provider = createController({
    ...common,
    name: 'provider',
    reconcile: reconcileProvider({
      ...world,
      book: world.providerBook,
      onReady: () => {
        for (const key of waiting()) lease.enqueue(key);
      },
      offerWatches: offerWatches?.((name) => provider.enqueue({ name })),
    }),
    watches: [watches(providers, unlessStatus)],
    concurrency: 8,
  });
  const budget = createController({
    ...common,
    name: 'budget',
    reconcile: reconcileBudget(world),
    watches: [watches(budgets, unlessStatus)],
    concurrency: 1,
  });
  const orphan = createController({
    ...common,
    name: 'orphan',
    reconcile: reconcileOrphan(world),
    watches: [],
    concurrency: 2,
  });
  const running = [leases, providers, offers, budgets, namespaces, lease, provider, budget, orphan];
  return {
    lease,
    provider,
    sweep: createSweep(world, (uid) => orphan.enqueue({ name: uid })),
    run: async (signal) => void (await Promise.all(running.map((one) => one.run(signal)))),
  };
}

const keyOf = ({ metadata }: KubeObject): ObjectKey => ({ namespace: metadata.namespace, name: metadata.name });

/** Status writes are our own: an object is looked at again for its spec and metadata only. */
function unlessStatus({ type, object, old }: { type: string; object: KubeObject; old?: KubeObject }): ObjectKey[] {
  const same =
    type === 'updated' &&
    old?.metadata.generation === object.metadata.generation &&
    old?.metadata.deletionTimestamp === object.metadata.deletionTimestamp;
  return same ? [] : [keyOf(object)];
}
