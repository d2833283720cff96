/** Funded: the escrow of this attempt is open on chain, and is the one that was quoted. */
import { type BudgetRefusal, budgetRefusal } from '../budget/room.ts';
import type { Spender } from '../budget/spender.ts';
import { formatAmount, parseAmount } from '../money/amount.ts';
import { sizeDeposit } from '../money/deposit.ts';
import { mayStartAnotherAttempt } from '../money/escrow.ts';
import { amountToApprove, waysToFund } from '../money/funding.ts';
import { priceOf } from '../money/price.ts';
import { heldBack, limitReached, type ProviderFact } from '../offer/match.ts';
import type { Action } from './actions.ts';
import { heldIn } from './exposure.ts';
import { intents, type Observed, type QuoteRecord } from './observed.ts';
import { soonSeconds, untilSeconds } from './pace.ts';
import type { Decision, Step } from './plan.ts';
import { limitsIn } from './pricing.ts';

export const fund: Step = { condition: 'Funded', decide };

/** Most that the lease may spend, base units: what its author wrote, or the price of the whole term. */
export function spendLimit(seen: Pick<Observed, 'lease'>, quote: QuoteRecord): bigint {
  const terms = quote.signed.quote;
  const whole = priceOf(terms.maxSeconds, terms.gpus, BigInt(terms.pricePerGpuHour));
  const written = limitsIn(seen.lease, quote.assetSymbol)?.spendLimit;
  if (written === undefined) return whole;
  const limit = parseAmount(written, quote.decimals);
  return limit < whole ? limit : whole;
}

/** Most that is locked at a time for what was not served yet. */
export function lockable(seen: Pick<Observed, 'lease' | 'settings'>, quote: QuoteRecord): bigint {
  const { gpus, pricePerGpuHour, minSeconds, maxSeconds } = quote.signed.quote;
  const limit = spendLimit(seen, quote);
  const terms = { gpus, pricePerGpuHour: BigInt(pricePerGpuHour), minSeconds, maxSeconds };
  const size = sizeDeposit(terms, { spendLimit: limit, depositSeconds: seen.settings.depositSeconds });
  return size.ok ? size.deposit : limit;
}

/** What it would commit by opening. */
function opening(seen: Observed, quote: QuoteRecord): Spender {
  const { gpus, pricePerGpuHour } = quote.signed.quote;
  const { assetSymbol, decimals } = quote;
  const deposit = lockable(seen, quote);
  return { assetSymbol, decimals, gpus, pricePerGpuHour: BigInt(pricePerGpuHour), deposit, signedSeconds: 0 };
}

/** A person must act only where no waiting helps. */
export const overBudget = ({ message, never, fitsAt }: BudgetRefusal, now: Date): Decision => ({
  status: 'False',
  reason: 'BudgetExceeded',
  message,
  stalled: never,
  requeueAfterSeconds: untilSeconds(now, fitsAt, 30),
});

/** The rail of its provider that a quote is paid on; undefined when the provider, or the rail in it, was taken away. */
export function railOf(providers: ReadonlyMap<string, ProviderFact>, { providerName, signed }: QuoteRecord) {
  const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();
  return providers
    .get(providerName)
    ?.provider.spec.payment.rails.find(
      (rail) =>
        rail.chainId === signed.chainId && same(rail.escrow, signed.escrow) && same(rail.token, signed.quote.token),
    );
}

/** Why the operator may lock no more in an asset, if so: with all providers together. */
export function aboveCap(
  { settings, held }: Pick<Observed, 'settings' | 'held'>,
  asset: { readonly assetSymbol: string; readonly decimals: number },
  deposit: bigint,
): string | undefined {
  const { assetSymbol, decimals } = asset;
  const cap = settings.maxEscrow(assetSymbol, decimals);
  if (cap === undefined)
    return `The operator has no limit for ${assetSymbol}: start it with --max-escrow ${assetSymbol}=AMOUNT.`;
  const locked = heldIn(held, asset) + deposit;
  if (locked <= cap) return undefined;
  const amount = (units: bigint) => `${formatAmount(units, decimals)} ${assetSymbol}`;
  return `${amount(deposit)} more would lock ${amount(locked)}; the operator's --max-escrow is ${amount(cap)}. Raise it, or end another lease.`;
}

