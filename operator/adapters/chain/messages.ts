/**
 * Signs, verifies and hashes the messages of api/messages.ts. A signature is checked against the account that it must be
 * from; "some valid signature" is no result that anybody asks for.
 *
 * Quote and Release come from a provider, which may be a contract (ERC-1271); for those, pass the chain. Voucher and Access
 * come from a session key, which is always a plain key: a contract could take its word back.
 */
import { AbiCoder, Interface, keccak256, recoverAddress, TypedDataEncoder, toUtf8Bytes } from 'ethers';
import {
  type Access,
  type Address,
  domainName,
  domainVersion,
  type Hex,
  type Hex32,
  type MessageDomain,
  messageTypes,
  type Quote,
  type ReceiptSeal,
  type Release,
  type Signed,
  type Voucher,
} from '../../api/messages.ts';
import type { ChainKey, TypedFields } from './key.ts';

type Kind = keyof typeof messageTypes;

/** Asks a contract on chain; `Rpc` is one. */
export interface ContractCaller {
  contractCall(call: { to: Address; data: Hex }): Promise<Hex>;
}

/** The signature is not the expected account's. A fact: asking again does not help. */
export class SignatureMismatch extends Error {
  override readonly name = 'SignatureMismatch';
  readonly terminal = true;
  readonly kind: Kind;
  readonly expected: Address;
  /** Who signed instead; absent when the signature is malformed. */
  readonly recovered: Address | undefined;

  constructor(kind: Kind, expected: Address, recovered: Address | undefined) {
    super(
      recovered === undefined
        ? `the ${kind} carries no readable signature; expected one of ${expected}`
        : `the ${kind} is signed by ${recovered}, expected ${expected}: check chain, contract and address on both sides`,
    );
    this.kind = kind;
    this.expected = expected;
    this.recovered = recovered;
  }
}

export const hashQuote = (domain: MessageDomain, message: Quote): Hex32 => digest(domain, 'Quote', message);
export const hashVoucher = (domain: MessageDomain, message: Voucher): Hex32 => digest(domain, 'Voucher', message);
export const hashRelease = (domain: MessageDomain, message: Release): Hex32 => digest(domain, 'Release', message);
export const hashAccess = (domain: MessageDomain, message: Access): Hex32 => digest(domain, 'Access', message);

export const signQuote = (key: ChainKey, domain: MessageDomain, message: Quote) => sign(key, domain, 'Quote', message);
export const signVoucher = (key: ChainKey, domain: MessageDomain, message: Voucher) =>
  sign(key, domain, 'Voucher', message);
export const signRelease = (key: ChainKey, domain: MessageDomain, message: Release) =>
  sign(key, domain, 'Release', message);
export const signAccess = (key: ChainKey, domain: MessageDomain, message: Access) =>
  sign(key, domain, 'Access', message);
export const signReceipt = (key: ChainKey, domain: MessageDomain, message: ReceiptSeal) =>
  sign(key, domain, 'Receipt', message);

/** Throws SignatureMismatch unless `message.provider` signed; what the chain cannot answer throws its own error. */
export const verifyQuote = (domain: MessageDomain, signed: Signed<Quote>, chain?: ContractCaller): Promise<void> =>
  verifyAccount(domain, 'Quote', signed, signed.message.provider, chain);

/** Throws SignatureMismatch unless this provider signed. */
export const verifyRelease = (
  domain: MessageDomain,
  signed: Signed<Release>,
  provider: Address,
  chain?: ContractCaller,
): Promise<void> => verifyAccount(domain, 'Release', signed, provider, chain);

/** Throws SignatureMismatch unless the session key signed. */
export function verifyVoucher(domain: MessageDomain, signed: Signed<Voucher>, sessionKey: Address): void {
  verifyKey('Voucher', digest(domain, 'Voucher', signed.message), signed.signature, sessionKey);
}

/** Throws SignatureMismatch unless the session key signed. Whose gateway, which lease, how long: the caller checks. */
export function verifyAccess(domain: MessageDomain, signed: Signed<Access>, sessionKey: Address): void {
  verifyKey('Access', digest(domain, 'Access', signed.message), signed.signature, sessionKey);
}

/** Who signed the message; undefined when the signature cannot be read. For papers: where it matters who, use `verify…`. */
export function signerOf(domain: MessageDomain, kind: Kind, message: object, signature: Hex): Address | undefined {
  return recovered(digest(domain, kind, message), signature);
}

/** Whether a provider that is a contract (ERC-1271) takes the signature for its own. What the chain cannot answer throws. */
export const acceptedByContract = (
  chain: ContractCaller,
  account: Address,
  domain: MessageDomain,
  kind: Kind,
  signed: Signed<object>,
): Promise<boolean> => isValidForContract(chain, account, digest(domain, kind, signed.message), signed.signature);

