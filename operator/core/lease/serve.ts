/** Ready: pods may run, seconds are counted and vouched for, the deposit is kept topped up. */
import { billableSeconds, paidSeconds } from '../money/escrow.ts';
import type { Action } from './actions.ts';
import { gpusInWords } from './amounts.ts';
import { endsAtServedSeconds } from './end.ts';
import { lowFunds } from './low-funds.ts';
import { blockTimeOf, meterNow, servedSeconds } from './meter.ts';
import type { Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';
import { topUpActions, topUpOf } from './top-up.ts';
import { warnWhenDue } from './warn.ts';

export const serve: Step = { condition: 'Ready', decide };

/**
 * Seconds that may be signed for now. Never more than the chain would count: the sequencer's clock and ours may differ,
 * and a voucher ahead of time could be cashed later for seconds that nobody served.
 */
export function signableSeconds(seen: Observed, counted: number): number {
  const { chain, now } = seen;
  const escrow = chain?.state === 'unknown' ? chain.last?.escrow : chain?.escrow;
  const blockTime = blockTimeOf(chain);
  if (!escrow || blockTime === undefined) return 0;
  const until = Math.floor(Math.min(blockTime, now.getTime() / 1000));
  return Math.min(billableSeconds(escrow, counted, until), counted, paidSeconds(escrow));
}

/**
 * How often to vouch. A provider stops serving when more than the quote's graceSeconds are unpaid, which for many dear GPUs
 * is less than a minute: three vouchers must fit, so that one may be lost.
 */
export function voucherPeriodSeconds({ settings, record }: Pick<Observed, 'settings' | 'record'>): number {
  const grace = record?.quote?.signed.quote.graceSeconds ?? settings.voucherPeriodSeconds;
  return Math.min(settings.voucherPeriodSeconds, Math.max(1, Math.floor(grace / 3)));
}

/** Counts what was served, and signs for it when it is time to. Also while pods are drained: they are served until they end. */
export function vouchWhenDue(seen: Observed): { readonly actions: readonly Action[]; readonly waitSeconds: number } {
  const { record, node, now } = seen;
  const quote = record!.quote!;
  const period = voucherPeriodSeconds(seen);
  const meter = meterNow(record!, seen);
  if (meter.countedUntil === undefined) return { actions: [], waitSeconds: period };
  const before = record!.meter.countedUntil;
  const sinceCount =
    before === undefined ? Number.POSITIVE_INFINITY : (now.getTime() - new Date(before).getTime()) / 1000;
  // Less than nothing: our clock was put back, and what it says of how long ago that was means nothing.
  if (sinceCount >= period - 0.2 || sinceCount < 0) {
    const seconds = Math.max(signableSeconds(seen, servedSeconds(meter)), record!.signedSeconds);
    const fresh = seconds > record!.vouchedSeconds;
    return {
      actions: [fresh ? { do: 'vouch', quote, meter, seconds, last: false } : { do: 'saveMeter', meter }],
      waitSeconds: period,
    };
  }
  const waitSeconds = Math.max(0.2, period - sinceCount);
  // Ready came or went since: after another change nobody could tell any more how long this one lasted.
  const changed =
    before !== undefined &&
    node !== undefined &&
    (node.since.getTime() > new Date(before).getTime() || (node.ready === 'True') !== (record!.meter.ready ?? true));
  // Soon again: a node that may return waits until this is stored.
  return changed ? { actions: [{ do: 'saveMeter', meter }], waitSeconds: 0.2 } : { actions: [], waitSeconds };
}

function decide(seen: Observed): Decision {
  const { record, node, chain } = seen;
  const quote = record!.quote!;
  const actions: Action[] = [];
  const ready = node!.ready === 'True';
  if (ready && record!.startedAt === undefined) actions.push({ do: 'markStarted', at: node!.since });

  const vouching = vouchWhenDue(seen);
  const served = servedSeconds(meterNow(record!, seen));
  const topUp = topUpOf(seen, served);
  const low = lowFunds(seen, topUp, served);
  actions.push(...vouching.actions, ...topUpActions(seen, topUp), ...low.actions);

  // Looked at again when it ends, not at the next voucher after that: the drain needs its time.
  const escrow = chain?.state === 'known' ? chain.escrow : undefined;
  const left = escrow ? endsAtServedSeconds(seen, escrow) - served : Number.POSITIVE_INFINITY;
  const warning = warnWhenDue(seen, served);
  if (warning.action) actions.push(warning.action);
  const wait = Math.min(vouching.waitSeconds, warning.waitSeconds, low.waitSeconds, Math.max(0.2, left));
  if (!ready)
    return {
      status: 'Unknown',
      reason: 'NodeNotReady',
      message: node!.message || 'The node is not Ready yet.',
      also: low.conditions,
      actions,
      requeueAfterSeconds: Math.min(wait, record!.startedAt ? 5 : 0.2),
    };
  return {
    status: 'True',
    reason: 'Serving',
    message: `${gpusInWords(quote.signed.quote.gpus)} of ${quote.providerName} on node ${node!.name}.`,
    also: low.conditions,
    actions,
    requeueAfterSeconds: wait,
  };
}
