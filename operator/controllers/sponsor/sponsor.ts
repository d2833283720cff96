/**
 * The sponsor: tops up escrows of customers who pay in money, within their credit; takes back what was not spent; charges for
 * what was. Level-triggered, as everything here: each round reads the chain and the accounts, and decides anew.
 *
 *   found:   an escrow that the customer's account opened, at the newest block: it may have minutes of money of its own. Blocks
 *            that a reorganisation may take back are searched again
 *   funded:  STORED what it is to hold, then topped up: one transaction under one name, however often it is wished for
 *   closed:  at the safe head: charge STORED, and only then what is left is asked back, as the contract forgets it with that
 */
import type { Address, Hex32 } from '../../api/messages.ts';
import {
  type Account,
  type Ahead,
  applyEvent,
  type CardEvent,
  type Customer,
  chargeOf,
  creditLeft,
  type EarlyReversals,
  earlyOf,
  emptyAccount,
  fundingOf,
  keepEarly,
  type Sponsored,
  spentOf,
  type Token,
  withCharge,
} from '../../core/invoice/account.ts';
import type { Escrow } from '../../core/money/escrow.ts';
import type { Log } from '../../engine/types.ts';

interface Piece {
  readonly index: number;
  readonly amount: bigint;
  readonly refundable: bigint;
}

/** Of the adapters. What is refused is answered in words; silence throws. */
export interface SponsorChain {
  readonly address: Address;
  readonly token: Token;
  head(signal?: AbortSignal): Promise<{ readonly time: number; readonly block: number; readonly safeBlock: number }>;
  openedBy(
    consumer: Address,
    from: number,
    to: number,
    signal?: AbortSignal,
  ): Promise<{ readonly leaseIds: readonly Hex32[]; readonly scannedTo: number }>;
  escrows(leaseIds: readonly Hex32[], signal?: AbortSignal): Promise<readonly (Escrow | undefined)[]>;
  settledEscrow(leaseId: Hex32, signal?: AbortSignal): Promise<Escrow | undefined>;
  pieces(leaseId: Hex32, signal?: AbortSignal): Promise<readonly Piece[]>;
  allow(amount: bigint, signal?: AbortSignal): Promise<string | undefined>;
  topUp(leaseId: Hex32, amount: bigint, total: bigint, signal?: AbortSignal): Promise<string | undefined>;
  refund(leaseId: Hex32, index: number, signal?: AbortSignal): Promise<string | undefined>;
  withdraw(signal?: AbortSignal): Promise<void>;
  tick(signal?: AbortSignal): Promise<void>;
}

/** As adapters/chain/store.ts has it. */
interface Store<T> {
  load(signal?: AbortSignal): Promise<{ readonly value: T | undefined; readonly version: string }>;
  save(value: T, version: string, signal?: AbortSignal): Promise<string>;
}

export interface SponsorOptions {
  readonly chain: SponsorChain;
  readonly customers: readonly Customer[];
  readonly store: (customer: Customer) => Store<Account>;
  /** Of all customers together: whose a payment is, is not known before it is told of. */
  readonly early: Store<EarlyReversals>;
  readonly ahead: Ahead;
  /** Where an account that is new begins to look for escrows. */
  readonly fromBlock: number;
  readonly log: Log;
}

/** Of a search that found nothing, how far it got is stored so often. */
const blocksBetweenWrites = 10_000;
/** Turn of the events; no customer has this name. */
const allEvents = { name: '' };
/** Escrows of one customer that are open at a time. */
const mostOpen = 500;

export interface Sponsor {
  /** Over all customers. One that fails does not keep the others from theirs. */
  round(signal?: AbortSignal): Promise<void>;
  /** An event of the card processor. Throws when it could not be stored. */
  take(event: CardEvent, signal?: AbortSignal): Promise<void>;
  account(customer: Customer, signal?: AbortSignal): Promise<Account>;
}

