/** Budgets among real controllers: leases held to them side by side, and what is spent counted once, wherever a process dies. */
import { describe, expect, it } from 'vitest';
import type { BudgetSpec, GpuBudget } from '../../../../operator/api/budget.ts';
import { reconcileBudget } from '../../../../operator/controllers/consumer/budget.ts';
import { reconcileLease } from '../../../../operator/controllers/consumer/lease.ts';
import type { LeaseWorld } from '../../../../operator/controllers/consumer/world.ts';
import { formatAmount } from '../../../../operator/core/money/amount.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { budget, lease } from '../../../support/builders.ts';
import { consumerFakes, type Fakes, type FakesOptions } from '../../../support/consumer-fakes.ts';

type Stored = GpuBudget & KubeObject;
const key = { namespace: 'ml', name: 'train' };
const aborted = () => new AbortController().signal;
const stored = (fakes: Fakes, name = 'team') => fakes.cluster.object<Stored>(resources.gpuBudgets, { name });
const count = (fakes: Fakes, name = 'team') => reconcileBudget(fakes.world)({ name }, aborted());
const day = (fakes: Fakes, name = 'team') => stored(fakes, name)?.status?.windows?.find((one) => one.window === 'Day');
const ready = (fakes: Fakes) => fakes.condition('Ready') === 'True Serving';
const reasons = (fakes: Fakes) => fakes.events.map((one) => one.reason);

async function withBudget(spec: Partial<BudgetSpec> = {}, options: FakesOptions = {}): Promise<Fakes> {
  const fakes = await consumerFakes(options);
  fakes.cluster.seed(resources.gpuBudgets, budget(spec) as Stored);
  return fakes;
}

async function wholeLife(fakes: Fakes): Promise<void> {
  await fakes.until(() => ready(fakes), 'Ready');
  fakes.seconds += 60;
  await fakes.until(() => (fakes.gateway.vouchers.at(-1)?.servedSeconds ?? 0) >= 55, 'a voucher');
  await fakes.cluster.delete(resources.gpuLeases, key);
  await fakes.until(() => fakes.lease() === undefined, 'gone');
}
const claimed = (fakes: Fakes) => fakes.chain.model.leases.get(fakes.chain.opened[0]!)!.claimed;

