#!/usr/bin/env node
/** `npm run e2e`: image and charts as they ship, on two clusters of kind, from installation to removal. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Lab, startLab, takeDown } from '../../test/e2e/lab.ts';
import { Helm } from '../../test/e2e/release.ts';
import { type Figures, steps } from '../../test/e2e/steps.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { ensureHelm } from '../sandbox/tools/helm.ts';
import { parseOptions, text, UsageError } from './options.ts';

const usage = `
Builds the image, creates a consumer's and a provider's cluster with kind, installs both charts with Helm, and does with them
what people do: examples, helm test, upgrade and uninstallation under a live lease, reinstallation. The last line is JSON.

  npm run e2e                      everything, and clears up; most of the first time on a machine is compiling
  npm run e2e -- --keep            leaves the clusters as they are at the end, and says how to reach them
  npm run e2e -- --reuse --keep    takes the clusters that an earlier --keep left
  npm run e2e -- --only install    up to this step
  npm run e2e -- --from v0.1.0     upgrades from this commit's image and charts; --from none: from none
  npm run e2e -- --down            removes what was kept or left behind
  npm run e2e -- --list            names the steps

What it needs it brings, and names first. Docker: the machine's, or on Debian as root a daemon of its own beside it. The node
image: upstream's where it can be pulled, else one made of Debian packages and Go modules. No registry is needed.

First comes the version before: image and charts of the last release (tag v…), or of the commit before this tree's. All else
is done with this tree's, which they are upgraded to. Without Git's history these are upgraded to themselves, which is said.

Exit status: 0 all steps passed; 1 one failed, which is named, with what the cluster says; 2 the command was not understood.
`;

const declared = {
  keep: { description: 'Leave the clusters.', parse: () => true },
  reuse: { description: 'Take clusters that are there.', parse: () => true },
  only: text('Steps up to this one.', 'STEP'),
  from: text('Commit or tag to upgrade from; none: this tree is upgraded to itself.', 'REVISION'),
  down: { description: 'Remove clusters, and nothing else.', parse: () => true },
  list: { description: 'Name the steps.', parse: () => true },
  dir: text(
    'For kubeconfigs, archives and the device plugin.',
    'DIR',
    join(tmpdir(), `gpulease-e2e-${process.getuid?.() ?? 0}`),
  ),
};

const started = Date.now();
const elapsed = () => (Date.now() - started) / 1000;
const tenth = (seconds: number) => Math.round(seconds * 10) / 10;
const report = (line: string) => console.log(`${elapsed().toFixed(1).padStart(7)} s  ${line}`);

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  if (options.list) {
    for (const { name, what } of steps) console.log(`${name.padEnd(12)}${what}`);
    return;
  }
  if (options.down) return takeDown(options.dir, report);
  const last = options.only === undefined ? steps.length - 1 : steps.findIndex(({ name }) => name === options.only);
  if (last < 0) throw new UsageError(`--only ${options.only}: no step is called so; see --list`);

  const abort = new AbortController();
  let lab: Lab | undefined;
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    report('clearing up');
    await (lab ? lab.stop(options.keep ?? false) : options.keep ? undefined : takeDown(options.dir, () => undefined));
  }, report);
  const passed: Record<string, Figures & { seconds: number }> = {};
  let failed: { step: string; why: string } | undefined;
  let step = 'clusters';
  try {
    const helm = await ensureHelm({ report }, abort.signal);
    lab = await startLab({
      dir: options.dir,
      report,
      signal: abort.signal,
      reuse: options.reuse ?? false,
      from: options.from,
    });
    passed.clusters = { seconds: tenth(elapsed()) };
    const bench = { lab, helm: new Helm(helm, options.dir) };
    for (const one of steps.slice(0, last + 1)) {
      step = one.name;
      const since = elapsed();
      report(`${one.name}: ${one.what}`);
      const figures = await one.run(bench);
      passed[one.name] = { ...figures, seconds: tenth(elapsed() - since) };
      report(`${one.name} passed in ${passed[one.name]!.seconds} s ${figures ? JSON.stringify(figures) : ''}`);
    }
  } catch (error) {
    if (abort.signal.aborted) return;
    failed = { step, why: (error as Error).message };
    report(`${step} FAILED: ${failed.why}`);
    process.exitCode = 1;
  } finally {
    if (!abort.signal.aborted) {
      off();
      if (options.keep) {
        await lab?.stop(true);
        if (lab)
          report(
            `kept: KUBECONFIG=${lab.consumer.kubeconfig} and ${lab.provider.kubeconfig}; npm run e2e -- --down removes them`,
          );
      } else {
        report('clearing up');
        await (lab ? lab.stop(false) : takeDown(options.dir, () => undefined)).catch((error: Error) =>
          report(`while clearing up: ${error.message}`),
        );
      }
    }
  }
  console.log(
    JSON.stringify({
      passed: Object.keys(passed).length,
      failed: failed && { step: failed.step, why: failed.why.slice(0, 2000) },
      image: lab && {
        digest: lab.current.built.digest,
        megabytesOverBase: tenth((lab.current.built.bytes - lab.current.built.baseBytes) / 1e6),
        baseIsStandIn: lab.current.built.baseIsStandIn,
      },
      upgradedFrom: lab && ('none' in lab.previous ? null : lab.previous.called),
      steps: passed,
      seconds: tenth(elapsed()),
    }),
  );
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
