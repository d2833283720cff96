/**
 * From the pods of one lease to the Services of this cluster that it names: tells the gateway their names and ports, keeps the
 * tunnel over which it asks for connections, and makes those that the lease allows.
 *
 *   named → told to the gateway, which gives each an address → known to pods by name
 *                └─ the tunnel: opened after each change, and again whenever it breaks
 *
 * Invariant: what a stream asks for is checked against the lease and the Service as they are now. Nothing that the gateway
 * says, or was told earlier, opens anything.
 */
import http2, { type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import {
  maxTunnelStreams,
  reverseProtocol,
  type ServicesAnswer,
  type ServicesRequest,
  servicesAnswer,
} from '../../api/gateway.ts';
import { apiVersion } from '../../api/labels.ts';
import type { NamedService } from '../../api/lease.ts';
import {
  type HostAlias,
  hostAliasesFor,
  type NamedServices,
  namedServices,
  parseAuthority,
  type ServiceKey,
  servicesRequest,
} from '../../core/node/named-services.ts';
import type { Service } from '../../core/node/service.ts';
import { boundedMap } from '../../engine/bounded-map.ts';
import { backoffMs, type Clock } from '../../engine/clock.ts';
import { sameJson } from '../../engine/equal.ts';
import { UnknownOutcomeError } from '../../engine/errors.ts';
import { readBody } from '../../engine/http.ts';
import type { EventRecorder, Informer, KubeObject, Log } from '../../engine/types.ts';
import { join } from '../../wire/halves.ts';
import { pause } from '../../wire/timing.ts';
import { end, keep, sessionOptions } from '../../wire/tunnel.ts';
import type { RemoteLease } from '../remote.ts';
import type { Endpoints } from './endpoints.ts';
import { answers, openTunnel, refusalOf, TunnelRefusal } from './session.ts';

export interface ReachOptions {
  readonly lease: RemoteLease;
  readonly owner: { readonly name: string; readonly namespace: string; readonly uid: string };
  readonly wanted: () => readonly NamedService[];
  readonly services: Informer<Service & KubeObject>;
  readonly endpoints: Endpoints;
  readonly clusterDomain: string;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Log;
  /** Pods that waited for the names need wait no longer. */
  readonly onKnown: () => void;
}

export interface Reach {
  /** What a new pod's hosts file says; undefined while the provider has not yet said where its Services are. */
  aliasesFor(podNamespace: string): readonly HostAlias[] | undefined;
  /** The lease names other Services, or one of them has changed. */
  changed(): void;
  /** The way to the gateway has changed: a tunnel that nobody answers is replaced. */
  check(): void;
  /** Whether a change of this Service matters here. */
  names(key: ServiceKey): boolean;
  /** Until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
}

const backoff = { baseSeconds: 0.5, maxSeconds: 15 };
/** A provider that carries no such connections may do so later. */
const refusedSeconds = 300;
/** It may be said twice, and the connection that was kept for it may be dead. */
const answerSeconds = 8;
const maxAnswerBytes = 64 * 1024;
const leastTunnelMs = 1000;
/** A provider that asks for what it may not have does not fill the log with it. */
const quietMs = 60_000;

interface Tunnel {
  readonly session: ServerHttp2Session;
  readonly closed: Promise<void>;
}

export function createReach(options: ReachOptions): Reach {
  const { lease, owner, services, endpoints, clock, log } = options;
  const told = boundedMap<string, true>(256);
  const held = new Map<string, () => void>();
  /** What the gateway knows, and the addresses that it gave. */
  let known: { readonly request: ServicesRequest; readonly answer: ServicesAnswer['services'] } | undefined;
  let refused = false;
  let tunnel: Tunnel | undefined;
  let streams = 0;
  let wake: () => void = () => undefined;
  let quietUntilMs = Number.NEGATIVE_INFINITY;

  const resolve = (): NamedServices => namedServices(options.wanted(), owner.namespace, (key) => services.get(key));

  function tell(reason: string, message: string): void {
    const key = `${reason}/${message}`;
    if (told.get(key)) return;
    told.set(key, true);
    const about = { apiVersion, kind: 'GpuLease', metadata: { ...owner } };
    options.events.event(about, 'Warning', reason, message);
  }

  function hold(keys: readonly ServiceKey[]): void {
    const wanted = new Set(keys.map(({ namespace, name }) => `${namespace}/${name}`));
    for (const [text, release] of held) {
      if (wanted.has(text)) continue;
      release();
      held.delete(text);
    }
    for (const key of keys) {
      const text = `${key.namespace}/${key.name}`;
      if (!held.has(text)) held.set(text, endpoints.hold(key));
    }
  }

  async function put(request: ServicesRequest, signal: AbortSignal): Promise<ServicesAnswer['services']> {
    const response = await lease.raw(
      {
        method: 'PUT',
        path: 'services',
        headers: { Accept: 'application/json', 'Content-Type': 'application/json' },
        body: JSON.stringify(request),
        timeoutSeconds: answerSeconds,
      },
      signal,
    );
    if (response.statusCode !== 200) throw await refusalOf(response, 'PUT services');
    const body = await readBody(response, 'PUT services', { maxBytes: maxAnswerBytes, timeoutSeconds: answerSeconds });
    const parsed = servicesAnswer.safeParse(json(body));
    if (!parsed.success)
      throw new UnknownOutcomeError('PUT services: the gateway answered what the protocol does not know');
    // Those that were asked for, and each once: pods are told nothing else.
    return request.services.map(({ namespace, name }) => {
      const answered = parsed.data.services.find((one) => one.namespace === namespace && one.name === name);
      if (!answered) throw new UnknownOutcomeError(`PUT services: the gateway gave ${namespace}/${name} no address`);
      return answered;
    });
  }

  async function openReverse(signal: AbortSignal): Promise<Tunnel> {
    const socket = await openTunnel(lease, 'reverse', reverseProtocol, signal);
    const session = http2.performServerHandshake(socket, sessionOptions as http2.ServerSessionOptions);
    keep(session, socket, clock);
    session.on('stream', (stream, headers) => void serve(stream, headers));
    const closed = new Promise<void>((done) => session.once('close', done));
    return { session, closed };
  }

  async function serve(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): Promise<void> {
    stream.on('error', () => undefined);
    if (streams >= maxTunnelStreams) return answer(stream, 429);
    streams++;
    const gone = new AbortController();
    stream.once('close', () => {
      streams--;
      gone.abort(new Error('the caller went away'));
    });
    const asked = headers[':method'] === 'CONNECT' ? parseAuthority(headers[':authority']) : undefined;
    const named =
      asked && resolve().named.find(({ key }) => key.namespace === asked.namespace && key.name === asked.name);
    const port = named?.service && named.ports.find((one) => one.port === asked?.port);
    if (!named || !port) {
      if (clock.monotonicMs() >= quietUntilMs) {
        quietUntilMs = clock.monotonicMs() + quietMs;
        log.warn(
          { lease: `${owner.namespace}/${owner.name}`, asked: String(headers[':authority']).slice(0, 140) },
          'the provider asked for a Service that the lease does not name: refused',
        );
      }
      return answer(stream, 403);
    }
    try {
      const socket = await endpoints.connect(named.key, port, gone.signal);
      if (stream.destroyed) return void socket.destroy();
      stream.respond({ ':status': 200 });
      join(stream, socket);
    } catch (error) {
      if (!gone.signal.aborted)
        log.debug(
          { service: `${named.key.namespace}/${named.key.name}`, error: String(error) },
          'a Service did not take a connection',
        );
      answer(stream, 502);
    }
  }

  /** Until something changes. */
  const change = (signal: AbortSignal): Promise<void> =>
    new Promise((done) => {
      const end = () => {
        signal.removeEventListener('abort', end);
        done();
      };
      wake = end;
      signal.addEventListener('abort', end, { once: true });
    });

  /** Brings the gateway up to what is wanted. Returns once nothing is left to do before the next change. */
  async function settle(signal: AbortSignal): Promise<void> {
    const { named, notes } = resolve();
    for (const { reason, message } of notes) tell(reason, message);
    hold(named.filter(({ service }) => service !== undefined).map(({ key }) => key));
    const request = servicesRequest(named);
    if (request.services.length === 0 && !known) return;
    const changed = !known || !sameJson(known.request, request);
    if (!changed && tunnel) return;
    // Also when only the tunnel is missing: the Services may have been taken away meanwhile, and gave another address since.
    if (!changed) await calm(signal);
    const answer = await put(request, signal);
    known = request.services.length > 0 ? { request, answer } : undefined;
    if (changed) options.onKnown();
    // The new one first: connections of the old one end by themselves.
    const earlier = tunnel;
    tunnel = undefined;
    try {
      if (known) use(await openReverse(signal));
    } finally {
      earlier?.session.close();
    }
  }

  let openedAtMs = Number.NEGATIVE_INFINITY;
  /** A tunnel that is closed as soon as it is open must not be asked for in a storm. */
  async function calm(signal: AbortSignal): Promise<void> {
    const left = openedAtMs + leastTunnelMs - clock.monotonicMs();
    if (left > 0) await pause(clock, left, signal);
    signal.throwIfAborted();
  }

  function use(fresh: Tunnel): void {
    tunnel = fresh;
    openedAtMs = clock.monotonicMs();
    void fresh.closed.then(() => {
      if (tunnel !== fresh) return;
      tunnel = undefined;
      wake();
    });
  }

  return {
    aliasesFor(podNamespace) {
      if (options.wanted().length === 0 || refused) return [];
      if (!services.synced) return undefined;
      const { named } = resolve();
      if (named.length === 0) return [];
      const answered = named.flatMap(
        ({ key }) =>
          known?.answer.find(({ namespace, name }) => key.namespace === namespace && key.name === name) ?? [],
      );
      // One that was named a moment ago is waited for, too: the pod would never learn its name.
      return answered.length < named.length ? undefined : hostAliasesFor(podNamespace, answered, options.clusterDomain);
    },

    changed: () => wake(),

    check() {
      const checked = tunnel;
      if (!checked) return;
      void answers(checked.session, clock).then((answered) => {
        if (answered || tunnel !== checked) return;
        // What is open in it may still survive: it ends with the session's own patience.
        tunnel = undefined;
        wake();
      });
    },

    names: ({ namespace, name }) =>
      options.wanted().some((one) => one.name === name && (one.namespace ?? owner.namespace) === namespace),

    async run(signal) {
      let failures = 0;
      try {
        await services.waitForSync(signal);
        while (!signal.aborted) {
          // Listened for before anything is looked at: a change in between must not be missed.
          const next = change(signal);
          let waitMs: number | undefined;
          try {
            await settle(signal);
            failures = 0;
            if (refused) options.onKnown();
            refused = false;
          } catch (error) {
            if (signal.aborted) return;
            failures++;
            waitMs = backoffMs(failures, backoff);
            if (error instanceof TunnelRefusal && error.isFinal) {
              if (!refused) {
                refused = true;
                options.onKnown();
              }
              tell(
                'ServicesNotOffered',
                `Pods reach none of spec.services: ${error.message}. They run without; to have the Services, lease from another provider.`,
              );
              waitMs = refusedSeconds * 1000;
            } else
              log.debug(
                { error, lease: `${owner.namespace}/${owner.name}` },
                'Services are not told to the gateway yet',
              );
          }
          if (waitMs === undefined) await next;
          else {
            const over = new AbortController();
            await Promise.race([next, pause(clock, waitMs, AbortSignal.any([signal, over.signal]))]);
            over.abort();
            wake();
          }
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      } finally {
        if (tunnel) end(tunnel.session);
        hold([]);
      }
    },
  };
}

function answer(stream: ServerHttp2Stream, status: number): void {
  if (stream.destroyed || stream.headersSent) return;
  stream.respond({ ':status': status }, { endStream: true });
  stream.resume();
}

function json(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    return undefined;
  }
}
