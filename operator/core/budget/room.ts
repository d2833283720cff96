/**
 * What a lease may still be given under the budgets of its namespace.
 *
 * Invariant: at all times, what is spent in the present window and what open deposits may still pay in it, and what they
 * may pay in a whole window to come, are within the limit. Money is added only where that stays true; so no window is
 * overspent, whatever the leases do with what they have.
 */
import { type BudgetSpec, type BudgetWindow, type GpuBudget, maxBudgetLeases } from '../../api/budget.ts';
import type { LeaseRecord } from '../lease/observed.ts';
import { formatAmount } from '../money/amount.ts';
import { countSpend, type LabelsOf, selects } from './count.ts';
import {
  attoDecimals,
  parseAtto,
  type Spender,
  spendableIn,
  spendableWithin,
  spenderOf,
  unitsOf,
  unspentOf,
} from './spender.ts';
import { longestSeconds, type Span } from './windows.ts';

export interface LimitView extends Span {
  readonly window: BudgetWindow;
  /** As it is written. */
  readonly amount: string;
  /** Atto tokens, as all that follows. */
  readonly limit: bigint;
  /** In the present window, by all leases, this one too. */
  readonly spent: bigint;
  /** What the deposits of other leases may still pay, in the present window and in a whole one. */
  readonly othersNow: bigint;
  readonly othersNext: bigint;
}

/** One budget, as one lease meets it. */
export interface BudgetView {
  readonly name: string;
  readonly uid: string;
  readonly assetSymbol: string;
  readonly onExceeded: BudgetSpec['onExceeded'];
  readonly otherAssets: BudgetSpec['otherAssets'];
  readonly limits: readonly LimitView[];
  readonly maxGpus?: number;
  /** GPUs of other leases; and of those among them that were there before this one. */
  readonly othersGpus: number;
  readonly olderGpus: number;
  readonly otherLeases: number;
  readonly exceededSinceMs?: number;
  readonly graceSeconds: number;
}

export interface BudgetRefusal {
  readonly message: string;
  /** By itself it will not fit, however long it waits. */
  readonly never: boolean;
  /** When it will, if nothing else changes. */
  readonly fitsAt?: Date;
}

/** Money is deposited, and the provider has not signed that it let go. */
const isOpen = (record: LeaseRecord) => record.deposit !== undefined && !record.settled && !record.release;

const orderOf = (uid: string, record: LeaseRecord | undefined) => `${record?.quote?.askedAt ?? '~'} ${uid}`;

