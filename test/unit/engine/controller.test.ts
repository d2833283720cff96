import { describe, expect, it } from 'vitest';
import { createController, watches } from '../../../operator/engine/controller.ts';
import { ApiError, TerminalError } from '../../../operator/engine/errors.ts';
import { createInformer } from '../../../operator/engine/informer.ts';
import { type Log, type ObjectKey, type Reconcile, resources } from '../../../operator/engine/types.ts';
import { manualClock } from '../../support/clock.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';

const secret = (name: string, labels?: Record<string, string>) => ({ metadata: { name, namespace: 'a', labels } });

function start(
  reconcile: Reconcile,
  settings: Partial<Parameters<typeof createController>[0]> = {},
  prepare?: (cluster: FakeCluster) => void,
) {
  const clock = manualClock();
  const cluster = fakeCluster({ clock });
  prepare?.(cluster);
  const lines: string[] = [];
  const at = (level: string) => (fields: object, message: string) =>
    void lines.push(`${level}: ${message} ${(fields as { failures?: number }).failures ?? ''}`.trim());
  const log: Log = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error'), child: () => log };
  const informer = createInformer({ cluster, resource: resources.secrets, clock });
  const controller = createController({
    name: 'test',
    reconcile,
    watches: [watches(informer)],
    clock,
    log,
    random: () => 1,
    ...settings,
  });
  const stop = new AbortController();
  const informing = informer.run(stop.signal);
  const ended = controller.run(stop.signal);
  return { clock, cluster, informer, controller, stop, ended: Promise.all([ended, informing]), lines };
}

