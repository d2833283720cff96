/** Months of account, in UTC. A lease belongs whole to the month in which its billing stopped, by the chain's clock. */

const pattern = /^([0-9]{4})-(0[1-9]|1[0-2])$/;

/** `2026-11`. */
export const monthOf = (unixSeconds: number): string => new Date(unixSeconds * 1000).toISOString().slice(0, 7);

/** First moment of a month and of the next one; undefined when the text names no month. */
export function periodOf(month: string): { readonly start: Date; readonly end: Date } | undefined {
  const match = pattern.exec(month);
  if (!match) return undefined;
  const [year, index] = [Number(match[1]), Number(match[2]) - 1];
  return { start: new Date(Date.UTC(year, index, 1)), end: new Date(Date.UTC(year, index + 1, 1)) };
}

/** To the second, as FOCUS and people want it. */
export const instantOf = (at: Date): string => at.toISOString().replace(/\.\d{3}Z$/, 'Z');
