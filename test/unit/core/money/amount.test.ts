import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AmountError, formatAmount, parseAmount } from '../../../../operator/core/money/amount.ts';

describe('amounts', () => {
  it.each([
    ['0.34', 6, 340_000n],
    ['0', 6, 0n],
    ['12', 6, 12_000_000n],
    ['0.000001', 6, 1n],
    ['1.10', 6, 1_100_000n],
    ['0.5000000000', 6, 500_000n],
    ['7', 0, 7n],
    ['0.000000000000000001', 18, 1n],
    ['123456789012345678901234567890.123456', 18, 123456789012345678901234567890123456000000000000n],
  ])('%s with %i decimals is %s base units', (text, decimals, value) => {
    expect(parseAmount(text, decimals)).toBe(value);
  });

  it.each([
    '',
    ' 1',
    '1 ',
    '.5',
    '5.',
    '+1',
    '-1',
    '01',
    '1e3',
    '1,5',
    '0x10',
    'NaN',
    '1.2.3',
    '１',
  ])('%j is no amount', (text) => {
    expect(() => parseAmount(text, 6)).toThrow(AmountError);
    expect(() => parseAmount(text, 6)).toThrow(/write whole tokens in decimal/);
  });

  it('are never rounded: too many places are refused', () => {
    expect(() => parseAmount('0.0000001', 6)).toThrow('"0.0000001" has more decimal places than the token\'s 6');
    expect(() => parseAmount('1.5', 0)).toThrow(AmountError);
  });

  it('are bounded', () => {
    expect(() => parseAmount('1'.repeat(81), 6)).toThrow(/at most 80/);
    expect(() => parseAmount('1', 37)).toThrow(/0 to 36 decimals/);
    expect(() => formatAmount(1n, -1)).toThrow(/0 to 36 decimals/);
    expect(() => formatAmount(1n, 1.5)).toThrow(/0 to 36 decimals/);
  });

  it('are shown with all digits that count and no others', () => {
    expect(formatAmount(340_000n, 6)).toBe('0.34');
    expect(formatAmount(12_000_000n, 6)).toBe('12');
    expect(formatAmount(1n, 18)).toBe('0.000000000000000001');
    expect(formatAmount(0n, 6)).toBe('0');
    expect(formatAmount(-1_500_000n, 6)).toBe('-1.5');
    expect(formatAmount(7n, 0)).toBe('7');
  });

  it('come back as they went', () => {
    fc.assert(
      fc.property(fc.bigInt(0n, 2n ** 128n), fc.nat(36), (value, decimals) => {
        expect(parseAmount(formatAmount(value, decimals), decimals)).toBe(value);
      }),
      { seed: 1 },
    );
  });
});
