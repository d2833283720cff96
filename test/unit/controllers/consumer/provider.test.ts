/** The provider controller: what a probe changes, what silence does not, and what is left when a provider goes. */
import { beforeEach, describe, expect, it } from 'vitest';
import type { OfferInfo, ProviderInfo } from '../../../../operator/api/gateway.ts';
import { finalizers, labels } from '../../../../operator/api/labels.ts';
import type { GpuOffer } from '../../../../operator/api/offer.ts';
import type { GpuProvider } from '../../../../operator/api/provider.ts';
import { type ProviderWorld, reconcileProvider } from '../../../../operator/controllers/consumer/provider.ts';
import type { ProviderBook } from '../../../../operator/controllers/consumer/provider-book.ts';
import { type LeaseRecords, loadRecords } from '../../../../operator/controllers/consumer/records.ts';
import type { Answer, RailFact } from '../../../../operator/core/provider/assess.ts';
import { systemClock } from '../../../../operator/engine/clock.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import {
  type Informer,
  type KubeObject,
  type Resource,
  type Result,
  resources,
} from '../../../../operator/engine/types.ts';
import {
  at,
  lease,
  offerInfo,
  provider,
  providerInfo,
  quoteRecord,
  rail,
  record,
  t0,
} from '../../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../../support/fake-cluster.ts';

const key = { name: 'ams' };
let cluster: FakeCluster;
let records: LeaseRecords;
let book: ProviderBook;
let events: string[];
let forgotten: string[];
let seconds: number;
let info: Answer<ProviderInfo>;
let offers: Answer<readonly OfferInfo[]>;
let railFact: RailFact;
let becameReady: number;
const silence = { ok: false, reason: 'Unreachable', message: 'no answer in time' } as const;

const cached = <T extends KubeObject>(resource: Resource): Informer<T> =>
  ({
    list: () => cluster.objects<T>(resource),
    get: ({ name }: { name: string }) => cluster.object<T>(resource, { name }),
  }) as unknown as Informer<T>;

beforeEach(async () => {
  cluster = fakeCluster();
  cluster.seed(resources.gpuProviders, provider() as never);
  records = await loadRecords(cluster, 'gpulease-system', systemClock);
  book = new Map();
  [events, forgotten, seconds, becameReady] = [[], [], 0, 0];
  info = { ok: true, value: providerInfo() };
  offers = { ok: true, value: [offerInfo()] };
  railFact = { rail: rail(), ok: true, decimals: 6 };
});

async function reconcile(): Promise<Result> {
  const world: ProviderWorld = {
    cluster,
    providers: cached<GpuProvider>(resources.gpuProviders),
    offers: cached<GpuOffer>(resources.gpuOffers),
    records,
    gateways: {
      of: () => ({ info: async () => info, offers: async () => offers }) as never,
      forget: (name) => void forgotten.push(name),
    },
    money: { railFact: async () => railFact } as never,
    book,
    events: { event: (_about, _type, reason) => void events.push(reason) },
    log: silentLog,
    now: () => new Date((t0 + seconds) * 1000),
    onReady: () => {
      becameReady += 1;
    },
  };
  if (info.ok) info = { ok: true, value: { ...info.value, now: at(seconds).toISOString() } };
  return reconcileProvider(world)(key, new AbortController().signal);
}
const stored = () => cluster.object<GpuProvider & KubeObject>(resources.gpuProviders, key);
const offerNames = () =>
  cluster
    .objects<GpuOffer & KubeObject>(resources.gpuOffers)
    .map((o) => o.metadata.name)
    .sort();
const condition = (type: string) => {
  const found = stored()?.status?.conditions?.find((c) => c.type === type);
  return found && `${found.status} ${found.reason}`;
};
const openLease = () => records.save(lease(), record({ quote: quoteRecord(), deposit: '360000' }));

describe('a provider', () => {
  it('is probed, reported and mirrored', async () => {
    const { requeueAfterSeconds } = await reconcile();
    expect(requeueAfterSeconds).toBe(15);
    expect(stored()?.metadata.finalizers).toEqual([finalizers.provider]);
    expect(condition('Ready')).toBe('True Serving');
    expect(stored()?.status).toMatchObject({
      offers: 1,
      gpus: [{ model: 'RTX4090', total: 2, available: 2, minPricePerGpuHour: '0.36', assetSymbol: 'USDC' }],
      leases: 0,
      escrowed: [{ assetSymbol: 'USDC', amount: '0', limit: '100' }],
      gatewayVersion: '0.1.0',
    });
    expect(offerNames()).toEqual(['ams-rtx4090']);
    expect(book.get('ams')?.assessment.rails).toHaveLength(1);
  });

  it('that stays as it is is written no more than once a minute', async () => {
    await reconcile();
    const before = cluster.revision;
    for (seconds = 15; seconds < 60; seconds += 15) await reconcile();
    expect(cluster.revision).toBe(before);
    seconds = 75;
    await reconcile();
    expect(cluster.revision).not.toBe(before);
  });

  it('shows what its leases lock', async () => {
    await openLease();
    await reconcile();
    expect(stored()?.status).toMatchObject({
      leases: 1,
      leasedGpus: 1,
      escrowed: [{ assetSymbol: 'USDC', amount: '0.36', limit: '100' }],
    });
  });
});

