/** The endpoint with bad habits, held to what it says they are. */
import { createServer } from 'node:http';
import { Wallet } from 'ethers';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
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
