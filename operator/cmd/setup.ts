#!/usr/bin/env node
import { runJob } from './program.ts';
import { runSetup } from './run-setup.ts';

runJob('setup', async (...given) => {
  await runSetup(...given);
  return 0;
});
