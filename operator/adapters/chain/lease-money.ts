/**
 * The consumer's side of the money: reads what the chain says of a lease, checks what providers sign, and makes each
 * payment once, through the outbox of its chain.
 *
 * Two keys: the wallet signs transactions; the session key, which is named when an escrow is opened, signs vouchers, access
 * to gateways and receipts, and can move nothing else.
 */
import type { SignedQuote } from '../../api/gateway.ts';
import type { Access, Address, Hex, Hex32, MessageDomain } from '../../api/messages.ts';
import type { Rail } from '../../api/provider.ts';
import type { UnsealedReceipt } from '../../api/receipt.ts';
import {
  type ChainFact,
  intents,
  type LeaseRecord,
  type QuoteRecord,
  type Refused,
  type TxFact,
} from '../../core/lease/observed.ts';
import { type Escrow, newestOf, wayToClose } from '../../core/money/escrow.ts';
import type { FundingWay } from '../../core/money/funding.ts';
import type { RailFact } from '../../core/provider/assess.ts';
import { type Call, connectEscrow, type EscrowClient } from './escrow-client.ts';
import type { Payer } from './guarded-outbox.ts';
import type { ChainKey } from './key.ts';
import {
  authorizationNonce,
  hashJson,
  hashQuote,
  leaseIdOf,
  leaseRefOf,
  quoteFromJson,
  signAccess,
  signVoucher,
  verifyQuote,
  verifyRelease,
} from './messages.ts';
import { sealReceipt } from './receipt-proofs.ts';
import { ChainUnavailable, NoContract, type Rpc, WrongChain } from './rpc.ts';
import { settlementTrail } from './settlement-trail.ts';
import { type SigningToken, signAuthorization, signingToken, signPermit } from './token-signatures.ts';

export interface ChainAccess {
  readonly chainId: number;
  /** Connects when first needed; throws WrongChain or ChainUnavailable. */
  rpc(signal?: AbortSignal): Promise<Rpc>;
  outbox(signal?: AbortSignal): Promise<Payer>;
}

export interface LeaseMoneyOptions {
  /**
   * Its key is the payer's, in this process or another. Where it is another's, `signTypedData` is absent: nothing but transactions
   * is signed there, so a deposit that no allowance covers is approved first.
   */
  readonly wallet: Pick<ChainKey, 'address'> & Partial<Pick<ChainKey, 'signTypedData'>>;
  readonly session: ChainKey;
  readonly clusterUid: string;
  readonly chains: ReadonlyMap<number, ChainAccess>;
  /** Never set back or forward. */
  readonly monotonicMs: () => number;
}

interface LastRead {
  readonly escrow: Escrow;
  readonly blockTime: number;
  readonly readAtMs: number;
}
const mostLastReads = 10_000;
const mostTokens = 256;

export type LeaseMoneyAdapter = ReturnType<typeof createLeaseMoney>;

/** Leave this much time for an answer before a lease waits for the next look. */
const readTimeoutMs = 10_000;
/** A chain that let one look wait, and answered nothing, lets no others wait for so long: those of other chains have their turn. */
const silenceMs = 10_000;
/** A failure that comes sooner holds nobody up. */
const waitedMs = 1000;

