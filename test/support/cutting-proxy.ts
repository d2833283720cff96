/**
 * A wire between two programs that a test can cut. It passes bytes on and does not read them, so TLS goes through it.
 *
 *   cut      every connection is reset, new ones too: a firewall that says no
 *   freeze   nothing arrives any more and nobody is told: a cable pulled, a NAT table lost
 *   delay    each piece of data comes later;  limit: bytes a second, each way
 *   reset    present connections are reset once, new ones are well
 *
 * Given several targets it deals connections out in turn, as a Service does, and passes over those that refuse.
 */
import { createServer, connect as dial, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export interface CuttingProxy {
  /** The target's URL with this proxy's port in it. */
  readonly url: string;
  readonly port: number;
  /** Open now, frozen ones included. */
  readonly connections: number;
  /** Accepted since the start. */
  readonly accepted: number;
  /** host:port of where connections go. */
  aim(targets: readonly string[]): void;
  cut(): void;
  reset(): void;
  freeze(): void;
  delay(milliseconds: number): void;
  limit(bytesPerSecond: number): void;
  /**
   * All is well for new connections. Those frozen before go on where they stood, or with `forget` stay silent for ever:
   * what a router leaves behind that was restarted in between.
   */
  mend(how?: { readonly forget?: boolean }): void;
  close(): Promise<void>;
}

type Mode = 'open' | 'cut' | 'frozen';

export async function startCuttingProxy(target: string): Promise<CuttingProxy> {
  let targets = [hostAndPort(target)];
  let next = 0;
  let mode: Mode = 'open';
  let delayMs = 0;
  let bytesPerSecond = Number.POSITIVE_INFINITY;
  let accepted = 0;
  const pairs = new Set<Pair>();

  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) => {
    accepted += 1;
    client.on('error', () => client.destroy());
    if (mode === 'cut') return void client.resetAndDestroy();
    const pair = new Pair(client, { delayMs: () => delayMs, bytesPerSecond: () => bytesPerSecond }, () =>
      pairs.delete(pair),
    );
    pairs.add(pair);
    // A frozen wire lets nobody through, so a new connection stays half made: accepted here, and never answered.
    if (mode === 'frozen') return;
    void pair.connect(targets, next++);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as { port: number };
  const url = target.includes('://') ? `${new URL(target).protocol}//127.0.0.1:${port}` : `127.0.0.1:${port}`;
  const reset = () => {
    for (const pair of pairs) pair.reset();
  };

  return {
    url,
    port,
    get connections() {
      return pairs.size;
    },
    get accepted() {
      return accepted;
    },
    aim(given) {
      targets = given.map(hostAndPort);
    },
    cut() {
      mode = 'cut';
      reset();
    },
    reset,
    freeze() {
      mode = 'frozen';
      for (const pair of pairs) pair.freeze();
    },
    delay(milliseconds) {
      delayMs = milliseconds;
    },
    limit(given) {
      bytesPerSecond = given;
    },
    mend({ forget = false } = {}) {
      mode = 'open';
      delayMs = 0;
      bytesPerSecond = Number.POSITIVE_INFINITY;
      if (forget) return;
      for (const pair of pairs) if (!pair.thaw()) void pair.connect(targets, next++);
    },
    close() {
      mode = 'cut';
      reset();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

interface Shape {
  readonly delayMs: () => number;
  readonly bytesPerSecond: () => number;
}

/** One connection, both sides of it. */
class Pair {
  readonly #client: Socket;
  readonly #shape: Shape;
  readonly #ended: () => void;
  #upstream: Socket | undefined;
  #frozen = false;
  #thawed: (() => void)[] = [];

  constructor(client: Socket, shape: Shape, ended: () => void) {
    this.#client = client;
    this.#shape = shape;
    this.#ended = ended;
    client.once('close', (broken) => this.#close(broken));
  }

  /** Tries the targets in turn; a client whom none of them takes is reset. */
  async connect(targets: readonly Target[], first: number): Promise<void> {
    for (let turn = 0; turn < targets.length; turn++) {
      const socket = await connected(targets[(first + turn) % targets.length]!);
      if (!socket) continue;
      if (this.#client.destroyed) return void socket.destroy();
      this.#upstream = socket;
      socket.on('error', () => socket.destroy());
      socket.once('close', (broken) => this.#close(broken));
      void this.#pump(this.#client, socket);
      void this.#pump(socket, this.#client);
      return;
    }
    this.#client.resetAndDestroy();
  }

  async #pump(from: Socket, to: Socket): Promise<void> {
    try {
      // Ended reading is not ended writing: the default would destroy the socket here.
      for await (const chunk of from.iterator({ destroyOnReturn: false })) {
        const bytes = chunk as Buffer;
        const wait = this.#shape.delayMs() + (bytes.length / this.#shape.bytesPerSecond()) * 1000;
        if (wait > 0) await sleep(wait);
        await this.#whenThawed();
        if (!to.write(bytes)) await drained(to);
      }
      await this.#whenThawed();
      if (!to.destroyed) to.end();
    } catch {
      // One side is gone: so is the other, and as abruptly.
      this.reset();
    }
  }

  #whenThawed(): Promise<void> {
    return this.#frozen ? new Promise((resolve) => this.#thawed.push(resolve)) : Promise.resolve();
  }

  freeze(): void {
    this.#frozen = true;
  }

  /** False when it never got as far as the other side. */
  thaw(): boolean {
    this.#frozen = false;
    for (const go of this.#thawed.splice(0)) go();
    return this.#upstream !== undefined;
  }

  reset(): void {
    for (const socket of [this.#client, this.#upstream]) if (socket && !socket.destroyed) socket.resetAndDestroy();
  }

  #close(broken: boolean): void {
    // A side that ends while the wire is frozen cannot tell the other.
    if (this.#frozen) return;
    if (broken) this.reset();
    // What is written still goes out.
    else for (const socket of [this.#client, this.#upstream]) if (socket && !socket.destroyed) socket.destroySoon();
    this.#ended();
  }
}

interface Target {
  readonly host: string;
  readonly port: number;
}

function hostAndPort(text: string): Target {
  const url = new URL(text.includes('://') ? text : `tcp://${text}`);
  return { host: url.hostname, port: Number(url.port || (url.protocol === 'https:' ? 443 : 80)) };
}

function connected({ host, port }: Target): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = dial({ host, port, allowHalfOpen: true, noDelay: true });
    socket.once('error', () => resolve(undefined));
    socket.once('connect', () => resolve(socket));
  });
}

const drained = (socket: Socket): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      socket.off('drain', done);
      socket.off('close', done);
      resolve();
    };
    socket.on('drain', done);
    socket.on('close', done);
  });
