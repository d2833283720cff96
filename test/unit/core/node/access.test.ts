import { expect, test } from 'vitest';
import { mayUseLease } from '../../../../operator/core/node/access.ts';

test.each<[string, readonly string[], string, boolean]>([
  ['a namespace that is named', ['ml', 'team-a'], 'team-a', true],
  ['no other one', ['ml'], 'team-a', false],
  ['nobody, where none is named', [], 'ml', false],
  ['every one by "*"', ['*'], 'made-later', true],
  ['no pattern but that', ['team-*'], 'team-a', false],
  ['nothing without a namespace', ['*'], '', false],
])('lets in %s', (_, allowed, namespace, may) => {
  expect(mayUseLease(allowed, namespace)).toBe(may);
});
