#!/usr/bin/env node
import { UsageError } from './options.ts';
import { runSelfTest } from './run-self-test.ts';

const stop = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
const say = (line: string) => void process.stdout.write(`${line}\n`);

runSelfTest(process.argv.slice(2), process.env, { say }, stop.signal).then(
  (status) => {
    process.exitCode = status;
  },
  (error: Error) => {
    process.stderr.write(`self-test: ${error.message}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  },
);
