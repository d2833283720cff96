/**
 * Every call that leaves a process goes through here, as two messages with a while between them. So it can be late, be
 * lost on its way there or on its way back, arrive twice, or meet the end of whoever sent or served it.
 */
import { PassThrough } from 'node:stream';
import { UnknownOutcomeError } from '../../operator/engine/errors.ts';
import type { Random } from './random.ts';
import type { Party, Timeline } from './timeline.ts';

/** How bad it is now. Probabilities for each call. */
export interface Weather {
  readonly lost: number;
  readonly slow: number;
  readonly twice: number;
}
export const calm: Weather = { lost: 0, slow: 0, twice: 0 };

/** Between a process (by the start of its name) and a place. Broken: calls fail at once. Silent: nothing comes back. */
export interface Cut {
  readonly from: string;
  readonly to: string;
  readonly how: 'broken' | 'silent';
}

/** The process ends at its call number `call`: before anything left it, or when it would have heard the answer. */
export interface Trap {
  readonly call: number;
  readonly when: 'before' | 'after';
}

export interface Place {
  readonly name: string;
  /** The process that serves, where it is one of ours. */
  readonly party?: () => Party | undefined;
  /** How long a caller waits for an answer. */
  readonly timeoutSeconds: number;
  /** Whether a client on the way may send a request again. */
  readonly mayArriveTwice?: boolean;
}

/** A stream of lines, as a watch is. */
export interface Lines {
  onLine(handler: (line: string) => void): void;
  onEnd(handler: (broken: boolean) => void): void;
  close(): void;
}

export interface Network {
  weather: Weather;
  readonly cuts: Set<Cut>;
  readonly traps: Map<Party, Trap>;
  call<T>(
    from: Party,
    to: Place,
    what: string,
    serve: (server: Party | undefined) => T | Promise<T>,
    signal?: AbortSignal,
  ): Promise<T>;
  /** What an open answer brings, in order, each a while after it was said. */
  stream(from: Party, to: Place, what: string, lines: Lines, signal?: AbortSignal): PassThrough;
  /** Resets open streams between them. */
  breakStreams(from: string, to: string): void;
  /** How often each kind of fault struck. */
  readonly struck: Record<string, number>;
}

