/**
 * The provider's side without a cluster or a chain: the real controllers, routes and signatures over an API server in memory
 * and the bigint model of the contract. What a test sees here is what a consumer would.
 */

import { type ChainKey, keyFromHex } from '../../operator/adapters/chain/key.ts';
import { hashQuote, leaseIdOf, signAccess, signVoucher } from '../../operator/adapters/chain/messages.ts';
import { createNotary } from '../../operator/adapters/gateway/notary.ts';
import type { AllocationInfo, SignedQuote } from '../../operator/api/gateway.ts';
import type { Address, Hex, Hex32, MessageDomain, Signed, Voucher } from '../../operator/api/messages.ts';
import type { GpuOffer, OfferSpec } from '../../operator/api/offer.ts';
import { createProvider, type Provider } from '../../operator/controllers/provider/provider.ts';
import { type Chains, type EscrowChain, noCounters } from '../../operator/controllers/provider/world.ts';
import { type ProviderRail, quoteOfJson, zeroHash } from '../../operator/core/allocation/quote.ts';
import { Refusal } from '../../operator/core/allocation/refusal.ts';
import type { TenantStorage } from '../../operator/core/allocation/tenant.ts';
import { callEscrow, type EscrowCall, type EscrowModel, newEscrowModel } from '../../operator/core/money/model.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type KubeObject, type Log, resources } from '../../operator/engine/types.ts';
import { createGateway, type Gateway, type GatewayOptions } from '../../operator/gateway/app.ts';
import type { NodePages } from '../../operator/gateway/service.ts';
import { type FakeCluster, fakeCluster } from './fake-cluster.ts';
import { createSecrets, Leak } from './secrets.ts';

export const chainId = 31337;
export const escrowAddress: Address = '0x00000000000000000000000000000000000e5c01';
export const usdc: Address = '0x0000000000000000000000000000000000005dc1';
export const publicUrl = 'https://gpu.example.com:8443';
export const domain: MessageDomain = { chainId, escrow: escrowAddress };
const owner: Address = '0x00000000000000000000000000000000000000f1';

const key = (digit: string): ChainKey => keyFromHex(`0x${digit.repeat(64)}`);
export const keys = { provider: key('1'), consumer: key('2'), session: key('3'), stranger: key('4') };

export interface FakeChain extends EscrowChain {
  state: EscrowModel;
  /** Every call throws, as when no endpoint answers. */
  unreachable: boolean;
  /** How escrows stood at the safe head, where that is not how they stand now. */
  unsafe?: ReadonlyMap<Hex32, EscrowModel['leases'] extends ReadonlyMap<Hex32, infer E> ? E | undefined : never>;
  /** What was sent and taken, in order. */
  readonly sent: string[];
  call(call: EscrowCall): void;
}

export function fakeChain(nowSeconds: () => number, claimWindowSeconds = 600): FakeChain {
  const encode = (call: EscrowCall): { to: Address; data: Hex } => ({
    to: escrowAddress,
    data: `0x${Buffer.from(JSON.stringify(call)).toString('hex')}`,
  });
  // The model is told who signed; the tests' vouchers are signed by the session key or refused long before.
  const signedBy = keys.session.address;
  const from = keys.provider.address;
  const must = () => {
    if (chain.unreachable) throw new Error('no endpoint of chain 31337 answers');
  };
  const chain: FakeChain = {
    chainId,
    escrow: escrowAddress,
    claimWindowSeconds,
    unreachable: false,
    sent: [],
    state: newEscrowModel({ networkId: zeroHash, owner, feeRecipient: owner, claimWindowSeconds }),
    call(call) {
      const result = callEscrow(chain.state, call, nowSeconds());
      if (!result.ok) throw new Error(`the contract refuses ${call.do}: ${result.refusal}`);
      chain.state = result.state;
    },
    async leases(ids) {
      must();
      return ids.map((id) => chain.state.leases.get(id));
    },
    async reads(ids) {
      must();
      return ids.map((id) => {
        const latest = chain.state.leases.get(id);
        return { latest, safe: chain.unsafe?.has(id) ? chain.unsafe.get(id) : latest, safeBlockTime: nowSeconds() };
      });
    },
    calls: {
      settle: ({ message }) => encode({ do: 'settle', from, voucher: message, signedBy }),
      settleMany: (vouchers) =>
        encode({ do: 'settleMany', from, items: vouchers.map(({ message }) => ({ voucher: message, signedBy })) }),
      close: ({ message }) => encode({ do: 'close', from, voucher: message, signedBy }),
      providerClose: (leaseId, reason) => encode({ do: 'providerClose', from, leaseId, reason }),
      finalize: (leaseId) => encode({ do: 'finalize', from, leaseId }),
    },
    async submit(intent) {
      must();
      const call = JSON.parse(Buffer.from(intent.data.slice(2), 'hex').toString()) as EscrowCall;
      const result = callEscrow(chain.state, call, nowSeconds());
      if (!result.ok) return { outcome: 'refused', refusal: { name: result.refusal, message: 'refused' } };
      chain.state = result.state;
      chain.sent.push(call.do);
      return { outcome: 'accepted', entry: { state: 'broadcast' } };
    },
    async tick() {
      must();
    },
    inFlight: async () => [],
  };
  chain.call({ do: 'setToken', from: owner, token: usdc, rule: { allowed: true, feeBps: 200 } });
  return chain;
}

