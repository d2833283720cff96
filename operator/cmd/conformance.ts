#!/usr/bin/env node
/** `npm run conformance`: how much of a Kubernetes node a leased node is, measured with Kubernetes' own specs. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { connectCluster } from '../engine/cluster.ts';
import { type Cluster, type KubeObject, resources } from '../engine/types.ts';
import { startGpuNode } from '../sandbox/clusters/gpu-node.ts';
import { H100, simulatedGpus } from '../sandbox/clusters/gpus.ts';
import type { ClusterNode, RealNode } from '../sandbox/clusters/node.ts';
import { type PlaneAccess, startPlane } from '../sandbox/clusters/plane.ts';
import { ensureImages } from '../sandbox/conformance/images.ts';
import { ensureSuite } from '../sandbox/conformance/programs.ts';
import { runSpecs } from '../sandbox/conformance/run.ts';
import { choose, type Profile } from '../sandbox/conformance/specs.ts';
import { exitCodeOf, leaksOf, linesOf } from '../sandbox/conformance/summary.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { startSandbox } from '../sandbox/sandbox.ts';
import { lease, leaseManifest, namespaceReady, until } from '../sandbox/scenario.ts';
import { ensureTools, KUBERNETES_VERSION } from '../sandbox/tools/tools.ts';
import { choice, integer, parseOptions, text, UsageError } from './options.ts';

const user = process.getuid?.() ?? 0;
const defaultDir = join(tmpdir(), `gpulease-conformance-${user}`);

const usage = `
Runs specs of the Kubernetes v${KUBERNETES_VERSION} end-to-end suite against a leased node, unchanged: a sandbox with a real kubelet on
the provider's side, a lease of the whole node (untainted, every namespace, podIP: Provider,
serviceAccountTokens: Bound), and the suite on the consumer's API server, which sees the leased node alone. By default the 141 specs that are both NodeConformance and Conformance.

  npm run conformance                        baseline: three specs need the host's network or files, and must be refused
  npm run conformance -- --profile trusted   the provider trusts this consumer with its host
  npm run conformance -- --plain             the same specs straight on the provider's kubelet, for comparison

The first run builds the suite and its images (10 minutes). A run takes 5 to 10 minutes: four specs wait for 4 minutes each.
Needs root and a Debian-like Linux. Exit status: 0 as it should be, 1 specs failed that should not, 2 nothing was measured.
The last line is one JSON object.
`;

const declared = {
  focus: text('Run the specs whose full name matches instead, e.g. "Container Runtime.*NodeConformance".', 'REGEX'),
  also: {
    description: 'Add the conformance specs of pods, kubectl logs, exec, attach, port-forward, Jobs, service accounts.',
    parse: () => true,
  },
  profile: choice('What the provider trusts the consumer with.', ['baseline', 'trusted'], 'baseline'),
  plain: { description: 'Straight on a kubelet, without operator and gateway.', parse: () => true },
  procs: integer('Specs at a time.', 'COUNT', 1, 64, 8),
  timeoutSeconds: integer(
    'End the run after so long; specs that did not run count as failed.',
    'SECONDS',
    60,
    36_000,
    3600,
  ),
  keep: { description: 'Stay up afterwards, to look around; Ctrl-C ends it.', parse: () => true },
  out: text(
    'Where summary.json, report.json and e2e.log are left.',
    'DIR',
    join(tmpdir(), `gpulease-conformance-results-${user}`),
  ),
  dir: text('Where the clusters live while it runs. The default one is removed afterwards.', 'DIR', defaultDir),
};

const started = Date.now();
const report = (line: string) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}`);

/** What the specs run against. */
interface Bench {
  readonly plane: PlaneAccess;
  readonly cluster: Cluster;
  /** Where their pods are to be. */
  readonly node: string;
  /** Where they really run. */
  readonly real: RealNode;
  readonly kubectl: string;
}

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const selected = matcher(options.focus, options.also === true);
  const profile: Profile = options.plain ? 'trusted' : options.profile;
  const out = resolve(options.out);
  const abort = new AbortController();
  const { signal } = abort;
  const stops: (() => Promise<void>)[] = [];
  const stopAll = async () => {
    for (const stop of stops.splice(0).reverse()) await stop();
    if (options.dir === defaultDir) rmSync(options.dir, { recursive: true, force: true });
  };
  // Nothing may be left behind: what is being started or run is waited for before the rest is taken down.
  let working: Promise<unknown> = Promise.resolve();
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    report('clearing up');
    await working.catch(() => undefined);
    await stopAll();
  }, report);

  let figures: object | undefined;
  const work = async () => {
    const programs = await ensureSuite({ report }, signal);
    const images = await ensureImages(programs, { report }, signal);
    const bench = await (options.plain ? plain : leased)(options.dir, profile, stops, signal);
    report('giving the node the images of the suite');
    await bench.real.importImages(images);
    report(`running the specs on ${bench.node}, ${options.procs} at a time`);
    const { outcome, podsByNode, seconds } = await runSpecs(
      {
        programs,
        kubectl: bench.kubectl,
        kubeconfigPath: bench.plane.kubeconfigPath,
        cluster: bench.cluster,
        choice: choose(options.focus, options.also === true),
        selected,
        profile,
        procs: options.procs,
        timeoutSeconds: options.timeoutSeconds,
        out,
        report,
      },
      signal,
    );
    const leaks = leaksOf(outcome, profile);
    console.log(`\n${linesOf(outcome, podsByNode, bench.node).join('\n')}`);
    for (const { name } of leaks) console.log(`ALARM: under baseline this must be refused, and passed: ${name}`);
    const refused = outcome.failed.filter((spec) => spec.refused).length;
    console.log(
      `${outcome.passed.length} passed, ${outcome.failed.length} failed${refused > 0 ? ` (${refused} of them refused, as they should be)` : ''}, ${outcome.skipped.length} skipped`,
    );
    figures = {
      passed: outcome.passed.length,
      failed: outcome.failed.length,
      refused,
      skipped: outcome.skipped.length,
      seconds,
      kubernetes: KUBERNETES_VERSION,
      on: options.plain ? 'kubelet' : 'leased node',
      ...(options.plain ? {} : { profile, podIP: 'Provider' }),
      procs: options.procs,
      pods: Object.values(podsByNode).reduce((sum, count) => sum + count, 0),
      failedSpecs: outcome.failed.map((spec) => spec.name),
    };
    mkdirSync(out, { recursive: true });
    writeFileSync(
      join(out, 'summary.json'),
      `${JSON.stringify({ ...figures, podsByNode, ...outcome }, undefined, 1)}\n`,
    );
    report(`summary.json, report.json and e2e.log are in ${out}`);
    process.exitCode = exitCodeOf(outcome, leaks);
    if (!options.keep) return;
    report(`still up: KUBECONFIG=${bench.plane.kubeconfigPath}; Ctrl-C ends it`);
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
  };
  try {
    working = work();
    await working;
  } catch (error) {
    if (signal.aborted) return;
    report(`failed: ${(error as Error).message}`);
    process.exitCode = 2;
  } finally {
    if (!signal.aborted) {
      report('clearing up');
      await stopAll();
      off();
    }
  }
  if (figures) console.log(JSON.stringify(figures));
}

