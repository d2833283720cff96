#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runWallet } from './run-wallet.ts';

runProgram(runWallet);
