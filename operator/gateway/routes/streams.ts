/**
 * exec, attach and port-forward: the caller's upgrade is repeated towards the provider's API server, and then bytes go both
 * ways. Nobody here reads them, so exit codes, terminal sizes and half-closed channels survive.
 */
import type { IncomingMessage, Server } from 'node:http';
import type { Duplex } from 'node:stream';
import { finished } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Problem } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { upstreamPath } from '../../core/allocation/kube-path.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { type Farewell, farewellFor } from '../../wire/farewell.ts';
import { leaveSoon } from '../../wire/leave-soon.ts';
import { switchingHead, upgradeHeaders } from '../../wire/upgrade-headers.ts';
import { join } from '../../wire/upgraded.ts';
import type { Audit } from '../audit.ts';
import type { Callers } from '../callers.ts';
import { problemOf, problemOfError, problemType } from '../problem.ts';
import type { GatewayLog, GatewayService, Upstream } from '../service.ts';
import { problemOfAnswer, queryOf, targetOf, withQuery } from '../tenant-calls.ts';
import type { Tunnels } from '../tunnels/tunnels.ts';
import { leaseIdOf } from './leases.ts';

export interface StreamOptions {
  readonly service: GatewayService;
  readonly callers: Callers;
  readonly upstream: Upstream;
  readonly log: GatewayLog;
  readonly audit: Audit;
  /** Upgrades that are no stream of a pod. */
  readonly tunnels?: Tunnels;
  /** Streams at a time, over all leases. */
  readonly maxStreams?: number;
  /** Of these, for one lease: no tenant takes them all. */
  readonly maxStreamsOfLease?: number;
}

const handshakeSeconds = 30;
/** For the last word to arrive. */
const farewellMs = 1000;
const leaving =
  'the provider’s gateway restarts and has ended this session: whether the command goes on is not known; run it again in a moment';

export interface Streams {
  /** Tells those that can be told why, and ends them all. None is opened any more. */
  end(): Promise<void>;
  readonly open: number;
}

export function serveStreams(server: Server, options: StreamOptions): Streams {
  const { maxStreams = 1000, maxStreamsOfLease = 250, log } = options;
  /** With the place for a last word, where its protocol has one. */
  const open = new Map<Duplex, Farewell | undefined>();
  let ended = false;
  const ofLeases = new Map<Hex32, number>();

  /** Of those whose token was good: who is turned away takes the place of nobody. */
  let proven = 0;

  /** Throws a Refusal when the lease, or all of them, have as many as they may have. */
  function count(leaseId: Hex32, socket: Duplex): void {
    if (proven >= maxStreams) throw new Refusal(503, 'too many streams are open: try again', { retryAfterSeconds: 2 });
    const before = ofLeases.get(leaseId) ?? 0;
    if (before >= maxStreamsOfLease)
      throw new Refusal(429, `${maxStreamsOfLease} streams of this lease are open: close some`, {
        retryAfterSeconds: 5,
      });
    ofLeases.set(leaseId, before + 1);
    proven += 1;
    socket.once('close', () => {
      proven -= 1;
      const left = (ofLeases.get(leaseId) ?? 1) - 1;
      if (left > 0) ofLeases.set(leaseId, left);
      else ofLeases.delete(leaseId);
    });
  }

  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const fail = (error: unknown) => {
      const { problem, ours, retryAfterSeconds } = problemOfError(error);
      if (ours)
        log.error({ error: error instanceof Error ? error.message : String(error) }, 'a stream could not be opened');
      refuse(socket, problem, retryAfterSeconds);
    };
    if (options.tunnels?.take(request, socket, head, fail)) return;
    if (ended) return refuse(socket, problemOf(503, 'the gateway restarts: try again'), 2);
    open.set(socket, undefined);
    socket.once('close', () => open.delete(socket));
    carry(request, socket, head, options, count)
      .then((farewell) => {
        if (farewell && open.has(socket)) open.set(socket, farewell);
      })
      .catch(fail);
  });

  return {
    async end() {
      ended = true;
      const told = [...open].filter(([, farewell]) => farewell !== undefined);
      const heard = told.map(([socket]) => finished(socket).catch(() => undefined));
      for (const [, farewell] of told) farewell?.say(leaving);
      const late = new AbortController();
      await Promise.race([
        Promise.all(heard),
        sleep(farewellMs, undefined, { signal: late.signal }).catch(() => undefined),
      ]);
      late.abort();
      for (const socket of open.keys()) socket.destroy();
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
): Promise<Farewell | undefined> {
  const { service, callers, upstream } = options;
  const startedAt = performance.now();
  const url = request.url ?? '';
  const match = /^\/v1\/leases\/([^/?]+)\/kube\/([^?]*)(\?|$)/.exec(url);
  if (!match) throw new Refusal(404, 'there is no such path here');
  const leaseId = leaseIdOf(match[1]);
  callers.check(leaseId, request);
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
  const headers = upgradeHeaders(request);
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
    return undefined;
  }
  // From here on the two sockets look after each other: what a caller said before it left is still delivered.
  socket.off('close', onClose);
  if (socket.destroyed) {
    answer.socket.destroy();
    return undefined;
  }
  socket.write(switchingHead(answer.response));
  options.audit(request, 101, (performance.now() - startedAt) / 1000);
  const farewell = target.stream === 'portforward' ? undefined : farewellFor(answer.response.headers);
  join(socket, answer.socket, head, answer.head, { before: farewell });
  return farewell;
}

function refuse(socket: Duplex, problem: Problem, retryAfterSeconds?: number): void {
  if (socket.destroyed || !socket.writable) return;
  const body = JSON.stringify(problem);
  socket.end(
    [
      `HTTP/1.1 ${problem.status} ${problem.title}`,
      `content-type: ${problemType}`,
      `content-length: ${Buffer.byteLength(body)}`,
      ...(problem.status === 401 ? ['www-authenticate: Bearer'] : []),
      ...(retryAfterSeconds === undefined ? [] : [`retry-after: ${retryAfterSeconds}`]),
      'connection: close',
      '',
      body,
    ].join('\r\n'),
    () => leaveSoon(socket),
  );
}
