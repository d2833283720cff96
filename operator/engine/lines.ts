/**
 * The lines of an answer, as they come. Handlers and no iterators: a thousand virtual nodes hold three thousand such answers open, and
 * an async iterator over a stream takes nine kilobytes, whether anything comes or not.
 */
import type { IncomingMessage } from 'node:http';
import { UnknownOutcomeError } from './errors.ts';

export interface LinesOptions {
  /** For errors. */
  readonly what: string;
  readonly longestBytes: number;
  /** Something came, be it half a line. */
  readonly onData?: () => void;
}

/**
 * Resolves at the end of the answer; a last line without its end was cut off, and is dropped. Throws when it breaks off, when a
 * line is too long, and what `onLine` throws; nobody is told of anything then any more.
 */
export function readLines(
  response: IncomingMessage,
  { what, longestBytes, onData }: LinesOptions,
  onLine: (line: string) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let rest: Buffer[] = [];
    let size = 0;
    const fail = (error: unknown) => {
      response.off('data', take);
      response.destroy();
      reject(error);
    };
    const take = (chunk: Buffer) => {
      onData?.();
      try {
        let start = 0;
        for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
          const piece = chunk.subarray(start, end);
          const line = (rest.length === 0 ? piece : Buffer.concat([...rest, piece])).toString('utf8');
          rest = [];
          size = 0;
          start = end + 1;
          onLine(line);
        }
        if (start === chunk.length) return;
        rest.push(chunk.subarray(start));
        size += chunk.length - start;
        if (size > longestBytes) throw new UnknownOutcomeError(`${what}: a line longer than ${longestBytes} bytes`);
      } catch (error) {
        fail(error);
      }
    };
    response.on('data', take);
    response.once('end', resolve);
    response.once('error', fail);
    response.once('close', () => reject(new UnknownOutcomeError(`${what}: the answer broke off`)));
  });
}
