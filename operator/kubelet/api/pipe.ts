/**
 * Two sockets after an upgrade, joined. Nobody reads what passes, so exit codes, terminal sizes, half-closed input and
 * port-forward frames come through as they are, in SPDY as in WebSocket.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';

/** Headers that make an upgrade. All else stays: Host and Authorization are this connection's own affair. */
const repeated = [
  'upgrade',
  'connection',
  'x-stream-protocol-version',
  'sec-websocket-key',
  'sec-websocket-version',
  'sec-websocket-protocol',
  'sec-websocket-extensions',
] as const;

export function upgradeHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  const repeatedHeaders: Record<string, string> = {};
  for (const name of repeated) {
    const value = headers[name];
    if (value !== undefined) repeatedHeaders[name] = Array.isArray(value) ? value.join(', ') : value;
  }
  return repeatedHeaders;
}

const answered = [
  'upgrade',
  'connection',
  'x-stream-protocol-version',
  'sec-websocket-accept',
  'sec-websocket-protocol',
  'sec-websocket-extensions',
] as const;

/** The head of our 101, with what the other side said in its own. */
export function switchingHead(response: IncomingMessage): string {
  const lines = ['HTTP/1.1 101 Switching Protocols'];
  for (const name of answered) {
    const value = response.headers[name];
    if (value !== undefined) lines.push(`${name}: ${Array.isArray(value) ? value.join(', ') : value}`);
  }
  return `${lines.join('\r\n')}\r\n\r\n`;
}

/** What one side still had to say after the other is gone altogether is worth this long. */
const lastWordsMs = 5000;

/** Both ways, until both have ended. `aHead`: what came from `a` before it was a bare socket; likewise `bHead`. */
export function join(a: Duplex, b: Duplex, aHead: Buffer, bHead: Buffer): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    if ('setNoDelay' in from && typeof from.setNoDelay === 'function') from.setNoDelay(true);
    if ('setTimeout' in from && typeof from.setTimeout === 'function') from.setTimeout(0);
    from.on('error', () => from.destroy());
    from.once('close', () => {
      // Nobody is left to hear `to`; what is on its way to it may still arrive.
      if (to.destroyed) return;
      to.end();
      const timer = setTimeout(() => to.destroy(), lastWordsMs);
      timer.unref();
      to.once('close', () => clearTimeout(timer));
      if (to.writableFinished) to.destroy();
      else to.once('finish', () => to.destroy());
    });
  }
  if (aHead.length > 0) b.write(aHead);
  if (bHead.length > 0) a.write(bHead);
  // Ending one direction ends it on the other side, and leaves the opposite direction open.
  a.pipe(b);
  b.pipe(a);
}
