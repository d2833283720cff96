import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';
import { cpuSeconds, memoryOf, statOf } from '../../bench/processes.ts';

test('a name with brackets and blanks does not move the fields', () => {
  const line = '77 (a) b (c) S 5 77 77 0 -1 4194560 1 2 3 4 120 30 7 3 20 0 1 0 99 1000 10';
  expect(statOf(77, () => line)).toEqual({ parent: 5, seconds: 1.6 });
});

test('a process that has ended has used nothing', () => {
  expect(statOf(2 ** 30)).toBeUndefined();
  expect(cpuSeconds([2 ** 30])).toBe(0);
});

test('what a process has started counts to it', async () => {
  const burn = 'while (process.cpuUsage().user < 400_000); process.stdin.resume()';
  const script = `require('node:child_process').spawn(process.execPath, ['-e', ${JSON.stringify(burn)}], { stdio: ['pipe', 'inherit', 'inherit'] }); process.stdin.resume()`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['pipe', 'ignore', 'inherit'] });
  try {
    const deadline = Date.now() + 15_000;
    while (cpuSeconds([child.pid!]) < 0.35 && Date.now() < deadline)
      await new Promise((resolve) => setTimeout(resolve, 50));
    const alone = statOf(child.pid!)!.seconds;
    expect(cpuSeconds([child.pid!]) - alone).toBeGreaterThan(0.2);
  } finally {
    child.stdin.end();
    child.kill();
    await once(child, 'close');
  }
});

test('memory is told in bytes, and its peak is no less', () => {
  const { resident, peak } = memoryOf(process.pid);
  expect(Math.abs(resident / process.memoryUsage.rss() - 1)).toBeLessThan(0.2);
  expect(peak).toBeGreaterThanOrEqual(resident);
});
