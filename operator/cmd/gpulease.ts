#!/usr/bin/env node
import { text } from 'node:stream/consumers';
import { runGpulease } from './run-gpulease.ts';

process.exitCode = await runGpulease(process.argv.slice(2), {
  env: process.env,
  stdin: () => text(process.stdin),
  out: (said) => void process.stdout.write(said),
  err: (said) => void process.stderr.write(said),
});
