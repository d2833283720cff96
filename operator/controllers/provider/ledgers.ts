/**
 * The ledgers: one ConfigMap for each node, written with the resourceVersion that was read. Whoever loses the race reads
 * again and decides again, so two replicas can never promise the same GPU.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import type { Hex32 } from '../../api/messages.ts';
import {
  emptyLedger,
  free,
  LedgerError,
  ledgerText,
  type NodeLedger,
  noteCleaning,
  parseLedger,
  type Reservation,
  reserve,
  type Sold,
} from '../../core/allocation/ledger.ts';
import type { Room } from '../../core/allocation/room.ts';
import { isAlreadyExists, isConflict, isNotFound } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

export interface LedgerConfigMap extends KubeObject {
  data?: Record<string, string>;
}

const prefix = 'ledger-';
const field = 'ledger.json';
/** Names of objects have 253 characters; a node whose name leaves no room for the prefix cannot be rented out. */
export const hasLedgerName = (node: string): boolean => node.length <= 253 - prefix.length;
export const ledgerName = (node: string): string => `${prefix}${node}`;

export const ledgerSelector = `${ownLabels.managedBy}=${managedBy},${ownLabels.offered}=ledger`;

const attempts = 64;

/** Watched objects are never changed, only replaced. */
const known = new WeakMap<LedgerConfigMap, NodeLedger>();

export function ledgerOfConfigMap(map: LedgerConfigMap): NodeLedger {
  const before = known.get(map);
  if (before !== undefined) return before;
  const text = map.data?.[field];
  if (text === undefined) throw new LedgerError(`ConfigMap ${map.metadata.name} holds no ledger`);
  const ledger = parseLedger(text);
  if (ledgerName(ledger.node) !== map.metadata.name) {
    throw new LedgerError(`ConfigMap ${map.metadata.name} holds the ledger of node ${ledger.node}`);
  }
  known.set(map, ledger);
  return ledger;
}

export interface Ledgers {
  get(node: string, signal?: AbortSignal): Promise<NodeLedger>;
  /** `sellable`: all that may be sold of the node, as just read from the API server. */
  reserve(node: string, leaseId: Hex32, wanted: Sold, sellable: Room, signal?: AbortSignal): Promise<Reservation>;
  free(node: string, leaseId: Hex32, signal?: AbortSignal): Promise<void>;
  /** Writes down what a lease that has ended is still held for. */
  note(node: string, leaseId: Hex32, why: string, signal?: AbortSignal): Promise<void>;
}

export function createLedgers(cluster: Cluster, namespace: string): Ledgers {
  const key = (node: string) => ({ namespace, name: ledgerName(node) });
  const read = (node: string, signal?: AbortSignal) =>
    cluster.get<LedgerConfigMap>(resources.configMaps, key(node), signal);

  /** True when it is stored; false when somebody else was faster. */
  async function store(map: LedgerConfigMap | undefined, ledger: NodeLedger, signal?: AbortSignal): Promise<boolean> {
    const data = { [field]: ledgerText(ledger) };
    try {
      if (map === undefined) {
        await cluster.create<LedgerConfigMap>(
          resources.configMaps,
          {
            apiVersion: 'v1',
            kind: 'ConfigMap',
            metadata: {
              ...key(ledger.node),
              labels: { [ownLabels.managedBy]: managedBy, [ownLabels.offered]: 'ledger' },
            },
            data,
          },
          signal,
        );
      } else {
        await cluster.replace<LedgerConfigMap>(resources.configMaps, { ...map, data }, {}, signal);
      }
      return true;
    } catch (error) {
      if (isConflict(error) || isAlreadyExists(error) || isNotFound(error)) return false;
      throw error;
    }
  }

  async function change(node: string, decide: (ledger: NodeLedger) => NodeLedger, signal?: AbortSignal): Promise<void> {
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      const map = await read(node, signal);
      if (map === undefined) return;
      const before = ledgerOfConfigMap(map);
      const after = decide(before);
      if (after === before || (await store(map, after, signal))) return;
    }
    throw new Error(`the ledger of node ${node} changed ${attempts} times while a lease in it was being changed`);
  }

  return {
    async get(node, signal) {
      const map = await read(node, signal);
      return map === undefined ? emptyLedger(node) : ledgerOfConfigMap(map);
    },

    async reserve(node, leaseId, wanted, sellable, signal) {
      for (let attempt = 1; attempt <= attempts; attempt += 1) {
        const map = await read(node, signal);
        const ledger = map === undefined ? emptyLedger(node) : ledgerOfConfigMap(map);
        const reservation = reserve(ledger, leaseId, wanted, sellable);
        if (reservation.outcome !== 'reserved') return reservation;
        if (await store(map, reservation.ledger, signal)) return reservation;
      }
      throw new Error(`the ledger of node ${node} changed ${attempts} times while a lease was being written to it`);
    },

    free: (node, leaseId, signal) => change(node, (ledger) => free(ledger, leaseId), signal),
    note: (node, leaseId, why, signal) => change(node, (ledger) => noteCleaning(ledger, leaseId, why), signal),
  };
}
