/** Statements and FOCUS rows: what is added up, what is left out, and how it is written. */
import { beforeAll, describe, expect, test } from 'vitest';
import type { Receipt } from '../../../../operator/api/receipt.ts';
import {
  exampleClusterUid as clusterUid,
  type ExampleLease,
  exampleLeases,
  exampleReceipt,
} from '../../../../operator/cmd/example-papers.ts';
import { csvOf } from '../../../../operator/core/receipt/csv.ts';
import {
  focusColumns,
  focusCsv,
  focusRows,
  focusSchema,
  ratesMissing,
} from '../../../../operator/core/receipt/focus.ts';
import { monthOf, periodOf } from '../../../../operator/core/receipt/period.ts';
import { quotedVsBilled } from '../../../../operator/core/receipt/ratio.ts';
import { statementCsv, statementMarkdown, statementOf } from '../../../../operator/core/receipt/statement.ts';

const [train, native, second] = exampleLeases as [ExampleLease, ExampleLease, ExampleLease];
const receiptOf = async (lease: ExampleLease) => (await exampleReceipt(lease)).receipt;
let receipts: Receipt[];
let unserved: Receipt;
beforeAll(async () => {
  receipts = await Promise.all(exampleLeases.map(receiptOf));
  unserved = await receiptOf({ ...train, name: 'unserved', servedSeconds: 0 });
});

const november = { clusterUid, namespace: 'ml', month: '2026-11' };

describe('a statement', () => {
  test('has a line for each escrow, oldest first, and a sum for each token', () => {
    const { lines, totals, id } = statementOf([...receipts].reverse(), november);
    expect(lines.map(({ lease }) => lease)).toEqual(['train', 'native', 'second']);
    expect(totals).toMatchObject([
      { asset: 'GPU', leases: 1, billed: '0.027866666666666666' },
      { asset: 'USDC', leases: 2, gpuSeconds: 39, billed: '0.003682', paid: '0.003609', fee: '0.000073' },
    ]);
    expect(id).toBe(`${clusterUid}/ml/2026-11`);
  });

  test('is the same in whatever order the receipts come', () => {
    expect(statementOf([...receipts].reverse(), november)).toEqual(statementOf(receipts, november));
  });

  test('adds up two tokens of one symbol apart', async () => {
    const other = structuredClone(receipts[0]!);
    other.quote.quote.token = other.quote.quote.payee;
    expect(statementOf([...receipts, other], november).totals.filter(({ asset }) => asset === 'USDC')).toHaveLength(2);
  });

  test.each([
    ['another namespace', { ...november, namespace: 'research' }],
    ['another month', { ...november, month: '2026-10' }],
    ['another cluster', { ...november, clusterUid: 'other' }],
  ])('leaves out %s', (_, of) => {
    expect(statementOf(receipts, of)).toMatchObject({ lines: [], totals: [] });
    expect(statementMarkdown(statementOf(receipts, of))).toContain('Nothing was leased.');
  });

  test('takes a lease whole into the month in which its billing stopped', async () => {
    const midnight = Date.UTC(2026, 11, 1) / 1000;
    const over = await receiptOf({ ...train, name: 'over', openedAt: midnight - 20 });
    expect(statementOf([over], november).lines).toEqual([]);
    expect(statementOf([over], { ...november, month: '2026-12' }).lines).toHaveLength(1);
  });

  test('names an attempt that failed, and one without the provider’s signature', async () => {
    const vanished = await receiptOf({ ...train, name: 'vanished', vanishes: true });
    const page = statementMarkdown(statementOf([{ ...vanished, lease: { ...vanished.lease, attempt: 2 } }], november));
    expect(page).toContain('vanished, attempt 2');
    expect(page).toContain("NodeLost, without the provider's release");
  });

  test('as CSV has a row for each line', () => {
    const rows = statementCsv(statementOf(receipts, november)).trimEnd().split('\r\n');
    expect(rows).toHaveLength(4);
    expect(rows[1]).toContain('train,1,sandbox,sandbox-rtx4090,RTX4090,1,2026-11-26T09:00:03Z');
  });
});

/** FOCUS 1.2: feature level Mandatory, and not null where its column says so. */
const mandatory = {
  notNull: [
    ...['BilledCost', 'BillingAccountId', 'BillingCurrency', 'BillingPeriodEnd', 'BillingPeriodStart'],
    ...['ChargeCategory', 'ChargePeriodEnd', 'ChargePeriodStart', 'ContractedCost', 'EffectiveCost'],
    ...['InvoiceIssuerName', 'ListCost', 'ProviderName', 'PublisherName', 'ServiceCategory', 'ServiceName'],
    ...['PricingQuantity', 'PricingUnit', 'ServiceSubcategory', 'ChargeFrequency', 'PricingCurrency', 'SkuId'],
  ],
  nullable: ['BillingAccountName', 'ChargeClass', 'ChargeDescription'],
} as const;

