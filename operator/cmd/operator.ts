#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runOperator } from './run-operator.ts';

runProgram(runOperator);
