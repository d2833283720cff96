#!/usr/bin/env node
import { UsageError } from './options.ts';
import { runGateway } from './run-gateway.ts';

runGateway(process.argv.slice(2), process.env).catch((error: Error) => {
  const plain = error instanceof UsageError || ('terminal' in error && error.terminal === true);
  process.stderr.write(`${plain ? error.message : (error.stack ?? error.message)}\n`);
  process.exit(error instanceof UsageError ? 2 : 1);
});
