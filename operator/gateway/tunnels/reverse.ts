/**
 * From a tenant's pods to the consumer's Services: while the consumer keeps a tunnel open, this process listens for each
 * Service and port that its lease names, and each connection becomes a stream of that tunnel.
 *
 * Invariant: a listener is one tenant's. Whoever calls must have the address of a pod of that tenant; the network policy
 * lets only those through where it is enforced, and here it is looked at again, because not every network enforces it.
 *
 * Several replicas: the tunnel ends at one of them, whose address the tenant's endpoints get. When it comes back by another
 * one, that one writes its own.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { ClientHttp2Session, ClientHttp2Stream } from 'node:http2';
import { createServer, type Server, type Socket } from 'node:net';
import type { Hex32 } from '../../api/messages.ts';
import { keyOfTenantService } from '../../core/allocation/tenant-services.ts';
import { breakOff, join } from '../../wire/halves.ts';
import { end } from '../../wire/tunnel.ts';
import type { GatewayLog, GatewayService } from '../service.ts';
import type { Budget } from './budget.ts';

export interface ReverseOptions {
  readonly service: GatewayService;
  /** Of this process, as pods of tenants reach it. */
  readonly address: string;
  readonly ports: { readonly from: number; readonly to: number };
  readonly budget: Budget;
  readonly log: GatewayLog;
}

export interface Reverse {
  /**
   * Opens what the lease's Services need, or throws. Nobody is let through before a session is handed over; from then on
   * connections go through this one, and no longer through an earlier one. Handing over none gives it up.
   */
  open(leaseId: Hex32, signal?: AbortSignal): Promise<(session: ClientHttp2Session | undefined) => void>;
  end(): void;
}

interface Listener {
  readonly server: Server;
  readonly port: number;
}

interface Entry {
  readonly leaseId: Hex32;
  /** By name of the stream's authority. */
  readonly listeners: Map<string, Listener>;
  session?: ClientHttp2Session;
  /** Tunnels that are being opened. */
  opening: number;
  /** One change of the listeners after the other. */
  turn: Promise<void>;
}

/** A pod may connect before its address has been told about. */
const unknownCallerSeconds = 5;
const lookAgainMs = 100;
const answerSeconds = 15;
/** Who knocks again and again does not fill the log with it. */
const quietMs = 60_000;
/** Of all tenants together. */
const maxListeners = 10_000;

