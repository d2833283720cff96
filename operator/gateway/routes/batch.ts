/**
 * Several writes of a lease in one request. Each is what it would be alone: counted, admitted, audited, with a status of its own. The
 * answers come as they are known, a line of JSON each, so that none waits for the slowest.
 */
import type { ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import { type BatchedCall, batchRequest, batchType } from '../../api/gateway.ts';
import type { LeaseRecord } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Audit } from '../audit.ts';
import type { Callers } from '../callers.ts';
import { problemOfError } from '../problem.ts';
import type { GatewayLog, GatewayService } from '../service.ts';
import { abortedWith } from '../signals.ts';
import {
  briefly,
  maxObjectBytes,
  problemOfAnswer,
  queryOf,
  readAll,
  retryAfterOf,
  type TenantCalls,
  targetOf,
} from '../tenant-calls.ts';
import { validated } from '../validate.ts';
import { authorizedBy, idOf } from './leases.ts';
import { route } from './methods.ts';

export interface BatchRouteOptions {
  readonly service: Pick<GatewayService, 'tenant'>;
  readonly callers: Callers;
  readonly calls: TenantCalls;
  readonly audit: Audit;
  readonly log: GatewayLog;
}

interface Answer {
  readonly status: number;
  readonly retryAfter?: string;
  /** JSON. */
  readonly body: string;
}

export function batchRoutes(app: FastifyInstance, { service, callers, calls, audit, log }: BatchRouteOptions): void {
  route(
    app,
    '/v1/leases/:leaseId/batch',
    {
      POST: async (request, reply) => {
        const leaseId = idOf(request);
        const batch = validated(batchRequest, request.body);
        const signal = abortedWith(reply);
        const record = await service.tenant(leaseId, signal);
        reply.hijack();
        reply.raw.writeHead(200, {
          'content-type': batchType,
          'cache-control': 'no-store',
          'x-content-type-options': 'nosniff',
        });
        const say = linesTo(reply.raw, batch.calls.length);
        await Promise.all(
          batch.calls.map(async (call, index) => {
            const startedAt = performance.now();
            const answer = await answerTo(record, call, index, signal);
            if (answer === undefined) return say('');
            const { method, path } = call;
            const from = { method, url: `/v1/leases/${leaseId}/${path}`, ...pick(request.raw) };
            callers.about(leaseId, from);
            audit(from, answer.status, (performance.now() - startedAt) / 1000);
            const { status, retryAfter } = answer;
            // The body is JSON already.
            say(`${JSON.stringify({ call: index, status, retryAfter }).slice(0, -1)},"body":${answer.body}}\n`);
          }),
        );
        return reply;
      },
    },
    authorizedBy(callers),
  );

  /** Undefined: nobody knows what came of it, and a line would say that somebody does. */
  async function answerTo(
    record: LeaseRecord,
    { method, path, body }: BatchedCall,
    index: number,
    signal: AbortSignal,
  ): Promise<Answer | undefined> {
    try {
      // The batch itself was counted as its first.
      if (index > 0) callers.again(record.leaseId);
      const target = targetOf(path.split('?', 1)[0]!.slice('kube/'.length));
      if (!target.methods.includes(method) || target.stream !== undefined)
        throw new Refusal(405, `${path.slice(0, 200)} takes no ${method}`);
      const query = queryOf(target, method, path);
      const wanted =
        method === 'POST'
          ? await calls.creation(record, target, body, briefly, signal)
          : calls.deletion(record, target, query, briefly);
      const response = await calls.send(record.leaseId, wanted, true, signal);
      const status = response.statusCode ?? 502;
      if (status >= 200 && status < 300) {
        const text = await readAll(response, maxObjectBytes).catch(() => undefined);
        return text === undefined ? undefined : { status, body: inOneLine(text) };
      }
      const problem = await problemOfAnswer(response, target, method);
      return { status: problem.status, retryAfter: retryAfterOf(response), body: JSON.stringify(problem) };
    } catch (error) {
      const { problem, ours, retryAfterSeconds } = problemOfError(error);
      if (ours && !signal.aborted)
        log.error({ error: error instanceof Error ? error.message : String(error) }, 'a call could not be served');
      return {
        status: problem.status,
        retryAfter: retryAfterSeconds?.toString(),
        body: JSON.stringify(problem),
      };
    }
  }
}

const pick = ({ headers, socket }: Parameters<Audit>[0]) => ({ headers, socket });

/** As API servers write them; one that is asked to be readable does not. */
const inOneLine = (json: string): string => {
  const text = json.trimEnd();
  return text.includes('\n') ? JSON.stringify(JSON.parse(text)) : text;
};

/** What is known at the same time goes together; with the last of them the answer ends. */
function linesTo(response: ServerResponse, expected: number): (line: string) => void {
  let left = expected;
  let lines = '';
  let due = false;
  return (line) => {
    left -= 1;
    lines += line;
    if (due) return;
    due = true;
    setImmediate(() => {
      due = false;
      const text = lines;
      lines = '';
      if (response.destroyed) return;
      if (left > 0) response.write(text);
      else response.end(text);
    });
  };
}
