/**
 * LeaseEscrow as the rest of the program sees it: reads that give facts or throw, calls encoded but not sent. Sending is
 * the outbox's.
 *
 * Invariant: `undefined` means that the contract said there is no such escrow. Whatever keeps us from asking throws.
 */
import { Interface, MaxUint256, type Result, Signature } from 'ethers';
import type { Address, Hex, Hex32, MessageDomain, Quote, Release, Signed, Voucher } from '../../api/messages.ts';
import { gpuToken } from '../../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { closeReasons, type Escrow, type ProviderCloseReason } from '../../core/money/escrow.ts';
import { closeReasonNumber, type Totals } from '../../core/money/model.ts';
import { boundedMap } from '../../engine/bounded-map.ts';
import { decodeRefusal, type Refusal } from './refusal.ts';
import { connectRpc, NoContract, type Rpc, type RpcOptions } from './rpc.ts';

/**
 * `latest` for starting work, `safe` for accounting: ARCHITECTURE.md has the table of all reads. A block itself, where its time
 * and what is read must belong together: with several nodes behind an address, `safe` may be another block at each call.
 */
export type ReadAt = 'latest' | 'safe' | 'finalized';

export interface Call {
  readonly to: Address;
  readonly data: Hex;
}

export interface Block {
  readonly number: number;
  readonly hash: Hex32;
  readonly timestamp: number;
}

export interface TokenInfo {
  readonly address: Address;
  readonly symbol: string;
  readonly decimals: number;
  /** Fee that a new escrow would be opened with. */
  readonly feeBps: number;
  readonly allowed: boolean;
}

/** What somebody else than the consumer put into an escrow. */
export interface Sponsorship {
  readonly index: number;
  readonly sponsor: Address;
  /** What is left of it: nothing before the close, and nothing once it was credited. */
  readonly refundable: bigint;
}

export interface PermitSignature {
  readonly value: bigint;
  readonly deadline: number;
  readonly signature: Hex;
}

/** EIP-3009, by the quote's consumer to the escrow, with `authorizationNonce` (messages.ts) as its nonce. */
export interface AuthorizationSignature {
  readonly validAfter: number;
  readonly validBefore: number;
  readonly signature: Hex;
}

/** Encoders; nothing is sent. */
export interface EscrowCalls {
  /** Unlimited unless an amount is given: an approve before each lease would cost as much as its settlement. */
  approve(token: Address, amount?: bigint): Call;
  open(quote: Signed<Quote>, signer: Address, deposit: bigint): Call;
  openWithPermit(quote: Signed<Quote>, signer: Address, deposit: bigint, permit: PermitSignature): Call;
  /** May be sent by anyone. */
  openWithAuthorization(
    quote: Signed<Quote>,
    signer: Address,
    deposit: bigint,
    authorization: AuthorizationSignature,
  ): Call;
  topUp(leaseId: Hex32, amount: bigint): Call;
  settle(voucher: Signed<Voucher>): Call;
  settleMany(vouchers: readonly Signed<Voucher>[]): Call;
  close(voucher: Signed<Voucher>): Call;
  closeWithRelease(release: Signed<Release>): Call;
  requestClose(leaseId: Hex32): Call;
  providerClose(leaseId: Hex32, reason: ProviderCloseReason): Call;
  finalize(leaseId: Hex32): Call;
  /** Credits who else than the consumer topped up with what is left, after the close. May be sent by anyone. */
  refundSponsor(leaseId: Hex32, index: number): Call;
  withdraw(token: Address, to: Address): Call;
  cancelQuote(nonce: bigint): Call;
  setToken(token: Address, allowed: boolean, feeBps: number): Call;
  setOpensPaused(paused: boolean): Call;
}

export interface EscrowClient {
  readonly rpc: Rpc;
  readonly chainId: number;
  readonly address: Address;
  readonly domain: MessageDomain;
  readonly networkId: Hex32;
  readonly feeRecipient: Address;
  readonly claimWindowSeconds: number;
  readonly calls: EscrowCalls;
  block(at?: ReadAt, signal?: AbortSignal): Promise<Block>;
  lease(leaseId: Hex32, at?: ReadAt | Block, signal?: AbortSignal): Promise<Escrow | undefined>;
  /** In the order asked, one request a hundred. */
  leases(
    leaseIds: readonly Hex32[],
    at?: ReadAt | Block,
    signal?: AbortSignal,
  ): Promise<readonly (Escrow | undefined)[]>;
  /** The first hundred of them, as of now. Strangers can make more, of dust. */
  sponsorships(leaseId: Hex32, signal?: AbortSignal): Promise<readonly Sponsorship[]>;
  token(token: Address, signal?: AbortSignal): Promise<TokenInfo>;
  balance(token: Address, account: Address, signal?: AbortSignal): Promise<bigint>;
  /** What the escrow may pull from the account. */
  allowance(token: Address, owner: Address, signal?: AbortSignal): Promise<bigint>;
  gasBalance(account: Address, signal?: AbortSignal): Promise<bigint>;
  credit(token: Address, account: Address, at?: ReadAt, signal?: AbortSignal): Promise<bigint>;
  totals(token: Address, at?: ReadAt, signal?: AbortSignal): Promise<Totals>;
  quoteCancelled(provider: Address, nonce: bigint, signal?: AbortSignal): Promise<boolean>;
  /** Why the chain would refuse the call now, or undefined when it would not. */
  simulate(from: Address, call: Call, signal?: AbortSignal): Promise<Refusal | undefined>;
}

