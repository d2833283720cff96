/** What goes wrong, and what people do meanwhile: drawn from the seed, each at its time. */
import type { FakeCluster } from '../support/fake-cluster.ts';
import type { SimChain } from './chain.ts';
import type { Checks } from './checks.ts';
import type { Cut, Network, Place } from './network.ts';
import type { Random } from './random.ts';
import type { Surroundings } from './surroundings.ts';
import type { Party, Timeline } from './timeline.ts';

export interface TroubleParts {
  readonly timeline: Timeline;
  readonly dice: Random;
  readonly network: Network;
  readonly places: Readonly<Record<'consumer' | 'provider' | 'rpc' | 'gateway', Place>>;
  readonly chain: SimChain;
  readonly consumer: FakeCluster;
  readonly provider: FakeCluster;
  readonly around: Surroundings;
  readonly checks: Checks;
  /** Of all processes. */
  readonly names: readonly string[];
  readonly gpusByNode: Readonly<Record<string, number>>;
  readonly party: (name: string) => Party | undefined;
  readonly crash: (name: string) => void;
  readonly restart: (name: string, afterMs: number) => void;
  readonly say: (line: string) => void;
}

export interface Trouble {
  readonly troubleSeconds: number;
  /** Undoes what is still undone. */
  heal(): void;
}

const seconds = (ms: number) => `${Math.round(ms / 1000)} s`;

