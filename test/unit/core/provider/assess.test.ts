import { describe, expect, it } from 'vitest';
import { assess, maxOffers, type RailFact, type SeenProvider } from '../../../../operator/core/provider/assess.ts';
import { at, instant, offerInfo, provider, providerInfo, rail, token } from '../../../support/builders.ts';

const good: RailFact = { rail: rail(), ok: true, decimals: 6 };
const seen = (change: Partial<SeenProvider> = {}): SeenProvider => ({
  provider: provider(),
  info: { ok: true, value: providerInfo() },
  failures: 0,
  rails: [good],
  offers: { ok: true, value: [offerInfo()] },
  now: at(0),
  ...change,
});
const silent = (message: string) => ({ ok: false, reason: 'Unreachable', message }) as const;
const badRail = (
  reason: 'WrongChain' | 'ChainUnreachable' | 'RailNotAccepted',
  message: string,
  change = {},
): RailFact => ({
  rail: rail(change),
  ok: false,
  reason,
  message,
});

interface Row {
  readonly seen: Partial<SeenProvider>;
  /** The condition that is not True; the ones after it wait for it. */
  readonly fails?: string;
  readonly reason: string;
  readonly says?: string;
}
const rows: Record<string, Row> = {
  'is Ready when all is well': { seen: {}, reason: 'Serving' },
  'is Ready, and says so, while it takes no new leases': {
    seen: { provider: provider({ stopPolicy: 'Hold' }) },
    reason: 'Held',
    says: 'spec.stopPolicy is Hold: no new leases.',
  },
  'is unreachable when it does not answer': {
    seen: { info: silent('connect ECONNREFUSED'), offers: silent('connect ECONNREFUSED'), failures: 3 },
    fails: 'Reachable',
    reason: 'Unreachable',
    says: 'connect ECONNREFUSED (3 of 3 probes failed). Check spec.endpoint',
  },
  'tells the same however long it is unreachable': {
    seen: { info: silent('no answer in time'), failures: 1234 },
    fails: 'Reachable',
    reason: 'Unreachable',
    says: '(3 of 3 probes failed)',
  },
  'is somebody else when the certificate is not the pinned one': {
    seen: { info: { ok: false, reason: 'IdentityMismatch', message: 'the key is not the pinned one' } },
    fails: 'IdentityVerified',
    reason: 'IdentityMismatch',
    says: 'not the pinned one',
  },
  'is not trusted when its answer makes no sense': {
    seen: { info: { ok: false, reason: 'InvalidAnswer', message: 'rails: expected array' } },
    fails: 'IdentityVerified',
    reason: 'InvalidAnswer',
    says: 'rails: expected array',
  },
  'is somebody else when it signs with another address': {
    seen: { info: { ok: true, value: providerInfo({ address: `0x${'f'.repeat(40)}` }) } },
    fails: 'IdentityVerified',
    reason: 'IdentityMismatch',
    says: `signs as 0x${'f'.repeat(40)}, but spec.identity.address is 0x${'b'.repeat(40)}`,
  },
  'is itself, in whatever case its address is written': {
    seen: { info: { ok: true, value: providerInfo({ address: `0x${'B'.repeat(40)}` }) } },
    reason: 'Serving',
  },
  'is not trusted with a clock that is wrong': {
    seen: { info: { ok: true, value: providerInfo({ now: instant(31) }) } },
    fails: 'IdentityVerified',
    reason: 'ClockSkewed',
    says: 'differs from ours by 31 s; 30 s are allowed',
  },
  'is not trusted with a clock that is late': {
    seen: { info: { ok: true, value: providerInfo({ now: instant(-31) }) } },
    fails: 'IdentityVerified',
    reason: 'ClockSkewed',
  },
  'is trusted with a clock that is almost right': {
    seen: { info: { ok: true, value: providerInfo({ now: instant(30) }) } },
    reason: 'Serving',
  },
  'is not trusted with a clock that is no time': {
    seen: { info: { ok: true, value: providerInfo({ now: 'noon' }) } },
    fails: 'IdentityVerified',
    reason: 'ClockSkewed',
  },
  'cannot be paid on a wrong chain': {
    seen: { rails: [badRail('WrongChain', 'it is chain 5')] },
    fails: 'EscrowReady',
    reason: 'WrongChain',
    says: 'it is chain 5',
  },
  'cannot be paid while the chain does not answer': {
    seen: { rails: [badRail('ChainUnreachable', 'no answer')] },
    fails: 'EscrowReady',
    reason: 'ChainUnreachable',
  },
  'cannot be paid on a rail that it does not accept': {
    seen: { rails: [{ ...good, rail: rail({ chainId: 1 }) }] },
    fails: 'EscrowReady',
    reason: 'RailNotAccepted',
    says: `it accepts: USDC ${token} in`,
  },
  'can be paid when one rail of two is good': {
    seen: { rails: [badRail('WrongChain', 'it is chain 5', { chainId: 5 }), good] },
    reason: 'Serving',
  },
  'has nothing to show when its offers do not come': {
    seen: { offers: { ok: false, reason: 'InvalidAnswer', message: 'offers: too many' } },
    fails: 'OffersSynced',
    reason: 'InvalidAnswer',
    says: 'offers: too many',
  },
  'has nothing to show when none of its offers is sound': {
    seen: { offers: { ok: true, value: [offerInfo({ name: 'Über' })] } },
    fails: 'OffersSynced',
    reason: 'InvalidAnswer',
    says: 'No offer is sound: "Über": its name is not a DNS label.',
  },
  'is Ready without any offer: there may be one soon': {
    seen: { offers: { ok: true, value: [] } },
    reason: 'Serving',
  },
};

