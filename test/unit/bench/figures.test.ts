import { describe, expect, test } from 'vitest';
import { isMet, median, percentile, table, targetInWords, told } from '../../bench/figures.ts';
import { requestsPer } from '../../bench/requests.ts';

describe('of many measurements', () => {
  test.each([
    [[3], 3],
    [[1, 9, 2], 2],
    [[1, 2, 3, 10], 2.5],
  ])('the median of %j is %d', (values, expected) => expect(median(values)).toBe(expected));

  test.each([
    [0.5, 10],
    [0.95, 19],
    [1, 20],
    [0.01, 1],
  ])('the %d quantile is a value that was measured', (share, expected) =>
    expect(
      percentile(
        Array.from({ length: 20 }, (_, i) => 20 - i),
        share,
      ),
    ).toBe(expected));

  test('none make no figure', () => {
    expect(median([])).toBeNaN();
    expect(percentile([], 0.5)).toBeNaN();
  });

  test('three digits are told', () => {
    expect([told(1234.5), told(0.012345), told(2.5)]).toEqual([1230, 0.0123, 2.5]);
  });
});

describe('a target', () => {
  test.each([
    [{ what: 'x', measured: 2.5, atMost: 2.5 }, true],
    [{ what: 'x', measured: 2.51, atMost: 2.5 }, false],
    [{ what: 'x', measured: 0.6, atLeast: 0.6 }, true],
    [{ what: 'x', measured: 0.59, atLeast: 0.6 }, false],
    // What was not measured was not met.
    [{ what: 'x', measured: Number.NaN, atMost: 1 }, false],
  ])('%j is met: %s', (target, met) => {
    expect(isMet(target)).toBe(met);
    expect(targetInWords(target).startsWith(met ? 'met' : 'MISSED')).toBe(true);
  });
});

test('a table has its figures below one another', () => {
  expect(
    table(
      ['', 'ms'],
      [
        ['straight', '9'],
        ['ours', '12'],
      ],
    ).split('\n'),
  ).toEqual(['           ms', 'straight    9', 'ours       12']);
});

test('requests are told for each pod, and the odd one not at all', () => {
  expect(
    requestsPer(
      100,
      { 'operator PATCH': 50, 'gateway GET': 7 },
      { 'operator PATCH': 250, 'gateway GET': 9, 'gateway POST': 100 },
    ),
  ).toEqual({ 'operator PATCH': 2, 'gateway POST': 1 });
});
