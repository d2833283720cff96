/** The money limits of a lease, by the token that is paid with. */
import type { GpuLease } from '../../api/lease.ts';

export interface AssetLimits {
  readonly assetSymbol: string;
  readonly maxPricePerGpuHour: string;
  readonly spendLimit?: string;
}

/** Tokens that the lease may be paid with, the one that its author named first first. */
export function assetsOf({ spec }: GpuLease): readonly AssetLimits[] {
  const { assetSymbol, maxPricePerGpuHour, spendLimit, alternatives } = spec.pricing;
  return [{ assetSymbol, maxPricePerGpuHour, spendLimit }, ...(alternatives ?? [])];
}

/** What its author wrote for this token; undefined when it is none of the lease's. */
export const limitsIn = (lease: GpuLease, assetSymbol: string): AssetLimits | undefined =>
  assetsOf(lease).find((one) => one.assetSymbol === assetSymbol);