describe('FOCUS', () => {
  const options = { currency: 'USD', rates: new Map([...[['USDC', '1'] as const], ['GPU', '1.02'] as const]) };

  test('has the mandatory columns, its own first and in order, ours behind them with x_', () => {
    const names = Object.keys(focusColumns);
    for (const name of [...mandatory.notNull, ...mandatory.nullable]) expect(names).toContain(name);
    const own = names.filter((name) => !name.startsWith('x_'));
    expect(own).toEqual([...own].sort());
    expect(names.slice(own.length).every((name) => name.startsWith('x_'))).toBe(true);
    for (const name of own) expect(name).toMatch(/^[A-Z][A-Za-z]{1,49}$/);
  });

  test('has nothing empty where FOCUS wants a value, and no empty text anywhere', () => {
    for (const row of focusRows(receipts, options)) {
      for (const name of mandatory.notNull) expect(row[name], name).not.toBeNull();
      for (const [name, cell] of Object.entries(row)) expect(cell, name).not.toBe('');
      for (const name of ['BillingPeriodEnd', 'BillingPeriodStart', 'ChargePeriodEnd', 'ChargePeriodStart'] as const)
        expect(row[name]).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
      expect(Object.values(JSON.parse(row.Tags!)).every((tag) => typeof tag !== 'object')).toBe(true);
    }
  });

  test('writes the token as pricing currency, exact, and money at the rate that was given', () => {
    const [usdc, gpu] = focusRows(receipts, options);
    expect(usdc).toMatchObject({
      BillingCurrency: 'USD',
      PricingCurrency: 'USDC',
      BilledCost: '0.002927',
      PricingCurrencyEffectiveCost: '0.002927',
      ContractedUnitPrice: '0.34',
      BillingPeriodStart: '2026-11-01T00:00:00Z',
      BillingPeriodEnd: '2026-12-01T00:00:00Z',
    });
    expect(gpu).toMatchObject({
      PricingCurrency: 'GPU',
      PricingCurrencyEffectiveCost: '0.027866666666666666',
      BilledCost: '0.02842399999999999932',
    });
  });

  test('says which rates are missing, and only those of tokens that something was billed in', () => {
    expect(ratesMissing(receipts, { currency: 'USD', rates: new Map([['USDC', '1']]) })).toEqual(['GPU']);
    expect(ratesMissing([unserved], { currency: 'USD', rates: new Map() })).toEqual([]);
  });

  test('has no row for a lease that cost nothing', () => {
    expect(focusRows([unserved], options)).toEqual([]);
  });

  test('prices what was paid where the deposit did not reach, and tells what was consumed', async () => {
    const short = await receiptOf({ ...second, name: 'short', servedSeconds: 200, deposit: 6_000n });
    const [row] = focusRows([short], options);
    expect(row).toMatchObject({ BilledCost: '0.006', ConsumedQuantity: '0.055555555555555556' });
    expect(row!.PricingQuantity).toBe('0.017647058823529412');
  });

  test('calls spot capacity dynamic, and never begins a period after its end', async () => {
    const spot = await receiptOf({ ...train, name: 'spot', spot: true });
    spot.startedAt = '2030-01-01T00:00:00.000Z';
    const [row] = focusRows([spot], options);
    expect(row!.PricingCategory).toBe('Dynamic');
    expect(row!.ChargePeriodStart).toBe(row!.ChargePeriodEnd);
  });

  test('has a schema that names its columns and version', () => {
    expect(focusSchema()).toMatchObject({ FocusVersion: '1.2', ColumnDefinition: expect.any(Array) });
    expect(focusCsv(focusRows(receipts, options)).split('\r\n')[0]).toBe(Object.keys(focusColumns).join(','));
  });
});

describe('CSV', () => {
  test.each([
    ['a comma', 'a,b', '"a,b"'],
    ['a quote', 'a"b', '"a""b"'],
    ['a new line', 'a\nb', '"a\nb"'],
    ['nothing', null, ''],
    ['zero', 0, '0'],
    ['a formula', '=HYPERLINK("x")', '"\'=HYPERLINK(""x"")"'],
    ['a formula in disguise', '@SUM(A1)', "'@SUM(A1)"],
    ['a number below zero', -1, '-1'],
  ])('writes %s', (_, cell, text) => {
    expect(csvOf(['a', 'b'], [{ a: cell, b: 'x' }])).toBe(`a,b\r\n${text},x\r\n`);
  });
});

describe('months', () => {
  test.each(['2026-13', '2026-1', '26-01', 'May', '2026-00', ''])('%j is none', (text) => {
    expect(periodOf(text)).toBeUndefined();
  });
  test('are counted in UTC, and the year turns', () => {
    expect(monthOf(Date.UTC(2026, 11, 31, 23, 59, 59) / 1000)).toBe('2026-12');
    expect(periodOf('2026-12')?.end.toISOString()).toBe('2027-01-01T00:00:00.000Z');
  });
});

describe('billed over quoted', () => {
  test('is one for what the quote says, and less where the deposit did not reach', async () => {
    expect(quotedVsBilled(receipts[0]!)).toBe(1);
    const short = await receiptOf({ ...native, name: 'half', servedSeconds: 1000, deposit: 44_000_000_000_000_000n });
    expect(quotedVsBilled(short)).toBeCloseTo(0.06, 6);
    expect(quotedVsBilled(unserved)).toBeUndefined();
  });
  test.each([
    ['one base unit too much', '27866666666666667', 1.000001],
    ['twice as much', '55733333333333332', 2],
  ])('is above one for %s', (_, claimed, ratio) => {
    const wrong = structuredClone(receipts[1]!);
    wrong.settlement.claimed = claimed;
    expect(quotedVsBilled(wrong)).toBe(ratio);
  });
});