/** One escrow for one attempt of one lease of one cluster. */
export function leaseRefOf(clusterUID: string, leaseUID: string, attempt: number): Hex32 {
  const types = ['string', 'string', 'uint256'];
  return keccak256(AbiCoder.defaultAbiCoder().encode(types, [clusterUID, leaseUID, attempt])) as Hex32;
}

/** The contract's id of the escrow that this consumer opens for this lease. */
export function leaseIdOf(consumer: Address, leaseRef: Hex32): Hex32 {
  return keccak256(AbiCoder.defaultAbiCoder().encode(['address', 'bytes32'], [consumer, leaseRef])) as Hex32;
}

/**
 * Nonce of the EIP-3009 authorization by which a consumer agrees to open an escrow with this quote and session key, so that
 * anybody may send the opening and nobody can make anything else of it.
 */
export function authorizationNonce(quoteHash: Hex32, signer: Address): Hex32 {
  return keccak256(AbiCoder.defaultAbiCoder().encode(['bytes32', 'address'], [quoteHash, signer])) as Hex32;
}

/** keccak256 of the JSON text with sorted keys and no spaces, so that equal values hash alike wherever they come from. */
export function hashJson(value: unknown): Hex32 {
  return keccak256(toUtf8Bytes(canonical(value))) as Hex32;
}

/** JSON of a quote: amounts as decimal strings. */
export function quoteToJson(
  quote: Quote,
): Omit<Quote, 'pricePerGpuHour' | 'nonce'> & { pricePerGpuHour: string; nonce: string } {
  return { ...quote, pricePerGpuHour: quote.pricePerGpuHour.toString(), nonce: quote.nonce.toString() };
}

/** The reverse. Assumes that the shape was validated (api/gateway.ts `quoteJson`). */
export function quoteFromJson(
  json: {
    readonly [Field in keyof Quote]: Quote[Field] extends bigint | `0x${string}` ? string : Quote[Field];
  },
): Quote {
  return { ...json, pricePerGpuHour: BigInt(json.pricePerGpuHour), nonce: BigInt(json.nonce) } as Quote;
}

async function sign<T extends object>(
  key: ChainKey,
  domain: MessageDomain,
  kind: Kind,
  message: T,
): Promise<Signed<T>> {
  const signature = await key.signTypedData(typedDomain(domain), typesOf(kind), { ...message } as Record<
    string,
    unknown
  >);
  return { message, signature };
}

async function verifyAccount(
  domain: MessageDomain,
  kind: Kind,
  signed: Signed<object>,
  expected: Address,
  chain?: ContractCaller,
): Promise<void> {
  const hash = digest(domain, kind, signed.message);
  try {
    verifyKey(kind, hash, signed.signature, expected);
  } catch (error) {
    if (!chain || !(error instanceof SignatureMismatch)) throw error;
    if (!(await isValidForContract(chain, expected, hash, signed.signature))) throw error;
  }
}

function verifyKey(kind: Kind, hash: Hex32, signature: Hex, expected: Address): void {
  const signer = recovered(hash, signature);
  if (signer?.toLowerCase() !== expected.toLowerCase()) throw new SignatureMismatch(kind, expected, signer);
}

function recovered(hash: Hex32, signature: Hex): Address | undefined {
  try {
    // 65 bytes only, as in the contract: compact signatures verify here otherwise, and revert there.
    return signature.length === 132 ? (recoverAddress(hash, signature) as Address) : undefined;
  } catch {
    return undefined;
  }
}

const erc1271 = new Interface(['function isValidSignature(bytes32 hash, bytes signature) view returns (bytes4)']);
const erc1271Magic = '0x1626ba7e';

async function isValidForContract(
  chain: ContractCaller,
  account: Address,
  hash: Hex32,
  signature: Hex,
): Promise<boolean> {
  const data = erc1271.encodeFunctionData('isValidSignature', [hash, signature]) as Hex;
  try {
    const answer = await chain.contractCall({ to: account, data });
    return answer.length >= 66 && answer.slice(0, 66) === erc1271Magic.padEnd(66, '0');
  } catch (error) {
    // A contract that reverts says no. A node that does not answer says nothing, and must not look like a no.
    if (error instanceof Error && error.name === 'RpcError') return false;
    throw error;
  }
}

function digest(domain: MessageDomain, kind: Kind, message: object): Hex32 {
  return TypedDataEncoder.hash(typedDomain(domain), typesOf(kind), { ...message }) as Hex32;
}

function typedDomain(domain: MessageDomain) {
  return { name: domainName, version: domainVersion, chainId: domain.chainId, verifyingContract: domain.escrow };
}

function typesOf(kind: Kind): TypedFields {
  return { [kind]: messageTypes[kind].map((field) => ({ ...field })) };
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (value !== null && typeof value === 'object') {
    const members = Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`);
    return `{${members.join(',')}}`;
  }
  const text = typeof value === 'number' && !Number.isFinite(value) ? undefined : JSON.stringify(value);
  if (text === undefined) throw new TypeError(`no JSON value: ${String(value)}`);
  return text;
}
