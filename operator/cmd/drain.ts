#!/usr/bin/env node
import { runJob } from './program.ts';
import { runDrain } from './run-drain.ts';

runJob('drain', runDrain);