export function createLeaseMoney({ wallet, session, clusterUid, chains, monotonicMs }: LeaseMoneyOptions) {
  const clients = new Map<string, EscrowClient>();
  /** By lease id: vouchers go on from here while no endpoint answers. Escrows that are closed need none. */
  const lastReads = new Map<string, LastRead>();

  function remember(leaseId: string, escrow: Escrow | undefined, blockTime: number): void {
    lastReads.delete(leaseId);
    if (!escrow || escrow.closed) return;
    // The one that was not read for longest goes first.
    if (lastReads.size >= mostLastReads) lastReads.delete(lastReads.keys().next().value as string);
    lastReads.set(leaseId, { escrow, blockTime, readAtMs: monotonicMs() });
  }

  function lastOf(leaseId: string) {
    const last = lastReads.get(leaseId);
    if (!last) return undefined;
    const { escrow, blockTime, readAtMs } = last;
    return { escrow, blockTime, ageSeconds: (monotonicMs() - readAtMs) / 1000 };
  }

  function chainOf(chainId: number): ChainAccess {
    const chain = chains.get(chainId);
    if (!chain)
      throw new WrongChain(
        `the operator was given no RPC URL for chain ${chainId}: start it with --chain ${chainId}=URL`,
      );
    return chain;
  }

  const silences = new Map<number, { untilMs: number; message: string }>();

  /**
   * Does the read, in bounded time. While a chain is silent one look at a time waits for it, and the others are told at once: a
   * thousand leases of a chain that is away must not keep those of another from being looked at.
   */
  async function inTime<T>(
    chainId: number,
    outer: AbortSignal | undefined,
    read: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const silence = silences.get(chainId);
    if (silence && monotonicMs() < silence.untilMs) throw new ChainUnavailable(silence.message);
    if (silence) silence.untilMs = monotonicMs() + readTimeoutMs + silenceMs;
    const began = monotonicMs();
    const timeout = AbortSignal.timeout(readTimeoutMs);
    const signal = outer ? AbortSignal.any([outer, timeout]) : timeout;
    try {
      // Part of a read waits for its turn at the outbox, and hears of no signal there.
      const found = await Promise.race([read(signal), whenAborted(signal)]);
      silences.delete(chainId);
      return found;
    } catch (error) {
      const silent = timeout.aborted || (error instanceof ChainUnavailable && monotonicMs() - began >= waitedMs);
      if (silent && !outer?.aborted) {
        const message = timeout.aborted ? `no answer in ${readTimeoutMs / 1000} s` : (error as Error).message;
        silences.set(chainId, { untilMs: monotonicMs() + silenceMs, message });
      } else silences.delete(chainId);
      throw error;
    }
  }

  async function clientOf(chainId: number, escrow: string, signal?: AbortSignal): Promise<EscrowClient> {
    const name = `${chainId}/${escrow.toLowerCase()}`;
    const known = clients.get(name);
    if (known) return known;
    const client = await connectEscrow({ rpc: await chainOf(chainId).rpc(signal), escrow: escrow as Address }, signal);
    clients.set(name, client);
    return client;
  }

  const tokens = new Map<string, SigningToken>();
  const { address, signTypedData } = wallet;
  const signer = signTypedData && { address, signTypedData };

  /** Asked once a process: a token that learns it later is found out at the next start. Undefined: nobody could be asked. */
  async function signingTokenOf(client: EscrowClient, token: Address, signal?: AbortSignal) {
    if (!signer) return undefined;
    const name = `${client.chainId}/${token.toLowerCase()}`;
    const known = tokens.get(name);
    if (known) return known;
    try {
      const found = await signingToken(client.rpc, token, wallet.address, signal);
      if (tokens.size >= mostTokens) tokens.delete(tokens.keys().next().value as string);
      tokens.set(name, found);
      return found;
    } catch {
      signal?.throwIfAborted();
      return undefined;
    }
  }

  /** The opening by this way. What is signed for it is good for no longer than the quote. */
  async function opening(
    client: EscrowClient,
    quote: QuoteRecord,
    deposit: bigint,
    way: FundingWay,
    signal?: AbortSignal,
  ) {
    const signed = signedOf(quote.signed);
    const { token: address, expiresAt } = signed.message;
    const deadline = Number(expiresAt);
    const token = way === 'Allowance' ? undefined : await signingTokenOf(client, address, signal);
    if (way === 'Permit' && token && signer) {
      const permit = await signPermit(signer, client.rpc, token.domain, client.address, deadline, signal);
      return client.calls.openWithPermit(signed, session.address, deposit, permit);
    }
    if (way === 'Authorization' && token && signer) {
      const nonce = authorizationNonce(hashQuote(client.domain, signed.message), session.address);
      const terms = { to: client.address, value: deposit, nonce, validBefore: deadline };
      const authorization = await signAuthorization(signer, token.domain, terms);
      return client.calls.openWithAuthorization(signed, session.address, deposit, authorization);
    }
    return client.calls.open(signed, session.address, deposit);
  }

  const domainOf = ({ signed }: Pick<QuoteRecord, 'signed'>): MessageDomain => ({
    chainId: signed.chainId,
    escrow: signed.escrow as Address,
  });
  const signedOf = (signed: SignedQuote) => ({
    message: quoteFromJson(signed.quote),
    signature: signed.signature as Hex,
  });

  async function submit(
    quote: QuoteRecord,
    key: string,
    call: (client: EscrowClient) => Call | Promise<Call>,
    signal?: AbortSignal,
  ): Promise<Refused | undefined> {
    const client = await clientOf(quote.signed.chainId, quote.signed.escrow, signal);
    const outbox = await chainOf(quote.signed.chainId).outbox(signal);
    const { to, data } = await call(client);
    const submitted = await outbox.submit({ key, to, data }, signal);
    return submitted.outcome === 'refused' ? submitted.refusal : undefined;
  }

  async function txs(
    quote: QuoteRecord,
    record: LeaseRecord,
    signal?: AbortSignal,
  ): Promise<Record<string, TxFact | undefined>> {
    const outbox = await chainOf(quote.signed.chainId).outbox(signal);
    const keys = [
      intents.approve(quote.signed.chainId, quote.signed.quote.token),
      intents.open(quote.leaseId),
      intents.close(quote.leaseId),
      intents.requestClose(quote.leaseId),
      intents.finalize(quote.leaseId),
      ...(record.deposit === undefined ? [] : [intents.topUp(quote.leaseId, BigInt(record.deposit))]),
    ];
    const facts: Record<string, TxFact | undefined> = {};
    for (const key of keys) {
      const entry = await outbox.state(key, signal);
      // Lost: another transaction took the nonce, so this one never happens and may be wished for again.
      if (entry && entry.state !== 'lost')
        facts[key] = { state: entry.state, hash: entry.hash, ...(entry.problem && { problem: entry.problem }) };
    }
    return facts;
  }

  return {
    wallet: wallet.address,
    sessionAddress: session.address,

    async facts(quote: QuoteRecord, record: LeaseRecord, outer?: AbortSignal): Promise<ChainFact> {
      const { chainId, escrow } = quote.signed;
      const token = quote.signed.quote.token as Address;
      const read = async (signal: AbortSignal): Promise<ChainFact> => {
        const client = await clientOf(chainId, escrow, signal);
        // Time first, then the escrow: one that is absent from the later block was absent from the earlier one too. The node that
        // is asked next may be behind the one that named the head, so the safe block is read as the one it was.
        const [head, safeHead] = await Promise.all([client.block('latest', signal), client.block('safe', signal)]);
        const [latest, safe, balance, gas, allowance, known, signing] = await Promise.all([
          client.lease(quote.leaseId, 'latest', signal),
          client.lease(quote.leaseId, safeHead, signal),
          client.balance(token, wallet.address, signal),
          client.gasBalance(wallet.address, signal),
          client.allowance(token, wallet.address, signal),
          txs(quote, record, signal),
          signingTokenOf(client, token, signal),
        ]);
        const newest = newestOf({ latest, safe });
        remember(quote.leaseId, newest, head.timestamp);
        return {
          state: 'known',
          escrow: newest,
          blockTime: head.timestamp,
          safe: { escrow: safe, blockTime: safeHead.timestamp },
          claimWindowSeconds: client.claimWindowSeconds,
          wallet: {
            address: wallet.address,
            balance,
            gas,
            allowance,
            ...(signing && { signs: { permit: signing.permit, authorization: signing.authorization } }),
          },
          txs: known,
        };
      };
      try {
        return await inTime(chainId, outer, read);
      } catch (error) {
        outer?.throwIfAborted();
        const wrong = error instanceof WrongChain || error instanceof NoContract;
        return {
          state: 'unknown',
          reason: wrong ? 'WrongChain' : 'ChainUnreachable',
          message: `Chain ${chainId}: ${error instanceof Error ? error.message : String(error)}`.slice(0, 512),
          // Another chain's word is no silence: nothing is signed on the strength of what was read before it.
          ...(wrong ? {} : { last: lastOf(quote.leaseId) }),
        };
      }
    },

    async railFact(rail: Rail, outer?: AbortSignal): Promise<RailFact> {
      const wrong = (message: string): RailFact => ({ rail, ok: false, reason: 'RailNotAccepted', message });
      const read = async (signal: AbortSignal): Promise<RailFact> => {
        const client = await clientOf(rail.chainId, rail.escrow, signal);
        const token = await client.token(rail.token as Address, signal);
        if (token.symbol !== rail.assetSymbol)
          return wrong(
            `Token ${rail.token} is ${token.symbol}, but spec.payment.rails says assetSymbol ${rail.assetSymbol}.`,
          );
        if (!token.allowed) return wrong(`The escrow ${rail.escrow} takes no new leases in ${token.symbol}.`);
        const [balance, gas, gasPrice] = await Promise.all([
          client.balance(rail.token as Address, wallet.address, signal),
          client.gasBalance(wallet.address, signal),
          client.rpc.call<Hex>('eth_gasPrice', [], signal).then(BigInt),
        ]);
        return {
          rail,
          ok: true,
          decimals: token.decimals,
          feeBps: token.feeBps,
          gasPrice: steadyGasPrice(gasPrice),
          wallet: { balance, gas },
        };
      };
      try {
        return await inTime(rail.chainId, outer, read);
      } catch (error) {
        outer?.throwIfAborted();
        return {
          rail,
          ok: false,
          reason: error instanceof WrongChain || error instanceof NoContract ? 'WrongChain' : 'ChainUnreachable',
          message: (error instanceof Error ? error.message : String(error)).slice(0, 512),
        };
      }
    },

    async checkQuote(
      signed: SignedQuote,
      provider: Address,
      signal?: AbortSignal,
    ): Promise<{ hash: Hex32; leaseId: Hex32 }> {
      const client = await clientOf(signed.chainId, signed.escrow, signal);
      const { message, signature } = signedOf(signed);
      if (message.networkId.toLowerCase() !== client.networkId.toLowerCase())
        throw new Error(`the quote is for network ${message.networkId}, the escrow belongs to ${client.networkId}`);
      if (message.provider.toLowerCase() !== provider.toLowerCase())
        throw new Error(`the quote names ${message.provider} as provider`);
      await verifyQuote(client.domain, { message, signature }, client.rpc);
      return { hash: hashQuote(client.domain, message), leaseId: leaseIdOf(message.consumer, message.leaseRef) };
    },

    async checkRelease(quote: QuoteRecord, servedSeconds: number, signature: Hex): Promise<void> {
      const client = await clientOf(quote.signed.chainId, quote.signed.escrow);
      await verifyRelease(
        client.domain,
        { message: { leaseId: quote.leaseId, servedSeconds }, signature },
        quote.signed.quote.provider as Address,
        client.rpc,
      );
    },

    leaseRef: (leaseUid: string, attempt: number): Hex32 => leaseRefOf(clusterUid, leaseUid, attempt),
    promiseHash: (node: SignedQuote['node']): Hex32 => hashJson(node),

    async signVoucher(quote: QuoteRecord, servedSeconds: number, last: boolean): Promise<Hex> {
      return (await signVoucher(session, domainOf(quote), { leaseId: quote.leaseId, servedSeconds, last })).signature;
    },
    async signAccess(quote: QuoteRecord, access: Access): Promise<Hex> {
      return (await signAccess(session, domainOf(quote), access)).signature;
    },

    async approve(quote: QuoteRecord, amount?: bigint, signal?: AbortSignal) {
      const key = intents.approve(quote.signed.chainId, quote.signed.quote.token);
      const outbox = await chainOf(quote.signed.chainId).outbox(signal);
      // Only asked for while the allowance does not reach: an approval that is final was used up, or taken back by hand.
      if ((await outbox.state(key, signal))?.receipt?.safe) await outbox.forget(key, signal);
      return submit(quote, key, (c) => c.calls.approve(quote.signed.quote.token as Address, amount), signal);
    },
    open: (quote: QuoteRecord, deposit: bigint, way: FundingWay, signal?: AbortSignal) =>
      submit(quote, intents.open(quote.leaseId), (c) => opening(c, quote, deposit, way, signal), signal),
    topUp: (quote: QuoteRecord, amount: bigint, total: bigint, signal?: AbortSignal) =>
      submit(quote, intents.topUp(quote.leaseId, total), (c) => c.calls.topUp(quote.leaseId, amount), signal),
    closeWithRelease: (quote: QuoteRecord, servedSeconds: number, signature: Hex, signal?: AbortSignal) =>
      submit(
        quote,
        intents.close(quote.leaseId),
        (c) => c.calls.closeWithRelease({ message: { leaseId: quote.leaseId, servedSeconds }, signature }),
        signal,
      ),
    requestClose: (quote: QuoteRecord, signal?: AbortSignal) =>
      submit(quote, intents.requestClose(quote.leaseId), (c) => c.calls.requestClose(quote.leaseId), signal),
    finalize: (quote: QuoteRecord, signal?: AbortSignal) =>
      submit(quote, intents.finalize(quote.leaseId), (c) => c.calls.finalize(quote.leaseId), signal),

    async trail(quote: QuoteRecord, escrow: Escrow, signal?: AbortSignal) {
      const client = await clientOf(quote.signed.chainId, quote.signed.escrow, signal);
      const trail = await settlementTrail(client.rpc, client.address, quote.leaseId, escrow.openedAt, signal);
      return { ...trail, feeRecipient: client.feeRecipient };
    },
    sealReceipt: (receipt: UnsealedReceipt) => sealReceipt(session, receipt),

    async strays(hasRecord: (leaseId: string) => boolean, signal?: AbortSignal) {
      const found: { leaseId: Hex32; chainId: number; contract: Address }[] = [];
      const onChain = async ({ chainId, outbox }: ChainAccess) => {
        const opened = (await (await outbox(signal)).entries(signal)).flatMap(({ key, to }) => {
          const leaseId = intents.openedBy(key);
          return leaseId !== undefined && !hasRecord(leaseId) ? [{ leaseId, chainId, contract: to }] : [];
        });
        for (const one of opened) {
          const client = await clientOf(chainId, one.contract, signal);
          const escrow = await client.lease(one.leaseId, 'latest', signal);
          if (escrow && !escrow.closed) found.push(one);
        }
      };
      const looked = await Promise.allSettled([...chains.values()].map(onChain));
      signal?.throwIfAborted();
      // Those of a chain that does not answer are looked for at the next sweep; where none does, that is to be known.
      const failed = looked.filter((one) => one.status === 'rejected');
      if (failed.length > 0 && failed.length === looked.length) throw failed[0]!.reason;
      return found;
    },

    async endStray(
      { leaseId, chainId, contract }: { leaseId: Hex32; chainId: number; contract: Address },
      signal?: AbortSignal,
    ): Promise<void> {
      const client = await clientOf(chainId, contract, signal);
      const head = await client.block('latest', signal);
      const escrow = await client.lease(leaseId, 'latest', signal);
      const way = escrow && wayToClose(escrow, head.timestamp, client.claimWindowSeconds);
      if (!way) return;
      const outbox = await chainOf(chainId).outbox(signal);
      const { to, data } = client.calls[way](leaseId);
      await outbox.submit({ key: intents[way](leaseId), to, data }, signal);
    },

    /** Takes refunds out of the contract: one transaction for all leases of a token, when at least `least` waits there. */
    async withdrawCredit(rail: Rail, least: bigint, signal?: AbortSignal): Promise<void> {
      const client = await clientOf(rail.chainId, rail.escrow, signal);
      const outbox = await chainOf(rail.chainId).outbox(signal);
      const token = rail.token as Address;
      const credit = await client.credit(token, wallet.address, 'safe', signal);
      if (credit === 0n || credit < least) return;
      const prefix = `withdraw:${rail.escrow.toLowerCase()}:${rail.token.toLowerCase()}:`;
      const entries = (await outbox.entries(signal)).filter((e) => e.key.startsWith(prefix));
      // Until the last one is final the credit read at the safe head still holds what it takes.
      if (entries.some((e) => e.state === 'stored' || e.state === 'broadcast' || (e.receipt && !e.receipt.safe)))
        return;
      const { to, data } = client.calls.withdraw(token, wallet.address);
      await outbox.submit({ key: `${prefix}${(await client.block('safe', signal)).number}`, to, data }, signal);
    },
  };
}

/** The next power of two: what ways are compared by does not change with each block. */
const steadyGasPrice = (price: bigint): bigint => (price <= 1n ? 1n : 1n << BigInt((price - 1n).toString(2).length));

const whenAborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
