/** The sponsor's file of customers: what is wrong in it is said with its place. */
import { describe, expect, it } from 'vitest';
import { readCustomers, runSponsor } from '../../../operator/cmd/run-sponsor.ts';

const customer = {
  name: 'acme',
  consumer: `0x${'c'.repeat(40)}`,
  creditLimit: '500',
  currency: 'USD',
  rate: '1',
  billTo: ['Acme'],
};
const file = (change: object = {}, first: object = {}) => ({
  issuer: { lines: ['Sponsor'] },
  token: { symbol: 'USDC', decimals: 6 },
  customers: [{ ...customer, ...first }],
  ...change,
});
const read = (value: unknown) =>
  readCustomers('customers.json', typeof value === 'string' ? value : JSON.stringify(value));

describe('a file of customers', () => {
  it('has defaults for margin and days', () => {
    const { issuer, customers } = read(file());
    expect([issuer.dueDays, customers[0]!.marginBps]).toEqual([14, 0]);
  });

  it.each<[string, unknown, string]>([
    ['is not JSON', '{', 'customers.json is not JSON'],
    ['has no customers', file({ customers: [] }), 'customers:'],
    ['names no account', file({}, { consumer: '0x12' }), 'customers.0.consumer'],
    ['has a limit that is no amount', file({}, { creditLimit: '5e3' }), 'customers.0.creditLimit'],
    ['has a limit below a cent', file({}, { creditLimit: '0.001' }), 'customers.0.creditLimit'],
    ['has a token that is worth nothing', file({}, { rate: '0.001' }), 'less than a cent'],
    ['has a name that no invoice can bear', file({}, { name: 'Acme Labs' }), 'customers.0.name'],
    ['has a field that nobody knows', file({}, { discount: 1 }), 'customers.0'],
    [
      'has two customers of one name',
      file({ customers: [customer, { ...customer, consumer: `0x${'d'.repeat(40)}` }] }),
      'name acme is there twice',
    ],
    [
      'has one account twice, in other letters',
      file({ customers: [customer, { ...customer, name: 'other', consumer: `0x${'C'.repeat(40)}` }] }),
      'is there twice',
    ],
  ])('that %s is refused', (_, value, says) => {
    expect(() => read(value)).toThrow(says);
  });
});

describe('the sponsor', () => {
  it.each<[string, string[], string]>([
    ['without customers', [], '--customers is missing'],
    ['with a file that is not there', ['--customers', '/nowhere.json'], 'cannot be read (ENOENT)'],
  ])('%s does not start', async (_, args, says) => {
    await expect(runSponsor(args, {}, () => undefined)).rejects.toThrow(says);
  });
});
