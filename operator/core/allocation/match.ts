/**
 * Whether an escrow on chain is the one that a quote was signed for. Money first: nothing is allocated before this says yes.
 */
import type { GatewayReason } from '../../api/gateway.ts';
import type { Hex32, Quote } from '../../api/messages.ts';
import type { Escrow } from '../money/escrow.ts';
import { sameHex } from './quote.ts';

export interface Mismatch {
  readonly reason: GatewayReason;
  readonly detail: string;
}

/** Seconds that a transaction may still take after the quote ran out, before the gateway says that it never will. */
const expiryMarginSeconds = 60;

export function checkEscrow(
  quote: Quote,
  quoteHash: Hex32,
  escrow: Escrow | undefined,
  nowSeconds: number,
): Mismatch | undefined {
  if (escrow === undefined) {
    return nowSeconds > quote.expiresAt + expiryMarginSeconds
      ? { reason: 'QuoteExpired', detail: 'the quote ran out, and no escrow was opened with it' }
      : { reason: 'EscrowNotFound', detail: 'no escrow of this lease is on chain yet: ask again in a few seconds' };
  }
  const differs: string[] = [];
  const check = (field: string, same: boolean) => {
    if (!same) differs.push(field);
  };
  check('quoteHash', sameHex(escrow.quoteHash, quoteHash));
  check('consumer', sameHex(escrow.consumer, quote.consumer));
  check('provider', sameHex(escrow.provider, quote.provider));
  check('payee', sameHex(escrow.payee, quote.payee));
  check('token', sameHex(escrow.token, quote.token));
  check('pricePerGpuHour', escrow.pricePerGpuHour === quote.pricePerGpuHour);
  check('gpus', escrow.gpus === quote.gpus);
  check('maxSeconds', escrow.maxSeconds === quote.maxSeconds);
  check('endsAt', escrow.endsAt === escrow.openedAt + quote.startTimeoutSeconds + quote.maxSeconds);
  if (differs.length > 0) {
    return { reason: 'EscrowMismatch', detail: `the escrow on chain differs from the quote in ${differs.join(', ')}` };
  }
  if (escrow.closed) return { reason: 'EscrowClosed', detail: `the escrow is closed (${escrow.closeReason})` };
  if (escrow.closingAt !== 0) return { reason: 'EscrowClosed', detail: 'the consumer has asked to close the escrow' };
  if (nowSeconds >= escrow.endsAt) return { reason: 'EscrowClosed', detail: 'the term of the escrow is over' };
  return undefined;
}
