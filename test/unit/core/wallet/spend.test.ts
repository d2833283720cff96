import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Spent, spentInDay, withSpent } from '../../../../operator/core/wallet/spend.ts';

const hour = 3600;
const day = 24 * hour;
const start = 1_000_000 * hour;

test('counts what was spent in the last day, and forgets what is older', () => {
  let spent: readonly Spent[] = [];
  spent = withSpent(spent, [{ what: 'usdc', amount: 5n }], start);
  spent = withSpent(spent, [{ what: 'usdc', amount: 6n }], start + 10 * hour);
  expect(spentInDay(spent, 'usdc', start + 10 * hour)).toBe(11n);
  expect(spentInDay(spent, 'usdc', start + day)).toBe(11n);
  expect(spentInDay(spent, 'usdc', start + day + hour)).toBe(6n);
  expect(spentInDay(spent, 'gpu', start + day)).toBe(0n);
});

test('whatever is spent when: no 24 hours count for less than was spent in them, and the list stays short', () => {
  const events = fc.array(
    fc.record({ after: fc.integer({ min: 0, max: 5 * hour }), amount: fc.bigInt(1n, 10n ** 20n) }),
    {
      maxLength: 60,
    },
  );
  fc.assert(
    fc.property(events, (all) => {
      let spent: readonly Spent[] = [];
      let now = start;
      const told: { at: number; amount: bigint }[] = [];
      for (const { after, amount } of all) {
        now += after;
        spent = withSpent(spent, [{ what: 'usdc', amount }], now);
        told.push({ at: now, amount });
        const inWindow = told.filter((one) => one.at > now - day).reduce((sum, one) => sum + one.amount, 0n);
        const inLonger = told.filter((one) => one.at > now - day - hour).reduce((sum, one) => sum + one.amount, 0n);
        const counted = spentInDay(spent, 'usdc', now);
        expect(counted >= inWindow).toBe(true);
        expect(counted <= inLonger).toBe(true);
        expect(spent.length).toBeLessThanOrEqual(25);
      }
    }),
  );
});
