/**
 * Flags and environment of a program, declared once: parsing, checking, `--help` and the reference come from the same list.
 * A flag wins over its environment variable (GPULEASE_ and the flag in capitals), that over the default.
 */
import { parseArgs } from 'node:util';

export interface Option<T> {
  readonly description: string;
  /** What stands after the flag in the help, e.g. SECONDS. Absent for a switch. */
  readonly value?: string;
  readonly fallback?: string;
  readonly many?: boolean;
  /** What is allowed, for those who check values before the program starts: the charts. */
  readonly allowed?: { readonly min: number; readonly max: number } | { readonly choices: readonly string[] };
  /** Text to value; throws an Error that says what is allowed. Given every text when `many`. */
  readonly parse: (text: string) => T;
}

type Defaulted<T> = Option<T> & { readonly fallback: string };

export function text(description: string, value: string, fallback: string): Defaulted<string>;
export function text(description: string, value: string): Option<string>;
export function text(description: string, value: string, fallback?: string): Option<string> {
  return { description, value, fallback, parse: (t) => t };
}

export const integer = (
  description: string,
  value: string,
  min: number,
  max: number,
  fallback: number,
): Defaulted<number> => ({
  description,
  value,
  fallback: String(fallback),
  allowed: { min, max },
  parse: (t) => {
    const n = Number(t);
    if (!/^-?\d+$/.test(t) || n < min || n > max) throw new Error(`must be a whole number from ${min} to ${max}`);
    return n;
  },
});

export const choice = <const C extends string>(
  description: string,
  choices: readonly C[],
  fallback: C,
): Defaulted<C> => ({
  description: `${description} One of ${choices.join(', ')}.`,
  value: 'WORD',
  fallback,
  allowed: { choices },
  parse: (t) => {
    if (!choices.includes(t as C)) throw new Error(`must be one of ${choices.join(', ')}`);
    return t as C;
  },
});

/** Words with commas between them; "none" for none of them. */
export const someOf = <const C extends string>(
  description: string,
  choices: readonly C[],
  fallback: string,
): Defaulted<readonly C[]> => ({
  description: `${description} Some of ${choices.join(', ')}, with commas between them, or none.`,
  value: 'WORD[,WORD]',
  fallback,
  parse: (t) => {
    const words = t === 'none' ? [] : t.split(',');
    if (!words.every((word) => choices.includes(word as C)))
      throw new Error(`must be none, or some of ${choices.join(', ')} with commas between them`);
    return words as C[];
  },
});

/** KEY=VALUE pairs, the flag given several times or separated by spaces in the environment. */
export const pairs = (description: string, value: string): Option<readonly [string, string]> & { many: true } => ({
  description,
  value,
  many: true,
  parse: (t) => {
    const at = t.indexOf('=');
    if (at < 1 || at === t.length - 1) throw new Error(`must be ${value}`);
    return [t.slice(0, at), t.slice(at + 1)];
  },
});

export interface PortRange {
  readonly from: number;
  readonly to: number;
}

export const portRange = (description: string, fallback: string): Defaulted<PortRange> => ({
  description,
  value: 'FROM-TO',
  fallback,
  parse: (t) => {
    const [, from, to] = /^(\d{1,5})-(\d{1,5})$/.exec(t)?.map(Number) ?? [];
    if (from === undefined || to === undefined || from < 1 || to > 65_535 || from > to)
      throw new Error('must be two ports such as 20000-29999');
    return { from, to };
  },
});

type Declared = Readonly<Record<string, Option<unknown>>>;
type Parsed<D extends Declared> = {
  [K in keyof D]: D[K] extends { many: true }
    ? (D[K] extends Option<infer T> ? T : never)[]
    : D[K] extends { fallback: string }
      ? D[K] extends Option<infer T>
        ? T
        : never
      : (D[K] extends Option<infer T> ? T : never) | undefined;
};

export class UsageError extends Error {}

export const flagOf = (name: string) => name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
const variableOf = (name: string) => `GPULEASE_${flagOf(name).replaceAll('-', '_').toUpperCase()}`;

/**
 * Parses, or throws UsageError that names the flag, what was given and what is allowed. Undefined: help was printed.
 * `words` is filled with what is no flag; without it, such arguments are refused.
 */
export function parseOptions<D extends Declared>(
  usage: string,
  declared: D,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  words?: string[],
): Parsed<D> | undefined {
  const config = Object.fromEntries(
    Object.entries(declared).map(([name, o]) => [
      flagOf(name),
      { type: o.value ? ('string' as const) : ('boolean' as const), multiple: o.many === true },
    ]),
  );
  let values: Record<string, unknown>;
  try {
    const parsed = parseArgs({
      args: [...args],
      options: { ...config, help: { type: 'boolean', short: 'h' } },
      strict: true,
      allowPositionals: words !== undefined,
    });
    values = parsed.values;
    words?.push(...parsed.positionals);
  } catch (error) {
    throw new UsageError(`${(error as Error).message.split('\n')[0]} See --help.`);
  }
  if (values.help) {
    process.stdout.write(help(usage, declared));
    return undefined;
  }
  const out: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(declared)) {
    const given = values[flagOf(name)] ?? env[variableOf(name)] ?? option.fallback;
    const parse = (t: string) => {
      try {
        return option.parse(t);
      } catch (error) {
        throw new UsageError(`--${flagOf(name)} ${(error as Error).message}; given: ${t.slice(0, 80)}`);
      }
    };
    if (option.many)
      out[name] = (
        Array.isArray(given)
          ? given
          : String(given ?? '')
              .split(/\s+/)
              .filter(Boolean)
      ).map((t) => parse(String(t)));
    else out[name] = given === undefined ? undefined : parse(String(given));
  }
  return out as Parsed<D>;
}

function help(usage: string, declared: Declared): string {
  const rows = Object.entries(declared).map(([name, o]) => {
    const fallback = o.fallback === undefined ? '' : ` (default: ${o.fallback})`;
    return [
      `  --${flagOf(name)}${o.value ? ` ${o.value}` : ''}`,
      `${o.description}${fallback}${o.many ? ' May be given several times.' : ''}`,
    ] as const;
  });
  const width = Math.min(34, Math.max(...rows.map(([flag]) => flag.length)) + 2);
  const lines = rows.map(([flag, about]) =>
    flag.length >= width ? `${flag}\n${' '.repeat(width)}${about}` : `${flag.padEnd(width)}${about}`,
  );
  return `${usage.trim()}\n\n${lines.join('\n')}\n${'  --help'.padEnd(width)}Print this.\n\nEach may also be set in the environment, e.g. ${variableOf(Object.keys(declared)[0] ?? 'x')}.\n`;
}
