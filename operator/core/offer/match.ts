/**
 * Which offers will do for a lease, in the order in which they should be asked; and, where none will, the one reason
 * that helps most: that of the offer which came furthest.
 *
 * Checks stand in the order in which a person would give up on an offer: first what the hardware is, then who sells it,
 * then price, then whether it is free just now. A new rule is one entry in `checks` and one row in the test.
 */
import { type PendingReason, pendingReasons } from '../../api/conditions.ts';
import type { GpuLease, LeaseStatus, Requirement } from '../../api/lease.ts';
import { fitsPartition, modelOfProduct, wholeGpu } from '../../api/models.ts';
import type { GpuOffer } from '../../api/offer.ts';
import type { GpuProvider } from '../../api/provider.ts';
import { atto, parseAtto } from '../budget/spender.ts';
import { lockedOn } from '../lease/exposure.ts';
import { type AssetLimits, assetsOf, limitsIn } from '../lease/pricing.ts';
import { formatAmount, parseAmount } from '../money/amount.ts';
import { sizeDeposit } from '../money/deposit.ts';
import { parseQuantity } from '../quantity.ts';
import { type Candidate, costsByRail, fullness, type KnownRail, rank, type Values } from './rank.ts';

export type { Candidate } from './rank.ts';

/** A provider, with what was observed of it. */
export interface ProviderFact {
  readonly provider: GpuProvider;
  readonly ready: boolean;
  /** Why it is not ready, for people. */
  readonly reason?: string;
  readonly message?: string;
  /** Rails that were checked against the chain. */
  readonly rails: readonly KnownRail[];
  /** What leases of this cluster hold with it now; amounts an hour in atto tokens. */
  readonly held: {
    readonly leases: number;
    readonly gpus: number;
    readonly perHour: Readonly<Record<string, bigint>>;
    /** Base units in escrows, by `railName`. */
    readonly locked: Readonly<Record<string, bigint>>;
  };
}

export interface Avoided {
  readonly providerName: string;
  /** Milliseconds since the epoch. */
  readonly until: number;
}

export interface MatchInput {
  readonly lease: GpuLease;
  readonly namespaceLabels: Readonly<Record<string, string>>;
  readonly offers: readonly GpuOffer[];
  readonly providers: ReadonlyMap<string, ProviderFact>;
  readonly avoid: readonly Avoided[];
  readonly now: Date;
  readonly settings?: { readonly values?: Values; readonly depositSeconds?: number };
}

export interface Match {
  readonly candidates: readonly Candidate[];
  readonly selection: NonNullable<LeaseStatus['selection']>;
  /** Set when there is no candidate. */
  readonly blocked?: { readonly reason: PendingReason; readonly message: string };
}

interface Look {
  readonly lease: GpuLease;
  readonly namespaceLabels: Readonly<Record<string, string>>;
  readonly offer: GpuOffer;
  readonly fact: ProviderFact | undefined;
  readonly avoid: readonly Avoided[];
  readonly now: Date;
  readonly depositSeconds: number | undefined;
}

interface Check {
  /** Word in status.selection. */
  readonly name: string;
  /** What the lease says when this is how far its best offer came. */
  readonly reason: PendingReason;
  /** Undefined: passed. Otherwise what was found, and by how much it missed. */
  readonly miss: (look: Look) => { closest?: string; distance?: number } | undefined;
}

const labelsMatch = (
  wanted: Readonly<Record<string, string>> | undefined,
  has: Readonly<Record<string, string>> | undefined,
) => Object.entries(wanted ?? {}).every(([key, value]) => has?.[key] === value);

