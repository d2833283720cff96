/**
 * What was spent, counted exactly once. A budget's status holds, beside its sums, up to which second each lease is counted;
 * both are written in one write, so that after any crash or restart the rest is what the records have beyond that. A lease
 * leaves the list only when it is settled, and it is settled only after it was counted: see `finish` in the controller.
 *
 * Only signed seconds can be billed; what the provider does not claim of them in the end is not given back to the budget.
 */
import { type BudgetWindow, budgetWindows, type GpuBudget, maxBudgetLeases } from '../../api/budget.ts';
import type { LeaseRecord } from '../lease/observed.ts';
import { billBetween, parseAtto, type Spender, spenderOf } from './spender.ts';
import { type Span, windowAt } from './windows.ts';

export interface Spent extends Span {
  readonly window: BudgetWindow;
  /** Atto tokens. */
  readonly spent: bigint;
  /** Highest percentage that people were told of. */
  readonly alertedPercent: number;
}

export interface Counted {
  readonly uid: string;
  readonly attempt: number;
  readonly seconds: number;
}

export interface Count {
  readonly windows: readonly Spent[];
  readonly counted: readonly Counted[];
  /** Leases of the budget that have not ended, in whatever token. */
  readonly members: ReadonlyMap<string, LeaseRecord>;
  /** Leases for which there was no place in the list: without one they would be counted anew each time. */
  readonly uncounted: number;
}

/** Labels of a namespace; undefined where it is not known, or no more. */
export type LabelsOf = (namespace: string) => Readonly<Record<string, string>> | undefined;

export function selects(budget: GpuBudget, namespaceLabels: Readonly<Record<string, string>>): boolean {
  const wanted = Object.entries(budget.spec.namespaceSelector?.matchLabels ?? {});
  return wanted.every(([key, value]) => namespaceLabels[key] === value);
}

/** A lease counts in the budgets under which it was opened, whatever its namespace is labelled since, and in those that select it now. */
function isMember(budget: GpuBudget, record: LeaseRecord, labelsOf: LabelsOf): boolean {
  if (record.budgets?.includes(budget.metadata.uid ?? '')) return true;
  if (budget.spec.namespaceSelector === undefined) return true;
  const labels = record.lease && labelsOf(record.lease.namespace);
  return labels !== undefined && selects(budget, labels);
}

/** The budget's sums with all that the records have beyond them. */
export function countSpend(
  budget: GpuBudget,
  records: ReadonlyMap<string, LeaseRecord>,
  labelsOf: LabelsOf,
  now: Date,
): Count {
  const { status, spec } = budget;
  const windows = budgetWindows.map((window) => rolled(window, status, now));
  const before = new Map(status?.counted?.map((one) => [one.uid, one]));
  const members = new Map<string, LeaseRecord>();
  const counted: Counted[] = [];
  const fresh: (readonly [uid: string, record: LeaseRecord, spender: Spender])[] = [];
  const take = (uid: string, { attempt }: LeaseRecord, spender: Spender, from: number) => {
    if (members.has(uid) && from < spender.signedSeconds)
      for (const [at, one] of windows.entries())
        windows[at] = { ...one, spent: one.spent + billedSince(one, spender, from, now) };
    counted.push({ uid, attempt, seconds: Math.max(from, spender.signedSeconds) });
  };
  for (const [uid, record] of records) {
    const spender = spenderOf(record);
    if (!spender) continue;
    const member = isMember(budget, record, labelsOf);
    if (member) members.set(uid, record);
    const known = before.get(uid);
    if ((!member && !known) || spender.assetSymbol !== spec.assetSymbol || spender.signedSeconds === 0) continue;
    // Another attempt has another escrow, and its seconds begin anew.
    if (known)
      take(uid, record, spender, known.attempt === record.attempt ? Math.min(known.seconds, spender.signedSeconds) : 0);
    else fresh.push([uid, record, spender]);
  }
  const places = Math.max(0, maxBudgetLeases - counted.length);
  for (const [uid, record, spender] of fresh.slice(0, places)) take(uid, record, spender, 0);
  return { windows, counted: counted.sort(byUid), members, uncounted: Math.max(0, fresh.length - places) };
}

const byUid = (a: Counted, b: Counted) => (a.uid < b.uid ? -1 : 1);

/** The window of now, with what is stored of it. Never an earlier one: a clock that was put back would begin it twice. */
function rolled(window: BudgetWindow, status: GpuBudget['status'], now: Date): Spent {
  const span = windowAt(window, now);
  const stored = status?.windows?.find((one) => one.window === window);
  const startMs = stored ? new Date(stored.startedAt).getTime() : Number.NEGATIVE_INFINITY;
  if (!stored || !(startMs >= span.startMs)) return { window, ...span, spent: 0n, alertedPercent: 0 };
  return {
    window,
    ...windowAt(window, new Date(startMs)),
    spent: parseAtto(stored.spent),
    alertedPercent: stored.alertedPercent ?? 0,
  };
}

/**
 * Seconds are taken to have been served one after the other up to where the meter stands, so that those of an outage fall
 * into the windows in which they were served; a window that is over has no use for its own.
 */
function billedSince(window: Spent, spender: Spender, fromSeconds: number, now: Date): bigint {
  const until = spender.signedUntilMs ?? now.getTime();
  // Where the clock was put back, the window began later than now: everything counts.
  const startMs = window.startMs > now.getTime() ? Number.NEGATIVE_INFINITY : window.startMs;
  const within = Math.max(0, Math.ceil((until - startMs) / 1000));
  const to = spender.signedSeconds;
  return billBetween(spender, Math.max(fromSeconds, to - Math.min(within, to)), to);
}
