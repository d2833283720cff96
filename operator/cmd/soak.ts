#!/usr/bin/env node
/** `npm run soak`: many leases and pods for a long time, while things die and connections break, and what it costs in memory. */
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createChecker } from '../../test/faults/check.ts';
import {
  type Lab,
  type LabLease,
  type Pod,
  podManifest,
  servesForEver,
  startLab,
  type Target,
} from '../../test/faults/lab.ts';
import { type Random, seeded } from '../../test/faults/random.ts';
import { applyManifests } from '../adapters/kube/apply-manifests.ts';
import { resources } from '../engine/types.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { checkConservation, until } from '../sandbox/scenario.ts';
import { integer, parseOptions, text, UsageError } from './options.ts';

const usage = `
Twenty leases and two hundred pods on hollow nodes, while programs are killed and connections reset at random. Memory of the
operator and the gateway after the second half must be within 5 % of that after the first; at the end nothing is left.

  npm run soak                    20 minutes
  npm run soak -- --minutes 60 --seed 7
`;

const declared = {
  minutes: integer('How long, beside starting and ending.', 'MINUTES', 2, 1440, 20),
  leases: integer('How many leases are served.', 'COUNT', 1, 100, 20),
  pods: integer('How many pods run on them.', 'COUNT', 1, 2000, 200),
  seed: integer('Of what is broken when.', 'NUMBER', 0, 1_000_000, 1),
  verbose: { description: 'Shows what the sandbox reports.', parse: () => true },
  dir: text(
    'Where the clusters and logs live while it runs.',
    'DIR',
    join(tmpdir(), `gpulease-soak-${process.getuid?.() ?? 0}`),
  ),
};

const programs = ['operator', 'gateway'] as const;
type Program = (typeof programs)[number];

/** Of the measured time: the operator and the gateway themselves are killed only before this, so that they can grow old. */
const killsUntil = 0.25;
/** Memory "after" a half is the median of its last part: garbage is collected when V8 likes. */
const lastPart = 0.3;
const tolerance = 0.05;
const sampleSeconds = 5;

const started = Date.now();
const say = (line: string) => console.log(`${((Date.now() - started) / 1000).toFixed(0).padStart(6)} s  ${line}`);

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  process.env.GPULEASE_NODES = 'hollow';
  const abort = new AbortController();
  const report = (line: string) => {
    if (options.verbose) say(line);
  };
  let lab: Lab | undefined;
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    say('clearing up');
    await lab?.stop();
  }, say);
  let figures: object | undefined;
  try {
    say('starting a sandbox with hollow nodes: pods are simulated');
    const half = Math.ceil(options.leases / 2) + 2;
    lab = await startLab({
      dir: options.dir,
      report,
      signal: abort.signal,
      gpus: { h100: half, rtx4090: half },
      voucherPeriodSeconds: 5,
      shipped: true,
    });
    figures = await soak(lab, options);
  } catch (error) {
    if (abort.signal.aborted) return;
    say(`failed: ${(error as Error).message}`);
    say(`logs: ${join(options.dir, 'programs/log')}`);
    process.exitCode = 1;
    figures ??= { failed: (error as Error).message.slice(0, 500) };
  } finally {
    if (!abort.signal.aborted) {
      // What its programs wrote is searched for secrets then.
      const leak = await lab?.stop().then(
        () => undefined,
        (error: Error) => error.message,
      );
      if (leak !== undefined) {
        say(leak);
        process.exitCode = 1;
        figures = { ...figures, failed: leak.slice(0, 500) };
      }
      off();
    }
  }
  console.log(JSON.stringify(figures));
}

interface Options {
  readonly minutes: number;
  readonly leases: number;
  readonly pods: number;
  readonly seed: number;
}

