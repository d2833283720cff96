/** What was spent is counted once, in the window in which it was served, whatever is lost or repeated in between. */
import { describe, expect, it } from 'vitest';
import { type GpuBudget, maxBudgetLeases } from '../../../../operator/api/budget.ts';
import { countSpend, type LabelsOf } from '../../../../operator/core/budget/count.ts';
import { reportBudget } from '../../../../operator/core/budget/report.ts';
import { attoDecimals } from '../../../../operator/core/budget/spender.ts';
import type { LeaseRecord } from '../../../../operator/core/lease/observed.ts';
import { formatAmount } from '../../../../operator/core/money/amount.ts';
import { at, budget, instant, quoteRecord, record } from '../../../support/builders.ts';

const nobody: LabelsOf = () => undefined;
/** 0.36 USDC an hour, 100 base units a second; served and signed for up to `until`, since `from`. */
const served = (from: number, until: number, change: Partial<LeaseRecord> = {}): LeaseRecord =>
  record({
    lease: { namespace: 'ml', name: 'train' },
    quote: quoteRecord(),
    deposit: '360000',
    startedAt: instant(from),
    meter: { servedMs: (until - from) * 1000, countedUntil: instant(until) },
    signedSeconds: until - from,
    ...change,
  });
const leases = (...records: readonly LeaseRecord[]) => new Map(records.map((one, i) => [`uid-${i}`, one]));
const spent = (of: GpuBudget, records: ReadonlyMap<string, LeaseRecord>, now: number, labelsOf = nobody) =>
  Object.fromEntries(
    countSpend(of, records, labelsOf, at(now)).windows.map((one) => [
      one.window,
      formatAmount(one.spent, attoDecimals),
    ]),
  );
/** As the controller would store it. */
const stored = (
  of: GpuBudget,
  records: ReadonlyMap<string, LeaseRecord>,
  now: number,
  labelsOf = nobody,
): GpuBudget => ({
  ...of,
  status: reportBudget(of, records, labelsOf, at(now)).status,
});

describe('what is spent', () => {
  it('is the price of the signed seconds, fee included', () => {
    expect(spent(budget(), leases(served(0, 600)), 600)).toEqual({ Hour: '0.06', Day: '0.06', Month: '0.06' });
  });

  it('counts seconds of an outage in the windows in which they were served', () => {
    // From 0:30 to 1:10, and nothing was counted meanwhile.
    const late = leases(served(1800, 4200));
    expect(spent(budget(), late, 4200)).toEqual({ Hour: '0.06', Day: '0.24', Month: '0.24' });
  });

  it('begins anew with each window', () => {
    const before = stored(budget(), leases(served(0, 3000)), 3000);
    expect(spent(before, leases(served(0, 3000)), 3700)).toEqual({ Hour: '0', Day: '0.3', Month: '0.3' });
    expect(spent(before, leases(served(0, 3000)), 86_400 * 31)).toEqual({ Hour: '0', Day: '0', Month: '0' });
  });

  it('is not counted again, however often it is looked at', () => {
    const records = leases(served(0, 600));
    let now = stored(budget(), records, 600);
    for (let i = 0; i < 5; i++) now = stored(now, records, 600 + i);
    expect(spent(now, records, 610).Day).toBe('0.06');
  });

  it('adds up to the bill of the whole, whatever the steps', () => {
    const terms = { pricePerGpuHour: '333333', gpus: 3 };
    const steps = [1, 2, 7, 8, 100, 101, 1000, 3599];
    let now = budget();
    for (const until of steps) {
      const records = leases(served(0, until, { quote: quoteRecord(terms), deposit: '9999999' }));
      now = stored(now, records, until);
    }
    expect(now.status?.windows?.find((one) => one.window === 'Day')?.spent).toBe('0.999721'); // ⌊3599 × 333333 × 3 / 3600⌋
  });

  it('stays when the lease is settled, and its record gone', () => {
    const counted = stored(budget(), leases(served(0, 600)), 600);
    expect(spent(counted, leases(served(0, 600, { settled: true })), 700).Day).toBe('0.06');
    expect(spent(counted, new Map(), 700).Day).toBe('0.06');
    // And takes no more room in the status.
    expect(stored(counted, new Map(), 700).status?.counted).toBeUndefined();
  });

  it('of another attempt counts from its first second', () => {
    const counted = stored(budget(), leases(served(0, 600)), 600);
    expect(spent(counted, leases(served(700, 800, { attempt: 2 })), 800).Day).toBe('0.07');
  });

  it('of a lease in another token is none of this budget', () => {
    const native = leases(served(0, 600, { quote: quoteRecord({}, { assetSymbol: 'GPU', decimals: 18 }) }));
    expect(spent(budget(), native, 600).Day).toBe('0');
  });

  it('is exact for tokens of 18 places, and rounded up for more', () => {
    const native = (decimals: number, price: string) =>
      leases(
        served(0, 1, {
          quote: quoteRecord({ pricePerGpuHour: price }, { assetSymbol: 'GPU', decimals }),
          deposit: '9'.repeat(22),
        }),
      );
    const inGpu = budget({ assetSymbol: 'GPU' });
    expect(spent(inGpu, native(18, '1234567890123456789'), 1).Day).toBe('0.000342935525034293');
    expect(spent(inGpu, native(20, '3601'), 1).Day).toBe('0.000000000000000001');
  });

  it('is not lost, nor counted twice, by a clock that is put forward and back', () => {
    const records = leases(served(0, 600));
    const ahead = stored(budget(), records, 600 + 86_400);
    const back = stored(ahead, leases(served(0, 700)), 700);
    // The window of tomorrow has begun; it takes what is served until then.
    expect(back.status?.windows?.find((one) => one.window === 'Day')).toMatchObject({
      startedAt: '2026-01-02T00:00:00Z',
      spent: '0.01',
    });
  });

  it('counts everything while the clock is behind the window', () => {
    const ahead = stored(budget(), leases(served(0, 600)), 600 + 86_400);
    expect(spent(ahead, leases(served(0, 700)), 700).Day).toBe('0.01');
  });
});

