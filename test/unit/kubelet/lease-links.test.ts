/** How soon the Services of a node hear that its provider does not answer, and that it does again. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
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

beforeEach(async () => {
  vi.useFakeTimers();
  refreshed = 0;
  asked = 0;
  answer = serves;
  nodes = createLeaseNodes({
    cluster: fakeCluster(),
    nodes: {
      get: () => ({ refresh: () => refreshed++ }),
      start: (given: NodeSpec) => {
        spec = given;
      },
    } as unknown as VirtualNodes,
    connect: () =>
      ({
        allocation: (signal: AbortSignal) => {
          asked++;
          return answer(signal);
        },
      }) as never,
    now: () => new Date(),
    log: silentLog,
    onChange: () => undefined,
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
