/**
 * A private key behind the two things that it may do. The key itself cannot be read back, and no error or inspection
 * shows it; whoever holds a ChainKey can sign with it and nothing more.
 */
import { readFile } from 'node:fs/promises';
import { type TransactionLike, type TypedDataDomain, Wallet } from 'ethers';
import type { Address, Hex } from '../../api/messages.ts';

export type TypedFields = Record<string, { name: string; type: string }[]>;

export interface ChainKey {
  readonly address: Address;
  signTypedData(domain: TypedDataDomain, types: TypedFields, message: Record<string, unknown>): Promise<Hex>;
  signTransaction(transaction: TransactionLike): Promise<Hex>;
}

/** The file or text holds no key. Says where and what is expected, never what was found. */
export class KeyError extends Error {
  override readonly name = 'KeyError';
  readonly terminal = true;
}

/** Reads 32 bytes as hexadecimal digits, or an encrypted keystore (JSON, with its password). */
export async function loadKey(file: string, password?: string): Promise<ChainKey> {
  let text: string;
  try {
    text = (await readFile(file, 'utf8')).trim();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    throw new KeyError(`cannot read the key file ${file} (${code}): name a readable file with a private key`);
  }
  return loadKeyText(`file ${file}`, text, password);
}

/** The same from text that was read elsewhere; `where` completes "the key …". */
export async function loadKeyText(where: string, text: string, password?: string): Promise<ChainKey> {
  if (text.startsWith('{')) {
    if (password === undefined) throw new KeyError(`the key ${where} is an encrypted keystore: give its password too`);
    try {
      return narrow(await Wallet.fromEncryptedJson(text, password));
    } catch {
      // The library's message may quote its input.
      throw new KeyError(`the keystore ${where} does not open: wrong password, or not a keystore`);
    }
  }
  try {
    return keyFromHex(text);
  } catch {
    throw new KeyError(`the key ${where} holds neither 32 bytes in hexadecimal nor a keystore`);
  }
}

export function keyFromHex(privateKey: string): ChainKey {
  const hex = privateKey.startsWith('0x') ? privateKey : `0x${privateKey}`;
  if (!/^0x[0-9a-fA-F]{64}$/.test(hex)) throw new KeyError('a private key is 32 bytes in hexadecimal');
  try {
    return narrow(new Wallet(hex));
  } catch {
    throw new KeyError('the private key is outside of the range of the curve');
  }
}

/** A fresh random key, e.g. for a session. The caller keeps it secret. */
export function newKeyHex(): Hex {
  return Wallet.createRandom().privateKey as Hex;
}

function narrow(wallet: {
  address: string;
  signTypedData: Wallet['signTypedData'];
  signTransaction: Wallet['signTransaction'];
}): ChainKey {
  return {
    address: wallet.address as Address,
    signTypedData: async (domain, types, message) => (await wallet.signTypedData(domain, types, message)) as Hex,
    signTransaction: async (transaction) => (await wallet.signTransaction(transaction)) as Hex,
  };
}
