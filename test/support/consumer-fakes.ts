/**
 * The lease controller's surroundings, small enough to read: a fake API server, a chain that is the escrow's model, one
 * gateway, and nodes that are Ready at once. Every call through a port is a step with a name, and a test may have the process
 * die before or after any of them; what is stored in the cluster and on chain stays.
 */
import { createHash } from 'node:crypto';
import type { GpuBudget } from '../../operator/api/budget.ts';
import type { AllocationInfo, QuoteRequest, SignedQuote, VoucherRequest } from '../../operator/api/gateway.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Address, Hex, Hex32 } from '../../operator/api/messages.ts';
import type { GpuOffer } from '../../operator/api/offer.ts';
import type { GpuProvider } from '../../operator/api/provider.ts';
import { reconcileLease } from '../../operator/controllers/consumer/lease.ts';
import type { Gateway, GatewayOutcome, LeaseMoney, LeaseNodes } from '../../operator/controllers/consumer/ports.ts';
import { createReceipts } from '../../operator/controllers/consumer/receipts.ts';
import { type LeaseRecords, loadRecords } from '../../operator/controllers/consumer/records.ts';
import type { LeaseWorld } from '../../operator/controllers/consumer/world.ts';
import {
  type ChainFact,
  intents,
  type LeaseRecord,
  type NodeFact,
  type QuoteRecord,
  type Settings,
  type TxFact,
} from '../../operator/core/lease/observed.ts';
import { wayToClose } from '../../operator/core/money/escrow.ts';
import {
  callEscrow,
  type EscrowCall,
  type EscrowModel,
  newEscrowModel,
  totalsOf,
} from '../../operator/core/money/model.ts';
import { assess } from '../../operator/core/provider/assess.ts';
import { silentLog } from '../../operator/engine/log.ts';
import {
  type Cluster,
  type Informer,
  type KubeObject,
  type Log,
  type Resource,
  type Result,
  resources,
} from '../../operator/engine/types.ts';
import {
  allocationInfo,
  lease as builtLease,
  provider as builtProvider,
  networkId,
  offerInfo,
  providerInfo,
  rail,
  sessionKey,
  settings,
  signedQuote,
  t0,
  token,
  wallet,
} from './builders.ts';
import { type FakeCluster, fakeCluster } from './fake-cluster.ts';

export const operatorNamespace = 'gpulease-system';

/** The process ends here. What it was about to do, or had just done, nobody in it remembers. */
export class Crash extends Error {
  override readonly name = 'Crash';
}

export interface Fakes {
  readonly cluster: FakeCluster;
  /** The world of the process that runs now; a restart makes another. */
  readonly world: LeaseWorld;
  readonly records: LeaseRecords;
  /** Names of all calls through ports, in order. */
  readonly steps: string[];
  readonly events: { type: string; reason: string; message: string }[];
  readonly gateway: FakeGateway;
  readonly chain: FakeChain;
  /** Seconds after t0. */
  seconds: number;
  node: NodeFact | undefined;
  /** UID of the lease for which the node stands. */
  nodeOf: string;
  /** Claims whose data are stored with it. */
  claims: readonly string[];
  crashAt?: { step: number; when: 'before' | 'after' };
  reconcile(): Promise<Result>;
  /** Reconciles until it holds, a second at a time; a process that dies is started again. */
  until(holds: () => boolean, what: string): Promise<void>;
  restart(): Promise<void>;
  lease(): GpuLease | undefined;
  /** What the operator remembers of it. */
  record(): LeaseRecord | undefined;
  condition(type: string): string | undefined;
}

export interface FakeChain {
  model: EscrowModel;
  unreachable: boolean;
  balance: bigint;
  allowance: bigint;
  /** Transactions wait for `mine` instead of being mined at once. */
  slow: boolean;
  readonly txs: Record<string, TxFact>;
  /** Every escrow that was ever opened. */
  readonly opened: Hex32[];
  mine(): void;
  /** As the provider would. */
  call(call: EscrowCall): void;
}

export interface FakeGateway extends Gateway {
  /** Changes what the gateway would sign. */
  tamper: (quote: SignedQuote) => SignedQuote;
  outcome: Partial<Record<keyof Gateway, GatewayOutcome<never>>>;
  readonly vouchers: VoucherRequest[];
  allocated?: AllocationInfo;
  released: boolean;
  /** Closes by itself, as a provider should, once it has the last voucher. */
  closes: boolean;
}

