/** Whether a stored pod status says all of a wanted one already; and what is to be written when it does not. */
import type { PodCondition, PodStatus } from './pod.ts';

export function sameStatus(stored: PodStatus | undefined, wanted: PodStatus): boolean {
  return Object.entries(wanted).every(([field, value]) => {
    const before = (stored as Record<string, unknown> | undefined)?.[field];
    if (field === 'conditions') return sameConditions(stored?.conditions, value as PodCondition[]);
    return same(before, value);
  });
}

/**
 * The status as a strategic merge patch. Addresses are merged by their value, so that those which are no more have to be taken
 * away by name: two of one family are refused, and all of the status with them.
 */
export function statusPatch(stored: PodStatus | undefined, wanted: PodStatus): object {
  const merged = (field: 'podIPs' | 'hostIPs') => {
    const there = stored?.[field] ?? [];
    const list = wanted[field];
    if (list === undefined || there.length === 0) return {};
    const gone = there
      .filter(({ ip }) => !list.some((one) => one.ip === ip))
      .map(({ ip }) => ({ ip, $patch: 'delete' }));
    return gone.length === 0 ? {} : { [field]: [...gone, ...list] };
  };
  return { ...wanted, ...merged('podIPs'), ...merged('hostIPs') };
}

/** What the API server makes of that patch. */
export function patchedStatus(stored: PodStatus | undefined, wanted: PodStatus): PodStatus {
  const conditions = wanted.conditions ?? [];
  const others = stored?.conditions?.filter(({ type }) => !conditions.some((c) => c.type === type)) ?? [];
  return { ...stored, ...wanted, conditions: [...others, ...conditions.filter((c) => c.$patch !== 'delete')] };
}

/** Others' conditions are none of ours. */
function sameConditions(stored: readonly PodCondition[] | undefined, wanted: readonly PodCondition[]): boolean {
  return wanted.every((condition) => {
    const before = stored?.find((c) => c.type === condition.type);
    if (condition.$patch === 'delete') return before === undefined;
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
