/** A connection of TCP, or why there is none. */
import { connect, type Socket } from 'node:net';
import type { Timing } from './timing.ts';

interface DialOptions {
  readonly withinSeconds: number;
  readonly clock: Timing;
  readonly signal: AbortSignal;
}

export function dial(host: string, port: number, { withinSeconds, clock, signal }: DialOptions): Promise<Socket> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
    const cancel = clock.setTimeout(
      () => socket.destroy(new Error(`${host}:${port}: no connection within ${withinSeconds} s`)),
      withinSeconds * 1000,
    );
    const onAbort = () => socket.destroy(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    const settle = () => {
      cancel();
      signal.removeEventListener('abort', onAbort);
    };
    socket.once('error', (error) => {
      settle();
      reject(error);
    });
    socket.once('connect', () => {
      settle();
      resolve(socket);
    });
  });
}
