#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runApprover } from './run-approver.ts';

runProgram(runApprover);
