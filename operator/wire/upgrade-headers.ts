/** What both sides of an upgrade say of it, as whoever stands between them repeats it. */
import type { IncomingMessage } from 'node:http';

/**
 * Headers that make an upgrade. All else stays: Host and Authorization are this connection's own affair. So is Connection: in it a
 * caller could name our own headers, for a proxy on the way to take away.
 */
const repeated = [
  'upgrade',
  'x-stream-protocol-version',
  'sec-websocket-key',
  'sec-websocket-version',
  'sec-websocket-protocol',
  'sec-websocket-extensions',
] as const;

export function upgradeHeaders(request: Pick<IncomingMessage, 'headersDistinct'>): Record<string, string | string[]> {
  const repeatedHeaders: Record<string, string | string[]> = { connection: 'Upgrade' };
  for (const name of repeated) {
    // Callers list the protocols that they speak in several headers of one name, and not all servers read one with commas.
    const values = request.headersDistinct[name];
    if (values !== undefined) repeatedHeaders[name] = values.length === 1 ? values[0]! : values;
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
