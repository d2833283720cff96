/**
 * Random lives of escrows: one wish after the other, as the model of the contract takes them. Whoever plays a trace makes the
 * same wishes on a contract and compares; `encodeTrace` writes one down for the player in Solidity
 * (operator/contracts/test/Traces.t.sol), which reads it in the same order.
 */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import type { Address, Hex32, Quote } from '../../operator/api/messages.ts';
import { type CloseReason, closeReasons, type Escrow } from '../../operator/core/money/escrow.ts';
import {
  callEscrow,
  creditOf,
  type EscrowCall,
  type EscrowModel,
  type EscrowRefusal,
  newEscrowModel,
  refundableOf,
  totalsOf,
} from '../../operator/core/money/model.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import { type Random, random } from '../simulation/random.ts';

/** The position is the number by which both players know an account; the first is nobody, the zero address. */
export const actors = [
  'nobody',
  'owner',
  'consumer',
  'provider',
  'session',
  'referrer',
  'feeRecipient',
  'stranger',
  'payee',
] as const;
export type Actor = (typeof actors)[number];

/** Where a trace is played: whose addresses, which tokens, how ids are hashed. */
export interface Stage {
  readonly accounts: Readonly<Record<Actor, Address>>;
  /** Takes a fee, and can be authorized by EIP-3009. */
  readonly usdc: Address;
  /** Takes none. */
  readonly gpu: Address;
  readonly networkId: Hex32;
  readonly claimWindowSeconds: number;
  leaseIdOf(consumer: Address, leaseRef: Hex32): Hex32;
  hashQuote(quote: Quote): Hex32;
}

const kinds = [
  'open',
  'openWithAuthorization',
  'topUp',
  'settle',
  'settleMany',
  'close',
  'closeWithRelease',
  'requestClose',
  'providerClose',
  'finalize',
  'refundSponsor',
  'withdraw',
  'cancelQuote',
  'setToken',
  'setOpensPaused',
] as const satisfies readonly EscrowCall['do'][];
type Kind = (typeof kinds)[number];

/** How often each is wished for; a few end leases for no reason and are rarer than the rest. */
const weights: Readonly<Record<Kind, number>> = {
  open: 6,
  openWithAuthorization: 2,
  topUp: 4,
  settle: 5,
  settleMany: 2,
  close: 2,
  closeWithRelease: 1.5,
  requestClose: 1.5,
  providerClose: 0.7,
  finalize: 4,
  refundSponsor: 2,
  withdraw: 2,
  cancelQuote: 0.4,
  setToken: 1,
  setOpensPaused: 0.7,
};
const weightOfAll = Object.values(weights).reduce((sum, weight) => sum + weight, 0);

/** Every refusal, in the order in which the player in Solidity knows them; 0 means that the call is accepted. */
export const refusals = [
  'OpensArePaused',
  'NotAuthorized',
  'WrongNetwork',
  'QuoteExpired',
  'QuoteIsCancelled',
  'InvalidTerms',
  'TokenNotAllowed',
  'BadSignature',
  'DepositOutOfRange',
  'LeaseExists',
  'LeaseNotFound',
  'LeaseIsClosed',
  'LeaseIsOpen',
  'AlreadyClosing',
  'NotLastVoucher',
  'NotProviderReason',
  'NotFinalizableBefore',
  'NothingToWithdraw',
  'NothingToRefund',
  'FeeTooHigh',
] as const satisfies readonly EscrowRefusal[];

export interface Step {
  readonly call: EscrowCall;
  /** Seconds since the step before. */
  readonly wait: number;
  readonly now: number;
  readonly refusal: EscrowRefusal | undefined;
  /** After the call; the same as before when it was refused. */
  readonly state: EscrowModel;
}

const longest = 60;

/** A trace, as long as chance wants it to be. Everything follows from the seed. */
export function* trace(stage: Stage, seed: string, startedAt: number): Generator<Step> {
  const dice = random(seed);
  const rule = (feeBps: number) => ({ allowed: true, feeBps });
  let state: EscrowModel = {
    ...newEscrowModel({
      networkId: stage.networkId,
      owner: stage.accounts.owner,
      feeRecipient: stage.accounts.feeRecipient,
      claimWindowSeconds: stage.claimWindowSeconds,
    }),
    tokenRules: new Map([
      [stage.usdc, rule(200)],
      [stage.gpu, rule(0)],
    ]),
  };
  const quotes: Quote[] = [];
  const steps = 20 + dice.below(longest - 19);
  let now = startedAt;
  for (let step = 0; step < steps; step++) {
    const call = wish(stage, dice, quotes, state, now);
    const wait = 1 + dice.below(dice.pick([5, 5, 200, 1000]));
    now += wait;
    const result = callEscrow(state, call, now);
    if (result.ok) state = result.state;
    yield { call, wait, now, refusal: result.ok ? undefined : result.refusal, state };
  }
}

