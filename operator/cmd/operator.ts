#!/usr/bin/env node
import { UsageError } from './options.ts';
import { runOperator } from './run-operator.ts';

runOperator(process.argv.slice(2), process.env).catch((error: Error) => {
  process.stderr.write(`${error instanceof UsageError ? error.message : (error.stack ?? error.message)}\n`);
  process.exit(error instanceof UsageError ? 2 : 1);
});
