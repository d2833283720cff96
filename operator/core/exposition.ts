/**
 * Prometheus' text format, as much of it as is needed to take a page apart and to put what may stay of it together anew.
 * Nothing is passed on as it came: one malformed line, or one series that is there twice, and readers throw away the page.
 *
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 */

export type Label = readonly [name: string, value: string];

export interface Sample {
  readonly name: string;
  /** In the order in which they stand. */
  readonly labels: readonly Label[];
  /** A number as it was written: 1.5e+09, NaN, +Inf. */
  readonly value: string;
  readonly timestampMs?: number;
}

/** What HELP and TYPE said of the samples that follow. */
export interface Family {
  readonly name: string;
  readonly help?: string;
  readonly type?: string;
}

const longestLine = 16_384;
const longestHelp = 1024;
const mostLabels = 64;

const metricName = /[a-zA-Z_:][a-zA-Z0-9_:]*/y;
const oneLabel = /[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\[\\"n])*)"[ \t]*(,?)/y;
const closing = /[ \t]*\}/y;
const valueAndTime =
  /[ \t]+([+-]?(?:\d{1,24}(?:\.\d{0,24})?|\.\d{1,24})(?:[eE][+-]?\d{1,3})?|NaN|[+-]?Inf)(?:[ \t]+(-?\d{1,15}))?[ \t]*\r?$/y;

/** Undefined: no sample, or none that is well formed. */
export function parseSample(line: string): Sample | undefined {
  if (line.length > longestLine) return undefined;
  let at = 0;
  const take = (pattern: RegExp): RegExpExecArray | undefined => {
    pattern.lastIndex = at;
    const found = pattern.exec(line);
    if (!found) return undefined;
    at = pattern.lastIndex;
    return found;
  };
  const name = take(metricName)?.[0];
  if (name === undefined) return undefined;
  const labels: Label[] = [];
  if (line[at] === '{') {
    at += 1;
    for (let more = true; more && !take(closing); ) {
      const label = take(oneLabel);
      if (!label || labels.length >= mostLabels || labels.some(([known]) => known === label[1])) return undefined;
      labels.push([label[1]!, label[2]!.replace(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c))]);
      more = label[3] === ',';
      if (!more && !take(closing)) return undefined;
    }
  }
  const rest = take(valueAndTime);
  if (!rest) return undefined;
  return { name, labels, value: rest[1]!, ...(rest[2] !== undefined && { timestampMs: Number(rest[2]) }) };
}

const escaped = (value: string): string =>
  value.replace(/[\\"\n]/g, (c) => (c === '\n' ? '\\n' : `\\${c}`)).replaceAll('\r', ' ');

const seriesText = ({ name, labels }: Sample): string =>
  labels.length === 0 ? name : `${name}{${labels.map(([key, value]) => `${key}="${escaped(value)}"`).join(',')}}`;

export const numberOf = ({ value }: Sample): number => Number(value.replace('Inf', 'Infinity'));

export const labelOf = (sample: Sample, name: string): string | undefined =>
  sample.labels.find(([key]) => key === name)?.[1];

const types: readonly string[] = ['counter', 'gauge', 'histogram', 'summary', 'untyped'];

/** Samples of histograms and summaries are called after their family, and one of these. */
const suffixes: readonly string[] = ['', '_bucket', '_sum', '_count'];

/** Takes a page line by line, so that one of any length needs no memory. */
export function createPageReader(onSample: (sample: Sample, family: Family) => void): (line: string) => void {
  let family: Family | undefined;
  return (line) => {
    if (line === '') return;
    if (line.startsWith('#')) {
      if (line.length > longestLine) return;
      const [, word, name, text = ''] =
        /^#[ \t]+(HELP|TYPE)[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]+(.*))?$/.exec(line) ?? [];
      if (name === undefined) return;
      if (family?.name !== name) family = { name };
      if (word === 'HELP') family = { ...family, help: text.slice(0, longestHelp) };
      else if (types.includes(text.trim())) family = { ...family, type: text.trim() };
      return;
    }
    const sample = parseSample(line);
    if (!sample) return;
    const known = family;
    const isOfFamily = known && suffixes.some((suffix) => sample.name === known.name + suffix);
    onSample(sample, isOfFamily ? known : { name: sample.name });
  };
}

/** All of a page that is in memory already. */
export function readPage(text: string, onSample: (sample: Sample, family: Family) => void): void {
  const line = createPageReader(onSample);
  for (let from = 0; from < text.length; ) {
    const to = text.indexOf('\n', from);
    line(text.slice(from, to < 0 ? undefined : to));
    if (to < 0) break;
    from = to + 1;
  }
}

export interface PageWriter {
  /** What is there already, and what is beyond the bound, is left out. */
  add(sample: Sample, family: Family): void;
  readonly samples: number;
  text(): string;
}

/** Each family together, under its HELP and TYPE; families in the order in which they came. */
export function createPageWriter(mostSamples: number): PageWriter {
  const families = new Map<string, { readonly family: Family; readonly lines: string[] }>();
  const series = new Set<string>();
  return {
    add(sample, family) {
      const text = seriesText(sample);
      if (series.size >= mostSamples || series.has(text)) return;
      series.add(text);
      const known = families.get(family.name) ?? { family, lines: [] };
      families.set(family.name, known);
      const time = sample.timestampMs === undefined ? '' : ` ${sample.timestampMs}`;
      known.lines.push(`${text} ${sample.value}${time}`);
    },
    get samples() {
      return series.size;
    },
    text() {
      const lines: string[] = [];
      for (const { family, lines: own } of families.values()) {
        if (family.help !== undefined) lines.push(`# HELP ${family.name} ${helpText(family.help)}`);
        if (family.type !== undefined) lines.push(`# TYPE ${family.name} ${family.type}`);
        lines.push(...own);
      }
      return lines.length === 0 ? '' : `${lines.join('\n')}\n`;
    },
  };
}

/** Escapes in a help text are kept as they came; a backslash that begins none is made one. */
const helpText = (help: string): string =>
  help.replace(/\\[\\n]?/g, (found) => (found.length === 2 ? found : '\\\\')).replace(/[\r\n]/g, ' ');
