import { describe, expect, it } from 'vitest';
import { budgetWindows } from '../../../../operator/api/budget.ts';
import { longestSeconds, windowAt } from '../../../../operator/core/budget/windows.ts';

const span = (window: 'Hour' | 'Day' | 'Month', at: string) => {
  const { startMs, endMs } = windowAt(window, new Date(at));
  return [new Date(startMs).toISOString(), new Date(endMs).toISOString()].map((one) => one.slice(0, 16));
};

describe('a window of the clock', () => {
  it.each([
    ['Hour', '2026-11-26T09:00:00Z', '2026-11-26T09:00', '2026-11-26T10:00'],
    ['Hour', '2026-11-26T09:59:59.999Z', '2026-11-26T09:00', '2026-11-26T10:00'],
    ['Hour', '2026-12-31T23:30:00Z', '2026-12-31T23:00', '2027-01-01T00:00'],
    ['Day', '2026-11-26T23:59:59Z', '2026-11-26T00:00', '2026-11-27T00:00'],
    ['Day', '2028-02-29T12:00:00Z', '2028-02-29T00:00', '2028-03-01T00:00'],
    ['Month', '2026-02-28T12:00:00Z', '2026-02-01T00:00', '2026-03-01T00:00'],
    ['Month', '2026-12-31T12:00:00Z', '2026-12-01T00:00', '2027-01-01T00:00'],
    // Written with another offset it is still the day in UTC.
    ['Day', '2026-11-27T01:00:00+02:00', '2026-11-26T00:00', '2026-11-27T00:00'],
  ] as const)('%s at %s', (window, at, start, end) => {
    expect(span(window, at)).toEqual([start, end]);
  });

  it('is followed by the next without a gap, and none is longer than the longest', () => {
    for (const window of budgetWindows)
      for (let at = Date.UTC(2026, 0, 1, 0, 30), i = 0; i < 60; i++) {
        const { startMs, endMs } = windowAt(window, new Date(at));
        expect(windowAt(window, new Date(endMs)).startMs).toBe(endMs);
        expect((endMs - startMs) / 1000).toBeLessThanOrEqual(longestSeconds[window]);
        at = endMs + 1;
      }
  });
});
