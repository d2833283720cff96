/**
 * Is a receipt true? By signatures and arithmetic alone, and against the chain where somebody asked it. Every check has a
 * name, and a fault says which field it is about, what is there, and what should be.
 *
 * What is offline and cannot be known: whether the session key is the consumer's, and whether anything of it happened on
 * chain. A forger with keys of its own can make a paper of its own. Say whose you expect, or ask the chain.
 */
import type { Address, Hex32 } from '../../api/messages.ts';
import type { Receipt } from '../../api/receipt.ts';
import { type CloseReason, closeReasons, type Escrow } from '../money/escrow.ts';
import { maxFeeBps } from '../money/model.ts';
import { feeOf, priceOf, referrerPartOf } from '../money/price.ts';

/** In the order in which they are looked for: what is signed first, then what follows from it, then the seal over all. */
export const faultMeanings = {
  Malformed: 'a field is missing, or has another form than a receipt has',
  QuoteSignature: 'the provider did not sign this quote for this chain and contract',
  VoucherSignature: 'the session key did not sign this count of seconds for this escrow',
  ReleaseSignature: 'the provider did not sign this release for this escrow',
  LeaseRef: 'the quote was made for another cluster, lease or attempt',
  LeaseId: 'the escrow is not the one that this quote opens',
  PromisedNode: 'the node described is not the one that the provider signed for',
  Release: 'a release and the reason why there is none exclude each other, and one must be there',
  NotClosed: 'the escrow is still open: there is nothing to give a receipt for',
  Times: "the escrow's times do not follow from the quote, or are out of order",
  QuoteExpired: 'the escrow was opened after the quote had run out',
  Deposit: 'the deposit is outside of what the quote allows',
  ServedBeyondVoucher: 'more seconds were billed than the consumer signed for',
  ServedBeyondTerm: "more seconds were billed than the quote's maximum",
  ServedBeyondClock: 'more seconds were billed than passed until billing stopped',
  FeeRate: 'the fee is above what the contract can take',
  Claimed: 'the cost is not price × GPUs × seconds, rounded down, capped by the deposit',
  Fee: 'the fee is not its share of the cost, rounded down',
  ReferrerFee: "the referrer's part is not its share of the fee, rounded down",
  Paid: 'what was paid to the provider is not cost less fee',
  Refunded: 'what was refunded is not deposit less cost',
  SealSigner: 'the seal is not by the session key that signed the voucher',
  Seal: 'something in the receipt was changed after the consumer sealed it',
  UnexpectedProvider: 'another provider than was expected',
  UnexpectedConsumer: 'another consumer than was expected',
  UnexpectedSessionKey: 'another session key than was expected',
  NotOnChain: 'the contract has no such escrow',
  ChainEscrow: 'the chain says something else of this escrow',
  ChainToken: 'the chain says something else of the token or the contract',
  ChainTransaction: 'a transaction is not on chain, or did not touch this escrow',
} as const;
export type FaultName = keyof typeof faultMeanings;

export interface Fault {
  readonly fault: FaultName;
  /** Path in the receipt. */
  readonly field: string;
  readonly given: string;
  readonly expected: string;
  readonly message: string;
}

/** What signatures and hashes say of a receipt; made at the edge, where the cryptography is. Undefined: unreadable. */
export interface Proofs {
  readonly quoteSigner: Address | undefined;
  readonly voucherSigner: Address | undefined;
  readonly releaseSigner: Address | undefined;
  readonly sealSigner: Address | undefined;
  readonly leaseRef: Hex32;
  readonly leaseId: Hex32;
  readonly specHash: Hex32;
  readonly quoteHash: Hex32;
  /** The provider is a contract, and said on chain that the signature is its own. */
  readonly quoteAccepted?: boolean;
  readonly releaseAccepted?: boolean;
}

/** Whom the reader expects. */
export interface Expected {
  readonly provider?: string;
  readonly consumer?: string;
  readonly sessionKey?: string;
}

/** What a chain said when it was asked. */
export interface ChainWords {
  readonly escrow: Escrow | undefined;
  readonly feeRecipient: string;
  readonly token: { readonly symbol: string; readonly decimals: number };
  /** By hash: in a block, and touching this escrow. */
  readonly transactions: ReadonlyMap<string, { readonly blockNumber: number; readonly touches: boolean } | undefined>;
}

const same = (a: string | undefined, b: string) => a?.toLowerCase() === b.toLowerCase();
const zeroAddress = /^0x0{40}$/;

