/** What a node's heartbeat stands for, and what its Ready condition is worth to the meter. */
import { describe, expect, test } from 'vitest';
import type { AllocationInfo } from '../../../operator/api/gateway.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { resources } from '../../../operator/engine/types.ts';
import { createLeaseNodes } from '../../../operator/kubelet/lease-nodes.ts';
import type { NodeSpec } from '../../../operator/kubelet/types.ts';
import type { VirtualNodes } from '../../../operator/kubelet/virtual-nodes.ts';
import { allocationInfo, at, lease, quoteRecord } from '../../support/builders.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

function world() {
  const cluster = fakeCluster();
  const started: NodeSpec[] = [];
  const time = { wallSeconds: 0, monotonicMs: 0 };
  let answer: AllocationInfo | undefined = allocationInfo();
  const probed: (() => void)[] = [];
  const nodes = {
    get: () => ({ refresh: () => undefined }),
    start: (spec: NodeSpec) => void started.push(spec),
  } as unknown as VirtualNodes;
  const leaseNodes = createLeaseNodes({
    cluster,
    nodes,
    connect: () => ({
      allocation: () =>
        new Promise<AllocationInfo>((resolve, reject) =>
          probed.push(() => (answer ? resolve(answer) : reject(new Error('connection refused')))),
        ),
      raw: () => Promise.reject(new Error('not used')),
      upgrade: () => Promise.reject(new Error('not used')),
    }),
    now: () => at(time.wallSeconds),
    monotonicMs: () => time.monotonicMs,
    log: silentLog,
    onChange: () => undefined,
  });
  const name = leaseNodes.nameOf(lease());
  return {
    leaseNodes,
    time,
    say: (info: AllocationInfo | undefined) => {
      answer = info;
    },
    async start() {
      cluster.seed(resources.nodes, {
        metadata: { name, labels: { 'gpulease.dev/lease-uid': lease().metadata.uid! } },
        status: { conditions: [{ type: 'Ready', status: 'True', lastTransitionTime: at(0).toISOString() }] },
      } as never);
      await leaseNodes.start(lease(), quoteRecord(), allocationInfo(), at(10_000));
    },
    pass(seconds: number) {
      time.wallSeconds += seconds;
      time.monotonicMs += seconds * 1000;
    },
    health: () => started.at(-1)!.healthy(),
    fact: () => leaseNodes.fact(lease()),
    async probe() {
      probed.shift()?.();
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}

describe('the health of a node', () => {
  test('is good while the provider answers and is paid', async () => {
    const w = world();
    await w.start();
    expect(w.health().ready).toBe(true);
    w.pass(19);
    expect(w.health().ready).toBe(true);
    w.pass(2);
    expect(w.health()).toMatchObject({ ready: false, reason: 'ProviderUnreachable' });
    await w.probe();
    expect(w.health().ready).toBe(true);
    w.leaseNodes.close();
  });

  test('is not lost to a wall clock that is put forward', async () => {
    const w = world();
    await w.start();
    w.time.wallSeconds += 300;
    expect(w.health().ready).toBe(true);
    w.leaseNodes.close();
  });

  test('is bad once the deposit is used up', async () => {
    const w = world();
    await w.start();
    w.time.wallSeconds += 10_001;
    expect(w.health()).toMatchObject({ ready: false, reason: 'Unpaid' });
    w.leaseNodes.close();
  });

  test('returns with a provider that answers more slowly than it is first waited for', async () => {
    const time = { monotonicMs: 0 };
    const specs: NodeSpec[] = [];
    const leaseNodes = createLeaseNodes({
      cluster: fakeCluster(),
      nodes: {
        get: () => ({ refresh: () => undefined }),
        start: (spec: NodeSpec) => void specs.push(spec),
      } as unknown as VirtualNodes,
      connect: () => ({
        allocation: (signal) =>
          new Promise<AllocationInfo>((resolve, reject) => {
            const answering = setTimeout(() => resolve(allocationInfo()), 150);
            signal?.addEventListener('abort', () => {
              clearTimeout(answering);
              reject(signal.reason);
            });
          }),
        raw: () => Promise.reject(new Error('not used')),
        upgrade: () => Promise.reject(new Error('not used')),
      }),
      now: () => at(0),
      monotonicMs: () => time.monotonicMs,
      log: silentLog,
      onChange: () => undefined,
      probeSeconds: 0.05,
    });
    await leaseNodes.start(lease(), quoteRecord(), allocationInfo(), at(10_000));
    time.monotonicMs = 21_000;
    expect(specs[0]!.healthy()).toMatchObject({ ready: false, reason: 'ProviderUnreachable' });
    await expect.poll(() => specs[0]!.healthy().ready, { timeout: 15_000 }).toBe(true);
    leaseNodes.close();
  });
});

describe('what is told to the meter', () => {
  test('is until when this process saw it healthy, while the Node still says Ready', async () => {
    const w = world();
    await w.start();
    w.pass(15);
    expect(await w.fact()).toMatchObject({ ready: 'True' });
    expect((await w.fact())?.healthyAt).toBeUndefined();
    expect(w.health().ready).toBe(true);
    w.pass(10);
    expect(await w.fact()).toMatchObject({ ready: 'True', healthyAt: at(15) });
    await w.probe();
    expect((await w.fact())?.healthyAt).toBeUndefined();
    w.leaseNodes.close();
  });

  test('what was counted lets a node return once', async () => {
    const w = world();
    await w.start();
    const meter = { servedMs: 0, countedUntil: at(0).toISOString(), ready: false };
    await w.leaseNodes.start(lease(), quoteRecord(), allocationInfo(), at(10_000), meter);
    const mayReturn = () => {
      const health = w.health();
      return health.ready && health.counted?.(at(50));
    };
    expect(mayReturn()).toBe(true);
    expect(await w.fact()).toMatchObject({ ready: 'True' });
    expect(mayReturn()).toBe(false);
    w.leaseNodes.close();
  });

  test('says nothing of health before this process serves it', async () => {
    const w = world();
    await w.start();
    const other = world();
    expect(await other.fact()).toBeUndefined();
    w.leaseNodes.close();
  });
});