export type EscrowOptions = { readonly escrow: Address } & (
  | { readonly rpc: Rpc }
  | {
      readonly rpcUrls: readonly string[];
      readonly chainId: number;
      readonly timeoutMs?: number;
      readonly fetch?: RpcOptions['fetch'];
    }
);

const escrowAbi = new Interface(leaseEscrow.abi);
const tokenAbi = new Interface(gpuToken.abi);
const leasesPerRead = 100;
const mostDecoded = 20_000;
const mostSponsorships = 100;

/**
 * Throws WrongChain or NoContract (terminal) when the configuration cannot be right, ChainUnavailable when nobody answers.
 */
export async function connectEscrow(options: EscrowOptions, signal?: AbortSignal): Promise<EscrowClient> {
  const rpc =
    'rpc' in options
      ? options.rpc
      : await connectRpc(
          { urls: options.rpcUrls, chainId: options.chainId, timeoutMs: options.timeoutMs, fetch: options.fetch },
          signal,
        );
  const address = options.escrow;
  if ((await rpc.codeOf(address, signal)) === '0x') {
    throw new NoContract(
      `there is no contract at ${address} on chain ${rpc.chainId}: correct the escrow's address or the chain, or deploy it`,
    );
  }

  async function read(
    method: string,
    args: readonly unknown[],
    at: ReadAt = 'latest',
    outer?: AbortSignal,
  ): Promise<Result> {
    const data = escrowAbi.encodeFunctionData(method, args) as Hex;
    return decode(escrowAbi, method, await rpc.contractCall({ to: address, data }, at, outer), address);
  }

  /** As `read`, but undefined when the contract is younger than the block: then it held nothing there. */
  async function readSince(
    method: string,
    args: readonly unknown[],
    at: ReadAt | Block = 'latest',
    outer?: AbortSignal,
  ): Promise<Result | undefined> {
    const answer = await answerSince(method, args, at, outer);
    return answer === undefined ? undefined : decode(escrowAbi, method, answer, address);
  }

  async function answerSince(
    method: string,
    args: readonly unknown[],
    at: ReadAt | Block,
    outer?: AbortSignal,
  ): Promise<Hex | undefined> {
    const data = escrowAbi.encodeFunctionData(method, args) as Hex;
    const block = typeof at === 'string' ? at : { blockHash: at.hash };
    const answer = await rpc.contractCall({ to: address, data }, block, outer);
    if (answer === '0x' && at !== 'latest') {
      const codeThen = await rpc.call<Hex>('eth_getCode', [address, block], outer);
      if (codeThen === '0x') return undefined;
    }
    return answer;
  }

  /**
   * What a lease's words said when they were seen last, at the newest block and elsewhere. At most looks most leases are as they
   * were, and ethers takes a third of a millisecond to decode one.
   */
  const decoded = boundedMap<string, { readonly words: string; readonly escrow: Escrow | undefined }>(mostDecoded);

  function escrowIn(words: string, leaseId: Hex32, at: ReadAt | Block): Escrow | undefined {
    const name = `${leaseId}/${at === 'latest' ? at : ''}`;
    const known = decoded.get(name);
    if (known?.words === words) return known.escrow;
    const escrow = escrowOf(leaseId, decode(escrowAbi, 'lease', `0x${words}`, address)[0]);
    decoded.set(name, { words, escrow });
    return escrow;
  }

  async function readToken(
    token: Address,
    method: string,
    args: readonly unknown[],
    outer?: AbortSignal,
  ): Promise<Result> {
    const data = tokenAbi.encodeFunctionData(method, args) as Hex;
    return decode(tokenAbi, method, await rpc.contractCall({ to: token, data }, 'latest', outer), token);
  }

  const [networkId, feeRecipient, claimWindow] = await Promise.all(
    ['networkId', 'feeRecipient', 'claimWindow'].map(async (name) => {
      try {
        return (await read(name, [], 'latest', signal))[0];
      } catch (error) {
        if (!decodeRefusal(error)) throw error;
        throw notAnEscrow(address, name);
      }
    }),
  );
  const decimalsOf = new Map<Address, { symbol: string; decimals: number }>();

  return {
    rpc,
    chainId: rpc.chainId,
    address,
    domain: { chainId: rpc.chainId, escrow: address },
    networkId,
    feeRecipient,
    claimWindowSeconds: Number(claimWindow),
    calls: encodeCalls(address),

    async block(at = 'latest', outer) {
      const block = await rpc.call<{ number: Hex; hash: Hex32; timestamp: Hex } | null>(
        'eth_getBlockByNumber',
        [at, false],
        outer,
      );
      // A node that is still catching up has no safe head yet.
      if (block === null) throw new Error(`chain ${rpc.chainId} has no ${at} block yet`);
      return { number: Number(block.number), hash: block.hash, timestamp: Number(block.timestamp) };
    },

    async lease(leaseId, at = 'latest', outer) {
      const answer = await answerSince('lease', [leaseId], at, outer);
      return answer && escrowIn(answer.slice(2), leaseId, at);
    },

    async leases(leaseIds, at = 'latest', outer) {
      const all: (Escrow | undefined)[] = [];
      for (let from = 0; from < leaseIds.length; from += leasesPerRead) {
        const some = leaseIds.slice(from, from + leasesPerRead);
        const answer = await answerSince('leases', [some], at, outer);
        const each = answer && tuplesOf(answer, some.length);
        if (answer !== undefined && !each) throw notAnEscrow(address, 'leases');
        for (const [index, leaseId] of some.entries()) all.push(each && escrowIn(each[index]!, leaseId, at));
      }
      return all;
    },

    async sponsorships(leaseId, outer) {
      const count = Math.min(Number((await read('sponsorships', [leaseId], 'latest', outer))[0]), mostSponsorships);
      const all: Sponsorship[] = [];
      for (let index = 0; index < count; index++) {
        const { sponsor, refundable } = (await read('sponsorship', [leaseId, index], 'latest', outer))[0];
        all.push({ index, sponsor, refundable });
      }
      return all;
    },

    async token(token, outer) {
      let fixed = decimalsOf.get(token);
      if (!fixed) {
        const [symbol, decimals] = await Promise.all([
          readToken(token, 'symbol', [], outer),
          readToken(token, 'decimals', [], outer),
        ]);
        fixed = { symbol: String(symbol[0]).slice(0, 32), decimals: Number(decimals[0]) };
        // Names come from callers' configuration: a few, but bounded all the same.
        if (decimalsOf.size < 1000) decimalsOf.set(token, fixed);
      }
      const rule = (await read('tokenRule', [token], 'latest', outer))[0];
      return { address: token, ...fixed, feeBps: Number(rule.feeBps), allowed: rule.allowed };
    },

    balance: async (token, account, outer) => (await readToken(token, 'balanceOf', [account], outer))[0],
    allowance: async (token, owner, outer) => (await readToken(token, 'allowance', [owner, address], outer))[0],
    gasBalance: async (account, outer) => BigInt(await rpc.call<Hex>('eth_getBalance', [account, 'latest'], outer)),
    credit: async (token, account, at, outer) => (await readSince('credits', [token, account], at, outer))?.[0] ?? 0n,
    quoteCancelled: async (provider, nonce, outer) =>
      (await read('quoteCancelled', [provider, nonce], 'latest', outer))[0],

    async totals(token, at, outer) {
      const sums = (await readSince('totals', [token], at, outer))?.[0];
      if (!sums) return { deposited: 0n, paid: 0n, fee: 0n, refunded: 0n, held: 0n, withdrawn: 0n };
      const { deposited, paid, fee, refunded, held, withdrawn } = sums;
      return { deposited, paid, fee, refunded, held, withdrawn };
    },

    async simulate(from, call, outer) {
      try {
        await rpc.contractCall({ ...call, from }, 'latest', outer);
        return undefined;
      } catch (error) {
        const refusal = decodeRefusal(error);
        if (!refusal) throw error;
        return refusal;
      }
    },
  };
}

