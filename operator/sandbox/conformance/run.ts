/**
 * Runs specs of the suite against one API server, all of whose pods are to land on one node, and says what came of them.
 * The suite knows the node only through the API server, so it may be a kubelet's or a virtual one.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createInformer } from '../../engine/informer.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';
import { createSupervisor, logTail, type Report } from '../processes.ts';
import type { SuitePrograms } from './programs.ts';
import type { Choice, Profile } from './specs.ts';
import { type GinkgoSuite, type Outcome, outcomeOf, type PodsByNode, progressOf } from './summary.ts';

export interface RunOptions {
  readonly programs: SuitePrograms;
  readonly kubectl: string;
  readonly kubeconfigPath: string;
  readonly cluster: Cluster;
  readonly choice: Choice;
  readonly selected: (name: string) => boolean;
  readonly profile: Profile;
  /** Specs at a time. Nearly all of their time is waiting. */
  readonly procs: number;
  readonly timeoutSeconds: number;
  /** Gets e2e.log and report.json. */
  readonly out: string;
  readonly report: Report;
}

export interface SuiteRun {
  readonly outcome: Outcome;
  readonly podsByNode: PodsByNode;
  readonly seconds: number;
}

const progressSeconds = 20;
/**
 * One order for all runs, so that they compare. With this number Ginkgo begins early with those of the 141 that take four
 * minutes each, instead of waiting for them at the end.
 */
const seed = 55;
/** The suite deletes its namespaces when it is asked to stop. */
const stopSeconds = 60;

export async function runSpecs(options: RunOptions, signal?: AbortSignal): Promise<SuiteRun> {
  const { programs, out, choice, report } = options;
  mkdirSync(out, { recursive: true });
  const reportFile = join(out, 'report.json');
  rmSync(reportFile, { force: true });
  const supervisor = createSupervisor({ dir: join(out, 'processes'), report });
  const places = watchPlaces(options.cluster);
  const started = Date.now();
  const seconds = () => Math.round((Date.now() - started) / 1000);
  try {
    await places.synced(signal);
    const ginkgo = await supervisor.start(
      {
        name: 'e2e',
        job: true,
        stopTimeoutSeconds: stopSeconds,
        command: programs.ginkgo,
        args: [
          'run',
          `--procs=${options.procs}`,
          `--seed=${seed}`,
          `--timeout=${options.timeoutSeconds}s`,
          '--no-color',
          '--silence-skips',
          ...choice.focus.map((focus) => `--focus=${focus}`),
          ...(choice.skip === undefined ? [] : [`--skip=${choice.skip}`]),
          '--json-report=report.json',
          `--output-dir=${out}`,
          programs.e2eTest,
          '--',
          `--kubeconfig=${options.kubeconfigPath}`,
          `--kubectl-path=${options.kubectl}`,
          '--provider=skeleton',
        ],
        cwd: out,
      },
      signal,
    );
    let over = false;
    const ended = ginkgo.ended.then(() => {
      over = true;
    });
    const stop = () => void ginkgo.stop();
    signal?.addEventListener('abort', stop, { once: true });
    for (let said = ''; !over; ) {
      const nap = new AbortController();
      const woken = () => nap.abort();
      void ended.then(woken);
      await sleep(progressSeconds * 1000, undefined, { signal: nap.signal }).catch(() => undefined);
      const { total, done, failed } = progressOf(readFileSync(ginkgo.logFile, 'utf8'));
      const line = `${done} of ${total ?? '?'} specs done${failed > 0 ? `, ${failed} failed` : ''}`;
      if (line !== said) report(`${line} (${seconds()} s)`);
      said = line;
    }
    signal?.removeEventListener('abort', stop);
    signal?.throwIfAborted();
    const log = join(out, 'e2e.log');
    writeFileSync(log, readFileSync(ginkgo.logFile));
    const suites = readReport(reportFile, ginkgo.logFile);
    return {
      outcome: outcomeOf(suites, options.selected, options.profile),
      podsByNode: places.counted(),
      seconds: seconds(),
    };
  } finally {
    places.stop();
    await supervisor.stop();
    rmSync(join(out, 'processes'), { recursive: true, force: true });
  }
}

function readReport(file: string, log: string): GinkgoSuite[] {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as GinkgoSuite[];
  } catch (error) {
    throw new Error(`the suite left no report (${(error as Error).message}); it said last:\n${logTail(log)}`);
  }
}

interface Pod extends KubeObject {
  spec?: { nodeName?: string };
}

/** The suite's namespaces end in a number; pods in others were there before. */
const isOfSuite = (namespace: string | undefined): boolean => namespace !== undefined && /-\d+$/.test(namespace);

/** Where pods of the suite are bound: it deletes them, so they are watched. */
function watchPlaces(cluster: Cluster) {
  const stop = new AbortController();
  const nodeOf = new Map<string, string>();
  const pods = createInformer<Pod>({
    cluster,
    resource: resources.pods,
    trim: ({ metadata: { name, namespace, uid, resourceVersion }, spec }) => ({
      metadata: { name, namespace, uid, resourceVersion },
      spec: { nodeName: spec?.nodeName },
    }),
  });
  pods.onChange(({ object: { metadata, spec } }) => {
    if (spec?.nodeName && isOfSuite(metadata.namespace)) nodeOf.set(metadata.uid ?? '', spec.nodeName);
  });
  void pods.run(stop.signal);
  return {
    synced: (signal?: AbortSignal) => pods.waitForSync(signal),
    counted(): PodsByNode {
      const counts: Record<string, number> = {};
      for (const node of nodeOf.values()) counts[node] = (counts[node] ?? 0) + 1;
      return counts;
    },
    stop: () => stop.abort(),
  };
}