export function createReverse(options: ReverseOptions): Reverse {
  const { service, budget, log } = options;
  const entries = new Map<string, Entry>();
  const used = new Set<number>();
  const stopping = new AbortController();
  let quietUntilMs = 0;

  async function listen(entry: Entry, authority: string): Promise<Listener> {
    if (used.size >= maxListeners) throw new Error(`more than ${maxListeners} ports for tenants’ Services are open`);
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
      socket.on('error', () => socket.destroy());
      carry(entry, authority, socket).catch((error: unknown) => {
        log.debug({ leaseId: entry.leaseId, authority, error: String(error) }, 'a connection was not carried');
        breakOff(socket);
      });
    });
    const port = await listenWithin(server, options, `${entry.leaseId}/${authority}`, used);
    used.add(port);
    server.on('error', (error) => log.warn({ error: error.message }, 'a tunnel’s listener has a problem'));
    server.once('close', () => used.delete(port));
    return { server, port };
  }

  async function carry(entry: Entry, authority: string, socket: Socket): Promise<void> {
    const { leaseId } = entry;
    if (!budget.take(leaseId)) throw new Error('too many connections are open');
    socket.once('close', () => budget.give(leaseId));
    await mustBeTenant(leaseId, socket);
    const { session } = entry;
    if (socket.destroyed) return;
    if (!session || session.destroyed || session.closed) throw new Error('the tunnel is not there');
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false });
    stream.on('error', () => undefined);
    await answered(stream, socket);
    join(socket, stream);
    socket.resume();
  }

  async function mustBeTenant(leaseId: Hex32, socket: Socket): Promise<void> {
    const address = (socket.remoteAddress ?? '').replace(/^::ffff:/, '');
    const until = performance.now() + unknownCallerSeconds * 1000;
    while (!(await service.isTenantPod(leaseId, address, stopping.signal))) {
      if (socket.destroyed) return;
      if (performance.now() > until) {
        if (performance.now() >= quietUntilMs) {
          quietUntilMs = performance.now() + quietMs;
          log.warn({ leaseId, address }, 'somebody who is no pod of the tenant tried to use its tunnel: refused');
        }
        throw new Error('the caller is no pod of the tenant');
      }
      await new Promise((resolve) => setTimeout(resolve, lookAgainMs));
    }
  }

  function remove(entry: Entry): void {
    for (const { server } of entry.listeners.values()) server.close();
    entry.listeners.clear();
    if (entries.get(entry.leaseId) === entry) entries.delete(entry.leaseId);
  }

  /** Writes endpoints until it succeeds, or this tunnel is not the one any more. */
  async function point(entry: Entry, session: ClientHttp2Session, holder: string): Promise<void> {
    for (let waitMs = 500; entry.session === session && !session.destroyed; waitMs = Math.min(waitMs * 2, 10_000)) {
      const ports = new Map([...entry.listeners].map(([authority, { port }]) => [authority, port]));
      try {
        await service.pointServices(entry.leaseId, { address: options.address, ports, holder }, stopping.signal);
        return;
      } catch (error) {
        if (stopping.signal.aborted) return;
        log.warn(
          { leaseId: entry.leaseId, error: String(error) },
          'a tenant’s Services could not be pointed at its tunnel',
        );
      }
      await new Promise((resolve) => setTimeout(resolve, waitMs));
    }
  }

  async function unpoint(leaseId: Hex32, holder: string): Promise<void> {
    for (let turn = 0; turn < 5 && !stopping.signal.aborted; turn++) {
      try {
        await service.unpointServices(leaseId, holder, stopping.signal);
        return;
      } catch (error) {
        log.debug({ leaseId, error: String(error) }, 'a tenant’s Services still point at a tunnel that is gone');
      }
      await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** turn));
    }
  }

  async function adjust(entry: Entry, signal?: AbortSignal): Promise<void> {
    const services = await service.listServices(entry.leaseId, signal);
    const wanted = services.flatMap((one) => one.ports.map(({ port }) => keyOfTenantService(one, port)));
    for (const authority of wanted)
      if (!entry.listeners.has(authority)) entry.listeners.set(authority, await listen(entry, authority));
    for (const [authority, { server }] of entry.listeners) {
      if (wanted.includes(authority)) continue;
      // Connections that are open go on; no new ones.
      server.close();
      entry.listeners.delete(authority);
    }
  }

  function attach(entry: Entry, session: ClientHttp2Session): void {
    const earlier = entry.session;
    entry.session = session;
    // Its streams may end in their own time.
    if (earlier && !earlier.destroyed) earlier.close();
    const holder = randomBytes(8).toString('hex');
    session.once('close', () => {
      if (entry.session !== session) return;
      entry.session = undefined;
      if (entry.opening === 0) remove(entry);
      void unpoint(entry.leaseId, holder);
    });
    // Once the other side has spoken: before that, nobody knows that it is one.
    session.once('remoteSettings', () => void point(entry, session, holder));
  }

  return {
    async open(leaseId, signal) {
      const entry: Entry = entries.get(leaseId) ?? {
        leaseId,
        listeners: new Map(),
        opening: 0,
        turn: Promise.resolve(),
      };
      entries.set(leaseId, entry);
      entry.opening++;
      const done = () => {
        entry.opening--;
        if (entry.opening === 0 && !entry.session) remove(entry);
      };
      try {
        const mine = entry.turn.then(() => adjust(entry, signal));
        entry.turn = mine.catch(() => undefined);
        await mine;
      } catch (error) {
        done();
        throw error;
      }
      return (session) => {
        if (session && !session.destroyed && !stopping.signal.aborted) attach(entry, session);
        done();
      };
    },

    end() {
      stopping.abort(new Error('the gateway stops'));
      for (const entry of [...entries.values()]) {
        if (entry.session) end(entry.session);
        remove(entry);
      }
    },
  };
}

/** The consumer's yes, before a byte of the pod is sent: its status is the only thing that says that somebody is there. */
function answered(stream: ClientHttp2Stream, socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => fail(new Error('no answer in time')), answerSeconds * 1000);
    const fail = (error: Error) => {
      settle();
      stream.destroy(error);
      reject(error);
    };
    const onGone = () => fail(new Error('the caller went away'));
    const onClose = () => fail(new Error('the stream was closed'));
    const settle = () => {
      clearTimeout(timer);
      socket.off('close', onGone);
      stream.off('close', onClose);
    };
    socket.once('close', onGone);
    stream.once('close', onClose);
    stream.once('response', (headers) => {
      if (headers[':status'] !== 200) return fail(new Error(`the consumer answered ${headers[':status']}`));
      settle();
      resolve();
    });
  });
}

const attempts = 64;

/** The same port for the same thing, where it is free. */
async function listenWithin(
  server: Server,
  { address, ports }: { address: string; ports: { from: number; to: number } },
  what: string,
  used: ReadonlySet<number>,
): Promise<number> {
  const size = ports.to - ports.from + 1;
  const first = createHash('sha256').update(what).digest().readUInt32BE(0) % size;
  let tried = 0;
  for (let step = 0; step < size && tried < attempts; step++) {
    const port = ports.from + ((first + step) % size);
    if (used.has(port)) continue;
    tried++;
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(port, address, () => {
          server.off('error', reject);
          resolve();
        });
      });
      return port;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    }
  }
  throw new Error(`no port from ${ports.from} to ${ports.to} is free for a tunnel`);
}
