/**
 * A bucket of requests for each address that asks without a token: quoting costs a signature, allocating a chain read.
 * The table of addresses is bounded; the one that was quiet the longest is forgotten, and starts with a full bucket.
 */
import { Refusal } from '../../core/allocation/refusal.ts';

export interface RateLimit {
  /** Throws a Refusal (429) when the address asks too often. */
  take(address: string): void;
}

export function createRateLimit(options: {
  readonly perSecond: number;
  readonly burst: number;
  readonly now: () => Date;
  readonly addresses?: number;
}): RateLimit {
  const { perSecond, burst, now, addresses = 10_000 } = options;
  const buckets = new Map<string, { left: number; at: number }>();
  return {
    take(address) {
      const at = now().getTime();
      const bucket = buckets.get(address) ?? { left: burst, at };
      const left = Math.min(burst, bucket.left + (Math.max(0, at - bucket.at) / 1000) * perSecond);
      buckets.delete(address);
      if (buckets.size >= addresses) buckets.delete(buckets.keys().next().value as string);
      buckets.set(address, { left: Math.max(0, left - 1), at });
      if (left < 1) throw new Refusal(429, 'too many requests from this address', { retryAfterSeconds: 1 });
    },
  };
}
