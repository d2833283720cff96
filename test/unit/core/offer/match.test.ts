/** Which offers will do. One row for each check: an offer that misses, how it is told, and what the lease says. */
import { describe, expect, it } from 'vitest';
import type { GpuLease } from '../../../../operator/api/lease.ts';
import type { GpuOffer } from '../../../../operator/api/offer.ts';
import { railName } from '../../../../operator/core/lease/exposure.ts';
import { fulfils, type MatchInput, matchOffers, type ProviderFact } from '../../../../operator/core/offer/match.ts';
import { at, factsOf, lease, offer, provider, providerFact, rail } from '../../../support/builders.ts';

const input = (change: Partial<MatchInput> = {}): MatchInput => ({
  lease: lease(),
  namespaceLabels: {},
  offers: [offer()],
  providers: factsOf(providerFact()),
  avoid: [],
  now: at(0),
  ...change,
});
const priced = (perGpuHour: string, assetSymbol = 'USDC') => ({ prices: [{ assetSymbol, perGpuHour }] });
const limit = (maxPricePerGpuHour: string) => ({ pricing: { maxPricePerGpuHour, assetSymbol: 'USDC' } });

/** One other lease of ours holds so much on the rail. */
const holding = (units: bigint) => ({
  leases: 1,
  gpus: 1,
  perHour: {},
  locked: { [railName(rail())]: units, [railName(rail({ chainId: 1 }))]: 10n ** 12n },
});

