/**
 * JSON-RPC to one chain, over several endpoints. An endpoint that does not answer is passed over for the next. What no
 * endpoint can answer is *unknown* and thrown as such; it is never turned into "there is no such thing".
 *
 * An endpoint is believed once it has shown the chain id, the code of our contracts, and the safe block that the endpoints
 * agreed on last; all three are asked for again after each of its failures. Where there are several, their heads are compared
 * now and then, and two kinds are passed over until they mend: who lags behind, and who tells of another safe block than most.
 * Where no more than half of them agree, nobody knows which is right, and nobody is believed.
 *
 * Missing on purpose: proofs of what is read. An endpoint that tells the right blocks and lies about what is in them is found
 * out by nobody. What that may cost is bounded elsewhere: a deposit, and what the contract itself allows.
 */
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { jsonRpc, RpcError, Unserved } from './json-rpc.ts';

export { RpcError } from './json-rpc.ts';

/** What answers serves another chain than was configured, or one without our contracts. */
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

export type BlockTag = 'latest' | 'safe' | 'finalized' | 'pending';
/** A block by its hash (EIP-1898): a node that does not have it says so, where a number or a tag would get another's state. */
export type BlockRef = BlockTag | { readonly blockHash: Hex32 };

export interface Rpc {
  readonly chainId: number;
  call<T>(method: string, params: readonly unknown[], signal?: AbortSignal): Promise<T>;
  contractCall(call: { to: Address; data: Hex; from?: Address }, block?: BlockRef, signal?: AbortSignal): Promise<Hex>;
  /**
   * The code at the address, which all endpoints that answer must agree on. From then on an endpoint that shows other code there
   * is not believed: contracts of ours never change. No code is told, and not held to.
   */
  codeOf(address: Address, signal?: AbortSignal): Promise<Hex>;
}

export interface RpcOptions {
  readonly urls: readonly string[];
  readonly chainId: number;
  readonly timeoutMs?: number;
  readonly fetch?: typeof fetch;
  /** An endpoint is believed no longer, or again. Its host alone is named: URLs carry keys. */
  readonly onDoubt?: (host: string, doubt: string | undefined) => void;
  /** How often the heads of several endpoints are compared. */
  readonly compareSeconds?: number;
  /** An endpoint whose newest block is so much older than another's is passed over. */
  readonly maxLagSeconds?: number;
  readonly now?: () => Date;
}

/** Errors of a node that is there but cannot serve: the next endpoint may. */
const unservedCodes = new Set([-32603, -32005, 429]);

/** Safe to be asked for nothing else while one of several endpoints hangs. */
const compareTimeoutMs = 3000;
/** A sequencer may be so much ahead of the time; a head further ahead says nothing of the others' lag. */
const maxAheadSeconds = 3720;

interface Endpoint {
  readonly url: string;
  /** Has shown, since its last failure, that it serves our chain. */
  proven: boolean;
  /** Why it is not believed. */
  doubt: Doubt | undefined;
}

/** It answers, and is not believed. `otherChain`: for good, as far as anybody can tell. */
class Doubt extends Error {
  readonly otherChain: boolean;
  constructor(message: string, otherChain: boolean) {
    super(message);
    this.otherChain = otherChain;
  }
}

interface Header {
  readonly number: Hex;
  readonly hash: Hex32;
  readonly timestamp: Hex;
}

/**
 * Throws WrongChain when every endpoint answers and none serves the chain as it was configured, or was first seen; throws
 * ChainUnavailable when none can be asked.
 */
