/** What a lease may still be given: each refusal names the budget, the limit, what is spent and committed, and the way out. */
import { describe, expect, it } from 'vitest';
import type { BudgetSpec, GpuBudget } from '../../../../operator/api/budget.ts';
import { maxBudgetLeases } from '../../../../operator/api/budget.ts';
import { reportBudget } from '../../../../operator/core/budget/report.ts';
import {
  type BudgetView,
  budgetRefusal,
  budgetRoom,
  exceededFor,
  viewBudgets,
} from '../../../../operator/core/budget/room.ts';
import type { Spender } from '../../../../operator/core/budget/spender.ts';
import type { LeaseRecord } from '../../../../operator/core/lease/observed.ts';
import { at, budget, instant, quoteRecord, record } from '../../../support/builders.ts';

/** 0.36 USDC an hour; two hours of it are 0.72. */
const wanted = (change: Partial<Spender> = {}): Spender => ({
  assetSymbol: 'USDC',
  decimals: 6,
  gpus: 1,
  pricePerGpuHour: 360_000n,
  deposit: 720_000n,
  signedSeconds: 0,
  ...change,
});
const open = (seconds: number, deposit: string, change: Partial<LeaseRecord> = {}): LeaseRecord =>
  record({
    lease: { namespace: 'ml', name: 'other' },
    quote: quoteRecord(),
    deposit,
    ...(seconds > 0 ? { meter: { servedMs: seconds * 1000, countedUntil: instant(seconds) } } : {}),
    signedSeconds: seconds,
    ...change,
  });
const views = (budgets: readonly GpuBudget[], now: number, ...records: readonly LeaseRecord[]): BudgetView[] =>
  viewBudgets('own', {}, budgets, new Map(records.map((one, i) => [`uid-${i}`, one])), () => ({}), at(now));
const limits = (limit: Partial<Record<'Hour' | 'Day' | 'Month', string>>, change: Partial<BudgetSpec> = {}) =>
  budget({
    limits: Object.entries(limit).map(([window, amount]) => ({ window: window as 'Hour', amount })),
    ...change,
  });

