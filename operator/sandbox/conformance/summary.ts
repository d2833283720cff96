/** What a run of the suite showed, out of Ginkgo's report. Pure: the report and a few facts in, figures and lines out. */
import { needsHostAccess, type Profile } from './specs.ts';

/** The parts of Ginkgo's JSON report that are read. */
export interface GinkgoSuite {
  readonly SpecReports?: readonly GinkgoSpec[] | null;
}
export interface GinkgoSpec {
  readonly ContainerHierarchyTexts?: readonly string[] | null;
  readonly LeafNodeText: string;
  readonly LeafNodeType: string;
  readonly LeafNodeLocation: { readonly FileName: string; readonly LineNumber: number };
  readonly State: string;
  /** Nanoseconds. */
  readonly RunTime: number;
  readonly Failure?: {
    readonly Message?: string;
    readonly Location?: { readonly FileName: string; readonly LineNumber: number };
  };
}

export interface Spec {
  readonly name: string;
  /** Under test/e2e of Kubernetes. */
  readonly file: string;
  readonly seconds: number;
  readonly message?: string;
  /** file:line where it failed. */
  readonly at?: string;
  /** It needs access to the host, which this provider refuses: as it should be. */
  readonly refused?: true;
}

export interface Outcome {
  readonly passed: readonly Spec[];
  readonly failed: readonly Spec[];
  readonly skipped: readonly Spec[];
  /** Failures around the specs: setting up, tearing down. */
  readonly suiteErrors: readonly string[];
}

/** Where its pods were bound: node → how many. */
export type PodsByNode = Readonly<Record<string, number>>;

const maxMessage = 2000;

/** `selected`: whether a spec was to be run at all; the report lists all that the suite knows. */
export function outcomeOf(
  suites: readonly GinkgoSuite[],
  selected: (name: string) => boolean,
  profile: Profile,
): Outcome {
  const outcome = { passed: [] as Spec[], failed: [] as Spec[], skipped: [] as Spec[], suiteErrors: [] as string[] };
  for (const spec of suites.flatMap((suite) => suite.SpecReports ?? [])) {
    const name = [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText].filter(Boolean).join(' ');
    const said = withCause(spec.Failure?.Message?.trim() ?? '');
    if (spec.LeafNodeType !== 'It') {
      if (spec.State !== 'passed' && spec.State !== 'skipped')
        outcome.suiteErrors.push(`${spec.LeafNodeType}: ${said || spec.State}`.slice(0, maxMessage));
      continue;
    }
    if (!selected(name)) continue;
    const kind = kindOf(spec.State, said);
    const message = said || (kind === 'failed' ? (spec.State === 'skipped' ? 'not run' : spec.State) : '');
    const at = spec.Failure?.Location;
    outcome[kind].push({
      name,
      file: shortFile(spec.LeafNodeLocation.FileName),
      seconds: Math.round(spec.RunTime / 1e8) / 10,
      ...(message && { message: message.slice(0, maxMessage) }),
      ...(kind === 'failed' && at && { at: `${shortFile(at.FileName)}:${at.LineNumber}` }),
      ...(kind === 'failed' && profile === 'baseline' && needsHostAccess(name) && { refused: true as const }),
    });
  }
  return outcome;
}

/** A pod that was refused stands in the message as YAML, its reason at the very end: what a reader wants first. */
function withCause(message: string): string {
  const [, cause, reason] = /^ +message: '?(spec\.[^\n]*?)'?\n(?:[^\n]*\n){0,8}? +reason: (\w+)$/m.exec(message) ?? [];
  return cause === undefined ? message : `${reason}: ${cause}. ${message}`;
}

/** Skipped with a message: the spec said so itself. Skipped without: it never ran, which is no success. */
function kindOf(state: string, message: string): 'passed' | 'failed' | 'skipped' {
  if (state === 'passed') return 'passed';
  if (state === 'pending' || (state === 'skipped' && message !== '')) return 'skipped';
  return 'failed';
}

