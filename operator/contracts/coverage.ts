/**
 * Which branches of the contracts the tests take. Measured in a copy that is compiled for it: without the optimizer, which
 * melts branches together. Fuzzed invariants and gas do not count; what they take, a test of its own must take as well.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { copyProject, runForge } from './forge.ts';

export interface Coverage {
  readonly contract: string;
  readonly lines: Share;
  readonly functions: Share;
  readonly branches: Share;
  /** Lines with a branch that no test takes. */
  readonly missed: readonly number[];
}
interface Share {
  readonly hit: number;
  readonly found: number;
}

export async function measureCoverage(): Promise<Coverage[]> {
  const copy = await copyProject({ additional_compiler_profiles: undefined, compilation_restrictions: undefined });
  try {
    const { code, stdout, stderr } = await runForge(
      [
        'coverage',
        '--ir-minimum',
        ...['--report', 'lcov', '--report-file', 'lcov.info'],
        ...['--no-match-contract', 'InvariantsTest|GasTest|TracesTest', '--no-match-coverage', '^(test|node_modules)/'],
      ],
      { cwd: copy.folder, env: { FOUNDRY_FUZZ_RUNS: '64' } },
    );
    const report = await readFile(join(copy.folder, 'lcov.info'), 'utf8').catch(() => undefined);
    if (code !== 0 || report === undefined)
      throw new Error(`forge coverage failed:\n${(stderr + stdout).slice(-3000)}`);
    return readLcov(report);
  } finally {
    await copy.remove();
  }
}

/** Format: geninfo(1) of lcov. */
export function readLcov(report: string): Coverage[] {
  return report
    .split('end_of_record')
    .filter((record) => record.includes('SF:'))
    .map((record) => {
      const number = (key: string) => Number(new RegExp(`^${key}:(\\d+)$`, 'm').exec(record)?.[1] ?? 0);
      const share = (key: string) => ({ hit: number(`${key}H`), found: number(`${key}F`) });
      const missed = [...record.matchAll(/^BRDA:(\d+),\d+,\d+,(?:0|-)$/gm)].map(([, line]) => Number(line));
      return {
        contract: /^SF:(.*)$/m.exec(record)![1]!,
        lines: share('L'),
        functions: share('FN'),
        branches: share('BR'),
        missed: [...new Set(missed)],
      };
    });
}
