/**
 * Reading what a provider says: each value only if it is of its type and of sane size. A status that the consumer's API server
 * would refuse must not be made of it, or all of the pod's status would stand still.
 */

import { plainText } from '../plain-text.ts';

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
export const record = (value: unknown): Record<string, unknown> => (isRecord(value) ? value : {});
export const list = (value: unknown, most: number): unknown[] => (Array.isArray(value) ? value.slice(0, most) : []);
/** For people: nothing in it steers a terminal. Empty text is no text: Kubernetes leaves such fields out. */
export const text = (value: unknown, most: number): string | undefined =>
  typeof value === 'string' && value !== '' ? plainText(value.slice(0, most).toWellFormed()) : undefined;
export const word = (value: unknown): string | undefined =>
  typeof value === 'string' && /^[A-Za-z][A-Za-z0-9_,:.-]{0,127}$/.test(value) ? value : undefined;
export const statusWord = (value: unknown): boolean => value === 'True' || value === 'False' || value === 'Unknown';
export const time = (value: unknown): string | undefined =>
  typeof value === 'string' &&
  /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/.test(value) &&
  !Number.isNaN(Date.parse(value))
    ? value
    : undefined;
export const count = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 0x7fffffff ? value : 0;
/** A number that Kubernetes takes for a user or a group. */
export const whole = (value: unknown): number | undefined =>
  typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 0x7fffffff ? value : undefined;
/** Amounts of those resources that were asked for; undefined where nothing is said. */
export function quantities(
  value: unknown,
  asked: Readonly<Record<string, unknown>> | undefined,
): Record<string, string> | undefined {
  if (!isRecord(value)) return undefined;
  const known = Object.keys(asked ?? {}).flatMap((name) => {
    const quantity = value[name];
    return typeof quantity === 'string' && /^\d{1,15}(\.\d{1,3})?(m|[kKMGTPE]i?)?$/.test(quantity)
      ? [[name, quantity] as const]
      : [];
  });
  return known.length === 0 ? undefined : Object.fromEntries(known);
}
/** Out of range is no success. */
export const exitCode = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && Math.abs(value) <= 0x7fffffff ? value : 255;
export const containerId = (value: unknown): string | undefined =>
  typeof value === 'string' && /^[a-z0-9+.-]{1,32}:\/\/[A-Za-z0-9_.-]{1,128}$/.test(value) ? value : undefined;
export const address = (value: unknown): string | undefined =>
  typeof value === 'string' && value.length <= 45 && (isIPv4(value) || isIPv6(value)) ? value : undefined;
/** One of each family at most, as Kubernetes has it. */
export const addresses = (values: readonly unknown[]): string[] => {
  const known = values.flatMap((value) => address(value) ?? []);
  return known.filter((one, i) => known.findIndex((other) => other.includes(':') === one.includes(':')) === i);
};
const isIPv4 = (value: string): boolean =>
  /^\d{1,3}(\.\d{1,3}){3}$/.test(value) &&
  value.split('.').every((part) => Number(part) <= 255 && String(Number(part)) === part);

const isIPv6 = (value: string): boolean => {
  const halves = value.split('::');
  if (halves.length > 2) return false;
  const groups = halves.flatMap((half) => (half === '' ? [] : half.split(':')));
  return (
    groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group)) &&
    (halves.length === 2 ? groups.length < 8 : groups.length === 8)
  );
};
