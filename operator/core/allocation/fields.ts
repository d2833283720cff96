/**
 * Field-by-field admission: a rule for each field that may be there, and a refusal for every other. What comes out is
 * built anew from what the rules let through; nothing is passed on because nobody thought of it.
 */
import type { FieldError } from './refusal.ts';

export interface Admission {
  readonly errors: FieldError[];
  /** The provider lets this tenant use the network and files of its node. */
  readonly hostAccess?: boolean;
}

/** Returned for a field that is left out of the result. */
export const left = Symbol('left out');

/** Judges one value at a path: gives back what to keep, or `left`; what is wrong goes into `admission.errors`. */
export type Rule = (value: unknown, path: string, admission: Admission) => unknown;

const maxErrors = 32;

export function refuse(admission: Admission, path: string, message: string, given?: unknown): typeof left {
  if (admission.errors.length < maxErrors) {
    const shown =
      typeof given === 'string' || typeof given === 'number' || typeof given === 'boolean' ? String(given) : undefined;
    admission.errors.push({
      field: path.slice(0, 256),
      ...(shown === undefined ? {} : { given: shown.slice(0, 120) }),
      message: message.slice(0, 512),
    });
  }
  return left;
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const isEmpty = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === '' ||
  value === false ||
  value === 0 ||
  (Array.isArray(value) && value.length === 0) ||
  (isObject(value) && Object.keys(value).length === 0);

/** Not ours to carry, and harmless to leave behind: scheduling wishes, names of the consumer's cluster. */
export const leave: Rule = () => left;

/** Must not be asked for. Absent and empty values are fine: some writers spell out defaults. */
export const never =
  (message: string): Rule =>
  (value, path, admission) =>
    isEmpty(value) ? left : refuse(admission, path, message, value);

/** As `never`, but for a tenant with access to the host. */
export const hostOnly =
  (rule: Rule, message: string): Rule =>
  (value, path, admission) =>
    (admission.hostAccess ? rule : never(message))(value, path, admission);

export const text =
  (max = 4096): Rule =>
  (value, path, admission) => {
    if (value === null) return left;
    if (typeof value !== 'string') return refuse(admission, path, 'must be a string');
    return value.length > max ? refuse(admission, path, `is longer than ${max} characters`) : value;
  };

export const flag: Rule = (value, path, admission) => {
  if (value === null) return left;
  return typeof value === 'boolean' ? value : refuse(admission, path, 'must be true or false', value);
};

export const whole: Rule = (value, path, admission) => {
  if (value === null) return left;
  return Number.isSafeInteger(value) ? value : refuse(admission, path, 'must be a whole number', value);
};

export const wholeOrText: Rule = (value, path, admission) =>
  typeof value === 'number' ? whole(value, path, admission) : text(256)(value, path, admission);

export const oneOf =
  (allowed: readonly unknown[], message: string): Rule =>
  (value, path, admission) => {
    if (value === null) return left;
    return allowed.includes(value) ? value : refuse(admission, path, message, value);
  };

export const list =
  (rule: Rule, max = 1024): Rule =>
  (value, path, admission) => {
    if (value === null) return left;
    if (!Array.isArray(value)) return refuse(admission, path, 'must be a list');
    if (value.length > max) return refuse(admission, path, `has more than ${max} entries`);
    return value.map((item, index) => rule(item, `${path}[${index}]`, admission)).filter((item) => item !== left);
  };

export const mapOf =
  (rule: Rule, max = 1024): Rule =>
  (value, path, admission) => {
    if (value === null) return left;
    if (!isObject(value)) return refuse(admission, path, 'must be an object');
    const entries = Object.entries(value);
    if (entries.length > max) return refuse(admission, path, `has more than ${max} entries`);
    const kept = entries
      .map(([key, item]) => [key, rule(item, `${path}[${key.slice(0, 80)}]`, admission)] as const)
      .filter(([, item]) => item !== left);
    return Object.fromEntries(kept);
  };

/** The fields of one object. A field without a rule is refused by name. */
export const fields =
  (rules: Readonly<Record<string, Rule>>, also?: Rule): Rule =>
  (value, path, admission) => {
    if (value === null) return left;
    if (!isObject(value)) return refuse(admission, path, 'must be an object');
    const kept: Record<string, unknown> = {};
    for (const [key, item] of Object.entries(value)) {
      const at = path === '' ? key.slice(0, 80) : `${path}.${key.slice(0, 80)}`;
      const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
      if (rule === undefined) {
        refuse(admission, at, 'is not a field that pods on leased nodes may have');
        continue;
      }
      const result = rule(item, at, admission);
      if (result !== left && result !== undefined) kept[key] = result;
    }
    return also === undefined ? kept : also(kept, path, admission);
  };
