/** What the provider's controllers need of the world, as small as they use it. */
import type {
  Access,
  Address,
  Hex,
  Hex32,
  MessageDomain,
  Quote,
  Release,
  Signed,
  Voucher,
} from '../../api/messages.ts';
import type { ProviderRail } from '../../core/allocation/quote.ts';
import type { Escrow, EscrowReads, ProviderCloseReason } from '../../core/money/escrow.ts';

/** Signs as the provider and checks what others signed. The key stays behind it. */
export interface Notary {
  readonly address: Address;
  /** Hash of canonical JSON. */
  hashJson(value: unknown): Hex32;
  hashQuote(domain: MessageDomain, quote: Quote): Hex32;
  leaseIdOf(consumer: Address, leaseRef: Hex32): Hex32;
  signQuote(domain: MessageDomain, quote: Quote): Promise<Hex>;
  signRelease(domain: MessageDomain, release: Release): Promise<Hex>;
  /** Whether it is ours. */
  verifyQuote(domain: MessageDomain, signed: Signed<Quote>): Promise<boolean>;
  verifyVoucher(domain: MessageDomain, signed: Signed<Voucher>, signer: Address): boolean;
  verifyAccess(domain: MessageDomain, signed: Signed<Access>, signer: Address): boolean;
  /** Unique for ever: random. */
  quoteNonce(): bigint;
}

export interface Call {
  readonly to: Address;
  readonly data: Hex;
}

export type Submitted =
  | { readonly outcome: 'accepted'; readonly entry: { readonly state: string } }
  | { readonly outcome: 'refused'; readonly refusal: { readonly name: string; readonly message: string } };

/** One LeaseEscrow contract, and the provider's transactions to it. */
export interface EscrowChain {
  readonly chainId: number;
  readonly escrow: Address;
  readonly claimWindowSeconds: number;
  /** At the latest block: for starting work. Undefined is a fact; silence throws. */
  leases(leaseIds: readonly Hex32[], signal?: AbortSignal): Promise<readonly (Escrow | undefined)[]>;
  /** At the latest block and at the safe one: for everything that follows. */
  reads(leaseIds: readonly Hex32[], signal?: AbortSignal): Promise<readonly EscrowReads[]>;
  readonly calls: {
    settle(voucher: Signed<Voucher>): Call;
    settleMany(vouchers: readonly Signed<Voucher>[]): Call;
    close(voucher: Signed<Voucher>): Call;
    providerClose(leaseId: Hex32, reason: ProviderCloseReason): Call;
    finalize(leaseId: Hex32): Call;
  };
  /** Idempotent by key. */
  submit(intent: { key: string; to: Address; data: Hex }, signal?: AbortSignal): Promise<Submitted>;
  /** Sends, follows and repairs what was submitted. */
  tick(signal?: AbortSignal): Promise<void>;
  /** Keys that are signed and not mined yet. */
  inFlight(signal?: AbortSignal): Promise<readonly string[]>;
}

/** The chains of the provider, as far as they have answered since the start. */
export interface Chains {
  /** Of the chains that have been reached; throws a Refusal (503) while there are none. */
  rails(): readonly ProviderRail[];
  /** This contract is one of ours, and has not been reached since the start. */
  awaited(chainId: number, escrow: string): boolean;
  chain(chainId: number, escrow: string): EscrowChain | undefined;
  all(): readonly EscrowChain[];
}

export interface Counters {
  count(name: CounterName, labels?: Readonly<Record<string, string>>): void;
}

export const counterNames = {
  gpulease_gateway_quotes_total: 'Quotes signed.',
  gpulease_gateway_allocations_total: 'Leases that began to be served.',
  gpulease_gateway_vouchers_total: 'Vouchers stored.',
  gpulease_gateway_endings_total: 'Leases that ended, by reason.',
  gpulease_gateway_settlements_total: 'Transactions submitted, by kind.',
  gpulease_gateway_orphans_total:
    'Found with no lease behind them, by kind. Counted at each sweep until they are gone.',
  gpulease_gateway_settlement_refusals_total: 'Transactions that the contract would have refused, by name.',
} as const;
export type CounterName = keyof typeof counterNames;

export const noCounters: Counters = {
  count: () => undefined,
};
