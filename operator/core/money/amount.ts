/**
 * Amounts of money, exactly. People write whole tokens ("0.34"); chains and everything in here count base units as
 * bigint. No floating point touches an amount on the way.
 */

/** The text is no amount. The message is meant for the person who wrote it. */
export class AmountError extends Error {
  override readonly name = 'AmountError';
}

/** More places than any token has; a wrong `decimals` would otherwise make numbers that fill the memory. */
const maxDecimals = 36;
const maxLength = 80;

/** "0.34" with 6 decimals → 340000n. Throws AmountError; never rounds. */
export function parseAmount(text: string, decimals: number): bigint {
  checkDecimals(decimals);
  if (text.length > maxLength) throw new AmountError(`an amount has at most ${maxLength} characters`);
  const match = /^(0|[1-9][0-9]*)(?:\.([0-9]+))?$/.exec(text);
  if (!match) {
    throw new AmountError(
      `${JSON.stringify(text)} is not an amount: write whole tokens in decimal, such as "0.34" or "12"`,
    );
  }
  const [, whole = '0', fraction = ''] = match;
  const significant = fraction.replace(/0+$/, '');
  if (significant.length > decimals) {
    throw new AmountError(`${JSON.stringify(text)} has more decimal places than the token's ${decimals}`);
  }
  return BigInt(whole) * 10n ** BigInt(decimals) + BigInt(significant.padEnd(decimals, '0') || '0');
}

/** 340000n with 6 decimals → "0.34". All digits that count, and no trailing zeros. */
export function formatAmount(value: bigint, decimals: number): string {
  checkDecimals(decimals);
  const sign = value < 0n ? '-' : '';
  const digits = (value < 0n ? -value : value).toString().padStart(decimals + 1, '0');
  const whole = digits.slice(0, digits.length - decimals);
  const fraction = digits.slice(digits.length - decimals).replace(/0+$/, '');
  return fraction === '' ? `${sign}${whole}` : `${sign}${whole}.${fraction}`;
}

function checkDecimals(decimals: number): void {
  if (!Number.isInteger(decimals) || decimals < 0 || decimals > maxDecimals) {
    throw new AmountError(`a token has 0 to ${maxDecimals} decimals, not ${decimals}`);
  }
}