interface Miss {
  readonly lease?: GpuLease;
  readonly offer?: GpuOffer;
  readonly fact?: Partial<ProviderFact>;
  readonly avoid?: MatchInput['avoid'];
  readonly namespaceLabels?: Record<string, string>;
  readonly check: string;
  readonly closest?: string;
  readonly reason: string;
  readonly says?: string;
}
const misses: Record<string, Miss> = {
  'another model': {
    offer: offer({}, { product: 'NVIDIA-L40S' }),
    check: 'ModelMismatch',
    closest: 'NVIDIA-L40S',
    reason: 'NoMatchingOffer',
  },
  'a product that has no alias': {
    offer: offer({}, { product: 'NVIDIA-B300' }),
    check: 'ModelMismatch',
    closest: 'NVIDIA-B300',
    reason: 'NoMatchingOffer',
  },
  'a part of a GPU for a whole one': {
    offer: offer({ partition: 'MIG-1g.10gb' }),
    check: 'PartitionMismatch',
    closest: 'MIG-1g.10gb',
    reason: 'NoMatchingOffer',
  },
  'a whole GPU for a part of one': {
    lease: lease({ gpu: { models: ['RTX4090'], count: 1, interconnect: 'Any', partition: 'TimeSliced' } }),
    check: 'PartitionMismatch',
    closest: 'None',
    reason: 'NoMatchingOffer',
  },
  'nodes that are shared, whatever the offer calls it': {
    offer: offer({}, { product: 'NVIDIA-GeForce-RTX-4090-SHARED' }),
    check: 'PartitionMismatch',
    closest: 'NVIDIA-GeForce-RTX-4090-SHARED',
    reason: 'NoMatchingOffer',
  },
  'too little memory': {
    lease: lease({ gpu: { models: ['RTX4090'], count: 1, interconnect: 'Any', minMemoryMiB: 30_000 } }),
    check: 'MemoryBelow',
    closest: '24564 MiB',
    reason: 'NoMatchingOffer',
  },
  'another interconnect': {
    lease: lease({ gpu: { models: ['RTX4090'], count: 1, interconnect: 'NVLink' } }),
    check: 'InterconnectMismatch',
    closest: 'PCIe',
    reason: 'NoMatchingOffer',
  },
  'another capacity type': {
    lease: lease({ capacityType: 'Spot' }),
    check: 'CapacityTypeMismatch',
    closest: 'OnDemand',
    reason: 'NoMatchingOffer',
  },
  'another region': {
    lease: lease({
      requirements: [{ key: 'topology.kubernetes.io/region', operator: 'In', values: ['us-east'] }],
    }),
    check: 'RequirementMismatch',
    closest: 'topology.kubernetes.io/region=eu-north',
    reason: 'NoMatchingOffer',
  },
  'a label that is not there': {
    lease: lease({ requirements: [{ key: 'nvidia.com/mig.capable', operator: 'Exists' }] }),
    check: 'RequirementMismatch',
    closest: 'nvidia.com/mig.capable=(absent)',
    reason: 'NoMatchingOffer',
  },
  'more GPUs than there are': {
    lease: lease({ gpu: { models: ['RTX4090'], count: 4, interconnect: 'Any' } }),
    check: 'CountAboveNode',
    closest: '2 GPUs',
    reason: 'NoMatchingOffer',
    says: 'make several smaller leases',
  },
  'too little CPU': {
    lease: lease({ resources: { requests: { cpu: '8500m' } } }),
    check: 'ResourcesBelow',
    closest: 'cpu 8 for each GPU',
    reason: 'NoMatchingOffer',
  },
  'too little node memory': {
    lease: lease({ resources: { requests: { memory: '33Gi' } } }),
    check: 'ResourcesBelow',
    closest: 'memory 32Gi for each GPU',
    reason: 'NoMatchingOffer',
  },
  'a longer term than is let': {
    offer: offer({ maxDurationSeconds: 3599 }),
    check: 'DurationNotOffered',
    closest: '60–3599 s',
    reason: 'NoMatchingOffer',
  },
  'a shorter term than is let': {
    offer: offer({ minDurationSeconds: 3601 }),
    check: 'DurationNotOffered',
    closest: '3601–2592000 s',
    reason: 'NoMatchingOffer',
  },
  'a provider that the lease does not select': {
    lease: lease({ providerSelector: { matchLabels: { trust: 'high' } } }),
    check: 'ProviderNotSelected',
    reason: 'NoMatchingOffer',
  },
  'a provider that is not for this namespace': {
    fact: { provider: provider({ namespaceSelector: { matchLabels: { rent: 'true' } } }) },
    namespaceLabels: { rent: 'false' },
    check: 'ProviderNotSelected',
    reason: 'NoMatchingOffer',
  },
  'an offer of a provider that is gone': {
    offer: offer({ providerName: 'gone' }),
    check: 'ProviderNotSelected',
    reason: 'NoMatchingOffer',
  },
  'another token': {
    offer: offer(priced('0.3', 'GPU')),
    check: 'AssetNotPriced',
    closest: 'GPU',
    reason: 'NoMatchingOffer',
  },
  'a higher price': {
    lease: lease(limit('0.35')),
    check: 'PriceAboveLimit',
    closest: '0.36, +0.01',
    reason: 'PriceAboveLimit',
    says: 'Raise spec.pricing.maxPricePerGpuHour (now 0.35).',
  },
  'a price higher by the smallest amount there is': {
    lease: lease(limit('0.359999')),
    check: 'PriceAboveLimit',
    closest: '0.36, +0.000001',
    reason: 'PriceAboveLimit',
  },
  'a provider that is held': {
    fact: { provider: provider({ stopPolicy: 'Hold' }) },
    check: 'ProviderHeld',
    closest: 'ams: spec.stopPolicy Hold',
    reason: 'ProviderHeld',
  },
  'a provider that is being deleted': {
    fact: { provider: provider({}, { deletionTimestamp: '2026-01-01T00:00:00Z' }) },
    check: 'ProviderHeld',
    closest: 'ams: being deleted',
    reason: 'ProviderHeld',
  },
  'a token that neither side can move': {
    fact: { rails: [] },
    check: 'NoSharedRail',
    closest: 'ams',
    reason: 'WrongChain',
    says: 'spec.payment.rails',
  },
  'the limit of leases': {
    fact: { provider: provider({ limits: { leases: 2 } }), held: { leases: 2, gpus: 2, perHour: {}, locked: {} } },
    check: 'LimitReached',
    closest: 'limits.leases 2',
    reason: 'LimitReached',
    says: 'Raise spec.limits',
  },
  'the limit of GPUs': {
    lease: lease({ gpu: { models: ['RTX4090'], count: 2, interconnect: 'Any' } }),
    fact: { provider: provider({ limits: { gpus: 3 } }), held: { leases: 1, gpus: 2, perHour: {}, locked: {} } },
    check: 'LimitReached',
    closest: 'limits.gpus 3',
    reason: 'LimitReached',
  },
  'the limit of spending': {
    fact: {
      provider: provider({ limits: { spendPerHour: '1' } }),
      held: { leases: 1, gpus: 2, perHour: { USDC: 640_001n * 10n ** 12n, GPU: 10n ** 18n }, locked: {} },
    },
    check: 'LimitReached',
    closest: 'limits.spendPerHour 1',
    reason: 'LimitReached',
  },
  'room on its rail for another deposit': {
    fact: { held: holding(99_640_001n) },
    check: 'LimitReached',
    closest: 'maxEscrow 100 USDC on chain 31337',
    reason: 'LimitReached',
    says: 'or maxEscrow in its spec.payment.rails',
  },
  'a provider that failed just now': {
    avoid: [{ providerName: 'ams', until: at(1).getTime() }],
    check: 'RecentlyFailed',
    closest: 'ams is avoided after a failed attempt',
    reason: 'BackingOff',
  },
  'no free GPU': {
    offer: offer({}, { largestAvailable: 0 }),
    check: 'CapacityExhausted',
    closest: '0 free on one node of ams-rtx4090',
    reason: 'CapacityExhausted',
    says: 'Waiting for GPUs',
  },
};
const withMiss = (miss: Miss) =>
  matchOffers(
    input({
      ...(miss.lease ? { lease: miss.lease } : {}),
      offers: [miss.offer ?? offer()],
      providers: factsOf(providerFact(miss.fact)),
      avoid: miss.avoid ?? [],
      namespaceLabels: miss.namespaceLabels ?? {},
    }),
  );

