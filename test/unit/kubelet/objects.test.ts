/** ConfigMaps and Secrets at the provider: what is sent, what is taken away, and that the two do not cross. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { serviceLinksOf } from '../../../operator/core/node/service-links.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createFollowedObjects } from '../../../operator/kubelet/followed.ts';
import {
  createObjectCarrier,
  heldName,
  type ObjectCarrier,
  type ObjectRef,
} from '../../../operator/kubelet/objects.ts';
import { type ManualClock, manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

interface Data extends KubeObject {
  data?: Record<string, string>;
}
let clock: ManualClock;
let consumer: FakeCluster;
let remote: FakeCluster;
let objects: ObjectCarrier;
let services: Record<string, string>;
let stop: AbortController;
let running: Promise<void>;

const never = new AbortController().signal;
const conf: ObjectRef = { kind: 'ConfigMap', namespace: 'a', name: 'conf', optional: false };
const links = serviceLinksOf('a', true);
const there = (ref: ObjectRef | typeof links = conf) =>
  remote.objects<Data>(resources.configMaps).find(({ metadata }) => heldName(ref).endsWith(`/${metadata.name}`));
const writes = () => remote.writes.length;

beforeEach(() => {
  clock = manualClock();
  consumer = fakeCluster({ name: 'consumer', clock });
  remote = fakeCluster({ name: 'remote', clock });
  services = { KUBERNETES_SERVICE_HOST: '10.96.0.1' };
  const inTenant = <T extends { metadata: object }>(object: T) => ({
    ...object,
    metadata: { ...object.metadata, namespace: 'tenant' },
  });
  objects = createObjectCarrier({
    consumer,
    // The tenant's namespace is not named on this side.
    remote: {
      ...remote,
      create: (resource, object, signal) => remote.create(resource, inTenant(object), signal),
      replace: (resource, object, options, signal) => remote.replace(resource, inTenant(object), options, signal),
      delete: (resource, key, options, signal) =>
        remote.delete(resource, { ...key, namespace: 'tenant' }, options, signal),
    },
    clock,
    log: silentLog,
    pollSeconds: 30,
    onMissing: () => undefined,
    services: () => services,
    followed: createFollowedObjects({ cluster: consumer, clock, log: silentLog }),
  });
  stop = new AbortController();
  running = objects.run(stop.signal);
  consumer.seed<Data>(resources.configMaps, { metadata: { namespace: 'a', name: 'conf' }, data: { k: '1' } });
});
afterEach(async () => {
  remote.latencyMs = 0;
  stop.abort(new Error('over'));
  await clock.advance(2000);
  await running;
});

test('an object that is needed again while it is being taken away is there afterwards', async () => {
  await objects.hold('pod-1', [conf], never);
  expect(there()?.data).toEqual({ k: '1' });
  remote.latencyMs = 3000;
  objects.release('pod-1');
  // The deletion is on its way, and slower than what is sent after it.
  await clock.advance(1500);
  remote.latencyMs = 0;
  const holding = objects.hold('pod-2', [conf], never);
  await clock.advance(30_000);
  await holding;
  expect(there()?.data).toEqual({ k: '1' });
});

test('variables of Services outlive the last pod for a minute, so that the next one writes nothing', async () => {
  await objects.hold('pod-1', [links], never);
  expect(there(links)?.data).toEqual(services);
  const before = writes();
  objects.release('pod-1');
  await clock.advance(30_000);
  await objects.hold('pod-2', [links], never);
  expect(writes()).toBe(before);
  objects.release('pod-2');
  await clock.advance(90_000);
  expect(there(links)).toBeUndefined();
});

test('a deletion that fails is tried again, unless the object is needed again', async () => {
  await objects.hold('pod-1', [conf], never);
  remote.setUnreachable(true);
  objects.release('pod-1');
  await clock.advance(10_000);
  remote.setUnreachable(false);
  await clock.advance(60_000);
  expect(there()).toBeUndefined();
});

test('two pods that come at once send it once, and neither before it is there', async () => {
  remote.latencyMs = 1000;
  let both = 0;
  const holding = ['pod-1', 'pod-2'].map((pod) => objects.hold(pod, [conf, links], never).then(() => both++));
  await clock.advance(500);
  expect(both).toBe(0);
  await clock.advance(10_000);
  await Promise.all(holding);
  expect([there()?.data, there(links)?.data]).toEqual([{ k: '1' }, services]);
  expect(remote.requests.filter((r) => r.method === 'POST')).toHaveLength(2);
});

test('leftovers of an earlier run are swept away, and nothing that is needed', async () => {
  await objects.hold('pod-1', [conf], never);
  const label = { 'app.kubernetes.io/managed-by': 'gpulease' };
  for (const name of ['left', 'wanted'])
    remote.seed(resources.configMaps, { metadata: { namespace: 'tenant', name, labels: label } });
  await objects.sweep(new Set(['ConfigMap/wanted']), never);
  expect(
    remote
      .objects(resources.configMaps)
      .map(({ metadata }) => metadata.name)
      .sort(),
  ).toEqual([there()!.metadata.name, 'wanted'].sort());
});
