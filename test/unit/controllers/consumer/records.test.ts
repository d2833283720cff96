import { beforeEach, describe, expect, test } from 'vitest';
import { loadRecords } from '../../../../operator/controllers/consumer/records.ts';
import { systemClock } from '../../../../operator/engine/clock.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { at, lease, record } from '../../../support/builders.ts';
import { type FakeCluster, fakeCluster } from '../../../support/fake-cluster.ts';

const namespace = 'gpulease-system';
const uid = 'lease-uid';
let cluster: FakeCluster;
beforeEach(() => {
  cluster = fakeCluster();
});

describe('the record of a lease', () => {
  test('is found again after a restart', async () => {
    await (await loadRecords(cluster, namespace, systemClock)).save(lease(), record({ attempt: 2 }));
    expect((await loadRecords(cluster, namespace, systemClock)).get(uid)?.attempt).toBe(2);
  });

  test.each(['create', 'replace'])('is read again when nobody knows whether it was written (%s)', async (write) => {
    const records = await loadRecords(cluster, namespace, systemClock);
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
    expect((await loadRecords(cluster, namespace, systemClock)).get(uid)?.attempt).toBe(3);
  });

  test('is not overwritten by who did not see the last version, and does not stay shut out', async () => {
    const [one, other] = [
      await loadRecords(cluster, namespace, systemClock),
      await loadRecords(cluster, namespace, systemClock),
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
    const records = await loadRecords(cluster, namespace, systemClock);
    await records.save(lease(), record());
    await records.remove(uid);
    await records.remove(uid);
    expect(records.get(uid)).toBeUndefined();
    expect(cluster.objects(resources.secrets)).toEqual([]);
  });

  describe('tell how long ago it was up to when this process counted', () => {
    let [ms, setForwardMs] = [1000, 0];
    const clock = { now: () => new Date(at(0).getTime() + ms + setForwardMs), monotonicMs: () => ms };
    const counted = (until: Date) => record({ meter: { servedMs: 0, countedUntil: until.toISOString() } });
    beforeEach(() => {
      [ms, setForwardMs] = [1000, 0];
    });

    test('and nothing where another process did', async () => {
      const records = await loadRecords(cluster, namespace, clock);
      expect(records.sinceCountedMs(uid)).toBeUndefined();
      await records.save(lease(), counted(clock.now()));
      ms += 500;
      // What else is stored is no count.
      await records.save(lease(), { ...records.get(uid)!, attempt: 2 });
      ms += 500;
      expect(records.sinceCountedMs(uid)).toBe(1000);
      expect((await loadRecords(cluster, namespace, clock)).sinceCountedMs(uid)).toBeUndefined();
    });

    test('also where that was stored much later, as a provider was slow to answer', async () => {
      const records = await loadRecords(cluster, namespace, clock);
      const until = clock.now();
      ms += 8000;
      await records.save(lease(), counted(until));
      ms += 500;
      expect(records.sinceCountedMs(uid)).toBe(8500);
    });

    test('whatever is done to the other clock afterwards', async () => {
      const records = await loadRecords(cluster, namespace, clock);
      await records.save(lease(), counted(clock.now()));
      setForwardMs = 300_000;
      ms += 500;
      expect(records.sinceCountedMs(uid)).toBe(500);
    });

    test('and never that it is yet to come', async () => {
      const records = await loadRecords(cluster, namespace, clock);
      const until = clock.now();
      setForwardMs = -300_000;
      await records.save(lease(), counted(until));
      ms += 500;
      expect(records.sinceCountedMs(uid)).toBe(500);
    });
  });
});