/** `leaseRef` is a number below 256, so that it takes one byte to say which lease is meant. */
const refOf = (number: number): Hex32 => `0x${hexOf(BigInt(number), 32)}`;
const otherNetwork: Hex32 = `0x${'99'.repeat(32)}`;
const zeroHash: Hex32 = `0x${'0'.repeat(64)}`;

function kindOf(dice: Random): Kind {
  let at = dice.next() * weightOfAll;
  for (const kind of kinds) {
    at -= weights[kind];
    if (at < 0) return kind;
  }
  return 'open';
}

/** One wish, often a good one: `odd` picks what is wrong with the others. */
function wish(stage: Stage, dice: Random, quotes: Quote[], state: EscrowModel, now: number): EscrowCall {
  const { accounts, usdc, gpu } = stage;
  const kind = kindOf(dice);
  const odd = dice.below(35);
  const strange = odd === 0;
  const any = (...some: Actor[]) => accounts[dice.pick(some)];
  const seconds = () => dice.below(dice.pick([50, 900, 2000]));
  const leaseOf = (of: Quote | undefined) =>
    of ? stage.leaseIdOf(of.consumer, of.leaseRef) : stage.leaseIdOf(accounts.nobody, refOf(255));
  const opened = quotes.filter((one) => state.leases.has(leaseOf(one)));
  const alive = opened.filter((one) => !state.leases.get(leaseOf(one))?.closed);
  const some = dice.chance(0.8) && alive.length > 0 ? alive : dice.chance(0.9) ? opened : quotes;
  // Undefined, now and then: a lease that nobody knows.
  const quote = some[dice.below(some.length + (dice.chance(0.05) ? 1 : 0))];
  const leaseId = leaseOf(quote);
  const consumer = quote?.consumer ?? accounts.consumer;

  switch (kind) {
    case 'open':
    case 'openWithAuthorization': {
      const authorized = kind === 'openWithAuthorization';
      const token = authorized || dice.chance(0.6) ? usdc : gpu;
      const fresh: Quote = {
        networkId: odd === 7 ? otherNetwork : stage.networkId,
        provider: accounts.provider,
        payee: odd === 12 && dice.chance(0.5) ? accounts.nobody : any('payee', 'provider', 'provider'),
        consumer: any('consumer', 'consumer', 'stranger'),
        leaseRef: odd === 8 && quote ? quote.leaseRef : refOf(quotes.length + 1),
        token: odd === 1 ? accounts.stranger : token,
        pricePerGpuHour:
          odd === 2
            ? 2n ** 96n
            : BigInt(dice.below(dice.pick([1, 10_000, 2_000_000, 2_000_000, 50_000_000]))) *
              (token === gpu ? 10n ** 12n : 1n),
        gpus: odd === 3 ? 0 : 1 + dice.below(dice.pick([1, 4, 64])),
        minSeconds: odd === 4 ? 10_000 : dice.pick([0, 10]),
        maxSeconds: 10 + seconds(),
        startTimeoutSeconds: dice.below(60),
        graceSeconds: 600,
        capacityType: 0,
        specHash: zeroHash,
        saltCommit: zeroHash,
        referrer: any('nobody', 'referrer', 'referrer'),
        referrerBps: odd === 5 ? 5001 : dice.pick([0, dice.below(5001), 5000]),
        expiresAt: odd === 6 ? now : now + 100_000,
        nonce: BigInt(dice.below(8)),
      };
      quotes.push(fresh);
      const min = priceOf(fresh.minSeconds, fresh.gpus, fresh.pricePerGpuHour);
      const max = priceOf(fresh.maxSeconds, fresh.gpus, fresh.pricePerGpuHour);
      const deposit = odd === 9 ? max + 1n : odd === 13 && min > 0n ? min - 1n : between(dice, min, max);
      return {
        do: kind,
        from: odd === 11 || authorized ? any('provider', 'payee') : fresh.consumer,
        quote: fresh,
        leaseId: leaseOf(fresh),
        quoteHash: stage.hashQuote(fresh),
        signedBy: accounts[odd === 10 ? 'stranger' : 'provider'],
        signer: odd === 12 ? accounts.nobody : accounts.session,
        // Beyond what a token has, it is the token that refuses.
        deposit: deposit > 2n ** 100n ? 2n ** 96n : deposit,
      };
    }
    case 'topUp': {
      const lease = state.leases.get(leaseId);
      const room = lease ? priceOf(lease.maxSeconds, lease.gpus, lease.pricePerGpuHour) - lease.deposit : 5n;
      const amount = strange ? room + 1n : odd === 1 ? 0n : between(dice, 0n, dice.chance(0.3) ? room : room / 4n);
      const from = dice.chance(0.4) ? consumer : any('stranger', 'payee', 'provider', 'consumer');
      return { do: 'topUp', from, leaseId, amount };
    }
    case 'settle':
    case 'close': {
      const voucher = { leaseId, servedSeconds: seconds(), last: kind === 'close' ? odd !== 3 : dice.chance(0.1) };
      const signedBy = strange ? any('consumer', 'provider', 'stranger') : accounts.session;
      const closer = odd === 1 ? 'consumer' : odd === 2 ? 'payee' : 'provider';
      return { do: kind, from: accounts[kind === 'close' ? closer : 'stranger'], voucher, signedBy };
    }
    case 'settleMany':
      return {
        do: kind,
        from: accounts.stranger,
        items: Array.from({ length: dice.below(5) }, (_, index) => ({
          voucher: {
            leaseId: leaseOf(some[dice.below(some.length + (dice.chance(0.1) ? 1 : 0))]),
            servedSeconds: seconds(),
            last: index === 1,
          },
          signedBy: accounts[dice.chance(0.15) ? 'stranger' : 'session'],
        })),
      };
    case 'closeWithRelease':
      return {
        do: kind,
        from: odd === 1 ? accounts.provider : consumer,
        release: { leaseId, servedSeconds: seconds() },
        signedBy: accounts[strange ? 'session' : 'provider'],
      };
    case 'requestClose':
      return { do: kind, from: strange ? accounts.provider : consumer, leaseId };
    case 'providerClose': {
      const reason = closeReasons[dice.below(closeReasons.length)] as CloseReason;
      return { do: kind, from: accounts[strange ? 'payee' : 'provider'], leaseId, reason };
    }
    case 'finalize':
      return { do: kind, from: accounts.stranger, leaseId };
    case 'refundSponsor': {
      const closed = opened
        .map(leaseOf)
        .filter((id) => state.leases.get(id)?.closed && refundableOf(state, id).some((left) => left > 0n));
      const sponsored = strange || closed.length === 0 ? leaseId : dice.pick(closed);
      const pieces = state.sponsorships.get(sponsored)?.length ?? 0;
      return { do: kind, from: accounts.owner, leaseId: sponsored, index: dice.below(pieces + (odd < 3 ? 2 : 0) || 1) };
    }
    case 'withdraw':
      return {
        do: kind,
        from: any('consumer', 'provider', 'payee', 'referrer', 'feeRecipient', 'stranger'),
        token: dice.chance(0.5) ? usdc : gpu,
      };
    case 'cancelQuote':
      return { do: kind, from: accounts.provider, nonce: BigInt(dice.below(8)) };
    case 'setToken': {
      const rule = { allowed: dice.chance(0.8), feeBps: dice.below(520) };
      return { do: kind, from: accounts[strange ? 'stranger' : 'owner'], token: usdc, rule };
    }
    case 'setOpensPaused':
      return {
        do: kind,
        from: accounts[strange ? 'stranger' : 'owner'],
        paused: !state.opensPaused && dice.chance(0.5),
      };
  }
}

