#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runGateway } from './run-gateway.ts';

runProgram(runGateway);
