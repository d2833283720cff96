/**
 * Watches, many on one connection. A consumer watches pods, events and allocation of each of its leases for as long as it has
 * them; over HTTP/1.1 that takes three connections a lease, and a TLS session at both ends of each. Over HTTP/2 all share one.
 *
 * Nothing else is answered over HTTP/2, and nobody gets it who does not ask for it alone: whoever speaks HTTP/1.1 as well is
 * given that. So there is no body here to be slow with, and no request that could wait but one whose token was good.
 */
import http2, { type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { Server } from 'node:https';
import type { Readable } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import type { Problem } from '../../api/gateway.ts';
import { type KubeTarget, upstreamPath } from '../../core/allocation/kube-path.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { systemTiming, type Timing } from '../../wire/timing.ts';
import { keep } from '../../wire/tunnel.ts';
import type { Callers } from '../callers.ts';
import { problemOf, problemOfError, problemType } from '../problem.ts';
import type { GatewayLog, GatewayService, Upstream } from '../service.ts';
import { problemOfAnswer, queryOf, targetOf, withQuery } from '../tenant-calls.ts';
import { type Budget, createBudget } from '../tunnels/budget.ts';
import { eventStream, type Followed, wantsEvents } from './follow.ts';
import { leaseIdOf } from './leases.ts';

export interface WatchOptions {
  readonly service: GatewayService;
  readonly callers: Callers;
  readonly upstream: Upstream;
  readonly followed: Pick<Followed, 'open'>;
  readonly log: GatewayLog;
  /** Watches at a time, over all leases. */
  readonly maxWatches?: number;
  /** Of these, for one lease: no tenant takes them all. Each holds a watch at the API server. */
  readonly maxWatchesOfLease?: number;
  readonly timing?: Timing;
}

/** In this order: of what a caller offers, the first is taken. */
export const alpnProtocols = ['http/1.1', 'h2'];

/** A connection on which nothing was asked for so long is dropped, as over HTTP/1.1. */
const idleMs = 75_000;
const maxHeaderListBytes = 16 * 1024;
/**
 * Watches that one connection may give up, at once and in a second. By default a thousand and 33, against callers who ask for
 * much and hear nothing; but whoever has a thousand leases here gives up more when this side stood still for some seconds, and
 * would be thrown out each time that it tries again.
 */
const resets = { burst: 20_000, rate: 200 };

/** As of a tunnel; and as nothing is sent here but headers, HTTP/2's own window is enough. */
const callerPace = { pingSeconds: 10, silentSeconds: 20, windowBytes: 65_535 };

export function serveWatches(server: Server, options: WatchOptions): { end(): void; readonly open: number } {
  const { maxWatches = 20_000, maxWatchesOfLease = 250, timing = systemTiming, log } = options;
  const open = new Set<ServerHttp2Stream>();
  const budget = createBudget(maxWatchesOfLease, maxWatches);
  const sessions = new Set<ServerHttp2Session>();

  const http1 = server.listeners('secureConnection') as ((socket: TLSSocket) => void)[];
  server.removeAllListeners('secureConnection');
  server.on('secureConnection', (socket: TLSSocket) => {
    if (socket.alpnProtocol === 'h2') return serve(socket);
    for (const listener of http1) listener.call(server, socket);
  });

  function serve(socket: TLSSocket): void {
    socket.on('error', () => socket.destroy());
    const session = http2.performServerHandshake(socket, {
      settings: { maxConcurrentStreams: maxWatches, maxHeaderListSize: maxHeaderListBytes },
      // Of all its watches together, in mebibytes: what waits to be sent to a caller that reads slowly is not counted here.
      maxSessionMemory: 64,
      maxSessionInvalidFrames: 10,
      maxSessionRejectedStreams: 10,
      streamResetBurst: resets.burst,
      streamResetRate: resets.rate,
    });
    // A caller that is gone without a word would keep what it has of its leases' budgets.
    keep(session, socket, timing, callerPace);
    let watches = 0;
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    session.on('error', (error) => {
      log.debug({ watches, error: error.message }, 'a connection of watches was broken off');
      session.destroy();
    });
    session.setTimeout(idleMs, () => {
      if (watches === 0) session.destroy();
    });
    session.on('stream', (stream, headers) => {
      // A caller that goes away resets its streams, which is no error of anybody's.
      stream.on('error', () => stream.destroy());
      if (open.size >= maxWatches) return refuse(stream, problemOf(503, 'too many watches are open: try again'), 5);
      watches += 1;
      open.add(stream);
      stream.once('close', () => {
        watches -= 1;
        open.delete(stream);
      });
      watch(stream, headers, options, budget).catch((error: unknown) => {
        const { problem, ours, retryAfterSeconds } = problemOfError(error);
        if (ours)
          log.error({ error: error instanceof Error ? error.message : String(error) }, 'a watch could not be opened');
        refuse(stream, problem, retryAfterSeconds);
      });
    });
  }

  return {
    end() {
      for (const session of sessions) session.destroy();
    },
    get open() {
      return open.size;
    },
  };
}

async function watch(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  options: WatchOptions,
  budget: Budget,
): Promise<void> {
  const { service, callers, upstream } = options;
  const url = String(headers[':path'] ?? '');
  const allocation = /^\/v1\/leases\/([^/?]+)$/.exec(url);
  if (allocation && headers[':method'] === 'GET' && wantsEvents(headers.accept)) {
    const leaseId = leaseIdOf(allocation[1]);
    callers.check(leaseId, { headers, socket: stream.session?.socket });
    const events = await options.followed.open(leaseId);
    if (stream.destroyed) return void events.destroy();
    stream.respond(answerHead(eventStream));
    return pipe(events, stream);
  }
  const match = /^\/v1\/leases\/([^/?]+)\/kube\/([^?]*)\?/.exec(url);
  const target = match && targetOf(match[2] ?? '');
  if (!match || !target || headers[':method'] !== 'GET' || !isWatch(target, url))
    throw new Refusal(400, 'over HTTP/2 there are watches and nothing else: ask for this over HTTP/1.1');
  const leaseId = leaseIdOf(match[1]);
  callers.check(leaseId, { headers, socket: stream.session?.socket });
  const query = queryOf(target, 'GET', url);
  if (!budget.take(leaseId))
    throw new Refusal(429, 'too many watches of this lease are open: close some', { retryAfterSeconds: 5 });
  stream.once('close', () => budget.give(leaseId));

  const gone = new AbortController();
  stream.once('close', () => gone.abort(new Error('the caller went away')));
  const record = await service.tenant(leaseId, gone.signal);
  const request = {
    method: 'GET',
    path: withQuery(upstreamPath(tenantNamespace(record.leaseId), target), query),
    headers: { accept: 'application/json' },
    timeoutSeconds: 0,
    over: 'watches' as const,
  };
  let response = await upstream.raw(request, { as: await service.token(leaseId, gone.signal) }, gone.signal);
  if (response.statusCode === 401) {
    response.resume();
    service.forgetToken(leaseId);
    response = await upstream.raw(request, { as: await service.token(leaseId, gone.signal) }, gone.signal);
  }
  if (response.statusCode !== 200) return refuse(stream, await problemOfAnswer(response, target, 'GET'));
  if (stream.destroyed) return void response.destroy();
  stream.respond(answerHead(response.headers['content-type'] ?? 'application/json'));
  pipe(response, stream);
}

const answerHead = (type: string) => ({
  ':status': 200,
  'content-type': type,
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
});

/**
 * A watch that breaks off breaks off at the caller, too: it must not look as if it had ended. Closing it with a code would not do:
 * that ends it in order first.
 */
function pipe(from: Readable, stream: ServerHttp2Stream): void {
  const broken = () => stream.destroy(new Error('the watch broke off'));
  from.once('error', broken);
  from.once('close', () => {
    if (!from.readableEnded) broken();
  });
  stream.once('close', () => from.destroy());
  from.pipe(stream);
}

const isWatch = (target: KubeTarget, url: string): boolean =>
  target.kind !== 'node' && target.name === undefined && /[?&]watch=(true|1)(&|$)/.test(url);

function refuse(stream: ServerHttp2Stream, problem: Problem, retryAfterSeconds?: number): void {
  if (stream.destroyed || stream.headersSent) return void stream.destroy();
  stream.respond({
    ':status': problem.status,
    'content-type': problemType,
    ...(problem.status === 401 ? { 'www-authenticate': 'Bearer' } : {}),
    ...(retryAfterSeconds === undefined ? {} : { 'retry-after': String(retryAfterSeconds) }),
  });
  stream.end(JSON.stringify(problem));
}
