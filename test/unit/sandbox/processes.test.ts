import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  createSupervisor,
  endLeftovers,
  freePorts,
  identityOf,
  type ProcessError,
} from '../../../operator/sandbox/processes.ts';

let dir: string;
const lines: string[] = [];
const report = (line: string) => lines.push(line);
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'gpulease-processes-'));
  lines.length = 0;
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const alive = (pid: number) => identityOf(pid) !== undefined;
const shell = (name: string, script: string) => ({ name, command: '/bin/sh', args: ['-c', script] });
async function until(holds: () => boolean): Promise<void> {
  for (let i = 0; i < 400 && !holds(); i++) await sleep(25);
  expect(holds()).toBe(true);
}

describe('a supervisor', () => {
  it('waits until a program is ready', async () => {
    const supervisor = createSupervisor({ dir, report });
    let asked = 0;
    await supervisor.start({ ...shell('slow', 'exec sleep 100'), ready: async () => ++asked === 3 });
    expect(asked).toBe(3);
    await supervisor.stop();
  });

  it('shows the end of the log of a program that ends before it is ready', async () => {
    const supervisor = createSupervisor({ dir, report });
    const start = supervisor.start({
      ...shell('broken', 'echo the port is taken >&2; exit 3'),
      ready: async () => false,
    });
    await expect(start).rejects.toThrow(/broken ended before it was ready \(exit code 3\)[\s\S]*the port is taken/);
    await supervisor.stop();
  });

  it('says that a program which does not exist could not be started', async () => {
    const supervisor = createSupervisor({ dir, report });
    const start = supervisor.start({ name: 'absent', command: '/does/not/exist', args: [] });
    await expect(start).rejects.toThrow('absent ended before it was ready (could not be started)');
    await supervisor.stop();
  });

  it('ends a program that does not become ready in time', async () => {
    const supervisor = createSupervisor({ dir, report });
    const never = {
      ...shell('never', 'echo $$ >"$0"; exec sleep 100'),
      ready: async () => false,
      readyTimeoutSeconds: 0.3,
    };
    const pidFile = join(dir, 'pid');
    await expect(supervisor.start({ ...never, args: [...never.args, pidFile] })).rejects.toThrow(
      'was not ready after 0.3 s',
    );
    expect(alive(Number(readFileSync(pidFile, 'utf8')))).toBe(false);
    await supervisor.stop();
  });

  it('reports a program that ends by itself, once it was ready', async () => {
    const crashes: ProcessError[] = [];
    const supervisor = createSupervisor({ dir, report, onCrash: (error) => crashes.push(error) });
    await supervisor.start(shell('fragile', 'sleep 0.2; echo out of memory; exit 9'));
    await until(() => crashes.length === 1);
    expect(crashes[0]?.message).toMatch(/fragile ended by itself \(exit code 9\)\n.*out of memory/);
    expect(lines).toHaveLength(1);
    await supervisor.stop();
  });

  it('does not call a wanted end a crash, and starts the program again as it was', async () => {
    const crashes: ProcessError[] = [];
    const supervisor = createSupervisor({ dir, report, onCrash: (error) => crashes.push(error) });
    const program = await supervisor.start(shell('steady', 'exec sleep 100'));
    const first = program.pid;
    await program.kill();
    expect(program.running).toBe(false);
    await program.restart();
    expect(program.running).toBe(true);
    expect(program.pid).not.toBe(first);
    await supervisor.stop();
    expect(crashes).toEqual([]);
  });

  it('stops in the reverse order of starting, and kills what does not listen', async () => {
    const supervisor = createSupervisor({ dir, report });
    const note = (name: string) => `trap 'echo ${name} >>${dir}/order; exit 0' TERM; while :; do sleep 0.02; done`;
    await supervisor.start(shell('first', note('first')));
    await supervisor.start({ ...shell('deaf', "trap '' TERM; while :; do sleep 0.02; done"), stopTimeoutSeconds: 0.2 });
    await supervisor.start(shell('last', note('last')));
    const pids = Object.values(supervisor.pids);
    await sleep(100); // until the shells have set their traps
    await supervisor.stop();
    expect(readFileSync(join(dir, 'order'), 'utf8')).toBe('last\nfirst\n');
    expect(pids.map(alive)).toEqual([false, false, false]);
  });

  it('ends the children of its programs too', async () => {
    const supervisor = createSupervisor({ dir, report });
    const pidFile = join(dir, 'child');
    await supervisor.start(shell('parent', `sleep 100 & echo $! >${pidFile}; wait`));
    await until(() => readdirSync(dir).includes('child'));
    const child = Number(readFileSync(pidFile, 'utf8'));
    await supervisor.stop();
    await until(() => !alive(child));
  });
});

