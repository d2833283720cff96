/**
 * A Docker daemon for kind: the machine's, or where none answers one of our own, from Debian's package, with its own socket,
 * data and networks beside whatever else is on the machine. Ours outlives this process (clusters may be kept) until `stop`.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { command, ensurePrograms, whereIs } from '../command.ts';
import { MACHINE_FOLDER } from '../lock.ts';
import { identityOf, logTail, type Report } from '../processes.ts';
import { cacheFolder } from '../tools/tools.ts';

export interface Docker {
  /** For programs that call docker themselves: which daemon, and a `docker` that this machine can follow. */
  readonly env: Readonly<Record<string, string>>;
  /** Started by us, now or in an earlier run. */
  readonly ours: boolean;
  run(
    args: readonly string[],
    options?: { timeoutSeconds?: number; signal?: AbortSignal; input?: string },
  ): Promise<string>;
  /** Ends a daemon of ours; another's is left alone. */
  stop(): Promise<void>;
}

const folder = join(MACHINE_FOLDER, 'docker');
const socket = `unix://${folder}/docker.sock`;
const record = join(folder, 'daemon.json');

export async function ensureDocker(report: Report, signal?: AbortSignal): Promise<Docker> {
  if (await answers({}, signal)) return dockerAt({}, false);
  if (!whereIs('dockerd')) {
    const why = 'no Docker daemon answers (DOCKER_HOST, /var/run/docker.sock)';
    if (process.getuid?.() !== 0)
      throw new Error(`${why}: start one, or run this as root on Debian, which brings its own`);
    report(`${why}: starting one beside it`);
  }
  await ensurePrograms('a Docker daemon', { dockerd: 'docker.io', iptables: 'iptables' }, report, signal);
  const env = { DOCKER_HOST: socket };
  if (!(await answers(env, signal))) await startDaemon(report, signal);
  return dockerAt(env, true);
}

async function startDaemon(report: Report, signal?: AbortSignal): Promise<void> {
  const data = join(dirname(cacheFolder()), 'docker');
  mkdirSync(data, { recursive: true });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  await mountSystemdHierarchy(signal);
  mkdirSync('/lib/modules', { recursive: true }); // which nodes are shown; a kernel without modules has none
  const logFile = join(folder, 'dockerd.log');
  rmSync(join(folder, 'dockerd.pid'), { force: true });
  const log = openSync(logFile, 'w', 0o600);
  const child = spawn(
    whereIs('dockerd')!,
    [
      ...[
        '--host',
        socket,
        '--data-root',
        data,
        '--exec-root',
        join(folder, 'exec'),
        '--pidfile',
        join(folder, 'dockerd.pid'),
      ],
      // Beside another daemon of the machine: a bridge with its own name would need its own address, and nobody uses it.
      ...['--bridge', 'none'],
    ],
    {
      detached: true,
      stdio: ['ignore', log, log],
      env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
    },
  );
  child.unref();
  let failed: Error | undefined;
  child.once('error', (error) => {
    failed = error;
  });
  const identity = child.pid === undefined ? undefined : identityOf(child.pid);
  writeFileSync(record, JSON.stringify({ pid: child.pid, identity }));
  for (const deadline = Date.now() + 300_000; ; ) {
    if (await answers({ DOCKER_HOST: socket }, signal)) break;
    const gone = child.exitCode !== null || failed !== undefined;
    if (gone || Date.now() > deadline)
      throw new Error(
        `dockerd ${gone ? 'ended' : 'did not answer within five minutes'}; its log is ${logFile}\n${logTail(logFile)}`,
      );
    await sleep(200, undefined, { signal });
  }
  report(`started a Docker daemon of our own (${socket})`);
}

/** systemd in a node needs its named hierarchy, which a machine with control groups v1 and without systemd lacks. */
async function mountSystemdHierarchy(signal?: AbortSignal): Promise<void> {
  if (existsSync('/sys/fs/cgroup/cgroup.controllers')) return; // v2
  const mounted = readFileSync('/proc/self/mounts', 'utf8').includes(' /sys/fs/cgroup/systemd ');
  if (mounted) return;
  mkdirSync('/sys/fs/cgroup/systemd', { recursive: true });
  await command('mount', ['-t', 'cgroup', '-o', 'none,name=systemd', 'cgroup', '/sys/fs/cgroup/systemd'], { signal });
}