describe('a provider', () => {
  it.each(Object.entries(rows))('%s', (_, row) => {
    const { ready, reason, message, conditions } = assess(seen(row.seen));
    expect([ready, reason]).toEqual([row.fails === undefined, row.reason]);
    if (row.says) expect(message).toContain(row.says);
    const [first, ...steps] = conditions;
    expect(first).toEqual({ type: 'Ready', status: ready ? 'True' : 'False', reason, message });
    const at = steps.findIndex((c) => c.type === row.fails);
    expect(steps.map((c) => c.status)).toEqual(
      steps.map((_c, i) => (at < 0 || i < at ? 'True' : i === at ? 'False' : 'Unknown')),
    );
    expect(steps.map((c) => c.type)).toEqual(['Reachable', 'IdentityVerified', 'EscrowReady', 'OffersSynced']);
    for (const later of steps.slice(at + 1)) if (at >= 0) expect(later.reason).toBe(`WaitingFor${row.fails}`);
  });
});

describe('its rails', () => {
  it('are those that are sound on chain and that it accepts, in whatever case they are written', () => {
    const theirs = providerInfo().rails[0]!;
    const shouting = `0x${'E'.repeat(40)}`;
    const { rails } = assess(
      seen({
        rails: [
          { ...good, rail: rail({ chainId: 1 }) },
          badRail('WrongChain', 'it is chain 5', { chainId: 5 }),
          { ...good, rail: rail({ escrow: shouting }) },
        ],
        info: { ok: true, value: providerInfo({ rails: [theirs, { ...theirs, chainId: 5 }] }) },
      }),
    );
    expect(rails).toEqual([{ ...rail({ escrow: shouting }), decimals: 6 }]);
  });

  it('are none while it does not say which it accepts', () => {
    expect(assess(seen({ info: silent('no answer') })).rails).toEqual([]);
  });
});

describe('its offers', () => {
  it('are mirrored under its name, and belong to it', () => {
    const { mirrored } = assess(seen());
    expect(mirrored).toHaveLength(1);
    expect(mirrored![0]).toMatchObject({
      metadata: {
        name: 'ams-rtx4090',
        labels: { 'gpulease.dev/provider': 'ams', 'gpulease.dev/offer': 'rtx4090' },
        ownerReferences: [{ kind: 'GpuProvider', name: 'ams', uid: 'provider-uid' }],
      },
      spec: { providerName: 'ams', model: 'RTX4090', prices: [{ assetSymbol: 'USDC', perGpuHour: '0.36' }] },
      status: { total: 2, available: 2, largestAvailable: 2, labels: { 'topology.kubernetes.io/region': 'eu-north' } },
    });
  });

  it('stay as they are when nothing was learnt', () => {
    expect(assess(seen({ offers: silent('no answer') })).mirrored).toBeUndefined();
  });

  it('go away when somebody else answers in its name', () => {
    const impostor = providerInfo({ address: `0x${'f'.repeat(40)}` });
    expect(assess(seen({ info: { ok: true, value: impostor } })).mirrored).toEqual([]);
  });

  it('are bounded', () => {
    const many = Array.from({ length: maxOffers + 50 }, (_, i) => offerInfo({ name: `o${i}` }));
    expect(assess(seen({ offers: { ok: true, value: many } })).mirrored).toHaveLength(maxOffers);
  });

  const broken = {
    'a name that Kubernetes refuses': offerInfo({ name: 'RTX_4090' }),
    'a name with a path in it': offerInfo({ name: '../secrets' }),
    'a price of nothing': offerInfo({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.00' }] }),
    'two prices in one token': offerInfo({
      prices: [
        { assetSymbol: 'USDC', perGpuHour: '1' },
        { assetSymbol: 'USDC', perGpuHour: '2' },
      ],
    }),
    'a shortest term above its longest': offerInfo({ minDurationSeconds: 600, maxDurationSeconds: 300 }),
    'a term that the API does not know': offerInfo({ maxDurationSeconds: 2_592_001 }),
    'the name of another one': offerInfo(),
  };
  it.each(Object.entries(broken))('are mirrored without the one that has %s', (_, bad) => {
    const { ready, mirrored } = assess(seen({ offers: { ok: true, value: [offerInfo(), bad] } }));
    expect(ready).toBe(true);
    expect(mirrored!.map((o) => o.metadata.name)).toEqual(['ams-rtx4090']);
  });
});
