/** What a provider's gateway answers to one call, and what a no of its means. Nothing of it is trusted: it is bounded here. */
import type { IncomingMessage } from 'node:http';
import { plainText } from '../core/plain-text.ts';
import { ApiError, isRecord, statusOf, UnknownOutcomeError } from '../engine/errors.ts';
import { jsonOrText, readBody } from '../engine/http.ts';

/** One page of 500 pods of ordinary size is 5 MB. */
const maxAnswerBytes = 32 * 1024 * 1024;
export const timeoutSeconds = 30;

/** What came back, whatever it says. */
export interface Answer {
  readonly code: number;
  /** Parsed; text where it is no JSON. */
  readonly body: unknown;
  /** As the header has it. */
  readonly retryAfter?: string;
}

export async function answerOf(response: IncomingMessage, what: string): Promise<Answer> {
  const bytes = await readBody(response, what, { maxBytes: maxAnswerBytes, timeoutSeconds });
  return {
    code: response.statusCode ?? 0,
    body: jsonOrText(bytes.toString('utf8')),
    retryAfter: response.headers['retry-after'],
  };
}

/** A no is either the API server's Status, carried through, or the gateway's own problem document. */
export function refusalOf({ code, body, retryAfter }: Answer, method: string, what: string): Error {
  if (isRecord(body) && body.kind !== 'Status' && (typeof body.title === 'string' || typeof body.reason === 'string')) {
    const reason = typeof body.reason === 'string' ? body.reason : String(body.title);
    const message = plainText(String(typeof body.detail === 'string' ? body.detail : (body.title ?? reason)));
    return new ApiError({ ...statusOf(code, undefined, retryAfter), code, reason: reason.slice(0, 64), message }, what);
  }
  const said = statusOf(code, body, retryAfter);
  const status = { ...said, message: plainText(said.message) };
  // A page that says 404 in somebody else's words is not the API server's NotFound, by which pods are given up.
  if (code === 404 && !(isRecord(body) && body.kind === 'Status'))
    return new ApiError({ ...status, reason: 'Unrecognized' }, what);
  if (method !== 'GET' && (code === 500 || code === 502 || code === 504))
    return new UnknownOutcomeError(`${what}: ${status.message}`, { code });
  return new ApiError(status, what);
}
