#!/usr/bin/env node
import { text } from 'node:stream/consumers';

/**
 * What runs until it is told to stop, or does one job on a chain: programs of their own, with flags of their own. Each is read
 * when it is needed: a relay knows no chain and no cluster.
 */
const programs: Readonly<Record<string, () => Promise<unknown>>> = {
  operator: () => import('./operator.ts'),
  gateway: () => import('./gateway.ts'),
  wallet: () => import('./wallet.ts'),
  approver: () => import('./approver.ts'),
  provisioner: () => import('./provisioner.ts'),
  relay: () => import('./relay.ts'),
  sponsor: () => import('./sponsor.ts'),
  drain: () => import('./drain.ts'),
  setup: () => import('./setup.ts'),
  'self-test': () => import('./self-test.ts'),
  'deploy-contracts': () => import('./deploy-contracts.ts'),
};

const [word = '', ...rest] = process.argv.slice(2);
const program = programs[word];
const io = {
  env: process.env,
  stdin: () => text(process.stdin),
  out: (said: string) => void process.stdout.write(said),
  err: (said: string) => void process.stderr.write(said),
};
if (program) {
  process.argv.splice(2, 1); // each reads its arguments as if it had been called itself
  await program();
} else if (word === 'provider' && rest[0] === 'check') {
  const { runProviderCheck } = await import('./provider-check.ts');
  process.exitCode = await runProviderCheck(rest.slice(1), io);
} else {
  const { runGpulease } = await import('./run-gpulease.ts');
  process.exitCode = await runGpulease(process.argv.slice(2), io);
}
