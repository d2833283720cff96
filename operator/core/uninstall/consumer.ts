/**
 * Whether the operator may go: not while a lease is there, nor while an escrow is open, since nobody else would drain its
 * node, sign its last voucher and take its refund. Facts are the leases, and what the operator has stored of them.
 */
import type { GpuLease } from '../../api/lease.ts';
import { whole } from '../lease/amounts.ts';
import type { LeaseRecord } from '../lease/observed.ts';

export interface OpenEscrow {
  readonly lease: string;
  readonly provider: string;
  readonly leaseId: string;
  readonly chainId: number;
  readonly contract: string;
  readonly asset: string;
  readonly decimals: number;
  /** Base units. */
  readonly deposit: bigint;
}

export interface Standing {
  /** `namespace/name`, and where it stands. */
  readonly leases: readonly { readonly name: string; readonly stands: string }[];
  readonly escrows: readonly OpenEscrow[];
}

export const isClear = ({ leases, escrows }: Standing): boolean => leases.length === 0 && escrows.length === 0;

/** The first condition that is not True is where a lease stands, see api/conditions.ts. */
function standsAt({ status, metadata }: GpuLease): string {
  const conditions = status?.conditions ?? [];
  const ending = conditions.filter((one) => ['Drained', 'Released', 'Settled'].includes(one.type));
  const open = (metadata.deletionTimestamp && ending.length > 0 ? ending : conditions).find(
    (one) => one.status !== 'True',
  );
  if (!open) return conditions.length === 0 ? 'not looked at yet' : 'Ready';
  return `${open.type}=${open.status} ${open.reason}${open.message ? `: ${open.message}` : ''}`.slice(0, 300);
}

export function consumerStanding(leases: readonly GpuLease[], records: Iterable<LeaseRecord>): Standing {
  const escrows: OpenEscrow[] = [];
  for (const { lease, quote, deposit, settled } of records) {
    if (!quote || deposit === undefined || settled) continue;
    escrows.push({
      lease: lease ? `${lease.namespace}/${lease.name}` : '(unknown)',
      provider: quote.providerName,
      leaseId: quote.leaseId,
      chainId: quote.signed.chainId,
      contract: quote.signed.escrow,
      asset: quote.assetSymbol,
      decimals: quote.decimals,
      deposit: BigInt(deposit),
    });
  }
  return {
    leases: leases
      .map((lease) => ({ name: `${lease.metadata.namespace}/${lease.metadata.name}`, stands: standsAt(lease) }))
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
    escrows: escrows.sort((a, b) => (a.lease < b.lease ? -1 : 1)),
  };
}

/** Whole tokens by asset: at most so much is locked. */
export function escrowed(standing: Standing): ReadonlyMap<string, string> {
  const sums = new Map<string, { units: bigint; decimals: number }>();
  for (const { asset, deposit, decimals } of standing.escrows) {
    const before = sums.get(`${asset}/${decimals}`);
    sums.set(`${asset}/${decimals}`, { units: (before?.units ?? 0n) + deposit, decimals });
  }
  return new Map([...sums].map(([key, { units, decimals }]) => [key.split('/')[0]!, whole(units, decimals)]));
}

const many = 20;

/** For people: what is still there, a line each. */
export function told(standing: Standing): string[] {
  if (isClear(standing)) return ['no lease is there, and no escrow is open'];
  const sums = [...escrowed(standing)].map(([asset, amount]) => `${amount} ${asset}`).join(', ');
  const lines = [
    `${standing.leases.length} lease(s) not gone, ${standing.escrows.length} escrow(s) not settled${sums ? `, which hold at most ${sums}` : ''}`,
  ];
  for (const { name, stands } of standing.leases.slice(0, many)) lines.push(`  lease ${name}  ${stands}`);
  for (const { lease, provider, asset, deposit, decimals, chainId, leaseId } of standing.escrows.slice(0, many))
    lines.push(
      `  escrow ${leaseId} on chain ${chainId}: ${whole(deposit, decimals)} ${asset} with ${provider}, for ${lease}`,
    );
  const more = Math.max(0, standing.leases.length - many) + Math.max(0, standing.escrows.length - many);
  if (more > 0) lines.push(`  and ${more} more`);
  return lines;
}
