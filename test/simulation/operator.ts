/** One replica of the operator: the production controllers and virtual nodes, on simulated machines. */

import { PassThrough } from 'node:stream';
import type { AllocationInfo } from '../../operator/api/gateway.ts';
import { createConsumerControllers, watchConsumer } from '../../operator/controllers/consumer/controllers.ts';
import type { Gateway, GatewayOutcome, Gateways, LeaseMoney } from '../../operator/controllers/consumer/ports.ts';
import { createReceipts } from '../../operator/controllers/consumer/receipts.ts';
import { loadRecords } from '../../operator/controllers/consumer/records.ts';
import { collectRefunds } from '../../operator/controllers/consumer/treasury.ts';
import { Refusal } from '../../operator/core/allocation/refusal.ts';
import type { QuoteRecord } from '../../operator/core/lease/observed.ts';
import { parseAmount } from '../../operator/core/money/amount.ts';
import type { Answer } from '../../operator/core/provider/assess.ts';
import { sleep } from '../../operator/engine/clock.ts';
import { fenced } from '../../operator/engine/fence.ts';
import { runAsLeader } from '../../operator/engine/leader.ts';
import { type Cluster, type EventRecorder, type Log, resources } from '../../operator/engine/types.ts';
import { createLeaseNodes, type ServingLease } from '../../operator/kubelet/lease-nodes.ts';
import { createVirtualNodes } from '../../operator/kubelet/virtual-nodes.ts';
import type { SimChain } from './chain.ts';
import type { GatewayProcess, KubeAnswer } from './gateway.ts';
import { leaseMoney, type Told } from './money.ts';
import { answerOf, type Lines, type Network, type Place } from './network.ts';
import type { Party } from './timeline.ts';

export const operatorNamespace = 'gpulease-system';
export const clusterUid = 'consumer-cluster';
export const settings = {
  voucherPeriodSeconds: 20,
  depositSeconds: 240,
  lowWaterSeconds: 90,
  nodeLostSeconds: 120,
  releaseTimeoutSeconds: 60,
  closeTimeoutSeconds: 40,
} as const;

/** Mistakes made on purpose in this wiring, to see that a run would notice them. */
export type Plant = 'double-open' | 'delete-by-absence' | 'voucher-ahead' | 'budget-unread';
export const plants: Readonly<Record<Plant, string>> = {
  'double-open': 'another attempt begins while the open of the last one may still be mined',
  'delete-by-absence': 'a gateway that does not answer is taken for one that has no allocation',
  'voucher-ahead': 'each voucher is signed for the period to come as well',
  'budget-unread': 'budgets are not read before money is committed, or a lease forgotten',
};

export interface OperatorParts {
  readonly party: Party;
  readonly network: Network;
  readonly rpc: Place;
  readonly gateway: Place;
  readonly gatewayOf: (party: Party | undefined) => GatewayProcess;
  readonly chain: SimChain;
  readonly cluster: Cluster;
  readonly log: Log;
  readonly events: EventRecorder;
  readonly replicas: number;
  readonly plant: Plant | undefined;
  readonly told: Told;
  readonly onLead: () => void;
  readonly onLost: () => void;
  /** Fires when the run is over. */
  readonly signal: AbortSignal;
}

export function startOperator(parts: OperatorParts): void {
  const { party, cluster, log, signal: stopped } = parts;
  if (parts.replicas === 1) {
    void untilItWorks(parts, () => lead(parts, stopped));
    return;
  }
  const leader = runAsLeader(
    {
      cluster,
      namespace: operatorNamespace,
      name: 'gpulease-operator',
      identity: `${party.name}@${party.clock.now().getTime()}`,
      leaseDurationSeconds: 30,
      renewDeadlineSeconds: 20,
      retrySeconds: 6,
      clock: party.clock,
      log,
      onLead: (signal, isLeader) => lead({ ...parts, cluster: fenced(cluster, isLeader) }, signal),
    },
    stopped,
  );
  // As the entry point does: whoever leads now must be alone; a failed start ends the process, too.
  void leader.ended.then((how) => how === 'lost' && parts.onLost(), parts.onLost);
}

/** A process that fails at its start is started again. */
async function untilItWorks({ party, onLost }: OperatorParts, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch {
    if (party.alive) onLost();
  }
}