async function answers(env: Readonly<Record<string, string>>, signal?: AbortSignal): Promise<boolean> {
  if (!whereIs('docker')) return false;
  return command('docker', ['info', '--format', '{{.ServerVersion}}'], { env, timeoutSeconds: 20, signal }).then(
    (said) => said.trim() !== '',
    () => {
      signal?.throwIfAborted();
      return false;
    },
  );
}

function dockerAt(host: Readonly<Record<string, string>>, ours: boolean): Docker {
  const shim = writeStandIn();
  const env = { ...host, ...(shim && { PATH: `${shim}:${process.env.PATH}` }) };
  return {
    env,
    ours,
    run: (args, { timeoutSeconds, signal, input } = {}) =>
      command(shim ? join(shim, 'docker') : 'docker', args, { env, timeoutSeconds, signal, input }),
    async stop() {
      if (!ours || !existsSync(record)) return;
      const { pid, identity } = JSON.parse(readFileSync(record, 'utf8')) as { pid: number; identity: string };
      if (identityOf(pid) !== identity) return;
      process.kill(pid, 'SIGTERM');
      for (let tries = 0; identityOf(pid) === identity && tries < 150; tries++) await sleep(100);
      if (identityOf(pid) === identity) process.kill(pid, 'SIGKILL');
      rmSync(record, { force: true });
    },
  };
}

const CAPABILITIES =
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE'.split(
    ' ',
  );

/** Capabilities that this machine gives to nobody, root included, by the kernel's numbers. */
export function capabilitiesMissing(bounding: bigint, last: number): string[] {
  return CAPABILITIES.slice(0, last + 1).filter((_, number) => ((bounding >> BigInt(number)) & 1n) === 0n);
}

/**
 * What `docker ARGS` is to be on a machine that lacks some capability: `--privileged` asks for every one there is, which
 * runc refuses there. So it is spelt out, without those that cannot be had.
 */
export function withoutPrivileged(args: readonly string[], missing: readonly string[], hasFuse: boolean): string[] {
  return args.flatMap((arg) => {
    if (arg !== '--privileged') return [arg];
    if (args[0] !== 'run') return []; // exec: it has what its container has
    return [
      ...['--cap-add', 'ALL', ...missing.flatMap((name) => ['--cap-drop', name])],
      ...['--security-opt', 'systempaths=unconfined', '--security-opt', 'seccomp=unconfined'],
      ...['--security-opt', 'apparmor=unconfined', '--device-cgroup-rule', 'a *:* rwm', '--device', '/dev/kmsg'],
      ...(hasFuse ? ['--device', '/dev/fuse'] : []),
    ];
  });
}

/** A folder with a `docker` that can be asked for `--privileged`, or undefined: this machine's own can. */
function writeStandIn(): string | undefined {
  if (process.platform !== 'linux') return undefined;
  const bounding = BigInt(`0x${/^CapBnd:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`);
  const last = Number(readFileSync('/proc/sys/kernel/cap_last_cap', 'utf8'));
  const missing = capabilitiesMissing(bounding, last);
  if (missing.length === 0) return undefined;
  const real = whereIs('docker')!;
  const at = join(folder, 'stand-in');
  mkdirSync(at, { recursive: true });
  const module = import.meta.filename;
  const script = `#!${process.execPath}
import { spawnSync } from 'node:child_process';
import { withoutPrivileged } from ${JSON.stringify(module)};
const args = withoutPrivileged(process.argv.slice(2), ${JSON.stringify(missing)}, ${existsSync('/dev/fuse')});
const { status, signal, error } = spawnSync(${JSON.stringify(real)}, args, { stdio: 'inherit' });
if (error) throw error;
if (signal) process.kill(process.pid, signal);
process.exit(status ?? 1);
`;
  writeFileSync(join(at, 'package.json'), '{"type":"module"}');
  writeFileSync(join(at, 'docker'), script, { mode: 0o755 });
  return at;
}
