/**
 * LeaseEscrow.sol, said again in bigints: every call takes a state and gives the next one, or the name of the error that the
 * contract reverts with. Simulations run on it instead of a chain, and a differential test keeps the two alike.
 *
 * Left out, because they are the chain's and not the escrow's: gas, signatures (a call says who signed), and the tokens
 * themselves (a call finds the allowance, authorization and balance it needs, and a receiver that the token accepts).
 */
import type { Address, Hex32, Quote, Release, Voucher } from '../../api/messages.ts';
import { type CloseReason, closeReasons, type Escrow } from './escrow.ts';
import { feeOf, priceOf, referrerPartOf } from './price.ts';

export const maxFeeBps = 500;
export const maxReferrerBps = 5000;
const maxUint96 = 2n ** 96n - 1n;
const zeroAddress: Address = '0x0000000000000000000000000000000000000000';

/** Names of the contract's custom errors, which are also the model's refusals. */
export type EscrowRefusal =
  | 'OpensArePaused'
  | 'NotAuthorized'
  | 'WrongNetwork'
  | 'QuoteExpired'
  | 'QuoteIsCancelled'
  | 'InvalidTerms'
  | 'TokenNotAllowed'
  | 'BadSignature'
  | 'DepositOutOfRange'
  | 'LeaseExists'
  | 'LeaseNotFound'
  | 'LeaseIsClosed'
  | 'LeaseIsOpen'
  | 'AlreadyClosing'
  | 'NotLastVoucher'
  | 'NotProviderReason'
  | 'NotFinalizableBefore'
  | 'NothingToWithdraw'
  | 'NothingToRefund'
  | 'FeeTooHigh';

export interface Totals {
  readonly deposited: bigint;
  readonly paid: bigint;
  readonly fee: bigint;
  readonly refunded: bigint;
  readonly held: bigint;
  readonly withdrawn: bigint;
}

export interface TokenRule {
  readonly allowed: boolean;
  readonly feeBps: number;
}

/** What somebody other than the consumer put in, in one piece. */
export interface Sponsorship {
  /** Zero once its refund was credited. */
  readonly sponsor: Address;
  readonly amount: bigint;
}

/** Addresses are keys here: give them in one spelling throughout. */
export interface EscrowModel {
  readonly networkId: Hex32;
  readonly owner: Address;
  readonly feeRecipient: Address;
  readonly claimWindowSeconds: number;
  readonly opensPaused: boolean;
  readonly tokenRules: ReadonlyMap<Address, TokenRule>;
  readonly leases: ReadonlyMap<Hex32, Escrow>;
  /** By lease, in the order in which they are spent: after all that the consumer put in. */
  readonly sponsorships: ReadonlyMap<Hex32, readonly Sponsorship[]>;
  /** Key: `token/account`. */
  readonly credits: ReadonlyMap<string, bigint>;
  readonly totals: ReadonlyMap<Address, Totals>;
  /** Members: `provider/nonce`. */
  readonly cancelled: ReadonlySet<string>;
}

export interface Opening {
  readonly from: Address;
  readonly quote: Quote;
  /** Id and digest of the quote, which only a hash function knows. */
  readonly leaseId: Hex32;
  readonly quoteHash: Hex32;
  /** Whose signature the quote carries. */
  readonly signedBy: Address;
  readonly signer: Address;
  readonly deposit: bigint;
}

