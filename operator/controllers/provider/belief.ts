/** Between the process that faces the internet and the one that makes tenants: what one asks for, and the other believes. */
import { type Proof, prove } from '../../core/allocation/proof.ts';
import { quoteOfJson } from '../../core/allocation/quote.ts';
import type { LeaseRecord } from '../../core/allocation/record.ts';
import type { Clock } from '../../engine/clock.ts';
import type { Informer } from '../../engine/types.ts';
import { keyOfLease } from './allocation.ts';
import type { ChainView } from './chain-view.ts';
import type { RecordSecret, Records } from './records.ts';
import type { Chains, Notary } from './world.ts';

/** The escrow is read for this alone: what was read before the record was written says nothing. Throws while nobody answers. */
export async function proveByChain(
  record: LeaseRecord,
  { chains, notary, now }: { readonly chains: Chains; readonly notary: Notary; readonly now: () => Date },
  signal: AbortSignal,
): Promise<Proof> {
  const chain = chains.chain(record.chainId, record.escrow);
  if (!chain) return { proven: false, wait: false, differs: ['chainId', 'escrow'] };
  const quote = quoteOfJson(record.quote);
  const domain = { chainId: chain.chainId, escrow: chain.escrow };
  const leaseId = notary.leaseIdOf(quote.consumer, quote.leaseRef);
  const hashes = {
    quote: notary.hashQuote(domain, quote),
    node: notary.hashJson(record.node),
    leaseId,
    provider: notary.address,
  };
  const [escrow] = await chain.leases([leaseId], signal);
  return prove(record, quote, hashes, escrow, Math.floor(now().getTime() / 1000));
}

/** Against the session key that the escrow names, as far as the chain was read. */
export function createVoucherCheck(notary: Notary, view: ChainView): (record: LeaseRecord) => boolean {
  return ({ leaseId, chainId, escrow, signer, voucher }) => {
    if (voucher === undefined) return true;
    const { servedSeconds, last, signature } = voucher;
    const seen = view.seen(leaseId);
    const key = (seen.known && seen.escrow?.signer) || signer;
    const message = { leaseId, servedSeconds, last };
    return notary.verifyVoucher({ chainId, escrow }, { message, signature }, key);
  };
}

/** The provisioner sees the record by a watch, and takes a second or two. Who asked may ask again. */
const patienceMs = 8_000;

export async function untilProvisioned(
  record: LeaseRecord,
  at: {
    readonly records: Records;
    readonly watched: Informer<RecordSecret>;
    readonly namespace: string;
    readonly clock: Clock;
  },
  signal?: AbortSignal,
): Promise<LeaseRecord> {
  const { name } = keyOfLease(at.namespace, record.leaseId);
  const until = at.clock.monotonicMs() + patienceMs;
  let wake: () => void = () => undefined;
  const stop = at.watched.onChange(({ object }) => {
    if (object.metadata.name === name) wake();
  });
  const leave = () => wake();
  signal?.addEventListener('abort', leave, { once: true });
  try {
    for (;;) {
      // Listening before looking: what changes in between is heard.
      const changed = new Promise<void>((resolve) => {
        wake = resolve;
      });
      const stored = (await at.records.get(record.leaseId, signal)) ?? record;
      const leftMs = until - at.clock.monotonicMs();
      if (stored.state !== 'Provisioning' || leftMs <= 0) return stored;
      const cancel = at.clock.setTimeout(wake, leftMs);
      await changed;
      cancel();
      signal?.throwIfAborted();
    }
  } finally {
    stop();
    signal?.removeEventListener('abort', leave);
  }
}