describe('an offer will not do', () => {
  it.each(Object.entries(misses))('for want of: %s', (_, miss) => {
    const { candidates, selection, blocked } = withMiss(miss);
    expect(candidates).toEqual([]);
    expect(selection).toEqual({
      considered: 1,
      eligible: 0,
      rejected: [{ reason: miss.check, count: 1, ...(miss.closest ? { closest: miss.closest } : {}) }],
    });
    expect(blocked?.reason).toBe(miss.reason);
    expect(blocked?.message).toContain(`1 offers considered, none will do: 1 ${miss.check}`);
    if (miss.says) expect(blocked?.message).toContain(miss.says);
  });

  it('when its provider is not ready, for the provider’s own reason', () => {
    const down = providerFact({ ready: false, reason: 'WrongChain', message: 'it is chain 5' });
    expect(matchOffers(input({ providers: factsOf(down) })).blocked).toEqual({
      reason: 'WrongChain',
      message: 'No provider that may serve this lease is ready. ams: WrongChain: it is chain 5',
    });
  });
});

describe('an offer will do', () => {
  const good: Record<string, Partial<MatchInput>> = {
    'at exactly the price limit': { lease: lease(limit('0.36')) },
    'at exactly its shortest and longest term': {
      offers: [offer({ minDurationSeconds: 3600, maxDurationSeconds: 3600 })],
    },
    'with exactly the resources asked for': {
      lease: lease({ resources: { requests: { cpu: 8, memory: '32Gi', 'ephemeral-storage': '100Gi' } } }),
    },
    'with resources of two GPUs': {
      lease: lease({
        gpu: { models: ['RTX4090'], count: 2, interconnect: 'Any' },
        resources: { requests: { cpu: 16, memory: '64Gi' } },
      }),
    },
    'when a provider’s limits are just reached by it': {
      providers: factsOf(
        providerFact({
          provider: provider({ limits: { leases: 2, gpus: 3, spendPerHour: '1' } }),
          held: { leases: 1, gpus: 2, perHour: { USDC: 640_000n * 10n ** 12n }, locked: {} },
        }),
      ),
    },
    'when what may be locked on its rail is just reached by its deposit': {
      providers: factsOf(providerFact({ held: holding(99_640_000n) })),
    },
    'when a smaller first deposit fits on its rail, as the operator makes them': {
      providers: factsOf(providerFact({ held: holding(99_990_000n) })),
      settings: { depositSeconds: 100 },
    },
    'when what it may spend at all fits on its rail': {
      lease: lease({ pricing: { assetSymbol: 'USDC', maxPricePerGpuHour: '0.60', spendLimit: '0.01' } }),
      providers: factsOf(providerFact({ held: holding(99_990_000n) })),
    },
    'when its failed provider is avoided no longer': { avoid: [{ providerName: 'ams', until: at(0).getTime() }] },
    'when only its D variant is there': { offers: [offer({}, { product: 'NVIDIA-GeForce-RTX-4090-D' })] },
    'of a provider that is selected': {
      lease: lease({ providerSelector: { matchLabels: { trust: 'high' } } }),
      providers: factsOf(providerFact({ provider: provider({}, { labels: { trust: 'high' } }) })),
    },
  };
  it.each(Object.entries(good))('%s', (_, change) => {
    expect(matchOffers(input(change))).toMatchObject({ selection: { considered: 1, eligible: 1, rejected: [] } });
  });

  it('with the price in base units of the token of the rail', () => {
    const facts = factsOf(providerFact({ rails: [{ ...rail(), decimals: 18 }] }));
    expect(matchOffers(input({ providers: facts })).candidates[0]).toMatchObject({
      pricePerGpuHour: 360_000_000_000_000_000n,
      rail: { decimals: 18 },
    });
  });
});

