/** A signal that fires when the caller goes away before it was answered. */
import type { FastifyRequest } from 'fastify';

export function abortedWith(request: FastifyRequest): AbortSignal {
  const controller = new AbortController();
  request.raw.socket?.once('close', () => controller.abort(new Error('the caller went away')));
  return controller.signal;
}
