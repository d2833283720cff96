import { describe, expect, it } from 'vitest';
import { type LeaderOptions, runAsLeader } from '../../../operator/engine/leader.ts';
import { resources } from '../../../operator/engine/types.ts';
import { type ManualClock, manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

const lock = { namespace: 'system', name: 'operator' };
interface Record_ {
  metadata: { name: string };
  spec: { holderIdentity?: string; renewTime?: string; leaseTransitions?: number };
}

function replica(cluster: FakeCluster, clock: ManualClock, identity: string, more: Partial<LeaderOptions> = {}) {
  const stop = new AbortController();
  const log: string[] = [];
  const leadership = runAsLeader(
    {
      cluster,
      ...lock,
      identity,
      clock,
      onLead: async (signal) => {
        log.push(`leads at ${Math.round(clock.monotonicMs() / 1000)}`);
        await new Promise<void>((resolve) => {
          if (signal.aborted) resolve();
          signal.addEventListener('abort', () => resolve(), { once: true });
        });
        log.push('winds down');
      },
      onLost: () => void log.push('lost'),
      ...more,
    },
    stop.signal,
  );
  void leadership.ended.then((how) => log.push(how));
  return { ...leadership, isLeader: () => leadership.isLeader(), stop, log };
}

const start = () => {
  const clock = manualClock();
  const cluster = fakeCluster({ clock });
  return { clock, cluster, holder: () => cluster.object<Record_>(resources.leases, lock)?.spec.holderIdentity };
};

/** The next renewal hears nothing; `then` is what becomes of the server. */
function neverAnswered(cluster: FakeCluster, then: () => void = () => undefined) {
  let due = true;
  cluster.intercept((request) => {
    if (request.method !== 'PUT' || !due) return undefined;
    due = false;
    then();
    return new Promise(() => undefined);
  });
  return { isDue: () => due };
}

describe('leadership', () => {
  it('is taken when nobody has it, and kept for hours with one request a renewal', async () => {
    const { clock, cluster, holder } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(3_600_000);
    expect(one.log).toEqual(['leads at 0']);
    expect([one.isLeader(), holder()]).toEqual([true, 'one']);
    const renewals = 3600 / 2.2;
    expect(cluster.requests.length).toBeGreaterThan(renewals * 0.95);
    expect(cluster.requests.length).toBeLessThan(3600 / 2 + 10);
    one.stop.abort();
    await one.ended;
  });

  it('is never of two at once, and passes on quickly when given back', async () => {
    const { clock, cluster, holder } = start();
    const one = replica(cluster, clock, 'one');
    await clock.settle();
    const two = replica(cluster, clock, 'two');
    await clock.advance(60_000);
    expect([one.isLeader(), two.isLeader()]).toEqual([true, false]);
    one.stop.abort();
    await clock.settle();
    expect(one.log).toEqual(['leads at 0', 'winds down', 'stopped']);
    expect(holder()).toBe('');
    await clock.advance(3000);
    expect([one.isLeader(), two.isLeader(), holder()]).toEqual([false, true, 'two']);
    expect(cluster.object<Record_>(resources.leases, lock)?.spec.leaseTransitions).toBe(1);
    two.stop.abort();
    await two.ended;
    expect(clock.pendingTimers).toBe(0);
  });

  it('of one that died is taken over after its term, counted from when it was last seen to renew', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    const two = replica(cluster, clock, 'two');
    await clock.advance(20_000);
    expect(one.isLeader()).toBe(true);
    // `kill -9`: it neither renews nor releases. Here: it sees nothing of the cluster, and its record stays.
    const dead = cluster.object<Record_>(resources.leases, lock)!;
    cluster.intercept((r) =>
      r.method === 'PUT' && JSON.stringify(r.body).includes('"holderIdentity":"one"') ? { code: 503 } : undefined,
    );
    await clock.advance(12_000);
    expect([one.isLeader(), two.isLeader()]).toEqual([false, false]);
    expect(dead.spec.holderIdentity).toBe('one');
    await clock.advance(8_000);
    expect([one.isLeader(), two.isLeader()]).toEqual([false, true]);
    expect(one.log).toEqual(['leads at 0', 'lost', 'winds down', 'lost']);
    two.stop.abort();
  });

  it.each([
    ['far ahead', 3_600_000],
    ['far behind', -3_600_000],
  ])('does not depend on clocks that agree: the holder’s is %s', async (_, skewMs) => {
    const { cluster } = start();
    const clock = manualClock();
    // The same time passes for both; only the wall clocks differ.
    const skewed: ManualClock = { ...clock, now: () => new Date(clock.now().getTime() + skewMs), pendingTimers: 0 };
    const one = replica(cluster, skewed, 'one');
    await clock.settle();
    const two = replica(cluster, clock, 'two');
    await clock.advance(300_000);
    expect([one.isLeader(), two.isLeader()]).toEqual([true, false]);
    one.stop.abort();
    two.stop.abort();
    await clock.advance(5000);
  });

  it('is noticed as gone by a process that was paused, before it does anything else', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    const elsewhere = manualClock();
    const two = replica(cluster, elsewhere, 'two');
    await clock.advance(1000);
    // `one` is stopped (SIGSTOP) for a minute, in which only `two` runs.
    await elsewhere.advance(60_000);
    expect(two.isLeader()).toBe(true);
    clock.pause(60_000);
    expect(one.isLeader()).toBe(false);
    await clock.advance(1);
    expect(one.log).toEqual(['leads at 0', 'lost', 'winds down', 'lost']);
    expect(cluster.object<Record_>(resources.leases, lock)?.spec.holderIdentity).toBe('two');
    two.stop.abort();
    await elsewhere.settle();
  });

  it('is noticed as gone when the machine slept and the monotonic clock stood still', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(1000);
    clock.stepWallClock(60_000);
    expect(one.isLeader()).toBe(false);
    await clock.advance(3000);
    expect(one.log).toContain('lost');
  });

  it('survives a short failure of the API server', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(10_000);
    for (let round = 0; round < 5; round++) {
      cluster.setUnreachable(true);
      await clock.advance(6_000);
      cluster.setUnreachable(false);
      await clock.advance(4_000);
    }
    expect([one.isLeader(), one.log]).toEqual([true, ['leads at 0']]);
    one.stop.abort();
    await one.ended;
  });

  it('survives a renewal whose answer was lost', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(10_000);
    cluster.failNext({ method: 'PUT', resource: 'leases', fail: 'answer-lost', times: 2 });
    await clock.advance(60_000);
    expect([one.isLeader(), one.log]).toEqual([true, ['leads at 0']]);
    one.stop.abort();
    await one.ended;
  });

  it('survives one connection on which nothing comes back', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(5_000);
    const renewal = neverAnswered(cluster);
    await clock.advance(60_000);
    expect([renewal.isDue(), one.isLeader(), one.log]).toEqual([false, true, ['leads at 0']]);
    one.stop.abort();
    await one.ended;
  });

  it('survives an API server that stands still for a moment, and is slow afterwards', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(5_000);
    const renewal = neverAnswered(cluster, () => {
      cluster.latencyMs = 1_900;
    });
    await clock.advance(60_000);
    expect([renewal.isDue(), one.isLeader(), one.log]).toEqual([false, true, ['leads at 0']]);
    cluster.latencyMs = 0;
    one.stop.abort();
    await one.ended;
  });

  it('ends when the API server does not answer at all', async () => {
    const { clock, cluster } = start();
    const one = replica(cluster, clock, 'one');
    await clock.advance(5_000);
    cluster.latencyMs = 3_600_000;
    await clock.advance(9_000);
    expect(one.isLeader()).toBe(true);
    await clock.advance(3_500);
    expect([one.isLeader(), one.log]).toEqual([false, ['leads at 0', 'lost', 'winds down', 'lost']]);
  });

  it('is not given back before the work has ended', async () => {
    const { clock, cluster, holder } = start();
    const one = replica(cluster, clock, 'one', {
      onLead: (signal) =>
        new Promise((resolve) => signal.addEventListener('abort', () => clock.setTimeout(resolve, 60_000))),
    });
    const two = replica(cluster, clock, 'two');
    await clock.advance(1000);
    const [first, second] = one.isLeader() ? [one, two] : [two, one];
    first.stop.abort();
    await clock.advance(55_000);
    expect([holder(), second.isLeader(), first.isLeader()]).toEqual([holder(), false, true]);
    await clock.advance(10_000);
    expect([first.isLeader(), second.isLeader()]).toEqual([false, true]);
    second.stop.abort();
    await clock.advance(1000);
  });

  it('ends with the work, and says when that failed', async () => {
    const { clock, cluster, holder } = start();
    const one = replica(cluster, clock, 'one', { onLead: async () => undefined });
    await clock.settle();
    expect(one.log).toEqual(['finished']);
    expect(holder()).toBe('');
    const leadership = runAsLeader(
      {
        cluster,
        ...lock,
        identity: 'two',
        clock,
        onLead: async () => {
          throw new Error('broken');
        },
      },
      new AbortController().signal,
    );
    await expect(leadership.ended).rejects.toThrow('broken');
    expect(holder()).toBe('');
  });

  it('has one holder at any time, whatever is cut, whoever pauses', async () => {
    for (let seed = 1; seed <= 25; seed++) {
      let state = seed;
      const random = () => {
        state = (state * 1103515245 + 12345) % 2147483648;
        return state / 2147483648;
      };
      const { clock, cluster } = start();
      const all = ['one', 'two', 'three'].map((identity) => replica(cluster, clock, identity));
      let led = 0;
      for (let step = 0; step < 60; step++) {
        const dice = random();
        if (dice < 0.15) cluster.setUnreachable(true);
        else if (dice < 0.4) cluster.setUnreachable(false);
        else if (dice < 0.5) cluster.failNext({ method: 'PUT', fail: 'answer-lost' });
        else if (dice < 0.55) clock.pause(random() * 20_000);
        await clock.advance(random() * 4000);
        const leaders = all.filter((r) => r.isLeader()).length;
        expect(leaders).toBeLessThanOrEqual(1);
        led += leaders;
      }
      expect(led).toBeGreaterThan(0);
      for (const { stop } of all) stop.abort();
      await clock.advance(60_000);
    }
  });

  it('refuses times that cannot work', () => {
    const { clock, cluster } = start();
    expect(() => replica(cluster, clock, 'one', { leaseDurationSeconds: 10, renewDeadlineSeconds: 10 })).toThrow(
      RangeError,
    );
  });
});
