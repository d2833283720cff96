/**
 * A JSON-RPC endpoint with bad habits, in front of a good one. Each habit is one that public endpoints have.
 *
 *   down          connections are reset            hang       nobody answers
 *   error         HTTP 500 and a page              slow       the answer comes seconds late
 *   truncate      half an answer, then the end     wrongChain eth_chainId names another chain
 *   dropAnswers   the call is done, the answer lost: for methods that match
 *   lags          so many blocks behind: it tells of what was, and does not know what came after. With `methods`, those alone:
 *                 several nodes behind one address, at different heads
 *
 * Beside any of them, `refuseSmallBumps` keeps to the rule of real nodes that a replacement pays ten percent more, which
 * anvil does not.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Transaction } from 'ethers';

export type RpcHabit =
  | { readonly is: 'down' | 'hang' | 'error' | 'truncate' }
  | { readonly is: 'slow'; readonly seconds: number }
  | { readonly is: 'wrongChain'; readonly chainId: number }
  | { readonly is: 'dropAnswers'; readonly methods: RegExp; readonly times?: number }
  | { readonly is: 'lags'; readonly blocks: number; readonly methods?: RegExp };

export interface FaultyRpc {
  readonly url: string;
  /** Calls that came in, by method. */
  readonly calls: ReadonlyMap<string, number>;
  /** Calls that a habit got in the way of. */
  readonly spoiled: number;
  /** Transactions that were sent anew with another fee, while that was looked at. */
  readonly replacements: number;
  /** Replacements that were refused for paying too little more. */
  readonly bumpsRefused: number;
  misbehave(habit: RpcHabit): void;
  refuseSmallBumps(on: boolean): void;
  /** From now on it is in front of another node. */
  aim(target: string): void;
  behave(): void;
  close(): Promise<void>;
}

interface Call {
  readonly id: number | string;
  readonly method: string;
  readonly params?: readonly unknown[];
}

const mostBytes = 16 << 20;