const shortFile = (file: string): string => file.split('/test/e2e/').at(-1) ?? file;

/** Specs that passed though this profile should have refused what they ask for. */
export const leaksOf = (outcome: Outcome, profile: Profile): Spec[] =>
  profile === 'baseline' ? outcome.passed.filter((spec) => needsHostAccess(spec.name)) : [];

/** 0: as it should be. 1: something failed. 2: nothing was measured. */
export function exitCodeOf(outcome: Outcome, leaks: readonly Spec[]): 0 | 1 | 2 {
  const { passed, failed, skipped, suiteErrors } = outcome;
  if (passed.length + failed.length + skipped.length === 0) return 2;
  const unwanted = failed.filter((spec) => !spec.refused).length + suiteErrors.length + leaks.length;
  return unwanted > 0 ? 1 : 0;
}

/** For people: a line a file, then each failure with its reason. */
export function linesOf(outcome: Outcome, podsByNode: PodsByNode, node: string): string[] {
  const kinds = ['passed', 'failed', 'skipped'] as const;
  const rows = new Map<string, Record<(typeof kinds)[number], number>>();
  for (const kind of kinds)
    for (const { file } of outcome[kind]) {
      const row = rows.get(file) ?? { passed: 0, failed: 0, skipped: 0 };
      row[kind] += 1;
      rows.set(file, row);
    }
  const width = Math.max(4, ...[...rows.keys()].map((file) => file.length));
  const lines = [`${'file'.padEnd(width)}  passed  failed  skipped`];
  for (const [file, row] of [...rows].sort(([a], [b]) => (a < b ? -1 : 1)))
    lines.push(
      `${file.padEnd(width)}  ${String(row.passed).padStart(6)}  ${String(row.failed).padStart(6)}  ${String(row.skipped).padStart(7)}`,
    );
  for (const kind of ['failed', 'skipped'] as const) {
    if (outcome[kind].length > 0) lines.push('', `${kind}:`);
    for (const spec of outcome[kind]) {
      lines.push(`  ${spec.name}`);
      if (spec.refused) lines.push('      refused, as it should be: it needs access to the host (--profile trusted)');
      lines.push(`      ${reasonOf(spec)}`);
    }
  }
  for (const error of outcome.suiteErrors) lines.push('', `around the specs: ${error.slice(0, 400)}`);
  const all = kinds.flatMap((kind) => outcome[kind]).sort((a, b) => b.seconds - a.seconds);
  lines.push(
    '',
    `slowest: ${all
      .slice(0, 5)
      .map((s) => `${Math.round(s.seconds)} s ${s.file.split('/').at(-1)}`)
      .join('; ')}`,
  );
  const places = Object.entries(podsByNode).sort(([, a], [, b]) => b - a);
  lines.push(`pods by node: ${places.map(([name, count]) => `${name} ${count}`).join(', ') || 'none'}`);
  if (places.some(([name]) => name !== node))
    lines.push(`WARNING: some pods ran elsewhere: this is not a measure of ${node} alone`);
  return lines;
}

/** The message on one line, cut. */
function reasonOf({ message = '', at }: Spec): string {
  const line = message.replaceAll(/\s+/g, ' ').trim();
  const cut = line.length > 400 ? `${line.slice(0, 399)}…` : line;
  return at ? `${cut} (${at})` : cut;
}

/** How far a running suite is, from what it prints: a bullet for each spec that ended. */
export function progressOf(log: string): { readonly total?: number; readonly done: number; readonly failed: number } {
  const total = /^Will run (\d+) of \d+ specs/m.exec(log)?.[1];
  return {
    ...(total === undefined ? {} : { total: Number(total) }),
    done: (log.match(/^•+/gm) ?? []).join('').length,
    failed: log.match(/^• \[(FAILED|PANICKED|TIMEDOUT|INTERRUPTED)\]/gm)?.length ?? 0,
  };
}
