#!/usr/bin/env node
import { runProgram } from './program.ts';
import { runSponsor } from './run-sponsor.ts';

runProgram((args, env) => runSponsor(args, env, (text) => void process.stdout.write(text)));
