/** What the operator counts of leases, for dashboards and alerts. Amounts are in whole tokens, for reading; no decision uses them. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { GpuBudget } from '../api/budget.ts';
import type { GpuLease } from '../api/lease.ts';
import type { LeaseMetrics } from '../controllers/consumer/world.ts';
import type { LeaseRecord } from '../core/lease/observed.ts';
import { formatAmount } from '../core/money/amount.ts';

export function leaseMetrics(
  registry: Registry,
  records: () => ReadonlyMap<string, LeaseRecord>,
): Omit<LeaseMetrics, 'settled'> {
  const registers = [registry];
  const vouched = new Counter({
    name: 'gpulease_lease_vouched_seconds_total',
    help: 'Seconds vouched for.',
    labelNames: ['namespace', 'provider'],
    registers,
  });
  const ready = new Histogram({
    name: 'gpulease_lease_time_to_ready_seconds',
    help: 'From creation of a lease to its node being Ready.',
    buckets: [1, 2, 5, 10, 30, 60, 120, 300, 900],
    registers,
  });
  const orphans = new Counter({
    name: 'gpulease_orphans_total',
    help: 'Found with no lease behind them, and being ended, by kind. Counted at each sweep until they are gone.',
    labelNames: ['kind'],
    registers,
  });
  const reasons = new Map<string, string>();
  new Gauge({
    name: 'gpulease_pending_leases',
    help: 'Leases that are not Ready, by reason.',
    labelNames: ['reason'],
    registers,
    collect() {
      this.reset();
      for (const reason of reasons.values()) this.inc({ reason });
    },
  });
  const open = () => [...records().values()].filter((r) => r.quote && r.deposit !== undefined && !r.settled);
  new Gauge({
    name: 'gpulease_escrow_outstanding',
    help: 'Deposited in escrows that are not settled, in whole tokens.',
    labelNames: ['provider', 'asset'],
    registers,
    collect() {
      this.reset();
      for (const { quote, deposit } of open())
        this.inc(
          { provider: quote!.providerName, asset: quote!.assetSymbol },
          Number(formatAmount(BigInt(deposit!), quote!.decimals)),
        );
    },
  });
  new Gauge({
    name: 'gpulease_lease_rate_per_hour',
    help: 'What open leases cost an hour, in whole tokens.',
    labelNames: ['provider', 'asset'],
    registers,
    collect() {
      this.reset();
      for (const { quote } of open()) {
        const rate = BigInt(quote!.signed.quote.pricePerGpuHour) * BigInt(quote!.signed.quote.gpus);
        this.inc(
          { provider: quote!.providerName, asset: quote!.assetSymbol },
          Number(formatAmount(rate, quote!.decimals)),
        );
      }
    },
  });
  return {
    vouched: (lease: GpuLease, provider, seconds) =>
      vouched.inc({ namespace: lease.metadata.namespace ?? '', provider }, Math.max(0, seconds)),
    ready: (_lease, seconds) => ready.observe(Math.max(0, seconds)),
    orphan: (kind) => orphans.inc({ kind }),
    pending: (uid, reason) => (reason === undefined ? void reasons.delete(uid) : void reasons.set(uid, reason)),
  };
}

/** From the budgets' statuses, which are some seconds old at most. */
export function budgetMetrics(registry: Registry, budgets: () => readonly GpuBudget[]): void {
  const registers = [registry];
  type Window = NonNullable<NonNullable<GpuBudget['status']>['windows']>[number];
  const amounts = (name: string, help: string, amountOf: (window: Window) => string | undefined) =>
    new Gauge({
      name,
      help,
      labelNames: ['budget', 'window', 'asset'],
      registers,
      collect() {
        this.reset();
        for (const { metadata, spec, status } of budgets())
          for (const one of status?.windows ?? []) {
            const amount = amountOf(one);
            if (amount !== undefined)
              this.set({ budget: metadata.name, window: one.window, asset: spec.assetSymbol }, Number(amount));
          }
      },
    });
  amounts('gpulease_budget_spent', 'Spent in the present window, in whole tokens.', (one) => one.spent);
  amounts(
    'gpulease_budget_committed',
    'What open leases may still spend in the present window of their deposits, in whole tokens.',
    (one) => one.committed,
  );
  amounts('gpulease_budget_limit', 'Most that may be spent in the window, in whole tokens.', (one) => one.limit);
  amounts('gpulease_budget_used_ratio', 'Spent, of the limit of the window; 1 is all of it.', ({ spent, limit }) =>
    limit === undefined
      ? undefined
      : Number(limit) === 0
        ? Number(spent) > 0
          ? '1'
          : '0'
        : String(Number(spent) / Number(limit)),
  );
  new Gauge({
    name: 'gpulease_budget_gpus',
    help: 'GPUs that the leases of a budget have now.',
    labelNames: ['budget'],
    registers,
    collect() {
      this.reset();
      for (const { metadata, status } of budgets()) this.set({ budget: metadata.name }, status?.gpus ?? 0);
    },
  });
  new Gauge({
    name: 'gpulease_budget_exceeded',
    help: '1 while more is spent, or leased, than a budget allows.',
    labelNames: ['budget'],
    registers,
    collect() {
      this.reset();
      for (const { metadata, status } of budgets()) this.set({ budget: metadata.name }, status?.exceededSince ? 1 : 0);
    },
  });
}

/** Of the virtual nodes that this process serves. */
export function serviceMetrics(
  registry: Registry,
  traffic: () => { readonly ports: number; readonly toPods: number; readonly toServices: number },
): void {
  const registers = [registry];
  new Gauge({
    name: 'gpulease_service_ports',
    help: 'Ports of this process that stand for ports of pods on leased nodes.',
    registers,
    collect() {
      this.set(traffic().ports);
    },
  });
  new Gauge({
    name: 'gpulease_service_connections',
    help: 'Open connections: to pods on leased nodes, or from them to Services of this cluster.',
    labelNames: ['to'],
    registers,
    collect() {
      const { toPods, toServices } = traffic();
      this.set({ to: 'pods' }, toPods);
      this.set({ to: 'services' }, toServices);
    },
  });
}

/** Tells of a pod that was ended at this provider. */
export function strayPods(registry: Registry): (provider: string) => void {
  const counter = new Counter({
    name: 'gpulease_stray_pods_total',
    help: 'Pods that ran at a provider with no pod here that they stood for, and were ended. Deleting pods by force makes some.',
    labelNames: ['provider'],
    registers: [registry],
  });
  return (provider) => counter.inc({ provider });
}
