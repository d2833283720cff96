/**
 * One run: a world made from a seed, some minutes in which everything goes wrong, and the time after it.
 *
 *   trouble ──► calm: every lease is served, or has ended ──► all leases are deleted: nothing is left ──► silence
 */
import { silentLog } from '../../operator/engine/log.ts';
import { type EventRecorder, type Log, type Resource, resources } from '../../operator/engine/types.ts';
import { fakeCluster } from '../support/fake-cluster.ts';
import { simChain } from './chain.ts';
import { type Checks, createChecks, rules, short, type Violation } from './checks.ts';
import { clusterLink } from './cluster-link.ts';
import { type GatewayProcess, providerAccount, quoteSeconds, startGateway } from './gateway.ts';
import { trouble } from './incidents.ts';
import { wallet } from './money.ts';
import { calm, network, type Place } from './network.ts';
import { type Plant, startOperator } from './operator.ts';
import { random } from './random.ts';
import { seal } from './sealed.ts';
import { furnish, isOver, surroundings } from './surroundings.ts';
import { type Party, timeline } from './timeline.ts';

export interface Options {
  readonly plant?: Plant;
  /** Hears all that happens, as lines that a person can read. */
  readonly say?: (seconds: number, line: string) => void;
  /** Hears each step as well. */
  readonly steps?: (seconds: number, line: string) => void;
}

export interface Outcome {
  readonly seed: number;
  /** Of the order of all steps: two runs with the same hash were the same run. */
  readonly hash: string;
  readonly steps: number;
  readonly simulatedSeconds: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly violations: readonly Violation[];
  /** For people: what came about, so that it can be seen whether runs reach what they should. */
  readonly reached: Readonly<Record<string, number>>;
}

const startMs = Date.UTC(2026, 0, 1);
/** Some steps, and timers of a tenth of a second, without any end: whatever goes round in a circle is found by this. */
const mostSteps = 400_000;

