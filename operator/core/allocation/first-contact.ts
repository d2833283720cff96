/**
 * A wallet that never paid here gets one lease at a time, until something of it was settled: what a stranger can take without
 * paying is one grace of one lease, not one of each GPU. Whoever has paid once is known, for as long as the provider remembers.
 */
import type { LeaseRecord } from './record.ts';

export interface Stranger {
  /** The wallet's records, as far as they are seen. */
  readonly records: readonly LeaseRecord[];
  /** The lease that is asked for, where it has a record already. */
  readonly leaseId?: string;
}

/** Whether one lease of it stands in the way of another. */
export const hasLease = ({ records, leaseId }: Stranger): boolean =>
  records.some((record) => record.leaseId !== leaseId && record.state !== 'Ended');

/** The known ones: who paid, and when that was seen first, in Unix seconds. */
export type KnownConsumers = Readonly<Record<string, number>>;

export const mostKnown = 10_000;

/** With one more; the one that is known the longest makes room. */
export function withKnown(known: KnownConsumers, consumer: string, nowSeconds: number): KnownConsumers {
  const entries = Object.entries({ [consumer]: nowSeconds, ...known });
  if (entries.length <= mostKnown) return Object.fromEntries(entries);
  return Object.fromEntries(entries.toSorted(([, a], [, b]) => b - a).slice(0, mostKnown));
}

const field = 'known';

/** What cannot be read is nobody: strangers are served, too, only less. */
export function parseKnown(data: Readonly<Record<string, string>> | undefined): KnownConsumers {
  const known: Record<string, number> = {};
  for (const line of (data?.[field] ?? '').split('\n')) {
    const match = /^(0x[0-9a-f]{40}) (\d{1,12})$/.exec(line);
    if (match?.[1] !== undefined) known[match[1]] = Number(match[2]);
  }
  return known;
}

export const knownData = (known: KnownConsumers): Record<string, string> => ({
  [field]: Object.entries(known)
    .map(([consumer, seconds]) => `${consumer} ${seconds}`)
    .join('\n'),
});
