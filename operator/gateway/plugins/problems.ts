/** Every answer that is not a success is a problem document, and none tells how we are made. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import { problemOf, problemOfError, problemType } from '../problem.ts';
import type { GatewayLog } from '../service.ts';

export function tellProblem(reply: FastifyReply, error: unknown, log: GatewayLog): FastifyReply {
  const { problem, ours, retryAfterSeconds } = problemOfError(error);
  if (ours) {
    log.error(
      {
        method: reply.request.method,
        route: reply.request.routeOptions.url,
        error: error instanceof Error ? error.message : String(error),
      },
      'a request could not be served',
    );
  }
  if (retryAfterSeconds !== undefined) reply.header('retry-after', String(retryAfterSeconds));
  if (problem.status === 401) reply.header('www-authenticate', 'Bearer');
  return reply.code(problem.status).type(problemType).send(JSON.stringify(problem));
}

export function answerWithProblems(app: FastifyInstance, log: GatewayLog): void {
  app.setErrorHandler((error, _request, reply) => tellProblem(reply, error, log));
  app.setNotFoundHandler((_request, reply) =>
    reply
      .code(404)
      .type(problemType)
      .send(JSON.stringify(problemOf(404, 'there is no such path here'))),
  );
}
