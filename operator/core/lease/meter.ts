/**
 * Counts served seconds, from nothing but the virtual node's Ready condition: what is billed is what anyone who watched
 * the node could have counted.
 *
 * The meter is stored with each voucher. After a gap (a restart, a lost leader) the time between is billed only as far as
 * the node stayed Ready by Kubernetes' own reckoning: its condition turns Unknown 50 s after the last heartbeat.
 */
export interface Meter {
  /** Milliseconds served so far. */
  readonly servedMs: number;
  /** Counted up to here; absent before the first Ready. */
  readonly countedUntil?: string;
  /** Whether the node was Ready then. Left out: it was. */
  readonly ready?: boolean;
}

export interface ReadyFact {
  readonly ready: 'True' | 'False' | 'Unknown';
  readonly since: Date;
}

/**
 * Advances the meter to `now`. When Ready went and came again since the last count, only the time since it came is
 * counted: for the part before, the condition no longer tells how long it lasted.
 */
export function count(meter: Meter, node: ReadyFact | undefined, now: Date): Meter {
  const countedUntil = now.toISOString();
  if (!node) return meter.countedUntil === undefined ? meter : { ...meter, countedUntil, ready: false };
  const since = node.since.getTime();
  const from = meter.countedUntil === undefined ? since : new Date(meter.countedUntil).getTime();
  if (node.ready === 'True') {
    const served = Math.max(0, now.getTime() - Math.max(from, since));
    return { servedMs: meter.servedMs + served, countedUntil, ready: true };
  }
  if (meter.countedUntil === undefined) return meter;
  // Only if it was Ready when last counted: from False to Unknown is a transition, too, and none that was served before.
  const served = meter.ready === false ? 0 : Math.max(0, Math.min(since, now.getTime()) - from);
  return { servedMs: meter.servedMs + served, countedUntil, ready: false };
}

/** Whole seconds; the started one is not billed. */
export const servedSeconds = (meter: Meter): number => Math.floor(meter.servedMs / 1000);
