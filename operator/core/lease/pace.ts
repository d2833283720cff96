/** How soon to look again at something that usually takes a moment, and sometimes takes minutes. */
import type { Observed } from './observed.ts';

/** Until then, but at most so many seconds, and not without a pause. */
export function untilSeconds(now: Date, then: Date | undefined, most: number): number {
  return then ? Math.min(most, Math.max(1, (then.getTime() - now.getTime()) / 1000)) : most;
}

/** A fifth of a second at first, so that a quick chain makes a quick lease; seconds once it is clear that it is not. */
export function soonSeconds({ record, now }: Pick<Observed, 'record' | 'now'>): number {
  const since = record?.quote ? (now.getTime() - new Date(record.quote.askedAt).getTime()) / 1000 : 0;
  if (since < 15) return 0.2;
  return since < 120 ? 1 : 3;
}
