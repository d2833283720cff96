/** What a token is believed to take, by what it answers. */
import { AbiCoder, Interface, id, keccak256, toUtf8Bytes, verifyTypedData } from 'ethers';
import { describe, expect, it } from 'vitest';
import { keyFromHex } from '../../../../operator/adapters/chain/key.ts';
import { ChainUnavailable, type Rpc, RpcError } from '../../../../operator/adapters/chain/rpc.ts';
import { signAuthorization, signingToken, signPermit } from '../../../../operator/adapters/chain/token-signatures.ts';
import type { Address, Hex, Hex32 } from '../../../../operator/api/messages.ts';

const abi = new Interface([
  'function name() view returns (string)',
  'function version() view returns (string)',
  'function nonces(address) view returns (uint256)',
  'function DOMAIN_SEPARATOR() view returns (bytes32)',
  'function PERMIT_TYPEHASH() view returns (bytes32)',
  'function RECEIVE_WITH_AUTHORIZATION_TYPEHASH() view returns (bytes32)',
  'function authorizationState(address,bytes32) view returns (bool)',
]);
const token: Address = `0x${'ab'.repeat(20)}`;
const escrow: Address = `0x${'cd'.repeat(20)}`;
const key = keyFromHex('11'.repeat(32));
const chainId = 42161;

function separator(name: string, version: string, chain = chainId): string {
  const hash = (text: string) => keccak256(toUtf8Bytes(text));
  const type = id('EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)');
  const types = ['bytes32', 'bytes32', 'bytes32', 'uint256', 'address'];
  return keccak256(AbiCoder.defaultAbiCoder().encode(types, [type, hash(name), hash(version), chain, token]));
}

/** A token that answers these and reverts at all else. */
const rpcOf = (answers: Record<string, unknown>, silent = false): Rpc =>
  ({
    chainId,
    async contractCall({ data }: { data: Hex }) {
      if (silent) throw new ChainUnavailable('nobody answers');
      const { name } = abi.parseTransaction({ data })!;
      if (!(name in answers)) throw new RpcError(3, 'execution reverted');
      if (answers[name] === 'no bytes') return '0x';
      return abi.encodeFunctionResult(name, [answers[name]]) as Hex;
    },
  }) as unknown as Rpc;

const usdc = {
  name: 'USD Coin',
  version: '2',
  nonces: 7n,
  DOMAIN_SEPARATOR: separator('USD Coin', '2'),
  authorizationState: false,
};
const permitHash = id('Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)');
const receiveHash = id(
  'ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)',
);

describe('a token', () => {
  it.each<[string, Record<string, unknown>, boolean, boolean]>([
    ['takes both, as native USDC does', usdc, true, true],
    [
      'takes both, and shows what it signs',
      { ...usdc, PERMIT_TYPEHASH: permitHash, RECEIVE_WITH_AUTHORIZATION_TYPEHASH: receiveHash },
      true,
      true,
    ],
    [
      'takes permits alone, and names no version: it means 1',
      { name: 'GPU Lease', nonces: 0n, DOMAIN_SEPARATOR: separator('GPU Lease', '1') },
      true,
      false,
    ],
    ['takes none, as plain tokens do', { name: 'Old' }, false, false],
    [
      'takes none when its domain is of another chain',
      { ...usdc, DOMAIN_SEPARATOR: separator('USD Coin', '2', 1) },
      false,
      false,
    ],
    [
      'takes none when its domain is another than can be told',
      { ...usdc, DOMAIN_SEPARATOR: separator('USDC', '9') },
      false,
      false,
    ],
    [
      'takes no permit when its own, as of DAI, means something else',
      {
        ...usdc,
        PERMIT_TYPEHASH: id('Permit(address holder,address spender,uint256 nonce,uint256 expiry,bool allowed)'),
      },
      false,
      true,
    ],
    [
      'takes none when it answers everything with nothing',
      { name: 'no bytes', DOMAIN_SEPARATOR: 'no bytes', nonces: 'no bytes' },
      false,
      false,
    ],
  ])('%s', async (_, answers, permit, authorization) => {
    expect(await signingToken(rpcOf(answers), token, key.address)).toMatchObject({ permit, authorization });
  });

  it('is not said to take none when nobody answers', async () => {
    await expect(signingToken(rpcOf({}, true), token, key.address)).rejects.toThrow(ChainUnavailable);
  });

  it('gets permits and authorizations that its owner signed, for this spender, and for no longer than was said', async () => {
    const rpc = rpcOf(usdc);
    const { domain } = await signingToken(rpc, token, key.address);
    const permit = await signPermit(key, rpc, domain, escrow, 99);
    const uint = (name: string) => ({ name, type: 'uint256' });
    const address = (name: string) => ({ name, type: 'address' });
    expect(
      verifyTypedData(
        { ...domain },
        { Permit: [address('owner'), address('spender'), uint('value'), uint('nonce'), uint('deadline')] },
        { owner: key.address, spender: escrow, value: 2n ** 256n - 1n, nonce: 7n, deadline: 99 },
        permit.signature,
      ),
    ).toBe(key.address);
    const nonce: Hex32 = `0x${'5a'.repeat(32)}`;
    const authorization = await signAuthorization(key, domain, { to: escrow, value: 5n, nonce, validBefore: 99 });
    expect(
      verifyTypedData(
        { ...domain },
        {
          ReceiveWithAuthorization: [
            address('from'),
            address('to'),
            uint('value'),
            uint('validAfter'),
            uint('validBefore'),
            { name: 'nonce', type: 'bytes32' },
          ],
        },
        { from: key.address, to: escrow, value: 5n, validAfter: 0, validBefore: 99, nonce },
        authorization.signature,
      ),
    ).toBe(key.address);
  });
});
