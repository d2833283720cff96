#!/usr/bin/env node
import { text } from 'node:stream/consumers';
import { runProviderCheck } from './provider-check.ts';
import { runGpulease } from './run-gpulease.ts';

const given = process.argv.slice(2);
const io = {
  env: process.env,
  stdin: () => text(process.stdin),
  out: (said: string) => void process.stdout.write(said),
  err: (said: string) => void process.stderr.write(said),
};
process.exitCode =
  given[0] === 'provider' && given[1] === 'check'
    ? await runProviderCheck(given.slice(2), io)
    : await runGpulease(given, io);
