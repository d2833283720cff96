#!/usr/bin/env node
import { UsageError } from './options.ts';
import { runSponsor } from './run-sponsor.ts';

runSponsor(process.argv.slice(2), process.env, (text) => process.stdout.write(text)).catch((error: Error) => {
  process.stderr.write(`${error instanceof UsageError ? error.message : (error.stack ?? error.message)}\n`);
  process.exit(error instanceof UsageError ? 2 : 1);
});