/** Whether a label set fulfils one requirement, by Karpenter's vocabulary. */
export function fulfils(requirement: Requirement, labels: Readonly<Record<string, string>>): boolean {
  const value = labels[requirement.key];
  const values = requirement.values ?? [];
  const compare = () => {
    if (value === undefined || !/^[0-9]{1,18}$/.test(value)) return undefined;
    const [a, b] = [BigInt(value), BigInt(values[0] ?? '0')];
    return a < b ? -1 : a > b ? 1 : 0;
  };
  switch (requirement.operator) {
    case 'In':
      return value !== undefined && values.includes(value);
    case 'NotIn':
      return value === undefined || !values.includes(value);
    case 'Exists':
      return value !== undefined;
    case 'DoesNotExist':
      return value === undefined;
    case 'Gt':
      return (compare() ?? -1) > 0;
    case 'Gte':
      return (compare() ?? -1) >= 0;
    case 'Lt':
      return (compare() ?? 1) < 0;
    case 'Lte':
      return (compare() ?? 1) <= 0;
    default:
      return requirement.operator satisfies never;
  }
}

/** Whether lease and provider want each other, by their selectors. */
const isSelected = (
  { provider }: ProviderFact,
  { lease, namespaceLabels }: Pick<MatchInput, 'lease' | 'namespaceLabels'>,
): boolean =>
  labelsMatch(lease.spec.providerSelector?.matchLabels, provider.metadata.labels) &&
  labelsMatch(provider.spec.namespaceSelector?.matchLabels, namespaceLabels);

/** A provider's own reason where a lease knows the word. */
function notReadyReason({ reason }: ProviderFact): PendingReason {
  return pendingReasons.find((known) => known === reason) ?? 'ProviderUnreachable';
}

/** Tokens of the lease that the offer has a price in. */
const priced = ({ lease, offer }: Look) =>
  assetsOf(lease).flatMap((asset) => {
    const perGpuHour = offer.spec.prices.find((p) => p.assetSymbol === asset.assetSymbol)?.perGpuHour;
    return perGpuHour === undefined ? [] : [{ asset, perGpuHour }];
  });
const above = ({ asset, perGpuHour }: { asset: AssetLimits; perGpuHour: string }): bigint =>
  micro(perGpuHour) - micro(asset.maxPricePerGpuHour);
/** Rails that it may be paid on, and the price there. */
const payable = (look: Look) =>
  priced(look)
    .filter((one) => above(one) <= 0n)
    .flatMap(({ asset, perGpuHour }) =>
      (look.fact?.rails ?? []).filter((r) => r.assetSymbol === asset.assetSymbol).map((rail) => ({ rail, perGpuHour })),
    );
const limitOn = (look: Look, { rail, perGpuHour }: { rail: KnownRail; perGpuHour: string }) => {
  const { count: gpus } = look.lease.spec.gpu;
  const { decimals, assetSymbol } = rail;
  return limitReached(look.fact!, {
    gpus,
    perHour: parseAmount(perGpuHour, decimals) * BigInt(gpus),
    assetSymbol,
    decimals,
  });
};
/** Whether the first deposit would go beyond what may be locked with the provider there. A later one is cut to what may. */
function isFull({ lease, offer, fact, depositSeconds }: Look, way: { rail: KnownRail; perGpuHour: string }): boolean {
  const { rail } = way;
  const price = parseAmount(way.perGpuHour, rail.decimals);
  const deposit = firstDeposit(lease, offer, rail, price, depositSeconds) ?? 0n;
  return lockedOn(fact!.held, rail) + deposit > parseAmount(rail.maxEscrow, rail.decimals);
}
const missed = (bad: boolean, closest?: string, distance?: number) => (bad ? { closest, distance } : undefined);

/** Six places are all that an API amount can have, so comparing at six is exact. */
const micro = (amount: string) => parseAmount(amount, 6);

/** Why a provider gets no new leases though it is well. One that is being deleted waits for its last lease to end. */
export function heldBack({ provider }: Pick<ProviderFact, 'provider'>): string | undefined {
  if (provider.metadata.deletionTimestamp) return 'being deleted';
  const { stopPolicy } = provider.spec;
  return stopPolicy === 'None' ? undefined : `spec.stopPolicy ${stopPolicy}`;
}

