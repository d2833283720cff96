import { expect, it } from 'vitest';
import { shareStrings } from '../../../operator/engine/intern.ts';

it('an object stays as it was, whatever it holds', () => {
  const object = () => ({
    metadata: { name: 'a', labels: {}, finalizers: ['x', 'x'], deletionTimestamp: undefined },
    spec: { count: 3, on: true, none: null, deep: [[{ name: 'a' }], 'y'], long: 'z'.repeat(10_000) },
  });
  const given = object();
  expect(shareStrings(given)).toBe(given);
  expect(given).toEqual(object());
});

it('goes on when more strings were seen than are remembered', () => {
  const many = { items: Array.from({ length: 50_000 }, (_, i) => `value-${i}`) };
  expect(shareStrings(many).items[49_999]).toBe('value-49999');
  expect(shareStrings({ a: 'value-1' })).toEqual({ a: 'value-1' });
});