function decide(seen: Observed): Decision {
  const { record, chain, lease, settings } = seen;
  const quote = record!.quote!;
  if (!chain)
    return {
      status: 'Unknown',
      reason: 'ChainUnreachable',
      message: 'The chain was not read yet.',
      requeueAfterSeconds: 1,
    };
  if (chain.state === 'unknown') {
    // What was open stays so until the chain says otherwise: the node is served, and vouchers need no chain.
    if (record!.startedAt !== undefined && chain.reason === 'ChainUnreachable')
      return {
        status: 'True',
        reason: 'EscrowOpen',
        message: 'The chain cannot be read just now; the escrow was open when last seen.',
        requeueAfterSeconds: 10,
      };
    return { status: 'Unknown', reason: chain.reason, message: chain.message, requeueAfterSeconds: 10 };
  }

  const amount = (units: bigint) => `${formatAmount(units, quote.decimals)} ${quote.assetSymbol}`;
  if (chain.escrow) {
    if (chain.escrow.quoteHash.toLowerCase() !== quote.hash.toLowerCase())
      return {
        status: 'False',
        reason: 'TransactionFailed',
        message: `Escrow ${quote.leaseId} was opened with another quote than ours. Delete the lease; its deposit is refunded.`,
        stalled: true,
      };
    return {
      status: 'True',
      reason: 'EscrowOpen',
      message: `${amount(chain.escrow.deposit)} in escrow ${quote.leaseId}.`,
    };
  }

  const terms = quote.signed.quote;
  const key = intents.open(quote.leaseId);
  const open = chain.txs[key];
  if (mayStartAnotherAttempt({ expiresAt: Number(terms.expiresAt) }, chain.safe.escrow, chain.safe.blockTime)) {
    return {
      status: 'Unknown',
      reason: 'BackingOff',
      message: 'The quote ran out before its escrow was open; asking anew.',
      actions: [
        {
          do: 'nextAttempt',
          why: { reason: 'QuoteExpired', message: 'the quote ran out before its escrow was open' },
          avoidSeconds: 0,
        },
      ],
      requeueAfterSeconds: 0,
    };
  }
  if (open?.problem === 'PayerOutOfGas') return outOfGas(chain.wallet.address, quote);
  if (open && open.state !== 'refused') {
    if (open.problem === 'FeeCapReached')
      return {
        status: 'Unknown',
        reason: 'EscrowPending',
        message: `Transaction ${open.hash} is not mined at the highest fee that the operator pays; it is cancelled when its quote has expired.`,
        requeueAfterSeconds: 15,
      };
    const message =
      open.state === 'reverted'
        ? `Transaction ${open.hash} was reverted; a new quote is asked for when this one has expired.`
        : `Opening the escrow: transaction ${open.hash}.`;
    return {
      status: 'Unknown',
      reason: open.state === 'reverted' ? 'TransactionFailed' : 'EscrowPending',
      message,
      requeueAfterSeconds: soonSeconds(seen),
    };
  }
  if (lease.spec.suspend)
    return {
      status: 'False',
      reason: 'Suspended',
      message: 'spec.suspend is true: nothing is quoted and no money is moved.',
      stalled: true,
      requeueAfterSeconds: 15,
    };
  const seller = seen.providers.get(quote.providerName);
  const heldFor = seller && heldBack(seller);
  if (heldFor && record!.deposit === undefined)
    return {
      status: 'Unknown',
      reason: 'ProviderHeld',
      message: `GpuProvider ${quote.providerName} takes no new leases (${heldFor}); other offers are looked at when its quote has expired.`,
      requeueAfterSeconds: 15,
    };
  // Of the limits the widest first: budget, provider, operator; the lease's own is in the deposit, the contract's in the quote.
  const over = record!.deposit === undefined ? budgetRefusal(seen.budgets, opening(seen, quote), seen.now) : undefined;
  if (over) return overBudget(over, seen.now);
  if (lease.spec.approval === 'Manual' && lease.spec.approvedQuoteHash === undefined) {
    const total = priceOf(terms.maxSeconds, terms.gpus, BigInt(terms.pricePerGpuHour));
    const hourly = BigInt(terms.pricePerGpuHour) * BigInt(terms.gpus);
    return {
      status: 'False',
      reason: 'AwaitingApproval',
      message: `${amount(hourly)}/h, ${amount(total)} for ${terms.maxSeconds} s with ${quote.providerName}; ${amount(lockable(seen, quote))} are locked at a time at most. Approve: set spec.approvedQuoteHash to ${quote.hash}.`,
      stalled: true,
      requeueAfterSeconds: 15,
    };
  }
  if (
    lease.spec.approvedQuoteHash !== undefined &&
    lease.spec.approvedQuoteHash.toLowerCase() !== quote.hash.toLowerCase()
  )
    return {
      status: 'False',
      reason: 'InvalidSpec',
      message: `spec.approvedQuoteHash is not the hash of the present quote (${quote.hash}). Create another lease.`,
      stalled: true,
    };

  const size = sizeDeposit(
    {
      gpus: terms.gpus,
      pricePerGpuHour: BigInt(terms.pricePerGpuHour),
      minSeconds: terms.minSeconds,
      maxSeconds: terms.maxSeconds,
    },
    { spendLimit: spendLimit(seen, quote), depositSeconds: settings.depositSeconds },
  );
  if (!size.ok)
    return {
      status: 'False',
      reason: 'InvalidSpec',
      message: `spec.pricing.spendLimit buys less than the provider's shortest lease: at least ${amount(size.needed)} is needed.`,
      stalled: true,
    };
  // The deposit that was stored first counts: a second run must not decide anew.
  const deposit = record!.deposit === undefined ? size.deposit : BigInt(record!.deposit);

  // Matching looked at the limits too, but another lease may have taken the room since.
  const above =
    record!.deposit === undefined && seller
      ? limitReached(seller, {
          gpus: terms.gpus,
          perHour: BigInt(terms.pricePerGpuHour) * BigInt(terms.gpus),
          ...quote,
        })
      : undefined;
  if (above)
    return {
      status: 'False',
      reason: 'LimitReached',
      message: `GpuProvider ${quote.providerName} has reached ${above}. Raise spec.limits, or end another lease.`,
      requeueAfterSeconds: 30,
    };
  const rail = railOf(seen.providers, quote);
  if (!seller)
    return {
      status: 'Unknown',
      reason: 'ProviderUnreachable',
      message: `GpuProvider ${quote.providerName} was deleted; other offers are looked at when its quote has expired.`,
      requeueAfterSeconds: 15,
    };
  if (!rail)
    return {
      status: 'False',
      reason: 'LimitReached',
      message: `GpuProvider ${quote.providerName} no longer lists the rail that was quoted (${quote.assetSymbol} on chain ${quote.signed.chainId}): nothing may be locked there.`,
      requeueAfterSeconds: 30,
    };
  const railLimit = parseAmount(rail.maxEscrow, quote.decimals);
  const { held } = seen;
  if (held.onRail + deposit > railLimit)
    return {
      status: 'False',
      reason: 'LimitReached',
      message: `${amount(deposit)} more would lock ${amount(held.onRail + deposit)} with ${quote.providerName}; its maxEscrow is ${amount(railLimit)}. Raise spec.payment.rails[].maxEscrow, or end another lease.`,
      requeueAfterSeconds: 30,
    };
  const beyond = aboveCap(seen, quote, deposit);
  if (beyond) return { status: 'False', reason: 'LimitReached', message: beyond, requeueAfterSeconds: 30 };
  const { wallet } = chain;
  if (wallet.balance < deposit)
    return {
      status: 'False',
      reason: 'InsufficientFunds',
      message: `The wallet ${wallet.address} has ${amount(wallet.balance)}; the deposit is ${amount(deposit)}. Send it ${amount(deposit - wallet.balance)} more.`,
      stalled: true,
      requeueAfterSeconds: 15,
    };
  const approval = chain.txs[intents.approve(quote.signed.chainId, terms.token)];
  if (wallet.gas === 0n) return outOfGas(wallet.address, quote);
  const [cheapest] = waysToFund({
    amount: deposit,
    allowance: wallet.allowance,
    signatures: wallet.signs,
    policy: settings.allowance,
  });
  // What was refused with a signature in it is tried without: an approval works with every token. What else was wrong shows then.
  const refusedSigned = open?.state === 'refused' && !notOfTheWay.has(open.refused?.name ?? '');
  const underWay = approval?.state === 'stored' || approval?.state === 'broadcast';
  const way = cheapest !== 'Allowance' && (refusedSigned || underWay) ? 'Approve' : cheapest!;
  if (way === 'Approve') {
    const approve: Action = { do: 'approveToken', quote, amount: amountToApprove(settings.allowance, deposit) };
    // What was refused is wished for again now and then, or nobody would see that there is gas.
    if (approval?.problem === 'PayerOutOfGas') return outOfGas(wallet.address, quote);
    if (approval?.refused?.name === 'PayerOutOfGas') return outOfGas(wallet.address, quote, [approve]);
    return {
      status: 'Unknown',
      reason: approval?.state === 'refused' ? 'TransactionFailed' : 'EscrowPending',
      message:
        approval?.state === 'refused'
          ? `${approval.refused!.name}: ${approval.refused!.message}`
          : `Allowing the escrow contract to take ${quote.assetSymbol}.`,
      actions: [approve],
      requeueAfterSeconds: approval?.state === 'refused' ? 15 : 1,
    };
  }
  const wish: Action = { do: 'openEscrow', quote, deposit, way };
  if (open?.state === 'refused') {
    const { terminal, message, name } = open.refused!;
    if (name === 'PayerOutOfGas') return outOfGas(wallet.address, quote, [wish]);
    return {
      status: terminal ? 'False' : 'Unknown',
      reason: 'TransactionFailed',
      message: `${name}: ${message}`,
      stalled: terminal,
      requeueAfterSeconds: 15,
      actions: terminal ? [] : [wish],
    };
  }
  return {
    status: 'Unknown',
    reason: 'EscrowPending',
    message: `Opening the escrow with ${amount(deposit)}.`,
    actions: [wish],
    requeueAfterSeconds: soonSeconds(seen),
  };
}

/** Refusals that would be the same by any way. */
const notOfTheWay: ReadonlySet<string> = new Set(['PayerOutOfGas', 'WalletUnreachable', 'DailyLimit']);

const outOfGas = (wallet: string, quote: QuoteRecord, actions: readonly Action[] = []): Decision => ({
  status: 'False',
  reason: 'InsufficientFunds',
  message: `PayerOutOfGas: the wallet ${wallet} cannot pay for gas on chain ${quote.signed.chainId}. Send it some of the chain's own currency.`,
  stalled: true,
  requeueAfterSeconds: 15,
  actions,
});