/** What a lease locks first at an offer's price, base units; undefined when its spendLimit is too low for any, which `fund` tells. */
export function firstDeposit(
  lease: GpuLease,
  offer: GpuOffer,
  { assetSymbol, decimals }: Pick<KnownRail, 'assetSymbol' | 'decimals'>,
  pricePerGpuHour: bigint,
  depositSeconds?: number,
): bigint | undefined {
  const { gpu, term } = lease.spec;
  const written = limitsIn(lease, assetSymbol)?.spendLimit;
  const size = sizeDeposit(
    {
      gpus: gpu.count,
      pricePerGpuHour,
      minSeconds: Math.min(offer.spec.minDurationSeconds, term.durationSeconds),
      maxSeconds: term.durationSeconds,
    },
    { spendLimit: written === undefined ? undefined : parseAmount(written, decimals), depositSeconds },
  );
  return size.ok ? size.deposit : undefined;
}

/** Which of its provider's limits one more lease would break, if any. */
export function limitReached(
  { provider, held }: ProviderFact,
  more: { readonly gpus: number; readonly perHour: bigint; readonly assetSymbol: string; readonly decimals: number },
): string | undefined {
  const { limits } = provider.spec;
  if (limits?.leases !== undefined && held.leases + 1 > limits.leases) return `limits.leases ${limits.leases}`;
  if (limits?.gpus !== undefined && held.gpus + more.gpus > limits.gpus) return `limits.gpus ${limits.gpus}`;
  if (limits?.spendPerHour === undefined) return undefined;
  const perHour = (held.perHour[more.assetSymbol] ?? 0n) + atto(more.perHour, more.decimals);
  return perHour > parseAtto(limits.spendPerHour) ? `limits.spendPerHour ${limits.spendPerHour}` : undefined;
}

