#!/usr/bin/env node
import { text } from 'node:stream/consumers';

const [word, ...rest] = process.argv.slice(2);
const io = {
  env: process.env,
  stdin: () => text(process.stdin),
  out: (said: string) => void process.stdout.write(said),
  err: (said: string) => void process.stderr.write(said),
};
// Each is read when it is needed: a relay knows no chain and no cluster.
if (word === 'relay') {
  const { runRelay } = await import('./run-relay.ts');
  await runRelay(rest, process.env).catch((error: Error) => {
    process.stderr.write(
      `gpulease relay: ${error.name === 'Error' ? error.message : (error.stack ?? error.message)}\n`,
    );
    process.exitCode = 2;
  });
} else if (word === 'provider' && rest[0] === 'check') {
  const { runProviderCheck } = await import('./provider-check.ts');
  process.exitCode = await runProviderCheck(rest.slice(1), io);
} else {
  const { runGpulease } = await import('./run-gpulease.ts');
  process.exitCode = await runGpulease(
    [word, ...rest].filter((one) => one !== undefined),
    io,
  );
}
