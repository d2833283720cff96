import { describe, expect, it } from 'vitest';
import { addFinalizer, applyStatus, removeFinalizer } from '../../../operator/engine/status.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { manualClock } from '../../support/clock.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

interface Lease extends KubeObject {
  spec?: { gpus: number };
  status?: { conditions?: { type: string; status: string; message?: string }[]; quote?: { hash: string } };
}
const key = { namespace: 'a', name: 'x' };
const lease: Lease = { metadata: { ...key }, spec: { gpus: 1 } };
const ready = (status: string) => ({ type: 'Ready', status });
const resource = resources.gpuLeases;

function start() {
  const cluster = fakeCluster({ clock: manualClock() });
  const [object] = cluster.seed<Lease>(resource, lease);
  const stored = () => cluster.object<Lease>(resource, key)!;
  const apply = (fieldManager: string, status: Lease['status'], seen = stored()) =>
    applyStatus({ cluster, resource, object: seen, fieldManager }, status!);
  return { cluster, object: object!, stored, apply };
}

describe('applying status', () => {
  it('writes what differs, and nothing else', async () => {
    const { cluster, stored, apply } = start();
    expect((await apply('one', { conditions: [ready('False')] }))?.status).toEqual({ conditions: [ready('False')] });
    expect(await apply('one', { conditions: [ready('False')] })).toBeUndefined();
    expect(cluster.writes).toHaveLength(1);
    expect(stored().metadata.generation).toBe(1);
  });

  it('leaves alone what others wrote, and takes back what it says no more', async () => {
    const { stored, apply } = start();
    await apply('one', { conditions: [ready('True')], quote: { hash: '0x1' } });
    await apply('two', { conditions: [{ type: 'Drained', status: 'False' }] });
    await apply('one', { conditions: [ready('False')] });
    expect(stored().status).toEqual({ conditions: [ready('False'), { type: 'Drained', status: 'False' }] });
  });

  it('never lands on a successor of the same name', async () => {
    const { cluster, object, stored, apply } = start();
    cluster.erase(resource, key);
    cluster.seed<Lease>(resource, lease);
    await expect(apply('one', { conditions: [ready('True')] }, object)).rejects.toMatchObject({ reason: 'Conflict' });
    expect(stored().status).toBeUndefined();
  });
});

describe('finalizers', () => {
  it('are added and removed once, however often one asks', async () => {
    const { cluster, object, stored } = start();
    await addFinalizer(cluster, resource, object, 'g/one');
    await addFinalizer(cluster, resource, stored(), 'g/two');
    await addFinalizer(cluster, resource, stored(), 'g/two');
    expect(stored().metadata.finalizers).toEqual(['g/one', 'g/two']);
    expect(cluster.writes).toHaveLength(2);
    await removeFinalizer(cluster, resource, stored(), 'g/one');
    await removeFinalizer(cluster, resource, stored(), 'g/one');
    expect(stored().metadata.finalizers).toEqual(['g/two']);
    expect(cluster.writes).toHaveLength(3);
  });

  it('of others are not lost to a stale cache', async () => {
    const { cluster, object, stored } = start();
    cluster.change<Lease>(resource, key, (l) => {
      l.metadata.finalizers = ['theirs'];
    });
    const held = await addFinalizer(cluster, resource, object, 'ours');
    expect(held?.metadata.finalizers).toEqual(['theirs', 'ours']);
    expect(stored().metadata.finalizers).toEqual(['theirs', 'ours']);
    expect(await removeFinalizer(cluster, resource, held!, 'ours')).toBeDefined();
    expect(stored().metadata.finalizers).toEqual(['theirs']);
  });

  it('let an object go that waits for them', async () => {
    const { cluster, object } = start();
    const held = await addFinalizer(cluster, resource, object, 'ours');
    await cluster.delete(resource, key);
    expect(await addFinalizer(cluster, resource, cluster.object<Lease>(resource, key)!, 'late')).toBeUndefined();
    await removeFinalizer(cluster, resource, held!, 'ours');
    expect(cluster.object(resource, key)).toBeUndefined();
    expect(await removeFinalizer(cluster, resource, held!, 'ours')).toBeUndefined();
  });

  it('are not put on a successor of the same name', async () => {
    const { cluster, object, stored } = start();
    cluster.erase(resource, key);
    cluster.seed<Lease>(resource, lease);
    expect(await addFinalizer(cluster, resource, object, 'ours')).toBeUndefined();
    expect(stored().metadata.finalizers).toBeUndefined();
  });
});
