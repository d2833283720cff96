/** Of many measurements, the few numbers that are told. */

/** Nearest rank: a value that was really measured. NaN when there is none. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

/** Between the two in the middle where their number is even. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  if (Number.isInteger(middle)) return ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2;
  return sorted[Math.floor(middle)] ?? Number.NaN;
}

/** Three digits that count: figures are read by people, too. */
export const told = (value: number): number => (Number.isFinite(value) ? Number(value.toPrecision(3)) : value);

/** A promise about a figure, and whether it was kept in this run. */
export interface Target {
  readonly what: string;
  readonly measured: number;
  readonly atMost?: number;
  readonly atLeast?: number;
}

export const isMet = ({ measured, atMost, atLeast }: Target): boolean =>
  (atMost === undefined || measured <= atMost) && (atLeast === undefined || measured >= atLeast);

export function targetInWords(target: Target): string {
  const bound = target.atMost === undefined ? `≥ ${target.atLeast}` : `≤ ${target.atMost}`;
  return `${isMet(target) ? 'met   ' : 'MISSED'}  ${target.what}: ${told(target.measured)} (${bound})`;
}

/** Columns to the right, as wide as they must be. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('   ');
  return [line(head), ...rows.map(line)].join('\n');
}
