import { describe, expect, it } from 'vitest';
import { whole } from '../../../../operator/core/lease/amounts.ts';
import { exposureOf, heldElsewhere, heldIn, lockedOn, railName } from '../../../../operator/core/lease/exposure.ts';
import type { LeaseRecord } from '../../../../operator/core/lease/observed.ts';
import { quoteRecord, rail, record } from '../../../support/builders.ts';

const open = (deposit: string, change: Parameters<typeof quoteRecord>[0] = {}, more = {}): LeaseRecord =>
  record({ quote: quoteRecord(change, more), deposit });
const records = {
  'ours, two GPUs': open('200', { gpus: 2 }),
  'ours, in other letters': open('30', { token: `0x${'D'.repeat(40)}` }),
  'only quoted': record({ quote: quoteRecord() }),
  settled: { ...open('4000'), settled: true },
  'of another provider': open('50000', {}, { providerName: 'fra' }),
  'in another token': open('600000', { token: `0x${'f'.repeat(40)}` }, { assetSymbol: 'GPU' }),
  'never began': record(),
};
const all = new Map(Object.entries(records));

describe('what leases hold', () => {
  it('with a provider is that of its open ones', () => {
    expect(exposureOf('ams', all.values())).toEqual({
      leases: 3,
      gpus: 4,
      perHour: { USDC: 1_080_000n * 10n ** 12n, GPU: 360_000n * 10n ** 12n },
      locked: { [railName(rail())]: 230n, [railName(rail({ token: `0x${'f'.repeat(40)}` }))]: 600_000n },
    });
  });

  const e12 = 10n ** 12n;
  const gpu = 600_000n * e12;
  it('elsewhere leaves out the lease that asks', () => {
    const elsewhere = (name: 'ours, two GPUs' | 'only quoted') => heldElsewhere(name, records[name], all);
    expect(elsewhere('ours, two GPUs')).toEqual({ onRail: 30n, inAsset: { USDC: 50_030n * e12, GPU: gpu } });
    expect(elsewhere('only quoted')).toEqual({ onRail: 230n, inAsset: { USDC: 50_230n * e12, GPU: gpu } });
  });

  it('elsewhere is on no rail for who has no quote, and in each asset all the same', () => {
    const inAsset = { USDC: 50_230n * e12, GPU: gpu };
    expect(heldElsewhere('never began', records['never began'], all)).toEqual({ onRail: 0n, inAsset });
  });

  it('in one token of two chains is added up as whole tokens, however many decimals it has there, and rounded up', () => {
    const elsewhere = open('1500000000000', { gpus: 2 }, { decimals: 18, providerName: 'fra' });
    const both = new Map([
      ['here', open('200')],
      ['there', elsewhere],
    ]);
    const here = heldElsewhere('here', both.get('here'), both);
    expect([here.onRail, heldIn(here, { assetSymbol: 'USDC', decimals: 6 })]).toEqual([0n, 2n]);
    const there = heldElsewhere('there', elsewhere, both);
    expect(heldIn(there, { assetSymbol: 'USDC', decimals: 18 })).toBe(200n * e12);
    expect(heldIn(there, { assetSymbol: 'GPU', decimals: 18 })).toBe(0n);
    expect(exposureOf('fra', both.values()).perHour).toEqual({ USDC: 720_000n });
  });

  it('on a rail is that of one token, contract and chain', () => {
    expect(lockedOn(exposureOf('ams', all.values()), rail())).toBe(230n);
    expect(lockedOn(exposureOf('ams', all.values()), rail({ chainId: 1 }))).toBe(0n);
    expect(lockedOn(exposureOf('fra', all.values()), rail())).toBe(50_000n);
  });
});

describe('an amount for people', () => {
  it.each([
    [340_000n, 6, '0.34'],
    [1n, 6, '0.000001'],
    [0n, 18, '0'],
    [10n ** 18n, 18, '1'],
    // Never below what is billed.
    [1n, 18, '0.000001'],
    [1_000_000_000_001n, 18, '0.000002'],
    [5n, 0, '5'],
  ])('%s with %s decimals is %s', (units, decimals, text) => {
    expect(whole(units, decimals)).toBe(text);
  });
});