export function createSponsor(options: SponsorOptions): Sponsor {
  const { chain, customers, store, ahead, fromBlock, log } = options;
  const held = new Map<
    string,
    { readonly store: Store<Account>; account: Account; version: string; storedTo: number }
  >();
  const turns = new Map<string, Promise<unknown>>();
  const told = new Map<string, string>();

  /** One at a time for each customer: rounds and events write the same account. */
  function inTurn<T>({ name }: { readonly name: string }, task: () => Promise<T>): Promise<T> {
    const mine = (turns.get(name) ?? Promise.resolve()).then(task, task);
    turns.set(
      name,
      mine.catch(() => undefined),
    );
    return mine;
  }

  async function load(customer: Customer, signal?: AbortSignal) {
    const known = held.get(customer.name);
    if (known) return known;
    const own = store(customer);
    const { value, version } = await own.load(signal);
    const account = value ?? { ...emptyAccount, scannedTo: fromBlock - 1 };
    const fresh = { store: own, account, version, storedTo: account.scannedTo };
    held.set(customer.name, fresh);
    return fresh;
  }

  async function save(customer: Customer, account: Account, signal?: AbortSignal): Promise<Account> {
    const entry = await load(customer, signal);
    try {
      entry.version = await entry.store.save(account, entry.version, signal);
      entry.account = account;
      entry.storedTo = account.scannedTo;
      return account;
    } catch (error) {
      // Written by another, or nobody knows: what is stored counts.
      held.delete(customer.name);
      throw error;
    }
  }

  function tell(customer: Customer, about: string, why: string | undefined): void {
    const key = `${customer.name}/${about}`;
    if (why === told.get(key)) return;
    if (why === undefined) told.delete(key);
    else {
      told.set(key, why);
      log.warn({ customer: customer.name, about, why }, 'an escrow is not funded further');
    }
  }

  async function roundOf(customer: Customer, signal?: AbortSignal): Promise<void> {
    let { account } = await load(customer, signal);
    const head = await chain.head(signal);
    const search = await chain.openedBy(customer.consumer, account.scannedTo + 1, head.block, signal);
    const fresh = search.leaseIds.filter(
      (leaseId) => !account.open.includes(leaseId) && !account.charges.some((one) => one.leaseId === leaseId),
    );
    const scannedTo = Math.max(account.scannedTo, Math.min(search.scannedTo, head.safeBlock));
    const read = await chain.escrows([...account.open, ...fresh], signal);
    // One that is not there, and that nothing was put into, was taken back by a reorganisation; it is found again.
    const open = [...account.open, ...fresh].filter(
      (leaseId, at) => read[at] !== undefined || account.toppedUpTo[leaseId] !== undefined,
    );
    // What is too much now is found again: the search stays where it is.
    if (open.length > mostOpen) tell(customer, 'all', `${mostOpen} escrows are open`);
    else if (String(open) !== String(account.open))
      account = await save(customer, { ...account, open, scannedTo }, signal);
    // Otherwise now and then: blocks are cheap to search again.
    else if (scannedTo - (await load(customer, signal)).storedTo >= blocksBetweenWrites)
      account = await save(customer, { ...account, scannedTo }, signal);
    else {
      account = { ...account, scannedTo };
      (await load(customer, signal)).account = account;
    }

    const escrows = read.filter((one) => one !== undefined && account.open.includes(one.leaseId)) as Escrow[];
    const sponsored: Sponsored[] = [];
    for (const escrow of escrows) {
      const pieces = account.toppedUpTo[escrow.leaseId] === undefined ? [] : await chain.pieces(escrow.leaseId, signal);
      if (!escrow.closed) {
        sponsored.push({ escrow, ours: pieces.reduce((sum, one) => sum + one.amount, 0n) });
        continue;
      }
      const settled = await chain.settledEscrow(escrow.leaseId, signal);
      if (!settled?.closed) {
        // Its money counts as locked until the close is for good.
        sponsored.push({ escrow, ours: pieces.reduce((sum, one) => sum + one.amount, 0n) });
        continue;
      }
      account = await save(
        customer,
        withCharge(account, chargeOf(settled, spentOf(pieces), customer, chain.token)),
        signal,
      );
      for (const { index, refundable } of pieces)
        if (refundable > 0n)
          tell(customer, `refund of ${escrow.leaseId}`, await chain.refund(escrow.leaseId, index, signal));
    }

    for (const { escrow } of sponsored) {
      const room = creditLeft(customer, chain.token, account, sponsored);
      const wish = fundingOf(escrow, account, room, head.time, ahead);
      if (wish.do !== 'topUp') {
        tell(customer, escrow.leaseId, wish.do === 'refuse' ? wish.why : undefined);
        continue;
      }
      const total = String(wish.total);
      if (account.toppedUpTo[escrow.leaseId] !== total)
        account = await save(
          customer,
          { ...account, toppedUpTo: { ...account.toppedUpTo, [escrow.leaseId]: total } },
          signal,
        );
      const refused =
        (await chain.allow(wish.amount, signal)) ??
        (await chain.topUp(escrow.leaseId, wish.amount, wish.total, signal));
      tell(customer, escrow.leaseId, refused);
    }
  }

  return {
    async round(signal) {
      await chain.tick(signal);
      for (const customer of customers)
        await inTurn(customer, () => roundOf(customer, signal)).catch((error: Error) => {
          signal?.throwIfAborted();
          log.warn({ customer: customer.name, error: error.message }, 'a customer was not looked after; trying again');
        });
      await chain.withdraw(signal);
    },

    // In the order in which they come, so that a reversal and its payment do not pass each other by.
    take: (event, signal) =>
      inTurn(allEvents, async () => {
        const { eventId, paymentId, kind } = event;
        const early = await options.early.load(signal);
        for (const customer of customers) {
          const taken = await inTurn(customer, async () => {
            const { account } = await load(customer, signal);
            const applied = applyEvent(account, customer, event, earlyOf(early.value ?? [], paymentId));
            if (applied?.changed) await save(customer, applied.account, signal);
            return applied;
          });
          if (!taken) continue;
          const about = { customer: customer.name, eventId, paymentId, kind };
          if (event.kind === 'paid' && event.currency !== customer.currency)
            log.error({ ...about, currency: event.currency }, 'a payment is in another currency: it is not booked');
          else if (taken.changed) log.info(about, 'a payment was booked');
          return;
        }
        if (kind === 'reversed') {
          const kept = keepEarly(early.value ?? [], event);
          if (kept !== early.value) await options.early.save(kept, early.version, signal);
          log.warn(
            { eventId, paymentId },
            'of a payment that is not known something was taken back: kept, should it come',
          );
          return;
        }
        // Sent again it would be as unknown: a person has to look, by the processor's own list.
        log.error({ eventId, paymentId }, 'a payment belongs to no customer of ours');
      }),

    account: async (customer, signal) => (await inTurn(customer, () => load(customer, signal))).account,
  };
}
