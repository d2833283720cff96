/** What operator and wallet say to each other over HTTPS: entries of an outbox, and amounts as decimal strings. */
import type { Address, Hex } from '../../api/messages.ts';
import type { Intent, OutboxEntry, Submitted } from '../chain/outbox.ts';

/** Name in the wallet's certificate, which is made anew at each start and published beside its URL. */
export const serverName = 'gpulease-wallet';
/** Of the token that the operator shows. */
export const audience = 'gpulease-wallet';
export const maxRequestBytes = 32 * 1024;
/** All entries of an outbox: its store holds a mebibyte, raw bytes included, which are not told. */
export const maxAnswerBytes = 4 * 1024 * 1024;

/** In the ConfigMap by which the operator finds the wallet. */
export interface WalletPlace {
  readonly url: string;
  /** PEM. */
  readonly certificate: string;
  readonly wallet: Address;
  readonly chains: readonly number[];
}

export interface EntriesAnswer {
  /** Names this state of the entries: who has it need not be told again. */
  readonly version: string;
  /** Absent: nothing has changed since `?known=`. */
  readonly entries?: readonly OutboxEntry[];
}

export const textOf = (value: unknown): string =>
  JSON.stringify(value, (_, one) => (typeof one === 'bigint' ? one.toString() : one));

/** Checks what was asked; undefined when it is not a request. */
export function intentOf(value: unknown): Intent | undefined {
  const { key, to, data } = (value ?? {}) as Record<string, unknown>;
  if (typeof key !== 'string' || !/^[\x21-\x7e]{1,200}$/.test(key)) return undefined;
  if (typeof to !== 'string' || !/^0x[0-9a-fA-F]{40}$/.test(to)) return undefined;
  if (typeof data !== 'string' || !/^0x([0-9a-fA-F]{2})*$/.test(data)) return undefined;
  return { key, to: to as Address, data: data.toLowerCase() as Hex };
}

/** Throws for anything that is no entry. The wallet is trusted to tell of its own transactions, not to send well-formed JSON. */
export function entryOf(value: unknown): OutboxEntry {
  const entry = value as Partial<OutboxEntry> & { receipt?: Record<string, unknown> };
  if (typeof entry?.key !== 'string' || typeof entry.hash !== 'string' || !states.has(String(entry.state)))
    throw new Error('the wallet answers something else than transactions');
  const { receipt } = entry;
  return {
    ...entry,
    ...(receipt && {
      receipt: {
        ...receipt,
        gasUsed: BigInt(String(receipt.gasUsed)),
        effectiveGasPrice: BigInt(String(receipt.effectiveGasPrice)),
      },
    }),
  } as OutboxEntry;
}
const states: ReadonlySet<string> = new Set(['stored', 'broadcast', 'mined', 'reverted', 'lost']);

export function submittedOf(value: unknown): Submitted {
  const { outcome, entry, refusal } = (value ?? {}) as Record<string, unknown>;
  if (outcome === 'accepted') return { outcome, entry: entryOf(entry) };
  const { name, terminal, message } = (refusal ?? {}) as Record<string, unknown>;
  if (outcome !== 'refused' || typeof name !== 'string' || typeof message !== 'string')
    throw new Error('the wallet answers something else than a transaction');
  return {
    outcome,
    refusal: { name: name.slice(0, 64), terminal: terminal === true, message: message.slice(0, 512), args: {} },
  };
}