/** Which names in the report were to be run: the choice's own expressions, as this language reads them. */
function matcher(focus: string | undefined, also: boolean): (name: string) => boolean {
  const chosen = choose(focus, also);
  const compile = (pattern: string) => {
    try {
      return new RegExp(pattern);
    } catch (error) {
      throw new UsageError(`--focus must be a regular expression; given: ${pattern} (${(error as Error).message})`);
    }
  };
  const wanted = chosen.focus.map(compile);
  const not = chosen.skip === undefined ? undefined : compile(chosen.skip);
  return (name) => wanted.some((one) => one.test(name)) && !not?.test(name);
}

function mustBeReal(node: ClusterNode | undefined): RealNode {
  if (!node || node.simulated)
    throw new Error('there is no real node here, and a simulated one runs no pods; the lines above say what it needs');
  return node as RealNode;
}

/** One control plane and one kubelet: what the same specs say of an ordinary node. */
async function plain(dir: string, _: Profile, stops: (() => Promise<void>)[], signal: AbortSignal): Promise<Bench> {
  const tools = await ensureTools({ need: ['plane', 'node'], report }, signal);
  report('starting a control plane and one node');
  const plane = await startPlane({ name: 'plain', dir: join(dir, 'plain'), tools, report }, signal);
  stops.push(() => plane.stop());
  const name = 'gpu-h100';
  const gpus = simulatedGpus(name, H100, 1);
  const node = await startGpuNode({ plane, name, dir: join(dir, name), gpus, report }, signal);
  stops.push(() => node.stop());
  const cluster = connectCluster({ name: 'plain', kubeconfig: plane.kubeconfig });
  return { plane, cluster, node: name, real: mustBeReal(node), kubectl: tools.kubectl };
}

/** A sandbox, and all of its provider's one node leased to its consumer. */
async function leased(
  dir: string,
  profile: Profile,
  stops: (() => Promise<void>)[],
  signal: AbortSignal,
): Promise<Bench> {
  const sandbox = await startSandbox(
    {
      dir,
      report,
      gpus: { h100: 1, rtx4090: 0 },
      trustConsumer: profile === 'trusted',
      voucherPeriodSeconds: 30,
    },
    signal,
  );
  stops.push(() => sandbox.stop());
  const real = mustBeReal(sandbox.nodes[0]);
  await namespaceReady(sandbox, signal);
  const { witness } = await lease(
    sandbox,
    [
      leaseManifest('conformance', 'H100-SXM', '3', {
        term: { durationSeconds: 10_800 },
        drainTimeoutSeconds: 0,
        // Specs of service accounts read their pods' tokens.
        access: { namespaces: ['*'], serviceAccountTokens: 'Bound' },
        node: { untainted: true, podIP: 'Provider' },
      }),
    ],
    report,
    signal,
  );
  const node = await until(
    'a node that pods may be scheduled to',
    60,
    () => schedulable(sandbox.consumerCluster),
    signal,
  );
  witness.stop();
  return { plane: sandbox.consumer, cluster: sandbox.consumerCluster, node, real, kubectl: sandbox.kubectl };
}

interface Node extends KubeObject {
  spec?: { unschedulable?: boolean; taints?: { effect: string }[] };
  status?: { conditions?: { type: string; status: string }[] };
}

/** The specs' pods tolerate nothing. */
async function schedulable(cluster: Cluster): Promise<string | undefined> {
  const { items } = await cluster.list<Node>(resources.nodes);
  return items.find(
    ({ spec, status }) =>
      !spec?.unschedulable &&
      !spec?.taints?.some((taint) => taint.effect !== 'PreferNoSchedule') &&
      status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True'),
  )?.metadata.name;
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = 2;
});
