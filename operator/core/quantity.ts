/**
 * Kubernetes quantities, exactly. A quantity is a decimal number with a binary (Ki…Ei) or decimal (n, u, m, k…E) suffix or
 * exponent: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
 *
 * The unit here is 1/1000, so that cpu in millis is whole; smaller parts are rounded up, as Kubernetes does.
 */
const factors: Readonly<Record<string, bigint>> = {
  '': 1000n,
  m: 1n,
  k: 10n ** 6n,
  M: 10n ** 9n,
  G: 10n ** 12n,
  T: 10n ** 15n,
  P: 10n ** 18n,
  E: 10n ** 21n,
  Ki: 1000n * 2n ** 10n,
  Mi: 1000n * 2n ** 20n,
  Gi: 1000n * 2n ** 30n,
  Ti: 1000n * 2n ** 40n,
  Pi: 1000n * 2n ** 50n,
  Ei: 1000n * 2n ** 60n,
};

export class QuantityError extends Error {}

/** Thousandths. Throws QuantityError for what Kubernetes would refuse. */
export function parseQuantity(quantity: string | number): bigint {
  const text = String(quantity);
  const match = /^([+-]?)(?=\.?\d)(\d*)(?:\.(\d*))?(?:(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE]([+-]?\d{1,2}))?$/.exec(
    text,
  );
  if (!match) throw new QuantityError(`"${text.slice(0, 32)}" is not a quantity such as 4, 500m or 16Gi`);
  const [, sign, whole = '0', fraction = '', suffix = '', exponent] = match;
  const digits = BigInt(whole + fraction);
  let numerator = digits;
  let denominator = 10n ** BigInt(fraction.length);
  if (suffix === 'n') denominator *= 1_000_000n;
  else if (suffix === 'u') denominator *= 1_000n;
  else numerator *= factors[suffix]!;
  if (exponent !== undefined) {
    const power = Number(exponent);
    if (power >= 0) numerator *= 10n ** BigInt(power);
    else denominator *= 10n ** BigInt(-power);
  }
  const rounded = (numerator + denominator - 1n) / denominator;
  return sign === '-' ? -rounded : rounded;
}

/** Canonical text of thousandths: whole numbers plain, else with m. */
export function formatQuantity(thousandths: bigint): string {
  return thousandths % 1000n === 0n ? String(thousandths / 1000n) : `${thousandths}m`;
}

/** Text of a number of bytes in thousandths, in the largest binary unit that is exact. */
export function formatBytes(thousandths: bigint): string {
  let bytes = thousandths / 1000n;
  const units = ['', 'Ki', 'Mi', 'Gi', 'Ti'];
  let unit = 0;
  while (unit < units.length - 1 && bytes !== 0n && bytes % 1024n === 0n) {
    bytes /= 1024n;
    unit += 1;
  }
  return `${bytes}${units[unit]}`;
}
