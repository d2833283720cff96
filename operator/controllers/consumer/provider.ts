/** GpuProvider: probes the gateway, checks its rails on chain, mirrors its offers. What it means is decided in core/provider. */
import { mergeConditions } from '../../api/conditions.ts';
import { finalizers, labels } from '../../api/labels.ts';
import type { GpuOffer, OfferStatus } from '../../api/offer.ts';
import type { GpuProvider, ProviderStatus } from '../../api/provider.ts';
import { whole } from '../../core/lease/amounts.ts';
import { exposureOf, lockedOn } from '../../core/lease/exposure.ts';
import { type Answer, type Assessment, assess, type RailFact } from '../../core/provider/assess.ts';
import { connectionOf, type SeenRoute } from '../../core/provider/connection.ts';
import { sameJson } from '../../engine/equal.ts';
import { addFinalizer, applyStatus, removeFinalizer } from '../../engine/status.ts';
import {
  type Cluster,
  type EventRecorder,
  type Informer,
  type Log,
  type Reconcile,
  resources,
} from '../../engine/types.ts';
import type { OfferWatches } from './offer-watches.ts';
import type { Gateways, LeaseMoney } from './ports.ts';
import type { ProviderBook } from './provider-book.ts';
import type { LeaseRecords } from './records.ts';

export interface ProviderWorld {
  readonly cluster: Cluster;
  readonly providers: Informer<GpuProvider>;
  readonly offers: Informer<GpuOffer>;
  readonly records: LeaseRecords;
  readonly gateways: Gateways;
  readonly money: LeaseMoney;
  readonly book: ProviderBook;
  readonly events: EventRecorder;
  readonly log: Log;
  readonly now: () => Date;
  /** A provider became ready, or was found so after a restart: leases that wait for one may look now. */
  readonly onReady?: () => void;
  /** Who waits for changes of offers between two probes. */
  readonly offerWatches?: OfferWatches;
}

const fieldManager = 'gpulease-provider';

export const reconcileProvider =
  (world: ProviderWorld): Reconcile =>
  async (key, signal) => {
    const provider = world.providers.get(key);
    if (!provider) {
      world.book.delete(key.name);
      world.offerWatches?.drop(key.name);
      world.gateways.forget(key.name);
      return {};
    }
    const { name, deletionTimestamp } = provider.metadata;
    const exposure = exposureOf(name, world.records.all().values());
    if (deletionTimestamp) {
      // Leases of it can only be ended through its gateway: it stays until they are.
      if (exposure.leases > 0) {
        world.events.event(
          provider,
          'Warning',
          'LeasesOpen',
          `${exposure.leases} leases of this provider are open: delete them first.`,
        );
        return { requeueAfterSeconds: 5 };
      }
      await removeFinalizer(world.cluster, resources.gpuProviders, provider, finalizers.provider, signal);
      return {};
    }
    await addFinalizer(world.cluster, resources.gpuProviders, provider, finalizers.provider, signal);

    const before = world.book.get(name);
    const timeout = AbortSignal.timeout(provider.spec.probe.timeoutSeconds * 1000);
    const gateway = world.gateways.of(provider);
    const [info, offers, rails] = await Promise.all([
      gateway.info(AbortSignal.any([signal, timeout])),
      gateway.offers(AbortSignal.any([signal, timeout])),
      Promise.all(provider.spec.payment.rails.map((rail) => world.money.railFact(rail, signal))),
    ]);
    signal.throwIfAborted();
    const silent = (!info.ok && info.reason === 'Unreachable') || (!offers.ok && offers.reason === 'Unreachable');
    const failures = silent ? (before?.failures ?? 0) + 1 : 0;
    if (silent && before?.assessment.ready && failures < provider.spec.probe.failureThreshold) {
      // One lost probe is not an outage: what was known holds until the threshold.
      world.book.set(name, { ...before, failures });
      return { requeueAfterSeconds: Math.min(provider.spec.probe.intervalSeconds, provider.spec.probe.timeoutSeconds) };
    }
    const known = keepKnown(rails, before?.rails);
    const assessment = assess({
      provider,
      info,
      failures,
      rails: known,
      offers: offers as Answer<never>,
      now: world.now(),
    });
    world.book.set(name, { assessment, rails: known, failures });
    if (before && before.assessment.ready !== assessment.ready)
      world.events.event(
        provider,
        assessment.ready ? 'Normal' : 'Warning',
        assessment.reason,
        assessment.ready ? 'The provider is ready.' : assessment.message,
      );

    if (assessment.mirrored) await mirrorOffers(world, provider, assessment.mirrored, signal);
    if (assessment.ready) world.offerWatches?.keep(provider);
    if (assessment.ready && !before?.assessment.ready) world.onReady?.();
    await report(world, provider, { assessment, info, rails: known, route: gateway.route?.() }, signal);
    return { requeueAfterSeconds: provider.spec.probe.intervalSeconds };
  };