interface Row {
  readonly budgets: readonly GpuBudget[];
  readonly records?: readonly LeaseRecord[];
  readonly now?: number;
  readonly wanted?: Partial<Spender>;
  /** Undefined: it may be opened. */
  readonly says?: string;
  readonly never?: boolean;
  readonly fitsAt?: string;
}
const rows: Record<string, Row> = {
  'opens where no budget is': { budgets: [] },
  'opens where all fits': { budgets: [limits({ Hour: '0.36', Day: '1', Month: '1' })] },
  'needs room in an hour for what the hour can cost only, not for the whole deposit': {
    budgets: [limits({ Hour: '0.36' })],
  },
  'waits for ever where one whole hour costs more than an hour may': {
    budgets: [limits({ Hour: '0.359999' })],
    now: 3000,
    says: 'GpuBudget team allows 0.359999 USDC an hour: other leases may spend 0 in the next one, and this lease would commit 0.36. Raise its limit, or ask for fewer GPUs, cheaper ones or a shorter term.',
    never: true,
  },
  'waits for ever where its deposit is above the limit of a day': {
    budgets: [limits({ Day: '0.7' })],
    says: 'GpuBudget team allows 0.7 USDC a day: 0 are spent or committed, and this lease would commit 0.72.',
    never: true,
  },
  'waits for the next day where this one is spent': {
    budgets: [limits({ Day: '1' })],
    records: [open(5000, '500000')],
    now: 80_000,
    says: 'GpuBudget team allows 1 USDC a day: 0.5 are spent or committed, and this lease would commit 0.64. It fits at 2026-01-02T00:00:00Z, when the day is over; or raise its limit, or end another lease.',
    fitsAt: '2026-01-02T00:00:00.000Z',
  },
  'opens late on a day whose rest is cheap enough': {
    budgets: [limits({ Day: '1' })],
    records: [open(5000, '500000')],
    now: 82_000, // 4,400 s are left of it: 0.44
  },
  'counts what others have deposited, from the moment in which it was decided': {
    budgets: [limits({ Day: '1' })],
    records: [open(0, '720000')],
    says: 'GpuBudget team allows 1 USDC a day: 0.72 are spent or committed, and this lease would commit 0.72. It fits when another lease ends; or raise its limit.',
  },
  'counts what others may spend in the next window of what they have': {
    budgets: [limits({ Hour: '0.5' })],
    records: [open(0, '720000')],
    now: 3590,
    says: 'GpuBudget team allows 0.5 USDC an hour: other leases may spend 0.36 in the next one, and this lease would commit 0.36. It fits when another lease ends; or raise its limit.',
  },
  'does not count what a provider has let go of': {
    budgets: [limits({ Day: '1' })],
    records: [open(100, '720000', { release: { servedSeconds: 100, signature: '0x', at: instant(100) } })],
    now: 200,
  },
  'does not count quotes, for which nothing was decided': {
    budgets: [limits({ Day: '1' })],
    records: [record({ quote: quoteRecord(), lease: { namespace: 'ml', name: 'other' } })],
  },
  'does not count what is settled': {
    budgets: [limits({ Day: '1' })],
    records: [open(100, '720000', { settled: true })],
  },
  'is held by the one budget of two that has no room': {
    budgets: [limits({ Day: '10' }), { ...limits({ Day: '0.1' }), metadata: { name: 'all', uid: 'all-uid' } }],
    says: 'GpuBudget all allows 0.1 USDC a day',
    never: true,
  },
  'names the limit that holds longest': {
    budgets: [limits({ Day: '1', Month: '1.1' })],
    records: [open(5000, '500000')],
    now: 7000,
    says: 'allows 1.1 USDC a month: 0.5 are spent or committed, and this lease would commit 0.72. It fits at 2026-02-01T00:00:00Z',
    fitsAt: '2026-02-01T00:00:00.000Z',
  },
  'is told, and not held, by a budget that only alerts': { budgets: [limits({ Day: '0.1' }, { onExceeded: 'Alert' })] },
  'waits where too many GPUs are leased': {
    budgets: [budget({ limits: [], maxConcurrentGpus: 2 })],
    records: [open(0, '360000')],
    wanted: { gpus: 2 },
    says: 'GpuBudget team allows 2 GPUs at a time: leased 1, asked for 2 more. It fits when another lease ends; or raise its maxConcurrentGpus.',
  },
  'waits for ever for more GPUs than are allowed': {
    budgets: [budget({ limits: [], maxConcurrentGpus: 2 })],
    wanted: { gpus: 3 },
    says: 'Raise its maxConcurrentGpus, or ask for fewer.',
    never: true,
  },
  'counts the GPUs of leases in other tokens, too': {
    budgets: [budget({ limits: [], maxConcurrentGpus: 1 })],
    records: [open(0, '360000', { quote: quoteRecord({}, { assetSymbol: 'GPU', decimals: 18 }) })],
    says: 'allows 1 GPUs at a time: leased 1',
  },
  'does not open with a token that no budget of its namespace is in': {
    budgets: [limits({ Day: '10' })],
    wanted: { assetSymbol: 'GPU', decimals: 18 },
    says: 'GpuBudget team is in USDC, and the lease pays with GPU, for which its namespace has no GpuBudget. Make one, or set otherAssets: Allow.',
    never: true,
  },
  'opens with another token where the budget allows it': {
    budgets: [limits({ Day: '10' }, { otherAssets: 'Allow' })],
    wanted: { assetSymbol: 'GPU', decimals: 18, deposit: 10n ** 24n },
  },
  'opens with another token that another budget is in': {
    budgets: [
      limits({ Day: '10' }),
      { ...limits({ Day: '5' }, { assetSymbol: 'GPU' }), metadata: { name: 'native', uid: 'native-uid' } },
    ],
    wanted: { assetSymbol: 'GPU', decimals: 18, pricePerGpuHour: 10n ** 18n, deposit: 2n * 10n ** 18n },
  },
  'is held by the budget in its own token': {
    budgets: [
      limits({ Day: '10' }),
      { ...limits({ Day: '1' }, { assetSymbol: 'GPU' }), metadata: { name: 'native', uid: 'native-uid' } },
    ],
    wanted: { assetSymbol: 'GPU', decimals: 18, pricePerGpuHour: 10n ** 18n, deposit: 2n * 10n ** 18n },
    says: 'GpuBudget native allows 1 GPU a day',
    never: true,
  },
  'is not held for its token by a budget that limits GPUs only': {
    budgets: [budget({ limits: [], maxConcurrentGpus: 4 })],
    wanted: { assetSymbol: 'GPU', decimals: 18 },
  },
  'waits where the budget follows as many leases as it can': {
    budgets: [limits({ Day: '100000' })],
    records: Array.from({ length: maxBudgetLeases }, () => open(0, '1')),
    says: `GpuBudget team follows ${maxBudgetLeases} leases, and no more. End some of them.`,
  },
};

describe('a lease under budgets', () => {
  it.each(Object.entries(rows))('%s', (_, { budgets, records = [], now = 0, says, never = false, fitsAt, ...row }) => {
    const refusal = budgetRefusal(views(budgets, now, ...records), wanted(row.wanted), at(now));
    if (says === undefined) return expect(refusal).toBeUndefined();
    expect(refusal?.message).toContain(says);
    expect(refusal?.never).toBe(never);
    expect(refusal?.fitsAt?.toISOString()).toBe(fitsAt);
    expect(refusal!.message.length).toBeLessThan(1000);
  });

  it('meets the budgets of its namespace only, and those under which it was opened', () => {
    const ml = budget({ namespaceSelector: { matchLabels: { team: 'ml' } } }, undefined, 'ml');
    const names = (labels: Record<string, string>, own?: LeaseRecord) =>
      viewBudgets('own', labels, [budget(), ml], new Map(own ? [['own', own]] : []), () => ({}), at(0)).map(
        (one) => one.name,
      );
    expect(names({ team: 'web' })).toEqual(['team']);
    expect(names({ team: 'ml' })).toEqual(['ml', 'team']);
    expect(names({ team: 'web' }, open(0, '1', { budgets: ['ml-uid'] }))).toEqual(['ml', 'team']);
  });

  it('says the same while another lease is served, second after second', () => {
    const said = new Set<string>();
    for (let second = 100; second < 4000; second += 17) {
      const [seen] = views([limits({ Day: '1' })], second + 13, open(second, '720000'));
      said.add(budgetRefusal([seen!], wanted(), at(second + 13))!.message);
    }
    expect([...said]).toHaveLength(1);
  });
});

