/** Provisioned: the provider has set the GPUs aside and made the tenant. */
import { gpusInWords } from './amounts.ts';
import type { Observed } from './observed.ts';
import { soonSeconds } from './pace.ts';
import type { Decision, Step } from './plan.ts';

export const provision: Step = { condition: 'Provisioned', decide };

function decide(seen: Observed): Decision {
  const { record, allocation } = seen;
  const quote = record!.quote!;
  const ask = [{ do: 'allocate', quote } as const];
  if (!allocation)
    return {
      status: 'Unknown',
      reason: 'Provisioning',
      message: `Asking ${quote.providerName} for the allocation.`,
      actions: ask,
      requeueAfterSeconds: soonSeconds(seen),
    };
  switch (allocation.state) {
    case 'unknown':
      // What was provisioned stays so until the provider says otherwise.
      return record!.startedAt
        ? {
            status: 'True',
            reason: 'Provisioned',
            message: `${quote.providerName} does not answer; the allocation was there when last seen.`,
          }
        : { status: 'Unknown', reason: 'ProviderUnreachable', message: allocation.message, requeueAfterSeconds: 2 };
    case 'absent':
      return {
        status: 'Unknown',
        reason: allocation.reason === 'CapacityExhausted' ? 'CapacityExhausted' : 'Provisioning',
        message:
          (allocation.reason !== 'LeaseNotFound' && allocation.message) ||
          `Asking ${quote.providerName} for the allocation.`,
        actions: ask,
        requeueAfterSeconds: soonSeconds(seen),
      };
    case 'known':
      return allocation.info.state === 'Serving'
        ? {
            status: 'True',
            reason: 'Provisioned',
            message: `${gpusInWords(allocation.info.gpus)} set aside at ${quote.providerName}.`,
          }
        : {
            status: 'Unknown',
            reason: 'Provisioning',
            message: allocation.info.message ?? `${quote.providerName} is making the tenant.`,
            actions: ask,
            requeueAfterSeconds: soonSeconds(seen),
          };
    default:
      return allocation satisfies never;
  }
}
