/**
 * Objects for tests, one line each: everything is sensible until it is overridden, so that a test shows only what it is about.
 * Times are given in seconds since `t0`.
 */
import { type BudgetSpec, type BudgetStatus, budgetSpec, type GpuBudget } from '../../operator/api/budget.ts';
import type { AllocationInfo, OfferInfo, ProviderInfo, SignedQuote } from '../../operator/api/gateway.ts';
import { apiVersion, finalizers, labels } from '../../operator/api/labels.ts';
import { type GpuLease, type LeaseSpec, leaseSpec } from '../../operator/api/lease.ts';
import type { Address, Hex32 } from '../../operator/api/messages.ts';
import { type GpuOffer, type OfferSpec, type OfferStatus, offerSpec } from '../../operator/api/offer.ts';
import { type GpuProvider, type ProviderSpec, providerSpec, type Rail } from '../../operator/api/provider.ts';
import type { ObjectMeta } from '../../operator/api/schema.ts';
import type {
  AllocationFact,
  ChainFact,
  LeaseRecord,
  NodeFact,
  Observed,
  QuoteRecord,
  Settings,
  TxFact,
} from '../../operator/core/lease/observed.ts';
import type { Escrow } from '../../operator/core/money/escrow.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import type { ProviderFact } from '../../operator/core/offer/match.ts';

/** Unix seconds: when the escrow of every test is opened. */
export const t0 = Date.UTC(2026, 0, 1) / 1000;
/** A moment, in seconds after `t0`. */
export const at = (seconds: number): Date => new Date((t0 + seconds) * 1000);
export const instant = (seconds: number): string => at(seconds).toISOString();

const repeated = (digit: string, count: number) => `0x${digit.repeat(count)}` as const;
export const wallet: Address = repeated('a', 40);
export const sessionKey: Address = repeated('5', 40);
export const providerAddress: Address = repeated('b', 40);
export const payee: Address = repeated('c', 40);
export const escrowAddress: Address = repeated('e', 40);
export const token: Address = repeated('d', 40);
export const zeroAddress: Address = repeated('0', 40);
export const networkId: Hex32 = repeated('9', 64);
export const leaseRef: Hex32 = repeated('1', 64);
export const leaseId: Hex32 = repeated('2', 64);
export const quoteHash: Hex32 = repeated('3', 64);
export const promiseHash: Hex32 = repeated('4', 64);

/** 0.36 USDC for a GPU hour: 100 base units a second. */
export const pricePerGpuHour = 360_000n;

export const rail = (change: Partial<Rail> = {}): Rail => ({
  chainId: 31337,
  escrow: escrowAddress,
  token,
  assetSymbol: 'USDC',
  maxEscrow: '100',
  ...change,
});

interface Rest<Status> {
  metadata?: Partial<ObjectMeta>;
  status?: Status;
}

/** As the API server would store it: with the defaults of the schema. Our finalizer is set. */
export function lease(spec: Partial<LeaseSpec> = {}, rest: Rest<GpuLease['status']> = {}): GpuLease {
  const wanted = { gpu: { models: ['RTX4090'] }, pricing: { maxPricePerGpuHour: '0.60' }, ...spec };
  return {
    apiVersion,
    kind: 'GpuLease',
    metadata: {
      name: 'train',
      namespace: 'ml',
      uid: 'lease-uid',
      generation: 1,
      creationTimestamp: instant(-30),
      finalizers: [finalizers.lease],
      ...rest.metadata,
    },
    spec: leaseSpec.parse(wanted),
    ...(rest.status ? { status: rest.status } : {}),
  };
}

export function offer(
  spec: Partial<OfferSpec> = {},
  status: Partial<OfferStatus> = {},
  metadata: Partial<ObjectMeta> = {},
): GpuOffer {
  return {
    apiVersion,
    kind: 'GpuOffer',
    metadata: { name: 'ams-rtx4090', labels: { [labels.offer]: 'rtx4090', [labels.provider]: 'ams' }, ...metadata },
    spec: offerSpec.parse({
      providerName: 'ams',
      model: 'RTX4090',
      prices: [{ assetSymbol: 'USDC', perGpuHour: '0.36' }],
      ...spec,
    }),
    status: {
      product: 'NVIDIA-GeForce-RTX-4090',
      memoryMiB: 24564,
      total: 2,
      available: 2,
      largestAvailable: 2,
      labels: { 'topology.kubernetes.io/region': 'eu-north' },
      resourcesPerGpu: { cpu: '8', memory: '32Gi', ephemeralStorage: '100Gi' },
      ...status,
    },
  };
}