export interface FakesOptions {
  readonly lease?: GpuLease;
  readonly provider?: GpuProvider;
  readonly settings?: Partial<Settings>;
  readonly log?: Log;
}

export async function consumerFakes(options: FakesOptions = {}): Promise<Fakes> {
  const cluster = fakeCluster();
  const provider = options.provider ?? builtProvider();
  const [lease] = cluster.seed<GpuLease & KubeObject>(
    resources.gpuLeases,
    options.lease ?? builtLease({}, { metadata: { finalizers: [] } }),
  );
  const key = { namespace: lease!.metadata.namespace!, name: lease!.metadata.name };
  cluster.seed(resources.namespaces, { metadata: { name: key.namespace } });
  const steps: string[] = [];
  const events: Fakes['events'] = [];
  const now = () => new Date((t0 + fakes.seconds) * 1000);

  /** One call through a port: the only place where the process can die. */
  async function step<T>(name: string, effect: () => T | Promise<T>): Promise<T> {
    steps.push(name);
    const dies = fakes.crashAt?.step === steps.length ? fakes.crashAt.when : undefined;
    if (dies === 'before') throw new Crash(`before ${name}`);
    const result = await effect();
    if (dies === 'after') throw new Crash(`after ${name}`);
    return result;
  }

  const chain = fakeChain(now);
  const gateway = fakeGateway(chain, now, step);
  const money = fakeMoney(chain, now, step);
  const nodes: LeaseNodes = {
    nameOf: () => 'gpulease-train',
    fact: () => step('node.fact', () => fakes.node),
    start: () =>
      step('node.start', () => {
        fakes.node ??= { name: 'gpulease-train', ready: 'True', since: now(), message: '', pods: 1 };
      }),
    drain: () =>
      step('node.drain', () => {
        if (fakes.node) fakes.node = { ...fakes.node, pods: 0 };
      }),
    warn: (_nodeName, reason, message, toClaims) => {
      events.push({ type: 'Warning', reason, message });
      for (const _claim of fakes.claims) events.push({ type: 'Warning', reason, message: toClaims });
    },
    claims: () => fakes.claims,
    stop: () =>
      step('node.stop', () => {
        fakes.node = undefined;
      }),
    all: () => step('node.all', () => (fakes.node ? [{ name: fakes.node.name, leaseUid: fakes.nodeOf }] : [])),
    end: () =>
      step('node.end', () => {
        fakes.node = undefined;
      }),
  };

  async function freshWorld(): Promise<LeaseWorld> {
    const facts = assess({
      provider,
      info: { ok: true, value: providerInfo({ now: now().toISOString() }) },
      failures: 0,
      rails: [{ rail: rail(), ok: true, decimals: 6 }],
      offers: { ok: true, value: [offerInfo()] },
      now: now(),
    });
    return {
      cluster: stepping(cluster, step),
      clusterUid: 'cluster-uid',
      leases: informerOf<GpuLease>([]),
      offers: informerOf<GpuOffer>(facts.mirrored ?? []),
      providers: informerOf<GpuProvider>([provider]),
      budgets: liveOf<GpuBudget & KubeObject>(cluster, resources.gpuBudgets),
      namespaces: liveOf(cluster, resources.namespaces),
      providerBook: new Map([[provider.metadata.name, { assessment: facts, rails: [], failures: 0 }]]),
      records: await loadRecords(stepping(cluster, step), operatorNamespace, {
        now,
        monotonicMs: () => now().getTime(),
      }),
      receipts: createReceipts(stepping(cluster, step), operatorNamespace),
      gateways: { of: () => gateway, forget: () => undefined },
      money,
      nodes,
      events: {
        event: (_about, type, reason, message) => void events.push({ type, reason, message }),
      },
      log: options.log ?? silentLog,
      now,
      settings: settings(options.settings),
      hints: new Map(),
    };
  }

  const fakes: Fakes & { world: LeaseWorld } = {
    cluster,
    world: undefined as never,
    get records() {
      return this.world.records;
    },
    steps,
    events,
    gateway,
    chain,
    seconds: 0,
    node: undefined,
    nodeOf: lease!.metadata.uid!,
    claims: [],
    reconcile: () => reconcileLease(fakes.world)(key, new AbortController().signal),
    async until(holds, what) {
      for (let round = 0; round < 120; round++) {
        try {
          await fakes.reconcile();
        } catch (error) {
          if (!(error instanceof Crash)) throw error;
          await fakes.restart();
        }
        if (holds()) return;
        fakes.seconds += 1;
        gateway.act();
      }
      throw new Error(`${what}: not within 120 s; last steps: ${steps.slice(-12).join(', ')}`);
    },
    async restart() {
      fakes.crashAt = undefined;
      fakes.world = await freshWorld();
    },
    lease: () => cluster.object<GpuLease & KubeObject>(resources.gpuLeases, key),
    record: () => fakes.records.get(lease!.metadata.uid!),
    condition(type) {
      const found = fakes.lease()?.status?.conditions?.find((c) => c.type === type);
      return found && `${found.status} ${found.reason}`;
    },
  };
  fakes.world = await freshWorld();
  steps.length = 0;
  return fakes;
}