describe('a controller', () => {
  it('reconciles what is there, what comes, and what changes', async () => {
    const seen: string[] = [];
    const { clock, cluster, stop, ended } = start(async (key) => {
      seen.push(`${key.namespace}/${key.name}`);
      return {};
    });
    await clock.settle();
    cluster.seed(resources.secrets, secret('one'), secret('two'));
    await clock.settle();
    cluster.change(resources.secrets, { namespace: 'a', name: 'one' }, (s) => {
      s.metadata.labels = { changed: 'yes' };
    });
    cluster.erase(resources.secrets, { namespace: 'a', name: 'two' });
    await clock.settle();
    expect(seen).toEqual(['a/one', 'a/two', 'a/one', 'a/two']);
    stop.abort();
    await ended;
    expect(clock.pendingTimers).toBe(0);
  });

  it('decides nothing before it knows everything', async () => {
    const seen: string[] = [];
    const { clock, cluster, controller, informer, stop, ended } = start(
      async (key) => {
        expect(informer.synced).toBe(true);
        seen.push(key.name);
        return {};
      },
      {},
      (fake) => fake.setUnreachable(true),
    );
    controller.enqueue({ name: 'early' });
    await clock.advance(5000);
    expect(seen).toEqual([]);
    cluster.setUnreachable(false);
    await clock.advance(60_000);
    expect(seen).toEqual(['early']);
    stop.abort();
    await ended;
  });

  it('looks again when the reconciler says so, and not otherwise', async () => {
    const times: number[] = [];
    const { clock, controller, stop, ended } = start(async () => {
      times.push(clock.monotonicMs());
      return times.length < 3 ? { requeueAfterSeconds: 10 } : {};
    });
    controller.enqueue({ name: 'x' });
    await clock.advance(600_000);
    expect(times).toEqual([0, 10_000, 20_000]);
    stop.abort();
    await ended;
  });

  it('tries again in silence at first, later each time, and tells somebody in the end', async () => {
    const times: number[] = [];
    const { clock, controller, lines, stop, ended } = start(
      async () => {
        times.push(clock.monotonicMs() / 1000);
        throw new Error('no luck');
      },
      { backoff: { baseSeconds: 1, maxSeconds: 16 } },
    );
    controller.enqueue({ name: 'x' });
    await clock.advance(200_000);
    expect(times.slice(0, 7)).toEqual([0, 1, 3, 7, 15, 31, 47]);
    expect(lines.filter((line) => line.startsWith('warn'))).toEqual([
      'warn: reconcile failed, will be tried again 5',
      'warn: reconcile failed, will be tried again 10',
    ]);
    stop.abort();
    await ended;
  });

  it('waits as long as the API server asks', async () => {
    const times: number[] = [];
    const { clock, controller, stop, ended } = start(async () => {
      times.push(clock.monotonicMs());
      if (times.length === 1)
        throw new ApiError({ code: 429, reason: 'TooManyRequests', message: 'later', retryAfterSeconds: 30 });
      return {};
    });
    controller.enqueue({ name: 'x' });
    await clock.advance(29_000);
    expect(times).toEqual([0]);
    await clock.advance(2_000);
    expect(times).toEqual([0, 30_000]);
    stop.abort();
    await ended;
  });

  it('leaves what cannot succeed alone until it changes', async () => {
    let runs = 0;
    const { clock, cluster, lines, stop, ended } = start(async () => {
      runs++;
      throw new TerminalError('wrong chain');
    });
    cluster.seed(resources.secrets, secret('x'));
    await clock.advance(3_600_000);
    expect(runs).toBe(1);
    expect(lines).toContain('error: cannot go on before something changes');
    cluster.change(resources.secrets, { namespace: 'a', name: 'x' }, (s) => {
      s.metadata.labels = { now: 'right' };
    });
    await clock.advance(1000);
    expect(runs).toBe(2);
    stop.abort();
    await ended;
  });

  it('works on several keys at once, never on one twice', async () => {
    let most = 0;
    const now = new Map<string, number>();
    const { clock, controller, stop, ended } = start(
      async (key) => {
        now.set(key.name, (now.get(key.name) ?? 0) + 1);
        expect(now.get(key.name)).toBe(1);
        most = Math.max(most, [...now.values()].filter((n) => n > 0).length);
        await new Promise<void>((resolve) => clock.setTimeout(resolve, 1000));
        now.set(key.name, 0);
        return {};
      },
      { concurrency: 3 },
    );
    await clock.settle();
    for (let round = 0; round < 3; round++) {
      for (const name of ['a', 'b', 'c', 'd', 'e']) controller.enqueue({ name });
      await clock.advance(700);
    }
    await clock.advance(20_000);
    expect(most).toBe(3);
    expect(controller.queueLength).toBe(0);
    stop.abort();
    await ended;
  });

  it('stops a reconcile that takes too long, and goes on', async () => {
    const ends: string[] = [];
    const { clock, controller, lines, stop, ended } = start(
      (key, signal) =>
        new Promise((_, reject) => {
          signal.addEventListener('abort', () => {
            ends.push(`${key.name} ${clock.monotonicMs()} ${signal.reason.message}`);
            reject(signal.reason);
          });
        }),
      { stallAfterSeconds: 60, concurrency: 1 },
    );
    controller.enqueue({ name: 'stuck' });
    await clock.advance(30_000);
    expect(controller.longestSeconds).toBe(30);
    await clock.advance(31_000);
    expect(ends).toEqual(['stuck 60000 stopped after 60 s']);
    expect(lines[0]).toContain('takes too long');
    stop.abort();
    await ended;
  });

  it('waits for those in flight when it stops, and starts no others', async () => {
    const log: string[] = [];
    const { clock, controller, stop, ended } = start(
      async (key: ObjectKey, signal) => {
        log.push(`begin ${key.name}`);
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
        await new Promise<void>((resolve) => clock.setTimeout(resolve, 500));
        log.push(`end ${key.name}`);
        return { requeueAfterSeconds: 1 };
      },
      { concurrency: 1 },
    );
    await clock.settle();
    controller.enqueue({ name: 'one' });
    controller.enqueue({ name: 'two' });
    await clock.settle();
    let over = false;
    void ended.then(() => {
      over = true;
    });
    stop.abort();
    await clock.settle();
    expect(over).toBe(false);
    await clock.advance(500);
    await ended;
    expect(log).toEqual(['begin one', 'end one']);
    expect(clock.pendingTimers).toBe(0);
  });

  it('looks at everything again from time to time, when asked to', async () => {
    const times: number[] = [];
    const { clock, cluster, stop, ended } = start(
      async () => {
        times.push(clock.monotonicMs());
        return {};
      },
      { resyncSeconds: 100, random: () => 0.5 },
    );
    cluster.seed(resources.secrets, secret('x'));
    await clock.advance(250_000);
    expect(times).toEqual([0, 100_000, 200_000]);
    stop.abort();
    await ended;
  });

  it('forgets nothing when its queue overflows', async () => {
    const seen = new Set<string>();
    const { clock, cluster, stop, ended } = start(
      async (key) => {
        seen.add(key.name);
        return {};
      },
      { maxQueueLength: 3, concurrency: 1 },
    );
    const names = Array.from({ length: 20 }, (_, n) => `s${n}`);
    cluster.seed(resources.secrets, ...names.map((name) => secret(name)));
    await clock.advance(1000);
    for (let round = 0; round < 20; round++) await clock.advance(1000);
    expect([...seen].sort()).toEqual(names.sort());
    stop.abort();
    await ended;
  });
});
