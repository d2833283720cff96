#!/usr/bin/env node
/** `npm run sandbox`: everything on one machine, from YAML to refund. Stays up to play with, or ends by itself with --exit. */
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { formatAmount } from '../core/money/amount.ts';
import { statementMarkdown } from '../core/receipt/statement.ts';
import { papersOf, writePapers } from '../sandbox/papers.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { type Sandbox, startSandbox } from '../sandbox/sandbox.ts';
import {
  checkConservation,
  type LeaseFigures,
  minimal,
  namespaceReady,
  offersReady,
  showTables,
  wholeScenario,
} from '../sandbox/scenario.ts';
import { choice, integer, parseOptions, text, UsageError } from './options.ts';

const defaultDir = join(tmpdir(), `gpulease-sandbox-${process.getuid?.() ?? 0}`);

const usage = `
Runs a consumer cluster, a provider cluster with simulated GPUs and a chain on this machine, leases a GPU, runs a pod on it,
pays for the seconds that were served and gets the rest back.

  npm run sandbox                stays up; Ctrl-C ends it and leaves nothing behind
  npm run sandbox -- --exit      serves half a minute, settles, checks every base unit, ends; last line: JSON figures
`;

const declared = {
  exit: { description: 'End by itself, and print figures as one line of JSON.', parse: () => true },
  serveSeconds: integer('With --exit: how long the first lease is served.', 'SECONDS', 10, 3600, 30),
  voucherPeriodSeconds: integer('How often the operator vouches for served seconds.', 'SECONDS', 1, 600, 5),
  split: {
    description: 'Each part a process of its own, under a service account with no more than its rights.',
    parse: () => true,
  },
  via: choice(
    'How the provider is reached. Reverse: its gateway has no port, and dials out to the operator, as behind NAT.',
    ['Direct', 'Reverse'],
    'Direct',
  ),
  papers: text('With --exit: write receipts, statement and FOCUS charges of its leases into this folder.', 'DIR'),
  dir: text(
    'Where the clusters and logs live while it runs. The default one is removed afterwards.',
    'DIR',
    defaultDir,
  ),
};

const started = Date.now();
const report = (line: string) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}`);

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const abort = new AbortController();
  let sandbox: Sandbox | undefined;
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    report('clearing up');
    await sandbox?.stop();
    leaveNothing(options.dir);
  }, report);
  try {
    sandbox = await startSandbox(
      {
        dir: options.dir,
        report,
        voucherPeriodSeconds: options.voucherPeriodSeconds,
        split: options.split === true,
        via: options.via,
      },
      abort.signal,
    );
    if (sandbox.simulated) report('no real node can be had here: pods are simulated');
    if (options.exit) await once(sandbox, options.serveSeconds, options.papers, abort.signal);
    else await stay(sandbox, abort.signal);
  } catch (error) {
    if (abort.signal.aborted) return;
    report(`failed: ${(error as Error).message}`);
    report(`logs: ${join(options.dir, 'programs/log')}`);
    process.exitCode = 1;
  } finally {
    if (!abort.signal.aborted) {
      report('clearing up');
      await sandbox?.stop();
      off();
    }
  }
  if (process.exitCode !== undefined) return; // The logs say why.
  leaveNothing(options.dir);
  if (figures) console.log(JSON.stringify(figures));
}

/** A folder that somebody named may hold more than ours. */
function leaveNothing(dir: string): void {
  if (dir === defaultDir) rmSync(dir, { recursive: true, force: true });
}

let figures: object | undefined;

async function once(
  sandbox: Sandbox,
  serveSeconds: number,
  papersDir: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  const { first, second, native, totals } = await wholeScenario(sandbox, report, serveSeconds, signal);
  for (const [name, bill] of Object.entries({ 'ml/train': first, 'ml/second': second, 'ml/native': native }))
    showBill(sandbox, name, bill);
  const papers = await papersOf(sandbox, signal);
  console.log(`\n${statementMarkdown(papers.statement)}`);
  const unsigned = papers.receipts.filter(({ release }) => !release).map(({ lease }) => lease.name);
  if (unsigned.length > 0) throw new Error(`the provider signed no release for ${unsigned.join(', ')}`);
  report(`${papers.receipts.length} receipts, signed by both sides, each true by signatures, sums and chain`);
  if (papersDir) for (const path of await writePapers(papers, papersDir)) report(`wrote ${path}`);
  if (first.servedSeconds < serveSeconds) throw new Error(`only ${first.servedSeconds} s were served`);
  if (first.vouchers < 3 && serveSeconds >= 30) throw new Error(`only ${first.vouchers} vouchers were given`);
  figures = {
    ...first,
    simulated: sandbox.simulated,
    seconds: Math.round((Date.now() - started) / 100) / 10,
    second,
    native,
    totals,
    receipts: papers.receipts.length,
  };
}

function showBill(sandbox: Sandbox, name: string, bill: LeaseFigures): void {
  const { decimals } = sandbox.deployment.tokens[bill.asset]!;
  const amount = (units: string) => `${formatAmount(BigInt(units), decimals)} ${bill.asset}`;
  console.log(
    `\nBill of ${name}: ${bill.servedSeconds} s served, ${bill.vouchers} vouchers (the node was Ready for ${bill.readySeconds} s)`,
  );
  for (const [what, units] of Object.entries({
    deposit: bill.deposit,
    'paid to the provider': bill.paid,
    'platform fee': bill.fee,
    refunded: bill.refunded,
    held: bill.held,
  }))
    console.log(`  ${what.padEnd(22)}${amount(units)}`);
  console.log(`  gas                   open ${bill.gas.open}, close ${bill.gas.close}, together ${bill.gas.total}`);
}

async function stay(sandbox: Sandbox, signal: AbortSignal): Promise<void> {
  await namespaceReady(sandbox, signal);
  await offersReady(sandbox, signal);
  await minimal(sandbox, report, signal);
  await showTables(sandbox);
  await checkConservation(sandbox);
  console.log(`
The sandbox is up${sandbox.simulated ? ' (pods are simulated)' : ''}. In another terminal:

  export KUBECONFIG=${sandbox.consumer.kubeconfigPath}
  alias kubectl=${sandbox.kubectl}
  kubectl get gpuoffers,gpuleases -A               what is for rent, what is leased, at what price
  kubectl describe gpulease -n ml train            where a lease stands, and what happened
  kubectl logs -n ml hello-gpu -f                  the pod runs in the other cluster
  kubectl exec -n ml -it hello-gpu -- sh           a shell beside the GPU
  kubectl delete gpulease -n ml train              drain, settle, refund

The provider's cluster: ${sandbox.provider.kubeconfigPath}
Logs: ${join(sandbox.dir, 'programs/log')}
Ctrl-C ends it and leaves nothing behind.`);
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
