/**
 * What a token's holder signs, instead of sending an approval: EIP-2612 permits and EIP-3009 authorizations, both EIP-712 in
 * the token's own domain. A token is believed to take them when the domain that we would sign in is the one that it names;
 * whether it really does is found out by simulating the opening, which is done before anything is signed away.
 */
import { AbiCoder, Interface, id, keccak256, MaxUint256, toUtf8Bytes, ZeroHash } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import type { TokenSignatures } from '../../core/money/funding.ts';
import type { AuthorizationSignature, PermitSignature } from './escrow-client.ts';
import type { ChainKey, TypedFields } from './key.ts';
import { type Rpc, RpcError } from './rpc.ts';

export interface TokenDomain {
  readonly name: string;
  readonly version: string;
  readonly chainId: number;
  readonly verifyingContract: Address;
}

export interface SigningToken extends TokenSignatures {
  readonly domain: TokenDomain;
}

const abi = new Interface([
  'function name() view returns (string)',
  'function version() view returns (string)',
  'function nonces(address) view returns (uint256)',
  'function DOMAIN_SEPARATOR() view returns (bytes32)',
  'function PERMIT_TYPEHASH() view returns (bytes32)',
  'function RECEIVE_WITH_AUTHORIZATION_TYPEHASH() view returns (bytes32)',
  'function authorizationState(address,bytes32) view returns (bool)',
]);

const permitTypes: TypedFields = {
  Permit: [
    { name: 'owner', type: 'address' },
    { name: 'spender', type: 'address' },
    { name: 'value', type: 'uint256' },
    { name: 'nonce', type: 'uint256' },
    { name: 'deadline', type: 'uint256' },
  ],
};
const authorizationTypes: TypedFields = {
  ReceiveWithAuthorization: [
    { name: 'from', type: 'address' },
    { name: 'to', type: 'address' },
    { name: 'value', type: 'uint256' },
    { name: 'validAfter', type: 'uint256' },
    { name: 'validBefore', type: 'uint256' },
    { name: 'nonce', type: 'bytes32' },
  ],
};
const typeHash = (types: TypedFields): string => {
  const [[name, fields] = ['', []]] = Object.entries(types);
  return id(`${name}(${fields.map((field) => `${field.type} ${field.name}`).join(',')})`);
};
const domainTypeHash = id('EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)');

/** What this token takes of this owner; silence of the chain throws. */
export async function signingToken(
  rpc: Rpc,
  token: Address,
  owner: Address,
  signal?: AbortSignal,
): Promise<SigningToken> {
  /** Undefined: the token answers no such question. */
  async function ask<T>(method: string, args: readonly unknown[] = []): Promise<T | undefined> {
    try {
      const data = abi.encodeFunctionData(method, args) as Hex;
      const answer = await rpc.contractCall({ to: token, data }, 'latest', signal);
      return abi.decodeFunctionResult(method, answer)[0] as T;
    } catch (error) {
      if (error instanceof RpcError || (error as { code?: string }).code === 'BAD_DATA') return undefined;
      throw error;
    }
  }
  const [separator, name, version, nonce, permitHash, authorizationHash, used] = await Promise.all([
    ask<string>('DOMAIN_SEPARATOR'),
    ask<string>('name'),
    ask<string>('version'),
    ask<bigint>('nonces', [owner]),
    ask<string>('PERMIT_TYPEHASH'),
    ask<string>('RECEIVE_WITH_AUTHORIZATION_TYPEHASH'),
    ask<boolean>('authorizationState', [owner, ZeroHash]),
  ]);
  // Many name no version and mean 1; some of Circle's say 2 in another place.
  const domain = [version, '1', '2']
    .filter((one): one is string => one !== undefined)
    .map((one) => ({ name: name ?? '', version: one, chainId: rpc.chainId, verifyingContract: token }))
    .find((one) => separatorOf(one) === separator);
  const unsigned = { name: name ?? '', version: '1', chainId: rpc.chainId, verifyingContract: token };
  if (domain === undefined) return { permit: false, authorization: false, domain: unsigned };
  // DAI's permit, for one, has the name and another meaning: where a token shows what it signs, that decides.
  const same = (shown: string | undefined, types: TypedFields) => shown === undefined || shown === typeHash(types);
  return {
    domain,
    permit: nonce !== undefined && same(permitHash, permitTypes),
    authorization: used !== undefined && same(authorizationHash, authorizationTypes),
  };
}

function separatorOf({ name, version, chainId, verifyingContract }: TokenDomain): string {
  const types = ['bytes32', 'bytes32', 'bytes32', 'uint256', 'address'];
  const hash = (text: string) => keccak256(toUtf8Bytes(text));
  return keccak256(
    AbiCoder.defaultAbiCoder().encode(types, [domainTypeHash, hash(name), hash(version), chainId, verifyingContract]),
  );
}

/**
 * An allowance without limit for the spender, until which time it must have been played. Several with one nonce do no harm: the
 * first that is mined brings the allowance, and the escrow contract lets the others fail.
 */
export async function signPermit(
  key: Pick<ChainKey, 'address' | 'signTypedData'>,
  rpc: Rpc,
  domain: TokenDomain,
  spender: Address,
  deadline: number,
  signal?: AbortSignal,
): Promise<PermitSignature> {
  const data = abi.encodeFunctionData('nonces', [key.address]) as Hex;
  const answer = await rpc.contractCall({ to: domain.verifyingContract, data }, 'latest', signal);
  const [nonce] = abi.decodeFunctionResult('nonces', answer);
  const message = { owner: key.address, spender, value: MaxUint256, nonce, deadline };
  return { value: MaxUint256, deadline, signature: await key.signTypedData({ ...domain }, permitTypes, message) };
}

/** For this receiver, this amount and this nonce alone, until it expires. */
export async function signAuthorization(
  key: Pick<ChainKey, 'address' | 'signTypedData'>,
  domain: TokenDomain,
  terms: { readonly to: Address; readonly value: bigint; readonly nonce: Hex32; readonly validBefore: number },
): Promise<AuthorizationSignature> {
  const message = { from: key.address, validAfter: 0, ...terms };
  const signature = await key.signTypedData({ ...domain }, authorizationTypes, message);
  return { validAfter: 0, validBefore: terms.validBefore, signature };
}
