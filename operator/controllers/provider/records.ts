/**
 * The lease records: one Secret each, replaced by compare-and-swap, so that replicas agree and a crash loses nothing that
 * was acknowledged.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import type { Hex32 } from '../../api/messages.ts';
import {
  type LeaseRecord,
  leaseIdOfRecordName,
  parseRecord,
  RecordError,
  recordName,
  recordText,
} from '../../core/allocation/record.ts';
import { leaseIdLabel } from '../../core/allocation/tenant.ts';
import { isAlreadyExists, isConflict, isNotFound } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';

export interface RecordSecret extends KubeObject {
  type?: string;
  data?: Record<string, string>;
}

/** All records, and nothing else in the namespace. */
export const recordSelector = `${ownLabels.managedBy}=${managedBy},${ownLabels.leaseId}`;

const field = 'record';

/** Watched objects are never changed, only replaced: each version of a record is taken apart once, however often it is looked at. */
const known = new WeakMap<RecordSecret, LeaseRecord>();

export function recordOfSecret(secret: RecordSecret): LeaseRecord {
  const before = known.get(secret);
  if (before !== undefined) return before;
  const encoded = secret.data?.[field];
  if (encoded === undefined) throw new RecordError(`Secret ${secret.metadata.name} holds no record`);
  const record = parseRecord(Buffer.from(encoded, 'base64').toString('utf8'));
  if (leaseIdOfRecordName(secret.metadata.name) !== record.leaseId.toLowerCase()) {
    throw new RecordError(`Secret ${secret.metadata.name} holds the record of another lease`);
  }
  known.set(secret, record);
  return record;
}

/** For rounds over all of them: one that cannot be read is told, and holds up none of the others. */
export function readRecord(secret: RecordSecret, log: Log): LeaseRecord | undefined {
  try {
    return recordOfSecret(secret);
  } catch (error) {
    log.error({ secret: secret.metadata.name, error: String(error) }, 'a lease record cannot be read');
    return undefined;
  }
}

const attempts = 16;

export interface Records {
  get(leaseId: Hex32, signal?: AbortSignal): Promise<LeaseRecord | undefined>;
  /** False when there is one already. */
  create(record: LeaseRecord, signal?: AbortSignal): Promise<boolean>;
  /**
   * Applies a change to the latest record and returns what is stored then; undefined when there is none. `change` may be
   * called several times; giving back what it was given writes nothing.
   */
  update(
    leaseId: Hex32,
    change: (record: LeaseRecord) => LeaseRecord,
    signal?: AbortSignal,
  ): Promise<LeaseRecord | undefined>;
  remove(leaseId: Hex32, signal?: AbortSignal): Promise<void>;
  /** Of one consumer, from the API server itself. */
  ofConsumer(consumer: string, signal?: AbortSignal): Promise<readonly LeaseRecord[]>;
}

export function createRecords(cluster: Cluster, namespace: string): Records {
  const read = (leaseId: Hex32, signal?: AbortSignal) =>
    cluster.get<RecordSecret>(resources.secrets, { namespace, name: recordName(leaseId) }, signal);
  const write = (secret: RecordSecret, record: LeaseRecord): RecordSecret => ({
    ...secret,
    data: { [field]: Buffer.from(recordText(record), 'utf8').toString('base64') },
  });
  return {
    async get(leaseId, signal) {
      const secret = await read(leaseId, signal);
      return secret && recordOfSecret(secret);
    },

    async create(record, signal) {
      const secret: RecordSecret = {
        apiVersion: 'v1',
        kind: 'Secret',
        metadata: {
          name: recordName(record.leaseId),
          namespace,
          labels: {
            [ownLabels.managedBy]: managedBy,
            [ownLabels.leaseId]: leaseIdLabel(record.leaseId),
            [ownLabels.consumer]: record.quote.consumer.toLowerCase(),
          },
        },
        type: 'Opaque',
      };
      try {
        await cluster.create(resources.secrets, write(secret, record), signal);
        return true;
      } catch (error) {
        if (isAlreadyExists(error)) return false;
        throw error;
      }
    },

    async update(leaseId, change, signal) {
      for (let attempt = 1; ; attempt += 1) {
        const secret = await read(leaseId, signal);
        if (secret === undefined) return undefined;
        const before = recordOfSecret(secret);
        const after = change(before);
        if (after === before) return before;
        try {
          await cluster.replace(resources.secrets, write(secret, after), {}, signal);
          return after;
        } catch (error) {
          if (isNotFound(error)) return undefined;
          if (!isConflict(error) || attempt === attempts) throw error;
        }
      }
    },

    async ofConsumer(consumer, signal) {
      const labelSelector = `${recordSelector},${ownLabels.consumer}=${consumer.toLowerCase()}`;
      const { items } = await cluster.list<RecordSecret>(resources.secrets, { namespace, labelSelector }, signal);
      return items.map(recordOfSecret);
    },

    async remove(leaseId, signal) {
      await cluster.delete(resources.secrets, { namespace, name: recordName(leaseId) }, {}, signal);
    },
  };
}