describe('more leases than a budget follows', () => {
  const many = leases(...Array.from({ length: maxBudgetLeases + 3 }, () => served(0, 100)));
  it('are not counted, rather than again and again, and it says so', () => {
    const first = stored(budget(), many, 100);
    const again = stored(first, many, 100);
    for (const one of [first, again]) {
      expect(one.status?.windows?.[1]?.spent).toBe('20.48'); // 2048 × 0.01
      expect(one.status?.counted).toHaveLength(maxBudgetLeases);
    }
    expect(reportBudget(again, many, nobody, at(100)).conditions[0]).toEqual({
      type: 'Ready',
      status: 'False',
      reason: 'TooManyLeases',
      message: '3 leases are not counted: a budget follows 2048. Share its namespaces out among several budgets.',
    });
  });

  it('are counted when others have ended', () => {
    const first = stored(budget(), many, 100);
    const fewer = new Map([...many].slice(3));
    const { conditions, status } = reportBudget(first, fewer, nobody, at(100));
    expect(conditions[0]).toMatchObject({ status: 'True', reason: 'Counting' });
    expect(status.windows?.[1]?.spent).toBe('20.51');
  });
});

describe('whose leases count', () => {
  const ml = budget({ namespaceSelector: { matchLabels: { team: 'ml' } } });
  const labels =
    (team: string | undefined): LabelsOf =>
    () =>
      team === undefined ? undefined : { team };
  const decided = leases(served(0, 600, { budgets: ['team-uid'] }));
  it.each([
    ['a selected namespace’s', leases(served(0, 600)), labels('ml'), '0.06'],
    ['not those of another', leases(served(0, 600)), labels('web'), '0'],
    ['not those of a namespace that nobody knows', leases(served(0, 600)), labels(undefined), '0'],
    ['those decided under it, wherever their namespace went', decided, labels('web'), '0.06'],
    ['those decided under it, where the cache knows nothing of their namespace', decided, labels(undefined), '0.06'],
  ] as const)('%s', (_, records, labelsOf, day) => {
    expect(spent(ml, records, 600, labelsOf).Day).toBe(day);
  });

  it('only for the time in which the namespace was selected', () => {
    const one = stored(ml, leases(served(0, 600)), 600, labels('ml'));
    const two = stored(one, leases(served(0, 900)), 900, labels('web'));
    const three = stored(two, leases(served(0, 1000)), 1000, labels('ml'));
    expect(three.status?.windows?.[1]?.spent).toBe('0.07');
  });
});
