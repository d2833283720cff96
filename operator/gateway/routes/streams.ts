/**
 * exec, attach and port-forward: the caller's upgrade is repeated towards the provider's API server, and then bytes go both
 * ways. Nobody here reads them, so exit codes, terminal sizes and half-closed channels survive.
 */
import type { IncomingMessage, Server } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Problem } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { upstreamPath } from '../../core/allocation/kube-path.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { join } from '../../wire/upgraded.ts';
import { problemOf, problemOfError, problemType } from '../problem.ts';
import type { GatewayLog } from '../service.ts';
import type { Tunnels } from '../tunnels/tunnels.ts';
import { type KubeRouteOptions, problemOfAnswer, queryOf, targetOf, withQuery } from './kube.ts';
import { leaseIdOf } from './leases.ts';

export interface StreamOptions extends KubeRouteOptions {
  readonly log: GatewayLog;
  /** Upgrades that are no stream of a pod. */
  readonly tunnels?: Tunnels;
  /** Streams at a time, over all leases. */
  readonly maxStreams?: number;
  /** Of these, for one lease: no tenant takes them all. */
  readonly maxStreamsOfLease?: number;
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
  const { maxStreams = 1000, maxStreamsOfLease = 250, log } = options;
  const open = new Set<Duplex>();
  const ofLeases = new Map<Hex32, number>();

  /** Throws a Refusal when the lease has as many as it may have. */
  function count(leaseId: Hex32, socket: Duplex): void {
    const before = ofLeases.get(leaseId) ?? 0;
    if (before >= maxStreamsOfLease)
      throw new Refusal(429, `${maxStreamsOfLease} streams of this lease are open: close some`);
    ofLeases.set(leaseId, before + 1);
    socket.once('close', () => {
      const left = (ofLeases.get(leaseId) ?? 1) - 1;
      if (left > 0) ofLeases.set(leaseId, left);
      else ofLeases.delete(leaseId);
    });
  }

  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const fail = (error: unknown) => {
      const { problem, ours } = problemOfError(error);
      if (ours)
        log.error({ error: error instanceof Error ? error.message : String(error) }, 'a stream could not be opened');
      refuse(socket, problem);
    };
    if (options.tunnels?.take(request, socket, head, fail)) return;
    if (open.size >= maxStreams) {
      refuse(socket, problemOf(503, 'too many streams are open: try again'));
      return;
    }
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    carry(request, socket, head, options, count).catch(fail);
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

async function carry(
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  options: StreamOptions,
  count: (leaseId: Hex32, socket: Duplex) => void,
): Promise<void> {
  const { service, tokens, upstream } = options;
  const url = request.url ?? '';
  const match = /^\/v1\/leases\/([^/?]+)\/kube\/([^?]*)(\?|$)/.exec(url);
  if (!match) throw new Refusal(404, 'there is no such path here');
  const leaseId = leaseIdOf(match[1]);
  tokens.check(leaseId, request.headers.authorization);
  count(leaseId, socket);
  const target = targetOf(match[2] ?? '');
  const method = request.method ?? 'GET';
  if (target.stream === undefined || target.stream === 'log') throw new Refusal(400, 'this path takes no upgrade');
  if (!target.methods.includes(method)) throw new Refusal(405, `this path takes ${target.methods.join(', ')}`);
  const query = queryOf(target, method, url);

  const gone = new AbortController();
  const onClose = () => gone.abort(new Error('the caller went away'));
  socket.once('close', onClose);
  const record = await service.tenant(leaseId, gone.signal);
  const headers: Record<string, string | string[]> = {};
  for (const name of carriedRequestHeaders) {
    // Callers list the protocols that they speak in several headers of one name.
    const value = request.headersDistinct[name];
    if (value !== undefined) headers[name] = value.length === 1 ? value[0]! : value;
  }
  const path = withQuery(upstreamPath(tenantNamespace(record.leaseId), target), query);
  const attempt = async () =>
    upstream.upgrade(
      { method, path, headers, timeoutSeconds: handshakeSeconds },
      { as: await service.token(leaseId, gone.signal) },
      gone.signal,
    );
  let answer = await attempt();
  if (answer.socket === undefined && answer.response.statusCode === 401) {
    // The tenant was made anew, or the API server's keys changed: once more, with a token of now.
    answer.response.resume();
    service.forgetToken(leaseId);
    answer = await attempt();
  }
  if (answer.socket === undefined) {
    refuse(socket, await problemOfAnswer(answer.response, target, 'GET'));
    return;
  }
  // From here on the two sockets look after each other: what a caller said before it left is still delivered.
  socket.off('close', onClose);
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
  join(socket, answer.socket, head, answer.head);
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
    // Not when the caller closes its half, which it may never do: it would count as a stream for ever.
    () => socket.destroy(),
  );
}
