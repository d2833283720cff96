/**
 * The two tunnels of a lease, each an upgraded connection that speaks HTTP/2 inside: `forward`, from the consumer to the
 * tenant's pods, and `reverse`, from them to the consumer's Services. HTTP/2 brings what TCP through a proxy lacks: many
 * connections without a handshake each, flow control for each, and ends that can be told from breaks.
 */
import type { IncomingMessage } from 'node:http';
import http2 from 'node:http2';
import type { Duplex } from 'node:stream';
import { forwardProtocol, maxTunnelStreams, reverseProtocol } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { systemTiming } from '../../wire/timing.ts';
import { keep, sessionOptions } from '../../wire/tunnel.ts';
import type { Callers } from '../callers.ts';
import { leaseIdOf } from '../routes/leases.ts';
import type { GatewayLog, GatewayService, Upstream } from '../service.ts';
import { createBudget } from './budget.ts';
import { serveForward } from './forward.ts';
import { createReverse } from './reverse.ts';

export interface TunnelOptions {
  readonly service: GatewayService;
  readonly callers: Callers;
  readonly upstream: Upstream;
  readonly log: GatewayLog;
  /** Absent: tenants reach no Services of their consumers. */
  readonly reverse?: {
    /** Of this process, as pods of tenants reach it. */
    readonly address: string;
    readonly ports: { readonly from: number; readonly to: number };
  };
}

export interface Tunnels {
  /** True when the request is for a tunnel: then the socket is taken care of, and `refuse` is called with what went wrong. */
  take(request: IncomingMessage, socket: Duplex, head: Buffer, refuse: (error: unknown) => void): boolean;
  end(): void;
}

/** In each direction, over all leases. */
const maxConnections = 8192;
/** One, and those that are being replaced. */
const maxTunnelsOfLease = 4;
const maxTunnels = 4096;
const sweepMs = 10_000;

export function createTunnels(options: TunnelOptions): Tunnels {
  const { service, callers, upstream, log } = options;
  /** By socket: whose tunnel it is, oldest first. */
  const open = new Map<Duplex, Hex32>();
  const forwardBudget = createBudget(maxTunnelStreams, maxConnections);
  const reverse =
    options.reverse &&
    createReverse({ service, log, ...options.reverse, budget: createBudget(maxTunnelStreams, maxConnections) });

  async function start(match: RegExpExecArray, request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const leaseId = leaseIdOf(match[1]);
    callers.check(leaseId, request);
    const forward = match[2] === 'forward';
    const protocol = forward ? forwardProtocol : reverseProtocol;
    if (request.method !== 'POST') throw new Refusal(405, 'this path takes POST');
    if (request.headers.upgrade?.toLowerCase() !== protocol)
      throw new Refusal(400, `this path takes an upgrade to ${protocol}`);
    if (open.size >= maxTunnels)
      throw new Refusal(503, 'too many tunnels are open: try again', { retryAfterSeconds: 5 });
    makeRoom(leaseId);
    open.set(socket, leaseId);
    socket.once('close', () => open.delete(socket));
    const gone = new AbortController();
    socket.once('close', () => gone.abort(new Error('the caller went away')));
    await service.tenant(leaseId, gone.signal);
    if (forward) {
      if (!(await switched(socket, protocol, head))) return;
      const session = http2.performServerHandshake(socket, sessionOptions as http2.ServerSessionOptions);
      keep(session, socket, systemTiming);
      serveForward(session, leaseId, { service, upstream, budget: forwardBudget, log });
      return;
    }
    if (!reverse)
      throw new Refusal('ServicesNotOffered', 'this provider carries no connections to Services of its consumers');
    const handOver = await reverse.open(leaseId, gone.signal);
    if (!(await switched(socket, protocol, head))) return handOver(undefined);
    const session = http2.connect('http://consumer', { ...sessionOptions, createConnection: () => socket });
    keep(session, socket, systemTiming);
    handOver(session);
  }

  /** A consumer that reconnects must not wait until the remains of its earlier tunnels are found dead. */
  function makeRoom(leaseId: Hex32): void {
    const own = [...open].filter(([, of]) => of === leaseId);
    for (const [socket] of own.slice(0, Math.max(0, own.length + 1 - 2 * maxTunnelsOfLease))) socket.destroy();
  }

  /** A lease that has ended takes its tunnels along; whatever else the record says, or that it cannot be read, ends nothing. */
  async function sweep(): Promise<void> {
    for (const leaseId of new Set(open.values())) {
      try {
        await service.tenant(leaseId);
      } catch (error) {
        if (!(error instanceof Refusal) || (error.reason !== 'LeaseEnded' && error.reason !== 'LeaseNotFound'))
          continue;
        for (const [socket, of] of open) if (of === leaseId) socket.destroy();
      }
    }
  }
  const timer = setInterval(() => void sweep(), sweepMs);
  timer.unref();

  return {
    take(request, socket, head, refuse) {
      const match = /^\/v1\/leases\/([^/?]+)\/(forward|reverse)$/.exec(request.url ?? '');
      if (!match) return false;
      start(match, request, socket, head).catch(refuse);
      return true;
    },
    end() {
      clearInterval(timer);
      reverse?.end();
      for (const socket of open.keys()) socket.destroy();
    },
  };
}

/**
 * Answers with the 101. What came after the request is put back: it belongs to the session. A session takes over the socket
 * below its stream, so nothing may be on its way out by then: Node ends the whole process when something is.
 */
function switched(socket: Duplex, protocol: string, head: Buffer): Promise<boolean> {
  const idle = socket as Partial<{ setTimeout(ms: number): void; setKeepAlive(on: boolean, ms: number): void }>;
  idle.setTimeout?.(0);
  idle.setKeepAlive?.(true, 15_000);
  return new Promise((resolve) => {
    if (socket.destroyed) return resolve(false);
    socket.once('close', () => resolve(false));
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nupgrade: ${protocol}\r\nconnection: Upgrade\r\n\r\n`, () => {
      if (head.length > 0 && !socket.destroyed) socket.unshift(head);
      resolve(!socket.destroyed);
    });
  });
}
