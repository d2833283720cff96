/** What the operator's leases lock and cost with each provider, from its own records: what limits are checked against. */
import type { Address } from '../../api/messages.ts';
import { atto, unitsAbove } from '../budget/spender.ts';
import type { HeldElsewhere, LeaseRecord } from './observed.ts';

export interface Exposure {
  readonly leases: number;
  readonly gpus: number;
  /** Atto tokens an hour, by asset: one symbol may have other decimals on another chain. */
  readonly perHour: Readonly<Record<string, bigint>>;
  /** Base units that lie in escrows, by `railName`. */
  readonly locked: Readonly<Record<string, bigint>>;
}

/** One token of one escrow on one chain: what `maxEscrow` is a limit of, together with a provider. */
export const railName = (rail: { readonly chainId: number; readonly escrow: string; readonly token: string }): string =>
  `${rail.chainId}/${rail.escrow}/${rail.token}`.toLowerCase();

const open = (record: LeaseRecord) => record.quote !== undefined && record.deposit !== undefined && !record.settled;

/** By provider, over all leases. Who has none is not in it. */
export function exposures(records: Iterable<LeaseRecord>): ReadonlyMap<string, Exposure> {
  const found = new Map<string, { leases: number; gpus: number; perHour: Amounts; locked: Amounts }>();
  for (const record of records) {
    const { quote } = record;
    if (!quote || !open(record)) continue;
    const of = found.get(quote.providerName) ?? { leases: 0, gpus: 0, perHour: {}, locked: {} };
    found.set(quote.providerName, of);
    const { chainId, escrow, quote: terms } = quote.signed;
    of.leases += 1;
    of.gpus += terms.gpus;
    add(of.perHour, quote.assetSymbol, atto(BigInt(terms.pricePerGpuHour) * BigInt(terms.gpus), quote.decimals));
    add(of.locked, railName({ chainId, escrow, token: terms.token }), BigInt(record.deposit!));
  }
  return found;
}

type Amounts = Record<string, bigint>;
const add = (sums: Amounts, name: string, amount: bigint): void => {
  sums[name] = (sums[name] ?? 0n) + amount;
};

export const noExposure: Exposure = { leases: 0, gpus: 0, perHour: {}, locked: {} };

/** With one provider. */
export const exposureOf = (providerName: string, records: Iterable<LeaseRecord>): Exposure =>
  exposures(records).get(providerName) ?? noExposure;

/** Of it, base units in one token of one escrow. */
export const lockedOn = ({ locked }: Pick<Exposure, 'locked'>, rail: Parameters<typeof railName>[0]): bigint =>
  locked[railName(rail)] ?? 0n;

/** What other leases lock: on the same rail with the same provider, and in each asset. */
export function heldElsewhere(
  uid: string,
  record: LeaseRecord | undefined,
  records: ReadonlyMap<string, LeaseRecord>,
): HeldElsewhere {
  const quote = record?.quote;
  let onRail = 0n;
  const inAsset: Amounts = {};
  for (const [other, theirs] of records) {
    if (other === uid || !open(theirs)) continue;
    const locked = BigInt(theirs.deposit!);
    const { assetSymbol, decimals } = theirs.quote!;
    add(inAsset, assetSymbol, atto(locked, decimals));
    if (quote && sameRail(theirs.quote!, quote)) onRail += locked;
  }
  return { onRail, inAsset };
}

/** In one asset, base units of a token of it; rounded up. */
export const heldIn = (
  { inAsset }: Pick<HeldElsewhere, 'inAsset'>,
  { assetSymbol, decimals }: { readonly assetSymbol: string; readonly decimals: number },
): bigint => unitsAbove(inAsset[assetSymbol] ?? 0n, decimals);

const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();

function sameRail(a: NonNullable<LeaseRecord['quote']>, b: NonNullable<LeaseRecord['quote']>): boolean {
  return (
    a.providerName === b.providerName &&
    a.signed.chainId === b.signed.chainId &&
    same(a.signed.escrow, b.signed.escrow) &&
    same(a.signed.quote.token, b.signed.quote.token as Address)
  );
}