describe('what a lease spends', () => {
  it('is in its budget while it runs, and to the base unit when it is gone', async () => {
    const fakes = await withBudget();
    await fakes.until(() => ready(fakes), 'Ready');
    await count(fakes);
    expect(stored(fakes)?.status).toMatchObject({ gpus: 1, openLeases: 1 });
    expect(day(fakes)).toMatchObject({ spent: '0.0001', committed: '0.3599', limit: '10' });
    fakes.seconds += 60;
    await fakes.reconcile();
    await count(fakes);
    expect(Number(day(fakes)?.spent)).toBeGreaterThanOrEqual(0.005);
    expect(stored(fakes)?.status?.counted).toHaveLength(1);
    await fakes.cluster.delete(resources.gpuLeases, key);
    await fakes.until(() => fakes.lease() === undefined, 'gone');
    await count(fakes);
    expect(day(fakes)).toMatchObject({ spent: formatAmount(claimed(fakes), 6), committed: '0' });
    expect(stored(fakes)?.status).toMatchObject({ gpus: 0, openLeases: 0 });
    expect(stored(fakes)?.status?.counted).toBeUndefined();
  });

  it('is counted before its record goes, though nobody had looked at the budget', async () => {
    const fakes = await withBudget();
    await wholeLife(fakes);
    expect(day(fakes)?.spent).toBe(formatAmount(claimed(fakes), 6));
  });

  it('is not forgotten while it cannot be counted', async () => {
    const fakes = await withBudget();
    await fakes.until(() => ready(fakes), 'Ready');
    fakes.seconds += 60;
    await fakes.reconcile();
    await fakes.cluster.delete(resources.gpuLeases, key);
    fakes.cluster.failNext({ resource: 'gpubudgets', method: 'PATCH', fail: 503, times: 1000 });
    await expect(fakes.until(() => fakes.lease() === undefined, 'gone')).rejects.toThrow();
    expect(fakes.record()).toMatchObject({ attempt: 1, signedSeconds: expect.any(Number) });
    expect(fakes.record()?.settled).toBeUndefined();
  });

  it('stands in each budget that selects it, and in no other', async () => {
    const fakes = await withBudget();
    const of = (name: string, namespaceSelector: BudgetSpec['namespaceSelector']) =>
      fakes.cluster.seed(resources.gpuBudgets, budget({ namespaceSelector }, undefined, name) as Stored);
    fakes.cluster.change<KubeObject>(resources.namespaces, { name: 'ml' }, (one) => {
      one.metadata.labels = { team: 'ml' };
    });
    of('ml', { matchLabels: { team: 'ml' } });
    of('web', { matchLabels: { team: 'web' } });
    await wholeLife(fakes);
    for (const name of ['team', 'ml', 'web']) await count(fakes, name);
    const spent = formatAmount(claimed(fakes), 6);
    expect(['team', 'ml', 'web'].map((name) => day(fakes, name)?.spent)).toEqual([spent, spent, '0']);
  });

  it('is not written again while nothing changes', async () => {
    const fakes = await withBudget();
    await wholeLife(fakes);
    await count(fakes);
    const before = stored(fakes)?.metadata.resourceVersion;
    fakes.seconds += 30;
    await count(fakes);
    expect(stored(fakes)?.metadata.resourceVersion).toBe(before);
  });

  it('is written over what was read, and decided anew where the spec was changed meanwhile', async () => {
    const fakes = await withBudget();
    await fakes.until(() => ready(fakes), 'Ready');
    let read = 0;
    const cluster = new Proxy(fakes.world.cluster, {
      get(target, property) {
        if (property !== 'get') return Reflect.get(target, property);
        return async (...args: Parameters<typeof target.get>) => {
          const found = await target.get(...args);
          if (args[0].plural === 'gpubudgets' && read++ === 0)
            fakes.cluster.change<Stored>(resources.gpuBudgets, { name: 'team' }, (one) => {
              one.spec.limits = [{ window: 'Day', amount: '7' }];
            });
          return found;
        };
      },
    });
    await reconcileBudget({ ...fakes.world, cluster })({ name: 'team' }, aborted());
    expect(day(fakes)).toMatchObject({ limit: '7', committed: '0.3599' });
    expect(read).toBe(2);
  });
});

describe('a process that dies', async () => {
  const whole = await withBudget();
  await wholeLife(whole);
  const steps = whole.steps.flatMap((step, i) => (/gpubudgets|secrets|gateway.vouch/.test(step) ? [i + 1] : []));

  it.each([
    'before',
    'after',
  ] as const)('%s any write of a budget or a record counts each second once', async (when) => {
    expect(whole.steps.filter((one) => /gpubudgets/.test(one)).length).toBeGreaterThan(3);
    for (const step of steps) {
      const fakes = await withBudget();
      fakes.crashAt = { step, when };
      const where = `died ${when} step ${step} (${whole.steps[step - 1]})`;
      await wholeLife(fakes).catch((error: Error) => {
        throw new Error(`${where}: ${error.message}`);
      });
      expect(day(fakes)?.spent, where).toBe(formatAmount(claimed(fakes), 6));
      await count(fakes);
      expect(day(fakes), where).toMatchObject({ spent: formatAmount(claimed(fakes), 6), committed: '0' });
    }
  }, 120_000);
});

