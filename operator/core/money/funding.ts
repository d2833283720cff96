/**
 * The rails of a deposit: the ways by which the escrow contract may come to take it out of a wallet. One is chosen by what it
 * costs, out of those that the token and what stands already allow.
 *
 *   Allowance      the token's allowance stands, of an earlier permit or approval: nothing more is needed
 *   Permit         EIP-2612: a signature in the opening itself, which leaves an allowance that stands
 *   Authorization  EIP-3009: a signature in the opening, for this deposit, this quote and this session key alone
 *   Approve        a transaction of its own before; every token takes it
 *
 * Missing on purpose: Permit2. It wants an approval of its own first, and so is dearer than what it would stand for.
 */
export const fundingWays = ['Allowance', 'Permit', 'Authorization', 'Approve'] as const;
export type FundingWay = (typeof fundingWays)[number];

/** What a token lets a wallet sign instead of sending an approval. */
export interface TokenSignatures {
  readonly permit: boolean;
  readonly authorization: boolean;
}

/**
 * What may be left standing between deposits. Standing: an allowance without limit, paid for once a token. PerDeposit: none;
 * what is authorised is one deposit.
 */
export const allowancePolicies = ['Standing', 'PerDeposit'] as const;
export type AllowancePolicy = (typeof allowancePolicies)[number];

/**
 * Gas beyond that of an opening whose allowance stands: `operator/contracts/gas.json`, "open, second lease" taken off
 * "openWithPermit", "openWithAuthorization" and added to by "approve". A test holds them to it.
 */
export const gasOfWay: Readonly<Record<FundingWay, number>> = {
  Allowance: 0,
  Permit: 33_000,
  Authorization: 29_800,
  Approve: 46_300,
};

/** Openings that a way is thought to pay for, where it leaves something that stands. A guess: any above one gives the same choice. */
const openingsAhead = 10;

export interface Funding {
  readonly amount: bigint;
  readonly allowance: bigint;
  /** Absent: nobody could be asked. */
  readonly signatures?: TokenSignatures;
  readonly policy: AllowancePolicy;
}

/** Ways that an opening with this deposit may go, the cheapest first. Approve works with every token, so it is always among them. */
export function waysToFund({ amount, allowance, signatures, policy }: Funding): readonly FundingWay[] {
  if (allowance >= amount) return ['Allowance'];
  const possible = fundingWays.filter(
    (way) =>
      (way === 'Permit' && signatures?.permit === true && policy === 'Standing') ||
      (way === 'Authorization' && signatures?.authorization === true) ||
      way === 'Approve',
  );
  return possible.toSorted((a, b) => costOver(a, policy) - costOver(b, policy));
}

/** What one that stands costs once, and any other each time. */
const costOver = (way: FundingWay, policy: AllowancePolicy): number =>
  gasOfWay[way] * (policy === 'Standing' && way !== 'Authorization' ? 1 : openingsAhead);

/** How much is to be approved, where a transaction of its own must; undefined: without limit. */
export const amountToApprove = (policy: AllowancePolicy, amount: bigint): bigint | undefined =>
  policy === 'Standing' ? undefined : amount;
