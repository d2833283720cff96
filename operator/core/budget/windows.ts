/** Windows of the clock, in UTC: a limit of a day is a limit of a calendar day, so that people can say when it ends. */
import type { BudgetWindow } from '../../api/budget.ts';

/** Milliseconds since the epoch; the end is the next one's start. */
export interface Span {
  readonly startMs: number;
  readonly endMs: number;
}

export function windowAt(window: BudgetWindow, at: Date): Span {
  const [year, month, day] = [at.getUTCFullYear(), at.getUTCMonth(), at.getUTCDate()];
  switch (window) {
    case 'Hour': {
      const startMs = Date.UTC(year, month, day, at.getUTCHours());
      return { startMs, endMs: startMs + 3_600_000 };
    }
    case 'Day':
      return { startMs: Date.UTC(year, month, day), endMs: Date.UTC(year, month, day + 1) };
    case 'Month':
      return { startMs: Date.UTC(year, month, 1), endMs: Date.UTC(year, month + 1, 1) };
    default:
      return window satisfies never;
  }
}

/** The longest that a window can be, whatever the calendar: what is to fit into the next one has to fit into this. */
export const longestSeconds: Readonly<Record<BudgetWindow, number>> = {
  Hour: 3600,
  Day: 86_400,
  Month: 31 * 86_400,
};
