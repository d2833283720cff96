/** What is left of leases that went without having ended is found, and ended; what is merely young, or not known, is not. */
import { describe, expect, it } from 'vitest';
import { createSweep, reconcileOrphan } from '../../../../operator/controllers/consumer/orphans.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { consumerFakes, type Fakes, totals } from '../../../support/consumer-fakes.ts';

const key = { namespace: 'ml', name: 'train' };
const signal = new AbortController().signal;

/** A lease that is served; then it is taken out of the API server past its finalizer. */
async function served(): Promise<Fakes> {
  const fakes = await consumerFakes();
  await fakes.until(() => fakes.condition('Ready') === 'True Serving', 'Ready');
  fakes.seconds += 30;
  await fakes.reconcile();
  return fakes;
}

async function forceAway({ cluster }: Fakes): Promise<void> {
  await cluster.patch(resources.gpuLeases, key, { metadata: { finalizers: null } });
  await cluster.delete(resources.gpuLeases, key);
}

function sweeper(fakes: Fakes) {
  const counted: string[] = [];
  const enqueued = new Set<string>();
  const world = {
    ...fakes.world,
    metrics: {
      pending: () => undefined,
      vouched: () => undefined,
      settled: () => undefined,
      orphan: (kind: string) => counted.push(kind),
    },
  } as never;
  const sweep = createSweep(world, (uid) => enqueued.add(uid));
  return {
    counted,
    enqueued,
    sweep: () => sweep(signal),
    /** What the controller behind the queue would do, until nothing is left to do. */
    async end() {
      for (let round = 0; round < 120 && enqueued.size > 0; round++) {
        for (const uid of enqueued)
          if ((await reconcileOrphan(world)({ name: uid }, signal)).requeueAfterSeconds === undefined)
            enqueued.delete(uid);
        fakes.seconds += 1;
        (fakes.gateway as unknown as { act(): void }).act();
      }
    },
  };
}

const escrowOf = (fakes: Fakes) => fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;

describe('a sweep', () => {
  it('touches nothing of a lease that is there', async () => {
    const fakes = await served();
    const { sweep, counted, enqueued } = sweeper(fakes);
    await sweep();
    await sweep();
    expect([counted, [...enqueued], fakes.node === undefined, escrowOf(fakes).closingAt]).toEqual([[], [], false, 0]);
  });

  it('ends a lease that was taken away past its finalizer: node, hardware, money', async () => {
    const fakes = await served();
    await forceAway(fakes);
    const { sweep, counted, enqueued, end } = sweeper(fakes);
    await sweep();
    // It may be going just now, in its own way.
    expect([...enqueued]).toEqual([]);
    await sweep();
    expect([...enqueued]).toEqual([fakes.nodeOf]);
    await end();
    expect(counted).toEqual(['lease']);
    expect(fakes.node).toBeUndefined();
    expect(fakes.gateway.released).toBe(true);
    expect(escrowOf(fakes).closed).toBe(true);
    const { deposited, paid, fee, refunded, held } = totals(fakes);
    expect([held, paid + fee + refunded]).toEqual([0n, deposited]);
    expect(fakes.records.all().size).toBe(0);
  });

  it('writes nothing onto a lease that took the name meanwhile', async () => {
    const fakes = await served();
    await forceAway(fakes);
    fakes.cluster.seed(resources.gpuLeases, {
      apiVersion: 'gpulease.dev/v1alpha1',
      kind: 'GpuLease',
      metadata: { ...key, uid: 'another-uid' },
      spec: { gpu: { models: ['RTX4090'] }, pricing: { maxPricePerGpuHour: '1' } },
    } as never);
    const before = fakes.lease()?.metadata.resourceVersion;
    const { sweep, end } = sweeper(fakes);
    await sweep();
    await sweep();
    await end();
    expect(escrowOf(fakes).closed).toBe(true);
    expect(fakes.lease()?.metadata.resourceVersion).toBe(before);
  });

  it('leaves a lease alone that came back before it was looked at', async () => {
    const fakes = await served();
    const { enqueued, end } = sweeper(fakes);
    enqueued.add(fakes.nodeOf);
    await end();
    expect(escrowOf(fakes).closingAt).toBe(0);
    expect(fakes.node).toBeDefined();
  });

  it('ends a Node whose lease and record are both gone', async () => {
    const fakes = await served();
    await forceAway(fakes);
    await fakes.records.remove(fakes.nodeOf);
    const { sweep, counted } = sweeper(fakes);
    await sweep();
    expect(fakes.node).toBeDefined();
    await sweep();
    expect(fakes.node).toBeUndefined();
    expect(counted).toEqual(['node', 'escrow']);
  });

  it('closes an escrow that nobody remembers: first the clock stops, then it pays and refunds', async () => {
    const fakes = await served();
    await forceAway(fakes);
    await fakes.records.remove(fakes.nodeOf);
    const { sweep } = sweeper(fakes);
    await sweep();
    await sweep();
    expect(escrowOf(fakes)).toMatchObject({ closed: false, closingAt: expect.any(Number) });
    expect(escrowOf(fakes).closingAt).toBeGreaterThan(0);
    fakes.seconds += 61;
    await sweep();
    expect(escrowOf(fakes).closed).toBe(true);
    expect(totals(fakes).held).toBe(0n);
  });

  it('does nothing about an escrow whose record is only just being read', async () => {
    const fakes = await served();
    const { sweep } = sweeper(fakes);
    await sweep();
    expect(fakes.steps).toContain('money.strays');
    expect(escrowOf(fakes).closingAt).toBe(0);
  });

  it('concludes nothing when the API server does not answer', async () => {
    const fakes = await served();
    const { sweep, enqueued } = sweeper(fakes);
    fakes.cluster.failNext({ resource: 'gpuleases', method: 'GET', fail: 'answer-lost', times: 2 });
    await expect(sweep()).rejects.toThrow();
    await forceAway(fakes);
    fakes.cluster.failNext({ resource: 'gpuleases', method: 'GET', fail: 'answer-lost', times: 2 });
    await expect(sweep()).rejects.toThrow();
    await sweep();
    expect([...enqueued]).toEqual([]);
  });
});