export async function simulate(seed: number, options: Options = {}): Promise<Outcome> {
  const time = timeline(startMs);
  const dice = random(`gpulease ${seed}`);
  const unseal = seal(time, dice.fork('production'));
  const rejections: unknown[] = [];
  const onRejection = (error: unknown) => void rejections.push(error);
  process.on('unhandledRejection', onRejection);
  const over = new AbortController();
  const since = () => (time.nowMs - startMs) / 1000;
  const say = (line: string) => options.say?.(since(), line);
  try {
    const draw = dice.fork('world');
    const clock = {
      now: () => new Date(time.nowMs),
      monotonicMs: () => time.nowMs - startMs,
      setTimeout: () => () => undefined,
    };
    const consumer = fakeCluster({ name: 'consumer', clock });
    const provider = fakeCluster({ name: 'provider', clock });
    const gpusByNode: Record<string, number> = draw.chance(0.5) ? { 'gpu-1': 2 } : { 'gpu-1': 2, 'gpu-2': 1 };
    furnish(consumer, provider, { gpusByNode, providerAddress: providerAccount });
    const net = network(time, dice.fork('network'), (what) => {
      options.steps?.(since(), `! ${what}`);
    });
    const chain = simChain(time, dice.fork('chain'), {
      safeLag: 1 + draw.below(4),
      funds: new Map([[wallet, 5_000_000n]]),
    });
    const around = surroundings(time, dice.fork('surroundings'), consumer, provider, {
      pods: () => checks.pods.size,
      remotePods: () => checks.remotePods.size,
      nodes: () => checks.nodes.size,
      onEviction: (pod) => {
        if (pod.status?.startTime) checks.violated('notEvicted', `pod ${pod.metadata.name} runs, and is evicted`);
      },
    });
    const checks: Checks = createChecks({
      timeline: time,
      chain,
      consumer,
      provider,
      gpusByNode,
      forced: around.forced,
      say,
    });

    const replicas = { operator: draw.chance(0.25) ? 2 : 1, gateway: draw.chance(0.25) ? 2 : 1 };
    const places = {
      consumer: { name: 'consumer API', timeoutSeconds: 30 },
      provider: { name: 'provider API', timeoutSeconds: 30 },
      rpc: { name: 'chain', timeoutSeconds: 10 },
      gateway: { name: 'gateway', timeoutSeconds: 10, mayArriveTwice: true, party: () => oneGateway() },
    } satisfies Record<string, Place>;
    const log = options.steps ? tellingLog((line) => options.steps?.(since(), line)) : silentLog;
    const events: EventRecorder = {
      event: (about, type, reason, message) =>
        options.steps?.(since(), `event ${type} ${about.kind} ${about.metadata.name} ${reason}: ${message}`),
    };
    let nonces = 0n;
    let lastWrite = { seconds: 0, what: '' };
    /** By what is written: heartbeats and locks are what silence sounds like. */
    const wrote = (party: Party, what: string, resource: Resource) => {
      if (resource.plural === 'leases' || /^apply gpuproviders/.test(what)) return;
      lastWrite = { seconds: since(), what: `${party.name}: ${what}` };
    };

    // ---- processes

    const gateways = new Map<Party, GatewayProcess>();
    const running = new Map<string, Party>();
    let pickGateway = 0;
    function oneGateway(): Party | undefined {
      const alive = [...gateways.keys()].filter((party) => party.alive);
      return alive.length === 0 ? undefined : alive[pickGateway++ % alive.length];
    }
    const start = (name: string) => {
      const party = time.party(name);
      party.skewMs = running.get(name)?.skewMs ?? 0;
      running.set(name, party);
      say(`${name} starts.`);
      // Not before its end is over: what is on its way when a process dies still arrives.
      const again = (why: string, afterMs: number) => {
        if (!party.alive) return;
        say(`${name} ends: ${why}.`);
        party.crash();
        restart(name, afterMs);
      };
      time.schedule(
        0,
        `${name} starts`,
        () => {
          const link = (place: Place, fake: typeof consumer) =>
            clusterLink({ network: net, party, place, fake, wrote });
          if (name.startsWith('gateway')) {
            const cluster = link(places.provider, provider);
            const nonce = () => ++nonces;
            const onLost = () => again('it lost the lock', 2000);
            gateways.set(
              party,
              startGateway({
                party,
                network: net,
                rpc: places.rpc,
                chain,
                cluster,
                log,
                nonce,
                replicas: replicas.gateway,
                onLost,
                signal: over.signal,
              }),
            );
            party.onCrash(() => gateways.delete(party));
          } else
            startOperator({
              party,
              network: net,
              rpc: places.rpc,
              gateway: places.gateway,
              gatewayOf: (server) => gateways.get(server!)!,
              chain,
              cluster: link(places.consumer, consumer),
              log,
              events,
              replicas: replicas.operator,
              plant: options.plant,
              told: checks,
              onLead: () => say(`${name} leads.`),
              onLost: () => again('it cannot lead', 2000),
              signal: over.signal,
            });
        },
        party,
      );
    };
    function restart(name: string, afterMs: number): void {
      time.schedule(afterMs, `${name} is started again`, () => {
        if (!running.get(name)?.alive) start(name);
      });
    }
    const names = [
      ...['a', 'b'].slice(0, replicas.operator).map((letter) => `operator-${letter}`),
      ...['a', 'b'].slice(0, replicas.gateway).map((letter) => `gateway-${letter}`),
    ];
    for (const name of names) start(name);

    // ---- the chain, and API servers' bookmarks

    const mine = () => {
      chain.mine();
      time.schedule(blocks.between(2000, 6000), 'block', mine);
    };
    const blocks = dice.fork('blocks');
    time.schedule(1000, 'block', mine);
    chain.onBlock((block) => {
      for (const { tx, status, refusal } of block.txs)
        say(
          `Block ${block.number}: ${tx.call.do}${'leaseId' in tx.call ? ` ${short(tx.call.leaseId)}` : ''}${status === 1 ? '' : ` reverted (${refusal})`}.`,
        );
    });
    const bookmarks = () => {
      consumer.sendBookmarks();
      provider.sendBookmarks();
      time.schedule(60_000, 'bookmarks', bookmarks);
    };
    time.schedule(60_000, 'bookmarks', bookmarks);

    // ---- trouble

    const leaseNames = trouble({
      timeline: time,
      dice: dice.fork('trouble'),
      network: net,
      places,
      chain,
      consumer,
      provider,
      around,
      checks,
      names,
      gpusByNode,
      party: (name) => running.get(name),
      crash: (name) => running.get(name)?.crash(),
      restart,
      say,
    });

    // ---- the run

    const broken = () => {
      for (const error of rejections.splice(0))
        checks.violated(
          'works',
          `unhandled: ${error instanceof Error ? (error.stack ?? error.message).slice(0, 400) : String(error)}`,
        );
      if (time.steps > mostSteps) checks.violated('converges', `${mostSteps} steps, and no end`);
      return checks.violations.length > 0;
    };
    /** Goes on until it holds; looks twice a second. */
    const until = async (seconds: number, holds: () => boolean): Promise<boolean> => {
      let lookAtMs = 0;
      let held = false;
      await time.runUntil(time.nowMs + seconds * 1000, () => {
        if (broken()) return true;
        if (time.nowMs < lookAtMs) return false;
        lookAtMs = time.nowMs + 500;
        held = holds();
        return held;
      });
      return held;
    };
    const reached: Record<string, number> = {};
    const count = (what: string, by = 1) => {
      reached[what] = (reached[what] ?? 0) + by;
    };

    await until(leaseNames.troubleSeconds, () => false);
    if (!broken()) {
      net.weather = calm;
      net.traps.clear();
      net.cuts.clear();
      chain.restless = false;
      leaseNames.heal();
      say('--- The trouble is over.');
      const pending = () => [...checks.gpuLeases.values()].filter((lease) => !settledDown(lease));
      if (!(await until(420, () => pending().length === 0)) && !broken())
        for (const lease of pending()) {
          const at = lease.status?.conditions?.find((one) => one.type === 'Ready');
          checks.violated('converges', `lease ${lease.metadata.name} is still at ${at?.reason}: ${at?.message}`);
        }
    }
    for (const { status } of checks.gpuLeases.values()) {
      const waits = status?.conditions?.some((one) => one.type === 'Ready' && one.reason === 'BudgetExceeded');
      count(status?.endReason ?? (waits ? 'held by a budget' : 'served'));
    }
    count('pods run', [...checks.pods.values()].filter((pod) => pod.status?.phase === 'Running').length);
    if (!broken()) {
      say('--- All leases are deleted.');
      around.deployments.clear();
      for (const { metadata } of [...checks.gpuLeases.values()]) around.deleteLease(metadata.name);
      for (const pod of checks.pods.values()) around.deletePod(pod.metadata.name, false);
      const left = () => leftovers(checks, chain.head.state.escrow.leases.values());
      if (!(await until(2000, () => left().length === 0)) && !broken())
        for (const one of left()) checks.violated('nothingLeft', one);
    }
    if (!broken()) {
      const calmSince = since();
      // Refunds are collected now and then, and the last transaction has to become safe.
      await until(150, () => false);
      lastWrite = { seconds: 0, what: '' };
      const inPool = chain.poolSize;
      const head = [...chain.head.state.nonces.values()].join();
      await until(400, () => false);
      checks.checkCounted();
      if (lastWrite.seconds > 0)
        checks.violated(
          'silent',
          `${lastWrite.what}, ${Math.round(lastWrite.seconds - calmSince)} s after all was over`,
        );
      if (inPool > 0 || head !== [...chain.head.state.nonces.values()].join())
        checks.violated('silent', 'transactions are still sent');
    }
    if (!broken()) {
      count('receipts', checks.receipts.size);
      for (const { leaseId, claimed, refunded } of chain.head.state.escrow.leases.values()) {
        const { settlement } = checks.receipts.get(leaseId) ?? {};
        const sums = `${settlement?.claimed} billed, ${settlement?.refunded} refunded`;
        if (sums !== `${claimed} billed, ${refunded} refunded`)
          checks.violated('receipts', `the receipt of ${short(leaseId)} says ${sums}: it was ${claimed}, ${refunded}`);
      }
    }
    count('escrows', chain.head.state.escrow.leases.size);
    count(
      'seconds billed',
      [...chain.head.state.escrow.leases.values()].reduce((sum, one) => sum + one.servedSeconds, 0),
    );
    count('evicted', around.evicted.length);
    return {
      seed,
      hash: time.hash,
      steps: time.steps,
      simulatedSeconds: Math.round(since()),
      faults: net.struck,
      violations: checks.violations,
      reached,
    };
  } finally {
    // Whoever waits for ever would be kept for ever.
    over.abort(new Error('the run is over'));
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    process.off('unhandledRejection', onRejection);
    unseal();
  }
}

