/**
 * A write that fails says that the other side reads no more, not that it said nothing: a process that ends before its input does
 * leaves its exit code behind. Node destroys the socket at once, with all that is still to be read in it; Go does not, and closes
 * its end with input unread. So a failed write is kept from Node until all that was said is read.
 */
import type { Duplex } from 'node:stream';

type Done = (error?: Error | null) => void;
/** What Node calls on a stream to write: https://nodejs.org/api/stream.html#writable_writechunk-encoding-callback */
interface Writing {
  _write?: (chunk: unknown, encoding: unknown, done: Done) => void;
  _writev?: (chunks: unknown, done: Done) => void;
}

/** So long what was said may take to arrive once the other side reads no more. */
const saidWithinMs = 5000;

export function hearOut<S extends Duplex>(given: S): S {
  const socket = given as unknown as Duplex & Writing;
  const failed = (error: Error) => {
    if (socket.readableEnded) return void socket.destroy(error);
    const timer = setTimeout(() => socket.destroy(error), saidWithinMs);
    timer.unref();
    // A connection that was closed ends; one that was reset says so once all of it is read.
    socket.once('end', () => socket.destroy(error));
    socket.once('close', () => clearTimeout(timer));
  };
  const { _write: write, _writev: writev } = socket;
  if (write)
    socket._write = (chunk, encoding, done) =>
      write.call(socket, chunk, encoding, (error) => (error ? failed(error) : done()));
  if (writev)
    socket._writev = (chunks, done) => writev.call(socket, chunks, (error) => (error ? failed(error) : done()));
  return given;
}
