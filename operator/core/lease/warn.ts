/**
 * Telling people that a node goes, before it goes: once when the end is near, and once when its drain begins. Only an end
 * that is certain is announced beforehand: the term's, or that of a spend limit. A deposit that runs low is topped up.
 *
 * Claims to the provider's storage are told as well, since what they store goes with the lease; the lease names them.
 */
import { paidSeconds } from '../money/escrow.ts';
import type { Action } from './actions.ts';
import { drainLeadSeconds, endsAtServedSeconds } from './end.ts';
import { spendLimit } from './fund.ts';
import { meterNow, servedSeconds } from './meter.ts';
import type { Ending, Observed } from './observed.ts';

/** So long before the drain begins: a quarter of an hour, or of a term that is shorter than an hour. */
const warnSeconds = 900;
const warnPart = 4;

export interface Warning {
  readonly action?: Action;
  /** Until it is time to warn. */
  readonly waitSeconds: number;
}

export function warnWhenDue(seen: Observed, served: number): Warning {
  const { lease, record, chain, now } = seen;
  const never = { waitSeconds: Number.POSITIVE_INFINITY };
  const quote = record?.quote;
  if (!quote || record.startedAt === undefined || record.warnedAt !== undefined) return never;
  if (chain?.state !== 'known' || !chain.escrow) return never;
  const { escrow } = chain;
  const lead = drainLeadSeconds(seen);
  const limited = paidSeconds(escrow) < escrow.maxSeconds && escrow.deposit >= spendLimit(seen, quote);
  const left = Math.min(
    (limited ? endsAtServedSeconds(seen, escrow) : escrow.maxSeconds - lead) - served,
    escrow.endsAt - lead - now.getTime() / 1000,
  );
  const early = Math.min(warnSeconds, Math.floor(lease.spec.term.durationSeconds / warnPart));
  if (left > early) return { waitSeconds: Math.max(0.2, left - early) };
  const drainAt = new Date(now.getTime() + Math.max(0, left) * 1000);
  const why = limited ? `its spendLimit is reached` : `its term of ${lease.spec.term.durationSeconds} s is over`;
  return {
    action: {
      do: 'warn',
      at: now,
      message: `Lease ${lease.metadata.namespace}/${lease.metadata.name} is about to end: at about ${clockTime(drainAt)} ${why}, its pods are asked to end, and its node goes.`,
    },
    waitSeconds: Number.POSITIVE_INFINITY,
  };
}

/** For the pods of a lease that ends now: until when they may stay. */
export function farewell(seen: Observed, why: Ending): string {
  const { lease, now } = seen;
  const deadline = new Date(now.getTime() + staySeconds(seen) * 1000);
  return `Lease ${lease.metadata.namespace}/${lease.metadata.name} ends (${why.reason}): ${why.message} The pod is asked to end now, as far as PodDisruptionBudgets allow; at ${clockTime(deadline)} it is deleted, and its node goes.`;
}

/** For claims whose data are stored with a lease that is about to end; `message` is what its pods are told. */
export const soonLost = (message: string): string =>
  `${message} What this claim stores is lost then: copy it away before.`;

/** For claims whose data are stored with a lease that ends now. */
export function farewellToData(seen: Observed, why: Ending): string {
  const { lease, now } = seen;
  const deadline = new Date(now.getTime() + staySeconds(seen) * 1000);
  return `Lease ${lease.metadata.namespace}/${lease.metadata.name} ends (${why.reason}): ${why.message} What this claim stores is lost when its node goes, at ${clockTime(deadline)} at the latest.`;
}

const mostNamed = 8;

/** For the lease itself: which claims lose what they store. Empty when none does. */
export function lossInWords(claims: readonly string[]): string {
  if (claims.length === 0) return '';
  const named = claims.slice(0, mostNamed).join(', ');
  const more = claims.length > mostNamed ? ` and ${claims.length - mostNamed} more` : '';
  return ` What ${claims.length === 1 ? 'this claim stores' : 'these claims store'} is lost with it: ${named}${more}.`;
}

/** What the lease allows for a drain, and never beyond what the deposit pays. */
function staySeconds(seen: Observed): number {
  const { lease, record, chain } = seen;
  const { drainTimeoutSeconds } = lease.spec;
  if (chain?.state !== 'known' || !chain.escrow) return drainTimeoutSeconds;
  const served = record ? servedSeconds(meterNow(record, seen)) : 0;
  return Math.min(drainTimeoutSeconds, Math.max(0, paidSeconds(chain.escrow) - served));
}

const clockTime = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z');
