import { beforeEach, describe, expect, test } from 'vitest';
import { loadRecords } from '../../../../operator/controllers/consumer/records.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { lease, record } from '../../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../../support/fake-cluster.ts';

const namespace = 'gpulease-system';
const uid = 'lease-uid';
let cluster: FakeCluster;
beforeEach(() => {
  cluster = fakeCluster();
});

describe('the record of a lease', () => {
  test('is found again after a restart', async () => {
    await (await loadRecords(cluster, namespace, () => performance.now())).save(lease(), record({ attempt: 2 }));
    expect((await loadRecords(cluster, namespace, () => performance.now())).get(uid)?.attempt).toBe(2);
  });

  test.each(['create', 'replace'])('is read again when nobody knows whether it was written (%s)', async (write) => {
    const records = await loadRecords(cluster, namespace, () => performance.now());
    if (write === 'replace') await records.save(lease(), record({ attempt: 1 }));
    cluster.failNext({ resource: 'secrets', method: write === 'create' ? 'POST' : 'PUT', fail: 'answer-lost' });
    await expect(records.save(lease(), record({ attempt: 2 }))).rejects.toThrow('lost');
    // Others must not take the room that it may hold.
    expect([records.committed().get(uid)?.attempt, records.all().get(uid)?.attempt]).toEqual([
      2,
      write === 'create' ? undefined : 1,
    ]);
    // What was decided before rests on what may not be so: once it is refused, and what is stored is known.
    await expect(records.save(lease(), record({ attempt: 9 }))).rejects.toThrow('read again');
    expect(records.get(uid)?.attempt).toBe(2);
    await records.save(lease(), record({ attempt: 3 }));
    expect((await loadRecords(cluster, namespace, () => performance.now())).get(uid)?.attempt).toBe(3);
  });

  test('is not overwritten by who did not see the last version, and does not stay shut out', async () => {
    const [one, other] = [
      await loadRecords(cluster, namespace, () => performance.now()),
      await loadRecords(cluster, namespace, () => performance.now()),
    ];
    await one.save(lease(), record({ attempt: 1 }));
    await expect(other.save(lease(), record({ attempt: 7 }))).rejects.toThrow('already exists');
    await expect(other.save(lease(), record({ attempt: 7 }))).rejects.toThrow('read again');
    expect(other.get(uid)?.attempt).toBe(1);
    await other.save(lease(), record({ attempt: 8 }));
    await expect(one.save(lease(), record({ attempt: 2 }))).rejects.toThrow('modified');
    expect(cluster.objects(resources.secrets)).toHaveLength(1);
  });

  test('that is gone is not there any more', async () => {
    const records = await loadRecords(cluster, namespace, () => performance.now());
    await records.save(lease(), record());
    await records.remove(uid);
    await records.remove(uid);
    expect(records.get(uid)).toBeUndefined();
    expect(cluster.objects(resources.secrets)).toEqual([]);
  });

  test('tell how long ago this process stored a meter', async () => {
    let ms = 1000;
    const records = await loadRecords(cluster, namespace, () => ms);
    expect(records.sinceCountedMs(uid)).toBeUndefined();
    await records.save(lease(), record({ meter: { servedMs: 0, countedUntil: '2026-01-01T00:00:00.000Z' } }));
    ms += 500;
    // What else is stored is no count.
    await records.save(lease(), { ...records.get(uid)!, attempt: 2 });
    ms += 500;
    expect(records.sinceCountedMs(uid)).toBe(1000);
    expect((await loadRecords(cluster, namespace, () => ms)).sinceCountedMs(uid)).toBeUndefined();
  });
});
