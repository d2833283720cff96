/**
 * Settled: the escrow is closed at the safe head, so what was paid and refunded will not change any more.
 *
 * Who closes: the provider, with the last voucher, in one transaction; if it does not, we do with its Release; if it gave
 * none, we ask the contract to stop the clock and finalize after the claim window.
 */
import { finalizableAt, wayToClose } from '../money/escrow.ts';
import { receiptDue } from '../receipt/build.ts';
import type { Action } from './actions.ts';
import { intents, type Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';

export const settle: Step = { condition: 'Settled', decide };

/** So long after the close, by the chain's clock, a provider is asked for its Release. No money waits for it any more. */
const signatureSeconds = 30;

function decide(seen: Observed): Decision {
  const { record, chain, now, settings } = seen;
  const quote = record?.quote;
  if (!quote) return finish(seen, 'NothingEscrowed', 'No money was committed.');
  if (!chain || chain.state === 'unknown')
    return {
      status: 'Unknown',
      reason: chain?.reason ?? 'ChainUnreachable',
      message: chain?.message ?? 'The chain was not read yet.',
      requeueAfterSeconds: 5,
    };

  const open = chain.txs[intents.open(quote.leaseId)];
  const { escrow } = chain;
  if (!escrow) {
    // The transaction may still be on its way: only a quote that has expired at the safe head can no longer open.
    const sent = open !== undefined && open.state !== 'refused';
    if (!sent) return finish(seen, 'NothingEscrowed', 'No escrow was opened.');
    if (!chain.safe.escrow && chain.safe.blockTime >= Number(quote.signed.quote.expiresAt))
      return finish(seen, 'NothingEscrowed', 'The quote expired without an escrow.');
    return {
      status: 'Unknown',
      reason: 'EscrowPending',
      message: `Transaction ${open.hash} may still open the escrow.`,
      requeueAfterSeconds: 2,
    };
  }
  if (escrow.closed) {
    // The provider may have closed with our last voucher before it was asked again: the receipt wants its signature, too.
    const unsigned = !record.release && record.signedSeconds > 0 && record.receiptOf !== quote.leaseId;
    const ask = unsigned && chain.blockTime < escrow.closingAt + signatureSeconds;
    if (!chain.safe.escrow?.closed || (ask && receiptDue(seen)))
      return {
        status: 'Unknown',
        reason: 'Settling',
        message: chain.safe.escrow?.closed
          ? `Closed; waiting for ${quote.providerName} to sign what it served.`
          : 'Closed; waiting for the block to be safe.',
        actions: ask ? [{ do: 'release', quote }] : [],
        requeueAfterSeconds: 1,
      };
    const due = receiptDue(seen);
    if (due)
      return {
        status: 'Unknown',
        reason: 'Settling',
        message: `Closed on chain (${escrow.closeReason}); writing the receipt.`,
        actions: [{ do: 'writeReceipt', quote, escrow: due }],
        requeueAfterSeconds: 0,
      };
    return finish(seen, 'Settled', `Closed on chain (${escrow.closeReason}).`);
  }

  const busy = (key: string) => {
    const tx = chain.txs[key];
    return tx !== undefined && tx.state !== 'refused' && tx.state !== 'reverted';
  };
  const attempt = (key: string, action: Action): Action[] => (busy(key) ? [] : [action]);
  const waiting = (message: string, actions: Action[], requeueAfterSeconds = 2): Decision => ({
    status: 'Unknown',
    reason: 'Settling',
    message,
    actions,
    requeueAfterSeconds,
  });

  // A release that the contract does not take, for whatever reason, leaves the way without a signature.
  const closing = chain.txs[intents.close(quote.leaseId)];
  const useless = closing?.state === 'reverted' || (closing?.state === 'refused' && closing.refused?.terminal === true);
  if (record.release && !useless) {
    const waited = (now.getTime() - new Date(record.release.at).getTime()) / 1000;
    if (waited < settings.closeTimeoutSeconds) return waiting('Waiting for the provider to close the escrow.', []);
    return waiting(
      "Closing the escrow with the provider's release.",
      attempt(intents.close(quote.leaseId), { do: 'closeWithRelease', quote }),
    );
  }
  const way = wayToClose(escrow, chain.blockTime, chain.claimWindowSeconds);
  switch (way) {
    case 'requestClose':
      return waiting(
        'Asking the contract to stop the clock.',
        attempt(intents.requestClose(quote.leaseId), { do: 'requestClose', quote }),
      );
    case 'finalize':
      return waiting('Finalizing the escrow.', attempt(intents.finalize(quote.leaseId), { do: 'finalize', quote }));
    case undefined: {
      const at = finalizableAt(escrow, chain.claimWindowSeconds);
      return waiting(
        `The provider may still claim until ${new Date(at * 1000).toISOString()}.`,
        [],
        Math.max(2, Math.min(60, at - chain.blockTime)),
      );
    }
    default:
      return way satisfies never;
  }
}

/** This attempt is over. Another one, or the end? */
function finish(seen: Observed, reason: string, message: string): Decision {
  const { record, lease } = seen;
  const end = record?.end;
  if (!end) return { status: 'Unknown', reason: 'Settling', message, requeueAfterSeconds: 0 };
  const { maxAttempts, avoidFailedProviderSeconds } = lease.spec.retry;
  if (end.retry && !lease.metadata.deletionTimestamp) {
    const again: Action = { do: 'nextAttempt', why: end, avoidSeconds: avoidFailedProviderSeconds };
    const stop: Action = {
      do: 'finish',
      why: { ...end, reason: 'AttemptsExhausted', message: `after ${maxAttempts} attempts; the last: ${end.message}` },
    };
    return {
      status: 'Unknown',
      reason: 'BackingOff',
      message,
      actions: [record.attempt < maxAttempts ? again : stop],
      requeueAfterSeconds: 0,
    };
  }
  return { status: 'True', reason, message, actions: [{ do: 'finish', why: end }], requeueAfterSeconds: 0 };
}
