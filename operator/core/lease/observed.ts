/**
 * All that a decision about a lease may look at: if a fact is not in here, no decision can depend on it.
 *
 * "Unknown" is a value of its own. A provider that does not answer, or a chain that cannot be read, is never taken for one
 * that said no: nothing is closed, deleted or repeated because of silence.
 */
import type { EndReason } from '../../api/conditions.ts';
import type { AllocationInfo, SignedQuote } from '../../api/gateway.ts';
import type { GpuLease, LeaseAttempt } from '../../api/lease.ts';
import type { Hex32 } from '../../api/messages.ts';
import type { GpuOffer } from '../../api/offer.ts';
import type { BudgetView } from '../budget/room.ts';
import type { Escrow } from '../money/escrow.ts';
import type { AllowancePolicy, TokenSignatures } from '../money/funding.ts';
import type { Avoided, ProviderFact } from '../offer/match.ts';
import type { Values } from '../offer/rank.ts';
import type { Meter } from './meter.ts';

/** What the operator remembers of a lease, stored before anything that depends on it is done. Base units are strings. */
export interface LeaseRecord {
  /** Whose it is, so that it can be ended when its lease is gone. Absent in records of earlier versions. */
  readonly lease?: { readonly namespace: string; readonly name: string };
  /** From 1. A new attempt has a new leaseRef, and so a new escrow. */
  readonly attempt: number;
  readonly quote?: QuoteRecord;
  /** All that was ever meant to be put in, base units. Stored before the transaction is made. */
  readonly deposit?: string;
  /** UIDs of the GpuBudgets under which the deposit was decided: it counts there, whatever becomes of its namespace. */
  readonly budgets?: readonly string[];
  readonly meter: Meter;
  /** Highest count that was signed, and highest that the gateway acknowledged. */
  readonly signedSeconds: number;
  readonly vouchedSeconds: number;
  /** When the node first was Ready: billing starts. */
  readonly startedAt?: string;
  /** When people were told that the end is near. */
  readonly warnedAt?: string;
  /** When they were told that money runs out; absent once there is enough again. */
  readonly lowFundsAt?: string;
  readonly end?: Ending;
  /** Signed by the provider when it let go. */
  readonly release?: { readonly servedSeconds: number; readonly signature: `0x${string}`; readonly at: string };
  /** The escrow whose receipt was written. */
  readonly receiptOf?: Hex32;
  /** The escrow is settled: nothing is locked for this lease any more. */
  readonly settled?: boolean;
  readonly avoid: readonly Avoided[];
  readonly attempts: readonly LeaseAttempt[];
}

export interface QuoteRecord {
  readonly signed: SignedQuote;
  readonly hash: Hex32;
  readonly leaseId: Hex32;
  readonly offerName: string;
  readonly providerName: string;
  readonly assetSymbol: string;
  readonly decimals: number;
  readonly askedAt: string;
}

/** Why this attempt ends, and since when. Once stored it is never taken back. */
export interface Ending {
  readonly reason: EndReason;
  readonly message: string;
  readonly at: string;
  /** The lease never ran: another provider may be tried. */
  readonly retry: boolean;
  /** When the last pod had gone, or was made to. */
  readonly drainedAt?: string;
}

export interface Refused {
  readonly name: string;
  readonly terminal: boolean;
  readonly message: string;
}

/** A transaction of ours, by intent. `refused` is the last simulation's answer: nothing was signed. */
export interface TxFact {
  readonly state: 'stored' | 'broadcast' | 'mined' | 'reverted' | 'refused';
  readonly hash?: string;
  readonly refused?: Refused;
  /** It is signed and cannot be mined before a person mends this. */
  readonly problem?: 'PayerOutOfGas' | 'FeeCapReached';
}

export type ChainFact =
  | {
      readonly state: 'unknown';
      readonly reason: 'ChainUnreachable' | 'WrongChain';
      readonly message: string;
      /**
       * What this process read last: vouchers go on while no RPC endpoint answers. Its age is by a clock that nobody sets, or
       * setting ours would make seconds.
       */
      readonly last?: { readonly escrow: Escrow; readonly blockTime: number; readonly ageSeconds: number };
    }
  | {
      readonly state: 'known';
      /** At `latest`: good for starting work. */
      readonly escrow?: Escrow;
      readonly blockTime: number;
      /** At `safe`: good for accounting and for trying again. Both from one read. */
      readonly safe: { readonly escrow?: Escrow; readonly blockTime: number };
      readonly claimWindowSeconds: number;
      readonly wallet: {
        readonly address: string;
        readonly balance: bigint;
        readonly gas: bigint;
        readonly allowance: bigint;
        /** What the wallet may sign in place of an approval of the quote's token. Absent: nobody could be asked. */
        readonly signs?: TokenSignatures;
      };
      /** By intent: see `intents`. */
      readonly txs: Readonly<Record<string, TxFact | undefined>>;
    };