type Lease = Checks['gpuLeases'] extends ReadonlyMap<string, infer L> ? L : never;

/** Served, over, or waiting for something that only somebody else can give. */
function settledDown(lease: Lease): boolean {
  const { status, metadata } = lease;
  if (status?.endedAt) return metadata.deletionTimestamp === undefined;
  const at = status?.conditions?.find((one) => one.type === 'Ready');
  if (metadata.deletionTimestamp) return false;
  return (
    at?.status === 'True' ||
    [
      'BudgetExceeded',
      'CapacityExhausted',
      'NoCapacity',
      'NoMatchingOffer',
      'PriceAboveLimit',
      'AllProvidersAvoided',
      'Held',
    ].includes(at?.reason ?? '')
  );
}

function leftovers(checks: Checks, escrows: Iterable<{ leaseId: string; closed: boolean }>): string[] {
  const left: string[] = [];
  for (const { metadata } of checks.gpuLeases.values()) left.push(`GpuLease ${metadata.name}`);
  for (const uid of checks.consumerRecords.keys()) left.push(`the operator's record of ${uid.slice(-4)}`);
  for (const id of checks.providerRecords.keys()) left.push(`the gateway's record of ${short(id)}`);
  for (const name of checks.nodes.keys()) left.push(`Node ${name}`);
  for (const name of checks.tenants) left.push(`the tenant ${name}`);
  for (const ledger of checks.ledgers.values())
    for (const id of Object.keys(ledger.entries)) left.push(`GPUs of ${short(id)} on ${ledger.node}`);
  for (const { leaseId, closed } of escrows) if (!closed) left.push(`the escrow of ${short(leaseId)}`);
  for (const pod of checks.remotePods.values()) left.push(`pod of ${pod.consumerUid.slice(-4)} in ${pod.namespace}`);
  for (const pod of checks.pods.values()) if (pod.spec.nodeName && !isOver(pod)) left.push(`pod ${pod.metadata.name}`);
  return left;
}

function tellingLog(tell: (line: string) => void): Log {
  const at = (level: string) => (fields: object, message: string) =>
    tell(
      `log ${level} ${message} ${JSON.stringify(fields, (_, value) => (value instanceof Error ? value.message : typeof value === 'bigint' ? String(value) : value))}`,
    );
  const log: Log = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error'), child: () => log };
  return log;
}

export { quoteSeconds, resources, rules };
