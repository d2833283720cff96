/**
 * A key that somebody else keeps: web3signer, Clef, or whatever answers `eth_signTransaction` and `eth_signTypedData` (Clef:
 * `eth_signTypedData_v4`) over JSON-RPC. What comes back is taken apart and compared: a signer that signs something else than
 * was asked, or with another key, is refused.
 *
 * https://docs.web3signer.consensys.io/reference/api/json-rpc
 * https://geth.ethereum.org/docs/tools/clef/apis
 */
import { getAddress, Transaction, type TransactionLike, TypedDataEncoder, verifyTypedData } from 'ethers';
import type { Address, Hex } from '../../api/messages.ts';
import type { ChainKey, TypedFields } from './key.ts';

export interface RemoteSignerOptions {
  /** https, or http within a pod or a network that is trusted: who can speak to it can sign. */
  readonly url: string;
  readonly address: Address;
  /** Shown as a bearer token. Read anew for each request, as such tokens are renewed. */
  readonly token?: () => string;
  readonly timeoutMs?: number;
  readonly fetch?: typeof fetch;
}

/** The signer did not answer, or said no. Asking again may help; nothing was signed as far as we are concerned. */
export class SignerUnavailable extends Error {
  override readonly name = 'SignerUnavailable';
  readonly terminal = false;
}

/** It signed another thing, or with another key: a person must look. */
export class SignerUntrue extends Error {
  override readonly name = 'SignerUntrue';
  readonly terminal = true;
}

const maxAnswerBytes = 64 * 1024;
const quantity = (value: unknown) => `0x${BigInt(value as bigint | number | string).toString(16)}`;

export function remoteSigner(options: RemoteSignerOptions): ChainKey {
  const { url, timeoutMs = 10_000 } = options;
  const ask = options.fetch ?? fetch;
  const address = getAddress(options.address) as Address;
  const { host } = new URL(url);
  let id = 0;

  async function call(method: string, params: readonly unknown[]): Promise<unknown> {
    id += 1;
    let text: string;
    try {
      const answer = await ask(url, {
        method: 'POST',
        headers: {
          'content-type': 'application/json',
          ...(options.token && { authorization: `Bearer ${options.token()}` }),
        },
        body: JSON.stringify({ jsonrpc: '2.0', id, method, params }),
        redirect: 'error',
        signal: AbortSignal.timeout(timeoutMs),
      });
      text = await bounded(answer);
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    } catch (error) {
      throw new SignerUnavailable(`the signer ${host} does not answer: ${reason(error)}`);
    }
    let parsed: { result?: unknown; error?: { code?: unknown; message?: unknown } } | null;
    try {
      parsed = JSON.parse(text);
    } catch {
      throw new SignerUnavailable(`the signer ${host} answers something else than JSON-RPC`);
    }
    if (parsed?.result === undefined || parsed.result === null)
      throw new SignerUnavailable(
        `the signer ${host} does not sign: ${String(parsed?.error?.message ?? 'no reason given').slice(0, 200)}`,
      );
    return parsed.result;
  }

  return {
    address,

    async signTransaction(transaction: TransactionLike): Promise<Hex> {
      const wanted = Transaction.from({ ...transaction, from: undefined });
      const result = await call('eth_signTransaction', [
        {
          from: address,
          to: wanted.to,
          data: wanted.data,
          nonce: quantity(wanted.nonce),
          gas: quantity(wanted.gasLimit),
          value: quantity(wanted.value),
          chainId: quantity(wanted.chainId),
          maxFeePerGas: quantity(wanted.maxFeePerGas ?? 0n),
          maxPriorityFeePerGas: quantity(wanted.maxPriorityFeePerGas ?? 0n),
        },
      ]);
      // web3signer gives the bytes, Clef and geth an object with them.
      const raw = typeof result === 'string' ? result : (result as { raw?: unknown }).raw;
      let signed: Transaction;
      try {
        signed = Transaction.from(String(raw));
      } catch {
        throw new SignerUntrue(`the signer ${host} gave no signed transaction`);
      }
      if (signed.from?.toLowerCase() !== address.toLowerCase())
        throw new SignerUntrue(`the signer ${host} signed as ${signed.from ?? 'nobody'}, not as ${address}`);
      // The unsigned bytes hold every field: equal bytes, equal transaction.
      if (signed.unsignedSerialized !== wanted.unsignedSerialized)
        throw new SignerUntrue(`the signer ${host} signed another transaction than it was asked to`);
      return signed.serialized as Hex;
    },

    async signTypedData(domain, types: TypedFields, message): Promise<Hex> {
      const payload = TypedDataEncoder.getPayload(domain, types, message);
      const signature = String(await call('eth_signTypedData', [address, payload]));
      let signer: string;
      try {
        signer = verifyTypedData(domain, types, message, signature);
      } catch {
        throw new SignerUntrue(`the signer ${host} gave no signature`);
      }
      if (signer.toLowerCase() !== address.toLowerCase())
        throw new SignerUntrue(`the signer ${host} signed as ${signer}, or another message`);
      return signature as Hex;
    },
  };
}

async function bounded(answer: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of answer.body ?? []) {
    bytes += chunk.length;
    if (bytes > maxAnswerBytes) throw new Error(`its answer is longer than ${maxAnswerBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function reason(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown error';
  const cause = (error.cause as NodeJS.ErrnoException | undefined)?.code;
  return (cause ?? error.message).slice(0, 200);
}