const checks: readonly Check[] = [
  {
    name: 'ModelMismatch',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const product = offer.status?.product;
      const model = product === undefined ? offer.spec.model : modelOfProduct(product);
      return missed(!lease.spec.gpu.models.some((m) => m === model), product ?? offer.spec.model);
    },
  },
  {
    // Never a part for a whole, nor a whole for a part: neither by the offer's word nor by the label of its nodes.
    name: 'PartitionMismatch',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const partition = lease.spec.gpu.partition ?? wholeGpu;
      const product = offer.status?.product;
      const offered = offer.spec.partition ?? wholeGpu;
      if (offered !== partition) return { closest: offered };
      return missed(!!product && !fitsPartition(product, partition), product);
    },
  },
  {
    name: 'MemoryBelow',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const [need, has] = [lease.spec.gpu.minMemoryMiB ?? 0, offer.status?.memoryMiB ?? 0];
      return missed(has < need, `${has} MiB`, need - has);
    },
  },
  {
    name: 'InterconnectMismatch',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) =>
      missed(
        lease.spec.gpu.interconnect !== 'Any' && lease.spec.gpu.interconnect !== offer.spec.interconnect,
        offer.spec.interconnect,
      ),
  },
  {
    name: 'CapacityTypeMismatch',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => missed(lease.spec.capacityType !== offer.spec.capacityType, offer.spec.capacityType),
  },
  {
    name: 'RequirementMismatch',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const labels = offer.status?.labels ?? {};
      const failed = lease.spec.requirements.find((r) => !fulfils(r, labels));
      return missed(failed !== undefined, failed && `${failed.key}=${labels[failed.key] ?? '(absent)'}`);
    },
  },
  {
    name: 'CountAboveNode',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) =>
      missed(
        (offer.status?.total ?? 0) < lease.spec.gpu.count,
        `${offer.status?.total ?? 0} GPUs`,
        lease.spec.gpu.count - (offer.status?.total ?? 0),
      ),
  },
  {
    name: 'ResourcesBelow',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const share = offer.status?.resourcesPerGpu;
      const requests = lease.spec.resources?.requests;
      for (const [name, wanted, each] of [
        ['cpu', requests?.cpu, share?.cpu],
        ['memory', requests?.memory, share?.memory],
        ['ephemeral-storage', requests?.['ephemeral-storage'], share?.ephemeralStorage],
      ] as const) {
        if (wanted === undefined) continue;
        const has = each === undefined ? 0n : parseQuantity(each) * BigInt(lease.spec.gpu.count);
        if (has < parseQuantity(wanted)) return { closest: `${name} ${each ?? 0} for each GPU` };
      }
      return undefined;
    },
  },
  {
    name: 'DurationNotOffered',
    reason: 'NoMatchingOffer',
    miss: ({ lease, offer }) => {
      const { durationSeconds: term } = lease.spec.term;
      return missed(
        term < offer.spec.minDurationSeconds || term > offer.spec.maxDurationSeconds,
        `${offer.spec.minDurationSeconds}–${offer.spec.maxDurationSeconds} s`,
      );
    },
  },
  {
    name: 'ProviderNotSelected',
    reason: 'NoMatchingOffer',
    miss: (look) => missed(look.fact === undefined || !isSelected(look.fact, look)),
  },
  {
    name: 'AssetNotPriced',
    reason: 'NoMatchingOffer',
    miss: (look) => missed(priced(look).length === 0, look.offer.spec.prices.map((p) => p.assetSymbol).join(', ')),
  },
  {
    name: 'PriceAboveLimit',
    reason: 'PriceAboveLimit',
    miss: (look) => {
      const all = priced(look);
      if (all.some((one) => above(one) <= 0n)) return undefined;
      const [first] = all;
      const excess = above(first!);
      return { closest: `${first!.perGpuHour}, +${formatAmount(excess, 6)}`, distance: Number(excess) };
    },
  },
  {
    name: 'ProviderHeld',
    reason: 'ProviderHeld',
    miss: ({ fact }) => {
      const held = heldBack(fact!);
      return missed(held !== undefined, `${fact!.provider.metadata.name}: ${held}`);
    },
  },
  {
    name: 'ProviderNotReady',
    reason: 'ProviderUnreachable',
    miss: ({ fact }) => missed(!fact!.ready, `${fact!.provider.metadata.name}: ${fact!.reason ?? 'not probed yet'}`),
  },
  {
    name: 'NoSharedRail',
    reason: 'WrongChain',
    miss: (look) => missed(payable(look).length === 0, look.fact!.provider.metadata.name),
  },
  {
    name: 'LimitReached',
    reason: 'LimitReached',
    miss: (look) => {
      const limits = payable(look).map(
        (way) => limitOn(look, way) ?? (isFull(look, way) ? fullness(way.rail) : undefined),
      );
      return limits.some((limit) => limit === undefined) ? undefined : { closest: limits.join(', ').slice(0, 200) };
    },
  },
  {
    name: 'RecentlyFailed',
    reason: 'BackingOff',
    miss: ({ fact, avoid, now }) => {
      const until = avoid.find(
        (a) => a.providerName === fact!.provider.metadata.name && a.until > now.getTime(),
      )?.until;
      return missed(
        until !== undefined,
        until === undefined ? undefined : `${fact!.provider.metadata.name} is avoided after a failed attempt`,
      );
    },
  },
  {
    name: 'CapacityExhausted',
    reason: 'CapacityExhausted',
    miss: ({ lease, offer }) =>
      missed(
        (offer.status?.largestAvailable ?? 0) < lease.spec.gpu.count,
        `${offer.status?.largestAvailable ?? 0} free on one node of ${offer.metadata.name}`,
        lease.spec.gpu.count - (offer.status?.largestAvailable ?? 0),
      ),
  },
];

