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

/** With one provider, over all leases. */
export function exposureOf(providerName: string, records: Iterable<LeaseRecord>): Exposure {
  let leases = 0;
  let gpus = 0;
  const perHour: Record<string, bigint> = {};
  const locked: Record<string, bigint> = {};
  for (const record of records) {
    const { quote } = record;
    if (!quote || !open(record) || quote.providerName !== providerName) continue;
    const terms = quote.signed.quote;
    leases += 1;
    gpus += terms.gpus;
    perHour[quote.assetSymbol] =
      (perHour[quote.assetSymbol] ?? 0n) + atto(BigInt(terms.pricePerGpuHour) * BigInt(terms.gpus), quote.decimals);
    const { chainId, escrow } = quote.signed;
    const rail = railName({ chainId, escrow, token: terms.token });
    locked[rail] = (locked[rail] ?? 0n) + BigInt(record.deposit!);
  }
  return { leases, gpus, perHour, locked };
}

/** What other leases lock: on the same rail with the same provider, and in each asset. */
export function heldElsewhere(
  uid: string,
  record: LeaseRecord | undefined,
  records: ReadonlyMap<string, LeaseRecord>,
): HeldElsewhere {
  const quote = record?.quote;
  let onRail = 0n;
  const inAsset: Record<string, bigint> = {};
  for (const [other, theirs] of records) {
    if (other === uid || !open(theirs)) continue;
    const locked = BigInt(theirs.deposit!);
    const { assetSymbol, decimals } = theirs.quote!;
    inAsset[assetSymbol] = (inAsset[assetSymbol] ?? 0n) + atto(locked, decimals);
    if (quote && sameRail(theirs.quote!, quote)) onRail += locked;
  }
  return { onRail, inAsset };
}

/** In one asset, base units of a token of it; rounded up. */
export const heldIn = (
  { inAsset }: Pick<HeldElsewhere, 'inAsset'>,
  { assetSymbol, decimals }: { readonly assetSymbol: string; readonly decimals: number },
): bigint => unitsAbove(inAsset[assetSymbol] ?? 0n, decimals);

/** Locked with a provider in one token of one escrow. */
export const lockedOn = (
  rail: Parameters<typeof railName>[0],
  providerName: string,
  records: Iterable<LeaseRecord>,
): bigint => exposureOf(providerName, records).locked[railName(rail)] ?? 0n;

const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();

function sameRail(a: NonNullable<LeaseRecord['quote']>, b: NonNullable<LeaseRecord['quote']>): boolean {
  return (
    a.providerName === b.providerName &&
    a.signed.chainId === b.signed.chainId &&
    same(a.signed.escrow, b.signed.escrow) &&
    same(a.signed.quote.token, b.signed.quote.token as Address)
  );
}