/** Edges more often than chance would have them. */
function between(dice: Random, least: bigint, most: bigint): bigint {
  if (most <= least) return least;
  const edge = dice.below(10);
  if (edge === 0) return least;
  if (edge < 3) return most;
  return least + ((most - least) * BigInt(dice.below(1_000_000))) / 1_000_000n;
}

// ------------------------------------------------------------------------------------------- for the player in Solidity

/**
 * A trace in bytes: its steps, each with what must come of it, and at the end a digest of all leases. Numbers are
 * big-endian; what is read in which order is the player's `step`.
 */
export function encodeTrace(stage: Stage, seed: string, startedAt: number, seen?: (step: Step) => void): Buffer {
  const actorOf = new Map(actors.map((actor, index) => [stage.accounts[actor], index]));
  const actor = (address: Address): number => actorOf.get(address)!;
  const tokenOf = (address: Address): number => (address === stage.usdc ? 0 : address === stage.gpu ? 1 : 2);
  const known = new Map<Hex32, readonly [consumer: number, ref: number]>();
  const unknown = [0, 255] as const;
  const out: Buffer[] = [];
  const put = (bytes: number, ...values: readonly (number | bigint | boolean)[]) => {
    for (const value of values) out.push(Buffer.from(hexOf(BigInt(value), bytes), 'hex'));
  };
  const putLease = (leaseId: Hex32) => put(1, ...(known.get(leaseId) ?? unknown));
  const putVoucher = (voucher: { leaseId: Hex32; servedSeconds: number; last: boolean }, signedBy: Address) => {
    putLease(voucher.leaseId);
    put(4, voucher.servedSeconds);
    put(1, voucher.last, actor(signedBy));
  };

  let last: EscrowModel | undefined;
  for (const step of trace(stage, seed, startedAt)) {
    const { call, refusal, state } = step;
    seen?.(step);
    last = state;
    put(1, kinds.indexOf(call.do));
    put(4, step.wait);
    put(1, actor(call.from), refusal === undefined ? 0 : refusals.indexOf(refusal) + 1);
    switch (call.do) {
      case 'open':
      case 'openWithAuthorization': {
        const { quote } = call;
        known.set(call.leaseId, [actor(quote.consumer), Number(BigInt(quote.leaseRef))]);
        putLease(call.leaseId);
        put(1, quote.networkId === stage.networkId, tokenOf(quote.token), actor(quote.payee), actor(quote.referrer));
        put(2, quote.referrerBps);
        put(16, quote.pricePerGpuHour);
        put(4, quote.gpus, quote.minSeconds, quote.maxSeconds, quote.startTimeoutSeconds);
        put(8, quote.expiresAt);
        put(1, quote.nonce, actor(call.signedBy), actor(call.signer));
        put(16, call.deposit);
        break;
      }
      case 'topUp':
        putLease(call.leaseId);
        put(16, call.amount);
        break;
      case 'settle':
      case 'close':
        putVoucher(call.voucher, call.signedBy);
        break;
      case 'settleMany':
        put(1, call.items.length);
        for (const { voucher, signedBy } of call.items) putVoucher(voucher, signedBy);
        break;
      case 'closeWithRelease':
        putVoucher({ ...call.release, last: false }, call.signedBy);
        break;
      case 'requestClose':
      case 'finalize':
        putLease(call.leaseId);
        break;
      case 'providerClose':
        putLease(call.leaseId);
        put(1, closeReasons.indexOf(call.reason));
        break;
      case 'refundSponsor':
        putLease(call.leaseId);
        put(1, call.index);
        break;
      case 'withdraw':
        put(1, tokenOf(call.token));
        break;
      case 'cancelQuote':
        put(1, call.nonce);
        break;
      case 'setToken':
        put(1, tokenOf(call.token), call.rule.allowed);
        put(2, call.rule.feeBps);
        break;
      case 'setOpensPaused':
        put(1, call.paused);
        break;
    }
    if (refusal === undefined) out.push(digest(stepWords(call, state)).subarray(0, 8));
  }
  put(1, 255);
  const all: bigint[] = [];
  for (const leaseId of known.keys()) all.push(...leaseWords(last!, leaseId));
  for (const token of [stage.usdc, stage.gpu]) all.push(...tokenWords(last!, token));
  out.push(digest(all));
  return Buffer.concat(out);

  /** What the call may have changed. */
  function stepWords(call: EscrowCall, state: EscrowModel): bigint[] {
    switch (call.do) {
      case 'open':
      case 'openWithAuthorization':
      case 'topUp':
      case 'requestClose':
      case 'providerClose':
      case 'finalize':
      case 'refundSponsor':
        return leaseAndToken(state, call.leaseId);
      case 'settle':
      case 'close':
        return leaseAndToken(state, call.voucher.leaseId);
      case 'closeWithRelease':
        return leaseAndToken(state, call.release.leaseId);
      case 'settleMany':
        return call.items.flatMap(({ voucher }) => leaseAndToken(state, voucher.leaseId));
      case 'withdraw':
        return tokenWords(state, call.token);
      case 'cancelQuote':
        return [1n];
      case 'setToken':
        return [BigInt(call.rule.allowed), BigInt(call.rule.feeBps)];
      case 'setOpensPaused':
        return [BigInt(call.paused)];
    }
  }

  function leaseAndToken(state: EscrowModel, leaseId: Hex32): bigint[] {
    const lease = state.leases.get(leaseId);
    return [...leaseWords(state, leaseId), ...(lease ? tokenWords(state, lease.token) : [])];
  }

  function leaseWords(state: EscrowModel, leaseId: Hex32): bigint[] {
    const lease: Escrow | undefined = state.leases.get(leaseId);
    if (!lease) return [0n];
    const pieces = state.sponsorships.get(leaseId) ?? [];
    const refundable = refundableOf(state, leaseId);
    return [
      ...[lease.openedAt, actor(lease.consumer), actor(lease.signer), actor(lease.provider), actor(lease.payee)],
      ...[tokenOf(lease.token), actor(lease.referrer), lease.referrerBps, lease.feeBps, lease.gpus, lease.maxSeconds],
      ...[lease.pricePerGpuHour, lease.deposit, lease.servedSeconds, lease.claimed, lease.feeTaken, lease.refunded],
      ...[lease.endsAt, lease.closingAt, closeReasons.indexOf(lease.closeReason), pieces.length],
      ...pieces.flatMap(({ sponsor, amount }, index) => [actor(sponsor), amount, refundable[index]!]),
    ].map(BigInt);
  }

  function tokenWords(state: EscrowModel, token: Address): bigint[] {
    const { deposited, paid, fee, refunded, held, withdrawn } = totalsOf(state, token);
    const credits = actors.slice(1).map((name) => creditOf(state, token, stage.accounts[name]));
    return [deposited, paid, fee, refunded, held, withdrawn, ...credits];
  }
}

