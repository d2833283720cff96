/**
 * exec, attach and port-forward: the caller's upgrade is repeated towards the provider's API server, and then bytes go both
 * ways. Nobody here reads them, so exit codes, terminal sizes and half-closed channels survive.
 */
import type { IncomingMessage, Server } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Problem } from '../../api/gateway.ts';
import { upstreamPath } from '../../core/allocation/kube-path.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { problemOf, problemOfError, problemType } from '../problem.ts';
import type { GatewayLog } from '../service.ts';
import { type KubeRouteOptions, problemOfAnswer, queryOf, targetOf, withQuery } from './kube.ts';
import { leaseIdOf } from './leases.ts';

export interface StreamOptions extends KubeRouteOptions {
  readonly log: GatewayLog;
  /** Streams at a time, over all leases. */
  readonly maxStreams?: number;
}

/** Repeated upstream. Not Host, not Authorization, and nothing that is not needed to agree on a protocol. */
const carriedRequestHeaders = [
  'upgrade',
  'connection',
  'x-stream-protocol-version',
  'sec-websocket-key',
  'sec-websocket-version',
  'sec-websocket-protocol',
  'sec-websocket-extensions',
];
const carriedAnswerHeaders = [
  'upgrade',
  'connection',
  'x-stream-protocol-version',
  'sec-websocket-accept',
  'sec-websocket-protocol',
  'sec-websocket-extensions',
];

const handshakeSeconds = 30;

export function serveStreams(server: Server, options: StreamOptions): { end(): void; readonly open: number } {
  const { maxStreams = 1000, log } = options;
  const open = new Set<Duplex>();

  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    if (open.size >= maxStreams) {
      refuse(socket, problemOf(503, 'too many streams are open: try again'));
      return;
    }
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    carry(request, socket, head, options).catch((error: unknown) => {
      const { problem, ours } = problemOfError(error);
      if (ours)
        log.error({ error: error instanceof Error ? error.message : String(error) }, 'a stream could not be opened');
      refuse(socket, problem);
    });
  });

  return {
    end() {
      for (const socket of open) socket.destroy();
    },
    get open() {
      return open.size;
    },
  };
}

async function carry(request: IncomingMessage, socket: Duplex, head: Buffer, options: StreamOptions): Promise<void> {
  const { service, tokens, upstream } = options;
  const url = request.url ?? '';
  const match = /^\/v1\/leases\/([^/?]+)\/kube\/([^?]*)(\?|$)/.exec(url);
  if (!match) throw new Refusal(404, 'there is no such path here');
  const leaseId = leaseIdOf(match[1]);
  tokens.check(leaseId, request.headers.authorization);
  const target = targetOf(match[2] ?? '');
  const method = request.method ?? 'GET';
  if (target.stream === undefined || target.stream === 'log') throw new Refusal(400, 'this path takes no upgrade');
  if (!target.methods.includes(method)) throw new Refusal(405, `this path takes ${target.methods.join(', ')}`);
  const query = queryOf(target, method, url);

  const gone = new AbortController();
  socket.once('close', () => gone.abort(new Error('the caller went away')));
  const record = await service.tenant(leaseId, gone.signal);
  const headers: Record<string, string | string[]> = {};
  for (const name of carriedRequestHeaders) {
    // Callers list the protocols that they speak in several headers of one name.
    const value = request.headersDistinct[name];
    if (value !== undefined) headers[name] = value.length === 1 ? value[0]! : value;
  }
  const answer = await upstream.upgrade(
    {
      method,
      path: withQuery(upstreamPath(tenantNamespace(record.leaseId), target), query),
      headers,
      timeoutSeconds: handshakeSeconds,
    },
    { as: await service.token(leaseId, gone.signal) },
    gone.signal,
  );
  if (answer.socket === undefined) {
    if (answer.response.statusCode === 401) service.forgetToken(leaseId);
    refuse(socket, await problemOfAnswer(answer.response, target, 'GET'));
    return;
  }
  if (socket.destroyed) {
    answer.socket.destroy();
    return;
  }
  const lines = ['HTTP/1.1 101 Switching Protocols'];
  for (const name of carriedAnswerHeaders) {
    // Chosen by the other side, so there is one of each.
    const value = answer.response.headers[name];
    if (typeof value === 'string') lines.push(`${name}: ${value}`);
  }
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  join(socket, head, answer.socket, answer.head);
}

/** Both ways, at once. What one side ends, the other sees ended; what one side loses, the other loses. */
export function join(one: Duplex, oneHead: Buffer, other: Duplex, otherHead: Buffer): void {
  for (const socket of [one, other] as Partial<Socket>[]) {
    socket.setNoDelay?.(true);
    socket.setTimeout?.(0);
    socket.setKeepAlive?.(true, 30_000);
  }
  // Each side may have sent more than its handshake already.
  if (otherHead.length > 0) one.write(otherHead);
  if (oneHead.length > 0) other.write(oneHead);
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.on('error', () => to.destroy());
    from.once('close', () => {
      // Ended in order: what is still on its way may arrive. Broken: so is the other side.
      if (from.readableEnded) to.end();
      else to.destroy();
    });
    from.pipe(to);
  }
}

function refuse(socket: Duplex, problem: Problem): void {
  if (socket.destroyed || !socket.writable) return;
  const body = JSON.stringify(problem);
  socket.end(
    [
      `HTTP/1.1 ${problem.status} ${problem.title}`,
      `content-type: ${problemType}`,
      `content-length: ${Buffer.byteLength(body)}`,
      ...(problem.status === 401 ? ['www-authenticate: Bearer'] : []),
      'connection: close',
      '',
      body,
    ].join('\r\n'),
  );
}
