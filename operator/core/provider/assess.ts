/**
 * Whether a provider may be used, decided from what it said and what the chain says:
 *
 *   Reachable → IdentityVerified → EscrowReady → OffersSynced → Ready
 *
 * A provider is trusted with nothing that can be checked: its address must be the one that the platform team wrote down,
 * its rails must exist on chain, its clock must be near ours.
 */
import type { Verdict } from '../../api/conditions.ts';
import type { OfferInfo, ProviderInfo } from '../../api/gateway.ts';
import { apiVersion, labels, managedBy } from '../../api/labels.ts';
import { type GpuOffer, type OfferSpec, offerSpec } from '../../api/offer.ts';
import type { GpuProvider, Rail } from '../../api/provider.ts';
import type { KnownRail } from '../offer/rank.ts';

export type Answer<T> =
  | { readonly ok: true; readonly value: T }
  | {
      readonly ok: false;
      readonly reason: 'Unreachable' | 'IdentityMismatch' | 'InvalidAnswer';
      readonly message: string;
    };

export type RailFact =
  | ({ readonly rail: Rail; readonly ok: true } & Omit<KnownRail, keyof Rail>)
  | {
      readonly rail: Rail;
      readonly ok: false;
      readonly reason: 'WrongChain' | 'ChainUnreachable' | 'RailNotAccepted';
      readonly message: string;
    };

export interface SeenProvider {
  readonly provider: GpuProvider;
  readonly info: Answer<ProviderInfo>;
  /** Probes in a row that had no answer; the last answer counts until the threshold. */
  readonly failures: number;
  readonly rails: readonly RailFact[];
  readonly offers: Answer<readonly OfferInfo[]>;
  readonly now: Date;
}

export interface Assessment {
  readonly ready: boolean;
  readonly reason: string;
  readonly message: string;
  readonly conditions: readonly Verdict[];
  /** Sound on chain, and accepted by the provider: what leases may be paid on. */
  readonly rails: readonly KnownRail[];
  /** Undefined: nothing was learnt, keep what is mirrored. */
  readonly mirrored?: readonly GpuOffer[];
}

/** Most offers mirrored of one provider: etcd is the consumer's. */
export const maxOffers = 200;

/** Vouchers are signed by one clock and checked by the other. */
export const maxClockSkewSeconds = 30;

export function assess(seen: SeenProvider): Assessment {
  const { provider } = seen;
  const steps: { type: string; check: () => { reason: string; message: string } | undefined; done: string }[] = [
    { type: 'Reachable', done: 'Reachable', check: () => reachable(seen) },
    { type: 'IdentityVerified', done: 'Verified', check: () => identity(seen) },
    { type: 'EscrowReady', done: 'Checked', check: () => escrow(seen) },
    { type: 'OffersSynced', done: 'Synced', check: () => offers(seen) },
  ];
  const conditions: Verdict[] = [];
  let failed: { type: string; reason: string; message: string } | undefined;
  for (const { type, check, done } of steps) {
    if (failed) {
      conditions.push({ type, status: 'Unknown', reason: `WaitingFor${failed.type}`, message: '' });
      continue;
    }
    const bad = check();
    if (bad) failed = { type, reason: bad.reason, message: bad.message };
    conditions.push({ type, status: bad ? 'False' : 'True', reason: bad?.reason ?? done, message: bad?.message ?? '' });
  }
  const held = provider.spec.stopPolicy !== 'None';
  const ready = !failed;
  const reason = failed?.reason ?? (held ? 'Held' : 'Serving');
  const message = failed?.message ?? (held ? `spec.stopPolicy is ${provider.spec.stopPolicy}: no new leases.` : '');
  // A held provider answers and is sound, so it is Ready; matching refuses it by its stopPolicy.
  conditions.unshift({ type: 'Ready', status: ready ? 'True' : 'False', reason, message });
  // What somebody else says in a provider's name is not shown.
  const impostor = failed?.reason === 'IdentityMismatch';
  const mirrored = impostor
    ? []
    : seen.offers.ok
      ? soundOffers(seen.offers.value).map((offer) => mirror(provider, offer))
      : undefined;
  return { ready, reason, message, conditions, rails: sharedRails(seen), mirrored };
}

function sharedRails({ rails, info }: SeenProvider): KnownRail[] {
  const same = (a: Rail, b: { chainId: number; escrow: string; token: string }) =>
    a.chainId === b.chainId &&
    a.escrow.toLowerCase() === b.escrow.toLowerCase() &&
    a.token.toLowerCase() === b.token.toLowerCase();
  return rails.flatMap((fact) => {
    if (!fact.ok || !info.ok || !info.value.rails.some((theirs) => same(fact.rail, theirs))) return [];
    const { rail, ok: _, ...known } = fact;
    return [{ ...rail, ...known }];
  });
}