describe('a budget', () => {
  /** Several leases of one world, each with an escrow of its own. */
  function sideBySide(fakes: Fakes, names: readonly string[], change: Partial<LeaseWorld> = {}) {
    fakes.chain.allowance = 2n ** 200n;
    for (const name of names.slice(1))
      fakes.cluster.seed(resources.gpuLeases, lease({}, { metadata: { name, uid: `${name}-uid` } }) as never);
    const refs = new Map<string, `0x${string}`>();
    const world = {
      ...fakes.world,
      ...change,
      money: {
        ...fakes.world.money,
        leaseRef: (uid: string) => {
          if (!refs.has(uid)) refs.set(uid, `0x${String(refs.size + 1).padStart(64, '6')}`);
          return refs.get(uid)!;
        },
      },
    };
    return () => Promise.all(names.map((name) => reconcileLease(world)({ namespace: 'ml', name }, aborted())));
  }
  const names = ['train', 'second', 'third', 'fourth'];

  it.each<[string, Partial<BudgetSpec>, number]>([
    ['an amount', { limits: [{ window: 'Day', amount: '0.75' }] }, 2],
    ['GPUs', { limits: [], maxConcurrentGpus: 3 }, 3],
  ])('of %s holds for leases that are decided side by side', async (_, spec, most) => {
    const fakes = await withBudget(spec);
    const all = sideBySide(fakes, names);
    await all();
    await all();
    await all();
    expect(fakes.chain.opened).toHaveLength(most);
    const deposits = [...fakes.world.records.all().values()].filter((one) => one.deposit !== undefined);
    expect(deposits).toHaveLength(most);
    const waits = fakes.cluster
      .objects<KubeObject & { status?: { conditions?: { type: string; reason: string; message: string }[] } }>(
        resources.gpuLeases,
      )
      .flatMap(
        (one) => one.status?.conditions?.filter((c) => c.type === 'Ready' && c.reason === 'BudgetExceeded') ?? [],
      );
    expect(waits).toHaveLength(names.length - most);
    for (const { message } of waits) expect(message).toContain('GpuBudget team allows');
  });

  it('holds though the caches know nothing of it, nor of whose namespace it selects', async () => {
    const fakes = await withBudget({
      limits: [{ window: 'Day', amount: '0.4' }],
      namespaceSelector: { matchLabels: { team: 'ml' } },
    });
    fakes.cluster.change<KubeObject>(resources.namespaces, { name: 'ml' }, (one) => {
      one.metadata.labels = { team: 'ml' };
    });
    const empty = { list: () => [], get: () => undefined, synced: true } as never;
    const all = sideBySide(fakes, names, { budgets: empty, namespaces: empty });
    await all();
    await all();
    expect(fakes.chain.opened).toHaveLength(1);
  });

  it('lets a lease go on once its limit is raised', async () => {
    const fakes = await withBudget({ limits: [{ window: 'Day', amount: '0.1' }] });
    await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('False BudgetExceeded');
    expect(fakes.condition('Stalled')).toBe('True BudgetExceeded');
    expect(fakes.steps.filter((one) => /quote|open/.test(one))).toEqual([]);
    fakes.cluster.change<Stored>(resources.gpuBudgets, { name: 'team' }, (one) => {
      one.spec.limits = [{ window: 'Day', amount: '1' }];
    });
    await fakes.until(() => ready(fakes), 'Ready');
  });

  it('tells of a percentage once, also after a restart', async () => {
    const fakes = await withBudget({ limits: [{ window: 'Day', amount: '0.01' }], onExceeded: 'Alert' });
    await fakes.until(() => ready(fakes), 'Ready');
    for (let i = 0; i < 3; i++) {
      fakes.seconds += 60;
      await fakes.reconcile();
      await count(fakes);
      await count(fakes);
      await fakes.restart();
    }
    const told = fakes.events.filter((one) => one.reason === 'BudgetAlert').map((one) => one.message.slice(0, 5));
    // A minute is 0.006: 60 %, then 120 %.
    expect(told).toEqual(['50 % ', '100 %']);
    expect(reasons(fakes).filter((one) => one === 'AmountExceeded')).toHaveLength(1);
  });

  it('that drains ends its leases after its grace, and they are settled', async () => {
    const fakes = await withBudget({
      limits: [{ window: 'Day', amount: '10' }],
      onExceeded: 'Drain',
      graceSeconds: 30,
    });
    await fakes.until(() => ready(fakes), 'Ready');
    fakes.seconds += 60;
    await fakes.reconcile();
    fakes.cluster.change<Stored>(resources.gpuBudgets, { name: 'team' }, (one) => {
      one.spec.limits = [{ window: 'Day', amount: '0.001' }];
    });
    await count(fakes);
    await fakes.reconcile();
    expect(fakes.condition('LowFunds')).toBe('True BudgetExceeded');
    expect(ready(fakes)).toBe(true);
    await fakes.until(() => fakes.lease()?.status?.endedAt !== undefined, 'ended');
    expect(fakes.lease()?.status?.endReason).toBe('BudgetExceeded');
    expect(reasons(fakes)).toEqual(
      expect.arrayContaining(['AmountExceeded', 'LowFunds', 'LeaseLowFunds', 'BudgetExceeded']),
    );
  });

  it('that is raised within its grace ends nothing', async () => {
    const fakes = await withBudget({
      limits: [{ window: 'Day', amount: '10' }],
      onExceeded: 'Drain',
      graceSeconds: 90,
    });
    await fakes.until(() => ready(fakes), 'Ready');
    fakes.seconds += 60;
    await fakes.reconcile();
    const limit = (amount: string) =>
      fakes.cluster.change<Stored>(resources.gpuBudgets, { name: 'team' }, (one) => {
        one.spec.limits = [{ window: 'Day', amount }];
      });
    limit('0.001');
    await count(fakes);
    fakes.seconds += 30;
    await fakes.reconcile();
    limit('10');
    fakes.seconds += 61;
    await fakes.reconcile();
    await count(fakes);
    await fakes.reconcile();
    expect(ready(fakes)).toBe(true);
    expect(fakes.record()?.end).toBeUndefined();
    expect(fakes.condition('LowFunds')).toBeUndefined();
    expect(reasons(fakes)).toEqual(expect.arrayContaining(['FundsRestored', 'WithinLimits']));
  });
});

