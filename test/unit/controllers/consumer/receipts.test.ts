import { beforeEach, expect, test } from 'vitest';
import type { Receipt } from '../../../../operator/api/receipt.ts';
import { exampleLeases, exampleReceipt } from '../../../../operator/cmd/example-papers.ts';
import {
  createReceipts,
  type ReceiptSecret,
  receiptField,
  receiptSelector,
} from '../../../../operator/controllers/consumer/receipts.ts';
import { loadRecords } from '../../../../operator/controllers/consumer/records.ts';
import { systemClock } from '../../../../operator/engine/clock.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { type FakeCluster, fakeCluster } from '../../../support/fake-cluster.ts';

const namespace = 'gpulease-system';
const { receipt } = await exampleReceipt(exampleLeases[0]!);
let cluster: FakeCluster;
beforeEach(() => {
  cluster = fakeCluster();
});
const stored = () => cluster.objects<ReceiptSecret>(resources.secrets);
const textOf = ({ data }: ReceiptSecret) => Buffer.from(data![receiptField]!, 'base64').toString();

test('a receipt is written once: a second one for the same escrow changes nothing', async () => {
  const receipts = createReceipts(cluster, namespace);
  await receipts.write(receipt);
  await receipts.write({ ...receipt, providerName: 'other' });
  expect(stored()).toHaveLength(1);
  expect(JSON.parse(textOf(stored()[0]!))).toEqual(receipt);
});

test('a write of which nobody knows whether it was made is made again', async () => {
  const receipts = createReceipts(cluster, namespace);
  cluster.failNext({ resource: 'secrets', method: 'POST', fail: 'answer-lost' });
  await expect(receipts.write(receipt)).rejects.toThrow('lost');
  await receipts.write(receipt);
  expect(stored()).toHaveLength(1);
});

test('what cannot be written is no receipt that was written', async () => {
  cluster.failNext({ resource: 'secrets', method: 'POST', fail: 403 });
  await expect(createReceipts(cluster, namespace).write(receipt)).rejects.toThrow();
  expect(stored()).toEqual([]);
});

test('a receipt that is too large is refused', async () => {
  const large = { ...receipt, providerName: 'x'.repeat(70_000) };
  await expect(createReceipts(cluster, namespace).write(large)).rejects.toThrow('more than 65536');
});

test('a name that is cut is still a label', async () => {
  const name = `${'a'.repeat(62)}.${'b'.repeat(40)}`;
  await createReceipts(cluster, namespace).write({ ...receipt, providerName: name });
  expect(stored()[0]!.metadata.labels?.['gpulease.dev/provider']).toBe('a'.repeat(62));
});

test('receipts are found by namespace and month, and are no records of leases', async () => {
  const receipts = createReceipts(cluster, namespace);
  await receipts.write(receipt);
  const of = async (what: { namespace?: string; month?: string }) =>
    (await cluster.list(resources.secrets, { namespace, labelSelector: receiptSelector(what) })).items.length;
  expect([await of({}), await of({ namespace: 'ml' }), await of({ month: '2026-11', namespace: 'ml' })]).toEqual([
    1, 1, 1,
  ]);
  expect([await of({ namespace: 'research' }), await of({ month: '2026-10' })]).toEqual([0, 0]);
  expect((await loadRecords(cluster, namespace, systemClock)).all().size).toBe(0);
});

test('those whose month is over for long enough are removed, and no other', async () => {
  const receipts = createReceipts(cluster, namespace);
  const closed = (leaseId: string, closingAt: number): Receipt => ({
    ...receipt,
    leaseId,
    settlement: { ...receipt.settlement, closingAt },
  });
  await receipts.write(closed(`0x${'1'.repeat(64)}`, Date.UTC(2025, 0, 31, 23) / 1000));
  await receipts.write(closed(`0x${'2'.repeat(64)}`, Date.UTC(2025, 1, 1) / 1000));
  cluster.seed(resources.secrets, { metadata: { name: 'other', namespace } });
  // Of a month that is not yet over nothing goes, however late in it we are.
  expect(await receipts.removeBefore(new Date(Date.UTC(2025, 1, 28)))).toBe(1);
  expect(stored().map(({ metadata }) => metadata.name)).toEqual(
    expect.arrayContaining(['other', `receipt-${'2'.repeat(20)}`]),
  );
  expect(stored()).toHaveLength(2);
});