export type EscrowCall =
  | ({ readonly do: 'open' } & Opening)
  /** By anyone: the consumer authorized this deposit for this quote and session key. */
  | ({ readonly do: 'openWithAuthorization' } & Opening)
  | { readonly do: 'topUp'; readonly from: Address; readonly leaseId: Hex32; readonly amount: bigint }
  | { readonly do: 'settle'; readonly from: Address; readonly voucher: Voucher; readonly signedBy: Address }
  | {
      readonly do: 'settleMany';
      readonly from: Address;
      readonly items: readonly { readonly voucher: Voucher; readonly signedBy: Address }[];
    }
  | { readonly do: 'close'; readonly from: Address; readonly voucher: Voucher; readonly signedBy: Address }
  | { readonly do: 'closeWithRelease'; readonly from: Address; readonly release: Release; readonly signedBy: Address }
  | { readonly do: 'requestClose'; readonly from: Address; readonly leaseId: Hex32 }
  | { readonly do: 'providerClose'; readonly from: Address; readonly leaseId: Hex32; readonly reason: CloseReason }
  | { readonly do: 'finalize'; readonly from: Address; readonly leaseId: Hex32 }
  | { readonly do: 'refundSponsor'; readonly from: Address; readonly leaseId: Hex32; readonly index: number }
  | { readonly do: 'withdraw'; readonly from: Address; readonly token: Address }
  | { readonly do: 'cancelQuote'; readonly from: Address; readonly nonce: bigint }
  | { readonly do: 'setToken'; readonly from: Address; readonly token: Address; readonly rule: TokenRule }
  | { readonly do: 'setOpensPaused'; readonly from: Address; readonly paused: boolean };

export type EscrowResult =
  | { readonly ok: true; readonly state: EscrowModel }
  | { readonly ok: false; readonly refusal: EscrowRefusal };

export function newEscrowModel(
  deployed: Pick<EscrowModel, 'networkId' | 'owner' | 'feeRecipient' | 'claimWindowSeconds'>,
): EscrowModel {
  return {
    ...deployed,
    opensPaused: false,
    tokenRules: new Map(),
    leases: new Map(),
    sponsorships: new Map(),
    credits: new Map(),
    totals: new Map(),
    cancelled: new Set(),
  };
}

/** One call in a block of time `now`. A refusal changes nothing. */
export function callEscrow(state: EscrowModel, call: EscrowCall, now: number): EscrowResult {
  switch (call.do) {
    case 'open':
      if (call.from !== call.quote.consumer) return refuse('NotAuthorized');
      return open(state, call, now);
    case 'openWithAuthorization':
      if (call.deposit === 0n) return refuse('DepositOutOfRange');
      return open(state, call, now);
    case 'topUp':
      return withOpenLease(state, call.leaseId, (lease) => topUp(state, lease, call.from, call.amount, now));
    case 'settle':
      return withOpenLease(state, call.voucher.leaseId, (lease) =>
        call.signedBy === lease.signer
          ? accept(count(state, lease, call.voucher.servedSeconds, now))
          : refuse('BadSignature'),
      );
    case 'settleMany':
      return accept(settleMany(state, call.items, now));
    case 'close':
      return withOpenLease(state, call.voucher.leaseId, (lease) => {
        if (call.from !== lease.provider && call.from !== lease.payee) return refuse('NotAuthorized');
        if (!call.voucher.last) return refuse('NotLastVoucher');
        if (call.signedBy !== lease.signer) return refuse('BadSignature');
        return accept(end(state, lease, call.voucher.servedSeconds, 'LastVoucher', now));
      });
    case 'closeWithRelease':
      return withOpenLease(state, call.release.leaseId, (lease) => {
        if (call.from !== lease.consumer) return refuse('NotAuthorized');
        if (call.signedBy !== lease.provider) return refuse('BadSignature');
        return accept(end(state, lease, call.release.servedSeconds, 'Released', now));
      });
    case 'requestClose':
      return withOpenLease(state, call.leaseId, (lease) => {
        if (call.from !== lease.consumer) return refuse('NotAuthorized');
        if (lease.closingAt !== 0) return refuse('AlreadyClosing');
        return accept(putLease(state, { ...lease, closingAt: Math.min(now, lease.endsAt) }));
      });
    case 'providerClose':
      return withOpenLease(state, call.leaseId, (lease) => {
        if (call.from !== lease.provider) return refuse('NotAuthorized');
        if (!call.reason.startsWith('Provider')) return refuse('NotProviderReason');
        return accept(end(state, lease, lease.servedSeconds, call.reason, now));
      });
    case 'finalize':
      return withOpenLease(state, call.leaseId, (lease) => {
        const asked = lease.closingAt !== 0 && lease.closingAt < lease.endsAt;
        const from = (asked ? lease.closingAt : lease.endsAt) + state.claimWindowSeconds;
        if (now < from) return refuse('NotFinalizableBefore');
        return accept(end(state, lease, lease.servedSeconds, asked ? 'ConsumerRequested' : 'Expired', now));
      });
    case 'refundSponsor':
      return refundSponsor(state, call.leaseId, call.index);
    case 'withdraw':
      return withdraw(state, call.token, call.from);
    case 'cancelQuote':
      return accept({ ...state, cancelled: new Set(state.cancelled).add(`${call.from}/${call.nonce}`) });
    case 'setToken':
      if (call.from !== state.owner) return refuse('NotAuthorized');
      if (call.rule.feeBps > maxFeeBps) return refuse('FeeTooHigh');
      return accept({ ...state, tokenRules: new Map(state.tokenRules).set(call.token, call.rule) });
    case 'setOpensPaused':
      if (call.from !== state.owner) return refuse('NotAuthorized');
      return accept({ ...state, opensPaused: call.paused });
  }
}