export function provider(spec: Partial<ProviderSpec> = {}, metadata: Partial<ObjectMeta> = {}): GpuProvider {
  return {
    apiVersion,
    kind: 'GpuProvider',
    metadata: { name: 'ams', uid: 'provider-uid', generation: 1, ...metadata },
    spec: providerSpec.parse({
      endpoint: { url: 'https://gpu.ams.example:8443' },
      identity: { address: providerAddress },
      payment: { rails: [rail()] },
      ...spec,
    }),
  };
}

/** Of all namespaces, 10 USDC a day. */
export function budget(spec: Partial<BudgetSpec> = {}, status?: BudgetStatus, name = 'team'): GpuBudget {
  return {
    apiVersion,
    kind: 'GpuBudget',
    metadata: { name, uid: `${name}-uid`, generation: 1 },
    spec: budgetSpec.parse({ limits: [{ window: 'Day', amount: '10' }], ...spec }),
    ...(status ? { status } : {}),
  };
}

export const providerFact = (change: Partial<ProviderFact> = {}): ProviderFact => ({
  provider: provider(),
  ready: true,
  rails: [{ ...rail(), decimals: 6 }],
  held: { leases: 0, gpus: 0, perHour: {}, locked: {} },
  ...change,
});

export const factsOf = (...facts: readonly ProviderFact[]): Map<string, ProviderFact> =>
  new Map(facts.map((fact) => [fact.provider.metadata.name, fact]));

export const providerInfo = (change: Partial<ProviderInfo> = {}): ProviderInfo => ({
  address: providerAddress,
  networkId,
  name: 'ams',
  version: '0.1.0',
  rails: [{ chainId: 31337, escrow: escrowAddress, token, assetSymbol: 'USDC', decimals: 6 }],
  now: instant(0),
  ...change,
});

export const offerInfo = (change: Partial<OfferInfo> = {}): OfferInfo => ({
  name: 'rtx4090',
  model: 'RTX4090',
  interconnect: 'PCIe',
  capacityType: 'OnDemand',
  prices: [{ assetSymbol: 'USDC', perGpuHour: '0.36' }],
  minDurationSeconds: 60,
  maxDurationSeconds: 2_592_000,
  product: 'NVIDIA-GeForce-RTX-4090',
  memoryMiB: 24564,
  total: 2,
  available: 2,
  largestAvailable: 2,
  resourcesPerGpu: { cpu: '8', memory: '32Gi', ephemeralStorage: '100Gi' },
  labels: { 'topology.kubernetes.io/region': 'eu-north' },
  ...change,
});

/** For one GPU for one hour, good for two minutes after t0. */
export function signedQuote(
  quote: Partial<SignedQuote['quote']> = {},
  rest: Partial<Omit<SignedQuote, 'quote'>> = {},
): SignedQuote {
  return {
    chainId: 31337,
    escrow: escrowAddress,
    quote: {
      networkId,
      provider: providerAddress,
      payee,
      consumer: wallet,
      leaseRef,
      token,
      pricePerGpuHour: String(pricePerGpuHour),
      gpus: 1,
      minSeconds: 60,
      maxSeconds: 3600,
      startTimeoutSeconds: 900,
      graceSeconds: 600,
      capacityType: 0,
      specHash: promiseHash,
      saltCommit: repeated('0', 64),
      referrer: zeroAddress,
      referrerBps: 0,
      expiresAt: t0 + 120,
      nonce: '7',
      ...quote,
    },
    signature: '0x1234',
    node: {
      offerName: 'rtx4090',
      model: 'RTX4090',
      gpus: 1,
      resources: { cpu: '8', memory: '32Gi', ephemeralStorage: '100Gi' },
    },
    ...rest,
  };
}

