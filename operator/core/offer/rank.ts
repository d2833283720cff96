/**
 * Which of several ways to pay is the cheapest. A way is an offer on one rail: a token on a chain. Prices include the platform
 * fee, so what a way costs is its price, and what the chain takes for opening and topping up.
 *
 * No oracle: what tokens are worth is what the platform team said. Where it said nothing of one of them, ways are compared
 * within a token alone, and the tokens come in the order in which the lease names them.
 */
import type { GpuLease, LeaseStatus } from '../../api/lease.ts';
import type { GpuOffer } from '../../api/offer.ts';
import type { GpuProvider, Rail } from '../../api/provider.ts';
import { whole } from '../lease/amounts.ts';
import { assetsOf } from '../lease/pricing.ts';
import { formatAmount, parseAmount } from '../money/amount.ts';
import { feeOf, priceOf } from '../money/price.ts';

/** A rail that was checked against its chain. What may be unknown for a while is left out then. */
export interface KnownRail extends Rail {
  readonly decimals: number;
  /** That a new escrow in this token would be opened with. */
  readonly feeBps?: number;
  /** The chain did not answer when it was last asked: what is said here is what it said before. */
  readonly silent?: boolean;
  /** Wei for a unit of gas, rounded up to a power of two, so that it does not change at each look. */
  readonly gasPrice?: bigint;
  /** What our wallet has there: base units of the token, and wei. */
  readonly wallet?: { readonly balance: bigint; readonly gas: bigint };
}

export interface Candidate {
  readonly offer: GpuOffer;
  readonly provider: GpuProvider;
  readonly rail: KnownRail;
  /** Base units of the rail's token. */
  readonly pricePerGpuHour: bigint;
  /** Its provider's maxEscrow leaves no room for the first deposit: shown with the others, and not asked. */
  readonly full?: boolean;
}

/** What one whole token, and one whole unit of a chain's own currency, is worth: in millionths of a unit that both share. */
export interface Values {
  readonly token: (assetSymbol: string) => bigint | undefined;
  readonly gas: (chainId: number) => bigint | undefined;
}

/** Of the contract's measured gas: an opening, and a top-up for each hour that the first deposit does not cover. */
const gasToOpen = 230_000n;
const gasToTopUp = 66_000n;
const firstDepositSeconds = 7200;

const valueDecimals = 6;

/** Of a rail on which no more may be locked with its provider, for people. */
export const fullness = ({ maxEscrow, assetSymbol, chainId }: KnownRail): string =>
  `maxEscrow ${maxEscrow} ${assetSymbol} on chain ${chainId}`;

/** Why a way cannot be gone just now, for people; it may be soon, so it comes last. */
export function standsInTheWay(
  { rail, offer, pricePerGpuHour, full }: Candidate,
  { spec }: GpuLease,
): string | undefined {
  if (full) return `${fullness(rail)} is reached`;
  if (rail.silent) return `chain ${rail.chainId} does not answer`;
  if (!rail.wallet) return undefined;
  if (rail.wallet.gas === 0n) return `the wallet has no gas on chain ${rail.chainId}`;
  const least = priceOf(
    Math.min(offer.spec.minDurationSeconds, spec.term.durationSeconds),
    spec.gpu.count,
    pricePerGpuHour,
  );
  return rail.wallet.balance < least
    ? `the wallet has too little ${rail.assetSymbol} on chain ${rail.chainId}`
    : undefined;
}

interface Ranked {
  readonly candidate: Candidate;
  readonly blocked: boolean;
  readonly group: number;
  readonly cost: bigint;
  readonly railAt: number;
}

