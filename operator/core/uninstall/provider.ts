/**
 * Whether the gateway may go: not while a tenant is there, nor while a lease is not settled, since nobody else has its vouchers
 * and would cash them. Facts are the lease records and the tenants' namespaces.
 */
import { guardName } from '../allocation/guard.ts';
import { type LeaseRecord, vouchedSeconds } from '../allocation/record.ts';

/** Admission policies that the gateway makes by itself, with their bindings: nobody else takes them away. */
export const madePolicies: readonly string[] = [
  guardName,
  'gpulease-tenant',
  'gpulease-tenant-data',
  'gpulease-tenant-claim',
];

export interface ProviderStanding {
  readonly open: readonly LeaseRecord[];
  /** Namespaces of tenants that are still there. */
  readonly tenants: readonly string[];
}

export const isClear = ({ open, tenants }: ProviderStanding): boolean => open.length === 0 && tenants.length === 0;

export const providerStanding = (records: readonly LeaseRecord[], tenants: readonly string[]): ProviderStanding => ({
  open: records.filter((record) => !record.settled || !record.tornDown),
  tenants: [...tenants].sort(),
});

/** ConfigMap by which the owner of a provider steers the gateway while it runs. */
export const controlsName = 'gpulease-controls';

/** What is written into it: no new leases, and those that run are told, drained and settled. */
export const drainControls = (drainSeconds: number) => ({
  mode: 'HoldAndDrain',
  drainSeconds: String(drainSeconds),
  message: 'the provider is taken out of service',
});

const many = 20;

export function told(standing: ProviderStanding): string[] {
  if (isClear(standing)) return ['no tenant is there, and every lease is settled'];
  const lines = [`${standing.open.length} lease(s) not settled, ${standing.tenants.length} tenant(s) not gone`];
  for (const record of standing.open.slice(0, many)) {
    const why = record.reason === undefined ? '' : ` (${record.reason})`;
    lines.push(
      `  lease ${record.leaseId} on chain ${record.chainId}: ${record.state}${why}, ${vouchedSeconds(record)} s vouched for by ${record.quote.consumer}`,
    );
  }
  for (const namespace of standing.tenants.slice(0, many)) lines.push(`  namespace ${namespace}`);
  const more = Math.max(0, standing.open.length - many) + Math.max(0, standing.tenants.length - many);
  if (more > 0) lines.push(`  and ${more} more`);
  return lines;
}
