import { describe, expect, it } from 'vitest';
import type { BudgetSpec, GpuBudget } from '../../../../operator/api/budget.ts';
import { reportBudget } from '../../../../operator/core/budget/report.ts';
import type { LeaseRecord } from '../../../../operator/core/lease/observed.ts';
import { at, budget, instant, quoteRecord, record } from '../../../support/builders.ts';

const served = (seconds: number, deposit: string, change: Partial<LeaseRecord> = {}): LeaseRecord =>
  record({
    quote: quoteRecord(),
    deposit,
    meter: { servedMs: seconds * 1000, countedUntil: instant(seconds) },
    signedSeconds: seconds,
    ...change,
  });
const look = (of: GpuBudget, now: number, ...records: readonly LeaseRecord[]) =>
  reportBudget(of, new Map(records.map((one, i) => [`uid-${i}`, one])), () => ({}), at(now));
const told = (of: GpuBudget, now: number, ...records: readonly LeaseRecord[]) =>
  look(of, now, ...records).alerts.map(({ type, reason, message }) => `${type} ${reason}: ${message}`);
/** 1 USDC a day is 10,000 s at 0.36 an hour. */
const small = (change: Partial<BudgetSpec> = {}) => budget({ limits: [{ window: 'Day', amount: '1' }], ...change });

describe('a budget says', () => {
  it('what is spent, and what may be spent of the deposits', () => {
    const { status, conditions } = look(small(), 2000, served(2000, '720000'));
    expect(status.windows?.[1]).toEqual({
      window: 'Day',
      startedAt: '2026-01-01T00:00:00Z',
      resetsAt: '2026-01-02T00:00:00Z',
      spent: '0.2',
      committed: '0.52',
      limit: '1',
    });
    // Of the hour no more than its rest.
    expect(status.windows?.[0]).toMatchObject({ spent: '0.2', committed: '0.16' });
    expect(status).toMatchObject({ usedPercent: 20, gpus: 1, openLeases: 1 });
    expect(conditions.map((one) => `${one.type} ${one.status} ${one.reason}`)).toEqual([
      'Ready True Counting',
      'Exceeded False WithinLimits',
    ]);
  });

  it('nothing of leases whose provider let go', () => {
    const release = { servedSeconds: 2000, signature: '0x' as const, at: instant(2000) };
    expect(look(small(), 2000, served(2000, '720000', { release })).status).toMatchObject({ gpus: 0, openLeases: 0 });
  });

  it('the same when nothing has changed', () => {
    const first = look(small(), 2000, served(2000, '720000'));
    const again = look({ ...small(), status: first.status }, 2000, served(2000, '720000'));
    expect(again.status).toEqual(first.status);
    expect(again.alerts).toEqual([]);
  });
});

describe('people are told', () => {
  it.each([
    ['nothing below the first percentage', 4999, []],
    [
      'of the half',
      5000,
      ['Normal BudgetAlert: 50 % of 1 USDC are spent in the day that ends at 2026-01-02T00:00:00Z.'],
    ],
    ['of the highest only, where several were passed', 8100, [expect.stringMatching(/^Normal BudgetAlert: 80 %/)]],
    [
      'of all of it, and that the budget is exceeded',
      10_001,
      [
        expect.stringMatching(/^Warning BudgetAlert: 100 %/),
        'Warning AmountExceeded: 1.0001 of 1 USDC are spent in this day. No money is added; running leases go on while their deposits pay.',
      ],
    ],
  ] as const)('%s', (_, seconds, alerts) => {
    expect(told(small(), seconds, served(seconds, '2000000'))).toEqual(alerts);
  });

  it('once a window of each percentage, and of the next when it is passed', () => {
    let now = small();
    const said: string[] = [];
    for (const seconds of [5000, 5060, 7000, 8000, 8060, 9000]) {
      const report = look(now, seconds, served(seconds, '2000000'));
      said.push(...report.alerts.map((one) => one.message.slice(0, 4)));
      now = { ...now, status: report.status };
    }
    expect(said).toEqual(['50 %', '80 %']);
    // The next day they are told again.
    const next = look(now, 86_400 + 5000, served(86_400 + 5000, '99000000'));
    expect(next.alerts.map((one) => one.message.slice(0, 4))).toContain('50 %');
  });

  it('nothing where nothing may be spent and nothing is', () => {
    const none = budget({ limits: [{ window: 'Day', amount: '0' }] });
    expect(told(none, 10)).toEqual([]);
    expect(look(none, 10).status).toMatchObject({ usedPercent: 0 });
    expect(look(none, 10, served(10, '36000')).status.usedPercent).toBe(1000);
  });
});

describe('a budget is exceeded', () => {
  it.each([
    ['not while the limit is just reached, and nothing more can be spent', small(), [served(10_000, '1000000')], false],
    ['when the limit is reached, and more would be', small(), [served(10_000, '2000000')], true],
    ['when more was spent', small(), [served(10_001, '2000000')], true],
    [
      'when more GPUs are leased than allowed',
      budget({ limits: [], maxConcurrentGpus: 0 }),
      [served(1, '360000')],
      true,
    ],
    [
      'not by GPUs that nothing was decided for',
      budget({ limits: [], maxConcurrentGpus: 0 }),
      [record({ quote: quoteRecord() })],
      false,
    ],
  ] as const)('%s', (_, of, records, exceeded) => {
    const { status, conditions } = look(of, 10_001, ...records);
    expect(status.exceededSince !== undefined).toBe(exceeded);
    expect(conditions.find((one) => one.type === 'Exceeded')?.status).toBe(exceeded ? 'True' : 'False');
  });

  it('since it first was, and no longer when the limit is raised', () => {
    const first = look(small(), 10_100, served(10_100, '2000000'));
    expect(first.status.exceededSince).toBe('2026-01-01T02:48:20Z');
    const later = look({ ...small(), status: first.status }, 10_200, served(10_200, '2000000'));
    expect(later.status.exceededSince).toBe('2026-01-01T02:48:20Z');
    expect(later.alerts).toEqual([]);
    const raised = { ...budget({ limits: [{ window: 'Day', amount: '5' }] }), status: later.status };
    expect(look(raised, 10_260, served(10_260, '2000000')).status.exceededSince).toBeUndefined();
    expect(told(raised, 10_260, served(10_260, '2000000'))).toEqual([
      'Normal WithinLimits: GpuBudget team holds again.',
    ]);
  });
});

describe('it is looked at again', () => {
  it.each([
    ['soon, while something is open', 1000, [served(1000, '360000')], 20],
    ['when its window ends', 3590, [served(100, '360000')], 10],
    ['rarely, while nothing is', 1000, [], 300],
  ] as const)('%s', (_, now, records, seconds) => {
    expect(look(small(), now, ...records).requeueAfterSeconds).toBe(seconds);
  });
});