async function lead(parts: OperatorParts, signal: AbortSignal): Promise<void> {
  const { party, network, cluster, chain, log, events, plant } = parts;
  const { clock } = party;
  const now = () => clock.now();
  const adapter = leaseMoney(
    { network, party, place: parts.rpc, chain, cluster, namespace: operatorNamespace, now },
    clusterUid,
    parts.told,
  );
  const money = plant === 'double-open' ? impatient(adapter) : adapter;
  const gateways = gatewaysOf(parts, adapter);
  const records = await loadRecords(cluster, operatorNamespace, clock, signal);
  parts.onLead();
  const watched = watchConsumer({ cluster, log, clock });
  const { providers } = watched;
  const nodes = createVirtualNodes({
    cluster,
    address: '10.0.0.1',
    kubeletVersion: 'v1.36.3+gpulease.sim',
    certificates: {
      selfSigned: async () => ({
        certificatePem: '',
        privateKeyPem: '',
        renewAt: new Date(clock.now().getTime() + 1e9),
      }),
      signed: async () => undefined,
    },
    callers: { clientCaPem: 'simulated' },
    startServer: async () => ({ port: 10250, renew: () => undefined, close: async () => undefined }),
    events,
    log,
    clock,
    heartbeatSeconds: 10,
  });
  const leaseNodes = createLeaseNodes({
    cluster,
    nodes,
    connect: (quote) => (providers.get({ name: quote.providerName }) ? connection(parts, quote) : undefined),
    now,
    monotonicMs: () => clock.monotonicMs(),
    log,
    onChange: (lease) => controllers.lease.enqueue(lease),
  });
  const controllers = createConsumerControllers({
    world: {
      ...watched,
      cluster: plant === 'budget-unread' ? withoutBudgets(cluster) : cluster,
      clusterUid,
      providerBook: new Map(),
      records,
      receipts: createReceipts(cluster, operatorNamespace),
      gateways,
      money,
      nodes: leaseNodes,
      events,
      log,
      now,
      settings: { ...settings, allowance: 'Standing', maxEscrow: (_symbol, decimals) => parseAmount('100', decimals) },
      hints: new Map(),
    },
    clock,
  });
  const every = async (seconds: number, work: () => Promise<void>) => {
    while (!signal.aborted) {
      await work().catch(() => undefined);
      await sleep(clock, seconds * 1000, signal).catch(() => undefined);
    }
  };
  await Promise.all([
    nodes.run(signal),
    controllers.run(signal),
    every(30, () => controllers.sweep(signal)),
    every(5, () => adapter.outbox.tick(signal)),
    every(60, () => collectRefunds(money, providers, () => 0n, log, signal)),
  ]);
  leaseNodes.close();
}

const wire = <T>(value: T): T => (value === undefined ? value : JSON.parse(JSON.stringify(value)));

