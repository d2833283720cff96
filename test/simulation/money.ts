/**
 * Both sides' money ports over the simulated chain. What the adapters do with an ABI is said in the model's words here; the
 * outbox between wish and chain, with what it stores where, is the production one.
 */
import { createOutbox, type Outbox, type OutboxRecord } from '../../operator/adapters/chain/outbox.ts';
import type { Rpc } from '../../operator/adapters/chain/rpc.ts';
import { createSecretStore } from '../../operator/adapters/kube/secret-store.ts';
import type { Address, Hex32, Signed, Voucher } from '../../operator/api/messages.ts';
import type { LeaseMoney } from '../../operator/controllers/consumer/ports.ts';
import type { Treasury } from '../../operator/controllers/consumer/treasury.ts';
import type { Chains, EscrowChain, Notary } from '../../operator/controllers/provider/world.ts';
import { type ProviderRail, quoteOfJson, zeroHash } from '../../operator/core/allocation/quote.ts';
import { Refusal } from '../../operator/core/allocation/refusal.ts';
import {
  type ChainFact,
  intents,
  type LeaseRecord,
  type QuoteRecord,
  type TxFact,
} from '../../operator/core/lease/observed.ts';
import { type Escrow, wayToClose } from '../../operator/core/money/escrow.ts';
import type { EscrowCall } from '../../operator/core/money/model.ts';
import type { Cluster } from '../../operator/engine/types.ts';
import { type ChainCall, chainId, claimWindowSeconds, encode, escrowAddress, type SimChain, usdc } from './chain.ts';
import { addressOf, digest, hashQuote, leaseIdOf, sign, signedBy } from './keys.ts';
import type { Network, Place } from './network.ts';
import type { Party } from './timeline.ts';

export const wallet = addressOf('wallet');
export const session = addressOf('session');
export const domain = { chainId, escrow: escrowAddress };
const readTimeoutMs = 10_000;

export interface MoneyParts {
  readonly network: Network;
  readonly party: Party;
  readonly place: Place;
  readonly chain: SimChain;
  readonly cluster: Cluster;
  readonly namespace: string;
  readonly now: () => Date;
}

/** What the checks may know of promises. */
export interface Told {
  leaseRef(leaseRef: Hex32, leaseUid: string, attempt: number): void;
  voucher(party: Party, leaseId: Hex32, seconds: number): void;
}

function outboxOf(parts: MoneyParts, account: Address, name: string): Outbox {
  return createOutbox({
    rpc: rpcOf(parts),
    key: parts.chain.key(account),
    store: createSecretStore<OutboxRecord>({ cluster: parts.cluster, namespace: parts.namespace, name }),
    now: parts.now,
  });
}

const rpcOf = ({ chain, network, party, place }: MoneyParts): Rpc => chain.rpc(network, party, place);

export type OperatorMoney = LeaseMoney & Treasury & { readonly outbox: Outbox };

