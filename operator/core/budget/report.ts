/** What people are told of a budget: its sums, whether it holds, and each percentage once a window. */
import { type BudgetStatus, type GpuBudget, maxBudgetLeases } from '../../api/budget.ts';
import type { Verdict } from '../../api/conditions.ts';
import { whole } from '../lease/amounts.ts';
import type { LeaseRecord } from '../lease/observed.ts';
import { formatAmount } from '../money/amount.ts';
import { countSpend, type LabelsOf, type Spent } from './count.ts';
import { attoDecimals, parseAtto, spendableWithin, spenderOf } from './spender.ts';

export interface Alert {
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
}

export interface BudgetReport {
  /** Without its conditions. */
  readonly status: BudgetStatus;
  readonly conditions: readonly Verdict[];
  /** To be told once the status is stored. */
  readonly alerts: readonly Alert[];
  /** When to look again: soon while something is open. */
  readonly requeueAfterSeconds: number;
}

const openSeconds = 20;
const idleSeconds = 300;

const instant = (ms: number) => new Date(ms).toISOString().replace(/\.\d{3}Z$/, 'Z');

export function reportBudget(
  budget: GpuBudget,
  records: ReadonlyMap<string, LeaseRecord>,
  labelsOf: LabelsOf,
  now: Date,
): BudgetReport {
  const { spec, metadata } = budget;
  const { assetSymbol, maxConcurrentGpus } = spec;
  const count = countSpend(budget, records, labelsOf, now);
  const open = [...count.members.values()].filter((one) => one.deposit !== undefined && !one.release);
  const spenders = open.map((one) => spenderOf(one)!).filter((one) => one.assetSymbol === assetSymbol);
  const gpus = open.reduce((sum, one) => sum + one.quote!.signed.quote.gpus, 0);

  const exceeded: { reason: string; message: string }[] = [];
  const alerts: Alert[] = [];
  let usedPercent = 0n;
  const windows = count.windows.map((one) => {
    const committed = spenders.reduce((sum, spender) => sum + spendableWithin(spender, one, now), 0n);
    const amount = spec.limits.find((limit) => limit.window === one.window)?.amount;
    const { alertedPercent, ...rest } = one;
    const told = amount === undefined ? undefined : alertOf(one, amount, budget);
    if (told && told.percent > alertedPercent) alerts.push(told.alert);
    if (amount !== undefined) {
      const limit = parseAtto(amount);
      const percent = limit === 0n ? (one.spent > 0n ? 1000n : 0n) : (one.spent * 100n + limit - 1n) / limit;
      usedPercent = [usedPercent, percent].reduce((a, b) => (a > b ? a : b));
      if (one.spent > limit || (one.spent === limit && committed > 0n))
        exceeded.push({
          reason: 'AmountExceeded',
          message: `${whole(one.spent, attoDecimals)} of ${amount} ${assetSymbol} are spent in this ${one.window.toLowerCase()}.`,
        });
    }
    return {
      window: rest.window,
      startedAt: instant(rest.startMs),
      resetsAt: instant(rest.endMs),
      spent: formatAmount(rest.spent, attoDecimals),
      committed: whole(committed, attoDecimals),
      ...(amount === undefined ? {} : { limit: amount }),
      ...(told || alertedPercent > 0 ? { alertedPercent: Math.max(alertedPercent, told?.percent ?? 0) } : {}),
    };
  });
  if (maxConcurrentGpus !== undefined && gpus > maxConcurrentGpus)
    exceeded.push({ reason: 'GpusExceeded', message: `${gpus} GPUs are leased, ${maxConcurrentGpus} are allowed.` });

  const was = budget.status?.exceededSince;
  const worst = exceeded[0];
  if (worst && !was)
    alerts.push({ type: 'Warning', reason: worst.reason, message: `${worst.message} ${consequence(budget)}` });
  if (!worst && was)
    alerts.push({ type: 'Normal', reason: 'WithinLimits', message: `GpuBudget ${metadata.name} holds again.` });

  const nextMs = Math.min(...count.windows.map((one) => one.endMs));
  const untilNext = Math.max(1, (nextMs - now.getTime()) / 1000);
  return {
    status: {
      observedGeneration: metadata.generation,
      windows,
      usedPercent: Number(usedPercent > 1000n ? 1000n : usedPercent),
      gpus,
      openLeases: open.length,
      ...(worst ? { exceededSince: was ?? instant(now.getTime()) } : {}),
      ...(count.counted.length > 0 ? { counted: [...count.counted] } : {}),
    },
    conditions: [
      count.uncounted > 0
        ? {
            type: 'Ready',
            status: 'False',
            reason: 'TooManyLeases',
            message: `${count.uncounted} leases are not counted: a budget follows ${maxBudgetLeases}. Share its namespaces out among several budgets.`,
          }
        : { type: 'Ready', status: 'True', reason: 'Counting', message: '' },
      worst
        ? { type: 'Exceeded', status: 'True', reason: worst.reason, message: exceeded.map((e) => e.message).join(' ') }
        : { type: 'Exceeded', status: 'False', reason: 'WithinLimits', message: '' },
    ],
    alerts,
    requeueAfterSeconds: Math.min(untilNext, open.length + count.counted.length > 0 ? openSeconds : idleSeconds),
  };
}

function alertOf(spent: Spent, amount: string, budget: GpuBudget): { percent: number; alert: Alert } | undefined {
  const limit = parseAtto(amount);
  if (limit === 0n) return undefined;
  const reached = budget.spec.alertPercents.filter((percent) => spent.spent * 100n >= limit * BigInt(percent));
  if (reached.length === 0) return undefined;
  const percent = Math.max(...reached);
  return {
    percent,
    alert: {
      type: percent >= 100 ? 'Warning' : 'Normal',
      reason: 'BudgetAlert',
      message: `${percent} % of ${amount} ${budget.spec.assetSymbol} are spent in the ${spent.window.toLowerCase()} that ends at ${instant(spent.endMs)}.`,
    },
  };
}

function consequence({ spec }: GpuBudget): string {
  switch (spec.onExceeded) {
    case 'Alert':
      return 'Nothing is refused (onExceeded: Alert).';
    case 'Deny':
      return 'No money is added; running leases go on while their deposits pay.';
    case 'Drain':
      return `Running leases are drained in ${spec.graceSeconds} s, unless it fits again.`;
    default:
      return spec.onExceeded satisfies never;
  }
}