type Step = <T>(name: string, effect: () => T | Promise<T>) => Promise<T>;

function informerOf<T extends KubeObject>(objects: readonly T[]): Informer<T> {
  return {
    list: () => objects,
    get: ({ name }: { name: string }) => objects.find((one) => one.metadata.name === name),
    synced: true,
  } as Informer<T>;
}

/** Sees what there is, at once. */
function liveOf<T extends KubeObject>(cluster: FakeCluster, resource: Resource): Informer<T> {
  return {
    list: () => cluster.objects<T>(resource),
    get: (key: { name: string }) => cluster.object<T>(resource, key),
    synced: true,
  } as unknown as Informer<T>;
}

/** The fake cluster, each of whose requests is a step. */
function stepping(cluster: FakeCluster, step: Step): Cluster {
  const named = new Set(['get', 'list', 'create', 'replace', 'apply', 'patch', 'delete']);
  return new Proxy<Cluster>(cluster, {
    get(target, property) {
      const value = Reflect.get(target, property) as unknown;
      if (typeof value !== 'function' || typeof property !== 'string' || !named.has(property)) return value;
      return (...args: unknown[]) =>
        step(`${property} ${(args[0] as { plural: string }).plural}`, () =>
          (value as (...a: unknown[]) => Promise<unknown>).apply(target, args),
        );
    },
  });
}

function fakeChain(now: () => Date): FakeChain {
  const history: { at: number; model: EscrowModel }[] = [];
  const waiting: (() => void)[] = [];
  const owner: Address = `0x${'8'.repeat(40)}`;
  const first = newEscrowModel({ networkId, owner, feeRecipient: owner, claimWindowSeconds: 60 });
  const allowed = callEscrow(first, { do: 'setToken', from: owner, token, rule: { allowed: true, feeBps: 200 } }, t0);
  if (!allowed.ok) throw new Error(allowed.refusal);
  let model = allowed.state;
  return {
    get model() {
      return model;
    },
    set model(next) {
      history.push({ at: now().getTime(), model });
      model = next;
    },
    unreachable: false,
    balance: 1_000_000_000n,
    allowance: 0n,
    slow: false,
    txs: {},
    opened: [],
    mine() {
      for (const one of waiting.splice(0)) one();
    },
    call(call) {
      const result = callEscrow(model, call, Math.floor(now().getTime() / 1000));
      if (!result.ok) throw new Error(`${call.do}: ${result.refusal}`);
      this.model = result.state;
    },
    /** Two seconds behind. */
    get safe() {
      const since = now().getTime() - 2000;
      return history.find((one) => one.at > since)?.model ?? model;
    },
    later(work: () => void) {
      waiting.push(work);
    },
  } as FakeChain & { safe: EscrowModel; later(work: () => void): void };
}

/** One escrow for each leaseRef, as on chain. */
const leaseIdOf = (leaseRef: string): Hex32 => `0x${leaseRef.slice(2).split('').toReversed().join('')}`;
const hashOf = (signed: SignedQuote): Hex32 => `0x${BigInt(signed.quote.nonce).toString(16).padStart(64, '0')}`;
const messageOf = ({ quote }: SignedQuote) =>
  ({ ...quote, pricePerGpuHour: BigInt(quote.pricePerGpuHour), nonce: BigInt(quote.nonce) }) as never;

