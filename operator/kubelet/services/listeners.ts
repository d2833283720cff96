/**
 * Ports of this process that stand for ports of pods. Whoever may reach the operator's address may connect to them, as whoever
 * may reach a pod's address may connect to the pod.
 */
import { createHash } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Clock } from '../../engine/clock.ts';
import type { Log } from '../../engine/types.ts';
import { breakOff, join } from '../../wire/halves.ts';

export interface ListenersOptions {
  readonly host: string;
  readonly ports: { readonly from: number; readonly to: number };
  readonly clock: Clock;
  readonly log: Log;
}

export type Connect = (signal: AbortSignal) => Promise<Duplex>;

export interface Listeners {
  /** The port that stands for this one of the pod; `before`, where it is free. Opened already: the same as then. */
  open(pod: string, target: number, before: number | undefined, connect: Connect): Promise<number>;
  /** Takes no more connections for ports of the pod other than these; those that are open go on. */
  keep(pod: string, targets: ReadonlySet<number>): void;
  /** The pod is gone: so is whoever was connected to it. */
  drop(pod: string): void;
  dropAll(): void;
  /** Ports that are listened on, and connections that are open. */
  readonly size: number;
  readonly connections: number;
}

interface Listener {
  readonly server: Server;
  readonly port: number;
}

/** Open connections: of one pod, and of all. Each is a file descriptor, and a stream of its lease's tunnel. */
const maxOfPod = 1024;
const maxOfAll = 8192;
const maxListeners = 10_000;
const attempts = 64;
/** What would be said with each connection is said once in so long. */
const quietMs = 60_000;

export function createListeners({ host, ports, clock, log }: ListenersOptions): Listeners {
  /** By pod's UID, by its port. Opening ones as well, so that none is opened twice. */
  const listeners = new Map<string, Map<number, Promise<Listener>>>();
  const sockets = new Map<string, Set<Socket>>();
  const used = new Set<number>();
  let connections = 0;
  let quietUntilMs = Number.NEGATIVE_INFINITY;

  function accept(pod: string, socket: Socket, connect: Connect): void {
    const mine = sockets.get(pod) ?? new Set();
    socket.on('error', () => socket.destroy());
    if (mine.size >= maxOfPod || connections >= maxOfAll) {
      if (clock.monotonicMs() >= quietUntilMs) {
        quietUntilMs = clock.monotonicMs() + quietMs;
        log.warn({ pod, open: mine.size, all: connections }, 'too many connections to a pod: more are refused');
      }
      socket.resetAndDestroy();
      return;
    }
    sockets.set(pod, mine);
    mine.add(socket);
    connections++;
    const gone = new AbortController();
    socket.once('close', () => {
      connections--;
      mine.delete(socket);
      if (mine.size === 0 && sockets.get(pod) === mine) sockets.delete(pod);
      gone.abort(new Error('the caller went away'));
    });
    connect(gone.signal).then(
      (stream) => {
        if (socket.destroyed) return breakOff(stream);
        join(socket, stream);
        socket.resume();
      },
      (error: unknown) => {
        if (!gone.signal.aborted)
          log.debug({ pod, error: error instanceof Error ? error.message : String(error) }, 'no connection to a pod');
        breakOff(socket);
      },
    );
  }

  async function listen(pod: string, target: number, before: number | undefined, connect: Connect): Promise<Listener> {
    if (used.size >= maxListeners) throw new Error(`more than ${maxListeners} ports of pods are served`);
    for (const port of candidates(`${pod}/${target}`, before)) {
      if (used.has(port)) continue;
      const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
        accept(pod, socket, connect),
      );
      try {
        await new Promise<void>((resolve, reject) => {
          server.once('error', reject);
          server.listen(port, host, () => {
            server.off('error', reject);
            resolve();
          });
        });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') continue;
        throw error;
      }
      used.add(port);
      server.on('error', (error) => log.warn({ error: error.message }, 'a port of a pod has a problem'));
      return { server, port };
    }
    throw new Error(`no port from ${ports.from} to ${ports.to} is free (--service-ports)`);
  }

  /** First what it was, then always the same way round: a restart that finds no record still tends to the same port. */
  function* candidates(what: string, before: number | undefined): Generator<number> {
    const inRange = (port: number) => port >= ports.from && port <= ports.to;
    if (before !== undefined && inRange(before)) yield before;
    const size = ports.to - ports.from + 1;
    const first = createHash('sha256').update(what).digest().readUInt32BE(0) % size;
    for (let step = 0, tried = 0; step < size && tried < attempts; step++) {
      const port = ports.from + ((first + step) % size);
      if (!used.has(port)) tried++;
      yield port;
    }
  }

  const close = (listener: Promise<Listener>): void =>
    void listener.then(
      ({ server, port }) => {
        server.close();
        used.delete(port);
      },
      () => undefined,
    );

  function drop(pod: string): void {
    for (const listener of listeners.get(pod)?.values() ?? []) close(listener);
    listeners.delete(pod);
    for (const socket of sockets.get(pod) ?? []) breakOff(socket);
  }

  return {
    async open(pod, target, before, connect) {
      const mine = listeners.get(pod) ?? new Map<number, Promise<Listener>>();
      listeners.set(pod, mine);
      const known = mine.get(target);
      if (known) return (await known).port;
      const opening = listen(pod, target, before, connect);
      mine.set(target, opening);
      try {
        return (await opening).port;
      } catch (error) {
        if (mine.get(target) === opening) mine.delete(target);
        if (mine.size === 0 && listeners.get(pod) === mine) listeners.delete(pod);
        throw error;
      }
    },
    keep(pod, targets) {
      const mine = listeners.get(pod);
      for (const [target, listener] of mine ?? []) {
        if (targets.has(target)) continue;
        close(listener);
        mine?.delete(target);
      }
      if (mine?.size === 0) listeners.delete(pod);
    },
    drop,
    dropAll() {
      for (const pod of new Set([...listeners.keys(), ...sockets.keys()])) drop(pod);
    },
    get size() {
      return used.size;
    },
    get connections() {
      return connections;
    },
  };
}
