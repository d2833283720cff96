/** Keeping the deposit topped up, and what stands in the way. */
import { budgetRoom } from '../budget/room.ts';
import { spenderOf } from '../budget/spender.ts';
import { parseAmount } from '../money/amount.ts';
import { sizeTopUp } from '../money/deposit.ts';
import { amountToApprove } from '../money/funding.ts';
import type { Action } from './actions.ts';
import { heldIn } from './exposure.ts';
import { railOf, spendLimit } from './fund.ts';
import { intents, type Observed } from './observed.ts';

export interface Shortage {
  readonly reason: 'InsufficientFunds' | 'LimitReached' | 'BudgetExceeded';
  /** What stands in the way, and what would take it away. Without amounts or times that change with each second. */
  readonly message: string;
}

export interface TopUp {
  /** Base units; zero: none is due, or one is on its way. */
  readonly amount: bigint;
  /** One is due, and nothing can be added. */
  readonly short?: Shortage;
}

/** What to add now, and why no more. */
export function topUpOf(seen: Observed, served: number): TopUp {
  const { chain, record, settings, now } = seen;
  const quote = record?.quote;
  if (!quote || chain?.state !== 'known' || !chain.escrow) return { amount: 0n };
  const { escrow, wallet } = chain;
  const wanted = sizeTopUp(
    escrow,
    {
      spendLimit: spendLimit(seen, quote),
      depositSeconds: settings.depositSeconds,
      lowWaterSeconds: settings.lowWaterSeconds,
    },
    served,
  );
  if (wanted === 0n) return { amount: 0n };
  // One at a time: what is wanted grows with each second, so a second one would have another name, and both would be mined.
  const decided = BigInt(record.deposit ?? 0);
  const pending = decided > escrow.deposit ? chain.txs[intents.topUp(quote.leaseId, decided)] : undefined;
  if (pending && pending.state !== 'refused' && pending.state !== 'reverted') return { amount: 0n };

  const rail = railOf(seen.providers, quote);
  const locked = escrow.deposit - escrow.claimed;
  const cap = settings.maxEscrow(quote.assetSymbol, quote.decimals);
  // A top-up that was decided and never mined is decided anew, so it takes no room.
  const budget = budgetRoom(seen.budgets, { ...spenderOf(record)!, deposit: escrow.deposit }, wanted, now);
  const rooms: readonly (Shortage & { readonly room: bigint })[] = [
    {
      room: wallet.gas > 0n ? wallet.balance : 0n,
      reason: 'InsufficientFunds',
      message: `the wallet ${wallet.address} is out of ${wallet.gas > 0n ? quote.assetSymbol : 'gas'}. Send it some.`,
    },
    {
      room: budget.room,
      reason: 'BudgetExceeded',
      message: `${budget.why}. Raise its limit, or end another lease.`,
    },
    {
      room: (rail ? parseAmount(rail.maxEscrow, quote.decimals) : 0n) - seen.held.onRail - locked,
      reason: 'LimitReached',
      message: `GpuProvider ${quote.providerName} has reached its maxEscrow. Raise spec.payment.rails[].maxEscrow, or end another lease.`,
    },
    {
      room: (cap ?? 0n) - heldIn(seen.held, quote) - locked,
      reason: 'LimitReached',
      message: `the operator's --max-escrow of ${quote.assetSymbol} is reached. Raise it, or end another lease.`,
    },
  ];
  const least = rooms.reduce((a, b) => (b.room < a.room ? b : a));
  if (least.room <= 0n) return { amount: 0n, short: { reason: least.reason, message: least.message } };
  return { amount: least.room < wanted ? least.room : wanted };
}

export function topUpActions(seen: Observed, { amount }: TopUp): Action[] {
  const { chain, record } = seen;
  if (amount === 0n || chain?.state !== 'known' || !chain.escrow) return [];
  const quote = record!.quote!;
  // The contract takes no signature for a top-up: it is not urgent, and one approval serves all that follow.
  if (chain.wallet.allowance < amount)
    return [{ do: 'approveToken', quote, amount: amountToApprove(seen.settings.allowance, amount) }];
  return [{ do: 'topUp', quote, amount, total: chain.escrow.deposit + amount }];
}