/** The budgets that select a namespace, as they stand for one of its leases. */
export function viewBudgets(
  uid: string,
  namespaceLabels: Readonly<Record<string, string>>,
  budgets: readonly GpuBudget[],
  records: ReadonlyMap<string, LeaseRecord>,
  labelsOf: LabelsOf,
  now: Date,
): BudgetView[] {
  const own = records.get(uid);
  const theirs = budgets.filter(
    (budget) => selects(budget, namespaceLabels) || own?.budgets?.includes(budget.metadata.uid ?? ''),
  );
  return theirs
    .toSorted((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
    .map((budget) => {
      const { spec, status, metadata } = budget;
      const { windows, members } = countSpend(budget, records, labelsOf, now);
      const others = [...members].filter(([other, record]) => other !== uid && isOpen(record));
      const spenders = others.map(([, record]) => spenderOf(record)!);
      const gpus = (some: readonly (readonly [string, LeaseRecord])[]) =>
        some.reduce((sum, [, record]) => sum + record.quote!.signed.quote.gpus, 0);
      const inAsset = spenders.filter((one) => one.assetSymbol === spec.assetSymbol);
      return {
        name: metadata.name,
        uid: metadata.uid ?? '',
        assetSymbol: spec.assetSymbol,
        onExceeded: spec.onExceeded,
        otherAssets: spec.otherAssets,
        limits: spec.limits.map(({ window, amount }) => {
          const { startMs, endMs, spent } = windows.find((one) => one.window === window)!;
          const span = { startMs, endMs };
          return {
            window,
            amount,
            ...span,
            limit: parseAtto(amount),
            spent,
            othersNow: inAsset.reduce((sum, one) => sum + spendableWithin(one, span, now), 0n),
            othersNext: inAsset.reduce((sum, one) => sum + spendableIn(one, longestSeconds[window]), 0n),
          };
        }),
        maxGpus: spec.maxConcurrentGpus,
        othersGpus: gpus(others),
        olderGpus: gpus(others.filter(([other, record]) => orderOf(other, record) < orderOf(uid, own))),
        otherLeases: others.length,
        ...(status?.exceededSince ? { exceededSinceMs: new Date(status.exceededSince).getTime() } : {}),
        graceSeconds: spec.graceSeconds,
      };
    });
}

/** Why a lease that would deposit so much may not, if it may not. The budget that would hold it longest is named. */
export function budgetRefusal(views: readonly BudgetView[], wanted: Spender, now: Date): BudgetRefusal | undefined {
  const refusals = views.flatMap((view) => {
    if (view.onExceeded === 'Alert') return [];
    const asset = otherAsset(view, views, wanted);
    if (asset) return [asset];
    const { name, maxGpus, othersGpus } = view;
    if (maxGpus !== undefined && othersGpus + wanted.gpus > maxGpus)
      return [
        {
          message: `GpuBudget ${name} allows ${maxGpus} GPUs at a time: leased ${othersGpus}, asked for ${wanted.gpus} more. ${wanted.gpus > maxGpus ? 'Raise its maxConcurrentGpus, or ask for fewer.' : 'It fits when another lease ends; or raise its maxConcurrentGpus.'}`,
          never: wanted.gpus > maxGpus,
        },
      ];
    if (view.otherLeases >= maxBudgetLeases)
      return [
        {
          message: `GpuBudget ${name} follows ${maxBudgetLeases} leases, and no more. End some of them.`,
          never: false,
        },
      ];
    if (wanted.assetSymbol !== view.assetSymbol) return [];
    return view.limits.flatMap((limit) => amountRefusal(view, limit, wanted, now) ?? []);
  });
  const last = (one: BudgetRefusal) =>
    one.never ? Number.POSITIVE_INFINITY : (one.fitsAt?.getTime() ?? Number.MAX_SAFE_INTEGER);
  return refusals.toSorted((a, b) => last(b) - last(a))[0];
}

function otherAsset(view: BudgetView, views: readonly BudgetView[], wanted: Spender): BudgetRefusal | undefined {
  if (wanted.assetSymbol === view.assetSymbol || view.otherAssets === 'Allow' || view.limits.length === 0)
    return undefined;
  if (views.some((one) => one.assetSymbol === wanted.assetSymbol)) return undefined;
  return {
    message: `GpuBudget ${view.name} is in ${view.assetSymbol}, and the lease pays with ${wanted.assetSymbol}, for which its namespace has no GpuBudget. Make one, or set otherAssets: Allow.`,
    never: true,
  };
}

function amountRefusal(
  { name, assetSymbol }: BudgetView,
  limit: LimitView,
  wanted: Spender,
  now: Date,
): BudgetRefusal | undefined {
  const present = spendableWithin(wanted, limit, now);
  const whole = spendableIn(wanted, longestSeconds[limit.window]);
  const fitsNow = limit.spent + limit.othersNow + present <= limit.limit;
  const fitsNext = limit.othersNext + whole <= limit.limit;
  if (fitsNow && fitsNext) return undefined;
  const never = whole > limit.limit;
  const fitsAt = !never && fitsNext ? new Date(limit.endMs) : undefined;
  const what = never
    ? 'Raise its limit, or ask for fewer GPUs, cheaper ones or a shorter term.'
    : fitsAt
      ? `It fits at ${fitsAt.toISOString().replace(/\.\d{3}Z$/, 'Z')}, when the ${limit.window.toLowerCase()} is over; or raise its limit, or end another lease.`
      : 'It fits when another lease ends; or raise its limit.';
  const say = (amount: bigint) => coarse(amount, limit.limit);
  const taken = fitsNow
    ? `other leases may spend ${say(limit.othersNext)} in the next one`
    : `${say(limit.spent + limit.othersNow)} are spent or committed`;
  const asked = whole === 0n ? 'so nothing is left' : `and this lease would commit ${say(fitsNow ? whole : present)}`;
  return {
    message: `GpuBudget ${name} allows ${limit.amount} ${assetSymbol} ${inWords[limit.window]}: ${taken}, ${asked}. ${what}`,
    never,
    ...(fitsAt ? { fitsAt } : {}),
  };
}

const inWords: Readonly<Record<BudgetWindow, string>> = { Hour: 'an hour', Day: 'a day', Month: 'a month' };

/** For people, rounded up to a hundredth part of the limit or less: a message must not change with each second that is served. */
function coarse(amount: bigint, limit: bigint): string {
  const digits = Math.max(0, (limit > 0n ? limit : 10n ** BigInt(attoDecimals)).toString().length - 3);
  const step = 10n ** BigInt(digits);
  return formatAmount(((amount + step - 1n) / step) * step, attoDecimals);
}

export interface TopUpRoom {
  /** Base units. */
  readonly room: bigint;
  /** What holds it down, where it is less than was wanted. */
  readonly why?: string;
}

/** How much of what is wanted may be added to a lease's deposit. */
export function budgetRoom(views: readonly BudgetView[], own: Spender, wanted: bigint, now: Date): TopUpRoom {
  let least: TopUpRoom = { room: wanted };
  for (const view of views) {
    if (view.onExceeded === 'Alert' || view.assetSymbol !== own.assetSymbol) continue;
    for (const limit of view.limits) {
      const room = roomUnder(limit, own, now);
      if (room === undefined || room >= least.room) continue;
      const resets = new Date(limit.endMs).toISOString().replace(/\.\d{3}Z$/, 'Z');
      least = {
        room,
        why: `GpuBudget ${view.name} allows ${limit.amount} ${view.assetSymbol} ${inWords[limit.window]}, and it is spent or committed; the next one begins at ${resets}`,
      };
    }
  }
  return least;
}

/** Undefined: as much as one likes, as it could not be spent within the window. */
function roomUnder(limit: LimitView, own: Spender, now: Date): bigint | undefined {
  const boundless: Spender = { ...own, deposit: 2n ** 200n };
  const rooms = [
    { free: limit.limit - limit.spent - limit.othersNow, most: spendableWithin(boundless, limit, now) },
    { free: limit.limit - limit.othersNext, most: spendableIn(boundless, longestSeconds[limit.window]) },
  ].flatMap(({ free, most }) => (most <= free ? [] : [free - unspentOf(own)]));
  if (rooms.length === 0) return undefined;
  return unitsOf(
    rooms.reduce((least, one) => (one < least ? one : least)),
    own.decimals,
  );
}

export interface Exceeded {
  readonly name: string;
  readonly message: string;
  /** When leases are drained, if it is still so. */
  readonly drainAt: Date;
}

/** Whether a budget is exceeded, and drains leases for it. */
export const drains = ({ spec, status }: GpuBudget): boolean =>
  spec.onExceeded === 'Drain' && status?.exceededSince !== undefined;

/** A budget with `onExceeded: Drain` that is exceeded, and for which this lease has to go. */
export function exceededFor(views: readonly BudgetView[], own: Spender): Exceeded | undefined {
  for (const view of views) {
    if (view.onExceeded !== 'Drain' || view.exceededSinceMs === undefined) continue;
    const drainAt = new Date(view.exceededSinceMs + view.graceSeconds * 1000);
    const amount = own.assetSymbol === view.assetSymbol ? view.limits.find((one) => one.spent >= one.limit) : undefined;
    if (amount)
      return {
        name: view.name,
        message: `GpuBudget ${view.name}: ${amount.amount} ${view.assetSymbol} ${inWords[amount.window]} are spent.`,
        drainAt,
      };
    if (view.maxGpus !== undefined && view.olderGpus + own.gpus > view.maxGpus)
      return {
        name: view.name,
        message: `GpuBudget ${view.name} allows ${view.maxGpus} GPUs at a time, and older leases come first.`,
        drainAt,
      };
  }
  return undefined;
}
