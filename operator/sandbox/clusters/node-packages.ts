/**
 * Whether this machine can run a real node, and what it lacks for it. Debian packages are installed where that is possible,
 * and never without naming them first.
 */
import { execFile } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import type { Report } from '../processes.ts';

const run = promisify(execFile);

export type NodePackages =
  | { readonly available: true; readonly programs: NodePrograms }
  | { readonly available: false; readonly reason: string };

export interface NodePrograms {
  readonly containerd: string;
  readonly ctr: string;
  readonly cniBin: string;
  readonly iptables: string;
  /** A static busybox: the contents of the local images. */
  readonly busybox: string;
}

interface Part {
  readonly package: string;
  readonly places: readonly string[];
}

const PARTS = {
  containerd: { package: 'containerd', places: ['/usr/bin/containerd', '/usr/local/bin/containerd'] },
  ctr: { package: 'containerd', places: ['/usr/bin/ctr', '/usr/local/bin/ctr'] },
  runc: { package: 'runc', places: ['/usr/sbin/runc', '/usr/bin/runc', '/usr/local/sbin/runc', '/usr/local/bin/runc'] },
  cniBin: {
    package: 'containernetworking-plugins',
    places: ['/usr/lib/cni/bridge', '/opt/cni/bin/bridge', '/usr/libexec/cni/bridge'],
  },
  iptables: { package: 'iptables', places: ['/usr/sbin/iptables', '/sbin/iptables', '/usr/bin/iptables'] },
  busybox: { package: 'busybox-static', places: ['/bin/busybox', '/usr/bin/busybox'] },
  ip: { package: 'iproute2', places: ['/sbin/ip', '/usr/sbin/ip', '/usr/bin/ip'] },
  nsenter: { package: 'util-linux', places: ['/usr/bin/nsenter', '/bin/nsenter'] },
} as const satisfies Record<string, Part>;

type PartName = keyof typeof PARTS;

let asked: Promise<NodePackages> | undefined;

/** Asks once per process; the answer holds for all nodes. */
export function ensureNodePackages(
  { report }: { readonly report: Report },
  signal?: AbortSignal,
): Promise<NodePackages> {
  asked ??= look(report, signal).catch((error) => {
    asked = undefined;
    throw error;
  });
  return asked;
}

async function look(report: Report, signal?: AbortSignal): Promise<NodePackages> {
  if (process.env.GPULEASE_NODES === 'hollow') return no('GPULEASE_NODES=hollow asks for simulated nodes');
  if (process.platform !== 'linux') return no(`a kubelet needs Linux, this is ${process.platform}`);
  if (process.getuid?.() !== 0) return no('a kubelet and containerd need root');
  const namespaces = await mayMakeNamespaces(signal);
  if (namespaces) return no(namespaces);
  const missing = missingPackages();
  if (missing.length > 0) {
    const problem = await install(missing, report, signal);
    if (problem) return no(problem);
  }
  return { available: true, programs: find() };
}

function no(reason: string): NodePackages {
  return { available: false, reason };
}

/** Root in a container is often root without the right to mount. */
async function mayMakeNamespaces(signal?: AbortSignal): Promise<string | undefined> {
  const script = 'mount -t tmpfs none /mnt && ip link add gplprobe type bridge';
  try {
    await run('unshare', ['--mount', '--net', '--pid', '--fork', 'sh', '-c', script], { signal, timeout: 10_000 });
  } catch (error) {
    if (signal?.aborted) throw error;
    const said = String((error as { stderr?: string }).stderr ?? (error as Error).message)
      .trim()
      .split('\n')
      .at(-1);
    return `this machine does not let us make mount, network and process namespaces (${said})`;
  }
  return cgroupsWritable() ? undefined : 'the control groups of this machine are read-only';
}

function cgroupsWritable(): boolean {
  const root = existsSync('/sys/fs/cgroup/cgroup.controllers') ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory';
  try {
    accessSync(root, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

function placeOf(part: PartName): string | undefined {
  const place = PARTS[part].places.find((path) => existsSync(path));
  // A busybox that needs libraries cannot be the only file of an image.
  if (part === 'busybox' && place && !isStatic(place)) return undefined;
  return place;
}

function missingPackages(): string[] {
  const parts = Object.keys(PARTS) as PartName[];
  return [...new Set(parts.filter((part) => !placeOf(part)).map((part) => PARTS[part].package))];
}

function find(): NodePrograms {
  const must = (part: PartName) => {
    const place = placeOf(part);
    if (!place) throw new Error(`${part} is still missing after its package ${PARTS[part].package} was installed`);
    return place;
  };
  return {
    containerd: must('containerd'),
    ctr: must('ctr'),
    cniBin: must('cniBin').replace(/\/bridge$/, ''),
    iptables: must('iptables'),
    busybox: must('busybox'),
  };
}

/** A statically linked ELF file names no interpreter (program header type 3). */
export function isStatic(path: string): boolean {
  const elf = readFileSync(path);
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2) return false;
  const tableOffset = Number(elf.readBigUInt64LE(32));
  const entrySize = elf.readUInt16LE(54);
  const entries = elf.readUInt16LE(56);
  for (let i = 0; i < entries; i++) {
    if (elf.readUInt32LE(tableOffset + i * entrySize) === 3) return false;
  }
  return true;
}

async function install(packages: readonly string[], report: Report, signal?: AbortSignal): Promise<string | undefined> {
  const lacks = `a real node needs the packages ${packages.join(', ')}`;
  if (!existsSync('/usr/bin/apt-get')) return `${lacks}, and this is not a Debian-like system: install them by hand`;
  report(`installing Debian packages for a real node: ${packages.join(', ')} (GPULEASE_NODES=hollow does without)`);
  const started = Date.now();
  const ticker = setInterval(
    () => report(`installing ${packages.join(', ')} … ${Math.round((Date.now() - started) / 1000)} s`),
    5000,
  );
  const apt = (...args: string[]) =>
    run('apt-get', ['-o', 'DPkg::Lock::Timeout=300', '-qq', ...args], {
      signal,
      maxBuffer: 16 << 20,
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' },
    });
  try {
    try {
      await apt('install', '--yes', '--no-install-recommends', ...packages);
    } catch (error) {
      if (signal?.aborted) throw error;
      // Most often the package lists are missing or old.
      await apt('update');
      await apt('install', '--yes', '--no-install-recommends', ...packages);
    }
    report(`installed ${packages.join(', ')} in ${Math.round((Date.now() - started) / 1000)} s`);
    return undefined;
  } catch (error) {
    if (signal?.aborted) throw error;
    const said = String((error as { stderr?: string }).stderr ?? (error as Error).message)
      .trim()
      .split('\n')
      .at(-1);
    return `${lacks}, and installing them failed: ${said}`;
  } finally {
    clearInterval(ticker);
  }
}
