#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runProvisioner } from './run-gateway.ts';

runProgram(runProvisioner);
