/** Quoted: a provider has signed what the lease will cost. */
import type { GpuLease } from '../../api/lease.ts';
import { type BudgetRefusal, budgetRefusal } from '../budget/room.ts';
import type { Spender } from '../budget/spender.ts';
import { parseAmount } from '../money/amount.ts';
import { type Candidate, firstDeposit, matchOffers } from '../offer/match.ts';
import { standsInTheWay } from '../offer/rank.ts';
import { aboveCap, lockable, overBudget, railOf } from './fund.ts';
import type { Observed, QuoteRecord } from './observed.ts';
import type { Decision, Step } from './plan.ts';
import { assetsOf } from './pricing.ts';

/** How many gateways are asked in one round. */
const asked = 3;

export const quote: Step = { condition: 'Quoted', decide };

function decide(seen: Observed): Decision {
  const { lease, record, now } = seen;
  const stored = record?.quote;
  if (stored) {
    // Once a deposit was decided, only the chain may say that the quote is void: `fund` looks there.
    const open = record.deposit !== undefined || Number(stored.signed.quote.expiresAt) * 1000 > now.getTime() + 5000;
    const cheaper = open ? cheaperOffers(seen) : [];
    if (cheaper.length > 0)
      return {
        status: 'Unknown',
        reason: 'Quoting',
        message: isSilent(seen, stored)
          ? `Chain ${stored.signed.chainId} does not answer: asking ${namesOf(cheaper)} for a quote on another.`
          : isFull(seen, stored)
            ? `Other leases have filled maxEscrow of ${stored.providerName} on chain ${stored.signed.chainId}: asking ${namesOf(cheaper)} for a quote.`
            : `The price has fallen since ${stored.providerName} quoted: asking ${namesOf(cheaper)} anew.`,
        actions: [{ do: 'requestQuote', candidates: cheaper, selection: lease.status?.selection ?? nothing }],
        requeueAfterSeconds: 0,
      };
    if (open)
      return {
        status: 'True',
        reason: 'QuoteReady',
        message: `Quoted by ${stored.providerName} for ${stored.offerName}.`,
      };
    if (lease.spec.approvedQuoteHash?.toLowerCase() === stored.hash.toLowerCase())
      return {
        status: 'False',
        reason: 'InvalidSpec',
        message: `The approved quote ${stored.hash} ran out before it was used. Create another lease.`,
        stalled: true,
      };
  }
  if (lease.spec.suspend)
    return {
      status: 'False',
      reason: 'Suspended',
      message: 'spec.suspend is true: nothing is quoted and no money is moved.',
      stalled: true,
    };
  if (lease.spec.approvedQuoteHash && !stored)
    return {
      status: 'False',
      reason: 'InvalidSpec',
      message: 'spec.approvedQuoteHash names no quote of this lease. Create another lease.',
      stalled: true,
    };

  // What no offer could change is said first: the wrong token, too many GPUs, a budget that is used up.
  const hopes = assetsOf(lease).map(({ assetSymbol }) =>
    budgetRefusal(seen.budgets, leastWish(lease, assetSymbol), now),
  );
  const hopeless = hopes.every((one) => one !== undefined) ? hopes[0] : undefined;
  if (hopeless) return overBudget(hopeless, now);
  const match = matchOffers({ ...seen, avoid: record?.avoid ?? [] });
  if (match.blocked) return { status: 'Unknown', ...match.blocked, requeueAfterSeconds: 30 };
  // No quote is asked for that could not be used: where the cheapest does not fit, one in another token may.
  const overs = new Map<string, BudgetRefusal | undefined>();
  for (const candidate of match.candidates) {
    const { assetSymbol } = candidate.rail;
    if (!overs.has(assetSymbol)) overs.set(assetSymbol, budgetRefusal(seen.budgets, wish(seen, candidate), now));
  }
  const beyond = (one: Candidate) => aboveCap(seen, one.rail, wish(seen, one).deposit);
  const candidates = match.candidates
    .filter((one) => overs.get(one.rail.assetSymbol) === undefined && beyond(one) === undefined)
    .slice(0, asked);
  if (candidates.length === 0) {
    const [first] = match.candidates;
    const over = overs.get(first!.rail.assetSymbol);
    if (over) return overBudget(over, now);
    return { status: 'Unknown', reason: 'LimitReached', message: beyond(first!)!, requeueAfterSeconds: 30 };
  }
  const refused = seen.refusals.map((r) => `${r.providerName}: ${r.message}`).join(' · ');
  const reason = seen.refusals.find(
    (r) => r.reason === 'CapacityExhausted' || r.reason === 'IdentityMismatch' || r.reason === 'ProviderUnreachable',
  );
  return {
    status: 'Unknown',
    reason: (reason?.reason as string | undefined) ?? 'Quoting',
    message: (refused ? `No quote was good: ${refused}` : `Asking ${namesOf(candidates)} for a quote.`).slice(0, 1800),
    actions: [{ do: 'requestQuote', candidates, selection: match.selection }],
    requeueAfterSeconds: refused ? 10 : 0,
  };
}