/** Filters and ranks. Pure; the CLI asks it the same question. */
export function matchOffers(input: MatchInput): Match {
  const rejected = new Map<string, { count: number; closest?: string; distance: number }>();
  const found: Candidate[] = [];
  let furthest = -1;
  // In one order, whatever the cache's: of two that missed by as much, always the same is shown.
  const offers = input.offers.toSorted((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
  for (const offer of offers) {
    const fact = input.providers.get(offer.spec.providerName ?? '');
    const look: Look = { ...input, offer, fact, depositSeconds: input.settings?.depositSeconds };
    const at = checks.findIndex((check) => {
      const miss = check.miss(look);
      if (!miss) return false;
      const before = rejected.get(check.name);
      const distance = miss.distance ?? Number.MAX_SAFE_INTEGER;
      const closer = !before || distance < before.distance;
      rejected.set(check.name, {
        count: (before?.count ?? 0) + 1,
        closest: closer ? miss.closest : before.closest,
        distance: closer ? distance : before.distance,
      });
      return true;
    });
    if (at >= 0) {
      furthest = Math.max(furthest, at);
      continue;
    }
    for (const way of payable(look)) {
      if (limitOn(look, way) !== undefined) continue;
      const { rail, perGpuHour } = way;
      const pricePerGpuHour = parseAmount(perGpuHour, rail.decimals);
      const candidate: Candidate = { offer, provider: look.fact!.provider, rail, pricePerGpuHour };
      found.push(isFull(look, way) ? { ...candidate, full: true } : candidate);
    }
  }
  const ranked = rank(found, input.lease, input.settings?.values);
  const candidates = ranked.filter((one) => !one.full);
  const selection = {
    considered: input.offers.length,
    eligible: new Set(candidates.map((one) => one.offer)).size,
    rejected: [...rejected]
      .map(([reason, { count, closest }]) => ({
        reason,
        count,
        ...(closest ? { closest: closest.slice(0, 256) } : {}),
      }))
      .slice(0, 16),
    rails: costsByRail(ranked, input.lease, input.settings?.values),
  };
  if (candidates.length > 0) return { candidates, selection };
  return { candidates, selection, blocked: blocked(input, selection, furthest) };
}

function blocked(input: MatchInput, selection: Match['selection'], furthest: number): NonNullable<Match['blocked']> {
  const providers = [...input.providers.values()];
  if (providers.length === 0)
    return { reason: 'NoMatchingOffer', message: 'No GpuProvider exists in this cluster: create one.' };
  const selected = providers.filter((fact) => isSelected(fact, input));
  if (selected.length > 0 && selected.every((fact) => !fact.ready)) {
    const why = selected.map(
      ({ provider, reason, message }) =>
        `${provider.metadata.name}: ${reason ?? 'not probed yet'}${message ? `: ${message}` : ''}`,
    );
    return {
      reason: notReadyReason(selected[0]!),
      message: `No provider that may serve this lease is ready. ${why.join(' · ')}`.slice(0, 1800),
    };
  }
  if (input.offers.length === 0)
    return { reason: 'NoMatchingOffer', message: 'The providers offer nothing at present: kubectl get gpuoffers' };
  const check = checks[furthest]!;
  const why = selection.rejected
    .map((r) => `${r.count} ${r.reason}${r.closest ? ` (closest ${r.closest})` : ''}`)
    .join(' · ');
  return {
    reason: check.reason,
    message:
      `${selection.considered} offers considered, none will do: ${why}. ${remedy(check.name, input.lease)}`.slice(
        0,
        1800,
      ),
  };
}

function remedy(name: string, lease: GpuLease): string {
  switch (name) {
    case 'PriceAboveLimit':
      return `Raise spec.pricing.maxPricePerGpuHour (now ${lease.spec.pricing.maxPricePerGpuHour}).`;
    case 'CapacityExhausted':
      return 'Waiting for GPUs to become free; or add models to another lease.';
    case 'CountAboveNode':
      return `No single node has ${lease.spec.gpu.count} GPUs: make several smaller leases.`;
    case 'LimitReached':
      return 'Raise spec.limits of the GpuProvider, or maxEscrow in its spec.payment.rails, or end another lease.';
    case 'ProviderHeld':
      return 'The platform team holds the provider.';
    case 'ProviderNotReady':
      return 'See kubectl describe gpuprovider.';
    case 'NoSharedRail':
      return 'Neither side can pay the other in this token: see spec.payment.rails of the GpuProvider and the chains that the operator was given.';
    default:
      return 'See status.selection for what each offer missed.';
  }
}
