/** Collects every fact that a decision about a lease may use. Silence of a provider or a chain becomes the value "unknown". */

import type { GpuBudget } from '../../api/budget.ts';
import type { GpuLease } from '../../api/lease.ts';
import { type BudgetView, drains, viewBudgets } from '../../core/budget/room.ts';
import { exposures, heldElsewhere, noExposure } from '../../core/lease/exposure.ts';
import type { AllocationFact, LeaseRecord, Observed } from '../../core/lease/observed.ts';
import type { ProviderFact } from '../../core/offer/match.ts';
import { type KubeObject, resources } from '../../engine/types.ts';
import { namespaceLabels } from './budget.ts';
import type { GatewayOutcome } from './ports.ts';
import type { Hints, LeaseWorld } from './world.ts';

export const hintsOf = (world: Pick<LeaseWorld, 'hints'>, uid: string): Hints => {
  const hints = world.hints.get(uid) ?? { refusals: [], refusedTx: {}, vouchers: 0 };
  world.hints.set(uid, hints);
  return hints;
};

/** Worked out when it is first asked for. */
function once<T>(find: () => T): () => T {
  let found: { readonly value: T } | undefined;
  return () => {
    found ??= { value: find() };
    return found.value;
  };
}

export async function observeLease(world: LeaseWorld, lease: GpuLease, signal: AbortSignal): Promise<Observed> {
  const uid = lease.metadata.uid!;
  const record = world.records.get(uid);
  const hints = hintsOf(world, uid);
  const namespace = record?.quote
    ? undefined
    : await world.cluster.get(resources.namespaces, { name: lease.metadata.namespace! }, signal);

  const money = record?.quote ? await world.money.facts(record.quote, record, signal) : undefined;
  const chain = money?.state === 'known' ? { ...money, txs: withRefusals(money.txs, hints) } : money;
  // While the chain does not answer, what was open when the lease began to be served is taken to be so still.
  const escrowed =
    chain?.state === 'known' ? chain.escrow !== undefined && !chain.escrow.closed : record?.startedAt !== undefined;
  // Both take a look at all leases, which one that is merely served needs not.
  const held = once(() => heldElsewhere(uid, record, world.records.committed()));
  const budgets = once(() => budgetViews(world, lease, world.budgets.list(), namespace?.metadata.labels));
  return {
    lease,
    now: world.now(),
    namespaceLabels: namespace?.metadata.labels ?? {},
    offers: world.offers.list(),
    providers: providerFacts(world),
    record,
    chain,
    allocation:
      escrowed && !record?.release ? await observeAllocation(world, lease, record!, hints, signal) : undefined,
    node: await world.nodes.fact(lease, signal),
    sinceCountedMs: world.records.sinceCountedMs(uid),
    get held() {
      return held();
    },
    get budgets() {
      return budgets();
    },
    budgetsDrain: world.budgets.list().some(drains),
    refusals: hints.refusals,
    settings: world.settings,
  };
}

/**
 * The same facts, with what other leases hold by now. Budgets and the namespace's labels are read from the server: what the
 * caches have may be older than what was counted or decided since.
 */
export async function seenAgain(world: LeaseWorld, seen: Observed, signal: AbortSignal): Promise<Observed> {
  const { lease } = seen;
  const uid = lease.metadata.uid!;
  const { items } = await world.cluster.list<GpuBudget & KubeObject>(resources.gpuBudgets, {}, signal);
  const namespace =
    items.length > 0
      ? await world.cluster.get(resources.namespaces, { name: lease.metadata.namespace! }, signal)
      : undefined;
  const record = world.records.get(uid);
  return {
    ...seen,
    record,
    sinceCountedMs: world.records.sinceCountedMs(uid),
    providers: providerFacts(world),
    held: heldElsewhere(uid, record, world.records.committed()),
    budgets: budgetViews(world, lease, items, namespace?.metadata.labels),
    budgetsDrain: items.some(drains),
  };
}

/** `labels` of its namespace, where they were just read. */
function budgetViews(
  world: LeaseWorld,
  { metadata }: GpuLease,
  budgets: readonly GpuBudget[],
  labels: Readonly<Record<string, string>> | undefined,
): BudgetView[] {
  if (budgets.length === 0) return [];
  const labelsOf = namespaceLabels(world);
  const own = labels ?? labelsOf(metadata.namespace!) ?? {};
  return viewBudgets(metadata.uid!, own, budgets, world.records.committed(), labelsOf, world.now());
}

function providerFacts(world: LeaseWorld): Map<string, ProviderFact> {
  const facts = new Map<string, ProviderFact>();
  // A sum over all leases, for those who ask what one more would make of it.
  const held = once(() => exposures(world.records.committed().values()));
  for (const provider of world.providers.list()) {
    const { name } = provider.metadata;
    const known = world.providerBook.get(name);
    facts.set(name, {
      provider,
      ready: known?.assessment.ready ?? false,
      reason: known?.assessment.reason,
      message: known?.assessment.message,
      rails: known?.assessment.rails ?? [],
      get held() {
        return held().get(name) ?? noExposure;
      },
    });
  }
  return facts;
}

async function observeAllocation(
  world: LeaseWorld,
  lease: GpuLease,
  record: LeaseRecord,
  hints: Hints,
  signal: AbortSignal,
): Promise<AllocationFact> {
  const quote = record.quote!;
  const told = world.nodes.allocation?.(lease);
  if (told && told.leaseId.toLowerCase() === quote.leaseId.toLowerCase()) return { state: 'known', info: told };
  const provider = world.providers.get({ name: quote.providerName });
  if (!provider)
    return {
      state: 'unknown',
      message: `GpuProvider ${quote.providerName} was deleted; create it again to reach the gateway.`,
    };
  const answer = await world.gateways.of(provider).allocation(quote, signal);
  const fact = allocationFact(answer);
  // Why it was refused is better news than that there is none.
  return fact.state === 'absent' && hints.allocation?.state === 'absent' ? hints.allocation : fact;
}

export function allocationFact(
  answer: GatewayOutcome<Extract<AllocationFact, { state: 'known' }>['info']>,
): AllocationFact {
  if (answer.ok) return { state: 'known', info: answer.value };
  if (answer.kind === 'refused' && absences.has(answer.reason))
    return { state: 'absent', reason: answer.reason, message: answer.message };
  return { state: 'unknown', message: answer.message };
}

/** Refusals that say: there is no allocation. All others say nothing about it. */
const absences: ReadonlySet<string> = new Set([
  'LeaseNotFound',
  'CapacityExhausted',
  'EscrowNotFound',
  'EscrowMismatch',
  'OfferNotFound',
  'Held',
  'Blocked',
  'FirstContact',
  'QuoteExpired',
]);

function withRefusals<T extends object>(txs: Readonly<Record<string, T | undefined>>, hints: Hints) {
  const out: Record<string, T | { state: 'refused'; refused: Hints['refusedTx'][string] } | undefined> = { ...txs };
  for (const [key, refused] of Object.entries(hints.refusedTx)) out[key] ??= { state: 'refused', refused };
  return out as never;
}
