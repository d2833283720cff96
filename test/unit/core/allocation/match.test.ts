import { describe, expect, test } from 'vitest';
import type { Quote } from '../../../../operator/api/messages.ts';
import { checkEscrow } from '../../../../operator/core/allocation/match.ts';
import { zeroAddress, zeroHash } from '../../../../operator/core/allocation/quote.ts';
import type { Escrow } from '../../../../operator/core/money/escrow.ts';

const one = `0x${'1'.repeat(40)}` as const;
const two = `0x${'2'.repeat(40)}` as const;
const hash = `0x${'3'.repeat(64)}` as const;
const quote = {
  consumer: one,
  provider: two,
  payee: two,
  token: one,
  pricePerGpuHour: 7n,
  gpus: 2,
  maxSeconds: 3600,
  startTimeoutSeconds: 900,
  expiresAt: 1000,
} as Quote;
const escrow = {
  ...quote,
  quoteHash: hash,
  openedAt: 990,
  endsAt: 990 + 4500,
  closingAt: 0,
  closed: false,
  closeReason: 'Open',
} as unknown as Escrow;

describe('an escrow', () => {
  test('of this quote is taken, also after the quote ran out, and whatever the case of its letters', () => {
    const shouting = { ...escrow, consumer: one.toUpperCase().replace('0X', '0x') as typeof one };
    expect(checkEscrow(quote, hash, shouting, 1200)).toBeUndefined();
  });

  test.each<[string, Partial<Escrow>]>([
    ['quoteHash', { quoteHash: zeroHash }],
    ['consumer', { consumer: two }],
    ['provider', { provider: one }],
    ['payee', { payee: one }],
    ['token', { token: zeroAddress }],
    ['pricePerGpuHour', { pricePerGpuHour: 6n }],
    ['gpus', { gpus: 1 }],
    ['maxSeconds', { maxSeconds: 60 }],
    ['endsAt', { endsAt: 991 }],
  ])('that differs in %s is refused by that name', (field, changes) => {
    expect(checkEscrow(quote, hash, { ...escrow, ...changes }, 995)).toEqual({
      reason: 'EscrowMismatch',
      detail: expect.stringContaining(field),
    });
  });

  test.each<[string, Partial<Escrow> | undefined, number, string]>([
    ['not there yet', undefined, 995, 'EscrowNotFound'],
    ['not there, and the quote just ran out', undefined, 1060, 'EscrowNotFound'],
    ['not there, and never will be', undefined, 1061, 'QuoteExpired'],
    ['closed', { closed: true }, 995, 'EscrowClosed'],
    ['closing', { closingAt: 994 }, 995, 'EscrowClosed'],
    ['over', {}, 990 + 4500, 'EscrowClosed'],
  ])('that is %s', (_name, changes, now, reason) => {
    expect(checkEscrow(quote, hash, changes && { ...escrow, ...changes }, now)?.reason).toBe(reason);
  });
});
