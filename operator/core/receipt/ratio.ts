/** Price truth as one figure: what was billed, over what the quote says that the billed seconds cost. */
import type { Receipt } from '../../api/receipt.ts';
import { priceOf } from '../money/price.ts';

/**
 * At most 1, by whole base units: a bill is rounded down and capped by the deposit, and a base unit too much must show. So the
 * quoted price is rounded down, too. Undefined: nothing was quoted for, and nothing billed.
 */
export function quotedVsBilled({ quote: { quote }, settlement }: Receipt): number | undefined {
  const quoted = priceOf(settlement.servedSeconds, quote.gpus, BigInt(quote.pricePerGpuHour));
  const billed = BigInt(settlement.claimed);
  if (quoted === 0n) return billed === 0n ? undefined : Number.POSITIVE_INFINITY;
  if (billed <= quoted) return Number((billed * 1_000_000n) / quoted) / 1_000_000;
  // However small the difference: above one is above one.
  return Math.max(1.000001, Number((billed * 1_000_000n) / quoted) / 1_000_000);
}