describe('when the process that supervises is killed outright', () => {
  const script = (folder: string) => `
    import { createSupervisor } from ${JSON.stringify(resolve('operator/sandbox/processes.ts'))};
    const supervisor = createSupervisor({ dir: ${JSON.stringify(folder)}, report: () => undefined });
    const program = await supervisor.start({ name: 'orphan', command: 'sleep', args: ['1000'] });
    console.log(program.pid);
    setInterval(() => undefined, 1000);
  `;
  async function startParent(): Promise<{ parent: ReturnType<typeof spawn>; orphan: number }> {
    writeFileSync(join(dir, 'parent.ts'), script(dir));
    const parent = spawn(process.execPath, [join(dir, 'parent.ts')], { stdio: ['ignore', 'pipe', 'inherit'] });
    const orphan = await new Promise<number>((done) => parent.stdout?.once('data', (text) => done(Number(text))));
    expect(alive(orphan)).toBe(true);
    return { parent, orphan };
  }

  it('its programs end with it', async () => {
    const { parent, orphan } = await startParent();
    parent.kill('SIGKILL');
    await until(() => !alive(orphan));
  });

  it.runIf(process.platform === 'linux')('the next start ends them if the guardian was killed as well', async () => {
    const { parent, orphan } = await startParent();
    const children = readFileSync(`/proc/${parent.pid}/task/${parent.pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .map(Number);
    for (const guardian of children.filter((pid) => pid !== orphan)) process.kill(guardian, 'SIGKILL');
    parent.kill('SIGKILL');
    await until(() => !alive(parent.pid ?? 0));
    expect(alive(orphan)).toBe(true);
    await endLeftovers(dir, report);
    expect(lines).toEqual([`ending orphan (process ${orphan}), left behind by an earlier run`]);
    expect(alive(orphan)).toBe(false);
  });

  it('a folder that is in use is not taken over', async () => {
    const { parent, orphan } = await startParent();
    await expect(endLeftovers(dir, report)).rejects.toThrow(`${dir} is in use by process ${parent.pid}`);
    parent.kill('SIGTERM');
    await until(() => !alive(orphan));
  });

  it('a process that only has the number of one on record is left alone', async () => {
    const { parent, orphan } = await startParent();
    const [folder = ''] = readdirSync(join(dir, 'pids'));
    const record = readFileSync(join(dir, 'pids', folder, 'orphan.json'), 'utf8');
    parent.kill('SIGKILL');
    await until(() => !alive(orphan));
    await until(() => readdirSync(join(dir, 'pids')).length === 0);
    const bystander = spawn('sleep', ['100']);
    execFileSync('mkdir', ['-p', join(dir, 'pids', folder)]);
    writeFileSync(join(dir, 'pids', folder, 'orphan.json'), record.replace(String(orphan), String(bystander.pid)));
    await endLeftovers(dir, report);
    expect(alive(bystander.pid ?? 0)).toBe(true);
    bystander.kill('SIGKILL');
  });
});

it('finds ports that are free, different, and no outgoing connection’s', async () => {
  const ports = await freePorts(200);
  expect(new Set(ports).size).toBe(200);
  // https://docs.kernel.org/networking/ip-sysctl.html: ip_local_port_range begins at 32768 unless somebody changed it.
  expect(Math.max(...ports)).toBeLessThan(32_768);
});