export const gpuNode = (name: string, gpus: number, more: Record<string, unknown> = {}): KubeObject =>
  ({
    metadata: {
      name,
      labels: {
        'kubernetes.io/hostname': name,
        'kubernetes.io/arch': 'amd64',
        'topology.kubernetes.io/region': 'eu-1',
        'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090',
        'nvidia.com/gpu.memory': '24564',
        'gpulease.dev/offered': 'true',
        'provider.example/secret': 'shelf-7',
      },
    },
    spec: {},
    status: {
      allocatable: {
        cpu: '32',
        memory: '128Gi',
        'ephemeral-storage': '500Gi',
        pods: '110',
        'nvidia.com/gpu': String(gpus),
      },
      conditions: [
        { type: 'Ready', status: 'True', reason: 'KubeletReady', message: 'kubelet is posting ready status' },
      ],
      nodeInfo: { kubeletVersion: 'v1.36.3', architecture: 'amd64', operatingSystem: 'linux', machineID: 'private' },
    },
    ...more,
  }) as KubeObject;

export const offer = (name: string, changes: Partial<OfferSpec> = {}): GpuOffer & KubeObject => ({
  apiVersion: 'gpulease.dev/v1alpha1',
  kind: 'GpuOffer',
  metadata: { name, generation: 1 },
  spec: {
    model: 'RTX4090',
    interconnect: 'PCIe',
    capacityType: 'OnDemand',
    prices: [{ assetSymbol: 'USDC', perGpuHour: '0.34' }],
    minDurationSeconds: 60,
    maxDurationSeconds: 86_400,
    ...changes,
  },
});

export interface ProviderSide {
  readonly cluster: FakeCluster;
  readonly chain: FakeChain;
  readonly provider: Provider;
  readonly gateway: Gateway;
  nowSeconds(): number;
  /** Moves the wall clock of provider and chain. */
  pass(seconds: number): void;
  held: boolean;
  get(path: string, token?: string): Promise<{ status: number; body: never; headers: Record<string, unknown> }>;
  post(
    path: string,
    body?: unknown,
    token?: string,
  ): Promise<{ status: number; body: never; headers: Record<string, unknown> }>;
  quote(changes?: Record<string, unknown>): Promise<SignedQuote>;
  /** Opens the escrow as the consumer would. */
  open(quote: SignedQuote, seconds?: number, session?: ChainKey): Hex32;
  access(leaseId: Hex32, changes?: Record<string, unknown>, signer?: ChainKey): Promise<Record<string, unknown>>;
  token(leaseId: Hex32): Promise<string>;
  voucher(
    leaseId: Hex32,
    servedSeconds: number,
    last?: boolean,
    signer?: ChainKey,
  ): Promise<Signed<Voucher>['signature']>;
  /** Quote, escrow, allocation, token. */
  lease(
    changes?: Record<string, unknown>,
  ): Promise<{ leaseId: Hex32; token: string; quote: SignedQuote; info: AllocationInfo }>;
  stop(): Promise<void>;
}