export function trouble(parts: TroubleParts): Trouble {
  const { timeline, dice, network, places, chain, consumer, provider, around, checks, names, say } = parts;
  const troubleSeconds = dice.between(180, 420);
  const endMs = timeline.nowMs + troubleSeconds * 1000;
  const undo = new Set<() => void>();
  const struck = (kind: string) => {
    network.struck[kind] = (network.struck[kind] ?? 0) + 1;
  };
  const at = (second: number, what: string, act: () => void) => timeline.schedule(second * 1000, what, act);
  /** Some time during the trouble. */
  const sometime = () => dice.between(5, troubleSeconds);
  const forAWhile = (ms: number, what: string, end: () => void) => {
    const over = () => {
      if (undo.delete(over)) end();
    };
    undo.add(over);
    timeline.schedule(ms, what, over);
  };

  // ---- how bad the network is, from very good to very bad

  network.weather = dice.pick([
    { lost: 0, slow: 0, twice: 0 },
    { lost: 0.003, slow: 0.01, twice: 0.01 },
    { lost: 0.02, slow: 0.03, twice: 0.05 },
    { lost: 0.05, slow: 0.08, twice: 0.1 },
  ]);
  chain.restless = dice.chance(0.5);

  // ---- what people want

  const leases = 1 + dice.below(3);
  /** Another lease of the same name, as soon as the name is free. */
  const again = (name: string) =>
    at(5, 'a user', () => {
      if (timeline.nowMs > endMs) return;
      if ([...checks.gpuLeases.values()].some((lease) => lease.metadata.name === name)) return void again(name);
      say(`Somebody asks for a lease ${name} once more.`);
      struck('lease made again');
      around.lease(name, {});
    });
  for (let i = 1; i <= leases; i++) {
    const name = `lease-${i}`;
    const asked = i === 1 ? 1 : dice.between(1, 90);
    at(asked, 'a user', () => {
      const count = dice.chance(0.25) ? 2 : 1;
      const durationSeconds = dice.pick([120, 300, 600, 1200]);
      say(`Somebody asks for lease ${name}: ${count} GPUs for ${durationSeconds} s.`);
      around.lease(name, { gpu: { models: ['RTX4090'], count, interconnect: 'Any' }, term: { durationSeconds } });
    });
    if (dice.chance(0.35))
      at(dice.between(asked + 10, troubleSeconds), 'a user', () => {
        say(`Somebody deletes lease ${name}.`);
        struck('lease deleted');
        around.deleteLease(name);
        if (dice.chance(0.3)) again(name);
      });
  }
  if (dice.chance(0.7)) around.deployments.add('web');
  const jobs = dice.below(3);
  for (let i = 1; i <= jobs; i++)
    at(dice.between(10, troubleSeconds), 'a user', () => {
      say(`Somebody starts job-${i}.`);
      around.job(`job-${i}`, dice.between(5, 60));
    });
  if (dice.chance(0.3))
    at(dice.between(40, troubleSeconds), 'a user', () => {
      const [pod] = [...checks.pods.values()].filter((one) => one.spec.nodeName);
      if (!pod) return;
      const force = dice.chance(0.3);
      say(`Somebody ${force ? 'force-' : ''}deletes pod ${pod.metadata.name}.`);
      struck(force ? 'pod force-deleted' : 'pod deleted');
      around.deletePod(pod.metadata.name, force);
    });

  // Drawn apart, so that runs without a budget stay as they were.
  const purse = dice.fork('budget');
  if (purse.chance(0.6)) {
    const amount = () => purse.pick(['0.03', '0.06', '0.12', '1']);
    around.setBudget({
      limits: [{ window: 'Day', amount: amount() }],
      ...(purse.chance(0.3) ? { maxConcurrentGpus: 1 + purse.below(2) } : {}),
      onExceeded: purse.chance(0.4) ? 'Drain' : 'Deny',
      graceSeconds: 30,
    });
    if (purse.chance(0.5))
      at(purse.between(30, troubleSeconds), 'a platform team', () => {
        const [limit] = [amount()];
        say(`The platform team sets the budget to ${limit} USDC a day.`);
        struck('budget changed');
        around.setBudget({ limits: [{ window: 'Day', amount: limit }] });
      });
  }

  // ---- what breaks

  type Incident = readonly [kind: string, weight: number, strike: () => void];
  const process = (role?: string) => dice.pick(names.filter((name) => role === undefined || name.startsWith(role)));
  const crash = () => {
    const name = process();
    const downMs = dice.chance(0.7) ? dice.between(500, 8000) : dice.between(20_000, 90_000);
    say(`${name} is killed, and started again after ${seconds(downMs)}.`);
    parts.crash(name);
    parts.restart(name, downMs);
  };
  const crashAtCall = () => {
    const name = process();
    const party = parts.party(name);
    if (!party?.alive || network.traps.has(party)) return;
    const trap = { call: party.calls + 1 + dice.below(60), when: dice.pick(['before', 'after'] as const) };
    network.traps.set(party, trap);
    party.onCrash(() => {
      if (party.calls < trap.call) return; // of something else, before it got there
      say(`${name} dies ${trap.when} its call number ${trap.call}.`);
      parts.restart(name, 500 + dice.between(0, 5000));
    });
  };
  const pause = () => {
    const name = process();
    const party = parts.party(name);
    if (!party?.alive) return;
    const ms = dice.between(5000, 70_000);
    say(`${name} is stopped for ${seconds(ms)}.`);
    party.pausedUntilMs = timeline.nowMs + ms;
  };
  const cut = () => {
    const [from, to] = dice.pick([
      ['operator', places.gateway],
      ['operator', places.gateway],
      ['operator', places.consumer],
      ['operator', places.rpc],
      ['gateway', places.provider],
      ['gateway', places.rpc],
    ] as const);
    const one: Cut = { from, to: to.name, how: dice.pick(['broken', 'silent']) };
    const ms = dice.chance(0.7) ? dice.between(2000, 30_000) : dice.between(30_000, 150_000);
    say(`${from} and ${to.name} are cut off from each other for ${seconds(ms)} (${one.how}).`);
    network.cuts.add(one);
    if (one.how === 'broken') network.breakStreams(from, to.name);
    forAWhile(ms, 'a cut heals', () => {
      network.cuts.delete(one);
      if (one.how === 'silent' && dice.chance(0.5)) network.breakStreams(from, to.name);
    });
  };
  const chainDown = () => {
    const ms = dice.between(5000, 120_000);
    say(`No RPC endpoint answers for ${seconds(ms)}.`);
    const both: Cut[] = ['operator', 'gateway'].map((from) => ({
      from,
      to: places.rpc.name,
      how: dice.pick(['broken', 'silent']),
    }));
    for (const one of both) network.cuts.add(one);
    forAWhile(ms, 'the chain answers', () => both.forEach((one) => void network.cuts.delete(one)));
  };
  const apiDown = () => {
    const [who, place] = dice.pick([
      ['operator', places.consumer],
      ['gateway', places.provider],
    ] as const);
    const ms = dice.between(3000, 60_000);
    say(`The ${place.name} is down for ${seconds(ms)}.`);
    const one: Cut = { from: who, to: place.name, how: 'broken' };
    network.cuts.add(one);
    network.breakStreams(who, place.name);
    forAWhile(ms, 'an API server is back', () => network.cuts.delete(one));
  };
  const clockJump = () => {
    const name = process();
    const party = parts.party(name);
    if (!party) return;
    const ms = Math.round(dice.between(-300_000, 300_000));
    say(`The clock of ${name} jumps by ${seconds(ms)}.`);
    party.skewMs += ms;
    checks.clockSet(ms);
    forAWhile(dice.between(5000, 120_000), 'a clock is put right', () => {
      const now = parts.party(name);
      if (now) now.skewMs -= ms;
    });
  };
  const providerDown = () => {
    const ms = dice.chance(0.5) ? dice.between(30_000, 120_000) : 600_000;
    say(`The provider's gateways are down for ${seconds(ms)}.`);
    for (const name of names.filter((one) => one.startsWith('gateway'))) {
      parts.crash(name);
      forAWhile(ms, 'the gateway is back', () => parts.restart(name, 0));
    }
  };
  const nodeDown = () => {
    const node = dice.pick(Object.keys(parts.gpusByNode));
    const ms = dice.between(10_000, 150_000);
    say(`The provider's node ${node} is not ready for ${seconds(ms)}.`);
    around.setNodeReady(node, false);
    forAWhile(ms, 'a node is back', () => around.setNodeReady(node, true));
  };
  const gpuLost = () => {
    const node = dice.pick(Object.keys(parts.gpusByNode));
    const ms = dice.between(10_000, 100_000);
    say(`A GPU of ${node} fails for ${seconds(ms)}.`);
    around.setGpus(node, parts.gpusByNode[node]! - 1);
    forAWhile(ms, 'a GPU is back', () => around.setGpus(node, parts.gpusByNode[node]!));
  };
  const nodeDeleted = () => {
    const [node] = checks.nodes.values();
    if (!node) return;
    say(`Somebody deletes Node ${node.metadata.name}.`);
    around.deleteNode(node.metadata.name);
  };
  const leaseForcedAway = () => {
    const [lease] = checks.gpuLeases.values();
    if (!lease) return;
    say(`Somebody takes lease ${lease.metadata.name} away past its finalizer.`);
    around.forceLeaseAway(lease.metadata.name);
  };
  const gatewayRecordLost = () => {
    const [record] = [...checks.providerRecords.values()].filter((one) => one.state === 'Serving');
    if (!record) return;
    say("Somebody deletes the gateway's record of a lease that it serves.");
    around.loseGatewayRecord(record.leaseId);
  };
  const stopPolicy = () => {
    const policy = dice.pick(['Hold', 'HoldAndDrain'] as const);
    say(`The platform team sets stopPolicy ${policy}.`);
    around.setStopPolicy(policy);
    forAWhile(dice.between(10_000, 60_000), 'stopPolicy None', () => around.setStopPolicy('None'));
  };
  const tell = (what: string, count: number, of: string) => {
    if (count > 0) say(`${what} ${count} ${of}${count === 1 ? '' : 's'}.`);
  };
  const incidents: readonly Incident[] = [
    ['crash', 3, crash],
    ['crash at a call', 5, crashAtCall],
    // Most of use where somebody else takes over meanwhile.
    ['pause', names.length > 2 ? 5 : 2, pause],
    ['cut', 4, cut],
    ['chain down', 2, chainDown],
    ['API server down', 2, apiDown],
    ['clock jump', 1, clockJump],
    ['provider down', 1, providerDown],
    ['node down', 1, nodeDown],
    ['GPU lost', 1, gpuLost],
    ['stop policy', 0.5, stopPolicy],
    ['Node deleted', 0.5, nodeDeleted],
    ['lease forced away', 0.7, leaseForcedAway],
    ['gateway record lost', 0.7, gatewayRecordLost],
    ['price change', 1, () => around.setPrice(dice.pick(['0.30', '0.36', '0.45', '0.72']))],
    ['reorganisation', 2, () => tell('The chain forgets', chain.reorganise(1 + dice.below(4)), 'block')],
    ['dropped transactions', 2, () => tell('The pool forgets', chain.dropPool(), 'transaction')],
    [
      'watches break',
      1,
      () => network.breakStreams('', dice.pick([places.consumer, places.provider, places.gateway]).name),
    ],
    [
      'history expires',
      1,
      () => {
        const [place, cluster] = dice.pick([
          [places.consumer, consumer],
          [places.provider, provider],
        ] as const);
        cluster.expireHistory();
        network.breakStreams('', place.name);
      },
    ],
  ];
  // Two operators: a leader that sleeps for longer than its term, and wakes when another one leads.
  const operators = names.filter((name) => name.startsWith('operator'));
  for (let i = 0; operators.length > 1 && i < 3; i++)
    at(sometime(), 'pause', () => {
      const name = dice.pick(operators);
      const party = parts.party(name);
      if (!party?.alive) return;
      const ms = dice.between(31_000, 70_000);
      say(`${name} is stopped for ${seconds(ms)}.`);
      struck('pause');
      party.pausedUntilMs = timeline.nowMs + ms;
    });
  const all = incidents.reduce((sum, [, weight]) => sum + weight, 0);
  /** Each has as long a stretch of the line as it has weight. */
  const drawn = (at: number): Incident => {
    let end = 0;
    for (const incident of incidents) {
      end += incident[1];
      if (at < end) return incident;
    }
    return incidents[0]!;
  };
  const howMany = Math.floor(dice.between(0, 14));
  for (let i = 0; i < howMany; i++) {
    const [kind, , strike] = drawn(dice.between(0, all));
    at(sometime(), kind, () => {
      if (kind !== 'crash at a call') struck(kind); // counted when it is made
      strike();
    });
  }

  return {
    troubleSeconds,
    heal() {
      for (const over of [...undo]) over();
      around.setPrice('0.36');
      for (const name of names) {
        const party = parts.party(name);
        // Who is stopped wakes up when it was meant to: what waits for it must come in its order.
        if (!party?.alive) parts.restart(name, 100);
      }
    },
  };
}
