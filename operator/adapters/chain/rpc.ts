/**
 * JSON-RPC to one chain, over several endpoints. An endpoint that does not answer is passed over for the next; each proves
 * its chain id before it is believed. What no endpoint can answer is *unknown* and thrown as such; it is never turned into
 * "there is no such thing".
 *
 * Missing on purpose: comparing the endpoints' heads. An endpoint that lies about the state is believed.
 */
import type { Address, Hex } from '../../api/messages.ts';

/** The endpoint serves another chain than was configured. */
export class WrongChain extends Error {
  override readonly name = 'WrongChain';
  readonly terminal = true;
}

/** No code at the address: wrong address, or wrong chain. */
export class NoContract extends Error {
  override readonly name = 'NoContract';
  readonly terminal = true;
}

/** No endpoint answered. Nothing is known; try later. */
export class ChainUnavailable extends Error {
  override readonly name = 'ChainUnavailable';
  readonly terminal = false;
}

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

export type BlockTag = 'latest' | 'safe' | 'finalized' | 'pending';

export interface Rpc {
  readonly chainId: number;
  call<T>(method: string, params: readonly unknown[], signal?: AbortSignal): Promise<T>;
  contractCall(call: { to: Address; data: Hex; from?: Address }, block?: BlockTag, signal?: AbortSignal): Promise<Hex>;
}

export interface RpcOptions {
  readonly urls: readonly string[];
  readonly chainId: number;
  readonly timeoutMs?: number;
  readonly fetch?: typeof fetch;
}

/** More than any answer that is asked for here. */
const maxAnswerBytes = 8_000_000;

/** Errors of a node that is there but cannot serve: the next endpoint may. */
const unservedCodes = new Set([-32603, -32005, 429]);

/**
 * Proves the chain id of the first endpoint that answers. Throws WrongChain when an endpoint serves another chain, even if
 * others are right: a list that mixes chains is a mistake to be seen. Throws ChainUnavailable when none answers.
 */
export async function connectRpc(options: RpcOptions, signal?: AbortSignal): Promise<Rpc> {
  if (options.urls.length === 0) throw new ChainUnavailable('no RPC URL is configured: name at least one');
  const endpoints = options.urls.map((url) => ({ url, proven: false }));
  const send = options.fetch ?? fetch;
  const timeoutMs = options.timeoutMs ?? 10_000;
  let preferred = 0;
  let nextId = 1;

  async function ask<T>(url: string, method: string, params: readonly unknown[], outer?: AbortSignal): Promise<T> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const response = await send(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ jsonrpc: '2.0', id: nextId++, method, params }),
      signal: outer ? AbortSignal.any([outer, timeout]) : timeout,
    });
    const text = await readBounded(response);
    let answer: { result?: T; error?: { code?: number; message?: string; data?: unknown } };
    try {
      answer = JSON.parse(text);
    } catch {
      throw new Unserved(`HTTP ${response.status}, not JSON`);
    }
    if (answer?.error) throw errorOf(answer.error);
    if (!response.ok || answer === null || !('result' in answer)) throw new Unserved(`HTTP ${response.status}`);
    return answer.result as T;
  }

  async function prove(endpoint: { url: string; proven: boolean }, outer?: AbortSignal): Promise<void> {
    if (endpoint.proven) return;
    const chainId = Number(await ask<string>(endpoint.url, 'eth_chainId', [], outer));
    if (chainId !== options.chainId) {
      throw new WrongChain(
        `the RPC endpoint at ${hostOf(endpoint.url)} serves chain ${chainId}, configured is ${options.chainId}: correct the URL or the chain id`,
      );
    }
    endpoint.proven = true;
  }

  async function call<T>(method: string, params: readonly unknown[], outer?: AbortSignal): Promise<T> {
    const failures: string[] = [];
    for (let turn = 0; turn < endpoints.length; turn++) {
      const index = (preferred + turn) % endpoints.length;
      const endpoint = endpoints[index]!;
      try {
        await prove(endpoint, outer);
        const result = await ask<T>(endpoint.url, method, params, outer);
        preferred = index;
        return result;
      } catch (error) {
        outer?.throwIfAborted();
        if (error instanceof WrongChain) throw error;
        // A revert is an answer. Asking another node would only hide it.
        if (error instanceof RpcError && (error.data !== undefined || !unservedCodes.has(error.code))) throw error;
        // A node that had to be restarted may come back as another chain's.
        endpoint.proven = false;
        failures.push(`${hostOf(endpoint.url)}: ${reasonOf(error)}`);
      }
    }
    throw new ChainUnavailable(
      `chain ${options.chainId} does not answer ${method} (${failures.join('; ')})`.slice(0, 500),
    );
  }

  await call('eth_chainId', [], signal);
  return {
    chainId: options.chainId,
    call,
    contractCall: (request, block = 'latest', outer) => call<Hex>('eth_call', [request, block], outer),
  };
}

/** The endpoint is there and gave no usable answer. */
class Unserved extends Error {}

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

/** URLs of RPC providers carry API keys in their path: name the host alone. */
function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : 'an unreadable URL';
}

function reasonOf(error: unknown): string {
  if (error instanceof RpcError) return `error ${error.code}`;
  if (!(error instanceof Error)) return 'unknown';
  const cause = (error.cause as { code?: string } | undefined)?.code;
  return cause ?? (error instanceof Unserved ? error.message : error.name);
}