/** Sums over the leases of one token; zero for a token that was never used. */
export function totalsOf(state: EscrowModel, token: Address): Totals {
  return state.totals.get(token) ?? { deposited: 0n, paid: 0n, fee: 0n, refunded: 0n, held: 0n, withdrawn: 0n };
}

/** What an account may withdraw. */
export function creditOf(state: EscrowModel, token: Address, account: Address): bigint {
  return state.credits.get(`${token}/${account}`) ?? 0n;
}

/** What a closed lease left of each sponsorship, and is not credited yet; zero while it is open. */
export function refundableOf(state: EscrowModel, leaseId: Hex32): readonly bigint[] {
  const lease = state.leases.get(leaseId);
  const pieces = state.sponsorships.get(leaseId) ?? [];
  if (!lease?.closed) return pieces.map(() => 0n);
  // The consumer's own money is spent first, then theirs in the order in which it came.
  const sponsored = pieces.reduce((sum, { amount }) => sum + amount, 0n);
  let unpaid = atLeastZero(lease.claimed - (lease.deposit - sponsored));
  return pieces.map(({ sponsor, amount }) => {
    const spent = unpaid < amount ? unpaid : amount;
    unpaid -= spent;
    return sponsor === zeroAddress ? 0n : amount - spent;
  });
}

