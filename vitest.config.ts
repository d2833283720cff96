import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

/** Unit tests run side by side; integration tests share two cores and real processes, so they run one file at a time. */
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/unit/**/*.test.ts', 'test/simulation/**/*.test.ts'],
          testTimeout: 20_000,
          // One less than there are cores would leave one of two idle.
          maxWorkers: Math.max(2, availableParallelism() - 1),
        },
      },
      {
        test: {
          name: 'integration',
          globalSetup: ['test/support/clusters.ts'],
          include: ['test/conformance/**/*.test.ts', 'test/integration/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 120_000,
          hookTimeout: 1_800_000,
        },
      },
    ],
  },
});
