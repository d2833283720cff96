/** Credit, charges and payments of a sponsor's customer, and the invoice that is made of them. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Hex32 } from '../../../../operator/api/messages.ts';
import {
  type Account,
  applyEvent,
  type CardEvent,
  type Charge,
  type Customer,
  chargeOf,
  creditLeft,
  customerOf,
  earlyOf,
  emptyAccount,
  fundingOf,
  keepEarly,
  microsOf,
  mostCharges,
  owed,
  spentOf,
  type Token,
  withCharge,
} from '../../../../operator/core/invoice/account.ts';
import { invoiceHtml, invoiceOf, isFair } from '../../../../operator/core/invoice/invoice.ts';
import { escrow, t0 } from '../../../support/builders.ts';

const token: Token = { symbol: 'USDC', decimals: 6 };
const customer: Customer = {
  name: 'acme',
  consumer: `0x${'c'.repeat(40)}`,
  creditLimit: '10',
  currency: 'USD',
  rate: '1',
  marginBps: 500,
  billTo: ['Acme <Labs> & Sons', '1 Road'],
};
const issuer = { lines: ['Sponsor Inc.'], notes: ['Thank you'], dueDays: 14 };
/** 0.36 a GPU hour, an hour long: 100 base units a second. */
const open = (deposit: bigint, more = {}) => escrow({ deposit, maxSeconds: 36_000, endsAt: t0 + 36_900, ...more });
const ahead = { lowWaterSeconds: 1800, aheadSeconds: 3600 };
const { leaseId } = escrow();
const account = (change: Partial<Account> = {}): Account => ({ ...emptyAccount, open: [leaseId], ...change });
const lease = (digit: number): Hex32 => `0x${String(digit).padStart(64, '0')}`;
const november = Date.UTC(2026, 10, 26) / 1000;
const charge = (cents: bigint, id = lease(1), closedAt = november): Charge => ({
  ...chargeOf(escrow({ leaseId: id, closingAt: closedAt, closed: true }), 0n, customer, token),
  units: String(cents * 10_000n),
  micros: String(cents * 10_000n),
});
let ids = 0;
const paid = (cents: bigint, change: Partial<Extract<CardEvent, { kind: 'paid' }>> = {}): CardEvent => ({
  kind: 'paid',
  eventId: `evt_${++ids}`,
  paymentId: `pi_${ids}`,
  invoice: 'acme-2026-11',
  currency: 'USD',
  cents,
  at: november,
  ...change,
});
const reversed = (paymentId: string, cents: bigint): CardEvent => ({
  kind: 'reversed',
  eventId: `evt_${++ids}`,
  paymentId,
  cents,
});
const apply = (to: Account, ...events: readonly CardEvent[]): Account =>
  events.reduce((now, event) => applyEvent(now, customer, event)?.account ?? now, to);

describe('an escrow of a customer', () => {
  const big = 10n ** 12n;
  it.each<[string, Parameters<typeof fundingOf>, ReturnType<typeof fundingOf>]>([
    [
      'is topped up, beyond its own small deposit, to an hour from now',
      [open(30_000n), account(), big, t0, ahead],
      { do: 'topUp', amount: 330_000n, total: 360_000n },
    ],
    ['waits while it covers half an hour', [open(360_000n), account(), big, t0 + 1800, ahead], { do: 'nothing' }],
    [
      'is topped up again when it does not, as if all its time had been served',
      [open(360_000n), account(), big, t0 + 1801, ahead],
      { do: 'topUp', amount: 180_100n, total: 540_100n },
    ],
    [
      'gets what was decided, and no more, until that is seen',
      [open(30_000n), account({ toppedUpTo: { [leaseId]: '360000' } }), 0n, t0 + 900, ahead],
      { do: 'topUp', amount: 330_000n, total: 360_000n },
    ],
    ['gets no more than its term costs', [open(3_600_000n), account(), big, t0 + 36_000, ahead], { do: 'nothing' }],
    [
      'gets what credit is left',
      [open(30_000n), account(), 7n, t0, ahead],
      { do: 'topUp', amount: 7n, total: 30_007n },
    ],
    [
      'gets nothing, and says why, where none is left',
      [open(30_000n), account(), 0n, t0, ahead],
      { do: 'refuse', why: 'the credit limit is reached' },
    ],
    [
      'is left alone when its billing has stopped',
      [open(1n, { closingAt: t0 + 1 }), account(), big, t0 + 2, ahead],
      { do: 'nothing' },
    ],
    ['is left alone when it is closed', [open(1n, { closed: true }), account(), big, t0, ahead], { do: 'nothing' }],
    [
      'gets nothing, and says why, where the account is full',
      [open(1n), account({ charges: Array(mostCharges).fill(charge(1n)) }), big, t0, ahead],
      { do: 'refuse', why: expect.stringContaining('2000 charges') as never },
    ],
  ])('%s', (_, [one, of, room, now, policy], expected) => {
    expect(fundingOf(one, of, room, now, policy)).toEqual(expected);
  });
});

