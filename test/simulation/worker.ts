/** Runs seeds that its parent names, one at a time, until it hears no more. */
import { type Options, simulate } from './simulate.ts';

process.on('message', async ({ seed, plant }: { seed: number; plant?: Options['plant'] }) => {
  const startedMs = performance.now();
  try {
    const outcome = await simulate(seed, { plant });
    process.send?.({ outcome, ms: performance.now() - startedMs });
  } catch (error) {
    process.send?.({ seed, error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  }
});
process.on('disconnect', () => process.exit(0));