/** Calls of the gateway's service, through the network, with what an HTTP client makes of their ends. */
function gatewaysOf(parts: OperatorParts, money: LeaseMoney): Gateways {
  const { party, network, gateway, gatewayOf } = parts;
  const call = <T>(
    what: string,
    serve: (process: GatewayProcess) => T | Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> => network.call(party, gateway, what, async (server) => wire(await serve(gatewayOf(server))), signal);

  async function outcome<T>(asked: Promise<T>, signal?: AbortSignal): Promise<GatewayOutcome<T>> {
    try {
      return { ok: true, value: await asked };
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof Refusal && error.status < 500)
        return { ok: false, kind: 'refused', reason: error.reason ?? String(error.status), message: error.message };
      return { ok: false, kind: 'unknown', message: (error as Error).message };
    }
  }
  async function answer<T>(asked: Promise<T>, signal?: AbortSignal): Promise<Answer<T>> {
    try {
      return { ok: true, value: await asked };
    } catch (error) {
      if (signal?.aborted && (signal.reason as Error)?.name !== 'TimeoutError') throw signal.reason;
      if (error instanceof Refusal) return { ok: false, reason: 'InvalidAnswer', message: error.message };
      return { ok: false, reason: 'Unreachable', message: (error as Error).message };
    }
  }

  const one: Gateway = {
    info: (signal) =>
      answer(
        call('info', ({ service }) => service.info(), signal),
        signal,
      ),
    offers: (signal) =>
      answer(
        call('offers', ({ service }) => service.offers().offers, signal),
        signal,
      ),
    quote: (request, signal) =>
      outcome(
        call('quote', ({ service }) => service.quote(wire(request)), signal),
        signal,
      ),
    allocate: (signed, signal) =>
      outcome(
        call('allocate', ({ service }) => service.allocate(wire(signed)), signal),
        signal,
      ),
    async allocation({ leaseId }, signal) {
      const said = await outcome(
        call('allocation', ({ service }) => service.allocation(leaseId), signal),
        signal,
      );
      if (parts.plant === 'delete-by-absence' && !said.ok && said.kind === 'unknown')
        return {
          ok: false,
          kind: 'refused',
          reason: 'EscrowNotFound',
          message: 'there is no escrow for this lease',
        };
      return said;
    },
    async vouch(quote, given, signal) {
      let voucher = given;
      if (parts.plant === 'voucher-ahead') {
        const servedSeconds = given.servedSeconds + settings.voucherPeriodSeconds;
        voucher = { ...given, servedSeconds, signature: await money.signVoucher(quote, servedSeconds, given.last) };
      }
      return outcome(
        call('voucher', ({ service }) => service.voucher(quote.leaseId, wire(voucher)), signal),
        signal,
      );
    },
    release: ({ leaseId }, signal) =>
      outcome(
        call('release', ({ service }) => service.release(leaseId), signal),
        signal,
      ),
  };
  return { of: () => one, forget: () => undefined };
}

/** One lease at its provider, as its virtual node sees it. */
function connection(parts: OperatorParts, quote: QuoteRecord): ServingLease {
  const { party, network, gateway, gatewayOf } = parts;
  const { leaseId } = quote;
  return {
    allocation: (signal) =>
      network.call(
        party,
        gateway,
        'allocation',
        async (server) => wire(await gatewayOf(server).service.allocation(leaseId)),
        signal,
      ),
    async follow(heard, signal) {
      const what = 'follow (watch)';
      const lines = await network.call<Lines>(
        party,
        gateway,
        what,
        (server) => gatewayOf(server).follow(leaseId),
        signal,
      );
      let rest = '';
      for await (const chunk of network.stream(party, gateway, what, lines, signal)) {
        const whole = (rest + String(chunk)).split('\n');
        rest = whole.pop() ?? '';
        for (const line of whole) heard((JSON.parse(line) as AllocationInfo | null) ?? undefined);
      }
    },
    async raw(request, signal) {
      const [path] = request.path.split('?');
      const what = `${request.method} ${path}${/[?&]watch=true/.test(request.path) ? ' (watch)' : ''}`;
      const answer = await network.call<KubeAnswer>(
        party,
        gateway,
        what,
        (server) => gatewayOf(server).kube(leaseId, request),
        signal,
      );
      if (answer.lines !== undefined) return answerOf(200, network.stream(party, gateway, what, answer.lines, signal));
      const body = new PassThrough();
      body.end(answer.text);
      return answerOf(answer.status, body);
    },
    upgrade: () => Promise.reject(new TypeError('no streams of pods in a simulation')),
  };
}

/** Takes a quote for expired as soon as its open is on its way. */
function impatient<M extends LeaseMoney>(money: M): M {
  return {
    ...money,
    async facts(quote: QuoteRecord, ...rest: [Parameters<M['facts']>[1], AbortSignal?]) {
      const seen = await money.facts(quote, ...rest);
      if (seen.state !== 'known' || seen.escrow) return seen;
      const sent = Object.entries(seen.txs).some(([key, tx]) => key.startsWith('open:') && tx !== undefined);
      return sent ? { ...seen, safe: { blockTime: Number(quote.signed.quote.expiresAt) } } : seen;
    },
  };
}

/** Finds no budget where it is asked for all of them. */
const withoutBudgets = (cluster: Cluster): Cluster => ({
  ...cluster,
  list: (resource, ...rest) =>
    resource.plural === resources.gpuBudgets.plural
      ? Promise.resolve({ items: [], resourceVersion: '0' })
      : cluster.list(resource, ...rest),
});
