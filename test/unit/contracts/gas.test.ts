import { expect, test } from 'vitest';
import { compareGas } from '../../../operator/contracts/gas.ts';

test.each([
  ['says nothing of what is as it was', { open: 100_000 }, { open: 100_000 }, []],
  ['says nothing within 5 %, either way', { open: 100_000, close: 100_000 }, { open: 105_000, close: 95_000 }, []],
  [
    'says which call costs more, and by how much',
    { open: 100_000, close: 70_000 },
    { open: 105_001, close: 70_000 },
    ['gas of "open" is 105001, was 100000: +5.0 %. If that is meant, --update-gas writes it down'],
  ],
  [
    'says which call costs less: the table must be true',
    { open: 100_000 },
    { open: 80_000 },
    ['gas of "open" is 80000, was 100000: -20.0 %. If that is meant, --update-gas writes it down'],
  ],
  [
    'says what is new and what is gone',
    { open: 1 },
    { close: 1 },
    [
      'gas of "close" is not in gas.json: --update-gas writes it',
      'gas of "open" is in gas.json and was not measured: --update-gas takes it out',
    ],
  ],
] as const)('%s', (_, before, now, lines) => {
  expect(compareGas(before as Record<string, number>, now as Record<string, number>)).toEqual(lines);
});