describe('the room for a top-up', () => {
  /** 100 base units a second, 0.36 deposited, 3,000 s of it used. */
  const own = wanted({ deposit: 360_000n, signedSeconds: 3000, signedUntilMs: at(3000).getTime() });
  const room = (of: GpuBudget, now: number, ...records: readonly LeaseRecord[]) =>
    budgetRoom(
      viewBudgets(
        'own',
        {},
        [of],
        new Map([['own', open(3000, '360000')], ...records.map((one, i) => [`uid-${i}`, one] as const)]),
        () => ({}),
        at(now),
      ),
      own,
      660_000n,
      at(now),
    );
  it.each([
    ['is all that is wanted where nothing is near', limits({ Day: '10' }), 3000, [], 660_000n],
    ['is what the day has left', limits({ Day: '0.5' }), 3000, [], 140_000n],
    ['is what other leases have left of the day', limits({ Day: '1' }), 3000, [open(0, '360000')], 280_000n],
    ['is nothing where they have taken it all', limits({ Day: '0.7' }), 3000, [open(0, '360000')], 0n],
    // 600 s are left of the hour, and cost 0.06; a whole one costs 0.36.
    ['is all of it where the hour could not spend more', limits({ Hour: '0.36' }), 3000, [], 660_000n],
    ['is what the next hour has left', limits({ Hour: '0.43' }), 3000, [open(0, '100000')], 270_000n],
    [
      'is all of it under a budget that only alerts',
      limits({ Day: '0.1' }, { onExceeded: 'Alert' }),
      3000,
      [],
      660_000n,
    ],
    ['is nothing where too much is spent already', limits({ Day: '0.1' }), 3000, [], 0n],
    // Half a base unit is none.
    ['is rounded down', budget({ limits: [{ window: 'Day', amount: '0.361' }] }), 3000, [], 1000n],
  ] as const)('%s', (_, of, now, records, units) => {
    expect(room(of, now, ...records).room).toBe(units);
  });

  it('names what holds it down', () => {
    expect(room(limits({ Day: '0.5' }), 3000).why).toBe(
      'GpuBudget team allows 0.5 USDC a day, and it is spent or committed; the next one begins at 2026-01-02T00:00:00Z',
    );
    expect(room(limits({ Day: '10' }), 3000).why).toBeUndefined();
  });
});

describe('a budget that drains', () => {
  const drains = (change: Partial<BudgetSpec> = {}) => limits({ Day: '1' }, { onExceeded: 'Drain', ...change });
  /** Reported at that time, with its leases. */
  const seen = (of: GpuBudget, now: number, own: LeaseRecord, ...others: readonly LeaseRecord[]) => {
    const records = new Map([['own', own], ...others.map((one, i) => [`uid-${i}`, one] as const)]);
    const { status } = reportBudget(of, records, () => ({}), at(now));
    const found = viewBudgets('own', {}, [{ ...of, status }], records, () => ({}), at(now));
    return exceededFor(found, wanted({ gpus: own.quote!.signed.quote.gpus }));
  };
  const asked = (seconds: number, gpus = 1) =>
    open(0, '1', { quote: quoteRecord({ gpus }, { askedAt: instant(seconds) }) });
  const gpus = (max: number) => budget({ limits: [], maxConcurrentGpus: max, onExceeded: 'Drain', graceSeconds: 60 });

  it('drains its leases when its grace is over', () => {
    expect(seen(drains(), 10_100, open(10_100, '2000000'))).toEqual({
      name: 'team',
      message: 'GpuBudget team: 1 USDC a day are spent.',
      drainAt: at(10_700),
    });
  });
  it.each([
    ['not while it holds', drains(), open(5000, '2000000'), []],
    ['not where it only denies', limits({ Day: '1' }), open(10_100, '2000000'), []],
    ['not the oldest lease, where too many GPUs are leased', gpus(1), asked(0), [asked(5)]],
  ] as const)('%s', (_, of, own, others) => {
    expect(seen(of, 10_100, own, ...others)).toBeUndefined();
  });
  it('drains the newest lease, where too many GPUs are leased', () => {
    expect(seen(gpus(1), 100, asked(5), asked(0))).toMatchObject({ drainAt: at(160) });
    expect(seen(gpus(3), 100, asked(5, 2), asked(0, 2))?.message).toBe(
      'GpuBudget team allows 3 GPUs at a time, and older leases come first.',
    );
  });
});