export function leaseMoney(parts: MoneyParts, clusterUid: string, told: Told): OperatorMoney {
  const { chain, network, party, place } = parts;
  const outbox = outboxOf(parts, wallet, 'outbox');
  const lastReads = new Map<string, { escrow: Escrow; blockTime: number; readAtMs: number }>();
  const monotonicMs = () => party.clock.monotonicMs();
  const read = <T>(what: string, look: () => T, signal?: AbortSignal) => network.call(party, place, what, look, signal);

  async function txs(quote: QuoteRecord, record: LeaseRecord, signal?: AbortSignal) {
    const facts: Record<string, TxFact | undefined> = {};
    for (const key of [
      intents.approve(chainId, quote.signed.quote.token),
      intents.open(quote.leaseId),
      intents.close(quote.leaseId),
      intents.requestClose(quote.leaseId),
      intents.finalize(quote.leaseId),
      ...(record.deposit === undefined ? [] : [intents.topUp(quote.leaseId, BigInt(record.deposit))]),
    ]) {
      const entry = await outbox.state(key, signal);
      if (entry && entry.state !== 'lost')
        facts[key] = { state: entry.state, hash: entry.hash, ...(entry.problem && { problem: entry.problem }) };
    }
    return facts;
  }

  const submit = async (key: string, call: ChainCall, signal?: AbortSignal) => {
    const submitted = await outbox.submit({ key, ...encode(call) }, signal);
    return submitted.outcome === 'refused' ? submitted.refusal : undefined;
  };

  return {
    wallet,
    outbox,

    async facts(quote, record, outer): Promise<ChainFact> {
      const timeout = AbortSignal.timeout(readTimeoutMs);
      const signal = outer ? AbortSignal.any([outer, timeout]) : timeout;
      try {
        // Time first, then the escrow, as the adapter does it.
        const { head, safe } = await read('blocks', () => ({ head: chain.head, safe: chain.safe }), signal);
        const [now, known] = await Promise.all([
          read(
            'escrow',
            () => ({
              escrow: chain.head.state.escrow.leases.get(quote.leaseId),
              safe: chain.safe.state.escrow.leases.get(quote.leaseId),
              balance: chain.head.state.balances.get(wallet) ?? 0n,
              allowance: chain.head.state.allowances.get(wallet) ?? 0n,
            }),
            signal,
          ),
          txs(quote, record, signal),
        ]);
        lastReads.delete(quote.leaseId);
        if (now.escrow && !now.escrow.closed)
          lastReads.set(quote.leaseId, {
            escrow: now.escrow,
            blockTime: head.timestamp,
            readAtMs: monotonicMs(),
          });
        return {
          state: 'known',
          escrow: now.escrow,
          blockTime: head.timestamp,
          safe: { escrow: now.safe, blockTime: safe.timestamp },
          claimWindowSeconds,
          wallet: { address: wallet, balance: now.balance, gas: 10n ** 18n, allowance: now.allowance },
          txs: known,
        };
      } catch (error) {
        outer?.throwIfAborted();
        const last = lastReads.get(quote.leaseId);
        return {
          state: 'unknown',
          reason: 'ChainUnreachable',
          message: `Chain ${chainId}: ${(error as Error).message}`,
          last: last && { ...last, ageSeconds: (monotonicMs() - last.readAtMs) / 1000 },
        };
      }
    },

    async railFact(rail, signal) {
      try {
        await read('token', () => undefined, signal);
        return { rail, ok: true, decimals: 6 };
      } catch (error) {
        signal?.throwIfAborted();
        return { rail, ok: false, reason: 'ChainUnreachable', message: (error as Error).message };
      }
    },

    async checkQuote(signed, provider) {
      const quote = quoteOfJson(signed.quote);
      if (!signedBy(provider, 'quote', domain, quote, signed.signature))
        throw new Error('the provider did not sign this');
      return { hash: hashQuote(domain, quote), leaseId: leaseIdOf(quote.consumer, quote.leaseRef) };
    },
    async checkRelease(quote, servedSeconds, signature) {
      const provider = quote.signed.quote.provider as Address;
      if (!signedBy(provider, 'release', domain, { leaseId: quote.leaseId, servedSeconds }, signature))
        throw new Error('the provider did not sign this release');
    },
    leaseRef(leaseUid, attempt) {
      const leaseRef = digest('ref', clusterUid, leaseUid, attempt);
      told.leaseRef(leaseRef, leaseUid, attempt);
      return leaseRef;
    },
    promiseHash: (node) => digest('promise', node),
    async signVoucher(quote, servedSeconds, last) {
      told.voucher(party, quote.leaseId, servedSeconds);
      return sign(session, 'voucher', domain, { leaseId: quote.leaseId, servedSeconds, last });
    },

    approve: (quote, amount, signal) =>
      submit(
        intents.approve(chainId, quote.signed.quote.token),
        { do: 'approve', from: wallet, amount: amount ?? 2n ** 128n },
        signal,
      ),
    open(quote, deposit, _way, signal) {
      const terms = quoteOfJson(quote.signed.quote);
      return submit(
        intents.open(quote.leaseId),
        {
          do: 'open',
          from: wallet,
          quote: terms,
          leaseId: quote.leaseId,
          quoteHash: quote.hash,
          signedBy: terms.provider,
          signer: session,
          deposit,
        },
        signal,
      );
    },
    topUp: (quote, amount, total, signal) =>
      submit(
        intents.topUp(quote.leaseId, total),
        { do: 'topUp', from: wallet, leaseId: quote.leaseId, amount },
        signal,
      ),
    closeWithRelease: (quote, servedSeconds, _signature, signal) =>
      submit(
        intents.close(quote.leaseId),
        {
          do: 'closeWithRelease',
          from: wallet,
          release: { leaseId: quote.leaseId, servedSeconds },
          signedBy: quote.signed.quote.provider as Address,
        },
        signal,
      ),
    requestClose: (quote, signal) =>
      submit(intents.requestClose(quote.leaseId), { do: 'requestClose', from: wallet, leaseId: quote.leaseId }, signal),
    finalize: (quote, signal) =>
      submit(intents.finalize(quote.leaseId), { do: 'finalize', from: wallet, leaseId: quote.leaseId }, signal),

    trail: (_quote, _escrow, signal) =>
      read(
        'trail',
        () => ({ feeRecipient: chain.head.state.escrow.feeRecipient, transactions: [], all: false }),
        signal,
      ),
    sealReceipt: async (receipt) => ({
      signer: session,
      signature: sign(session, 'receipt', domain, { leaseId: receipt.leaseId, content: digest('receipt', receipt) }),
    }),

    async strays(hasRecord, signal) {
      const opened = (await outbox.entries(signal)).flatMap(({ key }) => {
        const leaseId = intents.openedBy(key);
        return leaseId !== undefined && !hasRecord(leaseId) ? [{ leaseId, chainId, contract: escrowAddress }] : [];
      });
      if (opened.length === 0) return [];
      const leases = await read('escrows', () => chain.head.state.escrow.leases, signal);
      return opened.filter(({ leaseId }) => leases.get(leaseId)?.closed === false);
    },
    async endStray({ leaseId }, signal) {
      const { escrow, timestamp } = await read(
        'escrow',
        () => ({ escrow: chain.head.state.escrow.leases.get(leaseId), timestamp: chain.head.timestamp }),
        signal,
      );
      const way = escrow && wayToClose(escrow, timestamp, claimWindowSeconds);
      if (way) await submit(intents[way](leaseId), { do: way, from: wallet, leaseId }, signal);
    },

    async withdrawCredit(_rail, least, signal) {
      const { credit, number } = await read(
        'credit',
        () => ({ credit: chain.safe.state.escrow.credits.get(`${usdc}/${wallet}`) ?? 0n, number: chain.safe.number }),
        signal,
      );
      if (credit === 0n || credit < least) return;
      const entries = (await outbox.entries(signal)).filter((entry) => entry.key.startsWith('withdraw:'));
      if (entries.some((e) => e.state === 'stored' || e.state === 'broadcast' || (e.receipt && !e.receipt.safe)))
        return;
      await submit(`withdraw:${number}`, { do: 'withdraw', from: wallet, token: usdc }, signal);
    },
  };
}

