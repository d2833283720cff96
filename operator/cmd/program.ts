/** What programs do with their end: 2 for what was given wrongly, 1 for what went wrong. */
import { UsageError } from './options.ts';

/** One that runs until it is told to stop. */
export function runProgram(run: (args: readonly string[], env: NodeJS.ProcessEnv) => Promise<void>): void {
  run(process.argv.slice(2), process.env).catch((error: Error) => {
    const plain = error instanceof UsageError || ('terminal' in error && error.terminal === true);
    process.stderr.write(`${plain ? error.message : (error.stack ?? error.message)}\n`);
    process.exit(error instanceof UsageError ? 2 : 1);
  });
}

type Job = (
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  io: { say(line: string): void },
  signal: AbortSignal,
) => Promise<number>;

/** One that does something and ends by itself, with the status that it resolves with. */
export function runJob(name: string, run: Job): void {
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => stop.abort(new Error(signal)));
  const say = (line: string) => void process.stdout.write(`${line}\n`);
  run(process.argv.slice(2), process.env, { say }, stop.signal).then(
    (status) => {
      process.exitCode = status;
    },
    (error: Error) => {
      process.stderr.write(`${name}: ${error.message}\n`);
      process.exitCode = error instanceof UsageError ? 2 : 1;
    },
  );
}
