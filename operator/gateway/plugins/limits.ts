/**
 * Buckets of requests, one for each who asks. The table is bounded; who was quiet the longest is forgotten, and starts with a
 * full bucket.
 */
import { Refusal } from '../../core/allocation/refusal.ts';

export interface RateLimit {
  /** Throws a Refusal (429) when `who` asks too often. */
  take(who: string): void;
  /** Gives one back: the request turned out to be counted elsewhere. */
  give(who: string): void;
}

export function createRateLimit(options: {
  readonly perSecond: number;
  readonly burst: number;
  readonly now: () => Date;
  /** What is told to who asks too often. */
  readonly detail: string;
  readonly callers?: number;
}): RateLimit {
  const { perSecond, burst, now, detail, callers = 10_000 } = options;
  const buckets = new Map<string, { left: number; at: number }>();
  return {
    take(who) {
      const at = now().getTime();
      const bucket = buckets.get(who) ?? { left: burst, at };
      const left = Math.min(burst, bucket.left + (Math.max(0, at - bucket.at) / 1000) * perSecond);
      buckets.delete(who);
      if (buckets.size >= callers) buckets.delete(buckets.keys().next().value as string);
      // What is refused costs nothing: who waits as long as told gets through.
      buckets.set(who, { left: left < 1 ? left : left - 1, at });
      if (left < 1)
        throw new Refusal(429, detail, { retryAfterSeconds: Math.max(1, Math.ceil((1 - left) / perSecond)) });
    },
    give(who) {
      const bucket = buckets.get(who);
      if (bucket) bucket.left = Math.min(burst, bucket.left + 1);
    },
  };
}
