/** The endpoint with bad habits, held to what it says they are. */
import { createServer } from 'node:http';
import { Wallet } from 'ethers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type FaultyRpc, startFaultyRpc } from '../../support/faulty-rpc.ts';

const taken: string[] = [];
const node = createServer((request, response) => {
  let body = '';
  request.on('data', (chunk) => {
    body += chunk;
  });
  request.on('end', () => {
    const { id, method, params } = JSON.parse(body);
    taken.push(method === 'eth_sendRawTransaction' ? params[0] : method);
    response.end(JSON.stringify({ jsonrpc: '2.0', id, result: method === 'eth_chainId' ? '0x7a69' : '0x1' }));
  });
});
let rpc: FaultyRpc;

beforeAll(async () => {
  await new Promise<void>((resolve) => node.listen(0, '127.0.0.1', resolve));
  rpc = await startFaultyRpc(`http://127.0.0.1:${(node.address() as { port: number }).port}`);
});
afterAll(async () => {
  await rpc.close();
  node.close();
});
afterEach(() => {
  rpc.behave();
  taken.length = 0;
});

const post = (method: string, ...params: unknown[]) =>
  fetch(rpc.url, {
    method: 'POST',
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
    signal: AbortSignal.timeout(500),
  });
const ask = async (method: string, ...params: unknown[]) =>
  (await (await post(method, ...params)).json()) as { result?: string; error?: { message: string } };

it('passes calls on, and counts them', async () => {
  expect(await ask('eth_chainId')).toMatchObject({ result: '0x7a69' });
  expect(rpc.calls.get('eth_chainId')).toBe(1);
});

it.each(['down', 'hang'] as const)('gives no answer: %s', async (is) => {
  rpc.misbehave({ is });
  await expect(post('eth_blockNumber')).rejects.toThrow();
  expect(taken).toEqual([]);
  rpc.behave();
  expect(await ask('eth_blockNumber')).toMatchObject({ result: '0x1' });
});

it('answers 500 with a page', async () => {
  rpc.misbehave({ is: 'error' });
  const answer = await post('eth_blockNumber');
  expect([answer.status, answer.headers.get('content-type')]).toEqual([500, 'text/html']);
});

it('answers half a JSON', async () => {
  rpc.misbehave({ is: 'truncate' });
  await expect(ask('eth_blockNumber')).rejects.toThrow(SyntaxError);
});

it('is another chain', async () => {
  rpc.misbehave({ is: 'wrongChain', chainId: 4242 });
  expect(await ask('eth_chainId')).toMatchObject({ result: '0x1092' });
});

it('does the call and loses the answer, as often as it was told', async () => {
  rpc.misbehave({ is: 'dropAnswers', methods: /^eth_send/, times: 1 });
  await expect(post('eth_sendRawTransaction', '0xaa')).rejects.toThrow();
  expect(taken).toEqual(['0xaa']);
  expect(await ask('eth_sendRawTransaction', '0xbb')).toMatchObject({ result: '0x1' });
});

it('refuses a replacement that pays less than ten percent more', async () => {
  rpc.refuseSmallBumps(true);
  const wallet = Wallet.createRandom();
  const sign = (maxFeePerGas: bigint) =>
    wallet.signTransaction({ type: 2, chainId: 1, nonce: 0, to: wallet.address, gasLimit: 21_000n, maxFeePerGas });
  expect(await ask('eth_sendRawTransaction', await sign(1000n))).toMatchObject({ result: '0x1' });
  expect((await ask('eth_sendRawTransaction', await sign(1090n))).error?.message).toMatch(/underpriced/);
  expect(await ask('eth_sendRawTransaction', await sign(1100n))).toMatchObject({ result: '0x1' });
});

describe('one that lags', () => {
  /** A node at block 100, with 92 safe; it answers with the block that it was asked about. */
  const receipts: Record<string, number> = { '0xold': 70, '0xnew': 99 };
  const hashes: Record<string, number> = { '0xb70': 70, '0xb99': 99 };
  const chain = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => {
      const { id, method, params } = JSON.parse(body);
      const block = (number: number) => ({ number: `0x${number.toString(16)}` });
      const answers: Record<string, () => unknown> = {
        eth_blockNumber: () => '0x64',
        eth_getBlockByNumber: () => block(params[0] === 'safe' ? 92 : Number(params[0])),
        eth_getBlockByHash: () => block(hashes[params[0]]!),
        eth_getTransactionReceipt: () => ({ blockNumber: block(receipts[params[0]]!).number }),
      };
      response.end(JSON.stringify({ jsonrpc: '2.0', id, result: answers[method]?.() ?? params.at(-1) }));
    });
  });
  let behind: FaultyRpc;
  const look = async (method: string, ...params: unknown[]) => {
    const answer = await fetch(behind.url, { method: 'POST', body: JSON.stringify({ id: 7, method, params }) });
    return (await answer.json()) as { result?: unknown; error?: { message: string } };
  };

  beforeAll(async () => {
    await new Promise<void>((resolve) => chain.listen(0, '127.0.0.1', resolve));
    behind = await startFaultyRpc(`http://127.0.0.1:${(chain.address() as { port: number }).port}`);
  });
  afterAll(async () => {
    await behind.close();
    chain.close();
  });

  it('tells of what was, and does not know what came after', async () => {
    behind.misbehave({ is: 'lags', blocks: 20 });
    expect((await look('eth_blockNumber')).result).toBe('0x50');
    expect((await look('eth_call', {}, 'latest')).result).toBe('0x50');
    expect((await look('eth_getTransactionCount', '0xa', 'pending')).result).toBe('0x50');
    // Its safe block cannot be above its own head.
    expect((await look('eth_getBlockByNumber', 'safe', false)).result).toEqual({ number: '0x50' });
    expect((await look('eth_getBlockByNumber', '0x51', false)).result).toBeNull();
    expect((await look('eth_getTransactionReceipt', '0xold')).result).toEqual({ blockNumber: '0x46' });
    expect((await look('eth_getTransactionReceipt', '0xnew')).result).toBeNull();
    expect((await look('eth_call', {}, { blockHash: '0xb70' })).result).toEqual({ blockHash: '0xb70' });
    expect((await look('eth_call', {}, { blockHash: '0xb99' })).error).toMatchObject({ message: 'header not found' });
  });

  it('for some calls alone, is right in all others', async () => {
    behind.misbehave({ is: 'lags', blocks: 20, methods: /Receipt/ });
    expect((await look('eth_blockNumber')).result).toBe('0x64');
    expect((await look('eth_getTransactionReceipt', '0xnew')).result).toBeNull();
  });
});
