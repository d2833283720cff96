/** Errors as problem documents (RFC 9457), each with a word that programs act on and a sentence that people read. */
import { STATUS_CODES } from 'node:http';
import type { Problem } from '../api/gateway.ts';
import { Refusal } from '../core/allocation/refusal.ts';

export const problemType = 'application/problem+json';

const cut = (text: string, max: number): string => (text.length > max ? `${text.slice(0, max - 1)}…` : text);

export function problemOf(status: number, detail?: string, reason?: string): Problem {
  return {
    type: reason === undefined ? 'about:blank' : `gpulease:${cut(reason, 64)}`,
    title: STATUS_CODES[status] ?? 'Error',
    status,
    ...(detail === undefined || detail === '' ? {} : { detail: cut(detail, 2048) }),
    ...(reason === undefined ? {} : { reason: cut(reason, 64) }),
  };
}

export function problemOfRefusal(refusal: Refusal): Problem {
  return {
    ...problemOf(refusal.status, refusal.message, refusal.reason),
    ...(refusal.errors === undefined ? {} : { errors: [...refusal.errors].slice(0, 32) }),
  };
}

/** What Fastify refuses by itself, in words for whoever sent it. */
const ownWords: Readonly<Record<string, string>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: 'the body is larger than this gateway takes',
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'the body must be JSON: send Content-Type: application/json',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'the body is empty: a JSON document is expected',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'the body is not as long as Content-Length says',
  FST_ERR_CTP_INVALID_JSON_BODY: 'the body is not valid JSON',
  FST_ERR_BAD_URL: 'the path is not a valid URL',
};

/** The problem to tell for any error, and whether it is our own fault. */
export function problemOfError(error: unknown): { problem: Problem; ours: boolean; retryAfterSeconds?: number } {
  if (error instanceof Refusal) {
    return { problem: problemOfRefusal(error), ours: false, retryAfterSeconds: error.retryAfterSeconds };
  }
  if (error instanceof Error) {
    const { code, statusCode } = error as { code?: unknown; statusCode?: unknown };
    if (typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500) {
      const words = typeof code === 'string' ? ownWords[code] : undefined;
      return { problem: problemOf(statusCode, words ?? 'the request is malformed'), ours: false };
    }
    // Silence of the provider's API server: whether it acted is not known.
    if (error.name === 'UnknownOutcomeError') {
      return { problem: problemOf(502, 'the provider’s cluster did not answer: try again'), ours: true };
    }
    // Its no to the gateway itself, not to the tenant.
    if (error.name === 'ApiError') {
      return {
        problem: problemOf(503, 'the provider’s cluster cannot do this now: try again'),
        ours: true,
        retryAfterSeconds: 2,
      };
    }
  }
  return { problem: problemOf(500, 'the gateway failed; its log says more'), ours: true };
}
