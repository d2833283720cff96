/**
 * The account of one customer of a sponsor: who pays for GPUs in money, while the sponsor's tokens pay the escrows. Plain data,
 * and what follows from it; kept in one Secret a customer.
 *
 * Invariant: credit is never exceeded by anything that the sponsor decides. What is owed counts whole: what was charged and is
 * not paid, and all tokens that lie in escrows now, as if they were spent already.
 *
 * Invariant: a charge is made once an escrow, of what the closed escrow spent of the sponsor's tokens, and of nothing else. Each
 * amount is rounded once, against the sponsor.
 */
import type { Address, Hex32 } from '../../api/messages.ts';
import { formatAmount, parseAmount } from '../money/amount.ts';
import type { Escrow } from '../money/escrow.ts';
import { priceOf } from '../money/price.ts';
import { monthOf } from '../receipt/period.ts';

/** What the sponsor agreed on with a customer. */
export interface Customer {
  /** As in numbers of invoices: a DNS label. */
  readonly name: string;
  /** Account that opens the customer's escrows. */
  readonly consumer: Address;
  /** Most that may be owed, in whole units of the currency. */
  readonly creditLimit: string;
  /** ISO 4217. */
  readonly currency: string;
  /** What one whole token is worth in the currency. */
  readonly rate: string;
  /** The sponsor's margin on it, in 1/10000. */
  readonly marginBps: number;
  /** Lines of the address that stands on invoices. */
  readonly billTo: readonly string[];
}

export interface Token {
  readonly symbol: string;
  readonly decimals: number;
}

/** One escrow, charged for. Tokens in base units, money in millionths: leases of seconds cost less than a cent. */
export interface Charge {
  readonly leaseId: Hex32;
  readonly provider: Address;
  readonly gpus: number;
  /** All that the escrow served, and from when to when; the sponsor's part of its price is `units`. */
  readonly servedSeconds: number;
  readonly openedAt: number;
  readonly closedAt: number;
  readonly pricePerGpuHour: string;
  readonly units: string;
  readonly micros: string;
}

/** In hundredths, as cards are charged. */
export interface Payment {
  /** The card processor's id of it. */
  readonly id: string;
  /** Number of the invoice that it is for. */
  readonly invoice: string;
  readonly cents: string;
  /** Of it, what was given back or is disputed. */
  readonly reversedCents: string;
  readonly at: number;
}

export interface Account {
  /** Up to this block the customer's escrows were looked for. */
  readonly scannedTo: number;
  /** Escrows of the customer that are not charged for. */
  readonly open: readonly Hex32[];
  /** All that was ever meant to be in an escrow, base units, where we added to it. Stored before a top-up is made. */
  readonly toppedUpTo: Readonly<Record<string, string>>;
  readonly charges: readonly Charge[];
  readonly payments: readonly Payment[];
  /** Ids of the processor's events that were applied, the newest last: each counts once. */
  readonly events: readonly string[];
}

export const emptyAccount: Account = {
  scannedTo: -1,
  open: [],
  toppedUpTo: {},
  charges: [],
  payments: [],
  events: [],
};

/** A processor sends an event again for some days; by then so many others have not come. */
const mostEvents = 1000;
/** Of all: the account is one Secret. Beyond it nothing is funded, which is said. */
export const mostCharges = 2000;

const bps = 10_000n;
export const microDecimals = 6;
const microsInCent = 10_000n;

/** What base units cost the customer, in millionths; rounded down. */
export function microsOf(
  units: bigint,
  { rate, marginBps }: Pick<Customer, 'rate' | 'marginBps'>,
  decimals: number,
): bigint {
  return (units * parseAmount(rate, microDecimals) * (bps + BigInt(marginBps))) / (10n ** BigInt(decimals) * bps);
}

/** The reverse: base units for which so much is enough. */
function unitsFor(micros: bigint, { rate, marginBps }: Customer, decimals: number): bigint {
  const worth = parseAmount(rate, microDecimals) * (bps + BigInt(marginBps));
  return worth === 0n || micros <= 0n ? 0n : (micros * 10n ** BigInt(decimals) * bps) / worth;
}

