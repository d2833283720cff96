/**
 * GpuBudget: counts what its leases spend, and tells people. What it means is decided in core/budget; leases are held to it
 * where they decide, in core/lease.
 *
 * The status is the ledger: it is read from the server and written over that very version, in turn with every decision
 * about money, so that nothing is counted twice or missed.
 */
import type { GpuBudget } from '../../api/budget.ts';
import { mergeConditions } from '../../api/conditions.ts';
import { countSpend, type LabelsOf } from '../../core/budget/count.ts';
import { type BudgetReport, reportBudget } from '../../core/budget/report.ts';
import { sameJson } from '../../engine/equal.ts';
import { isConflict } from '../../engine/errors.ts';
import {
  type Cluster,
  type EventRecorder,
  type Informer,
  type KubeObject,
  type Reconcile,
  resources,
} from '../../engine/types.ts';
import { inTurn } from './in-turn.ts';
import type { LeaseRecords } from './records.ts';

export interface BudgetWorld {
  readonly cluster: Cluster;
  readonly budgets: Informer<GpuBudget>;
  readonly namespaces: Informer<KubeObject>;
  readonly records: LeaseRecords;
  readonly events: EventRecorder;
  readonly now: () => Date;
}

type StoredBudget = GpuBudget & KubeObject;

const fieldManager = 'gpulease-budget';
/** Somebody else wrote in between, to the spec as a rule: decided anew. */
const attempts = 5;

export const namespaceLabels =
  ({ namespaces }: Pick<BudgetWorld, 'namespaces'>): LabelsOf =>
  (name) => {
    const namespace = namespaces.get({ name });
    return namespace && (namespace.metadata.labels ?? {});
  };

/** All that is kept of a namespace. */
export const labelsOnly = ({ metadata }: KubeObject): KubeObject => {
  const { name, uid, resourceVersion, labels } = metadata;
  return { metadata: { name, uid, resourceVersion, labels } };
};

export const reconcileBudget =
  (world: BudgetWorld): Reconcile =>
  async ({ name }, signal) => {
    const report = await inTurn(world.records, () => count(world, name, signal));
    return report ? { requeueAfterSeconds: report.requeueAfterSeconds } : {};
  };

/** Counts what a lease has spent, before the record that tells of it is written over. In turn: the caller sees to it. */
export async function countLease(world: BudgetWorld, uid: string, signal: AbortSignal): Promise<void> {
  const { items } = await world.cluster.list<StoredBudget>(resources.gpuBudgets, {}, signal);
  for (const budget of items) {
    const { counted } = countSpend(budget, world.records.all(), namespaceLabels(world), world.now());
    const due = counted.find((one) => one.uid === uid);
    if (due && !budget.status?.counted?.some((one) => sameJson(one, due)))
      await count(world, budget.metadata.name, signal);
  }
}

/** Undefined: there is no such budget any more. */
async function count(world: BudgetWorld, name: string, signal: AbortSignal): Promise<BudgetReport | undefined> {
  for (let attempt = 1; ; attempt++) {
    const budget = await world.cluster.get<StoredBudget>(resources.gpuBudgets, { name }, signal);
    if (!budget || budget.metadata.deletionTimestamp) return undefined;
    const now = world.now();
    const report = reportBudget(budget, world.records.all(), namespaceLabels(world), now);
    const { generation, uid, resourceVersion } = budget.metadata;
    const status = {
      ...report.status,
      conditions: mergeConditions(budget.status?.conditions, report.conditions, generation ?? 0, now),
    };
    if (sameJson(budget.status, status)) return report;
    try {
      // Over the version that was read, and no other: unlike another status this one is a ledger.
      await world.cluster.apply<StoredBudget>(
        resources.gpuBudgets,
        { metadata: { name, uid, resourceVersion }, status } as unknown as StoredBudget,
        { fieldManager, subresource: 'status' },
        signal,
      );
    } catch (error) {
      if (!isConflict(error) || attempt === attempts) throw error;
      continue;
    }
    // Stored before it is said: once, whatever happens in between.
    for (const { type, reason, message } of report.alerts) world.events.event(budget, type, reason, message);
    return report;
  }
}