/**
 * A rail that was checked stays so while the chain cannot be read: an RPC outage closes no provider. New leases are paid on
 * another, where there is one.
 */
function keepKnown(rails: readonly RailFact[], before: readonly RailFact[] | undefined): RailFact[] {
  return rails.map((fact) => {
    if (fact.ok || fact.reason !== 'ChainUnreachable') return fact;
    const known = before?.find((b) => b.ok && sameJson(b.rail, fact.rail));
    return known?.ok ? { ...known, silent: true } : fact;
  });
}

async function mirrorOffers(
  world: ProviderWorld,
  provider: GpuProvider,
  wanted: readonly GpuOffer[],
  signal: AbortSignal,
): Promise<void> {
  const present = world.offers.list().filter((o) => o.metadata.labels?.[labels.provider] === provider.metadata.name);
  for (const offer of wanted) {
    const { status, ...object } = offer;
    const now = present.find((p) => p.metadata.name === offer.metadata.name);
    const specChanged =
      !now ||
      !sameJson(now.spec, offer.spec) ||
      !sameJson(now.metadata.ownerReferences?.[0]?.uid, offer.metadata.ownerReferences?.[0]?.uid);
    const stored = specChanged
      ? await world.cluster.apply<GpuOffer>(resources.gpuOffers, object as GpuOffer, { fieldManager }, signal)
      : now;
    const { observedAt: _, ...known } = stored.status ?? ({} as OfferStatus);
    if (status && !sameJson(known, status))
      await applyStatus(
        { cluster: world.cluster, resource: resources.gpuOffers, object: stored, fieldManager },
        status,
        signal,
      );
  }
  for (const stale of present) {
    if (wanted.some((o) => o.metadata.name === stale.metadata.name)) continue;
    await world.cluster.delete(resources.gpuOffers, { name: stale.metadata.name }, { uid: stale.metadata.uid }, signal);
  }
}

async function report(
  world: ProviderWorld,
  provider: GpuProvider,
  {
    assessment,
    info,
    rails,
    route,
  }: {
    readonly assessment: Assessment;
    readonly info: Answer<{ version: string }>;
    readonly rails: readonly RailFact[];
    readonly route?: SeenRoute;
  },
  signal: AbortSignal,
): Promise<void> {
  const now = world.now();
  const { name } = provider.metadata;
  const exposure = exposureOf(name, world.records.all().values());
  const before = provider.status;
  const seenBefore = before?.lastSeenAt ? new Date(before.lastSeenAt).getTime() : 0;
  const status: ProviderStatus = {
    observedGeneration: provider.metadata.generation,
    conditions: mergeConditions(before?.conditions, assessment.conditions, provider.metadata.generation ?? 0, now),
    offers: assessment.mirrored?.length ?? before?.offers,
    gpus: assessment.mirrored ? gpus(assessment.mirrored) : before?.gpus,
    leases: exposure.leases,
    leasedGpus: exposure.gpus,
    escrowed: rails.flatMap((fact) =>
      fact.ok
        ? [
            {
              assetSymbol: fact.rail.assetSymbol,
              amount: whole(lockedOn(exposure, fact.rail), fact.decimals),
              limit: fact.rail.maxEscrow,
            },
          ]
        : [],
    ),
    gatewayVersion: info.ok ? info.value.version : before?.gatewayVersion,
    connection: route && connectionOf(route),
    // At most once a minute: a status that changes with every probe would wake everybody who watches.
    lastSeenAt:
      info.ok && now.getTime() - seenBefore > 60_000 ? now.toISOString().replace(/\.\d{3}Z$/, 'Z') : before?.lastSeenAt,
  };
  await applyStatus(
    { cluster: world.cluster, resource: resources.gpuProviders, object: provider, fieldManager },
    status,
    signal,
  );
}

function gpus(offers: readonly GpuOffer[]): NonNullable<ProviderStatus['gpus']> {
  return offers.slice(0, 32).map(({ spec, status }) => ({
    model: spec.model,
    total: status?.total ?? 0,
    available: status?.available ?? 0,
    minPricePerGpuHour: spec.prices[0]!.perGpuHour,
    assetSymbol: spec.prices[0]!.assetSymbol,
  }));
}
