/** Server-sent events (WHATWG HTML, 9.2), as far as a gateway sends them: one line of data each, and comments. */
import type { IncomingMessage } from 'node:http';
import { InvalidAnswerError, UnknownOutcomeError } from './errors.ts';

/** Of one event: an allocation has a few kilobytes, most of them labels. */
const longest = 256 * 1024;

/** The data of each event; `undefined` for a comment. Throws where the answer breaks off. */
export async function* eventsOf(response: IncomingMessage, what: string): AsyncGenerator<string | undefined> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of response) {
    rest += decoder.decode(chunk as Uint8Array, { stream: true });
    for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
      const event = rest.slice(0, end);
      rest = rest.slice(end + 2);
      yield event.startsWith('data: ') ? event.slice('data: '.length) : undefined;
    }
    if (rest.length > longest)
      throw new InvalidAnswerError(`${what}: the gateway sends an event of more than ${longest} characters`);
  }
  if (!response.complete) throw new UnknownOutcomeError(`${what}: the answer broke off`);
}
