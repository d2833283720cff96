import { beforeEach, describe, expect, test } from 'vitest';
import { accessName, type GpuAccess } from '../../../operator/api/access.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createLeasedAccess, type LeasedAccess } from '../../../operator/kubelet/leased-access.ts';
import { manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

let cluster: FakeCluster;
let clock: ReturnType<typeof manualClock>;
let access: LeasedAccess;
let warnings: string[];
const present = new Set<string>();
const log = { ...silentLog, warn: (_: object, message: string) => void warnings.push(message) };
const entry = (namespaces: string[], more = {}) => ({
  lease: 'ml/train',
  namespaces,
  untainted: false,
  ending: false,
  ...more,
});
const stored = () => cluster.object<GpuAccess & KubeObject>(resources.gpuAccesses, { name: accessName })?.spec;
const writes = () => cluster.writes.length;

beforeEach(() => {
  cluster = fakeCluster({ name: 'consumer' });
  clock = manualClock();
  warnings = [];
  present.clear();
  access = createLeasedAccess({ cluster, clock, log, exists: (node) => present.has(node) });
});

describe('keeping the list of who may use which node', () => {
  test('makes it, adds to it, and writes nothing while nothing changes', async () => {
    await access.keep('gpu-a', entry(['ml']));
    await access.keep('gpu-b', entry(['web']));
    expect(Object.keys(stored()?.nodes ?? {})).toEqual(['gpu-a', 'gpu-b']);
    const [before, requests] = [writes(), cluster.requests.length];
    for (let i = 0; i < 5; i++) await access.keep('gpu-a', entry(['ml']));
    expect([writes(), cluster.requests.length]).toEqual([before, requests]);
  });

  test('carries what comes meanwhile in one write, and returns only when it is written', async () => {
    await access.keep('gpu-0', entry(['ml']));
    const before = writes();
    await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        await access.keep(`gpu-${i}`, entry(['ml', `n${i}`]));
        expect(stored()?.nodes[`gpu-${i}`]?.namespaces).toContain(`n${i}`);
      }),
    );
    expect(writes() - before).toBeLessThanOrEqual(3);
  });

  test('forgets a node at once, though the cache still shows it', async () => {
    present.add('gpu-a');
    await access.keep('gpu-a', entry(['ml']));
    await access.forget('gpu-a');
    expect(stored()?.nodes).toEqual({});
  });

  test('goes on from what an earlier process wrote: its nodes stay while they exist', async () => {
    await access.keep('gpu-a', entry(['ml']));
    await access.keep('gpu-b', entry(['ml']));
    present.add('gpu-a');
    const next = createLeasedAccess({ cluster, clock, log, exists: (node) => present.has(node) });
    await next.keep('gpu-c', entry(['ml']));
    expect(Object.keys(stored()?.nodes ?? {})).toEqual(['gpu-a', 'gpu-c']);
  });

  test('loses nothing when somebody else writes, too', async () => {
    await access.keep('gpu-a', entry(['ml']));
    cluster.change<GpuAccess & KubeObject>(resources.gpuAccesses, { name: accessName }, (object) => {
      object.spec.nodes['gpu-z'] = { lease: 'x/y', namespaces: ['x'] };
    });
    present.add('gpu-z');
    await access.keep('gpu-b', entry(['ml']));
    expect(Object.keys(stored()?.nodes ?? {}).sort()).toEqual(['gpu-a', 'gpu-b', 'gpu-z']);
  });

  test('puts back within a minute what somebody takes away', async () => {
    await access.keep('gpu-a', entry(['ml']));
    cluster.erase(resources.gpuAccesses, { name: accessName });
    await access.keep('gpu-a', entry(['ml']));
    expect(stored()).toBeUndefined();
    await clock.advance(60_000);
    await access.keep('gpu-a', entry(['ml']));
    expect(stored()?.nodes['gpu-a']?.namespaces).toEqual(['ml']);
  });

  test('holds nobody up when it cannot be written, says so, and tries again later', async () => {
    cluster.failNext({ resource: 'gpuaccesses', fail: 404, times: 2 });
    await access.keep('gpu-a', entry(['ml']));
    expect(warnings).toEqual([expect.stringContaining('not installed')]);
    await access.keep('gpu-a', entry(['ml']));
    expect(warnings).toHaveLength(1);
    await clock.advance(10_000);
    await access.keep('gpu-a', entry(['ml']));
    expect(stored()?.nodes['gpu-a']).toBeDefined();
  });
});
