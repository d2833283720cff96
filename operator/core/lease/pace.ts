/** How soon to look again at something that usually takes a moment, and sometimes takes minutes. */
import type { Observed } from './observed.ts';

/** A fifth of a second at first, so that a quick chain makes a quick lease; seconds once it is clear that it is not. */
export function soonSeconds({ record, now }: Pick<Observed, 'record' | 'now'>): number {
  const since = record?.quote ? (now.getTime() - new Date(record.quote.askedAt).getTime()) / 1000 : 0;
  if (since < 15) return 0.2;
  return since < 120 ? 1 : 3;
}
