/** A key that somebody else keeps: what comes back is believed when it is what was asked, and by that key. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Transaction } from 'ethers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { keyFromHex } from '../../../../operator/adapters/chain/key.ts';
import { remoteSigner, SignerUnavailable, SignerUntrue } from '../../../../operator/adapters/chain/remote-signer.ts';
import type { Address } from '../../../../operator/api/messages.ts';

const key = keyFromHex('11'.repeat(32));
const stranger = keyFromHex('22'.repeat(32));
const transaction = {
  type: 2,
  chainId: 31337,
  nonce: 4,
  gasLimit: 90_000n,
  to: `0x${'aa'.repeat(20)}`,
  data: '0x1234',
  value: 0n,
  maxFeePerGas: 5n,
  maxPriorityFeePerGas: 1n,
};

type Asked = { method: string; params: [Record<string, string>]; token?: string };
let answer: (asked: Asked) => Promise<unknown> | unknown;
const server = createServer(async (request, response) => {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const asked = JSON.parse(Buffer.concat(chunks).toString());
  const body = await answer({ ...asked, token: request.headers.authorization });
  response.end(
    typeof body === 'string' && body.startsWith('<') ? body : JSON.stringify({ id: asked.id, ...(body as object) }),
  );
});
beforeAll(() => new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve)));
afterAll(() => void server.close());

const signer = () =>
  remoteSigner({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    address: key.address,
    token: () => 't0ken',
    timeoutMs: 2000,
  });
const signedBy =
  (who: typeof key, change: object = {}) =>
  async ({ params: [tx] }: Asked) => ({
    result: await who.signTransaction({
      type: 2,
      chainId: Number(tx.chainId),
      nonce: Number(tx.nonce),
      gasLimit: BigInt(tx.gas!),
      to: tx.to as Address,
      data: tx.data as string,
      value: BigInt(tx.value!),
      maxFeePerGas: BigInt(tx.maxFeePerGas!),
      maxPriorityFeePerGas: BigInt(tx.maxPriorityFeePerGas!),
      ...change,
    }),
  });

test('gives the bytes that the signer signed, whichever way it wraps them', async () => {
  let token: string | undefined;
  answer = (asked) => {
    token = asked.token;
    expect(asked.method).toBe('eth_signTransaction');
    return signedBy(key)(asked);
  };
  const raw = await signer().signTransaction(transaction);
  expect(Transaction.from(raw).from).toBe(key.address);
  expect(raw).toBe(await key.signTransaction(transaction));
  expect(token).toBe('Bearer t0ken');
  answer = async (asked) => ({ result: { raw: (await signedBy(key)(asked)).result, tx: {} } });
  expect(await signer().signTransaction(transaction)).toBe(raw);
});

const lies: [string, (asked: Asked) => unknown, RegExp][] = [
  ['another key', signedBy(stranger), /signed as/],
  ['another receiver', signedBy(key, { to: `0x${'bb'.repeat(20)}` }), /another transaction/],
  ['another value', signedBy(key, { value: 1n }), /another transaction/],
  ['another chain', signedBy(key, { chainId: 1 }), /another transaction/],
  ['no transaction', () => ({ result: '0x1234' }), /no signed transaction/],
];
test.each(lies)('refuses what was signed with or for %s', async (_, by, why) => {
  answer = by;
  const refused = signer().signTransaction(transaction);
  await expect(refused).rejects.toBeInstanceOf(SignerUntrue);
  await expect(signer().signTransaction(transaction)).rejects.toThrow(why);
});

test('takes silence, a page and a no for what may be otherwise later', async () => {
  answer = () => ({ error: { code: -32000, message: 'locked' } });
  await expect(signer().signTransaction(transaction)).rejects.toThrow(/does not sign: locked/);
  answer = () => '<html>';
  await expect(signer().signTransaction(transaction)).rejects.toBeInstanceOf(SignerUnavailable);
});

test('signs typed data, and looks who did', async () => {
  const types = { Mail: [{ name: 'text', type: 'string' }] };
  const signature = await key.signTypedData({ name: 'x' }, types, { text: 'hi' });
  answer = ({ method }) => ({ result: method === 'eth_signTypedData' ? signature : null });
  expect(await signer().signTypedData({ name: 'x' }, types, { text: 'hi' })).toBe(signature);
  await expect(signer().signTypedData({ name: 'x' }, types, { text: 'ho' })).rejects.toBeInstanceOf(SignerUntrue);
});
