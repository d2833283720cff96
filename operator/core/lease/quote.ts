/** Quoted: a provider has signed what the lease will cost. */
import { matchOffers } from '../offer/match.ts';
import type { Observed } from './observed.ts';
import type { Decision, Step } from './plan.ts';

/** How many gateways are asked in one round. */
const asked = 3;

export const quote: Step = { condition: 'Quoted', decide };

function decide(seen: Observed): Decision {
  const { lease, record, now } = seen;
  const stored = record?.quote;
  if (stored) {
    // Once a deposit was decided, only the chain may say that the quote is void: `fund` looks there.
    const open = record.deposit !== undefined || Number(stored.signed.quote.expiresAt) * 1000 > now.getTime() + 5000;
    if (open)
      return {
        status: 'True',
        reason: 'QuoteReady',
        message: `Quoted by ${stored.providerName} for ${stored.offerName}.`,
      };
    if (lease.spec.approvedQuoteHash?.toLowerCase() === stored.hash.toLowerCase())
      return {
        status: 'False',
        reason: 'InvalidSpec',
        message: `The approved quote ${stored.hash} ran out before it was used. Create another lease.`,
        stalled: true,
      };
  }
  if (lease.spec.suspend)
    return {
      status: 'False',
      reason: 'Suspended',
      message: 'spec.suspend is true: nothing is quoted and no money is moved.',
      stalled: true,
    };
  if (lease.spec.approvedQuoteHash && !stored)
    return {
      status: 'False',
      reason: 'InvalidSpec',
      message: 'spec.approvedQuoteHash names no quote of this lease. Create another lease.',
      stalled: true,
    };

  const match = matchOffers({ ...seen, avoid: record?.avoid ?? [] });
  if (match.blocked) return { status: 'Unknown', ...match.blocked, requeueAfterSeconds: 30 };
  const candidates = match.candidates.slice(0, asked);
  const refused = seen.refusals.map((r) => `${r.providerName}: ${r.message}`).join(' · ');
  const reason = seen.refusals.find(
    (r) => r.reason === 'CapacityExhausted' || r.reason === 'IdentityMismatch' || r.reason === 'ProviderUnreachable',
  );
  return {
    status: 'Unknown',
    reason: (reason?.reason as string | undefined) ?? 'Quoting',
    message: (refused
      ? `No quote was good: ${refused}`
      : `Asking ${candidates.map((c) => c.provider.metadata.name).join(', ')} for a quote.`
    ).slice(0, 1800),
    actions: [{ do: 'requestQuote', candidates, selection: match.selection }],
    requeueAfterSeconds: refused ? 10 : 0,
  };
}
