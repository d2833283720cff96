/**
 * Released: the node is gone, the last voucher is given, and the provider has let go of the GPUs and signed for it.
 *
 * A provider that does not answer cannot hold the money for ever: after a while `settle` asks the chain instead.
 */

import type { Action } from './actions.ts';
import { meterNow, servedSeconds } from './meter.ts';
import type { Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';
import { signableSeconds } from './serve.ts';

export const release: Step = { condition: 'Released', decide };

function decide(seen: Observed): Decision {
  const { record, node, chain, allocation, now, settings } = seen;
  const quote = record?.quote;
  // Billed until the node is let go, not until its last pod was.
  const stop: Action[] = node ? [{ do: 'saveMeter', meter: meterNow(record!, seen) }, { do: 'stopNode' }] : [];
  if (node)
    return {
      status: 'Unknown',
      reason: 'RemovingNode',
      message: `Node ${node.name} is being removed.`,
      actions: stop,
      requeueAfterSeconds: 0.5,
    };
  if (!quote || record.deposit === undefined)
    return { status: 'True', reason: 'NothingAllocated', message: 'Nothing was asked of a provider.' };
  if (record.release) return { status: 'True', reason: 'Released', message: `${quote.providerName} let go.` };
  if (!chain || chain.state === 'unknown')
    return {
      status: 'Unknown',
      reason: chain?.reason ?? 'ChainUnreachable',
      message: chain?.message ?? '',
      requeueAfterSeconds: 5,
    };
  if (!chain.escrow) return { status: 'True', reason: 'NothingAllocated', message: 'No escrow was opened.' };
  if (chain.escrow.closed) return { status: 'True', reason: 'Released', message: 'The escrow is closed.' };

  if (allocation?.state === 'absent' && allocation.reason === 'LeaseNotFound')
    return { status: 'True', reason: 'NothingAllocated', message: `${quote.providerName} has no allocation for it.` };

  const waited = (now.getTime() - new Date(record.end!.drainedAt ?? record.end!.at).getTime()) / 1000;
  if (waited >= settings.releaseTimeoutSeconds)
    return {
      status: 'True',
      reason: 'ProviderUnreachable',
      message: `${quote.providerName} did not let go within ${settings.releaseTimeoutSeconds} s; closing without it.`,
    };
  const seconds = Math.max(signableSeconds(seen, servedSeconds(record.meter)), record.signedSeconds);
  return {
    status: 'Unknown',
    reason: allocation?.state === 'unknown' ? 'ProviderUnreachable' : 'Releasing',
    message: allocation?.state === 'unknown' ? allocation.message : `Waiting for ${quote.providerName} to let go.`,
    actions: [
      { do: 'vouch', quote, meter: record.meter, seconds, last: true },
      { do: 'release', quote },
    ],
    requeueAfterSeconds: 1,
  };
}
