/**
 * Tells the provider what is offered: GpuOffer.status in its cluster, the taint on offered nodes, and the admission policies
 * that keep its own pods off sold GPUs and pods of tenants within bounds.
 */
import { mergeConditions, type Verdict } from '../../api/conditions.ts';
import { taints } from '../../api/labels.ts';
import type { OfferStatus } from '../../api/offer.ts';
import { guardObjects } from '../../core/allocation/guard.ts';
import {
  cleaningOf,
  type OfferStock,
  offerStatusOf,
  partitionOf,
  withdrawnOf,
} from '../../core/allocation/inventory.ts';
import { isOffered } from '../../core/allocation/node-view.ts';
import { type PodRules, plainRules } from '../../core/allocation/pod-rules.ts';
import { tenantPolicyObjects } from '../../core/allocation/tenant-policy.ts';
import { sameJson } from '../../engine/equal.ts';
import { isConflict, isNotFound } from '../../engine/errors.ts';
import { applyStatus } from '../../engine/status.ts';
import { type Cluster, type KubeObject, type Log, type ObjectKey, type Result, resources } from '../../engine/types.ts';
import type { Ledgers } from './ledgers.ts';
import type { Stock, WatchedNode, WatchedOffer } from './stock.ts';
import { fieldManager } from './tenants.ts';

export interface OffersOptions {
  readonly cluster: Cluster;
  readonly stock: Stock;
  readonly ledgers: Ledgers;
  /** Symbols that the provider's rails take; undefined while the chains have not answered. */
  readonly acceptedAssets: () => readonly string[] | undefined;
  readonly now: () => Date;
  readonly log: Log;
}

function readiness(stock: OfferStock, accepted: readonly string[] | undefined): Verdict {
  const assets = stock.spec.prices.map((price) => price.assetSymbol);
  if (accepted !== undefined && !assets.some((asset) => accepted.includes(asset))) {
    return {
      type: 'Ready',
      status: 'False',
      reason: 'RailNotAccepted',
      message: `priced in ${assets.join(', ')}, but this gateway takes ${accepted.join(', ') || 'nothing'}: add a price or a rail`,
    };
  }
  if (stock.nodes.length === 0) {
    return {
      type: 'Ready',
      status: 'False',
      reason: 'NoOfferedNodes',
      message: `no node is labelled ${taints.offered} and has a nvidia.com/gpu.product of model ${stock.spec.model}${
        partitionOf(stock.spec).partition === undefined ? '' : ` as ${stock.spec.partition}`
      }`,
    };
  }
  if (stock.total === 0) {
    return {
      type: 'Ready',
      status: 'False',
      reason: 'NodesNotReady',
      message: `nothing can be sold of its nodes: ${withdrawnOf(stock).join('; ') || 'no GPU of them is healthy and free of pods of your own'}`,
    };
  }
  const notes = [
    { what: 'withdrawn', of: withdrawnOf(stock) },
    { what: 'held until their last tenant is gone', of: cleaningOf(stock) },
  ].flatMap(({ what, of }) => (of.length === 0 ? [] : [`; ${what}: ${of.join('; ')}`]));
  return {
    type: 'Ready',
    status: 'True',
    reason: 'Serving',
    message: `offered to consumers${notes.join('')}`.slice(0, 1024),
  };
}

export function createOfferReconciler(options: OffersOptions) {
  const { cluster, stock, now } = options;
  return async (key: ObjectKey, signal: AbortSignal): Promise<Result> => {
    const offer: WatchedOffer | undefined = stock.offers.get({ name: key.name });
    const described = stock.offer(key.name);
    if (offer === undefined || described === undefined) return {};
    const facts = offerStatusOf(described);
    const generation = offer.metadata.generation ?? 0;
    const conditions = mergeConditions(
      offer.status?.conditions,
      [readiness(described, options.acceptedAssets())],
      generation,
      now(),
    );
    const { observedAt: before, ...stored } = offer.status ?? {};
    const wanted: OfferStatus = { ...facts, conditions, observedGeneration: generation };
    if (before !== undefined && sameJson(stored, wanted)) return { requeueAfterSeconds: 300 };
    const status = {
      ...wanted,
      observedAt: now()
        .toISOString()
        .replace(/\.\d{3}Z$/, 'Z'),
    };
    await applyStatus<WatchedOffer>(
      { cluster, resource: resources.gpuOffers, object: offer, fieldManager },
      status,
      signal,
    );
    return { requeueAfterSeconds: 300 };
  };
}

/** Taints nodes that are offered; takes the taint off those that no longer are, once nothing of them is sold. */
export function createTaintReconciler(options: OffersOptions) {
  const { cluster, stock, ledgers, log } = options;
  return async (key: ObjectKey, signal: AbortSignal): Promise<Result> => {
    const node: WatchedNode | undefined = stock.nodes.get({ name: key.name });
    if (node === undefined) return {};
    const present = node.spec?.taints ?? [];
    const others = present.filter((taint) => taint.key !== taints.offered);
    const ours = present.filter((taint) => taint.key === taints.offered);
    const wanted = isOffered(node.metadata.labels);
    if (wanted && ours.some((taint) => taint.effect === 'NoSchedule')) return {};
    if (!wanted) {
      if (ours.length === 0) return {};
      const ledger = await ledgers.get(key.name, signal);
      if (Object.keys(ledger.entries).length > 0) return { requeueAfterSeconds: 60 };
    }
    const next = wanted ? [...others, { key: taints.offered, value: 'true', effect: 'NoSchedule' }] : others;
    try {
      // With the resourceVersion that was read: a taint that somebody else sets at this moment is not lost.
      await cluster.patch<KubeObject>(
        resources.nodes,
        { name: key.name },
        { metadata: { resourceVersion: node.metadata.resourceVersion }, spec: { taints: next } },
        { type: 'merge' },
        signal,
      );
      log.info(
        { node: key.name },
        wanted ? 'the node is offered: tainted' : 'the node is no longer offered: taint removed',
      );
    } catch (error) {
      if (isNotFound(error)) return {};
      if (!isConflict(error)) throw error;
      return { requeueAfterSeconds: 1 };
    }
    return {};
  };
}

/** Applies the admission policies: sold GPUs, and pods of tenants. Again and again: what somebody removed comes back. */
export async function ensurePolicies(
  cluster: Cluster,
  rules: PodRules = plainRules,
  signal?: AbortSignal,
): Promise<void> {
  const { policy, binding } = guardObjects();
  for (const object of [policy, binding, ...tenantPolicyObjects(rules)]) {
    const kind =
      object.kind === 'ValidatingAdmissionPolicy' ? resources.admissionPolicies : resources.admissionPolicyBindings;
    await cluster.apply<KubeObject>(kind, object as KubeObject, { fieldManager }, signal);
  }
}