describe('credit', () => {
  it('is what is agreed, less margin, less what is owed, less what lies in escrows or is meant to', () => {
    expect(creditLeft(customer, token, account(), [])).toBe(9_523_809n);
    expect(creditLeft(customer, token, account({ charges: [charge(525n)] }), [])).toBe(4_523_809n);
    const sponsored = [{ escrow: open(360_000n), ours: 330_000n }];
    expect(creditLeft(customer, token, account(), sponsored)).toBe(9_193_809n);
    const meant = account({ toppedUpTo: { [leaseId]: '400000' } });
    expect(creditLeft(customer, token, meant, sponsored)).toBe(9_153_809n);
  });

  it('comes back when the invoice is paid, and goes again when the payment is taken back', () => {
    const before = account({ charges: [charge(525n)] });
    const event = paid(525n);
    const after = apply(before, event);
    expect([owed(before), owed(after)]).toEqual([5_250_000n, 0n]);
    expect(owed(apply(after, reversed(event.paymentId, 100n)))).toBe(1_000_000n);
    expect(owed(apply(after, reversed(event.paymentId, 525n), reversed(event.paymentId, 100n)))).toBe(5_250_000n);
    expect(owed(apply(after, reversed(event.paymentId, 9_999n)))).toBe(5_250_000n);
  });

  it('is never exceeded, whatever is opened, closed, paid and disputed', () => {
    const step = fc.record({
      do: fc.constantFrom('open', 'pass', 'close', 'pay', 'dispute'),
      at: fc.integer({ min: 0, max: 7 }),
      size: fc.integer({ min: 1, max: 4000 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        let now = t0;
        let kept: Account = emptyAccount;
        const escrows = new Map<Hex32, { deposit: bigint; own: bigint; openedAt: number }>();
        const view = (id: Hex32, change = {}) => {
          const { deposit, openedAt } = escrows.get(id)!;
          return open(deposit, { leaseId: id, openedAt, endsAt: openedAt + 36_900, ...change });
        };
        const limit = 10_000_000n;
        let disputes = 0n;
        for (const { do: what, at, size } of steps) {
          const id = [...escrows.keys()][at % Math.max(1, escrows.size)];
          if (what === 'open' && escrows.size < 8) {
            const fresh = lease(ids++);
            escrows.set(fresh, { deposit: 30_000n, own: 30_000n, openedAt: now });
            kept = { ...kept, open: [...kept.open, fresh] };
          } else if (what === 'pass') now += size;
          else if (what === 'close' && id) {
            const one = escrows.get(id)!;
            const served = BigInt(Math.min(size, now - one.openedAt)) * 100n;
            const ours = one.deposit - one.own;
            const spent = served - one.own > ours ? ours : served > one.own ? served - one.own : 0n;
            kept = withCharge(kept, chargeOf(view(id, { closed: true, closingAt: now }), spent, customer, token));
            escrows.delete(id);
          } else if (what === 'pay' && owed(kept) > 0n) kept = apply(kept, paid((owed(kept) + 9_999n) / 10_000n));
          else if (what === 'dispute' && kept.payments.length > 0) {
            const { id: payment, cents, reversedCents } = kept.payments[at % kept.payments.length]!;
            kept = apply(kept, reversed(payment, BigInt(cents)));
            disputes += (BigInt(cents) - BigInt(reversedCents)) * 10_000n;
          }
          const sponsored = () =>
            [...escrows].map(([leaseId, one]) => ({ escrow: view(leaseId), ours: one.deposit - one.own }));
          for (const leaseId of escrows.keys()) {
            const room = creditLeft(customer, token, kept, sponsored());
            const wish = fundingOf(view(leaseId), kept, room, now, ahead);
            if (wish.do !== 'topUp') continue;
            kept = { ...kept, toppedUpTo: { ...kept.toppedUpTo, [leaseId]: String(wish.total) } };
            escrows.get(leaseId)!.deposit = wish.total;
          }
          const locked = sponsored().reduce((sum, one) => sum + one.ours, 0n);
          // What a bank takes back afterwards is the one thing that the sponsor does not decide.
          expect(owed(kept) + microsOf(locked, customer, token.decimals)).toBeLessThanOrEqual(limit + disputes);
        }
      }),
    );
  });
});

describe('a charge', () => {
  it('is what an escrow spent of the sponsor, once', () => {
    const closed = escrow({ closed: true, closingAt: november, servedSeconds: 900 });
    const spent = spentOf([
      { amount: 60_000n, refundable: 0n },
      { amount: 100_000n, refundable: 70_000n },
    ]);
    const one = chargeOf(closed, spent, customer, token);
    expect([spent, one.micros]).toEqual([90_000n, '94500']);
    const once = withCharge(account({ toppedUpTo: { [leaseId]: '160000' } }), one);
    expect(once).toMatchObject({ open: [], toppedUpTo: {}, charges: [one] });
    expect(withCharge(once, one)).toEqual(once);
  });

  it('is none where nothing of the sponsor was spent', () => {
    expect(withCharge(account(), chargeOf(escrow({ closed: true }), 0n, customer, token)).charges).toEqual([]);
  });

  it('is never above its tokens at the rate, and many are never above their sum', () => {
    fc.assert(
      fc.property(
        fc.array(fc.bigInt({ min: 0n, max: 10n ** 12n }), { maxLength: 20 }),
        fc.integer({ min: 1, max: 5_000_000 }),
        fc.integer({ min: 0, max: 10_000 }),
        (all, micro, marginBps) => {
          const terms = {
            ...customer,
            rate: `${Math.floor(micro / 1e6)}.${String(micro % 1e6).padStart(6, '0')}`,
            marginBps,
          };
          const charges = all.map((units) => chargeOf(escrow(), units, terms, token));
          for (const { units, micros } of charges) {
            const exact = BigInt(units) * BigInt(micro) * BigInt(10_000 + marginBps);
            expect(BigInt(micros) * 10n ** 10n).toBeLessThanOrEqual(exact);
            expect((BigInt(micros) + 1n) * 10n ** 10n).toBeGreaterThan(exact);
          }
          expect(isFair(charges, terms, token)).toBe(true);
        },
      ),
    );
  });
});

describe('a payment', () => {
  it('counts once, however often its event, or another of the same payment, is sent', () => {
    const event = paid(500n);
    const once = apply(account(), event);
    expect(applyEvent(once, customer, event)).toEqual({ account: once, changed: false });
    const again = apply(once, paid(500n, { paymentId: event.paymentId }));
    expect([owed(once), owed(again), again.payments.length]).toEqual([-5_000_000n, -5_000_000n, 1]);
  });

  it('that was taken back before it was told of is worth no less than nothing', () => {
    const told = (already: bigint) => applyEvent(account(), customer, paid(500n), already)?.account.payments[0];
    expect([told(0n), told(200n), told(900n)].map((one) => one?.reversedCents)).toEqual(['0', '200', '500']);
  });

  it('in another currency counts nothing', () => {
    expect(owed(apply(account(), paid(500n, { currency: 'EUR' })))).toBe(0n);
  });

  it.each([
    'other-2026-11',
    'acme-2026-13',
    'acme',
    '2026-11',
    'acme-2026-11; drop',
    '',
  ])('for invoice %j is not of this account', (invoice) => {
    expect(applyEvent(account(), customer, paid(500n, { invoice }))).toBeUndefined();
  });

  it('of a customer whose name has dashes is told by the end of the number', () => {
    expect(customerOf('acme-labs-2026-11')).toBe('acme-labs');
  });
});

describe('what is taken back of payments that nobody knows', () => {
  it('is the most that was told, of each payment, of the newest thousand', () => {
    let early = keepEarly([], { paymentId: 'pi_1', cents: 300n });
    expect(keepEarly(early, { paymentId: 'pi_1', cents: 300n })).toBe(early);
    expect(keepEarly(early, { paymentId: 'pi_1', cents: 200n })).toBe(early);
    early = keepEarly(early, { paymentId: 'pi_1', cents: 400n });
    expect([earlyOf(early, 'pi_1'), earlyOf(early, 'pi_2')]).toEqual([400n, 0n]);
    for (let count = 0; count < 999; count++) early = keepEarly(early, { paymentId: `pi_x${count}`, cents: 1n });
    expect([early.length, earlyOf(early, 'pi_1')]).toEqual([1000, 400n]);
    early = keepEarly(early, { paymentId: 'pi_last', cents: 1n });
    expect([early.length, earlyOf(early, 'pi_1'), earlyOf(early, 'pi_last')]).toEqual([1000, 0n, 1n]);
  });
});

describe('an invoice', () => {
  const full = apply(
    account({
      charges: [
        charge(250n, lease(2), november + 60),
        charge(100n),
        charge(999n, lease(3), Date.UTC(2026, 9, 31) / 1000),
      ],
    }),
    paid(120n, { paymentId: 'pi_first' }),
    reversed('pi_first', 20n),
  );
  const invoice = invoiceOf(full, customer, token, issuer, '2026-11', new Date(Date.UTC(2026, 11, 2)));

  it('has the leases of its month, oldest first, what was paid for it, and what is due', () => {
    expect(invoice).toMatchObject({
      number: 'acme-2026-11',
      total: '3.50',
      paid: '1.00',
      due: '2.50',
      preliminary: false,
      dueAt: '2026-12-15T00:00:00Z',
      payments: [{ id: 'pi_first', amount: '1.00' }],
    });
    expect(invoice.lines.map((line) => line.amount)).toEqual(['1.00', '2.50']);
  });

  it('asks for no more than whole cents of all lines together', () => {
    const seconds = account({ charges: [1, 2, 3].map((digit) => ({ ...charge(0n, lease(digit)), micros: '2928' })) });
    const short = invoiceOf(seconds, customer, token, issuer, '2026-11', new Date(Date.UTC(2026, 11, 2)));
    expect([short.lines[0]!.amount, short.total]).toEqual(['0.002928', '0.00']);
    const more = {
      ...seconds,
      charges: [...seconds.charges, charge(0n, lease(4))].map((one) => ({ ...one, micros: '2928' })),
    };
    expect(invoiceOf(more, customer, token, issuer, '2026-11', new Date(0)).total).toBe('0.01');
  });

  it('is preliminary while its month goes on, and empty where nothing was leased', () => {
    const early = invoiceOf(emptyAccount, customer, token, issuer, '2026-11', new Date(Date.UTC(2026, 10, 30)));
    expect(early).toMatchObject({ preliminary: true, lines: [], total: '0.00', due: '0.00' });
    expect(invoiceHtml(early)).toContain('Nothing was leased.');
  });

  it('is a page that runs nothing, loads nothing, and shows names as they are', () => {
    const page = invoiceHtml(invoice);
    expect(page).toContain('Acme &lt;Labs&gt; &amp; Sons');
    expect(page).not.toMatch(/<script|src=|href=|@import|url\(|Labs>/);
    expect(page).toContain('<td class="n">2.50 USD</td>');
  });
});
