/**
 * The receipt of one settled escrow: who leased what from whom, what both sides signed, what the chain paid. It stands on
 * its own: `gpulease receipt verify` needs the file and nothing else, and asks the chain only where it is told to.
 *
 * Signed by both sides: the provider signed the quote (price and terms) and the release (seconds); the consumer's session
 * key signed the voucher (seconds) and the seal, which covers every byte of the rest.
 *
 * Rounding, as the contract has it, each amount once and from sums:
 *   claimed     = min(deposit, floor(servedSeconds × gpus × pricePerGpuHour / 3600))
 *   fee         = floor(claimed × feeBps / 10000)        paid     = claimed − fee
 *   referrerFee = floor(fee × referrerBps / 10000)       refunded = deposit − claimed
 */
import { z } from 'zod';
import { signedQuote } from './gateway.ts';
import { address, baseUnits, hex32, time } from './schema.ts';

export const receiptVersion = 'gpulease.dev/receipt/v1';

/** Transactions that a receipt names. A lease of months may have more settlements: then the first and the last are kept. */
export const maxReceiptTransactions = 64;
/** Of one receipt's JSON. */
export const maxReceiptBytes = 65_536;

const name = (description: string) => z.string().min(1).max(253).describe(description);
const unixSeconds = (description: string) =>
  z.int().min(0).max(253_402_300_799).describe(`${description} Unix seconds, by the chain's clock.`);
const signature = z
  .string()
  .min(4)
  .max(2050)
  .regex(/^0x([0-9a-fA-F]{2})+$/);

export const receiptTransaction = z.object({
  hash: hex32('Hash of the transaction.'),
  blockNumber: z.int().min(0).describe('Block that it is in.'),
  events: z
    .array(z.string().min(1).max(32))
    .min(1)
    .max(8)
    .describe("What it did to this escrow: names of the contract's events."),
});

const settlement = z.object({
  signer: address('Session key named when the escrow was opened: signs the vouchers.'),
  feeRecipient: address('Receives the platform fee, less what the referrer gets.'),
  feeBps: z.int().min(0).max(10_000).describe('Platform fee inside the price, in 1/10000.'),
  openedAt: unixSeconds('When the escrow was opened.'),
  endsAt: unixSeconds('When it would have ended by itself.'),
  closingAt: unixSeconds('When billing stopped.'),
  closeReason: z.string().min(1).max(32).describe("The contract's close reason."),
  servedSeconds: z.int().min(0).max(4_294_967_295).describe('Seconds that were billed.'),
  deposit: baseUnits('All that was put in.'),
  claimed: baseUnits('What the seconds cost, fee included.'),
  paid: baseUnits("Credited to the quote's payee."),
  fee: baseUnits("Platform fee, the referrer's part included."),
  referrerFee: baseUnits("Credited to the quote's referrer, out of the fee."),
  refunded: baseUnits('Given back to who put it in: the consumer, or sponsors of top-ups.'),
  transactions: z
    .array(receiptTransaction)
    .max(maxReceiptTransactions)
    .describe('That touched this escrow, oldest first. A convenience: the amounts are those of the contract.'),
  allTransactions: z
    .boolean()
    .describe("False: some are not named, because the chain's nodes do not tell, or there are too many."),
});

export const receipt = z.object({
  version: z.literal(receiptVersion),
  lease: z
    .object({
      clusterUid: name("UID of the consumer cluster's namespace kube-system."),
      namespace: name('Namespace of the GpuLease.'),
      name: name('Name of the GpuLease.'),
      uid: name('UID of the GpuLease.'),
      attempt: z.int32().min(1).describe('Which attempt of the lease this escrow was for.'),
    })
    .describe("Cluster, UID and attempt are bound into the quote's leaseRef."),
  providerName: name("Name of the GpuProvider in the consumer's cluster."),
  offerName: name("Name of the GpuOffer in the consumer's cluster."),
  region: z.string().max(63).optional().describe('Region of the offer, where it named one.'),
  zone: z.string().max(63).optional().describe('Zone of the offer, where it named one.'),
  asset: z
    .object({ symbol: z.string().min(1).max(12), decimals: z.int().min(0).max(36) })
    .describe('The token that was paid with, as the chain names it.'),
  leaseId: hex32('Id of the escrow.'),
  quote: signedQuote.describe('Price, terms and promised node, signed by the provider.'),
  voucher: z
    .object({ servedSeconds: z.int().min(0).max(4_294_967_295), last: z.boolean(), signature })
    .describe('The highest count of seconds that the consumer signed for.'),
  release: z
    .object({ servedSeconds: z.int().min(0).max(4_294_967_295), signature, at: time('When it was received.') })
    .optional()
    .describe('The provider asks for no more than these seconds.'),
  withoutRelease: z
    .string()
    .min(1)
    .max(512)
    .optional()
    .describe('Why there is no release. Exactly one of the two is present.'),
  startedAt: time('When the node was first Ready. Absent: it never was.').optional(),
  end: z.object({ reason: z.string().min(1).max(64), message: z.string().max(1024) }).describe('Why the lease ended.'),
  settlement: settlement.describe('The escrow as it stands closed on chain.'),
  seal: z
    .object({ signer: address('Session key.'), signature })
    .describe(
      'Signature of the session key over `Receipt{leaseId, contentHash}`, for the chain and contract of the quote.',
    ),
});

export type Receipt = z.infer<typeof receipt>;
export type UnsealedReceipt = Omit<Receipt, 'seal'>;
export type ReceiptTransaction = z.infer<typeof receiptTransaction>;
