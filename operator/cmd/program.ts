/** What every long-running program does with its end: 2 for what was given wrongly, 1 for what went wrong. */
import { UsageError } from './options.ts';

export function runProgram(run: (args: readonly string[], env: NodeJS.ProcessEnv) => Promise<void>): void {
  run(process.argv.slice(2), process.env).catch((error: Error) => {
    const plain = error instanceof UsageError || ('terminal' in error && error.terminal === true);
    process.stderr.write(`${plain ? error.message : (error.stack ?? error.message)}\n`);
    process.exit(error instanceof UsageError ? 2 : 1);
  });
}
