/**
 * JSON-RPC 2.0 over HTTP to one endpoint or another. Calls of the same moment go as one request (section 6, batches): a look at a
 * lease is seven calls, and a thousand leases are looked at every minute. An endpoint that takes no batches gets them one by one.
 */
import type { Hex } from '../../api/messages.ts';

/** The node answered with an error: a revert, or a refusal of a transaction. */
export class RpcError extends Error {
  override readonly name = 'RpcError';
  readonly terminal = false;
  readonly code: number;
  /** Revert data, where there is any. */
  readonly data: Hex | undefined;

  constructor(code: number, message: string, data?: Hex) {
    super(message.slice(0, 500));
    this.code = code;
    this.data = data;
  }
}

/** The endpoint is there and gave no usable answer. */
export class Unserved extends Error {}

/** More than any answer that is asked for here. */
const maxAnswerBytes = 8_000_000;

/** Endpoints limit batches, the strictest that are known to a hundred. */
const mostInBatch = 50;

interface Waiting {
  readonly id: number;
  readonly method: string;
  readonly params: readonly unknown[];
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
  /** Whoever asked went away. */
  gone: boolean;
  /** Called then. */
  onGone: () => void;
}

interface Answer {
  readonly id?: unknown;
  readonly result?: unknown;
  readonly error?: { code?: number; message?: string; data?: unknown };
}

export interface JsonRpc {
  /** Throws an RpcError for the node's own error, and something else where there was no usable answer. */
  ask<T>(url: string, method: string, params: readonly unknown[], signal?: AbortSignal): Promise<T>;
}

export function jsonRpc(options: { readonly fetch?: typeof fetch; readonly timeoutMs: number }): JsonRpc {
  const send = options.fetch ?? fetch;
  const queues = new Map<string, Waiting[]>();
  /** Those that were found to take no batches. Found out anew by each process. */
  const single = new Set<string>();
  let nextId = 1;

  async function post(url: string, body: unknown, signal: AbortSignal): Promise<{ status: number; answer: unknown }> {
    const response = await send(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal,
    });
    const text = await readBounded(response);
    try {
      return { status: response.status, answer: JSON.parse(text) };
    } catch {
      throw new Unserved(`HTTP ${response.status}, not JSON`);
    }
  }

  /** What one call is answered with. */
  function settle(one: Waiting, status: number, answer: Answer | null | undefined): void {
    if (answer?.error) one.reject(errorOf(answer.error));
    else if (status >= 300 || !answer || !('result' in answer)) one.reject(new Unserved(`HTTP ${status}`));
    else one.resolve(answer.result);
  }

  const requestOf = ({ id, method, params }: Waiting) => ({ jsonrpc: '2.0', id, method, params });

  async function askOne(url: string, one: Waiting, signal: AbortSignal): Promise<void> {
    const { status, answer } = await post(url, requestOf(one), signal);
    settle(one, status, answer as Answer);
  }

  async function askAll(url: string, all: readonly Waiting[], signal: AbortSignal): Promise<void> {
    const [only] = all;
    if (all.length === 1) return askOne(url, only!, signal);
    if (single.has(url)) return void (await Promise.all(all.map((one) => askOne(url, one, signal))));
    const { status, answer } = await post(url, all.map(requestOf), signal);
    if (Array.isArray(answer)) {
      const byId = new Map((answer as (Answer | null)[]).map((one) => [one?.id, one]));
      for (const one of all) settle(one, status, byId.get(one.id));
      return;
    }
    // Overloaded, or no node at all: that says nothing about batches.
    if (status === 429 || status >= 500) throw new Unserved(`HTTP ${status}`);
    // What is sent again is a read, or the same signed bytes.
    single.add(url);
    await Promise.all(all.map((one) => askOne(url, one, signal)));
  }

  function flush(url: string): void {
    const all = (queues.get(url) ?? []).filter(({ gone }) => !gone);
    queues.delete(url);
    for (let from = 0; from < all.length; from += mostInBatch) {
      const some = all.slice(from, from + mostInBatch);
      const over = new AbortController();
      const signal = AbortSignal.any([over.signal, AbortSignal.timeout(options.timeoutMs)]);
      for (const one of some)
        one.onGone = () => {
          if (some.every(({ gone }) => gone)) over.abort(new Error('nobody waits for it'));
        };
      askAll(url, some, signal).catch((error: unknown) => {
        for (const one of some) one.reject(error);
      });
    }
  }

  return {
    ask: <T>(url: string, method: string, params: readonly unknown[], signal?: AbortSignal) =>
      new Promise<T>((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason);
        const leave = () => {
          one.gone = true;
          one.onGone();
          reject(signal?.reason);
        };
        const after = <A>(then: (value: A) => void) => {
          return (value: A) => {
            signal?.removeEventListener('abort', leave);
            then(value);
          };
        };
        const one: Waiting = {
          ...{ id: nextId++, method, params, gone: false, onGone: () => undefined },
          resolve: after((result) => resolve(result as T)),
          reject: after(reject),
        };
        signal?.addEventListener('abort', leave, { once: true });
        const queue = queues.get(url);
        if (queue) queue.push(one);
        else {
          queues.set(url, [one]);
          setImmediate(flush, url);
        }
      }),
  };
}

function errorOf(error: { code?: number; message?: string; data?: unknown }): RpcError {
  const nested =
    typeof error.data === 'object' && error.data !== null ? (error.data as { data?: unknown }).data : undefined;
  const data = [error.data, nested].find((value) => typeof value === 'string' && /^0x[0-9a-fA-F]*$/.test(value));
  // Some nodes add the string "0x" to plain failures: only bytes make a revert.
  return new RpcError(
    error.code ?? 0,
    error.message ?? 'unnamed error',
    data === '0x' ? undefined : (data as Hex | undefined),
  );
}

async function readBounded(response: Response): Promise<string> {
  if (!response.body) return '';
  const decoder = new TextDecoder();
  let text = '';
  for await (const chunk of response.body) {
    text += decoder.decode(chunk as Uint8Array, { stream: true });
    if (text.length > maxAnswerBytes) throw new Unserved(`answer of more than ${maxAnswerBytes} characters`);
  }
  return text + decoder.decode();
}
