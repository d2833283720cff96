/**
 * Receipts of settled escrows: one immutable Secret each, in the operator's namespace.
 *
 * There, and not beside the lease: a receipt must outlive lease and namespace, and nobody who may write in a namespace may
 * write its bills. A Secret, because it says who paid what to whom, and the operator has rights to its own Secrets anyway.
 * One each, and not a page a month: it is written by one plain create, which a second run finds done; no two writers ever
 * meet, nothing grows towards the limit of an object, and month and namespace are labels that the API server selects by.
 *
 * Bounded: 64 KiB a receipt (3 to 4 are usual), one for an escrow, and those older than the operator's
 * --receipt-retention-days are removed.
 */
import { group, labels, managedBy } from '../../api/labels.ts';
import { maxReceiptBytes, type Receipt } from '../../api/receipt.ts';
import { monthOf } from '../../core/receipt/period.ts';
import { isAlreadyExists } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

export interface ReceiptSecret extends KubeObject {
  type?: string;
  immutable?: boolean;
  data?: Record<string, string>;
}

export const receiptSecretType = `${group}/receipt`;
export const receiptField = 'receipt.json';

/** 80 bits of the escrow's id, which is a hash. */
export const receiptName = (leaseId: string): string => `receipt-${leaseId.slice(2, 22).toLowerCase()}`;

/** Names may be longer than values of labels, and no value ends with a dot or a dash, where a name may be cut. */
const labelValue = (name: string): string => name.slice(0, 63).replace(/[^A-Za-z0-9]+$/, '');

export interface Receipts {
  /** Safe to repeat: the first one that was written stays. */
  write(receipt: Receipt, signal?: AbortSignal): Promise<void>;
  /** Those whose month ended before it; answers how many. */
  removeBefore(date: Date, signal?: AbortSignal): Promise<number>;
}

/** All receipts, or those of one namespace or month (YYYY-MM). */
export const receiptSelector = (of: { readonly namespace?: string; readonly month?: string } = {}): string =>
  [
    `${labels.managedBy}=${managedBy}`,
    of.month === undefined ? labels.receiptMonth : `${labels.receiptMonth}=${of.month}`,
    ...(of.namespace === undefined ? [] : [`${labels.leaseNamespace}=${of.namespace}`]),
  ].join(',');

export function createReceipts(cluster: Cluster, namespace: string): Receipts {
  return {
    async write(receipt, signal) {
      const json = `${JSON.stringify(receipt, null, 2)}\n`;
      const bytes = Buffer.byteLength(json);
      if (bytes > maxReceiptBytes)
        throw new RangeError(
          `the receipt of escrow ${receipt.leaseId} has ${bytes} bytes, more than ${maxReceiptBytes}`,
        );
      const secret: ReceiptSecret = {
        apiVersion: 'v1',
        kind: 'Secret',
        type: receiptSecretType,
        immutable: true,
        metadata: {
          name: receiptName(receipt.leaseId),
          namespace,
          labels: {
            [labels.managedBy]: managedBy,
            [labels.receiptMonth]: monthOf(receipt.settlement.closingAt),
            [labels.leaseNamespace]: receipt.lease.namespace,
            [labels.lease]: labelValue(receipt.lease.name),
            [labels.provider]: labelValue(receipt.providerName),
          },
        },
        data: { [receiptField]: Buffer.from(json).toString('base64') },
      };
      try {
        await cluster.create(resources.secrets, secret, signal);
      } catch (error) {
        if (!isAlreadyExists(error)) throw error;
      }
    },

    async removeBefore(date, signal) {
      const first = monthOf(Math.floor(date.getTime() / 1000));
      const { items } = await cluster.list<ReceiptSecret>(
        resources.secrets,
        { namespace, labelSelector: receiptSelector(), trim: ({ metadata }) => ({ metadata }) },
        signal,
      );
      let removed = 0;
      for (const { metadata } of items) {
        const month = metadata.labels?.[labels.receiptMonth];
        if (month === undefined || month >= first) continue;
        await cluster.delete(resources.secrets, { namespace, name: metadata.name }, { uid: metadata.uid }, signal);
        removed += 1;
      }
      return removed;
    },
  };
}
