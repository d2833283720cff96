/** What the signatures and hashes in a receipt say, and what the chain says of it. What follows is decided in core/receipt. */
import type { Address, Hex, Hex32, MessageDomain, Signed } from '../../api/messages.ts';
import type { Receipt, UnsealedReceipt } from '../../api/receipt.ts';
import { newestOf } from '../../core/money/escrow.ts';
import type { ChainWords, Proofs } from '../../core/receipt/verify.ts';
import type { EscrowClient } from './escrow-client.ts';
import type { ChainKey } from './key.ts';
import {
  acceptedByContract,
  type ContractCaller,
  hashJson,
  hashQuote,
  leaseIdOf,
  leaseRefOf,
  quoteFromJson,
  signerOf,
  signReceipt,
} from './messages.ts';
import { ChainUnavailable, type Rpc } from './rpc.ts';
import { touchedBy } from './settlement-trail.ts';

const domainOf = ({ quote }: Pick<Receipt, 'quote'>): MessageDomain => ({
  chainId: quote.chainId,
  escrow: quote.escrow as Address,
});

/** Signs for the receipt as it is, byte for byte of its canonical JSON. */
export async function sealReceipt(session: ChainKey, receipt: UnsealedReceipt): Promise<Receipt['seal']> {
  const seal = { leaseId: receipt.leaseId as Hex32, contentHash: hashJson(receipt) };
  return { signer: session.address, signature: (await signReceipt(session, domainOf(receipt), seal)).signature };
}

/**
 * `raw` is the JSON as it was read, so that what the schema does not know is sealed, too. With a chain, a provider that is a
 * contract is asked whether a signature that is no key's is its own; what the chain cannot answer throws.
 */
export async function proofsOf(receipt: Receipt, raw: object, chain?: ContractCaller): Promise<Proofs> {
  const domain = domainOf(receipt);
  const leaseId = receipt.leaseId as Hex32;
  const { lease, voucher, release, seal } = receipt;
  const quote = quoteFromJson(receipt.quote.quote);
  const signedQuote = { message: quote, signature: receipt.quote.signature as Hex };
  const { servedSeconds, last } = voucher;
  const signedRelease = release && {
    message: { leaseId, servedSeconds: release.servedSeconds },
    signature: release.signature as Hex,
  };
  const { seal: _, ...sealed } = raw as { seal?: unknown };
  const proofs: Proofs = {
    quoteSigner: signerOf(domain, 'Quote', quote, signedQuote.signature),
    voucherSigner: signerOf(domain, 'Voucher', { leaseId, servedSeconds, last }, voucher.signature as Hex),
    releaseSigner: signedRelease && signerOf(domain, 'Release', signedRelease.message, signedRelease.signature),
    sealSigner: signerOf(domain, 'Receipt', { leaseId, contentHash: hashJson(sealed) }, seal.signature as Hex),
    leaseRef: leaseRefOf(lease.clusterUid, lease.uid, lease.attempt),
    leaseId: leaseIdOf(quote.consumer, quote.leaseRef),
    specHash: hashJson(receipt.quote.node),
    quoteHash: hashQuote(domain, quote),
  };
  if (!chain) return proofs;
  const accepted = async (kind: 'Quote' | 'Release', signed: Signed<object> | undefined, signer: string | undefined) =>
    signed !== undefined &&
    signer?.toLowerCase() !== quote.provider.toLowerCase() &&
    (await acceptedByContract(chain, quote.provider, domain, kind, signed));
  return {
    ...proofs,
    quoteAccepted: await accepted('Quote', signedQuote, proofs.quoteSigner),
    releaseAccepted: await accepted('Release', signedRelease, proofs.releaseSigner),
  };
}

/** Throws when the chain cannot be asked, or may yet take its word back; that it has no such escrow is an answer. */
export async function chainWordsOf(receipt: Receipt, client: EscrowClient, signal?: AbortSignal): Promise<ChainWords> {
  const leaseId = receipt.leaseId as Hex32;
  const [latest, safe, token] = await Promise.all([
    client.lease(leaseId, 'latest', signal),
    client.lease(leaseId, 'safe', signal),
    client.token(receipt.quote.quote.token as Address, signal),
  ]);
  const escrow = newestOf({ latest, safe });
  if (escrow?.closed && !safe?.closed)
    throw new ChainUnavailable(
      `escrow ${leaseId} was closed in a block that is not safe yet: ask again in some minutes`,
    );
  const transactions = new Map<string, { blockNumber: number; touches: boolean } | undefined>();
  for (const { hash } of receipt.settlement.transactions)
    transactions.set(hash, await transactionOf(client.rpc, client.address, hash, leaseId, signal));
  return { escrow, feeRecipient: client.feeRecipient, token, transactions };
}

async function transactionOf(rpc: Rpc, escrow: Address, hash: string, leaseId: Hex32, signal?: AbortSignal) {
  const found = await rpc.call<{ blockNumber: Hex; logs: { address: string; topics: string[] }[] } | null>(
    'eth_getTransactionReceipt',
    [hash],
    signal,
  );
  return found === null
    ? undefined
    : { blockNumber: Number(found.blockNumber), touches: found.logs.some((log) => touchedBy(log, escrow, leaseId)) };
}
