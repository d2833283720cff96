/** An operator and a gateway of an earlier commit are replaced by today's, with pods running. */
import { execFile } from 'node:child_process';
import { mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { root } from '../lab.ts';
import { podsAtProvider } from '../pods.ts';
import { expect, type Scenario } from '../scenario.ts';

const run = promisify(execFile);
const git = async (...args: string[]) =>
  (await run('git', ['--no-optional-locks', '-C', root, ...args], { maxBuffer: 64 << 20 })).stdout.trim();

/** The last commit whose programs differ from those here: the one before the last that changed them, or the last itself. */
export async function earlierCommit(): Promise<string> {
  const [last, before] = (await git('log', '-2', '--format=%H', '--', 'operator')).split('\n');
  const changed = (await git('status', '--porcelain', '--', 'operator')) !== '';
  const commit = changed ? last : before;
  if (!commit) throw new Error('there is no earlier commit');
  return commit;
}

/** Its files, beside today's packages. Nothing of it is written into the repository. */
async function checkOut(commit: string, dir: string): Promise<string> {
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const archive = join(dir, 'files.tar');
  await git('archive', '--output', archive, commit, 'operator', 'package.json');
  await run('tar', ['-xf', archive, '-C', dir]);
  symlinkSync(join(root, 'node_modules'), join(dir, 'node_modules'));
  return dir;
}

export const upgrade: Scenario[] = [
  {
    name: 'upgrade',
    broke: 'operator and gateway of the commit before, replaced by these while pods run',
    needs: 'git',
    async run(lab, clock) {
      const commit = await earlierCommit();
      const old = await checkOut(commit, join(lab.sandbox.dir, 'earlier'));
      const before = await podsAtProvider(lab);
      const { operator, gateway } = lab.sandbox;
      lab.useOperatorCode(join(old, 'operator/cmd/operator.ts'));
      lab.useGatewayCode(join(old, 'operator/cmd/gateway.ts'));
      await gateway.restart();
      await operator.restart();
      await clock.wanted();
      lab.useOperatorCode(undefined);
      lab.useGatewayCode(undefined);
      await gateway.restart();
      await operator.restart();
      clock.mended();
      await clock.wanted();
      const after = await podsAtProvider(lab);
      expect(JSON.stringify(after) === JSON.stringify(before), 'pods changed during the upgrade');
      rmSync(old, { recursive: true, force: true });
      clock.note(`from ${commit.slice(0, 7)}, ${after.length} pods untouched`);
    },
  },
];
