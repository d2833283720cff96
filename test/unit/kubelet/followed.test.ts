/** Watching objects one by one: how many at once, and what happens where it is forbidden. */
import { beforeEach, expect, test } from 'vitest';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createFollowedObjects, type FollowedObjects } from '../../../operator/kubelet/followed.ts';
import { type ManualClock, manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

let clock: ManualClock;
let cluster: FakeCluster;
let followed: FollowedObjects;
const ref = (name: string, kind: 'ConfigMap' | 'Secret' = 'ConfigMap') => ({ kind, namespace: 'a', name });
const watches = () => cluster.requests.filter((r) => r.watch).length;

beforeEach(() => {
  clock = manualClock();
  cluster = fakeCluster({ name: 'consumer', clock });
  followed = createFollowedObjects({ cluster, clock, log: silentLog, most: 2 });
});

test('changes of one object are told, and of no other', async () => {
  let changes = 0;
  const following = followed.follow(ref('conf'), () => changes++);
  expect(following.live).toBe(false);
  await clock.settle();
  expect(following.live).toBe(true);
  const before = changes;
  cluster.seed(resources.configMaps, { metadata: { namespace: 'a', name: 'other' } });
  cluster.seed(resources.configMaps, { metadata: { namespace: 'b', name: 'conf' } });
  await clock.settle();
  expect(changes).toBe(before);
  cluster.seed(resources.configMaps, { metadata: { namespace: 'a', name: 'conf' } });
  await clock.settle();
  expect(changes).toBe(before + 1);
  following.stop();
  await clock.settle();
  expect(cluster.openWatches).toBe(0);
});

test('two that follow one object share its watch, and it ends with the second', async () => {
  const [one, two] = [followed.follow(ref('conf'), () => undefined), followed.follow(ref('conf'), () => undefined)];
  await clock.settle();
  expect([watches(), one.live, two.live]).toEqual([1, true, true]);
  one.stop();
  await clock.settle();
  expect([cluster.openWatches, one.live, two.live]).toEqual([1, false, true]);
  two.stop();
  await clock.settle();
  expect(cluster.openWatches).toBe(0);
});

test('beyond the most at once the next waits for its turn, and is not live meanwhile', async () => {
  const all = ['a', 'b', 'c'].map((name) => followed.follow(ref(name), () => undefined));
  await clock.settle();
  expect(all.map((f) => f.live)).toEqual([true, true, false]);
  all[0]!.stop();
  await clock.settle();
  expect(all[2]!.live).toBe(true);
  expect(followed.watched).toBe(2);
});

test('a forbidden one keeps no place, and is tried again after ten minutes', async () => {
  const forbid = cluster.intercept(({ watch, resource }) =>
    watch && resource?.plural === 'secrets'
      ? { code: 403, body: { kind: 'Status', reason: 'Forbidden', message: 'no' } }
      : undefined,
  );
  const secrets = ['a', 'b', 'c'].map((name) => followed.follow(ref(name, 'Secret'), () => undefined));
  const config = followed.follow(ref('conf'), () => undefined);
  await clock.settle();
  expect(config.live).toBe(true);
  expect(secrets.some((f) => f.live)).toBe(false);
  const before = watches();
  await clock.advance(500_000);
  // Only its own watch, that the server ended or that fell silent, was opened again.
  expect(cluster.requests.slice(-1)[0]?.resource?.plural).not.toBe('secrets');
  forbid();
  await clock.advance(110_000);
  expect(secrets.some((f) => f.live)).toBe(true);
  expect(watches()).toBeGreaterThan(before);
});

test('a watch that breaks is told, so that the object is read again, and opened anew', async () => {
  cluster.seed<KubeObject>(resources.configMaps, { metadata: { namespace: 'a', name: 'conf' } });
  let changes = 0;
  const following = followed.follow(ref('conf'), () => changes++);
  await clock.settle();
  const before = changes;
  cluster.endWatches('broken');
  await clock.settle();
  expect(following.live).toBe(false);
  expect(changes).toBeGreaterThan(before);
  await clock.advance(2000);
  expect(following.live).toBe(true);
});
