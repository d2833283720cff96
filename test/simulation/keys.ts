/**
 * Signatures without curves: whoever may sign is known by name here, and a signature is a hash that only this module makes.
 * Cryptography has tests of its own; a simulation needs only to know who said what.
 */
import { createHash } from 'node:crypto';
import { Signature, Transaction } from 'ethers';
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import type { Address, Hex, Hex32, MessageDomain, Quote } from '../../operator/api/messages.ts';

export const digest = (...parts: unknown[]): Hex32 =>
  `0x${createHash('sha256').update(JSON.stringify(parts, canonical)).digest('hex')}`;

/** The same for equal values, in whatever order their fields were written. */
function canonical(_: string, value: unknown): unknown {
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Lower case throughout: the model of the contract uses addresses as keys. */
export const addressOf = (name: string): Address => digest('address', name).slice(0, 42) as Address;

export const sign = (signer: Address, kind: string, domain: MessageDomain, message: object): Hex =>
  `${digest('signature', signer, kind, domain.chainId, domain.escrow, message)}${'0'.repeat(66)}`;
export const signedBy = (signer: Address, kind: string, domain: MessageDomain, message: object, signature: string) =>
  sign(signer, kind, domain, message) === signature;

export const hashQuote = (domain: MessageDomain, quote: Quote): Hex32 =>
  digest('quote', domain.chainId, domain.escrow, quote);
export const leaseIdOf = (consumer: Address, leaseRef: Hex32): Hex32 => digest('lease', consumer, leaseRef);

const stamp = Signature.from(`0x${'11'.repeat(32)}${'22'.repeat(32)}1b`);

/** Signs transactions that have the shape, and so the hash, of real ones. */
export interface SignedTransaction {
  readonly nonce: number;
  readonly to: string;
  readonly data: string;
  readonly maxFeePerGas: bigint;
}

export function walletKey(
  address: Address,
  signed: (raw: string, hash: Hex32, transaction: SignedTransaction) => void,
): ChainKey {
  return {
    address,
    signTypedData: () => Promise.reject(new Error('a wallet signs transactions only')),
    async signTransaction(tx) {
      const transaction = Transaction.from(tx);
      transaction.signature = stamp;
      const { nonce, data, maxFeePerGas } = transaction;
      signed(transaction.serialized, transaction.hash as Hex32, {
        nonce,
        data,
        to: (transaction.to ?? '').toLowerCase(),
        maxFeePerGas: maxFeePerGas ?? 0n,
      });
      return transaction.serialized as Hex;
    },
  };
}