describe('a lease whose wallet is empty', () => {
  const term = { term: { durationSeconds: 86_400 }, drainTimeoutSeconds: 20 };
  const short = { depositSeconds: 240, lowWaterSeconds: 120 };
  async function running(): Promise<Fakes> {
    const fakes = await consumerFakes({ lease: lease(term, { metadata: { finalizers: [] } }), settings: short });
    await fakes.until(() => ready(fakes), 'Ready');
    fakes.chain.balance = 0n;
    fakes.seconds += 150;
    await fakes.reconcile();
    return fakes;
  }

  it('says so, and goes on when money comes before the drain begins', async () => {
    const fakes = await running();
    expect([fakes.condition('Ready'), fakes.condition('LowFunds')]).toEqual(['True Serving', 'True InsufficientFunds']);
    fakes.chain.balance = 1_000_000n;
    fakes.seconds += 30;
    await fakes.until(() => fakes.condition('LowFunds') === undefined, 'funds');
    fakes.seconds += 60;
    await fakes.reconcile();
    expect(ready(fakes)).toBe(true);
    expect(reasons(fakes).filter((one) => /Funds|ToppedUp/.test(one))).toEqual([
      'LowFunds',
      'LeaseLowFunds',
      'ToppedUp',
      'FundsRestored',
    ]);
    expect(fakes.chain.opened).toHaveLength(1);
  });

  it('tells it once, whatever restarts in between, then drains, and is settled within what was paid', async () => {
    const fakes = await running();
    await fakes.restart();
    await fakes.until(() => fakes.lease()?.status?.endedAt !== undefined, 'ended');
    expect(fakes.lease()?.status?.endReason).toBe('InsufficientFunds');
    expect(reasons(fakes).filter((one) => one === 'LowFunds')).toHaveLength(1);
    const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    expect(escrow.closed).toBe(true);
    expect(escrow.claimed).toBe(BigInt(escrow.servedSeconds) * 100n);
    expect(escrow.claimed).toBeLessThanOrEqual(escrow.deposit);
  });
});