export async function connectRpc(options: RpcOptions, signal?: AbortSignal): Promise<Rpc> {
  if (options.urls.length === 0) throw new ChainUnavailable('no RPC URL is configured: name at least one');
  const endpoints: Endpoint[] = options.urls.map((url) => ({ url, proven: false, doubt: undefined }));
  const now = options.now ?? (() => new Date());
  const timeoutMs = options.timeoutMs ?? 10_000;
  const { compareSeconds = 15, maxLagSeconds = 60 } = options;
  const codes = new Map<Address, Hex>();
  /** The newest safe block that more than one endpoint told of. */
  let agreed: { readonly number: number; readonly hash: Hex32 } | undefined;
  /** Time of the newest block that was ever seen. */
  let newest = 0;
  let compared = Number.NEGATIVE_INFINITY;
  let comparing: Promise<void> | undefined;
  let preferred = 0;
  const { ask } = jsonRpc({ fetch: options.fetch, timeoutMs });

  function doubt(endpoint: Endpoint, why: Doubt | undefined): void {
    if (endpoint.doubt?.message !== why?.message) options.onDoubt?.(hostOf(endpoint.url), why?.message);
    endpoint.doubt = why;
    if (why) endpoint.proven = false;
  }

  const headerAt = (endpoint: Endpoint, block: string, outer?: AbortSignal) =>
    ask<Header | null>(endpoint.url, 'eth_getBlockByNumber', [block, false], outer);

  /** Throws Doubt. */
  async function prove(endpoint: Endpoint, outer?: AbortSignal): Promise<void> {
    if (endpoint.proven) return;
    const chainId = Number(await ask<string>(endpoint.url, 'eth_chainId', [], outer));
    if (chainId !== options.chainId)
      throw new Doubt(
        `serves chain ${chainId}, configured is ${options.chainId}: correct the URL or the chain id`,
        true,
      );
    for (const [address, code] of codes)
      if ((await ask<Hex>(endpoint.url, 'eth_getCode', [address, 'latest'], outer)) !== code)
        throw new Doubt(
          `has other code at ${address} than was there at first: it serves another chain of the same id, or is not true`,
          true,
        );
    if (agreed && endpoints.length > 1) {
      const same = await headerAt(endpoint, `0x${agreed.number.toString(16)}`, outer);
      if (same === null) throw new Doubt('lags behind: it lacks a block that is safe', false);
      if (same.hash !== agreed.hash)
        throw new Doubt('has another safe block than the endpoints agreed on: it follows another fork', true);
    }
    endpoint.proven = true;
    if (endpoint.doubt?.otherChain) doubt(endpoint, undefined);
  }

  async function compare(): Promise<void> {
    const answers = await Promise.all(
      endpoints.map(async (endpoint) => {
        const timeout = AbortSignal.timeout(Math.min(timeoutMs, compareTimeoutMs));
        try {
          await prove(endpoint, timeout);
          const [latest, safe] = await Promise.all([
            headerAt(endpoint, 'latest', timeout),
            headerAt(endpoint, 'safe', timeout),
          ]);
          // One that has just been started has no safe block yet, and says nothing about any.
          const common = Number(safe?.number);
          return Number.isSafeInteger(common) && Number.isSafeInteger(Number(latest?.timestamp))
            ? { endpoint, timeout, time: Number(latest!.timestamp), safe: common }
            : undefined;
        } catch (error) {
          endpoint.proven = false;
          if (error instanceof Doubt) doubt(endpoint, error);
          return undefined;
        }
      }),
    );
    const there = answers.filter((one) => one !== undefined);
    if (there.length === 0) return;

    // The safe block of the one that is least far: all of them have it, and none may take it back.
    const common = Math.min(...there.map((one) => one.safe));
    const votes = await Promise.all(
      there.map(async (one) => {
        const header = await headerAt(one.endpoint, `0x${common.toString(16)}`, one.timeout).catch(() => null);
        return { ...one, hash: header?.hash };
      }),
    );
    const voted = votes.filter((one) => one.hash !== undefined);
    const count = (hash: Hex32) => voted.filter((one) => one.hash === hash).length;
    const winner = voted.find((one) => count(one.hash!) * 2 > voted.length)?.hash;
    if (winner !== undefined && count(winner) > 1 && common >= (agreed?.number ?? 0))
      agreed = { number: common, hash: winner };

    const times = voted.filter((one) => one.hash === winner).map((one) => one.time);
    const limit = now().getTime() / 1000 + maxAheadSeconds;
    // On a chain whose clock is wrong everywhere, the endpoints are compared with one another all the same.
    newest = Math.max(newest, ...(times.some((time) => time <= limit) ? times.filter((time) => time <= limit) : times));
    for (const { endpoint, hash, time } of voted) {
      if (winner === undefined)
        doubt(endpoint, new Doubt('has another safe block than others, and no more than half agree', false));
      else if (hash !== winner) doubt(endpoint, new Doubt('has another safe block than most endpoints', true));
      else
        doubt(
          endpoint,
          newest - time > maxLagSeconds ? new Doubt('lags behind: its newest block is old', false) : undefined,
        );
    }
  }

  /** The first comparison is waited for; later ones go on beside the calls that they are about. */
  async function compareWhenDue(): Promise<void> {
    if (endpoints.length < 2) return;
    const time = performance.now();
    if (!comparing && time - compared >= compareSeconds * 1000) {
      const first = compared === Number.NEGATIVE_INFINITY;
      compared = time;
      const running = compare().finally(() => {
        comparing = undefined;
      });
      comparing = first ? running : running.catch(() => undefined);
      if (first) await comparing.catch(() => undefined);
    }
  }

  async function call<T>(method: string, params: readonly unknown[], outer?: AbortSignal): Promise<T> {
    await compareWhenDue();
    outer?.throwIfAborted();
    const failures: string[] = [];
    let otherChain = 0;
    for (let turn = 0; turn < endpoints.length; turn++) {
      const index = (preferred + turn) % endpoints.length;
      const endpoint = endpoints[index]!;
      try {
        // What lags, or is one of two, is believed again by a comparison alone.
        if (endpoint.doubt && !endpoint.doubt.otherChain) throw endpoint.doubt;
        await prove(endpoint, outer);
        const result = await ask<T>(endpoint.url, method, params, outer);
        preferred = index;
        return result;
      } catch (error) {
        outer?.throwIfAborted();
        // A revert is an answer. Asking another node would only hide it.
        if (error instanceof RpcError && (error.data !== undefined || !unservedCodes.has(error.code))) throw error;
        // A node that had to be restarted may come back as another chain's.
        endpoint.proven = false;
        if (error instanceof Doubt) {
          doubt(endpoint, error);
          otherChain += error.otherChain ? 1 : 0;
        }
        failures.push(`${hostOf(endpoint.url)}${error instanceof Doubt ? ' ' : ': '}${reasonOf(error)}`);
      }
    }
    // Only where all have spoken: one that is silent may be the one that is right.
    if (otherChain === endpoints.length)
      throw new WrongChain(`the RPC endpoint at ${failures.join('; the one at ')}`.slice(0, 500));
    throw new ChainUnavailable(
      `chain ${options.chainId} does not answer ${method} (${failures.join('; ')})`.slice(0, 500),
    );
  }

  async function codeOf(address: Address, outer?: AbortSignal): Promise<Hex> {
    const code = await call<Hex>('eth_getCode', [address, 'latest'], outer);
    if (code === '0x') return code;
    const others = await Promise.all(
      endpoints.map(async (endpoint) => {
        const timeout = AbortSignal.timeout(Math.min(timeoutMs, compareTimeoutMs));
        const both = outer ? AbortSignal.any([outer, timeout]) : timeout;
        try {
          await prove(endpoint, both);
          if (endpoint.doubt) return code;
          return await ask<Hex>(endpoint.url, 'eth_getCode', [address, 'latest'], both);
        } catch {
          outer?.throwIfAborted();
          return code; // It is asked before it is believed.
        }
      }),
    );
    const differs = others.findIndex((other) => other !== code);
    if (differs >= 0)
      throw new ChainUnavailable(
        `the RPC endpoints disagree about the code at ${address} (${hostOf(endpoints[differs]!.url)} and others): find out which serves chain ${options.chainId}`,
      );
    codes.set(address, code);
    return code;
  }

  await call('eth_chainId', [], signal);
  return {
    chainId: options.chainId,
    call,
    contractCall: (request, block = 'latest', outer) => call<Hex>('eth_call', [request, block], outer),
    codeOf,
  };
}

/** URLs of RPC providers carry API keys in their path: name the host alone. */
function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : 'an unreadable URL';
}

function reasonOf(error: unknown): string {
  if (error instanceof RpcError) return `error ${error.code}`;
  if (error instanceof Doubt) return error.message;
  if (!(error instanceof Error)) return 'unknown';
  const cause = (error.cause as { code?: string } | undefined)?.code;
  return cause ?? (error instanceof Unserved ? error.message : error.name);
}