const hexOf = (value: bigint, bytes: number): string => value.toString(16).padStart(bytes * 2, '0');

function digest(words: readonly bigint[]): Buffer {
  const hex = words.map((word) => hexOf(word, 32)).join('');
  return createHash('sha256').update(Buffer.from(hex, 'hex')).digest();
}

/** As many as the player has tests, so that as many processors can play. */
const traceFiles = 4;

export interface TraceCounts {
  readonly traces: number;
  readonly calls: number;
  readonly accepted: number;
  /** How often each outcome is wished: `settle accepted`, `open QuoteExpired`. */
  readonly outcomes: ReadonlyMap<string, number>;
}

/** Writes traces for the player: `path.1` to `path.4`, a trace a line. */
export async function writeTraces(path: string, seed: string, count: number): Promise<TraceCounts> {
  const files = await Promise.all(Array.from({ length: traceFiles }, (_, index) => open(`${path}.${index + 1}`, 'w')));
  const outcomes = new Map<string, number>();
  let calls = 0;
  let accepted = 0;
  try {
    for (let number = 0; number < count; number++) {
      const bytes = encodeTrace(bareStage, traceSeed(seed, number), traceStart, ({ call, refusal }) => {
        calls += 1;
        if (refusal === undefined) accepted += 1;
        const outcome = `${call.do} ${refusal ?? 'accepted'}`;
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      });
      const line = `0x${hexOf(BigInt(number), 4)}${bytes.toString('hex')}\n`;
      await files[number % traceFiles]!.write(line);
    }
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
  return { traces: count, calls, accepted, outcomes };
}

/** What traces must have met, or they agree on nothing: every call accepted, and every refusal. */
export function neverMet({ outcomes }: TraceCounts): string[] {
  const met = [...outcomes.keys()];
  return [
    ...kinds.map((kind) => `${kind} accepted`).filter((outcome) => !outcomes.has(outcome)),
    ...refusals.filter((refusal) => !met.some((outcome) => outcome.endsWith(` ${refusal}`))),
  ];
}

/** One step of such a trace in words, for who wants to know where contract and model part. */
export function explainStep(seed: string, number: number, step: number): string {
  let index = 0;
  for (const { call, now, refusal } of trace(bareStage, traceSeed(seed, number), traceStart)) {
    if (index++ !== step) continue;
    const text = JSON.stringify(call, (_, value) => (typeof value === 'bigint' ? String(value) : value));
    return `${text} at ${now}: the model ${refusal === undefined ? 'accepts it' : `refuses it with ${refusal}`}`;
  }
  return 'there is no such step';
}

const traceSeed = (seed: string, number: number) => `${seed}/${number}`;
/** START in Traces.t.sol. */
const traceStart = 1_800_000_000;

/** A stage without a chain: names in place of hashes. */
export const bareStage: Stage = {
  accounts: Object.fromEntries(
    actors.map((name, index) => [name, `0x${index.toString(16).padStart(40, '0')}`]),
  ) as Stage['accounts'],
  usdc: `0x${'a'.repeat(40)}`,
  gpu: `0x${'b'.repeat(40)}`,
  networkId: `0x${'1'.repeat(64)}`,
  claimWindowSeconds: 300,
  leaseIdOf: (consumer, leaseRef) => `${consumer}${leaseRef.slice(-24)}` as Hex32,
  hashQuote: () => zeroHash,
};
