/** What an attack is: somebody tries something that must be refused, and says what came of it. */
import type { Target } from './target.ts';

export type Who = 'passer-by' | 'consumer' | 'pod' | 'provider' | 'relay';

export interface Attack {
  readonly who: Who;
  readonly name: string;
  /** What must come of it, for the table. */
  readonly expected: string;
  /** Cannot be tried on the fakes of the unit tests: `clusters` needs API servers, `containers` a kubelet that runs some. */
  readonly needs?: 'clusters' | 'containers';
  /** Takes half a minute or more. */
  readonly slow?: true;
  /** What was seen, in a few words. Throws GotThrough. */
  run(target: Target): Promise<string>;
}

/** The attack came through, or what came of it is not what it should be. */
export class GotThrough extends Error {}

export function must(holds: boolean, seen: string): asserts holds {
  if (!holds) throw new GotThrough(seen);
}

export interface Row {
  readonly attack: Attack;
  readonly verdict: 'refused' | 'GOT THROUGH' | 'skipped';
  readonly seen: string;
  readonly ms: number;
}

/** One after the other; after each, an honest caller must be answered. */
export async function attackAll(
  attacks: readonly Attack[],
  target: Target,
  options: { readonly has: ReadonlySet<NonNullable<Attack['needs']>>; readonly told?: (row: Row) => void },
): Promise<Row[]> {
  const rows: Row[] = [];
  for (const attack of attacks) {
    const startedAt = performance.now();
    const row = (verdict: Row['verdict'], seen: string) => {
      const made = { attack, verdict, seen: oneLine(seen), ms: Math.round(performance.now() - startedAt) };
      rows.push(made);
      options.told?.(made);
    };
    if (attack.needs && !options.has.has(attack.needs)) {
      row('skipped', `needs ${attack.needs}`);
      continue;
    }
    try {
      const seen = await attack.run(target);
      const honest = await target.honest();
      if (honest === undefined) row('refused', seen);
      else row('GOT THROUGH', `${seen}; afterwards an honest caller: ${honest}`);
    } catch (error) {
      const { message, stack } = error as Error;
      row('GOT THROUGH', error instanceof GotThrough ? message : `could not be tried: ${stack ?? message}`);
    }
  }
  return rows;
}

const oneLine = (text: string): string => text.replace(/[^\x20-\x7e\xa0-\uffff]+/g, ' ').slice(0, 400);

/** What is expected of an answer: its status, and that it is a problem document. */
export function refused(
  answer: { status: number; type?: string; body: string },
  statuses: number | readonly number[],
  words?: RegExp,
): string {
  const allowed = [statuses].flat();
  const problem = answer.type?.startsWith('application/problem+json') === true;
  let detail = '';
  try {
    const told = JSON.parse(answer.body) as { detail?: string; reason?: string };
    detail = told.reason ?? told.detail ?? '';
  } catch {
    // Told below, as it is.
  }
  const seen = `${answer.status} ${detail || answer.body.slice(0, 80)}`.slice(0, 110);
  must(allowed.includes(answer.status), `${seen} (expected ${allowed.join(' or ')})`);
  must(problem, `${seen}: not a problem document (${answer.type})`);
  must(!/\bat .*\.(ts|js):\d+/.test(answer.body), `${seen}: shows how it is made`);
  if (words) must(words.test(answer.body), `${seen}: does not say ${words}`);
  return seen;
}
