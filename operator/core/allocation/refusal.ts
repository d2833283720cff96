/**
 * A no that a caller can act on. It is a fact about the request, not a fault of ours: repeating the request unchanged
 * brings the same answer, unless the status says "later" (404, 409, 429, 503).
 */
import type { GatewayReason } from '../../api/gateway.ts';

export interface FieldError {
  readonly field: string;
  /** What was given, cut; never the content of a Secret. */
  readonly given?: string;
  readonly message: string;
}

/** The HTTP status that each reason is told with. */
export const statusOfReason: Readonly<Record<GatewayReason, number>> = {
  CapacityExhausted: 409,
  OfferNotFound: 404,
  RailNotAccepted: 422,
  TermNotAccepted: 422,
  QuoteExpired: 410,
  EscrowNotFound: 409,
  EscrowMismatch: 422,
  EscrowClosed: 410,
  LeaseEnded: 410,
  LeaseNotFound: 404,
  Unauthorized: 401,
  VoucherRefused: 422,
  PodRefused: 422,
  ResizeRefused: 422,
  Held: 503,
  Blocked: 403,
  FirstContact: 409,
  ServicesNotOffered: 403,
};

export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly status: number;
  readonly reason: GatewayReason | undefined;
  readonly errors: readonly FieldError[] | undefined;
  readonly retryAfterSeconds: number | undefined;

  constructor(
    reason: GatewayReason | number,
    detail: string,
    more: { readonly errors?: readonly FieldError[]; readonly retryAfterSeconds?: number } = {},
  ) {
    super(detail);
    this.status = typeof reason === 'number' ? reason : statusOfReason[reason];
    this.reason = typeof reason === 'number' ? undefined : reason;
    this.errors = more.errors;
    this.retryAfterSeconds = more.retryAfterSeconds;
  }
}