export async function startFaultyRpc(firstTarget: string): Promise<FaultyRpc> {
  let target = firstTarget;
  const calls = new Map<string, number>();
  const sockets = new Set<Socket>();
  /** Highest fee seen for each sender and nonce. */
  const fees = new Map<string, bigint>();
  let habit: RpcHabit | undefined;
  let dropped = 0;
  let spoiled = 0;
  let strict = false;
  let bumpsRefused = 0;
  let replacements = 0;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await read(request);
    const asked = JSON.parse(body) as Call | readonly Call[];
    const all: readonly Call[] = Array.isArray(asked) ? asked : [asked];
    for (const { method } of all) calls.set(method, (calls.get(method) ?? 0) + 1);
    const now = habit;
    const room = (now?.is === 'dropAnswers' ? (now.times ?? Number.POSITIVE_INFINITY) : 0) - dropped;
    const lost = all.filter(({ method }) => now?.is === 'dropAnswers' && now.methods.test(method)).slice(0, room);
    if (now) spoiled += now.is === 'dropAnswers' ? lost.length : all.length;

    if (now?.is === 'hang') return; // until the caller gives up
    if (now?.is === 'error') {
      response.writeHead(500, { 'content-type': 'text/html' }).end('<h1>Internal Server Error</h1>');
      return;
    }
    if (now?.is === 'slow') await sleep(now.seconds * 1000);
    const answers: string[] = [];
    for (const call of all) answers.push(await answerTo(call, now));
    const text = Array.isArray(asked) ? `[${answers.join(',')}]` : answers[0]!;
    if (lost.length > 0) {
      dropped += lost.length;
      response.socket?.resetAndDestroy();
      return;
    }
    if (now?.is === 'truncate') {
      // Whole by HTTP's reckoning, so that only its reader can tell.
      response.writeHead(200, { 'content-type': 'application/json' }).end(text.slice(0, Math.floor(text.length / 2)));
      return;
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end(text);
  }

  async function answerTo(call: Call, now: RpcHabit | undefined): Promise<string> {
    const refused = strict ? tooCheap(call) : undefined;
    if (now?.is === 'wrongChain' && call.method === 'eth_chainId')
      return JSON.stringify({ jsonrpc: '2.0', id: call.id, result: `0x${now.chainId.toString(16)}` });
    if (refused) return JSON.stringify({ jsonrpc: '2.0', id: call.id, error: refused });
    if (now?.is === 'lags' && (now.methods?.test(call.method) ?? true)) return answerOfThen(call, now.blocks);
    return forward(JSON.stringify(call));
  }

  async function forward(body: string): Promise<string> {
    const upstream = await fetch(target, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
      signal: AbortSignal.timeout(20_000),
    });
    return upstream.text();
  }

  const askNode = async <T>(method: string, ...params: unknown[]): Promise<T> =>
    JSON.parse(await forward(JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }))).result as T;

  /** As a node would answer that has not heard of the newest blocks. */
  async function answerOfThen(call: Call, blocks: number): Promise<string> {
    const head = Math.max(0, Number(await askNode<string>('eth_blockNumber')) - blocks);
    const reply = (answer: object) => JSON.stringify({ jsonrpc: '2.0', id: call.id, ...answer });
    if (call.method === 'eth_blockNumber') return reply({ result: `0x${head.toString(16)}` });
    const params: unknown[] = [];
    for (const param of call.params ?? []) {
      const blockHash = (param as { blockHash?: string } | null)?.blockHash;
      if (param === 'latest' || param === 'pending') params.push(`0x${head.toString(16)}`);
      else if (param === 'safe' || param === 'finalized') {
        const block = await askNode<{ number: string }>('eth_getBlockByNumber', param, false);
        params.push(`0x${Math.min(head, Number(block.number)).toString(16)}`);
      } else if (blockHash !== undefined) {
        const block = await askNode<{ number: string } | null>('eth_getBlockByHash', blockHash, false);
        if (!block || Number(block.number) > head)
          return reply({ error: { code: -32000, message: 'header not found' } });
        params.push(param);
      } else params.push(param);
    }
    if (call.method === 'eth_getBlockByNumber' && Number(params[0]) > head) return reply({ result: null });
    const result = await askNode<{ blockNumber?: string | null } | null>(call.method, ...params);
    const isOfTransaction = call.method === 'eth_getTransactionReceipt' || call.method === 'eth_getTransactionByHash';
    if (isOfTransaction && Number(result?.blockNumber ?? head + 1) > head) return reply({ result: null });
    // Errors, reverts above all, come with their data: the node says them itself.
    return result === undefined ? forward(JSON.stringify({ ...call, params })) : reply({ result });
  }

  function tooCheap(call: Call): { code: number; message: string } | undefined {
    if (call.method !== 'eth_sendRawTransaction') return undefined;
    const transaction = Transaction.from(String(call.params?.[0]));
    const key = `${transaction.from}/${transaction.nonce}`;
    const fee = transaction.maxFeePerGas ?? 0n;
    const before = fees.get(key);
    if (before !== undefined && fee !== before) replacements += 1;
    if (before !== undefined && fee !== before && fee * 10n < before * 11n) {
      bumpsRefused += 1;
      return { code: -32000, message: 'replacement transaction underpriced' };
    }
    if (before === undefined || fee > before) fees.set(key, fee);
    return undefined;
  }

  const server = createServer((request, response) => {
    response.on('error', () => response.destroy());
    if (habit?.is === 'down') {
      spoiled += 1;
      return void request.socket.resetAndDestroy();
    }
    answer(request, response).catch(() => response.socket?.resetAndDestroy());
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => sockets.delete(socket));
    if (habit?.is === 'down') socket.resetAndDestroy();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as { port: number };
  const resetAll = () => {
    for (const socket of sockets) socket.resetAndDestroy();
  };

  return {
    url: `http://127.0.0.1:${port}`,
    calls,
    get spoiled() {
      return spoiled;
    },
    get replacements() {
      return replacements;
    },
    get bumpsRefused() {
      return bumpsRefused;
    },
    misbehave(given) {
      habit = given;
      dropped = 0;
      // Connections that hang, or are to hang, are dropped in either direction of the change.
      if (given.is === 'down') resetAll();
    },
    refuseSmallBumps(on) {
      strict = on;
      fees.clear();
    },
    aim(url) {
      target = url;
    },
    behave() {
      const hung = habit?.is === 'hang';
      habit = undefined;
      strict = false;
      if (hung) resetAll();
    },
    close() {
      resetAll();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

async function read(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > mostBytes) throw new Error('the request is too long');
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString('utf8');
}
