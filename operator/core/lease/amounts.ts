/** Base units as whole tokens for people: never more digits than a status field holds. */
import { formatAmount } from '../money/amount.ts';

/** Rounded up to six places, so that what is shown is never below what is billed. */
export function whole(units: bigint, decimals: number): string {
  if (decimals <= 6) return formatAmount(units, decimals);
  const step = 10n ** BigInt(decimals - 6);
  return formatAmount((units + step - 1n) / step, 6);
}

/** `1 GPU`, `8 GPUs`. */
export const gpusInWords = (count: number): string => `${count} GPU${count === 1 ? '' : 's'}`;
