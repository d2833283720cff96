#!/usr/bin/env node
import { UsageError } from './options.ts';
import { runSetup } from './run-setup.ts';

const stop = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
const say = (line: string) => void process.stdout.write(`${line}\n`);

runSetup(process.argv.slice(2), process.env, { say }, stop.signal).then(
  () => {
    process.exitCode = 0;
  },
  (error: Error) => {
    process.stderr.write(`setup: ${error.message}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  },
);
