/** A receipt from what the operator remembers of a lease and what the chain says of its escrow. */
import { type Receipt, receiptVersion, type UnsealedReceipt } from '../../api/receipt.ts';
import type { Ending, LeaseRecord, Observed, QuoteRecord } from '../lease/observed.ts';
import type { CloseReason, Escrow } from '../money/escrow.ts';
import { referrerPartOf } from '../money/price.ts';

/** What only the chain's log tells, and what never changes in a contract. */
export interface SettlementTrail {
  readonly feeRecipient: string;
  readonly transactions: Receipt['settlement']['transactions'];
  readonly all: boolean;
}

export interface ReceiptFacts {
  readonly clusterUid: string;
  readonly lease: { readonly namespace: string; readonly name: string; readonly uid: string };
  readonly record: LeaseRecord;
  readonly quote: QuoteRecord;
  /** At the safe head, closed. */
  readonly escrow: Escrow;
  readonly trail: SettlementTrail;
  /** By the session key, over `record.signedSeconds`, as the last one. */
  readonly voucherSignature: string;
  readonly place: { readonly region?: string; readonly zone?: string };
}

/** An escrow of this lease is closed for good and has no receipt yet. */
export function receiptDue({ record, chain }: Pick<Observed, 'record' | 'chain'>): Escrow | undefined {
  const quote = record?.quote;
  if (!quote || chain?.state !== 'known' || record.receiptOf === quote.leaseId) return undefined;
  const { escrow } = chain.safe;
  // One that was opened with another quote is none of this lease's attempts: there is nothing to put our names under.
  return escrow?.closed && escrow.quoteHash.toLowerCase() === quote.hash.toLowerCase() ? escrow : undefined;
}

/** The same facts make the same receipt: written twice, it is still one. */
export function buildReceipt(facts: ReceiptFacts): UnsealedReceipt {
  const { record, quote, escrow, trail, lease, place } = facts;
  const { release } = record;
  return {
    version: receiptVersion,
    lease: {
      clusterUid: facts.clusterUid,
      namespace: lease.namespace,
      name: lease.name,
      uid: lease.uid,
      attempt: record.attempt,
    },
    providerName: quote.providerName,
    offerName: quote.offerName,
    ...(place.region ? { region: place.region } : {}),
    ...(place.zone ? { zone: place.zone } : {}),
    asset: { symbol: quote.assetSymbol, decimals: quote.decimals },
    leaseId: quote.leaseId,
    quote: quote.signed,
    voucher: { servedSeconds: record.signedSeconds, last: true, signature: facts.voucherSignature },
    ...(release
      ? { release: { servedSeconds: release.servedSeconds, signature: release.signature, at: release.at } }
      : { withoutRelease: whyNoRelease(quote, record, escrow.closeReason) }),
    ...(record.startedAt === undefined ? {} : { startedAt: record.startedAt }),
    end: endOf(record.end, escrow),
    settlement: {
      signer: escrow.signer,
      feeRecipient: trail.feeRecipient,
      feeBps: escrow.feeBps,
      openedAt: escrow.openedAt,
      endsAt: escrow.endsAt,
      closingAt: escrow.closingAt,
      closeReason: escrow.closeReason,
      servedSeconds: escrow.servedSeconds,
      deposit: String(escrow.deposit),
      claimed: String(escrow.claimed),
      paid: String(escrow.claimed - escrow.feeTaken),
      fee: String(escrow.feeTaken),
      referrerFee: String(referrerPartOf(escrow.feeTaken, escrow.referrerBps)),
      refunded: String(escrow.refunded),
      transactions: trail.transactions,
      allTransactions: trail.all,
    },
  };
}

function endOf(end: Ending | undefined, escrow: Escrow): Receipt['end'] {
  return end
    ? { reason: end.reason, message: end.message.slice(0, 1024) }
    : { reason: escrow.closeReason, message: 'the escrow was closed on chain.' };
}

/** In words for whoever reads the receipt: a missing signature is a fact about a lease, not a fault of its paper. */
function whyNoRelease({ providerName }: QuoteRecord, record: LeaseRecord, reason: CloseReason): string {
  const never = record.startedAt === undefined ? ', and its node was never Ready' : '';
  switch (reason) {
    case 'LastVoucher':
      return `${providerName} closed the escrow itself, with the consumer's last voucher, and gave no release afterwards.`;
    case 'Expired':
      return `${providerName} gave no release; the escrow was finalized after its time had run out${never}.`;
    case 'ConsumerRequested':
      return `${providerName} gave no release; the consumer stopped the clock, and the escrow was finalized after the claim window${never}.`;
    case 'Released':
      return `${providerName} signed a release that the operator no longer has; the contract checked it at the close.`;
    default:
      return `${providerName} closed the escrow itself (${reason}) and gave no release${never}.`;
  }
}
