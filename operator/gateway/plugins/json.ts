/** JSON bodies, strictly: UTF-8 that is UTF-8, no prototype tricks, and no other type of content. */
import type { FastifyInstance } from 'fastify';
import { Refusal } from '../../core/allocation/refusal.ts';

export function acceptJsonOnly(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser('error', 'error');
  const utf8 = new TextDecoder('utf-8', { fatal: true });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    let text: string;
    try {
      text = utf8.decode(body as Buffer);
    } catch {
      done(new Refusal(400, 'the body is not UTF-8'));
      return;
    }
    parse(request, text, done);
  });
}
