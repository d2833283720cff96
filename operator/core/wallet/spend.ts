/**
 * What the wallet has put into escrows within a day, in hours of the clock. Counted when a transaction is stored, and not taken
 * back when it has no effect or is refunded: a limit on what can go wrong, not a budget.
 */

/** Base units of a token, or transactions. */
export interface Spent {
  /** Hours since 1970. */
  readonly hour: number;
  /** Address of the token in small letters; `transactions` for their number. */
  readonly what: string;
  readonly amount: string;
}

export const transactions = 'transactions';
const hoursOfDay = 24;
const hourOf = (nowSeconds: number) => Math.floor(nowSeconds / 3600);
const counts = ({ hour }: Spent, nowSeconds: number) => hour >= hourOf(nowSeconds) - hoursOfDay;

/** In the hour that runs and the 24 before it. */
export function spentInDay(spent: readonly Spent[], what: string, nowSeconds: number): bigint {
  return spent
    .filter((one) => one.what === what && counts(one, nowSeconds))
    .reduce((sum, { amount }) => sum + BigInt(amount), 0n);
}

/** With these added, and without what no longer counts. A clock that was set back forgets nothing. */
export function withSpent(
  spent: readonly Spent[],
  more: readonly { readonly what: string; readonly amount: bigint }[],
  nowSeconds: number,
): readonly Spent[] {
  const hour = hourOf(nowSeconds);
  const kept = spent.filter((one) => counts(one, nowSeconds));
  return more.reduce((all, { what, amount }) => {
    const same = (one: Spent) => one.hour === hour && one.what === what;
    const before = all.find(same);
    return [...all.filter((one) => !same(one)), { hour, what, amount: String(BigInt(before?.amount ?? 0) + amount) }];
  }, kept);
}
