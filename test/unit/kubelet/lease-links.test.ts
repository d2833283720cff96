/** How soon the Services of a node hear that its provider does not answer, and that it does again. */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { AllocationInfo } from '../../../operator/api/gateway.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { createLeaseNodes } from '../../../operator/kubelet/lease-nodes.ts';
import type { NodeSpec, VirtualNodes } from '../../../operator/kubelet/virtual-nodes.ts';
import { allocationInfo, lease, quoteRecord } from '../../support/builders.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

let spec: NodeSpec;
let refreshed: number;
let asked: number;
let answer: (signal: AbortSignal) => Promise<unknown>;
let nodes: ReturnType<typeof createLeaseNodes>;
const serves = async () => allocationInfo();
const refuses = async () => {
  throw new Error('ECONNREFUSED');
};
const isSilent = (signal: AbortSignal) =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

const attending = (remote: object) =>
  createLeaseNodes({
    cluster: fakeCluster(),
    nodes: {
      get: () => ({ refresh: () => refreshed++ }),
      start: (given: NodeSpec) => {
        spec = given;
      },
    } as unknown as VirtualNodes,
    connect: () => remote as never,
    now: () => new Date(),
    log: silentLog,
    onChange: () => undefined,
  });

beforeEach(async () => {
  vi.useFakeTimers();
  refreshed = 0;
  asked = 0;
  answer = serves;
  nodes = attending({
    allocation: (signal: AbortSignal) => {
      asked++;
      return answer(signal);
    },
  });
  // Vitest's clock does not reach into AbortSignal.timeout.
  vi.spyOn(AbortSignal, 'timeout').mockImplementation((ms) => {
    const timeout = new AbortController();
    setTimeout(() => timeout.abort(new Error('time is up')), ms);
    return timeout.signal;
  });
  await nodes.start(lease({ services: [{ name: 'db' }] }), quoteRecord(), allocationInfo(), undefined);
  await pass(0.1);
});
afterEach(() => {
  nodes.close();
  vi.restoreAllMocks();
  vi.useRealTimers();
});
const pass = (seconds: number) => vi.advanceTimersByTimeAsync(seconds * 1000);

test('a lease takes the Services that it names to its node', () => {
  expect(spec.services).toEqual([{ name: 'db' }]);
  expect(spec.linked?.()).toBe(true);
});

test('a provider that refuses is unlinked after the second question, and linked by the first answer', async () => {
  answer = refuses;
  await pass(5);
  expect(spec.linked?.()).toBe(true);
  const before = refreshed;
  await pass(1.1);
  expect(spec.linked?.()).toBe(false);
  expect(refreshed).toBe(before + 1);
  answer = serves;
  await pass(1.1);
  expect(spec.linked?.()).toBe(true);
  expect(refreshed).toBe(before + 2);
});

test('one refusal alone is a replica that went', async () => {
  let refusals = 1;
  answer = () => (refusals-- > 0 ? refuses() : serves());
  for (let second = 0; second < 12; second++) {
    await pass(1);
    expect(spec.linked?.()).toBe(true);
  }
});

test('a provider that is silent is unlinked after one question', async () => {
  answer = isSilent;
  await pass(10);
  expect(spec.linked?.()).toBe(false);
});

test('what broke on the way is looked into at once, and a hundred breaks are one question', async () => {
  const before = asked;
  answer = refuses;
  await pass(1);
  for (let i = 0; i < 100; i++) spec.ask?.();
  await pass(0.1);
  expect(asked).toBe(before + 1);
  for (let i = 0; i < 100; i++) spec.ask?.();
  await pass(0.3);
  expect(asked).toBe(before + 2);
  expect(spec.linked?.()).toBe(false);
});

/** A provider that tells of itself. */
function following() {
  const said: (AllocationInfo | undefined)[] = [];
  let wake: () => void = () => undefined;
  let breaks = 0;
  const times: number[] = [];
  const made = {
    times,
    say(info?: AllocationInfo) {
      said.push(info);
      wake();
    },
    /** For good, or once. */
    breakOff(times: number) {
      breaks = times;
      wake();
    },
    allocation: () => Promise.reject(new Error('asked a provider that tells of itself')),
    async follow(heard: (info: AllocationInfo | undefined) => void, signal: AbortSignal): Promise<void> {
      times.push(performance.now());
      const aborted = new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      aborted.catch(() => undefined);
      for (;;) {
        while (said.length > 0) heard(said.shift());
        if (breaks-- > 0) throw new Error('ECONNRESET');
        await Promise.race([aborted, new Promise<void>((resolve) => (wake = resolve))]);
      }
    },
  };
  return made;
}

describe('a provider that tells of itself', () => {
  let remote: ReturnType<typeof following>;
  beforeEach(async () => {
    nodes.close();
    remote = following();
    nodes = attending(remote);
    await nodes.start(
      lease({ services: [{ name: 'db' }] }),
      quoteRecord(),
      allocationInfo(),
      new Date(Date.now() + 1e7),
    );
    remote.say(allocationInfo());
    await pass(0.1);
  });

  test('is asked once, however long it goes on', async () => {
    for (let i = 0; i < 60; i += 1) {
      await pass(5);
      remote.say();
    }
    expect(remote.times).toHaveLength(1);
    expect([spec.linked?.(), spec.healthy().ready]).toEqual([true, true]);
  });

  test('a change is passed on at once', async () => {
    const before = refreshed;
    remote.say(allocationInfo({ nodeReady: false, nodeMessage: 'gone' }));
    await pass(0.01);
    expect(spec.healthy()).toMatchObject({ ready: false, reason: 'ProviderNodeNotReady', message: 'gone' });
    expect(refreshed).toBe(before + 1);
  });

  test('that falls silent is unlinked within eight seconds, and unreachable after twenty', async () => {
    await pass(7);
    expect(spec.linked?.()).toBe(true);
    await pass(1);
    expect(spec.linked?.()).toBe(false);
    expect(spec.healthy().ready).toBe(true);
    await pass(12.5);
    expect(spec.healthy()).toMatchObject({ ready: false, reason: 'ProviderUnreachable' });
    remote.say();
    await pass(1.1);
    expect([spec.linked?.(), spec.healthy().ready]).toEqual([true, true]);
  });

  test('that breaks off once is asked again, and is linked all the while', async () => {
    for (let i = 0; i < 4; i += 1) {
      await pass(5);
      remote.say();
    }
    remote.breakOff(1);
    await pass(0.1);
    expect(spec.linked?.()).toBe(true);
    await pass(1.1);
    remote.say(allocationInfo());
    await pass(0.1);
    expect(remote.times).toHaveLength(2);
    expect(spec.linked?.()).toBe(true);
  });

  test('that breaks off again and again is unlinked within two seconds', async () => {
    remote.breakOff(100);
    await pass(2);
    expect(spec.linked?.()).toBe(false);
  });

  test('that somebody doubts is asked anew, at most four times a second', async () => {
    remote.say();
    await pass(0.1);
    for (let i = 0; i < 40; i += 1) {
      spec.ask?.();
      await pass(0.05);
    }
    expect(remote.times.length).toBeGreaterThanOrEqual(5);
    expect(remote.times.length).toBeLessThanOrEqual(10);
    expect(spec.linked?.()).toBe(true);
  });
});
