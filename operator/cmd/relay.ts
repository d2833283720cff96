#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runRelay } from './run-relay.ts';

runProgram(runRelay);