function reachable({ info, failures, provider }: SeenProvider) {
  if (info.ok || info.reason !== 'Unreachable') return undefined;
  const { failureThreshold } = provider.spec.probe;
  return {
    reason: 'Unreachable',
    message: `${info.message} (${Math.min(failures, failureThreshold)} of ${failureThreshold} probes failed). ${advice[provider.spec.endpoint.via ?? 'Direct']}`,
  };
}

const advice = {
  Direct: 'Check spec.endpoint and that the gateway runs.',
  Reverse: "Check that the gateway runs with --dial-out and this operator's --reverse-url.",
  Relay: 'Check that the gateway runs with --dial-out and the URL of spec.endpoint.relay.',
} as const;

function identity({ info, provider, now }: SeenProvider) {
  if (!info.ok) return { reason: info.reason, message: info.message };
  const { address } = provider.spec.identity;
  if (info.value.address.toLowerCase() !== address.toLowerCase())
    return {
      reason: 'IdentityMismatch',
      message: `The gateway signs as ${info.value.address}, but spec.identity.address is ${address}. Somebody else answers there, or the address is wrong.`,
    };
  const skew = Math.abs(new Date(info.value.now).getTime() - now.getTime()) / 1000;
  if (!(skew <= maxClockSkewSeconds))
    return {
      reason: 'ClockSkewed',
      message: `The gateway's clock differs from ours by ${Math.round(skew)} s; ${maxClockSkewSeconds} s are allowed. Synchronise both with NTP.`,
    };
  return undefined;
}

function escrow(seen: SeenProvider) {
  const { rails, info } = seen;
  if (sharedRails(seen).length > 0) return undefined;
  const bad = rails.find((r) => !r.ok);
  if (bad && !bad.ok) return { reason: bad.reason, message: bad.message };
  const theirs = info.ok
    ? info.value.rails.map((r) => `${r.assetSymbol} ${r.token} in ${r.escrow} on chain ${r.chainId}`).join('; ')
    : '';
  return {
    reason: 'RailNotAccepted',
    message: `The provider accepts none of spec.payment.rails; it accepts: ${theirs}.`,
  };
}

/** What the API server would refuse is not sent there: one bad offer must not keep the good ones out. */
function unsound(offer: OfferInfo): string | undefined {
  if (!/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(offer.name)) return 'its name is not a DNS label';
  const spec = offerSpec.safeParse(offer);
  if (!spec.success) return `${spec.error.issues[0]?.path.join('.')}: ${spec.error.issues[0]?.message}`;
  if (offer.minDurationSeconds > offer.maxDurationSeconds) return 'minDurationSeconds is above maxDurationSeconds';
  if (offer.prices.some((price) => /^[0.]+$/.test(price.perGpuHour))) return 'a price is 0';
  if (new Set(offer.prices.map((price) => price.assetSymbol)).size < offer.prices.length)
    return 'it has two prices in one token';
  return undefined;
}

const soundOffers = (offers: readonly OfferInfo[]): readonly OfferInfo[] =>
  offers
    .slice(0, maxOffers)
    .filter((offer, at) => unsound(offer) === undefined && offers.findIndex((one) => one.name === offer.name) === at);

function offers({ offers: answer }: SeenProvider) {
  if (!answer.ok) return answer;
  const bad = answer.value.find((offer) => unsound(offer) !== undefined);
  // As long as one is sound, the provider can be used.
  if (!bad || soundOffers(answer.value).length > 0) return undefined;
  return { reason: 'InvalidAnswer', message: `No offer is sound: "${bad.name}": ${unsound(bad)}.`.slice(0, 1024) };
}

/** A mirrored offer is named after its provider, so that two providers' offers never collide. */
export const mirroredName = (provider: string, offer: string): string => `${provider}-${offer}`.slice(0, 253);

function mirror(provider: GpuProvider, offer: OfferInfo): GpuOffer {
  const spec: OfferSpec = {
    providerName: provider.metadata.name,
    model: offer.model,
    ...(offer.partition === undefined ? {} : { partition: offer.partition }),
    interconnect: offer.interconnect,
    capacityType: offer.capacityType,
    prices: offer.prices,
    minDurationSeconds: offer.minDurationSeconds,
    maxDurationSeconds: offer.maxDurationSeconds,
  };
  return {
    apiVersion,
    kind: 'GpuOffer',
    metadata: {
      name: mirroredName(provider.metadata.name, offer.name),
      labels: { [labels.provider]: provider.metadata.name, [labels.offer]: offer.name, [labels.managedBy]: managedBy },
      ownerReferences: [
        { apiVersion, kind: 'GpuProvider', name: provider.metadata.name, uid: provider.metadata.uid ?? '' },
      ],
    },
    spec,
    status: {
      product: offer.product,
      memoryMiB: offer.memoryMiB,
      region: offer.region,
      zone: offer.zone,
      total: offer.total,
      available: offer.available,
      largestAvailable: offer.largestAvailable,
      labels: offer.labels,
      resourcesPerGpu: offer.resourcesPerGpu,
    },
  };
}
