/**
 * The ledger of one node: which lease holds what of it.
 *
 * Invariant: what is sold of a node never exceeds what may be sold of it. These functions only decide; the caller writes
 * the result with the resourceVersion that it read, so of two writers one loses and decides anew.
 */
import { gpuResource } from '../../api/labels.ts';
import { lacking, minus, noRoom, plus, type Room } from './room.ts';

export interface Sold extends Room {
  /** The resource that `gpus` counts. Absent: whole GPUs, or what else the node calls nvidia.com/gpu. */
  readonly device?: string;
  /** Since its lease has ended: what of its tenant is not gone yet. The room is held until nothing is. */
  readonly cleaning?: string;
  readonly consumer: string;
  readonly offerName: string;
  /** RFC 3339. */
  readonly since: string;
}

export interface NodeLedger {
  readonly node: string;
  readonly entries: Readonly<Record<string, Sold>>;
}

/** The stored text is not a ledger. Never to be taken for an empty one: its GPUs would be sold again. */
export class LedgerError extends Error {
  override readonly name = 'LedgerError';
}

export const emptyLedger = (node: string): NodeLedger => ({ node, entries: {} });

/** With one kind of device as its GPUs; CPU, memory and the rest are counted whichever devices they came with. */
export const soldOn = (ledger: NodeLedger, device: string = gpuResource): Room =>
  Object.values(ledger.entries)
    .map((sold) => ((sold.device ?? gpuResource) === device ? sold : { ...sold, gpus: 0 }))
    .reduce(plus, noRoom);

/** What of a device is held for leases that have ended. */
export function cleaningOn(ledger: NodeLedger, device: string): { gpus: number; why: string[] } {
  const held = Object.values(ledger.entries).filter(
    (sold) => sold.cleaning !== undefined && (sold.device ?? gpuResource) === device,
  );
  return { gpus: held.reduce((sum, { gpus }) => sum + gpus, 0), why: held.map(({ cleaning }) => cleaning!) };
}

export type Reservation =
  | { readonly outcome: 'reserved'; readonly ledger: NodeLedger }
  /** It has it already: the answer to a repeated request. */
  | { readonly outcome: 'held'; readonly ledger: NodeLedger }
  | { readonly outcome: 'exhausted'; readonly lacking: string };

/** `sellable`: all that may be sold of the node, sold or not. */
export function reserve(ledger: NodeLedger, leaseId: string, wanted: Sold, sellable: Room): Reservation {
  if (Object.hasOwn(ledger.entries, leaseId)) return { outcome: 'held', ledger };
  const short = lacking(wanted, minus(sellable, soldOn(ledger, wanted.device)));
  if (short !== undefined) return { outcome: 'exhausted', lacking: short };
  return { outcome: 'reserved', ledger: { ...ledger, entries: { ...ledger.entries, [leaseId]: wanted } } };
}

/** Notes what a lease that has ended is still held for. The same ledger when nothing changed. */
export function noteCleaning(ledger: NodeLedger, leaseId: string, why: string): NodeLedger {
  const sold = Object.hasOwn(ledger.entries, leaseId) ? ledger.entries[leaseId] : undefined;
  const cleaning = why.slice(0, 300);
  if (sold === undefined || sold.cleaning === cleaning) return ledger;
  return { ...ledger, entries: { ...ledger.entries, [leaseId]: { ...sold, cleaning } } };
}

/** The same ledger when the lease holds nothing. */
export function free(ledger: NodeLedger, leaseId: string): NodeLedger {
  if (!Object.hasOwn(ledger.entries, leaseId)) return ledger;
  const { [leaseId]: _gone, ...entries } = ledger.entries;
  return { ...ledger, entries };
}

export const ledgerText = (ledger: NodeLedger): string =>
  JSON.stringify({ version: 1, node: ledger.node, entries: ledger.entries });

export function parseLedger(text: string): NodeLedger {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new LedgerError('the ledger is not JSON');
  }
  const { version, node, entries } = (value ?? {}) as Record<string, unknown>;
  if (version !== 1 || typeof node !== 'string' || typeof entries !== 'object' || entries === null) {
    throw new LedgerError('the ledger is not of version 1');
  }
  const read: Record<string, Sold> = {};
  for (const [leaseId, entry] of Object.entries(entries)) {
    const sold = (entry ?? {}) as Record<string, unknown>;
    const count = (part: keyof Room): number => {
      const number = sold[part];
      if (typeof number !== 'number' || !Number.isSafeInteger(number) || number < 0) {
        throw new LedgerError(`entry ${leaseId.slice(0, 80)}: ${part} is not a count`);
      }
      return number;
    };
    const word = (part: string): string => (typeof sold[part] === 'string' ? (sold[part] as string) : '');
    read[leaseId] = {
      gpus: count('gpus'),
      cpuMillis: count('cpuMillis'),
      memoryBytes: count('memoryBytes'),
      ephemeralBytes: count('ephemeralBytes'),
      pods: count('pods'),
      consumer: word('consumer'),
      offerName: word('offerName'),
      since: word('since'),
      ...(word('device') === '' ? {} : { device: word('device') }),
      ...(word('cleaning') === '' ? {} : { cleaning: word('cleaning') }),
    };
  }
  return { node, entries: read };
}
