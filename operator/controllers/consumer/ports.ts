/** The small interfaces through which the consumer's controllers touch the world. `cmd/operator.ts` plugs real things in. */
import type {
  AllocationInfo,
  OfferInfo,
  ProviderInfo,
  QuoteRequest,
  ReleaseReceipt,
  SignedQuote,
  VoucherReceipt,
  VoucherRequest,
} from '../../api/gateway.ts';
import type { GpuLease } from '../../api/lease.ts';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import type { GpuProvider, Rail } from '../../api/provider.ts';
import type { Receipt, UnsealedReceipt } from '../../api/receipt.ts';
import type { Meter } from '../../core/lease/meter.ts';
import type { ChainFact, LeaseRecord, NodeFact, QuoteRecord, Refused } from '../../core/lease/observed.ts';
import type { Escrow } from '../../core/money/escrow.ts';
import type { FundingWay } from '../../core/money/funding.ts';
import type { LeaseEnd } from '../../core/node/disruption.ts';
import type { Answer, RailFact } from '../../core/provider/assess.ts';
import type { SeenRoute } from '../../core/provider/connection.ts';
import type { SettlementTrail } from '../../core/receipt/build.ts';

/** The gateway's refusal, or that nobody knows what it did. Adapters make these out of what really happened. */
export type GatewayOutcome<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly kind: 'refused'; readonly reason: string; readonly message: string }
  | { readonly ok: false; readonly kind: 'unknown' | 'invalid'; readonly message: string };

export interface Gateway {
  /** How it is reached now. Absent: nobody knows. */
  route?(): SeenRoute;
  info(signal?: AbortSignal): Promise<Answer<ProviderInfo>>;
  offers(signal?: AbortSignal): Promise<Answer<readonly OfferInfo[]>>;
  /** Waits at the gateway until the offers are others than those of `tag`, or so long; empty: it cannot. */
  offersAfter?(tag: string | undefined, waitSeconds: number, signal?: AbortSignal): Promise<Answer<string>>;
  quote(request: QuoteRequest, signal?: AbortSignal): Promise<GatewayOutcome<SignedQuote>>;
  allocate(quote: SignedQuote, signal?: AbortSignal): Promise<GatewayOutcome<AllocationInfo>>;
  allocation(quote: QuoteRecord, signal?: AbortSignal): Promise<GatewayOutcome<AllocationInfo>>;
  vouch(quote: QuoteRecord, voucher: VoucherRequest, signal?: AbortSignal): Promise<GatewayOutcome<VoucherReceipt>>;
  release(quote: QuoteRecord, signal?: AbortSignal): Promise<GatewayOutcome<ReleaseReceipt>>;
}

export interface Gateways {
  of(provider: GpuProvider): Gateway;
  /** Closes connections of a provider that is gone. */
  forget(name: string): void;
}

/** Wallet and chain, in the lease's own words. Every wish is made once per name, whatever happens in between. */
export interface LeaseMoney {
  readonly wallet: Address;
  /** Never throws: what could not be read is `unknown`. */
  facts(quote: QuoteRecord, record: LeaseRecord, signal?: AbortSignal): Promise<ChainFact>;
  railFact(rail: Rail, signal?: AbortSignal): Promise<RailFact>;
  /** Throws with a message for people unless the provider itself signed exactly this quote. */
  checkQuote(signed: SignedQuote, provider: Address, signal?: AbortSignal): Promise<{ hash: Hex32; leaseId: Hex32 }>;
  /** Throws unless the provider signed this release. */
  checkRelease(quote: QuoteRecord, servedSeconds: number, signature: Hex): Promise<void>;
  leaseRef(leaseUid: string, attempt: number): Hex32;
  promiseHash(node: SignedQuote['node']): Hex32;
  signVoucher(quote: QuoteRecord, servedSeconds: number, last: boolean): Promise<Hex>;
  /** Of the quote's token, for its escrow contract. Without an amount: without limit. */
  approve(quote: QuoteRecord, amount?: bigint, signal?: AbortSignal): Promise<Refused | undefined>;
  open(quote: QuoteRecord, deposit: bigint, way: FundingWay, signal?: AbortSignal): Promise<Refused | undefined>;
  topUp(quote: QuoteRecord, amount: bigint, total: bigint, signal?: AbortSignal): Promise<Refused | undefined>;
  closeWithRelease(
    quote: QuoteRecord,
    servedSeconds: number,
    signature: Hex,
    signal?: AbortSignal,
  ): Promise<Refused | undefined>;
  requestClose(quote: QuoteRecord, signal?: AbortSignal): Promise<Refused | undefined>;
  finalize(quote: QuoteRecord, signal?: AbortSignal): Promise<Refused | undefined>;
  /** What the chain's log tells of a closed escrow. Throws when nobody answers: later somebody may. */
  trail(quote: QuoteRecord, escrow: Escrow, signal?: AbortSignal): Promise<SettlementTrail>;
  /** The session key's signature over the whole receipt. */
  sealReceipt(receipt: UnsealedReceipt): Promise<Receipt['seal']>;
  /**
   * Escrows that our own transactions have opened, that are not closed, and of which `hasRecord` says no. It is asked after
   * those transactions were read: a record is stored before its escrow is opened.
   */
  strays(hasRecord: (leaseId: string) => boolean, signal?: AbortSignal): Promise<readonly StrayEscrow[]>;
  /** Submits what `wayToClose` says of it, if anything. */
  endStray(stray: StrayEscrow, signal?: AbortSignal): Promise<void>;
}

export interface StrayEscrow {
  readonly leaseId: Hex32;
  readonly chainId: number;
  /** Address of the contract. */
  readonly contract: Address;
}

/** The virtual nodes that this process serves. */
export interface LeaseNodes {
  nameOf(lease: GpuLease): string;
  /** How the allocation is, where its provider tells of each change. Undefined: it is to be asked. */
  allocation?(lease: GpuLease): AllocationInfo | undefined;
  /** Undefined: there is no such Node, as the API server says. */
  fact(lease: GpuLease, signal?: AbortSignal): Promise<NodeFact | undefined>;
  /**
   * Makes it, or adopts the one that is there. Starting twice is harmless. `paidThrough`: what the last chain read proves.
   * `meter`, as stored: a node that was not Ready returns only when what it had served is counted.
   */
  start(
    lease: GpuLease,
    quote: QuoteRecord,
    allocation: AllocationInfo,
    paidThrough: Date | undefined,
    meter?: Meter,
  ): Promise<void>;
  drain(
    nodeName: string,
    options: { readonly force: boolean; readonly graceSeconds: number; readonly why: LeaseEnd },
    signal?: AbortSignal,
  ): Promise<void>;
  /** An event on each pod of the node that has not ended, and another on each claim whose data are stored with it. */
  warn(nodeName: string, reason: string, message: string, toClaims: string): void;
  /** Those claims, as `namespace/name`. */
  claims(nodeName: string): readonly string[];
  /** Deletes the Node of this lease, and stops serving it. */
  stop(lease: GpuLease, signal?: AbortSignal): Promise<void>;
  /** All Nodes of ours, by the UID of the lease that each stands for. */
  all(signal?: AbortSignal): Promise<readonly { readonly name: string; readonly leaseUid: string }[]>;
  /** Ends what is left of a Node that stands for nothing. */
  end(nodeName: string, signal?: AbortSignal): Promise<void>;
}