function open(state: EscrowModel, call: Opening, now: number): EscrowResult {
  const { quote, deposit } = call;
  // In the contract's order: it decides which error is seen when several hold.
  if (state.opensPaused) return refuse('OpensArePaused');
  if (quote.networkId !== state.networkId) return refuse('WrongNetwork');
  if (now >= quote.expiresAt) return refuse('QuoteExpired');
  const keepable = quote.pricePerGpuHour <= maxUint96 && quote.referrerBps <= maxReferrerBps && deposit <= maxUint96;
  const sensible = quote.gpus > 0 && quote.maxSeconds > 0 && quote.minSeconds <= quote.maxSeconds;
  if (call.signer === zeroAddress || quote.payee === zeroAddress || !sensible || !keepable)
    return refuse('InvalidTerms');
  if (state.leases.has(call.leaseId)) return refuse('LeaseExists');
  const rule = state.tokenRules.get(quote.token);
  if (!rule?.allowed) return refuse('TokenNotAllowed');
  const min = priceOf(quote.minSeconds, quote.gpus, quote.pricePerGpuHour);
  const max = priceOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour);
  if (deposit < min || deposit > max) return refuse('DepositOutOfRange');
  if (call.signedBy !== quote.provider) return refuse('BadSignature');
  if (state.cancelled.has(`${quote.provider}/${quote.nonce}`)) return refuse('QuoteIsCancelled');

  const referred = quote.referrer !== zeroAddress && quote.referrerBps > 0;
  const lease: Escrow = {
    leaseId: call.leaseId,
    quoteHash: call.quoteHash,
    consumer: quote.consumer,
    signer: call.signer,
    provider: quote.provider,
    payee: quote.payee,
    token: quote.token,
    referrer: referred ? quote.referrer : zeroAddress,
    referrerBps: referred ? quote.referrerBps : 0,
    feeBps: rule.feeBps,
    gpus: quote.gpus,
    maxSeconds: quote.maxSeconds,
    pricePerGpuHour: quote.pricePerGpuHour,
    deposit,
    servedSeconds: 0,
    claimed: 0n,
    feeTaken: 0n,
    refunded: 0n,
    openedAt: now,
    endsAt: now + quote.startTimeoutSeconds + quote.maxSeconds,
    closingAt: 0,
    closeReason: 'Open',
    closed: false,
  };
  return accept(addTotals(putLease(state, lease), quote.token, { deposited: deposit, held: deposit }));
}

function topUp(state: EscrowModel, lease: Escrow, from: Address, amount: bigint, now: number): EscrowResult {
  const deposit = lease.deposit + amount;
  const max = priceOf(lease.maxSeconds, lease.gpus, lease.pricePerGpuHour);
  if (amount === 0n || deposit > max || deposit > maxUint96) return refuse('DepositOutOfRange');
  const richer = { ...lease, deposit };
  const funded = addTotals(putLease(state, richer), lease.token, { deposited: amount, held: amount });
  const known = from === lease.consumer ? funded : addSponsorship(funded, lease.leaseId, from, amount);
  return accept(count(known, richer, lease.servedSeconds, now));
}

/** Who pays twice in a row has paid once. */
function addSponsorship(state: EscrowModel, leaseId: Hex32, sponsor: Address, amount: bigint): EscrowModel {
  const pieces = [...(state.sponsorships.get(leaseId) ?? [])];
  const last = pieces.at(-1);
  if (last?.sponsor === sponsor) pieces[pieces.length - 1] = { sponsor, amount: last.amount + amount };
  else pieces.push({ sponsor, amount });
  return { ...state, sponsorships: new Map(state.sponsorships).set(leaseId, pieces) };
}

function settleMany(
  state: EscrowModel,
  items: Extract<EscrowCall, { do: 'settleMany' }>['items'],
  now: number,
): EscrowModel {
  let next = state;
  for (const { voucher, signedBy } of items) {
    const lease = next.leases.get(voucher.leaseId);
    if (!lease || lease.closed || signedBy !== lease.signer) continue;
    next = count(next, lease, voucher.servedSeconds, now);
  }
  return next;
}

/** Counts seconds and credits what they add. */
function count(state: EscrowModel, lease: Escrow, servedSeconds: number, now: number): EscrowModel {
  const stop = lease.closingAt === 0 ? lease.endsAt : Math.min(lease.endsAt, lease.closingAt);
  const elapsed = Math.min(now, stop) - lease.openedAt;
  const seconds = Math.max(lease.servedSeconds, Math.min(servedSeconds, lease.maxSeconds, elapsed));
  const price = priceOf(seconds, lease.gpus, lease.pricePerGpuHour);
  const claimed = price < lease.deposit ? price : lease.deposit;
  const feeTaken = feeOf(claimed, lease.feeBps);

  const fee = feeTaken - lease.feeTaken;
  const paid = claimed - lease.claimed - fee;
  const referred = referrerPartOf(feeTaken, lease.referrerBps) - referrerPartOf(lease.feeTaken, lease.referrerBps);
  let next = putLease(state, { ...lease, servedSeconds: seconds, claimed, feeTaken });
  next = addCredit(next, lease.token, lease.referrer, referred);
  next = addCredit(next, lease.token, state.feeRecipient, fee - referred);
  next = addCredit(next, lease.token, lease.payee, paid);
  return addTotals(next, lease.token, { paid, fee, held: -(paid + fee) });
}