describe('its offers', () => {
  it('follow what it says: changed, new and gone', async () => {
    await reconcile();
    offers = {
      ok: true,
      value: [offerInfo({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.5' }] }), offerInfo({ name: 'other' })],
    };
    await reconcile();
    expect(offerNames()).toEqual(['ams-other', 'ams-rtx4090']);
    expect(cluster.object<GpuOffer & KubeObject>(resources.gpuOffers, { name: 'ams-rtx4090' })?.spec.prices).toEqual([
      { assetSymbol: 'USDC', perGpuHour: '0.5' },
    ]);
    offers = { ok: true, value: [offerInfo({ name: 'other', available: 0 })] };
    await reconcile();
    expect(offerNames()).toEqual(['ams-other']);
    expect(cluster.object<GpuOffer & KubeObject>(resources.gpuOffers, { name: 'ams-other' })?.status?.available).toBe(
      0,
    );
  });

  it('stay when it does not answer', async () => {
    await reconcile();
    [info, offers] = [silence, silence];
    for (let probe = 0; probe < 5; probe++) await reconcile();
    expect(offerNames()).toEqual(['ams-rtx4090']);
  });

  it('of others are left alone', async () => {
    cluster.seed(resources.gpuOffers, {
      metadata: { name: 'fra-l40s', labels: { [labels.provider]: 'fra' } },
    } as never);
    await reconcile();
    expect(offerNames()).toContain('fra-l40s');
  });

  it('that make no sense keep no sound one out', async () => {
    offers = { ok: true, value: [offerInfo({ name: 'Über' }), offerInfo()] };
    await reconcile();
    expect([offerNames(), condition('Ready')]).toEqual([['ams-rtx4090'], 'True Serving']);
  });

  it('go when somebody else answers in its name', async () => {
    await reconcile();
    info = { ok: true, value: providerInfo({ address: `0x${'f'.repeat(40)}` }) };
    await reconcile();
    expect([offerNames(), condition('Ready')]).toEqual([[], 'False IdentityMismatch']);
  });
});

describe('silence', () => {
  it('is not an outage before the third probe', async () => {
    await reconcile();
    [info, offers] = [silence, silence];
    for (let probe = 1; probe <= 2; probe++) {
      const { requeueAfterSeconds } = await reconcile();
      expect(requeueAfterSeconds).toBe(5);
      expect([condition('Ready'), book.get('ams')?.assessment.ready]).toEqual(['True Serving', true]);
    }
    await reconcile();
    expect([condition('Ready'), condition('Reachable')]).toEqual(['False Unreachable', 'False Unreachable']);
    expect(events).toEqual(['Unreachable']);
  });

  it('ends, and leases that wait are woken', async () => {
    await reconcile();
    [info, offers] = [silence, silence];
    for (let probe = 0; probe < 3; probe++) await reconcile();
    const before = becameReady;
    [info, offers] = [
      { ok: true, value: providerInfo() },
      { ok: true, value: [offerInfo()] },
    ];
    await reconcile();
    expect([condition('Ready'), becameReady]).toEqual(['True Serving', before + 1]);
    expect(events).toEqual(['Unreachable', 'Serving']);
  });

  it('of the chain closes no provider that was checked', async () => {
    await reconcile();
    railFact = { rail: rail(), ok: false, reason: 'ChainUnreachable', message: 'no answer' };
    for (let probe = 0; probe < 5; probe++) await reconcile();
    expect([condition('Ready'), condition('EscrowReady')]).toEqual(['True Serving', 'True Checked']);
    expect(stored()?.status?.escrowed).toHaveLength(1);
    // For new leases it comes last.
    expect(book.get('ams')?.assessment.rails).toEqual([{ ...rail(), decimals: 6, silent: true }]);
    railFact = { rail: rail(), ok: true, decimals: 6 };
    await reconcile();
    expect(book.get('ams')?.assessment.rails).toEqual([{ ...rail(), decimals: 6 }]);
  });

  it('of the chain says so of a provider that was never checked', async () => {
    railFact = { rail: rail(), ok: false, reason: 'ChainUnreachable', message: 'no answer' };
    await reconcile();
    expect(condition('Ready')).toBe('False ChainUnreachable');
  });
});

describe('a provider that is deleted', () => {
  const remove = () => cluster.delete(resources.gpuProviders, key);

  it('stays while leases of it are open, and says so', async () => {
    await reconcile();
    await openLease();
    await remove();
    expect((await reconcile()).requeueAfterSeconds).toBe(5);
    expect([stored()?.metadata.finalizers, events]).toEqual([[finalizers.provider], ['LeasesOpen']]);
  });

  it('goes when they are settled', async () => {
    await reconcile();
    await remove();
    await reconcile();
    expect(stored()).toBeUndefined();
    await reconcile();
    expect([book.size, forgotten]).toEqual([0, ['ams']]);
  });
});