const nothing = { considered: 0, eligible: 0, rejected: [] };

/**
 * Offers that are cheaper by now than a quote for which nothing was decided yet. Not with manual approval: what a person is
 * asked to approve stays as it is until it expires. And not after a round that brought nothing: the quote is still good.
 */
function cheaperOffers(seen: Observed): readonly Candidate[] {
  const { lease, record, refusals } = seen;
  const stored = record!.quote!;
  if (record!.deposit !== undefined || lease.spec.suspend || lease.spec.approval === 'Manual' || refusals.length > 0)
    return [];
  const { candidates } = matchOffers({ ...seen, avoid: record!.avoid });
  // Nothing was decided on a chain that is away, or where others took the room since: another rail is as good, if it answers.
  if (isSilent(seen, stored) || isFull(seen, stored)) {
    const here = onRailOf(stored);
    const elsewhere = candidates.filter((one) => standsInTheWay(one, lease) === undefined && !here(one));
    if (elsewhere.length > 0) return elsewhere.slice(0, asked);
  }
  const price = BigInt(stored.signed.quote.pricePerGpuHour);
  return candidates
    .filter(
      ({ rail, pricePerGpuHour }) =>
        rail.assetSymbol === stored.assetSymbol && rail.decimals === stored.decimals && pricePerGpuHour < price,
    )
    .slice(0, asked);
}

/** Once each: a provider may be asked on several rails. */
const namesOf = (candidates: readonly Candidate[]) =>
  [...new Set(candidates.map((one) => one.provider.metadata.name))].join(', ');

const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();

/** Whether it would be paid with the same provider, on the same rail. */
const onRailOf =
  ({ providerName, signed }: QuoteRecord) =>
  ({ provider, rail }: Candidate): boolean =>
    provider.metadata.name === providerName &&
    rail.chainId === signed.chainId &&
    same(rail.escrow, signed.escrow) &&
    same(rail.token, signed.quote.token);

/** Whether maxEscrow has no room any more for what the quote is opened with. */
function isFull(seen: Observed, stored: QuoteRecord): boolean {
  const rail = railOf(seen.providers, stored);
  return rail !== undefined && seen.held.onRail + lockable(seen, stored) > parseAmount(rail.maxEscrow, stored.decimals);
}

function isSilent({ providers }: Pick<Observed, 'providers'>, { providerName, signed }: QuoteRecord): boolean {
  const rail = providers
    .get(providerName)
    ?.rails.find(
      (one) => one.chainId === signed.chainId && same(one.escrow, signed.escrow) && same(one.token, signed.quote.token),
    );
  return rail?.silent === true;
}

const leastWish = ({ spec }: GpuLease, assetSymbol: string): Spender => ({
  assetSymbol,
  decimals: 6,
  gpus: spec.gpu.count,
  pricePerGpuHour: 0n,
  deposit: 0n,
  signedSeconds: 0,
});

/** What the lease would deposit first at an offer's price. */
const wish = ({ lease, settings }: Observed, { offer, rail, pricePerGpuHour }: Candidate): Spender => ({
  assetSymbol: rail.assetSymbol,
  decimals: rail.decimals,
  gpus: lease.spec.gpu.count,
  pricePerGpuHour,
  deposit: firstDeposit(lease, offer, rail, pricePerGpuHour, settings.depositSeconds) ?? 0n,
  signedSeconds: 0,
});
