/**
 * What must hold after every step, whoever fails and whenever. The checks see all there is, at once and as it is: both
 * clusters' objects as they are written, each block, and each voucher in the moment in which it is signed.
 */
import type { GpuBudget } from '../../operator/api/budget.ts';
import { labels } from '../../operator/api/labels.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import type { Receipt } from '../../operator/api/receipt.ts';
import { receiptField, receiptSecretType } from '../../operator/controllers/consumer/receipts.ts';
import { type LedgerConfigMap, ledgerOfConfigMap } from '../../operator/controllers/provider/ledgers.ts';
import { type RecordSecret, recordOfSecret } from '../../operator/controllers/provider/records.ts';
import type { NodeLedger } from '../../operator/core/allocation/ledger.ts';
import { type LeaseRecord as ProviderRecord, tenantNamespace } from '../../operator/core/allocation/record.ts';
import type { LeaseRecord } from '../../operator/core/lease/observed.ts';
import { parseAmount } from '../../operator/core/money/amount.ts';
import { heldIn, paidSeconds } from '../../operator/core/money/escrow.ts';
import { totalsOf } from '../../operator/core/money/model.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { type Node, readySince } from '../../operator/core/node/virtual-node.ts';
import { collectionPath } from '../../operator/engine/paths.ts';
import { type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import type { FakeCluster } from '../support/fake-cluster.ts';
import { type Block, type SimChain, usdc } from './chain.ts';
import { leaseIdOf } from './keys.ts';
import { type Told, wallet } from './money.ts';
import { settings } from './operator.ts';
import { gpusOf, isOver, isTenant, readyOf } from './surroundings.ts';
import type { Party, Timeline } from './timeline.ts';

export interface Violation {
  readonly rule: string;
  readonly message: string;
  readonly atSeconds: number;
}

export const rules = {
  conservation: 'deposits = paid + fee + refunded + held',
  gpusOnce: 'no GPU is in two allocations',
  moneyFirst: 'no allocation without an escrow that was seen open',
  oneEscrow: 'a lease has no second escrow open while the first may still bill',
  billedReady: 'billed seconds are no more than the node was Ready',
  voucherClock: 'no voucher is ahead of the chain’s clock, or of the deposit',
  billQuote: 'the bill is no more than the quote, and the quote no dearer than was allowed',
  budget: 'no more is spent, nor leased, than a budget allows, and each second is counted once',
  podsFinal: 'a pod that has ended stays as it ended',
  podsOnce: 'no pod runs twice for one UID',
  notEvicted: 'a pod that runs is not evicted because an operator is away',
  unknown: 'nothing is ended or deleted because of what is not known',
  converges: 'when faults stop, everything converges',
  nothingLeft: 'a deleted lease leaves nothing',
  receipts: 'every escrow leaves one receipt, which says what the contract says',
  silent: 'an unchanged world is not written to',
  works: 'no error is left unhandled',
} as const;
export type Rule = keyof typeof rules;

type PodObject = Pod & KubeObject;
type NodeObject = Node & KubeObject;

interface RemotePod {
  readonly uid: string;
  readonly consumerUid: string;
  readonly namespace: string;
  readonly nodeName: string | undefined;
  readonly gpus: number;
  readonly over: boolean;
  readonly ending: boolean;
}

export interface Checks extends Told {
  readonly violations: readonly Violation[];
  violated(rule: Rule, message: string): void;
  /** A process' wall clock was set: what follows from its own clock is wrong by as much. */
  clockSet(ms: number): void;
  /** By lease UID, all that is or was promised for it. */
  readonly leaseIds: ReadonlyMap<Hex32, { readonly uid: string; readonly attempt: number }>;
  readonly providerRecords: ReadonlyMap<string, ProviderRecord>;
  readonly consumerRecords: ReadonlyMap<string, LeaseRecord>;
  /** By escrow. */
  readonly receipts: ReadonlyMap<string, Receipt>;
  readonly ledgers: ReadonlyMap<string, NodeLedger>;
  readonly gpuLeases: ReadonlyMap<string, GpuLease>;
  readonly nodes: ReadonlyMap<string, NodeObject>;
  readonly remotePods: ReadonlyMap<string, RemotePod>;
  readonly pods: ReadonlyMap<string, PodObject>;
  readonly tenants: ReadonlySet<string>;
  /** To be asked when all is over: what the budget has counted is what was signed for. */
  checkCounted(): void;
  /** Seconds that the node of an escrow was Ready. */
  readySeconds(leaseId: string): number;
}

export function createChecks(options: {
  readonly timeline: Timeline;
  readonly chain: SimChain;
  readonly consumer: FakeCluster;
  readonly provider: FakeCluster;
  readonly gpusByNode: Readonly<Record<string, number>>;
  readonly forced: ReadonlySet<string>;
  readonly say: (line: string) => void;
}): Checks {
  const { timeline, chain, say } = options;
  const startMs = timeline.nowMs;
  const violations: Violation[] = [];
  const nowSeconds = () => Math.floor(timeline.nowMs / 1000);
  function violated(rule: Rule, message: string): void {
    if (violations.length >= 20) return;
    violations.push({ rule, message, atSeconds: Math.round((timeline.nowMs - startMs) / 100) / 10 });
    say(`VIOLATED ${rule}: ${message}`);
  }

  const leaseIds = new Map<Hex32, { uid: string; attempt: number }>();
  const everOpen = new Map<string, { openedAt: number; paid: number }>();
  const everStopped = new Set<string>();
  const providerRecords = new Map<string, ProviderRecord>();
  const everDenied = new Set<string>();
  const consumerRecords = new Map<string, LeaseRecord>();
  const receipts = new Map<string, Receipt>();
  const ledgers = new Map<string, NodeLedger>();
  const gpuLeases = new Map<string, GpuLease>();
  const nodes = new Map<string, NodeObject>();
  const ready = new Map<string, { totalMs: number; sinceMs?: number }>();
  const remotePods = new Map<string, RemotePod>();
  const started = new Set<string>();
  const pods = new Map<string, PodObject>();
  const ends = new Map<string, string>();
  const tenants = new Set<string>();
  let clockSetMs = 0;

  const named = (uid: string) => gpuLeases.get(uid)?.metadata.name ?? uid.slice(-4);

  // ---- the chain

  chain.onBlock((block, orphaned) => {
    for (const one of [...orphaned, block]) lookAtBlock(one);
    checkMoney(block);
  });

  function lookAtBlock({ state }: Block): void {
    for (const [leaseId, escrow] of state.escrow.leases) {
      const before = everOpen.get(leaseId);
      everOpen.set(leaseId, {
        openedAt: Math.min(before?.openedAt ?? Number.POSITIVE_INFINITY, escrow.openedAt),
        paid: Math.max(before?.paid ?? 0, paidSeconds(escrow)),
      });
      if (escrow.closed || escrow.closingAt !== 0) everStopped.add(leaseId);
    }
  }

  function checkMoney(block: Block): void {
    const { escrow } = block.state;
    const sum = totalsOf(escrow, usdc);
    const held = [...escrow.leases.values()].reduce((all, one) => all + heldIn(one), 0n);
    if (sum.deposited !== sum.paid + sum.fee + sum.refunded + sum.held || held !== sum.held)
      violated(
        'conservation',
        `${sum.deposited} ≠ ${sum.paid} + ${sum.fee} + ${sum.refunded} + ${sum.held}; held ${held}`,
      );
    const billing = new Map<string, string[]>();
    for (const [leaseId, one] of escrow.leases) {
      const uid = leaseIds.get(leaseId)?.uid ?? 'nobody';
      if (!one.closed && one.closingAt === 0 && block.timestamp < one.endsAt)
        billing.set(uid, [...(billing.get(uid) ?? []), leaseId]);
      const most = readySeconds(leaseId) + 1 + Math.ceil(clockSetMs / 1000);
      if (one.servedSeconds > most)
        violated(
          'billedReady',
          `${one.servedSeconds} s are billed for ${short(leaseId)}, its node was Ready for ${most - 1} s`,
        );
      if (one.claimed > priceOf(one.maxSeconds, one.gpus, one.pricePerGpuHour) || one.claimed > one.deposit)
        violated('billQuote', `${one.claimed} is claimed of ${short(leaseId)}`);
      if (one.pricePerGpuHour > 600_000n) violated('billQuote', `${one.pricePerGpuHour} for a GPU hour is above 0.60`);
    }
    for (const [uid, ids] of billing)
      if (ids.length > 1)
        violated('oneEscrow', `lease ${named(uid)} has ${ids.length} escrows that bill: ${ids.map(short).join(', ')}`);
  }

  // ---- objects, as they are written

  follow(options.provider, resources.configMaps, (type, map: LedgerConfigMap & KubeObject) => {
    if (!map.metadata.name.startsWith('ledger-') || type === 'DELETED') return;
    const ledger = ledgerOfConfigMap(map);
    const before = ledgers.get(ledger.node);
    ledgers.set(ledger.node, ledger);
    const sold = Object.values(ledger.entries).reduce((sum, one) => sum + one.gpus, 0);
    if (sold > (options.gpusByNode[ledger.node] ?? 0)) violated('gpusOnce', `${sold} GPUs are sold of ${ledger.node}`);
    for (const leaseId of Object.keys(ledger.entries))
      if (!everOpen.has(leaseId)) violated('moneyFirst', `${short(leaseId)} has GPUs, and never had an escrow`);
    for (const leaseId of Object.keys(before?.entries ?? {})) {
      if (ledger.entries[leaseId] !== undefined) continue;
      say(`The GPUs of ${short(leaseId)} on ${ledger.node} are free again.`);
      const record = providerRecords.get(leaseId);
      const runs = [...remotePods.values()].some(
        (pod) => pod.namespace === tenantNamespace(leaseId as Hex32) && !pod.over,
      );
      if (record?.nodeName === ledger.node && (record.state === 'Serving' || runs))
        violated(
          'unknown',
          `the GPUs of ${short(leaseId)} are given back while it is ${record.state}${runs ? ' and runs pods' : ''}`,
        );
    }
  });

  follow(options.provider, resources.secrets, (type, secret: RecordSecret & KubeObject) => {
    if (!secret.metadata.name.startsWith('lease-')) return;
    const record = recordOfSecret(secret);
    if (type === 'DELETED') {
      providerRecords.delete(record.leaseId);
      everDenied.add(record.leaseId);
      return;
    }
    const before = providerRecords.get(record.leaseId);
    providerRecords.set(record.leaseId, record);
    if (!everOpen.has(record.leaseId))
      violated('moneyFirst', `${short(record.leaseId)} has a record, and never had an escrow`);
    if (record.state !== before?.state)
      say(`The gateway: ${short(record.leaseId)} is ${record.state}${record.reason ? ` (${record.reason})` : ''}.`);
    if (record.state !== 'Serving' && record.state !== 'Provisioning') everDenied.add(record.leaseId);
    const chainSaid = record.reason === 'EscrowClosed' || record.reason === 'EscrowClosing';
    if (chainSaid && !everStopped.has(record.leaseId))
      violated('unknown', `the gateway ends ${short(record.leaseId)} for ${record.reason}, which no block ever said`);
  });

  follow(options.provider, resources.namespaces, (type, { metadata }) => {
    if (!isTenant(metadata.name)) return;
    if (type === 'DELETED') tenants.delete(metadata.name);
    else tenants.add(metadata.name);
    const owner = [...providerRecords.values()].find((one) => tenantNamespace(one.leaseId) === metadata.name);
    if (type === 'ADDED' && !owner) violated('moneyFirst', `the tenant ${metadata.name} belongs to nobody`);
    if (metadata.deletionTimestamp && owner?.state === 'Serving')
      violated('unknown', `the tenant of ${short(owner.leaseId)} is deleted while it is served`);
  });

  follow(options.provider, resources.pods, (type, pod: PodObject) => {
    if (!isTenant(pod.metadata.namespace)) return;
    const uid = pod.metadata.uid!;
    if (type === 'DELETED') {
      remotePods.delete(uid);
      return;
    }
    const consumerUid = pod.metadata.annotations?.['gpulease.dev/pod-uid'] ?? '';
    const others = [...remotePods.values()].filter((one) => one.consumerUid === consumerUid && one.uid !== uid);
    if (others.some((one) => !one.over)) violated('podsOnce', `pod ${pod.metadata.name} runs twice at the provider`);
    // A request that was long on its way may come after its pod was deleted here; what it makes is ended as a stranger.
    const here = pods.get(consumerUid);
    if (!remotePods.has(uid) && started.has(consumerUid) && here && !here.metadata.deletionTimestamp)
      violated('podsOnce', `pod ${pod.metadata.name} had run already, and is made again`);
    remotePods.set(uid, {
      uid,
      consumerUid,
      namespace: pod.metadata.namespace!,
      nodeName: pod.spec.nodeName,
      gpus: gpusOf(pod),
      over: isOver(pod),
      ending: pod.metadata.deletionTimestamp !== undefined,
    });
    const used = new Map<string, number>();
    for (const one of remotePods.values())
      if (one.nodeName && !one.over) used.set(one.nodeName, (used.get(one.nodeName) ?? 0) + one.gpus);
    for (const [node, gpus] of used)
      if (gpus > (options.gpusByNode[node] ?? 0)) violated('gpusOnce', `pods on ${node} use ${gpus} GPUs`);
  });

  follow(options.consumer, resources.pods, (type, pod: PodObject) => {
    const { uid = '', name } = pod.metadata;
    const before = pods.get(uid);
    if (pod.status?.startTime !== undefined) started.add(uid);
    const ended = ends.get(uid);
    const phase = pod.status?.phase ?? '';
    if (ended !== undefined && phase !== ended) violated('podsFinal', `pod ${name} was ${ended}, now it is ${phase}`);
    if (isOver(pod) && ended === undefined) {
      ends.set(uid, phase);
      say(`Pod ${name} is ${phase}${pod.status?.reason ? ` (${pod.status.reason})` : ''}.`);
    } else if (phase !== before?.status?.phase && type !== 'DELETED') say(`Pod ${name} is ${phase}.`);
    if (type === 'DELETED') {
      pods.delete(uid);
      say(`Pod ${name} is gone.`);
    } else pods.set(uid, pod);
    const lost = type === 'DELETED' || (pod.status?.reason === 'PodGoneAtProvider' && ended === undefined);
    if (!lost || options.forced.has(uid) || !pod.spec.nodeName) return;
    const runs = [...remotePods.values()].find((one) => one.consumerUid === uid && !one.over && !one.ending);
    const leaseUid = nodes.get(pod.spec.nodeName)?.metadata.labels?.[labels.leaseUid] ?? '';
    const over = consumerRecords.get(leaseUid)?.end !== undefined || !consumerRecords.has(leaseUid);
    if (runs && !over)
      violated('unknown', `pod ${name} is ${type === 'DELETED' ? 'gone' : 'given up'} here, and runs at the provider`);
  });

  follow(options.consumer, resources.nodes, (type, node: NodeObject) => {
    const { name } = node.metadata;
    const leaseId = node.spec.providerID?.split('/').at(-1) ?? '';
    const condition = readyOf(node);
    const sinceMs = Date.parse(condition?.lastTransitionTime ?? '');
    const meter = ready.get(leaseId) ?? { totalMs: 0 };
    const isReady = type !== 'DELETED' && condition?.status === 'True';
    if (meter.sinceMs !== undefined && (!isReady || sinceMs > meter.sinceMs)) {
      // An end that the condition does not tell is now: until then anybody would have counted on.
      const untilMs = type === 'DELETED' ? timeline.nowMs : isReady ? sinceMs : Math.max(sinceMs, meter.sinceMs);
      ready.set(leaseId, { totalMs: meter.totalMs + untilMs - meter.sinceMs, ...(isReady ? { sinceMs } : {}) });
    } else if (isReady && meter.sinceMs === undefined) ready.set(leaseId, { ...meter, sinceMs });
    const before = nodes.get(name);
    if (type === 'DELETED') nodes.delete(name);
    else nodes.set(name, node);
    const was = before && readyOf(before)?.status;
    if (type === 'DELETED') say(`Node ${name} is gone.`);
    else if (condition && was !== condition.status)
      say(
        `Node ${name} is ${condition.status === 'True' ? 'Ready' : `not Ready (${condition.reason}: ${condition.message})`}.`,
      );
  });

  follow(options.consumer, resources.gpuLeases, (type, lease: GpuLease & KubeObject) => {
    const { uid = '', name } = lease.metadata;
    const before = gpuLeases.get(uid);
    if (type === 'DELETED') {
      gpuLeases.delete(uid);
      say(`Lease ${name} is gone.`);
      return;
    }
    gpuLeases.set(uid, lease);
    const word = (one: GpuLease | undefined) => one?.status?.conditions?.find((c) => c.type === 'Ready');
    if (word(lease)?.reason !== word(before)?.reason)
      say(`Lease ${name}: ${word(lease)?.reason}. ${word(lease)?.message ?? ''}`.trim());
  });

  follow(options.consumer, resources.secrets, (type, secret: RecordSecret & KubeObject) => {
    if (secret.type === receiptSecretType) {
      const receipt = JSON.parse(Buffer.from(secret.data![receiptField]!, 'base64').toString()) as Receipt;
      if (type !== 'ADDED') violated('receipts', `a receipt was ${type.toLowerCase()}`);
      receipts.set(receipt.leaseId, receipt);
      return;
    }
    const uid = secret.metadata.labels?.[labels.leaseUid];
    if (!uid || secret.data?.record === undefined) return;
    if (type === 'DELETED') {
      consumerRecords.delete(uid);
      return;
    }
    const record = JSON.parse(Buffer.from(secret.data.record, 'base64').toString()) as LeaseRecord;
    const before = consumerRecords.get(uid);
    consumerRecords.set(uid, record);
    checkGpus(record, before);
    if (record.meter !== before?.meter && process.env.METER) say(`meter ${named(uid)} ${JSON.stringify(record.meter)}`);
    if (record.end && !before?.end) checkEnd(uid, record);
  });

  // ---- the budget

  let budget: (GpuBudget & KubeObject) | undefined;
  /** Highest that was ever allowed: what was opened under it goes on. */
  let allowed = { amount: 0n, gpus: Number.POSITIVE_INFINITY };
  /** By escrow: the bill for what was signed. */
  const signed = new Map<string, bigint>();
  const spentOf = (one: GpuBudget | undefined) =>
    parseAmount(one?.status?.windows?.find(({ window }) => window === 'Day')?.spent ?? '0', 6);

  follow(options.consumer, resources.gpuBudgets, (_type, one: GpuBudget & KubeObject) => {
    const amount = parseAmount(one.spec.limits.find(({ window }) => window === 'Day')!.amount, 6);
    allowed = {
      amount: amount > allowed.amount ? amount : allowed.amount,
      gpus: one.spec.maxConcurrentGpus ?? Number.POSITIVE_INFINITY,
    };
    budget = one;
    if (spentOf(one) > allowed.amount)
      violated('budget', `${spentOf(one)} are spent in a day, ${allowed.amount} are allowed`);
  });

  function checkGpus(record: LeaseRecord, before: LeaseRecord | undefined): void {
    const { quote } = record;
    if (quote) {
      const { gpus, pricePerGpuHour } = quote.signed.quote;
      const bill = priceOf(record.signedSeconds, gpus, BigInt(pricePerGpuHour));
      const known = signed.get(quote.leaseId) ?? 0n;
      signed.set(quote.leaseId, bill > known ? bill : known);
    }
    if (!budget || record.deposit === undefined || before?.deposit !== undefined) return;
    const open = [...consumerRecords.values()].filter(
      (one) => one.deposit !== undefined && !one.settled && !one.release,
    );
    const gpus = open.reduce((sum, one) => sum + one.quote!.signed.quote.gpus, 0);
    if (gpus > allowed.gpus) violated('budget', `${gpus} GPUs are leased, ${allowed.gpus} are allowed`);
  }

  function checkCounted(): void {
    if (!budget) return;
    const all = [...signed.values()].reduce((sum, one) => sum + one, 0n);
    const billed = [...chain.head.state.escrow.leases.values()].reduce((sum, one) => sum + one.claimed, 0n);
    // A clock that was set may have been in another day.
    const wrong = clockSetMs === 0 && spentOf(budget) !== all;
    if (wrong || billed > all)
      violated('budget', `${spentOf(budget)} are counted, ${all} were signed for, ${billed} were billed`);
  }

  function checkEnd(uid: string, record: LeaseRecord): void {
    const { reason, message } = record.end!;
    const leaseId = record.quote?.leaseId;
    say(`The operator ends lease ${named(uid)}: ${reason}: ${message}`);
    if (reason === 'ProviderFault') {
      const fact =
        (leaseId && (everStopped.has(leaseId) || everDenied.has(leaseId))) ||
        /StartTimeout|CapacityExhausted|took the escrow back/.test(message);
      if (!fact) violated('unknown', `lease ${named(uid)} is ended (${message}), and the provider serves it`);
    }
    if (reason === 'NodeLost') {
      const node = [...nodes.values()].find((one) => one.metadata.labels?.[labels.leaseUid] === uid);
      const awayMs =
        node && readyOf(node)?.status !== 'True'
          ? timeline.nowMs - Date.parse(readySince(node.status?.conditions) ?? '')
          : 0;
      if (awayMs + clockSetMs + 2000 < settings.nodeLostSeconds * 1000)
        violated('unknown', `lease ${named(uid)} is given up for a node that was away for ${awayMs / 1000} s`);
    }
  }

  function follow<T extends KubeObject>(
    cluster: FakeCluster,
    resource: Resource,
    seen: (type: 'ADDED' | 'MODIFIED' | 'DELETED', object: T) => void,
  ): void {
    void cluster
      .raw({ method: 'GET', path: `${collectionPath(resource)}?watch=true&resourceVersion=${cluster.revision}` })
      .then((answer) =>
        answer.on('data', (chunk: Buffer) => {
          for (const line of chunk.toString().split('\n')) {
            if (line === '') continue;
            const { type, object } = JSON.parse(line);
            seen(type, object);
          }
        }),
      );
  }

  function readySeconds(leaseId: string): number {
    const meter = ready.get(leaseId);
    if (!meter) return 0;
    return (meter.totalMs + (meter.sinceMs === undefined ? 0 : Math.max(0, timeline.nowMs - meter.sinceMs))) / 1000;
  }

  return {
    violations,
    violated,
    clockSet: (ms) => {
      clockSetMs += Math.abs(ms);
    },
    leaseIds,
    providerRecords,
    consumerRecords,
    receipts,
    ledgers,
    gpuLeases,
    nodes,
    remotePods,
    pods,
    tenants,
    checkCounted,
    readySeconds,
    leaseRef(leaseRef, uid, attempt) {
      leaseIds.set(leaseIdOf(wallet, leaseRef), { uid, attempt });
    },
    voucher(party: Party, leaseId, seconds) {
      const open = everOpen.get(leaseId);
      const elapsed = nowSeconds() - (open?.openedAt ?? Number.POSITIVE_INFINITY);
      if (seconds > Math.max(0, elapsed))
        violated('voucherClock', `${party.name} signs ${seconds} s of ${short(leaseId)}, ${elapsed} s have passed`);
      if (seconds > (open?.paid ?? 0))
        violated(
          'voucherClock',
          `${party.name} signs ${seconds} s of ${short(leaseId)}, the deposit pays ${open?.paid ?? 0} s`,
        );
    },
  };
}

export const short = (leaseId: string) => leaseId.slice(2, 8);