export function network(timeline: Timeline, random: Random, onFault: (what: string) => void): Network {
  const struck: Record<string, number> = {};
  const streams = new Set<{ from: Party; to: Place; fail: () => void }>();
  const net: Network = {
    weather: calm,
    cuts: new Set(),
    traps: new Map(),
    struck,
    call,
    stream,
    breakStreams(from, to) {
      for (const one of [...streams]) if (one.from.name.startsWith(from) && one.to.name === to) one.fail();
    },
  };

  const strike = (kind: string, what: string) => {
    struck[kind] = (struck[kind] ?? 0) + 1;
    onFault(`${kind}: ${what}`);
  };
  const cutOf = (from: Party, to: Place) => {
    for (const cut of net.cuts) if (from.name.startsWith(cut.from) && to.name === cut.to) return cut;
    return undefined;
  };
  const latency = (what: string) => {
    if (!random.chance(net.weather.slow)) return random.between(1, 15);
    strike('delay', what);
    return random.between(200, 6000);
  };

  function call<T>(
    from: Party,
    to: Place,
    what: string,
    serve: (server: Party | undefined) => T | Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    const label = `${from.name} → ${to.name}: ${what}`;
    if (!from.alive) return new Promise(() => undefined);
    if (signal?.aborted) return Promise.reject(signal.reason);
    from.calls += 1;
    const trap = net.traps.get(from);
    const falls = trap !== undefined && trap.call <= from.calls ? trap.when : undefined;
    if (falls !== undefined) net.traps.delete(from);
    if (falls === 'before') {
      strike('crash before a call', label);
      from.crash();
      return new Promise(() => undefined);
    }
    const lost = random.chance(net.weather.lost) ? random.pick(['request', 'answer'] as const) : undefined;
    const twice = to.mayArriveTwice === true && random.chance(net.weather.twice);

    return new Promise<T>((resolve, reject) => {
      let open = true;
      const done = (how: () => void) => {
        if (!open) return;
        open = false;
        signal?.removeEventListener('abort', onAbort);
        how();
      };
      const onAbort = () => done(() => reject(signal?.reason));
      signal?.addEventListener('abort', onAbort, { once: true });
      const hear = (ms: number, how: () => void) =>
        timeline.schedule(
          ms,
          `answer ${label}`,
          () => {
            if (falls === 'after' && open) {
              strike('crash after a call', label);
              from.crash();
              return;
            }
            done(how);
          },
          from,
        );
      const fail = (ms: number, why: string, neverSent: boolean) =>
        hear(ms, () => reject(new UnknownOutcomeError(`${what} at ${to.name}: ${why}`, { neverSent })));
      const patience = to.timeoutSeconds * 1000;

      const deliver = (answers: boolean) => {
        const server = to.party?.();
        const cut = cutOf(from, to);
        if (cut || (to.party && !server?.alive)) {
          if (!answers) return;
          if (cut?.how === 'silent') fail(patience, 'no answer', false);
          else fail(latency(label), 'connection refused', true);
          return;
        }
        if (server && server.pausedUntilMs > timeline.nowMs) {
          // The kernel took the bytes; the process will read them when it runs again.
          timeline.schedule(server.pausedUntilMs - timeline.nowMs, `request ${label}`, () => deliver(answers));
          if (answers && server.pausedUntilMs - timeline.nowMs > patience) fail(patience, 'no answer', false);
          return;
        }
        if (answers && lost === 'request') {
          strike('lost request', label);
          fail(patience, 'no answer', false);
          return;
        }
        let served = false;
        const cancelTimeout = answers ? fail(patience, 'no answer', false) : undefined;
        const forget = server?.onCrash(() => {
          if (!served && answers) fail(1, 'connection reset', false);
        });
        const answer = (how: () => void) => {
          served = true;
          forget?.();
          cancelTimeout?.();
          if (!answers) return;
          if (server && !server.alive) return;
          if (lost === 'answer') {
            strike('lost answer', label);
            fail(random.chance(0.5) ? 20 : patience, 'the answer was lost', false);
            return;
          }
          const back = latency(label);
          timeline.schedule(
            back,
            `way back ${label}`,
            () => {
              const now = cutOf(from, to);
              if (now) fail(now.how === 'silent' ? patience : 0, 'the connection broke', false);
              else if (falls === 'after' || !from.alive) hear(0, how);
              else done(how);
            },
            from,
          );
        };
        timeline.become(server);
        Promise.resolve()
          .then(() => serve(server))
          .then(
            (value) => answer(() => resolve(value)),
            (error: unknown) => answer(() => reject(error)),
          );
      };
      timeline.schedule(latency(label), `request ${label}`, () => deliver(true));
      if (twice) {
        strike('duplicate', label);
        timeline.schedule(random.between(5, 4000), `again ${label}`, () => deliver(false));
      }
    });
  }

  function stream(from: Party, to: Place, what: string, lines: Lines, signal?: AbortSignal): PassThrough {
    const label = `${to.name} ⇢ ${from.name}: ${what}`;
    const out = new PassThrough();
    let lastMs = timeline.nowMs;
    let over = false;
    const entry = {
      from,
      to,
      fail: () => later(0, () => out.destroy(new Error('the connection was reset'))),
    };
    const close = () => {
      if (over) return;
      over = true;
      streams.delete(entry);
      lines.close();
    };
    const later = (ms: number, then: () => void) => {
      // In whole milliseconds, as the timeline counts them, or two lines could pass each other.
      lastMs = Math.max(lastMs, Math.ceil(timeline.nowMs + ms));
      timeline.schedule(lastMs - timeline.nowMs, label, () => over || then(), from);
    };
    streams.add(entry);
    lines.onLine((line) => {
      const cut = cutOf(from, to);
      if (cut?.how === 'broken') return entry.fail();
      // Half open: nobody tells the reader, who has to notice by itself.
      if (cut?.how === 'silent') return void streams.delete(entry);
      if (streams.has(entry)) later(latency(label), () => void out.write(line));
    });
    lines.onEnd((broken) =>
      later(latency(label), () => (broken ? out.destroy(new Error('the connection was reset')) : out.end())),
    );
    from.onCrash(close);
    out.once('close', close);
    signal?.addEventListener('abort', () => out.destroy(), { once: true });
    return out;
  }

  return net;
}

/** An answer in the shape that readers of HTTP expect. */
export function answerOf(status: number, body: PassThrough, headers: Record<string, string> = {}) {
  Object.assign(body, { statusCode: status, statusMessage: '', httpVersion: '1.1', rawHeaders: [] });
  Object.assign(body, { headers: { 'content-type': 'application/json', ...headers } });
  Object.defineProperty(body, 'complete', { get: () => body.writableEnded });
  body.on('error', () => undefined); // as with a socket: readers hear of it by their own means
  return body as unknown as import('node:http').IncomingMessage;
}
