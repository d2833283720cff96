/** How often each address may do something. Bounded: the address that was quiet the longest is forgotten, and starts afresh. */
export interface Pace {
  /** False: too often. */
  take(address: string): boolean;
}

export function createPace(options: {
  readonly perSecond: number;
  readonly burst: number;
  readonly monotonicMs: () => number;
  readonly addresses?: number;
}): Pace {
  const { perSecond, burst, monotonicMs, addresses = 10_000 } = options;
  const buckets = new Map<string, { left: number; at: number }>();
  return {
    take(address) {
      const at = monotonicMs();
      const bucket = buckets.get(address) ?? { left: burst, at };
      const left = Math.min(burst, bucket.left + (Math.max(0, at - bucket.at) / 1000) * perSecond);
      buckets.delete(address);
      if (buckets.size >= addresses) buckets.delete(buckets.keys().next().value as string);
      buckets.set(address, { left: left < 1 ? left : left - 1, at });
      return left >= 1;
    },
  };
}
