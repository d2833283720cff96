/** Whether a stored pod status says all of a wanted one already: then nothing is written. */
import type { PodCondition, PodStatus } from './pod.ts';

export function sameStatus(stored: PodStatus | undefined, wanted: PodStatus): boolean {
  return Object.entries(wanted).every(([field, value]) => {
    const before = (stored as Record<string, unknown> | undefined)?.[field];
    if (field === 'conditions') return sameConditions(stored?.conditions, value as PodCondition[]);
    return same(before, value);
  });
}

/** Others' conditions are none of ours. */
function sameConditions(stored: readonly PodCondition[] | undefined, wanted: readonly PodCondition[]): boolean {
  return wanted.every((condition) => {
    const before = stored?.find((c) => c.type === condition.type);
    return before !== undefined && same({ ...before, lastProbeTime: undefined }, condition);
  });
}

/** The API server leaves out what is null, and puts in empty objects: they mean the same. */
function same(a: unknown, b: unknown): boolean {
  if (isNothing(a) || isNothing(b)) return isNothing(a) && isNothing(b);
  if (Array.isArray(a) || Array.isArray(b))
    return Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((item, i) => same(item, b[i]));
  if (typeof a === 'object' && typeof b === 'object') {
    const left = a as Record<string, unknown>;
    const right = b as Record<string, unknown>;
    return [...new Set([...Object.keys(left), ...Object.keys(right)])].every((key) => same(left[key], right[key]));
  }
  return a === b;
}

const isNothing = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  (typeof value === 'object' &&
    !Array.isArray(value) &&
    Object.values(value).every(isNothing) &&
    !hasOwnMeaning(value));

/** `running: {}` says something by being there. */
const hasOwnMeaning = (value: object): boolean => 'running' in value || 'waiting' in value || 'terminated' in value;
