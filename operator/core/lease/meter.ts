/**
 * Counts served seconds, from nothing but the virtual node's Ready condition: what is billed is what anyone who watched
 * the node could have counted.
 *
 * The meter is stored with each voucher. After a gap (a restart, a lost leader) the time between is billed only as far as
 * the node stayed Ready by Kubernetes' own reckoning: its condition turns Unknown 50 s after the last heartbeat.
 */
import type { ChainFact, LeaseRecord, Observed } from './observed.ts';

export interface Meter {
  /** Milliseconds served so far. */
  readonly servedMs: number;
  /** Counted up to here; absent before the first Ready. */
  readonly countedUntil?: string;
  /** Whether the node was Ready then. Left out: it was. */
  readonly ready?: boolean;
  /** Time of the latest block then, Unix seconds, where the chain was read. */
  readonly blockTime?: number;
}

export interface ReadyFact {
  readonly ready: 'True' | 'False' | 'Unknown';
  readonly since: Date;
  readonly healthyAt?: Date;
}

/** Blocks are late by up to so long. A clock that is further from the chain's is believed no more than this. */
const mostAheadSeconds = 30;
/** What is said to be further ahead was said while our clock was wrong. */
const longestLookMs = 60_000;
/** By so much a clock that is kept in time by slewing may differ from one that is not, over a minute or two. */
const slewedMs = 1000;

/** Of what was read of the chain. While it cannot be read, its clock is taken to go on as time does. */
export function blockTimeOf(chain: ChainFact | undefined): number | undefined {
  if (chain?.state !== 'unknown') return chain?.blockTime;
  return chain.last && Math.floor(chain.last.blockTime + chain.last.ageSeconds);
}

/**
 * Advances the meter to `now`. When Ready went and came again since the last count, only the time since it came is
 * counted: for the part before, the condition no longer tells how long it lasted.
 *
 * Our own clock may be put forward and back, and then everything between would be counted twice: no more passes for us than
 * for the chain, nor than on a clock that nobody sets. `sinceMs`: what passed on that since `countedUntil`; undefined where
 * another process counted. Then the chain's clock alone stands beside ours: it counts to the second where ours was far from
 * it, then or now, and is waited for where it cannot be read yet.
 */
export function count(
  meter: Meter,
  node: ReadyFact | undefined,
  at: Date,
  blockTime?: number,
  sinceMs = Number.POSITIVE_INFINITY,
): Meter {
  const alone = sinceMs === Number.POSITIVE_INFINITY;
  if (alone && blockTime === undefined && meter.blockTime !== undefined) return meter;
  const now = countableUntil(meter, node, at);
  const countedUntil = now.toISOString();
  const passed = Math.min(passedForChain(meter, at, blockTime, alone), sinceMs + slewedMs);
  const seen = blockTime === undefined ? {} : { blockTime };
  if (!node) return meter.countedUntil === undefined ? meter : { ...meter, countedUntil, ready: false, ...seen };
  const since = node.since.getTime();
  const from = meter.countedUntil === undefined ? since : new Date(meter.countedUntil).getTime();
  if (node.ready === 'True') {
    const served = Math.min(passed, Math.max(0, now.getTime() - Math.max(from, since)));
    // What was before it came is never counted later either, also where this look at it is older than its coming.
    const until = new Date(Math.max(now.getTime(), since)).toISOString();
    return { servedMs: meter.servedMs + served, countedUntil: until, ready: true, ...seen };
  }
  if (meter.countedUntil === undefined) return meter;
  // Only if it was Ready when last counted: from False to Unknown is a transition, too, and none that was served before.
  const end = endOf(node, now);
  const sinceThisLook = Math.max(0, end - now.getTime());
  const served = meter.ready === false ? 0 : Math.min(passed + sinceThisLook, Math.max(0, end - from));
  const until = new Date(Math.max(now.getTime(), end)).toISOString();
  return { servedMs: meter.servedMs + served, countedUntil: until, ready: false, ...seen };
}

/**
 * Up to when a node that is not Ready was, in milliseconds. False is our own word, by our clock: where it was said after this look
 * began, which has waited for the provider since, that is told already. Others say Unknown, by theirs.
 */
function endOf(node: ReadyFact, now: Date): number {
  const since = node.since.getTime();
  const saidSince = node.ready === 'False' && since - now.getTime() <= longestLookMs;
  return saidSince ? since : Math.min(since, now.getTime());
}

/** The most milliseconds that may have passed since the meter was stored, as blocks tell. */
function passedForChain(meter: Meter, at: Date, blockTime: number | undefined, alone: boolean): number {
  const { countedUntil, blockTime: before } = meter;
  if (blockTime === undefined || before === undefined || countedUntil === undefined) return Number.POSITIVE_INFINITY;
  const isNear = (ours: Date, block: number) => Math.abs(ours.getTime() / 1000 - block) <= mostAheadSeconds;
  const exact = alone && !(isNear(new Date(countedUntil), before) && isNear(at, blockTime));
  return Math.max(0, blockTime - before + (exact ? 0 : mostAheadSeconds)) * 1000;
}

/** Not beyond the last good health; and not back behind what is counted, or that would be counted again. */
function countableUntil(meter: Meter, node: ReadyFact | undefined, at: Date): Date {
  if (node?.ready !== 'True' || !node.healthyAt) return at;
  const counted = meter.countedUntil === undefined ? node.healthyAt : new Date(meter.countedUntil);
  const until = counted > node.healthyAt ? counted : node.healthyAt;
  return until < at ? until : at;
}

/** The meter of a lease as it stands now. */
export const meterNow = (
  record: Pick<LeaseRecord, 'meter'>,
  { node, now, chain, sinceCountedMs }: Pick<Observed, 'node' | 'now' | 'chain' | 'sinceCountedMs'>,
): Meter => count(record.meter, node, now, blockTimeOf(chain), sinceCountedMs);

/** Whole seconds; the started one is not billed. */
export const servedSeconds = (meter: Meter): number => Math.floor(meter.servedMs / 1000);