export type AllocationFact =
  | { readonly state: 'unknown'; readonly message: string }
  /** The gateway said that it has none; with what it would say to a request for it, if one was refused. */
  | { readonly state: 'absent'; readonly reason?: string; readonly message?: string }
  | { readonly state: 'known'; readonly info: AllocationInfo };

export interface NodeFact {
  readonly name: string;
  readonly ready: 'True' | 'False' | 'Unknown';
  /** When Ready last changed. */
  readonly since: Date;
  /**
   * Present when this process no longer sees it healthy, though the Node still says Ready: when it last did. The Node will
   * say so from about then on, so nothing is counted beyond.
   */
  readonly healthyAt?: Date;
  readonly message: string;
  /** Somebody deleted the Node; our finalizer holds it. */
  readonly deleting?: boolean;
  /** Pods of the node that have not ended, DaemonSets' left out. */
  readonly pods: number;
}

export interface Settings {
  readonly voucherPeriodSeconds: number;
  readonly depositSeconds: number;
  readonly lowWaterSeconds: number;
  /** A node that was not Ready for so long is given up. */
  readonly nodeLostSeconds: number;
  /** How long a provider may take to let go, and to close on chain, before the consumer does it alone. */
  readonly releaseTimeoutSeconds: number;
  readonly closeTimeoutSeconds: number;
  /** Most that may be locked in all escrows of this operator, base units. Undefined: no limit was given, so nothing may. */
  readonly maxEscrow: (assetSymbol: string, decimals: number) => bigint | undefined;
  /** What is left standing between deposits. */
  readonly allowance: AllowancePolicy;
  /** What tokens and gas are worth, as far as anybody said. */
  readonly values?: Values;
}

/** What other leases of this operator hold. */
export interface HeldElsewhere {
  /** On this lease's rail with its provider, base units. */
  readonly onRail: bigint;
  /** In each asset, everywhere; atto tokens, since one symbol may have other decimals on another chain. */
  readonly inAsset: Readonly<Record<string, bigint>>;
}

export interface Observed {
  readonly lease: GpuLease;
  /** The GpuLease itself is no more, and `lease` stands for what its record tells of it: there is nobody to report to. */
  readonly orphaned?: boolean;
  readonly now: Date;
  readonly namespaceLabels: Readonly<Record<string, string>>;
  readonly offers: readonly GpuOffer[];
  readonly providers: ReadonlyMap<string, ProviderFact>;
  readonly record?: LeaseRecord;
  /** Present when there is a quote. */
  readonly chain?: ChainFact;
  /** Present when an escrow was seen. */
  readonly allocation?: AllocationFact;
  readonly node?: NodeFact;
  /** Milliseconds since `countedUntil` of the record's meter, on a clock that nobody sets. Absent: another process counted. */
  readonly sinceCountedMs?: number;
  /** What other leases lock. Worked out when first looked at, as it takes a look at all of them; so are the budgets. */
  readonly held: HeldElsewhere;
  /** The budgets of the namespace of the lease. */
  readonly budgets: readonly BudgetView[];
  /** Whether any budget drains leases now. */
  readonly budgetsDrain: boolean;
  /** The last round of quotes, when it brought none. */
  readonly refusals: readonly { readonly providerName: string; readonly reason: string; readonly message: string }[];
  readonly settings: Settings;
}

/** Names of our transactions: the same wish has the same name after any restart, so that it is made once. */
export const intents = {
  approve: (chainId: number, token: string) => `approve:${chainId}:${token.toLowerCase()}`,
  open: (leaseId: string) => `open:${leaseId}`,
  /** The lease id in the name of an open; undefined for any other name. */
  openedBy: (intent: string) => (intent.startsWith('open:') ? (intent.slice('open:'.length) as Hex32) : undefined),
  topUp: (leaseId: string, total: bigint) => `top-up:${leaseId}:${total}`,
  close: (leaseId: string) => `close:${leaseId}`,
  requestClose: (leaseId: string) => `request-close:${leaseId}`,
  finalize: (leaseId: string) => `finalize:${leaseId}`,
} as const;