/** Empty: every signature and every sum holds. */
export function faultsOf(receipt: Receipt, proofs: Proofs, expected: Expected = {}, chain?: ChainWords): Fault[] {
  const faults: Fault[] = [];
  const say = (fault: FaultName, field: string, given: unknown, wanted: unknown) =>
    faults.push({
      fault,
      field,
      given: String(given),
      expected: String(wanted),
      message: faultMeanings[fault],
    });
  const { quote, settlement, voucher, release } = receipt;
  const terms = quote.quote;

  // ---- what was signed
  const signer = (who: string | undefined) => (who === undefined ? 'no readable signature' : `signed by ${who}`);
  if (!same(proofs.quoteSigner, terms.provider) && !proofs.quoteAccepted)
    say('QuoteSignature', 'quote.signature', signer(proofs.quoteSigner), `signed by ${terms.provider}`);
  if (!same(proofs.voucherSigner, settlement.signer))
    say('VoucherSignature', 'voucher.signature', signer(proofs.voucherSigner), `signed by ${settlement.signer}`);
  if (release && !same(proofs.releaseSigner, terms.provider) && !proofs.releaseAccepted)
    say('ReleaseSignature', 'release.signature', signer(proofs.releaseSigner), `signed by ${terms.provider}`);
  if (!same(terms.leaseRef, proofs.leaseRef)) say('LeaseRef', 'quote.quote.leaseRef', terms.leaseRef, proofs.leaseRef);
  if (!same(receipt.leaseId, proofs.leaseId)) say('LeaseId', 'leaseId', receipt.leaseId, proofs.leaseId);
  if (!same(terms.specHash, proofs.specHash)) say('PromisedNode', 'quote.node', proofs.specHash, terms.specHash);
  if ((release === undefined) !== (receipt.withoutRelease !== undefined))
    say(
      'Release',
      release ? 'withoutRelease' : 'release',
      release ? 'a release and a reason for none' : 'neither',
      release ? 'the release alone' : 'a release, or withoutRelease',
    );

  // ---- what follows
  const { openedAt, closingAt, endsAt, servedSeconds } = settlement;
  const reason = settlement.closeReason as CloseReason;
  if (!closeReasons.includes(reason) || reason === 'Open')
    say('NotClosed', 'settlement.closeReason', reason, closeReasons.slice(1).join(', '));
  const shouldEnd = openedAt + terms.startTimeoutSeconds + terms.maxSeconds;
  if (endsAt !== shouldEnd) say('Times', 'settlement.endsAt', endsAt, shouldEnd);
  if (closingAt < openedAt || closingAt > shouldEnd)
    say('Times', 'settlement.closingAt', closingAt, `${openedAt} to ${shouldEnd}`);
  if (openedAt >= terms.expiresAt) say('QuoteExpired', 'settlement.openedAt', openedAt, `before ${terms.expiresAt}`);

  const price = BigInt(terms.pricePerGpuHour);
  const cost = (seconds: number) => priceOf(seconds, terms.gpus, price);
  const deposit = BigInt(settlement.deposit);
  if (deposit < cost(terms.minSeconds) || deposit > cost(terms.maxSeconds))
    say('Deposit', 'settlement.deposit', deposit, `${cost(terms.minSeconds)} to ${cost(terms.maxSeconds)}`);
  if (servedSeconds > voucher.servedSeconds)
    say('ServedBeyondVoucher', 'settlement.servedSeconds', servedSeconds, `at most ${voucher.servedSeconds}`);
  if (servedSeconds > terms.maxSeconds)
    say('ServedBeyondTerm', 'settlement.servedSeconds', servedSeconds, `at most ${terms.maxSeconds}`);
  if (servedSeconds > Math.max(0, closingAt - openedAt))
    say('ServedBeyondClock', 'settlement.servedSeconds', servedSeconds, `at most ${closingAt - openedAt}`);
  if (settlement.feeBps > maxFeeBps) say('FeeRate', 'settlement.feeBps', settlement.feeBps, `at most ${maxFeeBps}`);

  // All from seconds, price, rates and deposit as they stand: a wrong sum is named alone, and not all that follow from it, too.
  const sum = (fault: FaultName, field: keyof Receipt['settlement'], wanted: bigint) => {
    const given = BigInt(settlement[field] as string);
    if (given !== wanted) say(fault, `settlement.${field}`, given, wanted);
  };
  const due = cost(servedSeconds);
  const claimed = due < deposit ? due : deposit;
  const fee = feeOf(claimed, settlement.feeBps);
  sum('Claimed', 'claimed', claimed);
  sum('Fee', 'fee', fee);
  sum('ReferrerFee', 'referrerFee', zeroAddress.test(terms.referrer) ? 0n : referrerPartOf(fee, terms.referrerBps));
  sum('Paid', 'paid', claimed - fee);
  sum('Refunded', 'refunded', deposit - claimed);

  // ---- the seal over all
  if (!same(receipt.seal.signer, settlement.signer))
    say('SealSigner', 'seal.signer', receipt.seal.signer, settlement.signer);
  if (!same(proofs.sealSigner, receipt.seal.signer))
    say('Seal', 'seal.signature', signer(proofs.sealSigner), `signed by ${receipt.seal.signer}`);

  if (expected.provider && !same(terms.provider, expected.provider))
    say('UnexpectedProvider', 'quote.quote.provider', terms.provider, expected.provider);
  if (expected.consumer && !same(terms.consumer, expected.consumer))
    say('UnexpectedConsumer', 'quote.quote.consumer', terms.consumer, expected.consumer);
  if (expected.sessionKey && !same(settlement.signer, expected.sessionKey))
    say('UnexpectedSessionKey', 'settlement.signer', settlement.signer, expected.sessionKey);

  if (chain) compareWithChain(receipt, proofs, chain, say);
  return faults;
}

