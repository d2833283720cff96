/** Who is a stranger, and for how long. */
import { expect, test } from 'vitest';
import { knownData, mostKnown, parseKnown, withKnown } from '../../../../operator/core/allocation/first-contact.ts';

const account = (n: number) => `0x${n.toString(16).padStart(40, '0')}`;

test('who is known stays so through the ConfigMap, with the time of the first look', () => {
  const known = withKnown(withKnown({}, account(1), 10), account(1), 20);
  expect(parseKnown(knownData(withKnown(known, account(2), 30)))).toEqual({ [account(1)]: 10, [account(2)]: 30 });
});

test('what cannot be read is nobody', () => {
  expect(parseKnown({ known: 'everybody\n0xzz 1\n' })).toEqual({});
  expect(parseKnown(undefined)).toEqual({});
});

test('there is an end to it, far below what a ConfigMap holds', () => {
  let known = Object.fromEntries(Array.from({ length: mostKnown }, (_, i) => [account(i + 1), i]));
  known = { ...withKnown(known, account(999_999), 999_999) };
  expect(Object.keys(known)).toHaveLength(mostKnown);
  expect(known).toHaveProperty(account(999_999));
  expect(known).not.toHaveProperty(account(1));
  expect(knownData(known).known!.length).toBeLessThan(700_000);
});
