/**
 * What becomes of each field of an object, as data: one rule a field, from which the translation is made and the reference is
 * written. A field without a rule is refused by name, since it might be the one that makes the pod safe, or right.
 */

/** What users read of a field. */
export type Fate = 'carried' | 'rewritten' | 'left behind' | 'refused';

export type PodRefusal =
  | 'NamespaceNotAllowed'
  | 'HostAccessRefused'
  | 'PrivilegedRefused'
  | 'VolumeNotSupported'
  | 'LeaseExceeded'
  | 'ServiceAccountTokenNotCarried'
  | 'FieldNotSupported';

export class Refused extends Error {
  readonly reason: PodRefusal;
  constructor(reason: PodRefusal, message: string) {
    super(message);
    this.reason = reason;
  }
}

type Json = Record<string, unknown>;

/** Where a value stands. */
export interface Place<W> {
  /** As people write it: `spec.containers[0].env[1]`. */
  readonly path: string;
  readonly work: W;
  /** The object that the field is of, as it was given. */
  readonly of: Readonly<Json>;
}

export interface FieldRule<W> {
  readonly fate: Fate;
  /** What is done with it, or why not; plain words. */
  readonly note?: string;
  /** Rules for what is inside; a function where tables refer to each other. */
  readonly inside?: () => ObjectTable<W>;
  readonly isList?: boolean;
  /** Gives back what is sent; undefined sends nothing. Throws `Refused`. */
  readonly carry: (value: unknown, place: Place<W>) => unknown;
}

export interface ObjectTable<W> {
  /** The schema's name in Kubernetes' core/v1. */
  readonly type: string;
  /** In the order in which they are handled. */
  readonly fields: Readonly<Record<string, FieldRule<W>>>;
  /** Last look at the whole object. */
  readonly also?: (carried: Json, place: Place<W>) => Json;
  /** For fields that no rule knows. */
  readonly unknown?: (field: string, path: string) => Refused;
}

/** What says nothing: absent, or spelled out as empty by whoever wrote the object. */
const isEmpty = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === false ||
  value === '' ||
  value === 0 ||
  (Array.isArray(value) && value.length === 0);

/** Each pod is translated many times. */
const known = new WeakMap<object, unknown>();
function rulesOf<W>(table: ObjectTable<W>): readonly (readonly [string, FieldRule<W>])[] {
  const rules = (known.get(table) as [string, FieldRule<W>][] | undefined) ?? Object.entries(table.fields);
  known.set(table, rules);
  return rules;
}

export function carryObject<W>(table: ObjectTable<W>, object: object, path: string, work: W): Json {
  const given = object as Json;
  for (const field in given) {
    if (Object.hasOwn(table.fields, field) || isEmpty(given[field])) continue;
    throw (
      table.unknown?.(field, `${path}.${field}`) ??
      new Refused('FieldNotSupported', `${path}.${field}: not carried to leased nodes yet`)
    );
  }
  const carried: Json = {};
  for (const [field, rule] of rulesOf(table)) {
    const value = given[field];
    if (value === undefined || value === null) continue;
    const result = rule.carry(value, { path: `${path}.${field}`, work, of: given });
    if (result !== undefined) carried[field] = result;
  }
  return table.also ? table.also(carried, { path, work, of: given }) : carried;
}

/** A table and all that stand inside it, each type once, outer ones first. */
export function tablesWithin<W>(table: ObjectTable<W>, found = new Map<string, ObjectTable<W>>()) {
  if (found.has(table.type)) return found;
  found.set(table.type, table);
  for (const { inside } of Object.values(table.fields)) if (inside) tablesWithin(inside(), found);
  return found;
}

// --- the rules, in the words of the tables -----------------------------------------------------------------------------

/** Builders of rules for one kind of work. */
export function fieldRules<W>() {
  const insideObject = (table: () => ObjectTable<W>) => (value: unknown, place: Place<W>) =>
    carryObject(table(), value as object, place.path, place.work);
  const eachObject = (table: () => ObjectTable<W>) => (value: unknown, place: Place<W>) => {
    const list = value as object[];
    return list.length === 0
      ? undefined
      : list.map((item, i) => carryObject(table(), item, `${place.path}[${i}]`, place.work));
  };
  return {
    /** As it is. */
    carried: (note?: string): FieldRule<W> => ({
      fate: 'carried',
      note,
      carry: (value) => (Array.isArray(value) && value.length === 0 ? undefined : value),
    }),
    /** As it is, field by field. */
    object: (table: () => ObjectTable<W>, note?: string): FieldRule<W> => ({
      fate: 'carried',
      note,
      inside: table,
      carry: insideObject(table),
    }),
    /** A list, each as it is, field by field. */
    each: (table: () => ObjectTable<W>, note?: string): FieldRule<W> => ({
      fate: 'carried',
      note,
      inside: table,
      isList: true,
      carry: eachObject(table),
    }),
    /** One of few values; others are refused. */
    only: (allowed: readonly unknown[], reason: PodRefusal, message: string): FieldRule<W> => ({
      fate: 'carried',
      note: `${message}; otherwise refused`,
      carry(value, place) {
        if (!allowed.includes(value)) throw new Refused(reason, `${place.path}: ${message}`);
        return value;
      },
    }),
    rewritten: (
      note: string,
      carry: FieldRule<W>['carry'],
      inside?: () => ObjectTable<W>,
      isList = false,
    ): FieldRule<W> => ({ fate: 'rewritten', note, carry, ...(inside && { inside }), isList }),
    leftBehind: (note: string, see?: (value: unknown, place: Place<W>) => void): FieldRule<W> => ({
      fate: 'left behind',
      note,
      carry(value, place) {
        see?.(value, place);
        return undefined;
      },
    }),
    refused: (reason: PodRefusal, message: string): FieldRule<W> => ({
      fate: 'refused',
      note: message,
      carry(value, place) {
        if (!isEmpty(value)) throw new Refused(reason, `${place.path}: ${message}`);
        return undefined;
      },
    }),
  };
}