/** The provider's contract and transactions. Not connected before the chain has answered once. */
export function providerChains(
  parts: MoneyParts,
  account: Address,
): { readonly chains: Chains; connect(signal: AbortSignal): Promise<void> } {
  const { chain, network, party, place } = parts;
  const outbox = outboxOf(parts, account, 'gateway-outbox');
  const rail: ProviderRail = {
    chainId,
    escrow: escrowAddress,
    token: usdc,
    assetSymbol: 'USDC',
    decimals: 6,
    networkId: zeroHash,
    payee: account,
  };
  let connected = false;
  const call = (wish: EscrowCall) => encode(wish);
  // The record's voucher was signed by the session key, or it would not have been stored.
  const by = session;
  const escrow: EscrowChain = {
    chainId,
    escrow: escrowAddress,
    claimWindowSeconds,
    leases: (ids, signal) =>
      network.call(party, place, 'escrows', () => ids.map((id) => chain.head.state.escrow.leases.get(id)), signal),
    reads: (ids, signal) =>
      network.call(
        party,
        place,
        'escrows',
        () => {
          const { head, safe } = chain;
          const at = (block: typeof head, id: Hex32) => block.state.escrow.leases.get(id);
          return ids.map((id) => ({ latest: at(head, id), safe: at(safe, id), safeBlockTime: safe.timestamp }));
        },
        signal,
      ),
    calls: {
      settle: ({ message }: Signed<Voucher>) => call({ do: 'settle', from: account, voucher: message, signedBy: by }),
      settleMany: (vouchers) =>
        call({
          do: 'settleMany',
          from: account,
          items: vouchers.map(({ message }) => ({ voucher: message, signedBy: by })),
        }),
      close: ({ message }) => call({ do: 'close', from: account, voucher: message, signedBy: by }),
      providerClose: (leaseId, reason) => call({ do: 'providerClose', from: account, leaseId, reason }),
      finalize: (leaseId) => call({ do: 'finalize', from: account, leaseId }),
    },
    submit: (intent, signal) => outbox.submit(intent, signal),
    tick: (signal) => outbox.tick(signal),
    async inFlight(signal) {
      const entries = await outbox.entries(signal);
      return entries.filter(({ state }) => state === 'stored' || state === 'broadcast').map((entry) => entry.key);
    },
  };
  return {
    chains: {
      awaited: () => false,
      rails() {
        if (!connected) throw new Refusal(503, 'the chain does not answer yet', { retryAfterSeconds: 2 });
        return [rail];
      },
      chain: (id, at) => (connected && id === chainId && at.toLowerCase() === escrowAddress ? escrow : undefined),
      all: () => (connected ? [escrow] : []),
    },
    async connect(signal) {
      while (!connected && !signal.aborted) {
        try {
          await network.call(party, place, 'connect', () => undefined, signal);
          connected = true;
        } catch {
          await new Promise<void>((resolve) => party.clock.setTimeout(resolve, 2000));
        }
      }
    },
  };
}

export function notaryOf(account: Address, nonce: () => bigint): Notary {
  return {
    address: account,
    hashJson: (value) => digest('promise', value),
    hashQuote,
    leaseIdOf,
    signQuote: async (at, quote) => sign(account, 'quote', at, quote),
    signRelease: async (at, release) => sign(account, 'release', at, release),
    verifyQuote: async (at, { message, signature }) => signedBy(account, 'quote', at, message, signature),
    verifyVoucher: (at, { message, signature }, signer) => signedBy(signer, 'voucher', at, message, signature),
    verifyAccess: (at, { message, signature }, signer) => signedBy(signer, 'access', at, message, signature),
    quoteNonce: nonce,
  };
}