describe('several offers', () => {
  const other = providerFact({ provider: provider({ weight: 60 }, { name: 'fra' }) });
  const offers = [
    offer(priced('0.40'), {}, { name: 'ams-dear' }),
    offer(priced('0.30'), {}, { name: 'ams-cheap' }),
    offer({ ...priced('0.30'), providerName: 'fra' }, {}, { name: 'fra-cheap' }),
    offer(priced('0.30'), {}, { name: 'ams-also-cheap' }),
  ];
  const names = (given: GpuOffer[]) =>
    matchOffers(input({ offers: given, providers: factsOf(providerFact(), other) })).candidates.map(
      (c) => c.offer.metadata.name,
    );

  it('are asked cheapest first, then by the weight of the provider, then by name', () => {
    expect(names(offers)).toEqual(['fra-cheap', 'ams-also-cheap', 'ams-cheap', 'ams-dear']);
  });

  it('are asked in the same order whatever the order of the cache', () => {
    expect(names(offers.toReversed())).toEqual(names(offers));
  });

  it('are compared by value, not by text', () => {
    expect(names([offer(priced('0.3'), {}, { name: 'b' }), offer(priced('0.09'), {}, { name: 'a' })])).toEqual([
      'a',
      'b',
    ]);
  });

  it('are told by what each missed, the nearest of each kind', () => {
    const { selection, blocked } = matchOffers(
      input({
        lease: lease({ ...limit('0.20'), gpu: { models: ['RTX4090'], count: 2, interconnect: 'Any' } }),
        offers: [
          offer(priced('0.40'), {}, { name: 'a' }),
          offer(priced('0.25'), {}, { name: 'b' }),
          offer(priced('0.30'), {}, { name: 'c' }),
          offer(priced('0.10'), { total: 1 }, { name: 'd' }),
        ],
      }),
    );
    expect(selection).toEqual({
      considered: 4,
      eligible: 0,
      rejected: [
        { reason: 'PriceAboveLimit', count: 3, closest: '0.25, +0.05' },
        { reason: 'CountAboveNode', count: 1, closest: '1 GPUs' },
      ],
    });
    expect(blocked?.reason).toBe('PriceAboveLimit');
  });

  it('give the reason of the one that came furthest', () => {
    const { blocked } = matchOffers(
      input({
        offers: [
          offer({}, { product: 'NVIDIA-L40S' }, { name: 'a' }),
          offer({}, { largestAvailable: 0 }, { name: 'b' }),
          offer(priced('9'), {}, { name: 'c' }),
        ],
      }),
    );
    expect(blocked?.reason).toBe('CapacityExhausted');
  });

  it('tell the same whatever the order of the cache, also of misses that cannot be measured', () => {
    const missing = ['a', 'b', 'c'].map((name) =>
      offer({}, { labels: { 'topology.kubernetes.io/region': name } }, { name }),
    );
    const asked = lease({ requirements: [{ key: 'topology.kubernetes.io/region', operator: 'In', values: ['x'] }] });
    const told = (given: GpuOffer[]) => matchOffers(input({ lease: asked, offers: given }));
    expect(told(missing.toReversed())).toEqual(told(missing));
  });
});

describe('a requirement', () => {
  const labels = { region: 'eu', driver: '550', odd: 'v1' };
  it.each([
    ['In', ['eu', 'us'], 'region', true],
    ['In', ['us'], 'region', false],
    ['In', ['us'], 'absent', false],
    ['NotIn', ['us'], 'region', true],
    ['NotIn', ['eu'], 'region', false],
    ['NotIn', ['eu'], 'absent', true],
    ['Exists', undefined, 'region', true],
    ['Exists', undefined, 'absent', false],
    ['DoesNotExist', undefined, 'absent', true],
    ['DoesNotExist', undefined, 'region', false],
    ['Gt', ['549'], 'driver', true],
    ['Gt', ['550'], 'driver', false],
    ['Gte', ['550'], 'driver', true],
    ['Gte', ['551'], 'driver', false],
    ['Lt', ['551'], 'driver', true],
    ['Lt', ['550'], 'driver', false],
    ['Lte', ['550'], 'driver', true],
    ['Lte', ['549'], 'driver', false],
    // Numbers are compared as numbers, however many digits they have.
    ['Gt', ['99'], 'driver', true],
    ['Gt', ['0'], 'odd', false],
    ['Lt', ['9'], 'odd', false],
    ['Lte', ['9'], 'absent', false],
  ] as const)('%s %s of label %s: %s', (operator, values, key, fulfilled) => {
    expect(fulfils({ key, operator, ...(values ? { values: [...values] } : {}) }, labels)).toBe(fulfilled);
  });
});