/** The cheapest first; then the provider preferred by the platform team; then in an order that never flaps. */
export function rank(candidates: readonly Candidate[], lease: GpuLease, values?: Values): readonly Candidate[] {
  const { durationSeconds } = lease.spec.term;
  const symbols = assetsOf(lease).map((one) => one.assetSymbol);
  const worth = (symbol: string) => values?.token(symbol);
  const comparable = candidates.every(({ rail }) => worth(rail.assetSymbol) !== undefined);
  const gasCosts = candidates.map(({ rail }) => gasCost(rail, durationSeconds, values));
  // Counted for all or for none: a way is not cheaper because nobody knows what its gas costs.
  const withGas = comparable && gasCosts.every((cost) => cost !== undefined);
  const ranked = candidates.map((candidate, index): Ranked => {
    const { rail, provider } = candidate;
    const price = atto(
      candidate.pricePerGpuHour * BigInt(lease.spec.gpu.count) * BigInt(durationSeconds),
      rail.decimals,
    );
    const value = comparable ? worth(rail.assetSymbol)! : 10n ** BigInt(valueDecimals);
    return {
      candidate,
      blocked: standsInTheWay(candidate, lease) !== undefined,
      group: comparable ? 0 : symbols.indexOf(rail.assetSymbol),
      cost: price * value + (withGas ? gasCosts[index]! * secondsPerHour : 0n),
      railAt: provider.spec.payment.rails.findIndex((one) => one.chainId === rail.chainId && one.token === rail.token),
    };
  });
  return ranked.toSorted(byCost).map((one) => one.candidate);
}

const secondsPerHour = 3600n;

/** Both kinds of cost count 10⁻²⁴ of the shared unit, for 3600 leases. */
const atto = (units: bigint, decimals: number): bigint =>
  decimals <= 18 ? units * 10n ** BigInt(18 - decimals) : units / 10n ** BigInt(decimals - 18);

function gasCost(rail: KnownRail, durationSeconds: number, values: Values | undefined): bigint | undefined {
  const value = values?.gas(rail.chainId);
  if (value === undefined || rail.gasPrice === undefined) return undefined;
  const topUps = BigInt(Math.ceil(Math.max(0, durationSeconds - firstDepositSeconds) / 3600));
  return (gasToOpen + topUps * gasToTopUp) * rail.gasPrice * value;
}

function byCost(a: Ranked, b: Ranked): number {
  const [one, other] = [a.candidate, b.candidate];
  return (
    Number(a.blocked) - Number(b.blocked) ||
    a.group - b.group ||
    (a.cost < b.cost ? -1 : a.cost > b.cost ? 1 : 0) ||
    other.provider.spec.weight - one.provider.spec.weight ||
    (one.offer.metadata.name < other.offer.metadata.name
      ? -1
      : one.offer.metadata.name > other.offer.metadata.name
        ? 1
        : 0) ||
    a.railAt - b.railAt
  );
}

/** The best way of each rail, in the order of `ranked`, as status shows them. */
export function costsByRail(
  ranked: readonly Candidate[],
  lease: GpuLease,
  values?: Values,
): NonNullable<LeaseStatus['selection']>['rails'] {
  const seen = new Set<string>();
  const rows: NonNullable<NonNullable<LeaseStatus['selection']>['rails']> = [];
  for (const candidate of ranked) {
    const { rail, provider, pricePerGpuHour } = candidate;
    const name = `${rail.chainId}/${rail.token.toLowerCase()}`;
    if (seen.has(name) || rows.length === 8) continue;
    seen.add(name);
    const total = priceOf(lease.spec.term.durationSeconds, lease.spec.gpu.count, pricePerGpuHour);
    const value = values?.token(rail.assetSymbol);
    const note = standsInTheWay(candidate, lease);
    rows.push({
      chainId: rail.chainId,
      assetSymbol: rail.assetSymbol,
      providerName: provider.metadata.name,
      pricePerGpuHour: whole(pricePerGpuHour, rail.decimals),
      total: whole(total, rail.decimals),
      ...(rail.feeBps === undefined ? {} : { fee: whole(feeOf(total, rail.feeBps), rail.decimals) }),
      ...(value === undefined
        ? {}
        : { value: formatAmount((value * total) / 10n ** BigInt(rail.decimals), valueDecimals) }),
      ...(note === undefined ? {} : { note }),
    });
  }
  return rows.length > 0 ? rows : undefined;
}

/** Of what was written as "2.5": in millionths. */
export const parseValue = (text: string): bigint => parseAmount(text, valueDecimals);
