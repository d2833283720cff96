/** Comma-separated values as RFC 4180 has them: CRLF, quotes where they are needed. Null is an empty field. */

export type Cell = string | number | null;

export function csvOf(columns: readonly string[], rows: readonly Readonly<Record<string, Cell>>[]): string {
  const lines = [columns.map(field), ...rows.map((row) => columns.map((column) => field(row[column] ?? null)))];
  return lines.map((cells) => `${cells.join(',')}\r\n`).join('');
}

/**
 * Names are chosen by authors of leases and by providers, and spreadsheets run what begins like a formula: such text gets an
 * apostrophe in front, which they show as text. Negative numbers do not occur.
 */
function field(cell: Cell): string {
  if (cell === null) return '';
  const text = String(cell);
  const safe = typeof cell === 'string' && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