/** With two places at least. */
export const money = (micros: bigint): string => {
  const [whole, fraction = ''] = formatAmount(micros, microDecimals).split('.');
  return `${whole}.${fraction.padEnd(2, '0')}`;
};
/** What cannot be paid is not asked for. */
export const wholeCents = (micros: bigint): bigint => (micros / microsInCent) * microsInCent;

/** What is left of it, in millionths. */
export const paidBy = ({ cents, reversedCents }: Payment): bigint =>
  (BigInt(cents) - BigInt(reversedCents)) * microsInCent;

/** Charged and not paid, in millionths; below zero where a customer paid ahead. */
export const owed = ({ charges, payments }: Account): bigint =>
  charges.reduce((sum, one) => sum + BigInt(one.micros), 0n) - payments.reduce((sum, one) => sum + paidBy(one), 0n);

/** An escrow of the customer, with what of it is the sponsor's. */
export interface Sponsored {
  readonly escrow: Escrow;
  /** Base units that we put in, all together. */
  readonly ours: bigint;
}

/** Base units that may be put in beside what lies in escrows, by the credit that is left. */
export function creditLeft(customer: Customer, token: Token, account: Account, open: readonly Sponsored[]): bigint {
  // What was decided and is not seen yet counts, too.
  const locked = open.reduce((sum, { escrow, ours }) => {
    const meant = BigInt(account.toppedUpTo[escrow.leaseId] ?? 0) - escrow.deposit;
    return sum + ours + (meant > 0n ? meant : 0n);
  }, 0n);
  const left = parseAmount(customer.creditLimit, microDecimals) - owed(account);
  return unitsFor(left, customer, token.decimals) - locked;
}

export interface Ahead {
  /** An escrow is topped up when it covers less than this from now on, were all its time served, … */
  readonly lowWaterSeconds: number;
  /** … to this. */
  readonly aheadSeconds: number;
}

export type Funding =
  | { readonly do: 'nothing' }
  | { readonly do: 'topUp'; readonly amount: bigint; readonly total: bigint }
  | { readonly do: 'refuse'; readonly why: string };

/**
 * What to put into one escrow now. Nobody but the two parties knows how much was served so far, so all the time since it was
 * opened is taken for it: the escrow may then hold more than it needs, which comes back when it is closed.
 */
export function fundingOf(escrow: Escrow, account: Account, room: bigint, now: number, ahead: Ahead): Funding {
  if (escrow.closed || escrow.closingAt !== 0 || now >= escrow.endsAt) return { do: 'nothing' };
  const meant = BigInt(account.toppedUpTo[escrow.leaseId] ?? 0);
  // One at a time: until it is seen, another would be decided on what was there before.
  if (meant > escrow.deposit) return { do: 'topUp', amount: meant - escrow.deposit, total: meant };
  const passed = Math.max(0, now - escrow.openedAt);
  const priceUntil = (seconds: number) =>
    priceOf(Math.min(escrow.maxSeconds, seconds), escrow.gpus, escrow.pricePerGpuHour);
  if (escrow.deposit >= priceUntil(passed + ahead.lowWaterSeconds)) return { do: 'nothing' };
  const wanted = priceUntil(passed + ahead.aheadSeconds) - escrow.deposit;
  if (wanted <= 0n) return { do: 'nothing' };
  if (account.charges.length >= mostCharges)
    return { do: 'refuse', why: `the account has ${mostCharges} charges: export and close it, and begin another` };
  const amount = room < wanted ? room : wanted;
  if (amount <= 0n) return { do: 'refuse', why: 'the credit limit is reached' };
  return { do: 'topUp', amount, total: escrow.deposit + amount };
}

/** Of an escrow that is closed: `spent` are the sponsor's base units that did not come back. */
export function chargeOf(escrow: Escrow, spent: bigint, customer: Customer, token: Token): Charge {
  return {
    leaseId: escrow.leaseId,
    provider: escrow.provider,
    gpus: escrow.gpus,
    servedSeconds: escrow.servedSeconds,
    openedAt: escrow.openedAt,
    closedAt: escrow.closingAt,
    pricePerGpuHour: String(escrow.pricePerGpuHour),
    units: String(spent),
    micros: String(microsOf(spent, customer, token.decimals)),
  };
}

