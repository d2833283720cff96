/** When tokens are asked for, renewed and taken away; the clock is ours. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Pod } from '../../../operator/core/node/pod.ts';
import { tokenWish } from '../../../operator/core/node/token-wish.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createTokenCarrier, type TokenCarrier } from '../../../operator/kubelet/tokens.ts';
import { type ManualClock, manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

interface Secret extends KubeObject {
  data?: Record<string, string>;
}
let clock: ManualClock;
let consumer: FakeCluster;
let remote: FakeCluster;
let tokens: TokenCarrier;
let failures: string[];
let stop: AbortController;
let running: Promise<void>;

const pod: Pod = {
  metadata: { name: 'web', namespace: 'team-a', uid: 'u1' },
  spec: { serviceAccountName: 'trainer', containers: [] },
};
const remotePod: Pod = { metadata: { name: 'web-abc', namespace: 'tenant', uid: 'r1' }, spec: { containers: [] } };
const wishes = [tokenWish(undefined, 3600), tokenWish('vault', 600)];
const secrets = () => remote.objects<Secret>(resources.secrets);
const asked = () => consumer.requests.filter((r) => r.subresource === 'token').length;
const never = new AbortController().signal;

beforeEach(() => {
  clock = manualClock();
  consumer = fakeCluster({ name: 'consumer', clock });
  remote = fakeCluster({ name: 'remote', clock });
  consumer.seed(resources.serviceAccounts, { metadata: { name: 'trainer', namespace: 'team-a' } });
  failures = [];
  // The tenant's namespace is not named on this side.
  const named = {
    ...remote,
    create: (resource: never, object: KubeObject) =>
      remote.create(resource, { ...object, metadata: { ...object.metadata, namespace: 'tenant' } }),
    replace: (resource: never, object: KubeObject) =>
      remote.replace(resource, { ...object, metadata: { ...object.metadata, namespace: 'tenant' } }),
    delete: (resource: never, key: { name: string }) => remote.delete(resource, { ...key, namespace: 'tenant' }),
  } as unknown as FakeCluster;
  tokens = createTokenCarrier({
    consumer,
    remote: named,
    clock,
    log: silentLog,
    onFailure: (_, message) => failures.push(message),
  });
  stop = new AbortController();
  running = tokens.run(stop.signal);
});
afterEach(async () => {
  stop.abort(new Error('over'));
  await clock.advance(2000);
  await running;
});

test('all that a pod shows are in one Secret, and asked for once', async () => {
  await tokens.hold(pod, remotePod, wishes, never);
  await tokens.hold(pod, remotePod, wishes, never);
  expect(asked()).toBe(2);
  expect(Object.keys(secrets()[0]?.data ?? {}).sort()).toEqual(wishes.map(({ key }) => key).sort());
});

test('they are renewed when the first has lived 80 % of its life, and not before', async () => {
  await tokens.hold(pod, remotePod, wishes, never);
  const before = secrets()[0]?.data;
  await clock.advance(470_000);
  expect(secrets()[0]?.data).toEqual(before);
  await clock.advance(20_000);
  expect(asked()).toBe(4);
  expect(secrets()[0]?.data).not.toEqual(before);
  await clock.advance(480_000);
  expect(asked()).toBe(6);
});

test('a renewal that fails is told and tried again, and what is there stays', async () => {
  await tokens.hold(pod, remotePod, wishes, never);
  const before = secrets()[0]?.data;
  consumer.failNext({ method: 'POST', subresource: 'token', fail: 403, reason: 'Forbidden', message: 'not yours' });
  await clock.advance(485_000);
  expect(failures).toEqual([expect.stringContaining('not yours')]);
  expect(secrets()[0]?.data).toEqual(before);
  await clock.advance(15_000);
  expect(secrets()[0]?.data).not.toEqual(before);
});

test('once released they are taken away, and no more are asked for', async () => {
  await tokens.hold(pod, remotePod, wishes, never);
  remote.setUnreachable(true);
  tokens.release('u1');
  await clock.advance(5000);
  expect(secrets()).toHaveLength(1);
  remote.setUnreachable(false);
  await clock.advance(60_000);
  expect(secrets()).toHaveLength(0);
  await clock.advance(3_600_000);
  expect(asked()).toBe(2);
});

test('given again while they are being taken away, they are there afterwards', async () => {
  await tokens.hold(pod, remotePod, wishes, never);
  tokens.release('u1');
  remote.latencyMs = 3000;
  await clock.advance(1500);
  remote.latencyMs = 0;
  await tokens.hold(pod, remotePod, wishes, never);
  await clock.advance(10_000);
  expect(secrets()).toHaveLength(1);
});

test('released while they are asked for, they never arrive', async () => {
  consumer.latencyMs = 1000;
  const holding = tokens.hold(pod, remotePod, wishes, never);
  await clock.advance(500);
  tokens.release('u1');
  await clock.advance(5000);
  await holding;
  expect(secrets()).toEqual([]);
});

test('an answer without a token, or with one of absurd size, is none', async () => {
  for (const token of ['', 'x'.repeat(40_000), 7]) {
    const stopIt = consumer.intercept(({ subresource }) =>
      subresource === 'token' ? { code: 201, body: { status: { token } } } : undefined,
    );
    await expect(tokens.hold(pod, remotePod, wishes, never)).rejects.toThrow(/without one/);
    stopIt();
  }
  expect(secrets()).toEqual([]);
});