function fakeMoney(chain: FakeChain, now: () => Date, step: Step): LeaseMoney {
  const { later } = chain as FakeChain & { later(work: () => void): void };
  const submit = (name: string, intent: string, call: (() => void) | EscrowCall) =>
    step(name, () => {
      const known = chain.txs[intent];
      if (known && known.state !== 'reverted') return undefined;
      const hash = `0x${String(Object.keys(chain.txs).length + 1).padStart(64, '0')}`;
      const run = () => {
        try {
          if (typeof call === 'function') call();
          else chain.call(call);
          chain.txs[intent] = { state: 'mined', hash };
          if (typeof call !== 'function' && call.do === 'open') chain.opened.push(call.leaseId);
        } catch (error) {
          if (!chain.slow) throw error;
          chain.txs[intent] = { state: 'reverted', hash };
        }
      };
      try {
        if (chain.slow) {
          chain.txs[intent] = { state: 'broadcast', hash };
          later(run);
        } else run();
        return undefined;
      } catch (error) {
        return { name: (error as Error).message, terminal: true, message: 'the contract refuses' };
      }
    });
  return {
    wallet,
    facts: (quote) =>
      step('money.facts', (): ChainFact => {
        if (chain.unreachable) return { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' };
        const { safe } = chain as FakeChain & { safe: EscrowModel };
        const seconds = Math.floor(now().getTime() / 1000);
        return {
          state: 'known',
          escrow: chain.model.leases.get(quote.leaseId),
          blockTime: seconds,
          safe: { escrow: safe.leases.get(quote.leaseId), blockTime: seconds - 2 },
          claimWindowSeconds: chain.model.claimWindowSeconds,
          wallet: { address: wallet, balance: chain.balance, gas: 1n, allowance: chain.allowance },
          txs: { ...chain.txs },
        };
      }),
    railFact: async (one) => ({ rail: one, ok: true, decimals: 6 }),
    checkQuote: (signed) =>
      step('money.checkQuote', () => {
        if (signed.signature !== signatureOf(signed)) throw new Error('the provider did not sign this quote');
        return { hash: hashOf(signed), leaseId: leaseIdOf(signed.quote.leaseRef) };
      }),
    checkRelease: (quote, servedSeconds, signature) =>
      step('money.checkRelease', () => {
        if (signature !== releaseSignature(quote.leaseId, servedSeconds))
          throw new Error('the provider did not sign this');
      }),
    leaseRef: (_uid, attempt) => `0x${String(attempt).padStart(64, '1')}`,
    promiseHash: (node) => promiseHashOf(node),
    signVoucher: (_quote, seconds, last) => step(`money.signVoucher ${seconds}`, (): Hex => `0x${last ? '01' : '00'}`),
    approve: (quote) =>
      submit('money.approve', intents.approve(quote.signed.chainId, quote.signed.quote.token), () => {
        chain.allowance = 2n ** 256n - 1n;
      }),
    open: (quote, deposit) =>
      submit('money.open', intents.open(quote.leaseId), {
        do: 'open',
        from: wallet,
        quote: messageOf(quote.signed),
        leaseId: quote.leaseId,
        quoteHash: quote.hash,
        signedBy: quote.signed.quote.provider as Address,
        signer: sessionKey,
        deposit,
      }),
    topUp: (quote, amount, total) =>
      submit('money.topUp', intents.topUp(quote.leaseId, total), {
        do: 'topUp',
        from: wallet,
        leaseId: quote.leaseId,
        amount,
      }),
    closeWithRelease: (quote, servedSeconds) =>
      submit('money.closeWithRelease', intents.close(quote.leaseId), {
        do: 'closeWithRelease',
        from: wallet,
        release: { leaseId: quote.leaseId, servedSeconds },
        signedBy: quote.signed.quote.provider as Address,
      }),
    requestClose: (quote) =>
      submit('money.requestClose', intents.requestClose(quote.leaseId), {
        do: 'requestClose',
        from: wallet,
        leaseId: quote.leaseId,
      }),
    finalize: (quote) =>
      submit('money.finalize', intents.finalize(quote.leaseId), {
        do: 'finalize',
        from: wallet,
        leaseId: quote.leaseId,
      }),
    trail: () => step('money.trail', () => ({ feeRecipient: chain.model.feeRecipient, transactions: [], all: false })),
    sealReceipt: (receipt) =>
      step('money.sealReceipt', () => ({ signer: sessionKey, signature: `0x${receipt.leaseId.slice(2, 10)}` })),
    strays: (hasRecord) =>
      step('money.strays', () =>
        chain.opened
          .filter((leaseId) => !hasRecord(leaseId) && chain.model.leases.get(leaseId)?.closed === false)
          .map((leaseId) => ({ leaseId, chainId: rail().chainId, contract: rail().escrow as Address })),
      ),
    async endStray({ leaseId }) {
      const escrow = chain.model.leases.get(leaseId);
      const seconds = Math.floor(now().getTime() / 1000);
      const way = escrow && wayToClose(escrow, seconds, chain.model.claimWindowSeconds);
      if (way) await submit(`money.${way}`, intents[way](leaseId), { do: way, from: wallet, leaseId });
    },
  };
}

/** Signatures that change with every signed field. */
export const signatureOf = (signed: SignedQuote): string =>
  `0x${Buffer.from(JSON.stringify([signed.chainId, signed.escrow, signed.quote])).toString('hex')}`;
export const promiseHashOf = (node: SignedQuote['node']): Hex32 =>
  `0x${createHash('sha256').update(JSON.stringify(node)).digest('hex')}`;
export const releaseSignature = (leaseId: string, seconds: number): string =>
  `${leaseId}${String(seconds).padStart(8, '0')}`;

function fakeGateway(chain: FakeChain, now: () => Date, step: Step): FakeGateway & { act(): void } {
  let nonce = 0;
  let leaseId: Hex32 | undefined;
  const refused = (reason: string): GatewayOutcome<never> => ({ ok: false, kind: 'refused', reason, message: reason });
  const gateway: FakeGateway & { act(): void } = {
    tamper: (quote) => quote,
    outcome: {},
    vouchers: [],
    released: false,
    closes: true,
    info: async () => ({ ok: true, value: providerInfo() }),
    offers: async () => ({ ok: true, value: [offerInfo()] }),
    quote: (request: QuoteRequest) =>
      step('gateway.quote', () => {
        nonce += 1;
        const { consumer, leaseRef, gpus, maxSeconds, startTimeoutSeconds } = request;
        const node = { ...signedQuote().node, gpus, offerName: request.offerName };
        const terms = { consumer, leaseRef, gpus, maxSeconds, startTimeoutSeconds, token: request.token };
        const seconds = Math.floor(now().getTime() / 1000);
        const made = signedQuote(
          { ...terms, nonce: String(nonce), expiresAt: seconds + 120, specHash: promiseHashOf(node) },
          { chainId: request.chainId, escrow: request.escrow, node },
        );
        const value = gateway.tamper({ ...made, signature: signatureOf(made) });
        return gateway.outcome.quote ?? { ok: true, value };
      }),
    allocate: (quote) =>
      step('gateway.allocate', () => {
        if (gateway.outcome.allocate) return gateway.outcome.allocate;
        leaseId = leaseIdOf(quote.quote.leaseRef);
        if (!chain.model.leases.has(leaseId)) return refused('EscrowNotFound');
        gateway.allocated ??= allocationInfo({ leaseId });
        return { ok: true, value: gateway.allocated };
      }),
    allocation: () =>
      step('gateway.allocation', () => {
        if (gateway.outcome.allocation) return gateway.outcome.allocation;
        return gateway.allocated ? { ok: true, value: gateway.allocated } : refused('LeaseNotFound');
      }),
    vouch: (_quote, voucher) =>
      step('gateway.vouch', () => {
        if (gateway.outcome.vouch) return gateway.outcome.vouch;
        if (!gateway.allocated) return refused('LeaseNotFound');
        if (voucher.servedSeconds >= (gateway.vouchers.at(-1)?.servedSeconds ?? 0)) gateway.vouchers.push(voucher);
        return { ok: true, value: { servedSeconds: voucher.servedSeconds } };
      }),
    release: (quote: QuoteRecord) =>
      step('gateway.release', () => {
        if (gateway.outcome.release) return gateway.outcome.release;
        if (!gateway.allocated) return refused('LeaseNotFound');
        gateway.allocated = { ...gateway.allocated, state: 'Ended' };
        gateway.released = true;
        const servedSeconds = gateway.vouchers.at(-1)?.servedSeconds ?? 0;
        const signature = releaseSignature(quote.leaseId, servedSeconds);
        return { ok: true, value: { state: 'Ended', servedSeconds, signature } };
      }),
    act() {
      const last = gateway.vouchers.at(-1);
      const escrow = leaseId && chain.model.leases.get(leaseId);
      if (!gateway.closes || !gateway.released || !last?.last || !escrow || escrow.closed) return;
      chain.call({
        do: 'close',
        from: escrow.provider,
        voucher: { leaseId: escrow.leaseId, servedSeconds: last.servedSeconds, last: true },
        signedBy: sessionKey,
      });
    },
  };
  return gateway;
}

export const totals = (fakes: Fakes) => totalsOf(fakes.chain.model, token);
