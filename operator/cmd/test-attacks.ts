#!/usr/bin/env node
/** `npm run test:attacks`: attacks a sandbox of the real parts as a passer-by, a consumer, a pod and a provider would. */
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Attack, attackAll, type Row, type Who } from '../../test/attacks/attack.ts';
import { attacks } from '../../test/attacks/attacks/all.ts';
import { type Lab, startLab } from '../../test/attacks/lab.ts';
import { stopWithSignals } from '../sandbox/processes.ts';
import { parseOptions, text, UsageError } from './options.ts';

const usage = `
Attacks a sandbox of real parts (two control planes, GPU nodes, a chain, operator, gateway): forged and replayed signatures,
malformed and slow HTTP, other tenants, pods in disguise, stolen accounts, providers that lie, relays that name whom they like.
Each must be refused, and after each an honest consumer is still served.

  npm run test:attacks                        all of them
  npm run test:attacks -- --only "a pod"      those whose words contain this
  npm run test:attacks -- --list              names them
`;

const defaultDir = join(tmpdir(), `gpulease-attacks-${process.getuid?.() ?? 0}`);

const declared = {
  only: {
    description: 'Only attacks whose words contain this.',
    value: 'WORDS',
    many: true as const,
    parse: (t: string) => t,
  },
  list: { description: 'Names the attacks and ends.', parse: () => true },
  verbose: { description: 'Shows what the sandbox reports.', parse: () => true },
  dir: text(
    'Where the clusters and logs live while it runs. The default one is removed afterwards.',
    'DIR',
    defaultDir,
  ),
};

const started = Date.now();
const seconds = () => Math.round((Date.now() - started) / 100) / 10;

const line = (who: string, name: string, expected: string, seen: string) =>
  `${who.padEnd(10)}${name.slice(0, 70).padEnd(72)}${expected.slice(0, 40).padEnd(42)}${seen}`;

function show({ attack, verdict, seen, ms }: Row): void {
  const took = ms > 2000 ? ` (${(ms / 1000).toFixed(1)} s)` : '';
  const words = verdict === 'refused' ? seen : `${verdict}: ${seen}`;
  console.log(line(attack.who, attack.name, attack.expected, `${words}${took}`));
}

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const wordsOf = ({ who, name }: Attack) => `${who}: ${name}`;
  const chosen = attacks.filter(
    (attack) => options.only.length === 0 || options.only.some((words) => wordsOf(attack).includes(words)),
  );
  if (options.list) {
    for (const { who, name, expected } of attacks) console.log(line(who, name, expected, ''));
    return;
  }
  if (chosen.length === 0)
    throw new UsageError(`--only ${options.only.join(' ')}: no attack has these words; see --list`);

  const abort = new AbortController();
  let lab: Lab | undefined;
  const off = stopWithSignals(async () => {
    abort.abort(new Error('stopped'));
    await lab?.stop();
  }, console.log);
  const report = (words: string) => {
    if (options.verbose || /^(building|built|installing|installed|waiting)\b/.test(words))
      console.log(`${String(seconds()).padStart(7)} s  ${words}`);
  };
  let rows: Row[] = [];
  let failed: string | undefined;
  try {
    console.log('starting two clusters, a chain, the operator and the gateway');
    lab = await startLab(options.dir, report, abort.signal);
    console.log(`the sandbox is ready after ${seconds()} s\n\n${line('who', 'what', 'expected', 'seen')}`);
    const has = new Set<NonNullable<Attack['needs']>>(['clusters']);
    if (!lab.sandbox.simulated) has.add('containers');
    const before = lab.target.real!.gatewayMemory();
    rows = await attackAll(chosen, lab.target, { has, told: show });
    const grown = (lab.target.real!.gatewayMemory() - before) / 1e6;
    const honest = await lab.target.honest();
    console.log(
      `\nmemory of the gateway: ${grown.toFixed(0)} MB more than before; an honest consumer: ${honest ?? 'is served'}`,
    );
    if (honest !== undefined) failed = honest;
  } catch (error) {
    if (!abort.signal.aborted) failed = (error as Error).message;
  } finally {
    if (!abort.signal.aborted) {
      await lab?.stop();
      off();
    }
  }
  const count = (verdict: Row['verdict']) => rows.filter((row) => row.verdict === verdict).length;
  const by = (who: Who) => rows.filter((row) => row.attack.who === who && row.verdict !== 'skipped').length;
  if (failed !== undefined || count('GOT THROUGH') > 0 || count('refused') === 0) process.exitCode = 1;
  if (process.exitCode === 1) console.log(`logs: ${join(options.dir, 'programs/log')}`);
  else if (options.dir === defaultDir) rmSync(defaultDir, { recursive: true, force: true });
  console.log(
    JSON.stringify({
      attacks: rows.length,
      refused: count('refused'),
      through: rows
        .filter(({ verdict }) => verdict === 'GOT THROUGH')
        .map(({ attack, seen }) => ({ ...nameOf(attack), seen })),
      skipped: count('skipped'),
      by: {
        passerBy: by('passer-by'),
        consumer: by('consumer'),
        pod: by('pod'),
        provider: by('provider'),
        relay: by('relay'),
      },
      ...(failed === undefined ? {} : { failed }),
      seconds: seconds(),
    }),
  );
}

const nameOf = ({ who, name }: Attack) => ({ who, name });

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