export const quoteRecord = (
  quote: Partial<SignedQuote['quote']> = {},
  change: Partial<QuoteRecord> = {},
): QuoteRecord => ({
  signed: signedQuote(quote),
  hash: quoteHash,
  leaseId,
  offerName: 'ams-rtx4090',
  providerName: 'ams',
  assetSymbol: 'USDC',
  decimals: 6,
  askedAt: instant(0),
  ...change,
});

export const record = (change: Partial<LeaseRecord> = {}): LeaseRecord => ({
  attempt: 1,
  meter: { servedMs: 0 },
  signedSeconds: 0,
  vouchedSeconds: 0,
  avoid: [],
  attempts: [],
  ...change,
});

/** Opened at t0 for one hour at 100 base units a second, fully paid. */
export function escrow(change: Partial<Escrow> = {}): Escrow {
  const price = change.pricePerGpuHour ?? pricePerGpuHour;
  const gpus = change.gpus ?? 1;
  const maxSeconds = change.maxSeconds ?? 3600;
  return {
    leaseId,
    quoteHash,
    consumer: wallet,
    signer: sessionKey,
    provider: providerAddress,
    payee,
    token,
    referrer: zeroAddress,
    referrerBps: 0,
    feeBps: 200,
    gpus,
    maxSeconds,
    pricePerGpuHour: price,
    deposit: priceOf(maxSeconds, gpus, price),
    servedSeconds: 0,
    claimed: 0n,
    feeTaken: 0n,
    refunded: 0n,
    openedAt: t0,
    endsAt: t0 + 900 + maxSeconds,
    closingAt: 0,
    closeReason: 'Open',
    closed: false,
    ...change,
  };
}

type KnownChain = Extract<ChainFact, { state: 'known' }>;

/** Read at `seconds` after t0. The safe head is two blocks of a second behind, and sees the same escrow. */
export function chain(
  seconds: number,
  change: Partial<Omit<KnownChain, 'state' | 'wallet'>> & { wallet?: Partial<KnownChain['wallet']> } = {},
): KnownChain {
  return {
    state: 'known',
    blockTime: t0 + seconds,
    safe: { blockTime: t0 + seconds - 2, escrow: change.escrow },
    claimWindowSeconds: 3600,
    txs: {},
    ...change,
    wallet: {
      address: wallet,
      balance: 1_000_000_000n,
      gas: 10n ** 18n,
      allowance: 2n ** 256n - 1n,
      ...change.wallet,
    },
  };
}

export const tx = (state: TxFact['state'], refused?: TxFact['refused']): TxFact => ({
  state,
  ...(state === 'refused' ? { refused: refused ?? { name: 'LeaseExists', terminal: true, message: 'no' } } : {}),
  hash: repeated('7', 64),
});

export const allocationInfo = (change: Partial<AllocationInfo> = {}): AllocationInfo => ({
  leaseId,
  state: 'Serving',
  gpus: 1,
  resources: { cpu: '8', memory: '32Gi', ephemeralStorage: '100Gi' },
  pods: 16,
  nodeLabels: {},
  nodeInfo: {},
  nodeReady: true,
  vouchedSeconds: 0,
  graceSeconds: 600,
  ...change,
});

export const allocated = (change: Partial<AllocationInfo> = {}): AllocationFact => ({
  state: 'known',
  info: allocationInfo(change),
});

/** Ready since `since` seconds after t0. */
export const node = (since = 10, change: Partial<NodeFact> = {}): NodeFact => ({
  name: 'gpulease-train',
  ready: 'True',
  since: at(since),
  message: '',
  pods: 0,
  ...change,
});

export const settings = (change: Partial<Settings> = {}): Settings => ({
  voucherPeriodSeconds: 60,
  depositSeconds: 7200,
  lowWaterSeconds: 1800,
  nodeLostSeconds: 1800,
  releaseTimeoutSeconds: 600,
  closeTimeoutSeconds: 120,
  maxEscrow: (_, decimals) => 1000n * 10n ** BigInt(decimals),
  allowance: 'Standing',
  ...change,
});

export function observed(change: Partial<Observed> = {}): Observed {
  return {
    lease: lease(),
    now: at(0),
    namespaceLabels: {},
    offers: [offer()],
    providers: factsOf(providerFact()),
    held: { onRail: 0n, inAsset: {} },
    budgets: [],
    budgetsDrain: true,
    refusals: [],
    settings: settings(),
    ...change,
  };
}
