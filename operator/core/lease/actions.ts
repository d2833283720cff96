/**
 * What a plan may wish for, as data. Each may be applied twice, or die half-way: names derive from the lease's UID and
 * attempt, so the second run finds the first.
 */
import type { Escrow } from '../money/escrow.ts';
import type { FundingWay } from '../money/funding.ts';
import type { Candidate, Match } from '../offer/match.ts';
import type { Meter } from './meter.ts';
import type { Ending, QuoteRecord } from './observed.ts';

export type Action =
  | { readonly do: 'addFinalizer' }
  /** Asks for signed quotes, best first, until one is good; stores it before anything else happens. */
  | { readonly do: 'requestQuote'; readonly candidates: readonly Candidate[]; readonly selection: Match['selection'] }
  /** Without an amount: without limit. */
  | { readonly do: 'approveToken'; readonly quote: QuoteRecord; readonly amount?: bigint }
  /** Stores the deposit, then opens the escrow. */
  | {
      readonly do: 'openEscrow';
      readonly quote: QuoteRecord;
      readonly deposit: bigint;
      readonly way: FundingWay;
    }
  | { readonly do: 'topUp'; readonly quote: QuoteRecord; readonly amount: bigint; readonly total: bigint }
  | { readonly do: 'allocate'; readonly quote: QuoteRecord }
  /** Makes the virtual node, or finds it again after a restart. */
  | { readonly do: 'startNode'; readonly quote: QuoteRecord }
  /** Signs for the seconds counted, gives them to the gateway. `last`: nothing will follow. */
  | {
      readonly do: 'vouch';
      readonly quote: QuoteRecord;
      readonly meter: Meter;
      readonly seconds: number;
      readonly last: boolean;
    }
  | { readonly do: 'saveMeter'; readonly meter: Meter }
  | { readonly do: 'markStarted'; readonly at: Date }
  /** Tells people on the lease and on its pods, once, that the end is near. */
  | { readonly do: 'warn'; readonly at: Date; readonly message: string }
  /** Tells them, once, that money runs out and cannot be added; and that it could be after all. */
  | { readonly do: 'tellLow'; readonly at: Date; readonly message: string }
  | { readonly do: 'tellFunded' }
  | { readonly do: 'beginEnd'; readonly why: Ending }
  /** Cordons and evicts, honouring PodDisruptionBudgets until `force`. */
  | {
      readonly do: 'drainNode';
      readonly nodeName: string;
      readonly force: boolean;
      readonly graceSeconds: number;
      readonly why: Ending;
    }
  | { readonly do: 'markDrained'; readonly meter: Meter; readonly at: Date }
  | { readonly do: 'stopNode' }
  /** Asks the provider to let go, and keeps its signature. */
  | { readonly do: 'release'; readonly quote: QuoteRecord }
  | { readonly do: 'closeWithRelease'; readonly quote: QuoteRecord }
  | { readonly do: 'requestClose'; readonly quote: QuoteRecord }
  | { readonly do: 'finalize'; readonly quote: QuoteRecord }
  /** Writes down what came of an escrow that is closed for good, before anything forgets it. */
  | { readonly do: 'writeReceipt'; readonly quote: QuoteRecord; readonly escrow: Escrow }
  /** The attempt failed before it served: forget the quote, remember the provider, count one up. */
  | {
      readonly do: 'nextAttempt';
      readonly why: { readonly reason: string; readonly message: string };
      readonly avoidSeconds: number;
    }
  /** Writes the last word into status. */
  | { readonly do: 'finish'; readonly why: Ending }
  /** Nothing is held for the lease any more: lets Kubernetes delete it. */
  | { readonly do: 'forget' };