/** Encoders for one escrow. */
export function encodeCalls(escrow: Address): EscrowCalls {
  const call = (method: string, args: readonly unknown[]): Call => ({
    to: escrow,
    data: escrowAbi.encodeFunctionData(method, args) as Hex,
  });
  return {
    approve: (token, amount = MaxUint256) => ({
      to: token,
      data: tokenAbi.encodeFunctionData('approve', [escrow, amount]) as Hex,
    }),
    open: (quote, signer, deposit) => call('open', [quote.message, quote.signature, signer, deposit]),
    openWithPermit: (quote, signer, deposit, permit) => {
      const { v, r, s } = Signature.from(permit.signature);
      const split = { value: permit.value, deadline: permit.deadline, v, r, s };
      return call('openWithPermit', [quote.message, quote.signature, signer, deposit, split]);
    },
    openWithAuthorization: (quote, signer, deposit, authorization) => {
      const { v, r, s } = Signature.from(authorization.signature);
      const { validAfter, validBefore } = authorization;
      const split = { validAfter, validBefore, v, r, s };
      return call('openWithAuthorization', [quote.message, quote.signature, signer, deposit, split]);
    },
    topUp: (leaseId, amount) => call('topUp', [leaseId, amount]),
    settle: (voucher) => call('settle', [voucher.message, voucher.signature]),
    settleMany: (vouchers) =>
      call('settleMany', [vouchers.map(({ message, signature }) => ({ voucher: message, signature }))]),
    close: (voucher) => call('close', [voucher.message, voucher.signature]),
    closeWithRelease: (release) => call('closeWithRelease', [release.message, release.signature]),
    requestClose: (leaseId) => call('requestClose', [leaseId]),
    providerClose: (leaseId, reason) => call('providerClose', [leaseId, closeReasonNumber(reason)]),
    finalize: (leaseId) => call('finalize', [leaseId]),
    refundSponsor: (leaseId, index) => call('refundSponsor', [leaseId, index]),
    withdraw: (token, to) => call('withdraw', [token, to]),
    cancelQuote: (nonce) => call('cancelQuote', [nonce]),
    setToken: (token, allowed, feeBps) => call('setToken', [token, allowed, feeBps]),
    setOpensPaused: (paused) => call('setOpensPaused', [paused]),
  };
}