function end(state: EscrowModel, lease: Escrow, servedSeconds: number, reason: CloseReason, now: number): EscrowModel {
  const counted = count(state, lease, servedSeconds, now);
  const last = counted.leases.get(lease.leaseId)!;
  const refunded = last.deposit - last.claimed;
  const closingAt = last.closingAt === 0 ? Math.min(now, last.endsAt) : last.closingAt;
  const closed = putLease(counted, { ...last, refunded, closingAt, closeReason: reason, closed: true });
  // What is left of others' money stays held until it is credited to each.
  const theirs = refundableOf(closed, lease.leaseId).reduce((sum, amount) => sum + amount, 0n);
  return refund(closed, lease.token, lease.consumer, refunded - theirs);
}

function refund(state: EscrowModel, token: Address, to: Address, amount: bigint): EscrowModel {
  return addTotals(addCredit(state, token, to, amount), token, { refunded: amount, held: -amount });
}

function refundSponsor(state: EscrowModel, leaseId: Hex32, index: number): EscrowResult {
  const lease = state.leases.get(leaseId);
  if (!lease) return refuse('LeaseNotFound');
  if (!lease.closed) return refuse('LeaseIsOpen');
  const amount = refundableOf(state, leaseId)[index] ?? 0n;
  if (amount === 0n) return refuse('NothingToRefund');
  const pieces = [...state.sponsorships.get(leaseId)!];
  const { sponsor } = pieces[index]!;
  pieces[index] = { ...pieces[index]!, sponsor: zeroAddress };
  const credited = { ...state, sponsorships: new Map(state.sponsorships).set(leaseId, pieces) };
  return accept(refund(credited, lease.token, sponsor, amount));
}

function withdraw(state: EscrowModel, token: Address, account: Address): EscrowResult {
  const amount = creditOf(state, token, account);
  if (amount === 0n) return refuse('NothingToWithdraw');
  return accept(addTotals(addCredit(state, token, account, -amount), token, { withdrawn: amount }));
}

function withOpenLease(state: EscrowModel, leaseId: Hex32, then: (lease: Escrow) => EscrowResult): EscrowResult {
  const lease = state.leases.get(leaseId);
  if (!lease) return refuse('LeaseNotFound');
  if (lease.closed) return refuse('LeaseIsClosed');
  return then(lease);
}

function putLease(state: EscrowModel, lease: Escrow): EscrowModel {
  return { ...state, leases: new Map(state.leases).set(lease.leaseId, lease) };
}

function addCredit(state: EscrowModel, token: Address, account: Address, amount: bigint): EscrowModel {
  if (amount === 0n) return state;
  const credits = new Map(state.credits).set(`${token}/${account}`, creditOf(state, token, account) + amount);
  return { ...state, credits };
}

function addTotals(state: EscrowModel, token: Address, change: Partial<Totals>): EscrowModel {
  const sum = { ...totalsOf(state, token) };
  for (const [name, amount] of Object.entries(change) as [keyof Totals, bigint][]) sum[name] += amount;
  return { ...state, totals: new Map(state.totals).set(token, sum) };
}

const atLeastZero = (value: bigint): bigint => (value > 0n ? value : 0n);

const accept = (state: EscrowModel): EscrowResult => ({ ok: true, state });
const refuse = (refusal: EscrowRefusal): EscrowResult => ({ ok: false, refusal });

/** Number of a close reason on chain. */
export const closeReasonNumber = (reason: CloseReason): number => closeReasons.indexOf(reason);
