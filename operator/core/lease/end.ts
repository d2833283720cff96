/** Why a lease must end now, if it must. One rule a paragraph; the first that holds is the reason that people see. */

import { exceededFor } from '../budget/room.ts';
import { spenderOf } from '../budget/spender.ts';
import { type Escrow, mayStartAnotherAttempt, paidSeconds } from '../money/escrow.ts';
import { spendLimit } from './fund.ts';
import { meterNow, servedSeconds } from './meter.ts';
import type { Ending, Observed } from './observed.ts';
import { limitsIn } from './pricing.ts';
import { topUpOf } from './top-up.ts';

/**
 * Draining begins this long before term or money end, so that pods have time to go: the lease's drainTimeoutSeconds, but
 * never more than a tenth of the term, or short leases would end before they began.
 */
export function drainLeadSeconds(seen: Pick<Observed, 'lease'>): number {
  const { drainTimeoutSeconds, term } = seen.lease.spec;
  return Math.min(drainTimeoutSeconds, Math.floor(term.durationSeconds / 10));
}

/** Served seconds at which a lease ends, its drain counted in: the end of its term, or what its deposit pays. */
export function endsAtServedSeconds(seen: Pick<Observed, 'lease'>, escrow: Escrow): number {
  const lead = drainLeadSeconds(seen);
  const paid = paidSeconds(escrow);
  const term = escrow.maxSeconds - lead;
  // A small deposit pays for less than the drain may take: without the tenth it would end before it began.
  return paid < escrow.maxSeconds ? Math.min(term, paid - Math.min(lead, Math.floor(paid / 10))) : term;
}

/** GPUs that were quoted and are gone may come back while somebody's pods still end; not for longer. */
const capacityPatienceSeconds = 15;

export function whyEnd(seen: Observed): Ending | undefined {
  const { lease, record, chain, allocation, node, now, settings } = seen;
  if (record?.end) return record.end;
  const end = (reason: Ending['reason'], message: string, retry = false): Ending => ({
    reason,
    message,
    at: now.toISOString(),
    retry,
  });

  if (lease.metadata.deletionTimestamp) return end('Released', 'the lease was deleted.');
  const quote = record?.quote;
  if (!quote) return undefined;
  if (node?.deleting) return end('Released', 'its Node was deleted.');
  const started = record.startedAt !== undefined;

  const provider = seen.providers.get(quote.providerName)?.provider;
  if (provider?.spec.stopPolicy === 'HoldAndDrain' && record.deposit !== undefined)
    return end('ProviderHeld', `GpuProvider ${quote.providerName} is set to HoldAndDrain.`);

  const exceeded =
    seen.budgetsDrain && record.deposit !== undefined ? exceededFor(seen.budgets, spenderOf(record)!) : undefined;
  if (exceeded && now >= exceeded.drainAt) return end('BudgetExceeded', exceeded.message);

  if (chain?.state !== 'known') return undefined;
  if (!chain.escrow) {
    // A reorganisation took the escrow back. What was built on it must go before there is another attempt.
    const { expiresAt } = quote.signed.quote;
    const gone = mayStartAnotherAttempt({ expiresAt }, chain.safe.escrow, chain.safe.blockTime);
    return gone && (started || node)
      ? end('ProviderFault', 'the chain took the escrow back, and the quote ran out before it was open again.', true)
      : undefined;
  }
  const { escrow } = chain;
  if (escrow.closed || escrow.closingAt !== 0) {
    const expired = escrow.closeReason === 'Expired';
    return end(
      expired ? 'Expired' : 'ProviderFault',
      `the escrow was closed on chain (${escrow.closeReason}).`,
      !started && !expired,
    );
  }

  if (allocation?.state === 'known' && (allocation.info.state === 'Suspended' || allocation.info.state === 'Ended')) {
    const { state, reason, message } = allocation.info;
    return end(
      'ProviderFault',
      `the provider ${state === 'Ended' ? 'ended' : 'suspended'} it: ${reason ?? 'no reason given'}. ${message ?? ''}`.trim(),
      !started,
    );
  }
  if (allocation?.state === 'known' && allocation.info.leaveBy !== undefined)
    return end(
      'ProviderHeld',
      `provider ${quote.providerName} is taken out of service and ends it at ${allocation.info.leaveBy}.`,
      !started,
    );
  // An allocation that served and is now denied is a fact, not a failure to answer. Only a provider that knows nothing of the
  // lease is asked once more: it may have lost its records, and the escrow is proof enough for it to go on.
  if (allocation?.state === 'absent' && started && allocation.reason !== 'LeaseNotFound')
    return end('ProviderFault', `the provider no longer has the allocation: ${allocation.message ?? 'not found'}.`);

  // Another consumer was quicker between quote and escrow. Waiting there would lock the deposit for nothing.
  if (
    allocation?.state === 'absent' &&
    (allocation.reason === 'CapacityExhausted' || allocation.reason === 'FirstContact') &&
    chain.blockTime >= escrow.openedAt + capacityPatienceSeconds
  )
    return end(
      'ProviderFault',
      `${allocation.reason}: ${allocation.message ?? 'the GPUs were gone when the escrow was open'}.`,
      true,
    );

  const lead = drainLeadSeconds(seen);
  const served = servedSeconds(meterNow(record, seen));
  if (served >= escrow.maxSeconds - lead)
    return end('Expired', `the term of ${lease.spec.term.durationSeconds} s is over.`);
  if (chain.blockTime >= escrow.endsAt - lead) return end('Expired', 'the escrow reached the end of its time.');

  const paid = paidSeconds(escrow);
  // A small deposit pays for less than the drain may take: without the tenth it would end before it began.
  if (started && paid < escrow.maxSeconds && served >= paid - Math.min(lead, Math.floor(paid / 10))) {
    if (escrow.deposit >= spendLimit(seen, quote))
      return end(
        'SpendLimitReached',
        `spendLimit ${limitsIn(lease, quote.assetSymbol)?.spendLimit} ${quote.assetSymbol} is reached.`,
      );
    const { short } = topUpOf(seen, served);
    return end(
      short?.reason === 'BudgetExceeded' ? 'BudgetExceeded' : 'InsufficientFunds',
      `the deposit could not be topped up: ${short?.message ?? `see the wallet ${chain.wallet.address} and its transactions.`}`,
    );
  }

  const startDeadline = escrow.openedAt + lease.spec.startTimeoutSeconds;
  if (!started && chain.blockTime >= startDeadline)
    return end(
      'ProviderFault',
      `StartTimeout: the node was not Ready ${lease.spec.startTimeoutSeconds} s after the escrow was open.`,
      true,
    );

  if (
    started &&
    node &&
    node.ready !== 'True' &&
    now.getTime() - node.since.getTime() >= settings.nodeLostSeconds * 1000
  )
    return end('NodeLost', `the node was not Ready for ${settings.nodeLostSeconds} s: ${node.message}`);
  return undefined;
}
