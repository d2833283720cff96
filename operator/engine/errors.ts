/**
 * Three ways to fail, because each asks for another reaction:
 *
 *   ApiError             the API server said no: a fact to reason about
 *   UnknownOutcomeError  nobody knows whether it happened: read before you act again
 *   TerminalError        trying again cannot help until somebody changes something
 */
import type { ApiStatus } from './types.ts';

export interface StatusCause {
  readonly reason?: string;
  readonly message?: string;
  readonly field?: string;
}

/** The API server's no. `code` and `reason` are Kubernetes' own. */
export class ApiError extends Error implements ApiStatus {
  readonly code: number;
  readonly reason: string;
  readonly retryAfterSeconds?: number;
  /** For Invalid: which field and why. For a refused eviction: DisruptionBudget. At most 16. */
  readonly causes: readonly StatusCause[];

  constructor(status: ApiStatus & { readonly causes?: readonly StatusCause[] }, request?: string) {
    const message = status.message.slice(0, 2048);
    super(request ? `${request}: ${message}` : message);
    this.name = 'ApiError';
    this.code = status.code;
    this.reason = status.reason;
    this.retryAfterSeconds = status.retryAfterSeconds;
    this.causes = status.causes?.slice(0, 16) ?? [];
  }
}

/**
 * No answer, half an answer, or one that does not say whether the write happened (a time-out inside the server).
 * `neverSent` is true when the request certainly did not reach the server: then it did not happen.
 */
export class UnknownOutcomeError extends Error {
  readonly neverSent: boolean;
  /** What the server said, when it said anything: a 500 or 504 to a write. */
  readonly code?: number;

  constructor(message: string, options: { neverSent?: boolean; code?: number; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'UnknownOutcomeError';
    this.neverSent = options.neverSent ?? false;
    this.code = options.code;
  }
}

/** Thrown by a reconciler: do not try again before the object changes. */
export class TerminalError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'TerminalError';
  }
}

export const isApiError = (error: unknown, ...reasons: string[]): error is ApiError =>
  error instanceof ApiError && (reasons.length === 0 || reasons.includes(error.reason));

export const isNotFound = (error: unknown): error is ApiError => isApiError(error) && error.code === 404;
export const isAlreadyExists = (error: unknown): error is ApiError => isApiError(error, 'AlreadyExists');
/**
 * The object changed since it was read, or is another one of that name. AlreadyExists shares the first one's code, 409, but
 * is another fact; for the second, API servers say Invalid when it is found out while patching: "metadata.uid is immutable".
 */
export const isConflict = (error: unknown): error is ApiError =>
  isApiError(error) &&
  ((error.code === 409 && error.reason !== 'AlreadyExists') ||
    (error.code === 422 && error.causes.some((cause) => cause.field === 'metadata.uid')));
/** The resourceVersion is too old to go on from. */
export const isExpired = (error: unknown): error is ApiError => isApiError(error) && error.code === 410;

const reasonOfCode: Readonly<Record<number, string>> = {
  400: 'BadRequest',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'NotFound',
  405: 'MethodNotAllowed',
  406: 'NotAcceptable',
  409: 'Conflict',
  410: 'Gone',
  413: 'RequestEntityTooLarge',
  415: 'UnsupportedMediaType',
  422: 'Invalid',
  429: 'TooManyRequests',
  500: 'InternalError',
  503: 'ServiceUnavailable',
  504: 'Timeout',
};

/** Reads a Kubernetes Status, or makes one of what a proxy or load balancer said instead. */
export function statusOf(
  code: number,
  body: unknown,
  retryAfter?: string,
): ApiStatus & { readonly causes: readonly StatusCause[] } {
  const status = isRecord(body) && body.kind === 'Status' ? body : {};
  const details = isRecord(status.details) ? status.details : {};
  const seconds = Number(retryAfter ?? details.retryAfterSeconds ?? Number.NaN);
  const causes = Array.isArray(details.causes) ? details.causes.filter(isRecord) : [];
  return {
    code: typeof status.code === 'number' ? status.code : code,
    reason: text(status.reason) || reasonOfCode[code] || 'Unknown',
    message: text(status.message) || text(body)?.trim().slice(0, 512) || `the server answered ${code}`,
    retryAfterSeconds: Number.isFinite(seconds) && seconds >= 0 ? seconds : undefined,
    causes: causes
      .slice(0, 16)
      .map((cause) => ({ reason: text(cause.reason), message: text(cause.message), field: text(cause.field) })),
  };
}

const text = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined);

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