/** Hexadecimal digits of a word of the ABI, and words of a Lease: all of its fields have a fixed size. */
const wordDigits = 64;
const wordsOfLease = escrowAbi.getFunction('lease')!.outputs[0]!.components!.length;

/**
 * The words of each tuple of an array that is all that was answered: where it begins, its length, its tuples one after the other
 * (Contract ABI Specification, "Use of Dynamic Types"). Undefined: it is something else.
 */
function tuplesOf(answer: Hex, count: number): readonly string[] | undefined {
  const digits = wordsOfLease * wordDigits;
  const head = 2 + 2 * wordDigits;
  const [begins, length] = [answer.slice(2, 2 + wordDigits), answer.slice(2 + wordDigits, head)];
  if (
    answer.length !== head + count * digits ||
    BigInt(`0x${begins}`) !== 32n ||
    BigInt(`0x${length}`) !== BigInt(count)
  )
    return undefined;
  return Array.from({ length: count }, (_, i) => answer.slice(head + i * digits, head + (i + 1) * digits));
}

function decode(abi: Interface, method: string, answer: Hex, address: Address): Result {
  try {
    return abi.decodeFunctionResult(method, answer);
  } catch {
    // No bytes, or others than the ABI says: the address holds something else.
    throw notAnEscrow(address, method);
  }
}

const notAnEscrow = (address: Address, method: string) =>
  new NoContract(`the contract at ${address} does not answer ${method}() as expected: correct its address`);

function escrowOf(leaseId: Hex32, lease: Result): Escrow | undefined {
  const openedAt = Number(lease.openedAt);
  if (openedAt === 0) return undefined;
  const closeReason = closeReasons[Number(lease.closeReason)];
  if (closeReason === undefined) throw new Error(`escrow ${leaseId} has a close reason unknown to this version`);
  return {
    leaseId,
    quoteHash: lease.quoteHash,
    consumer: lease.consumer,
    signer: lease.signer,
    provider: lease.provider,
    payee: lease.payee,
    token: lease.token,
    referrer: lease.referrer,
    referrerBps: Number(lease.referrerBps),
    feeBps: Number(lease.feeBps),
    gpus: Number(lease.gpus),
    maxSeconds: Number(lease.maxSeconds),
    pricePerGpuHour: lease.pricePerGpuHour,
    deposit: lease.deposit,
    servedSeconds: Number(lease.servedSeconds),
    claimed: lease.claimed,
    feeTaken: lease.feeTaken,
    refunded: lease.refunded,
    openedAt,
    endsAt: Number(lease.endsAt),
    closingAt: Number(lease.closingAt),
    closeReason,
    closed: closeReason !== 'Open',
  };
}
