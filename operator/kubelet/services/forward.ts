/**
 * Connections to the pods of one lease, through its gateway: one tunnel, opened when the first is wanted, given up when none
 * has been for a while.
 */
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import { forwardProtocol, maxTunnelStreams } from '../../api/gateway.ts';
import type { Clock } from '../../engine/clock.ts';
import type { Log } from '../../engine/types.ts';
import { end, keep, sessionOptions } from '../../wire/tunnel.ts';
import type { RemoteLease } from '../remote.ts';
import { answers, openTunnel } from './session.ts';

export interface Forward {
  /** A stream to a pod of the tenant, by its name there. Rejects when the pod, or the way to it, does not take the connection. */
  connect(pod: string, port: number, signal: AbortSignal): Promise<ClientHttp2Stream>;
  /** The way to the gateway has changed: who connects from now on must not wait for a tunnel that nobody answers. */
  check(): void;
  close(): void;
}

export interface ForwardOptions {
  readonly lease: RemoteLease;
  readonly clock: Clock;
  readonly log: Log;
  /** The gateway could not be reached, or went away: whoever watches it should look now. */
  readonly onBroken: () => void;
}

const answerSeconds = 25;
const idleSeconds = 300;

export function createForward({ lease, clock, log, onBroken }: ForwardOptions): Forward {
  const stopping = new AbortController();
  let current: Promise<ClientHttp2Session> | undefined;
  let streams = 0;
  let cancelIdle: (() => void) | undefined;

  async function open(): Promise<ClientHttp2Session> {
    const socket = await openTunnel(lease, 'forward', forwardProtocol, stopping.signal);
    const session = http2.connect('http://lease', { ...sessionOptions, createConnection: () => socket });
    keep(session, socket, clock);
    session.once('close', () => {
      if (!stopping.signal.aborted && streams > 0) onBroken();
    });
    return session;
  }

  /** One for all; another when this one takes no more. */
  function session(): Promise<ClientHttp2Session> {
    if (current) return current;
    const opening = open();
    current = opening;
    const forget = () => {
      if (current === opening) current = undefined;
    };
    opening.then((opened) => {
      if (stopping.signal.aborted) return end(opened);
      // Said to be going (the gateway stops), or gone: what is open goes on while it can, what is new goes elsewhere.
      opened.once('goaway', forget);
      opened.once('close', forget);
    }, forget);
    return opening;
  }

  function idle(): void {
    cancelIdle?.();
    cancelIdle = clock.setTimeout(() => {
      if (streams > 0) return;
      void current?.then(
        (opened) => opened.close(),
        () => undefined,
      );
      current = undefined;
    }, idleSeconds * 1000);
  }

  async function connect(pod: string, port: number, signal: AbortSignal): Promise<ClientHttp2Stream> {
    if (streams >= maxTunnelStreams)
      throw new Error(`more than ${maxTunnelStreams} connections to this lease are open`);
    streams++;
    let stream: ClientHttp2Stream;
    try {
      stream = await request(pod, port, signal);
    } catch (error) {
      streams--;
      idle();
      throw error;
    }
    stream.once('close', () => {
      streams--;
      if (streams === 0) idle();
    });
    return stream;
  }

  async function request(pod: string, port: number, signal: AbortSignal): Promise<ClientHttp2Stream> {
    let opened: ClientHttp2Session;
    try {
      opened = await session();
      // It went a moment ago, and nobody has been told yet.
      if (opened.destroyed || opened.closed) {
        current = undefined;
        opened = await session();
      }
    } catch (error) {
      if (!stopping.signal.aborted) onBroken();
      throw error;
    }
    const stream = opened.request({ ':method': 'CONNECT', ':authority': `${pod}:${port}` }, { endStream: false });
    stream.on('error', (error) => log.debug({ error: error.message }, 'a connection to a pod broke'));
    return answered(stream, clock, signal);
  }

  return {
    connect,
    check() {
      const checked = current;
      void checked?.then(
        async (opened) => {
          // What is open in it may still survive: it ends with the session's own patience.
          if (!(await answers(opened, clock)) && current === checked) current = undefined;
        },
        () => undefined,
      );
    },
    close() {
      stopping.abort(new Error('the lease is served no longer by this process'));
      cancelIdle?.();
      void current?.then(end, () => undefined);
    },
  };
}

/** Resolves with the stream once the other side has taken the connection. */
function answered(stream: ClientHttp2Stream, clock: Clock, signal: AbortSignal): Promise<ClientHttp2Stream> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => {
      settle();
      stream.destroy(error);
      reject(error);
    };
    const cancel = clock.setTimeout(() => fail(new Error(`no answer within ${answerSeconds} s`)), answerSeconds * 1000);
    const onAbort = () => fail(signal.reason as Error);
    const onClose = () => fail(new Error('the tunnel was closed'));
    const settle = () => {
      cancel();
      signal.removeEventListener('abort', onAbort);
      stream.off('close', onClose);
    };
    if (signal.aborted) return fail(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    stream.once('close', onClose);
    stream.once('response', (headers) => {
      if (headers[':status'] !== 200) return fail(new Error(`the gateway answered ${headers[':status']}`));
      settle();
      resolve(stream);
    });
  });
}
