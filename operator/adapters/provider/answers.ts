/** What a gateway answered, checked before anybody sees it: against its schema, or as the refusal that it is. */
import { type Problem, problem } from '../../api/gateway.ts';
import { plainStrings } from '../../core/plain-text.ts';
import { GatewayRefusal, InvalidAnswerError, UnknownOutcomeError } from './errors.ts';

export interface Schema<T> {
  safeParse(
    value: unknown,
  ):
    | { success: true; data: T }
    | { success: false; error: { issues: readonly { path: readonly PropertyKey[]; message: string }[] } };
}

/** Throws an InvalidAnswerError for what the protocol does not allow. */
export function answerOf<T>(schema: Schema<T>, bytes: Buffer, what: string): T {
  const parsed = schema.safeParse(parseJson(bytes, what));
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.slice(0, 3).map((issue) => `${issue.path.join('.') || 'body'}: ${issue.message}`);
  throw new InvalidAnswerError(
    `${what}: the gateway answered what the protocol does not allow: ${issues.join('; ').slice(0, 512)}`,
  );
}

function parseJson(bytes: Buffer, what: string): unknown {
  try {
    // All of it may be shown to people, in a condition or a log. What is signed is checked as it is read here.
    return JSON.parse(bytes.toString('utf8'), plainStrings);
  } catch {
    throw new UnknownOutcomeError(`${what}: the answer is not JSON`);
  }
}

/** The gateway's own no is a problem document. A 5xx without one is some proxy's, and says nothing about what happened. */
export function refusalOf(status: number, bytes: Buffer, what: string, retryAfter?: string): Error {
  let said: Problem | undefined;
  try {
    said = problem.safeParse(JSON.parse(bytes.toString('utf8'), plainStrings)).data;
  } catch {
    // Not JSON: somebody else's page.
  }
  const seconds = Number(retryAfter ?? Number.NaN);
  const wait = Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, 3600) : undefined;
  if (said) return new GatewayRefusal({ ...said, status }, what, wait);
  if (status >= 400 && status < 500)
    return new GatewayRefusal({ type: 'about:blank', title: `HTTP ${status}`, status }, what, wait);
  return new UnknownOutcomeError(`${what}: answered ${status} by something that is not a gateway`);
}