async function soak(lab: Lab, options: Options): Promise<object> {
  const { signal, sandbox } = lab;
  const draw = seeded(options.seed);
  const checker = await createChecker(lab);
  const perLease = Math.ceil(options.pods / options.leases);
  const fleet = await makeFleet(lab, options.leases - 1, perLease);
  say(`${fleet.length + 1} leases are Ready, ${(fleet.length + 1) * perLease} pods run`);

  const samples: Sample[] = [];
  const broken = new Map<string, number>();
  const begun = Date.now();
  const totalMs = options.minutes * 60_000;
  const share = () => (Date.now() - begun) / totalMs;
  const deathsAt = (program: Program) => lab.deaths.get(program) ?? 0;
  let deathsBefore: Record<Program, number> | undefined;

  const measuring = (async () => {
    let minute = 0;
    while (share() < 1 && !signal.aborted) {
      const sample = await take(lab, share()).catch(() => undefined);
      if (sample) samples.push(sample);
      if (sample && (Date.now() - begun) / 60_000 >= minute) {
        say(await lineOf(lab, sample, minute));
        minute += 1;
      }
      await sleep(sampleSeconds * 1000, undefined, { signal });
    }
  })();
  measuring.catch(() => undefined); // awaited below

  let turn = 0;
  while (share() < 1) {
    signal.throwIfAborted();
    await sleep(draw.between(2000, 9000), undefined, { signal });
    if (share() >= killsUntil) deathsBefore ??= { operator: deathsAt('operator'), gateway: deathsAt('gateway') };
    const what = await breakSomething(lab, draw, share() < killsUntil);
    broken.set(what, (broken.get(what) ?? 0) + 1);
    turn += 1;
    if (turn % 6 === 0) await churn(lab, fleet, draw, perLease);
  }
  await measuring;
  await lab.restore();
  await checker.check(120);
  say('all is in order; ending every lease');

  for (const lease of fleet) await lease.delete();
  await sandbox.consumerCluster.delete(resources.gpuLeases, lab.base.key, undefined, signal);
  for (const lease of fleet) await lease.gone(300);
  await until(
    'the first lease gone',
    300,
    async () => ((await sandbox.consumerCluster.get(resources.gpuLeases, lab.base.key)) ? undefined : true),
    signal,
  );
  await checker.check(120);
  const totals = await checkConservation(sandbox);
  for (const [asset, { held }] of Object.entries(totals))
    if (held !== '0') throw new Error(`${held} base units of ${asset} are still held`);

  const rejections = troubleInLogs(sandbox.dir);
  const memory = Object.fromEntries(programs.map((program) => [program, compare(samples, program)]));
  const restarted = programs.filter((program) => deathsBefore && deathsAt(program) > deathsBefore[program]);
  const grown = programs.filter((program) => memory[program]!.growth > tolerance);
  if (rejections.length > 0) say(`in the logs: ${rejections.slice(0, 3).join(' | ')}`);
  if (restarted.length > 0) say(`ended by itself while it was measured: ${restarted.join(', ')}`);
  if (grown.length > 0) say(`grew by more than ${tolerance * 100} %: ${grown.join(', ')}`);
  if (rejections.length > 0 || grown.length > 0) process.exitCode = 1;
  return {
    minutes: options.minutes,
    leases: options.leases,
    pods: options.leases * perLease,
    seed: options.seed,
    made: checker.totals,
    broken: Object.fromEntries([...broken].sort()),
    breaks: [...broken.values()].reduce((sum, one) => sum + one, 0),
    memory,
    restartedWhileMeasured: restarted,
    eventLoopP99Seconds: Object.fromEntries(
      programs.map((program) => [
        program,
        percentile(
          samples.map((s) => s[program]?.lagP99Seconds ?? 0),
          0.5,
        ),
      ]),
    ),
    eventLoopWorstSeconds: Object.fromEntries(
      programs.map((program) => [program, Math.max(0, ...samples.map((s) => s[program]?.lagP99Seconds ?? 0))]),
    ),
    unhandledRejections: rejections.length,
    totals,
    seconds: Math.round((Date.now() - started) / 1000),
  };
}

async function makeFleet(lab: Lab, count: number, perLease: number): Promise<LabLease[]> {
  const fleet: LabLease[] = [];
  // A few at once: each needs a transaction of the one wallet.
  for (let from = 0; from < count; from += 5) {
    const batch = await Promise.all(
      Array.from({ length: Math.min(5, count - from) }, (_, i) => begin(lab, `soak-${from + i}`, from + i)),
    );
    await Promise.all(batch.map((lease) => lease.ready(180)));
    fleet.push(...batch);
  }
  await addPods(lab, 'train', perLease - 1);
  for (const lease of fleet) await addPods(lab, lease.name, perLease);
  await until(
    'all pods running',
    180,
    async () => ((await counts(lab)).running >= (count + 1) * perLease ? true : undefined),
    lab.signal,
  );
  return fleet;
}

const begin = (lab: Lab, name: string, index: number) =>
  lab.begin(name, { model: index % 2 === 0 ? 'H100-SXM' : 'RTX4090' });

async function addPods(lab: Lab, lease: string, count: number): Promise<void> {
  const manifests = Array.from({ length: count }, (_, i) => podManifest(`${lease}-${i}`, lease, servesForEver, false));
  await applyManifests(lab.sandbox.consumerCluster, manifests, { fieldManager: 'kubectl' }, lab.signal);
}

const killable: readonly Target[] = [
  'consumer/kube-apiserver',
  'provider/kube-apiserver',
  'provider/etcd',
  'consumer/kube-controller-manager',
  'provider/kube-controller-manager',
  'consumer/kube-scheduler',
  'anvil',
];

/** One thing, for a moment. Names what it was. */
async function breakSomething(lab: Lab, draw: Random, programsToo: boolean): Promise<string> {
  if (draw() < 0.6) {
    const wire = draw.of(Object.keys(lab.wires) as (keyof Lab['wires'])[]);
    lab.wires[wire].reset();
    return `reset ${wire}`;
  }
  if (draw() < 0.4) {
    const side = draw.of(programs);
    lab.rpc[side].misbehave({ is: draw.of(['down', 'error', 'truncate'] as const) });
    await sleep(draw.between(500, 4000), undefined, { signal: lab.signal });
    lab.rpc[side].behave();
    return `rpc of the ${side}`;
  }
  const what = draw.of([...killable, ...(programsToo ? programs : [])]);
  await lab.kill(what);
  await sleep(draw.between(100, 1500), undefined, { signal: lab.signal });
  await lab.revive(what);
  return `kill ${what}`;
}

