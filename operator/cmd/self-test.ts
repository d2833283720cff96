#!/usr/bin/env node
import { runJob } from './program.ts';
import { runSelfTest } from './run-self-test.ts';

runJob('self-test', runSelfTest);
