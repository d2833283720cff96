/**
 * Writes at one provider, several in a request. The first goes at once and alone; what comes while it is on its way waits for its end,
 * or a moment, and goes together. So one pod waits for nothing, and a burst of them is a few requests, which saves both ends what each
 * request costs.
 */
import { type BatchedCall, batchType, maxBatchedCalls, maxBodyBytes } from '../api/gateway.ts';
import type { Clock } from '../engine/clock.ts';
import { isRecord, UnknownOutcomeError } from '../engine/errors.ts';
import { jsonOrText } from '../engine/http.ts';
import { readLines } from '../engine/lines.ts';
import { withoutManagedFields } from '../engine/managed-fields.ts';
import type { RawRequest } from '../engine/types.ts';
import type { RemoteLease } from './remote.ts';
import { type Answer, answerOf, timeoutSeconds } from './remote-answer.ts';

export interface Batches {
  /** Of the object that was written, its metadata; or a no. Throws as a request does: what came of it is not known then. */
  write(call: BatchedCall, signal?: AbortSignal): Promise<Answer>;
}

/** What comes while requests are on their way waits no longer than this, however long those take. */
const longestWaitMs = 20;
/** Of all calls of a batch together; one that is larger goes alone. */
const mostBytes = maxBodyBytes / 2;
/** Metadata of one object: annotations of 256 KiB, and what is said of them. */
const longestLineBytes = 4 * 1024 * 1024;

interface Waiting {
  readonly call: BatchedCall;
  readonly json: string;
  readonly signal: AbortSignal | undefined;
  resolve(answer: Answer | Promise<Answer>): void;
  reject(error: unknown): void;
}

export function createBatches(options: {
  readonly lease: Pick<RemoteLease, 'raw'>;
  /** One call by itself. */
  readonly alone: (call: BatchedCall, signal?: AbortSignal) => Promise<Answer>;
  readonly clock: Clock;
}): Batches {
  const { lease, alone, clock } = options;
  let waiting: Waiting[] = [];
  let onTheirWay = 0;
  let cancelWait: (() => void) | undefined;
  /** Its gateway is from before there were batches. */
  let unknown = false;

  function onItsWay<T>(request: Promise<T>): Promise<T> {
    onTheirWay += 1;
    return request.finally(() => {
      onTheirWay -= 1;
      next();
    });
  }

  function next(): void {
    if (waiting.length === 0) return;
    if (onTheirWay === 0) go();
    else cancelWait ??= clock.setTimeout(go, longestWaitMs);
  }

  function go(): void {
    cancelWait?.();
    cancelWait = undefined;
    const taken = firstOf(waiting);
    waiting = waiting.slice(taken.length);
    void onItsWay<unknown>(taken.length === 1 || unknown ? Promise.all(taken.map(byItself)) : together(taken));
    next();
  }

  const byItself = ({ call, signal, resolve, reject }: Waiting): Promise<void> =>
    alone(call, signal).then(resolve, reject);

  async function together(all: readonly Waiting[]): Promise<void> {
    const left = new Map(all.entries());
    try {
      const response = await lease.raw(batchOf(all));
      if (response.statusCode !== 200) {
        const answer = await answerOf(response, 'POST batch');
        unknown = answer.code === 404 && isRecord(answer.body) && answer.body.reason === undefined;
        if (unknown) await Promise.all(all.map(byItself));
        else for (const { resolve } of all) resolve(answer);
        return;
      }
      const cancel = clock.setTimeout(() => response.destroy(), timeoutSeconds * 1000);
      await readLines(response, { what: 'POST batch', longestBytes: longestLineBytes }, (line) => {
        const { call, answer } = told(line);
        left.get(call)?.resolve(answer);
        left.delete(call);
      }).finally(cancel);
      throw new UnknownOutcomeError('POST batch: the answer ended before all was told');
    } catch (error) {
      for (const { reject } of left.values()) reject(error);
    }
  }

  return {
    write(call, signal) {
      if (signal?.aborted) return Promise.reject(signal.reason);
      if (unknown) return alone(call, signal);
      // Then nothing waits either.
      if (onTheirWay === 0) return onItsWay(alone(call, signal));
      return new Promise((resolve, reject) => {
        const done = () => signal?.removeEventListener('abort', onAbort);
        const one: Waiting = {
          call,
          json: JSON.stringify(call),
          signal,
          resolve: (answer) => {
            done();
            resolve(answer);
          },
          reject: (error) => {
            done();
            reject(error);
          },
        };
        // What is on its way with others goes on: nobody knows then what came of it, as of any request.
        const onAbort = () => {
          waiting = waiting.filter((other) => other !== one);
          reject(signal?.reason);
        };
        signal?.addEventListener('abort', onAbort, { once: true });
        waiting.push(one);
        next();
      });
    },
  };
}

/** As many as fit into a batch: one at least. */
function firstOf(waiting: readonly Waiting[]): readonly Waiting[] {
  let bytes = 0;
  const end = waiting.findIndex(({ json }, i) => {
    bytes += json.length * 3;
    return i > 0 && (i === maxBatchedCalls || bytes > mostBytes);
  });
  return end < 0 ? waiting : waiting.slice(0, end);
}

const batchOf = (all: readonly Waiting[]): RawRequest => ({
  method: 'POST',
  path: 'batch',
  headers: { Accept: batchType, 'Content-Type': 'application/json' },
  body: `{"calls":[${all.map(({ json }) => json).join(',')}]}`,
  timeoutSeconds,
});

function told(line: string): { readonly call: number; readonly answer: Answer } {
  const said = jsonOrText(withoutManagedFields(line));
  if (!isRecord(said) || typeof said.call !== 'number' || typeof said.status !== 'number')
    throw new UnknownOutcomeError('POST batch: a line is no answer');
  const { call, status: code, body, retryAfter } = said;
  return { call, answer: { code, body, ...(typeof retryAfter === 'string' ? { retryAfter } : {}) } };
}