/** The sponsor's part of what a closed escrow spent: others' money is spent last, each sponsor's in turn. */
export const spentOf = (pieces: readonly { readonly amount: bigint; readonly refundable: bigint }[]): bigint =>
  pieces.reduce((sum, one) => sum + one.amount - one.refundable, 0n);

/** The escrow is charged for, and forgotten. Charging for it twice changes nothing. */
export function withCharge(account: Account, charge: Charge): Account {
  const { [charge.leaseId]: _, ...toppedUpTo } = account.toppedUpTo;
  const open = account.open.filter((one) => one !== charge.leaseId);
  const known = account.charges.some((one) => one.leaseId === charge.leaseId);
  const free = charge.units === '0';
  return { ...account, open, toppedUpTo, charges: known || free ? account.charges : [...account.charges, charge] };
}

/** What a card processor told, in words of our own. */
export type CardEvent =
  | {
      readonly kind: 'paid';
      readonly eventId: string;
      readonly paymentId: string;
      readonly invoice: string;
      readonly currency: string;
      readonly cents: bigint;
      readonly at: number;
    }
  /** So much in all of this payment was given back, or is disputed. */
  | { readonly kind: 'reversed'; readonly eventId: string; readonly paymentId: string; readonly cents: bigint };

export type Applied =
  | { readonly account: Account; readonly changed: boolean }
  /** It is of another account. */
  | undefined;

/**
 * What was taken back of payments that nobody knew: a processor keeps no order, and tells of a refund or a dispute without the
 * invoice. The newest last; of each payment once.
 */
export type EarlyReversals = readonly { readonly paymentId: string; readonly cents: string }[];

/** Payments of the same merchant for other things are among them. */
const mostEarly = 1000;

/** A reversal is kept until its payment may come. The same one twice changes nothing. */
export function keepEarly(early: EarlyReversals, { paymentId, cents }: { paymentId: string; cents: bigint }) {
  const before = earlyOf(early, paymentId);
  if (cents <= before) return early;
  return [...early.filter((one) => one.paymentId !== paymentId), { paymentId, cents: String(cents) }].slice(-mostEarly);
}

/** In hundredths. */
export const earlyOf = (early: EarlyReversals, paymentId: string): bigint =>
  BigInt(early.find((one) => one.paymentId === paymentId)?.cents ?? 0);

/**
 * Applies an event to the account that it is about. The same event, or the same payment, counts once. `alreadyReversed` is what
 * of a payment was taken back before it was told of.
 */
export function applyEvent(account: Account, customer: Customer, event: CardEvent, alreadyReversed = 0n): Applied {
  const paid = account.payments.find((one) => one.id === event.paymentId);
  const concerns = event.kind === 'paid' ? customerOf(event.invoice) === customer.name : paid !== undefined;
  if (!concerns) return undefined;
  if (account.events.includes(event.eventId)) return { account, changed: false };
  const events = [...account.events, event.eventId].slice(-mostEvents);
  if (event.kind === 'paid') {
    if (paid || event.currency !== customer.currency) return { account: { ...account, events }, changed: !paid };
    const { paymentId: id, invoice, at } = event;
    const reversedCents = String(alreadyReversed < event.cents ? alreadyReversed : event.cents);
    const payment: Payment = { id, invoice, cents: String(event.cents), reversedCents, at };
    return { account: { ...account, events, payments: [...account.payments, payment] }, changed: true };
  }
  // A refund and a dispute of one payment tell the whole each, in any order: the most that was told counts, and no more than it.
  const most = event.cents > BigInt(paid!.reversedCents) ? event.cents : BigInt(paid!.reversedCents);
  const reversedCents = String(most < BigInt(paid!.cents) ? most : BigInt(paid!.cents));
  const payments = account.payments.map((one) => (one === paid ? { ...one, reversedCents } : one));
  return { account: { ...account, events, payments }, changed: true };
}

export const invoiceNumber = (customer: string, month: string): string => `${customer}-${month}`;

/** Whose invoice it is, by its number; undefined when it is no number of ours. */
export function customerOf(number: string): string | undefined {
  return /^([a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?)-[0-9]{4}-(0[1-9]|1[0-2])$/.exec(number)?.[1];
}

export const monthOfCharge = ({ closedAt }: Charge): string => monthOf(closedAt);