function compareWithChain(
  { leaseId, settlement, asset, quote: { quote: terms } }: Receipt,
  proofs: Proofs,
  chain: ChainWords,
  say: (fault: FaultName, field: string, given: unknown, wanted: unknown) => void,
): void {
  const { escrow } = chain;
  if (!escrow) {
    say('NotOnChain', 'leaseId', leaseId, 'an escrow of this id');
    return;
  }
  const differs = (field: string, given: unknown, there: unknown) => {
    if (!same(String(given), String(there))) say('ChainEscrow', field, given, there);
  };
  // The quote that opened it: with its hash all terms are those of the chain.
  if (!same(proofs.quoteHash, escrow.quoteHash))
    say('ChainEscrow', 'quote.quote', `hash ${proofs.quoteHash}`, `hash ${escrow.quoteHash}`);
  differs('quote.quote.consumer', terms.consumer, escrow.consumer);
  differs('settlement.signer', settlement.signer, escrow.signer);
  differs('settlement.feeBps', settlement.feeBps, escrow.feeBps);
  differs('settlement.openedAt', settlement.openedAt, escrow.openedAt);
  differs('settlement.endsAt', settlement.endsAt, escrow.endsAt);
  differs('settlement.closingAt', settlement.closingAt, escrow.closingAt);
  differs('settlement.closeReason', settlement.closeReason, escrow.closeReason);
  differs('settlement.servedSeconds', settlement.servedSeconds, escrow.servedSeconds);
  differs('settlement.deposit', settlement.deposit, escrow.deposit);
  differs('settlement.claimed', settlement.claimed, escrow.claimed);
  differs('settlement.fee', settlement.fee, escrow.feeTaken);
  differs('settlement.refunded', settlement.refunded, escrow.refunded);
  if (!same(settlement.feeRecipient, chain.feeRecipient))
    say('ChainToken', 'settlement.feeRecipient', settlement.feeRecipient, chain.feeRecipient);
  if (asset.symbol !== chain.token.symbol) say('ChainToken', 'asset.symbol', asset.symbol, chain.token.symbol);
  if (asset.decimals !== chain.token.decimals)
    say('ChainToken', 'asset.decimals', asset.decimals, chain.token.decimals);
  for (const [index, { hash, blockNumber }] of settlement.transactions.entries()) {
    const field = `settlement.transactions[${index}]`;
    const found = chain.transactions.get(hash);
    if (!found) say('ChainTransaction', `${field}.hash`, hash, 'a transaction in a block');
    else if (!found.touches) say('ChainTransaction', `${field}.hash`, hash, 'one that touches this escrow');
    else if (found.blockNumber !== blockNumber)
      say('ChainTransaction', `${field}.blockNumber`, blockNumber, found.blockNumber);
  }
}

/** True of a valid receipt, and worth knowing. */
export function remarksOn(receipt: Receipt): string[] {
  const remarks: string[] = [];
  const { release, settlement } = receipt;
  if (receipt.withoutRelease !== undefined) remarks.push(`without the provider's release: ${receipt.withoutRelease}`);
  if (release && settlement.servedSeconds > release.servedSeconds)
    remarks.push(
      `the provider released for ${release.servedSeconds} s and was paid for ${settlement.servedSeconds} s, which the consumer's voucher covers`,
    );
  if (!settlement.allTransactions) remarks.push('not all transactions are named; the amounts are whole all the same');
  if (BigInt(settlement.claimed) === 0n) remarks.push('nothing was billed');
  return remarks;
}