/** What users do: a pod is deleted and made again; now and then a lease ends and another begins. */
async function churn(lab: Lab, fleet: LabLease[], draw: Random, perLease: number): Promise<void> {
  const index = Math.floor(draw() * fleet.length);
  const lease = fleet[index]!;
  const again = async () => {
    await lease.ready(120);
    const name = `${lease.name}-${Math.floor(draw() * perLease)}`;
    await lab.sandbox.consumerCluster.delete(resources.pods, { namespace: 'ml', name }, undefined, lab.signal);
    await until(
      `pod ${name} gone`,
      60,
      async () =>
        (await lab.sandbox.consumerCluster.get(resources.pods, { namespace: 'ml', name })) ? undefined : true,
      lab.signal,
    );
    await applyManifests(
      lab.sandbox.consumerCluster,
      [podManifest(name, lease.name, servesForEver, false)],
      { fieldManager: 'kubectl' },
      lab.signal,
    );
  };
  if (draw() < 0.6) return again();
  await lease.ready(120);
  await lease.end();
  const next = await begin(lab, `${lease.name.replace(/x.*$/, '')}x${lab.made.size}`, index);
  fleet[index] = next;
  await next.ready(120);
  await addPods(lab, next.name, perLease);
}

interface Usage {
  readonly rssMiB: number;
  readonly heapMiB: number;
  readonly lagP99Seconds: number;
}
type Sample = { readonly share: number } & Partial<Record<Program, Usage>>;

async function take(lab: Lab, share: number): Promise<Sample> {
  const sample: { share: number } & Partial<Record<Program, Usage>> = { share };
  for (const program of programs) {
    const url = `http://127.0.0.1:${lab.sandbox.operations[program]}/metrics`;
    const text = await fetch(url, { signal: AbortSignal.timeout(5000) }).then(
      (answer) => answer.text(),
      () => undefined,
    );
    if (text === undefined) continue;
    const value = (name: string) =>
      Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(text)?.[1] ?? Number.NaN);
    sample[program] = {
      rssMiB: value('process_resident_memory_bytes') / (1 << 20),
      heapMiB: value('nodejs_heap_size_used_bytes') / (1 << 20),
      lagP99Seconds: value('nodejs_eventloop_lag_p99_seconds'),
    };
  }
  return sample;
}

async function counts(lab: Lab): Promise<{ running: number; ready: number }> {
  const pods = (await lab.sandbox.consumerCluster.list<Pod>(resources.pods)).items;
  const leases = (
    await lab.sandbox.consumerCluster.list<Pod & { status?: { conditions?: { type: string; status: string }[] } }>(
      resources.gpuLeases,
    )
  ).items;
  return {
    running: pods.filter((pod) => pod.status?.phase === 'Running').length,
    ready: leases.filter((l) => l.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True')).length,
  };
}

async function lineOf(lab: Lab, sample: Sample, minute: number): Promise<string> {
  const now = await counts(lab).catch(() => undefined);
  const usage = programs.map((program) => {
    const one = sample[program];
    return one
      ? `${program} ${one.rssMiB.toFixed(0)} MiB (heap ${one.heapMiB.toFixed(0)}), loop p99 ${(one.lagP99Seconds * 1000).toFixed(0)} ms`
      : `${program} does not answer`;
  });
  return `minute ${minute}: ${usage.join('; ')}; ${now ? `${now.ready} leases Ready, ${now.running} pods running` : 'the API server does not answer'}`;
}

function percentile(values: readonly number[], share: number): number {
  const sorted = values.filter(Number.isFinite).toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

function compare(samples: readonly Sample[], program: Program) {
  const after = (from: number, to: number) =>
    percentile(
      samples.filter((s) => s.share >= from && s.share <= to).map((s) => s[program]?.rssMiB ?? Number.NaN),
      0.5,
    );
  const first = after(0.5 - lastPart / 2, 0.5);
  const second = after(1 - lastPart / 2, 1);
  const digits = (value: number) => Math.round(value * 10) / 10;
  return {
    afterFirstHalfMiB: digits(first),
    afterSecondHalfMiB: digits(second),
    growth: first > 0 ? Math.round((second / first - 1) * 1000) / 1000 : 1,
  };
}

/** Lines that no program may write, whatever was done to it. */
function troubleInLogs(dir: string): string[] {
  return programs.flatMap((program) =>
    readFileSync(join(dir, `programs/log/${program}.log`), 'utf8')
      .split('\n')
      // By type, not by word: the chain, too, has its BlockOutOfRangeError.
      .filter((line) =>
        /unhandled|uncaught|"type":"(Type|Range|Reference)Error"|^\s*(Type|Range|Reference)Error/i.test(line),
      )
      .map((line) => `${program}: ${line.slice(0, 300)}`),
  );
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
