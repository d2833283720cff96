/**
 * How a call to a gateway can fail. Each asks for another reaction:
 *
 *   GatewayRefusal         it said no, and why: a fact
 *   UnknownOutcomeError    nobody knows whether it acted: network, time-out, an answer that broke off, a proxy's 502
 *   InvalidAnswerError     it answered what the protocol does not know: this provider is not to be trusted with more
 *   IdentityMismatchError  whoever answers at that address is not the one that is pinned: nothing was sent
 */
import type { GatewayReason, Problem } from '../../api/gateway.ts';

export { UnknownOutcomeError } from '../../engine/errors.ts';

export class GatewayRefusal extends Error {
  readonly status: number;
  /** One of `gatewayReasons` where the gateway is ours; what another one says is kept as it is. */
  readonly reason: GatewayReason | (string & {});
  readonly problem: Problem;
  readonly retryAfterSeconds?: number;

  constructor(problem: Problem, what: string, retryAfterSeconds?: number) {
    super(`${what}: ${problem.detail ?? problem.title}`);
    this.name = 'GatewayRefusal';
    this.status = problem.status;
    this.reason = problem.reason ?? problem.title;
    this.problem = problem;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export class InvalidAnswerError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'InvalidAnswerError';
  }
}

export class IdentityMismatchError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'IdentityMismatchError';
  }
}
