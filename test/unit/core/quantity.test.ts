import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatBytes, formatQuantity, parseQuantity, QuantityError } from '../../../operator/core/quantity.ts';

/** https://github.com/kubernetes/apimachinery/blob/master/pkg/api/resource/quantity_test.go, and the reference's examples. */
const thousandths: [text: string | number, bigint][] = [
  ['0', 0n],
  ['0n', 0n],
  ['0u', 0n],
  ['0m', 0n],
  ['0Ki', 0n],
  ['0Ei', 0n],
  [4, 4_000n],
  [0.5, 500n],
  ['1', 1_000n],
  ['1.', 1_000n],
  ['.5', 500n],
  ['+1', 1_000n],
  ['-1', -1_000n],
  ['-.5', -500n],
  ['100m', 100n],
  ['0.1', 100n],
  ['500m', 500n],
  ['1500m', 1_500n],
  ['1k', 1_000_000n],
  ['1M', 10n ** 9n],
  ['1G', 10n ** 12n],
  ['1T', 10n ** 15n],
  ['1P', 10n ** 18n],
  ['1E', 10n ** 21n],
  ['1Ki', 1_024_000n],
  ['1Mi', 1_048_576_000n],
  ['8Mi', 8n * 1_048_576_000n],
  ['16Gi', 16n * 1_073_741_824_000n],
  ['1.5Gi', 1_610_612_736_000n],
  ['1.01Ki', 1_034_240n],
  ['1Ei', 2n ** 60n * 1000n],
  ['1e3', 1_000_000n],
  ['1E3', 1_000_000n],
  ['1.5e3', 1_500_000n],
  ['1e+3', 1_000_000n],
  ['128974848', 128_974_848_000n],
  ['129e6', 129_000_000_000n],
  ['129M', 129_000_000_000n],
  ['123Mi', 123n * 1_048_576_000n],
  ['1e-3', 1n],
  ['12E', 12n * 10n ** 21n],
  // Smaller than a thousandth is rounded up, away from zero.
  ['1n', 1n],
  ['1u', 1n],
  ['1000u', 1n],
  ['1001u', 2n],
  ['0.0001', 1n],
  ['1.0001', 1_001n],
  ['-1n', -1n],
];

const refused = [
  '',
  ' ',
  '.',
  '-',
  '+',
  '1.1.M',
  '1+1.0M',
  '0.1mi',
  '0.1am',
  'aoeu',
  '.5i',
  '1i',
  '-3.01i',
  '1Ki1',
  '1KiB',
  '1 Gi',
  ' 1',
  '1 ',
  '1,5',
  '0x10',
  'Infinity',
  'NaN',
  '1e',
  '1ee3',
  '1e3m',
  '１',
];

describe('a quantity', () => {
  it.each(thousandths)('%s is understood as Kubernetes does', (text, value) => {
    expect(parseQuantity(text)).toBe(value);
  });

  it.each(refused)('"%s" is refused, with what is allowed', (text) => {
    expect(() => parseQuantity(text)).toThrow(QuantityError);
    expect(() => parseQuantity(text)).toThrow('is not a quantity such as 4, 500m or 16Gi');
  });

  it('shows no more than a little of what was given', () => {
    expect(() => parseQuantity('9'.repeat(5) + 'x'.repeat(1000))).toThrow(/^.{0,90}$/);
  });

  it('reads what it writes', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 10n ** 24n }), (value) => {
        expect(parseQuantity(formatQuantity(value))).toBe(value);
        expect(parseQuantity(formatBytes(value * 1000n))).toBe(value * 1000n);
      }),
      { seed: 7, numRuns: 500 },
    );
  });

  it.each([
    [4_000n, '4'],
    [500n, '500m'],
    [1_500n, '1500m'],
    [0n, '0'],
  ])('%s thousandths are written as %s', (value, text) => {
    expect(formatQuantity(value)).toBe(text);
  });

  it.each([
    [1024n, '1Ki'],
    [1536n, '1536'],
    [16n * 2n ** 30n, '16Gi'],
    [0n, '0'],
    [2n ** 50n, '1024Ti'],
  ])('%s bytes are written as %s', (bytes, text) => {
    expect(formatBytes(bytes * 1000n)).toBe(text);
  });
});