let refs = 0;
export const leaseRef = (): Hex32 => `0x${(++refs).toString(16).padStart(64, '0')}`;

export async function startProviderSide(
  options: {
    readonly objects?: readonly KubeObject[];
    readonly offers?: readonly GpuOffer[];
    readonly settings?: Partial<Parameters<typeof createProvider>[0]['settings']>;
    readonly maxUnpaid?: string;
    readonly trustedConsumers?: readonly string[];
    /** Default: the consumer of these tests, so that it may have several leases at once. */
    readonly knownConsumers?: readonly string[];
    readonly storage?: TenantStorage;
    readonly log?: Log;
    readonly cluster?: FakeCluster;
    readonly chain?: FakeChain;
    readonly requestsPerSecond?: number;
    readonly gateway?: Partial<GatewayOptions>;
    readonly nodePages?: NodePages;
    /** Without the controllers that only a leader runs. */
    readonly follower?: boolean;
    /** Where tunnels for the consumer's Services listen; without, there are none. */
    readonly reverse?: GatewayOptions['reverse'];
    /** Without, it speaks plain HTTP. */
    readonly tls?: GatewayOptions['tls'];
  } = {},
): Promise<ProviderSide> {
  let aheadMs = 0;
  const now = () => new Date(Date.now() + aheadMs);
  const nowSeconds = () => Math.floor(now().getTime() / 1000);
  const log = options.log ?? silentLog;
  const cluster = options.cluster ?? fakeCluster({ name: 'provider' });
  if (options.cluster === undefined) {
    cluster.seed(resources.nodes, ...(options.objects ?? [gpuNode('node-a', 2)]));
    const offers = [...(options.offers ?? [offer('rtx4090')])] as KubeObject[];
    cluster.seed(resources.gpuOffers, ...offers);
  }
  const chain = options.chain ?? fakeChain(nowSeconds);
  const rail: ProviderRail = {
    chainId,
    escrow: escrowAddress,
    token: usdc,
    assetSymbol: 'USDC',
    decimals: 6,
    networkId: zeroHash,
    payee: keys.provider.address,
  };
  const chains: Chains = {
    awaited: () => false,
    rails() {
      if (chain.unreachable) throw new Refusal(503, 'chain 31337 does not answer yet: try again');
      return [rail];
    },
    chain: (id, escrow) => (id === chainId && escrow.toLowerCase() === escrowAddress ? chain : undefined),
    all: () => [chain],
  };
  const notary = createNotary(keys.provider);
  const side = { held: false };
  const provider = createProvider({
    cluster,
    namespace: 'gpulease-system',
    name: 'test',
    version: '0',
    notary,
    chains,
    terms: { provider: notary.address, maxUnpaid: options.maxUnpaid ?? '0.25', quoteSeconds: 120 },
    trustedConsumers: options.trustedConsumers,
    knownConsumers: options.knownConsumers ?? [keys.consumer.address],
    storage: options.storage,
    tenant: { deniedCidrs: [], gateway: { namespace: 'gpulease-system' } },
    ...(options.reverse ? { services: { family: 'IPv4' } } : {}),
    held: () => side.held,
    settings: {
      tickSeconds: 0.05,
      chainIntervalSeconds: 0.05,
      settleIntervalSeconds: 86_400,
      settleThreshold: '5',
      settlePatienceSeconds: 600,
      retentionSeconds: 604_800,
      ...options.settings,
    },
    now,
    log,
    counters: noCounters,
  });
  const gateway = createGateway({
    service: provider.service,
    upstream: cluster,
    nodePages: options.nodePages,
    tokenKey: Buffer.alloc(32, 7),
    publicUrls: [publicUrl],
    now,
    log,
    requestsPerSecond: options.requestsPerSecond ?? 10_000,
    walletRequestsPerSecond: 10_000,
    reverse: options.reverse,
    tls: options.tls,
    ...options.gateway,
  });
  const stop = new AbortController();
  const running = [provider.watch(stop.signal), ...(options.follower ? [] : [provider.lead(stop.signal)])];
  for (let turn = 0; !provider.synced; turn += 1) {
    if (turn > 500) throw new Error('the provider side does not get to know its cluster');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }

  const secrets = createSecrets();
  for (const digit of ['1', '2', '3', '4']) secrets.add('a private key', `0x${digit.repeat(64)}`);
  secrets.add('the key of the lease tokens', Buffer.alloc(32, 7));

  async function call(method: 'GET' | 'POST', path: string, body?: unknown, token?: string) {
    const response = await gateway.app.inject({
      method,
      url: path,
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      },
      payload: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = response.body;
    // A refusal that repeats what was sent, or tells what we know, hands it to whoever reads it next.
    const leaks =
      response.statusCode < 400 ? [] : secrets.search(`answer ${response.statusCode} to ${method} ${path}`, text);
    if (leaks.length > 0) throw new Leak(leaks);
    return {
      status: response.statusCode,
      body: (text === '' ? undefined : JSON.parse(text)) as never,
      headers: response.headers,
    };
  }

  const result: ProviderSide = {
    ...{ cluster, chain, provider, gateway, nowSeconds },
    get held() {
      return side.held;
    },
    set held(value) {
      side.held = value;
    },
    pass(seconds) {
      aheadMs += seconds * 1000;
    },
    get: (path, token) => call('GET', path, undefined, token),
    post: (path, body, token) => call('POST', path, body, token),

    async quote(changes = {}) {
      const answer = await call('POST', '/v1/quotes', {
        offerName: 'rtx4090',
        consumer: keys.consumer.address,
        leaseRef: leaseRef(),
        chainId,
        escrow: escrowAddress,
        token: usdc,
        gpus: 1,
        maxSeconds: 3600,
        startTimeoutSeconds: 900,
        ...changes,
      });
      if (answer.status !== 200) throw Object.assign(new Error(JSON.stringify(answer.body)), { answer });
      return answer.body;
    },

    open(signed, seconds, session = keys.session) {
      const quote = quoteOfJson(signed.quote);
      const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
      const price = (quote.pricePerGpuHour * BigInt(quote.gpus) * BigInt(seconds ?? quote.maxSeconds)) / 3600n;
      chain.call({
        do: 'open',
        from: quote.consumer,
        quote,
        leaseId,
        quoteHash: hashQuote(domain, quote),
        signedBy: quote.provider,
        signer: session.address,
        deposit: price,
      });
      return leaseId;
    },

    async access(leaseId, changes = {}, signer = keys.session) {
      const message = {
        provider: keys.provider.address,
        audienceUrl: publicUrl,
        nonce: leaseRef(),
        expiresAt: nowSeconds() + 120,
        ...changes,
      };
      const { signature } = await signAccess(signer, domain, { ...message, leaseId });
      return { ...message, signature };
    },

    async token(leaseId) {
      const answer = await call('POST', `/v1/leases/${leaseId}/token`, await result.access(leaseId));
      if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
      return (answer.body as { token: string }).token;
    },

    async voucher(leaseId, servedSeconds, last = false, signer = keys.session) {
      return (await signVoucher(signer, domain, { leaseId, servedSeconds, last })).signature;
    },

    async lease(changes) {
      const quote = await result.quote(changes);
      const leaseId = result.open(quote);
      const answer = await call('POST', '/v1/leases', quote);
      if (answer.status !== 200) throw Object.assign(new Error(JSON.stringify(answer.body)), { answer });
      return { leaseId, quote, info: answer.body, token: await result.token(leaseId) };
    },

    async stop() {
      stop.abort(new Error('the test is over'));
      await gateway.close();
      await Promise.allSettled(running);
    },
  };
  return result;
}

/** Looks again and again until it holds; says what it last saw when it does not. */
export async function eventually<T>(
  look: () => T | Promise<T>,
  holds: (seen: T) => boolean,
  timeoutMs = 5000,
): Promise<T> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const seen = await look();
    if (holds(seen)) return seen;
    if (Date.now() > deadline)
      throw new Error(
        `still: ${JSON.stringify(seen, (_, value) => (typeof value === 'bigint' ? String(value) : value))}`,
      );
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
