/** How a tunnel is opened, and what a gateway says that does not want one. */
import type { ClientHttp2Session, ServerHttp2Session } from 'node:http2';
import type { Duplex } from 'node:stream';
import type { Clock } from '../../engine/clock.ts';
import { isRecord } from '../../engine/errors.ts';
import { readBody } from '../../engine/http.ts';
import type { RemoteLease } from '../remote.ts';

const openSeconds = 15;
/** Who has just been reached anew and takes longer than this is reached another way. */
const promptSeconds = 3;

/** The gateway said no. */
export class TunnelRefusal extends Error {
  override readonly name = 'TunnelRefusal';
  readonly reason: string;
  /** It will say so again: about what was asked, not about now. */
  readonly isFinal: boolean;
  constructor(status: number, reason: string, message: string) {
    super(message);
    this.reason = reason;
    // A gateway that does not know the path is an older one.
    this.isFinal = reason === 'ServicesNotOffered' || status === 400 || status === 422 || reason === 'HTTP 404';
  }
}

/** An upgraded connection to the gateway, of which nothing has been read. */
export async function openTunnel(
  lease: RemoteLease,
  path: 'forward' | 'reverse',
  protocol: string,
  signal: AbortSignal,
): Promise<Duplex> {
  const answer = await lease.upgrade(
    { method: 'POST', path, headers: { Connection: 'Upgrade', Upgrade: protocol }, timeoutSeconds: openSeconds },
    signal,
  );
  if (!answer.socket) throw await refusalOf(answer.response, path);
  const { socket, head } = answer;
  // A session takes over the socket below its stream: what is still on its way out then, Node answers by ending the process.
  if (socket.writableLength > 0) await new Promise<void>((sent) => socket.write('', () => sent()));
  if (head.length > 0) socket.unshift(head);
  return socket;
}

export async function refusalOf(response: Parameters<typeof readBody>[0], what: string): Promise<TunnelRefusal> {
  const body = await readBody(response, what, { maxBytes: 64 * 1024, timeoutSeconds: openSeconds });
  let said: unknown;
  try {
    said = JSON.parse(body.toString('utf8'));
  } catch {
    // Somebody else's page: the status says what there is to say.
  }
  const { reason, detail, title } = isRecord(said) ? said : {};
  const text = (value: unknown) => (typeof value === 'string' ? value.slice(0, 512) : undefined);
  return new TunnelRefusal(
    response.statusCode ?? 0,
    text(reason) ?? `HTTP ${response.statusCode}`,
    text(detail) ?? text(title) ?? `the gateway answered ${response.statusCode}`,
  );
}

/** Whether the other side answers now. */
export function answers(session: ServerHttp2Session | ClientHttp2Session, clock: Clock): Promise<boolean> {
  return new Promise((resolve) => {
    if (session.destroyed || session.closed) return resolve(false);
    const cancel = clock.setTimeout(() => resolve(false), promptSeconds * 1000);
    session.ping((error) => {
      cancel();
      resolve(error === null);
    });
  });
}
