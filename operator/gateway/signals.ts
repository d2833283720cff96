/** A signal that fires when the caller goes away before it was answered. */
import type { FastifyReply } from 'fastify';

export function abortedWith(reply: FastifyReply): AbortSignal {
  const controller = new AbortController();
  // Of the response, not of the connection: that one serves many requests.
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) controller.abort(new Error('the caller went away'));
  });
  return controller.signal;
}
