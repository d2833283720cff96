/**
 * The network of a local node: a network namespace of its own, joined to this machine by one cable (a veth pair).
 *
 *   machine  gpleaseN 10.213.N.1 ──── 10.213.N.2 eth0  node  cni0 10.214.N.1 ──── pods 10.214.N.0/24
 *
 * So nodes have addresses of their own and the usual ports, and whatever CNI leaves behind (bridge, rules, addresses) is gone
 * with the namespace. On the machine's side there are one interface and three rules, and, while any node runs, forwarding.
 *
 * The interface's name is the lock on its number: the kernel makes a name once.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { promisify } from 'node:util';
import { MACHINE_FOLDER, takeMachineLock } from '../lock.ts';

const run = promisify(execFile);
const NUMBERS = 256;
const PREFIX = 'gplease';
/** Exists while the machine's forwarding is on because of us. */
const FORWARDING_MARK = `${MACHINE_FOLDER}/ip-forward-was-off`;

export interface NodeNetwork {
  readonly number: number;
  readonly interfaceName: string;
  /** Where the node reaches this machine. */
  readonly machineIp: string;
  readonly nodeIp: string;
  readonly podCidr: string;
}

function numbered(number: number): NodeNetwork {
  return {
    number,
    interfaceName: `${PREFIX}${number}`,
    machineIp: `10.213.${number}.1`,
    nodeIp: `10.213.${number}.2`,
    podCidr: `10.214.${number}.0/24`,
  };
}

/** Makes the cable between this machine and the network namespace of process `pid`. `key` picks the number if it is free. */
export async function connectNode(
  { pid, key, iptables, apiServerPort }: { pid: number; key: string; iptables: string; apiServerPort: number },
  signal?: AbortSignal,
): Promise<NodeNetwork> {
  const unlock = await lockNetwork(signal);
  try {
    return await connect({ pid, key, iptables, apiServerPort }, signal);
  } finally {
    unlock();
  }
}

async function connect(
  { pid, key, iptables, apiServerPort }: { pid: number; key: string; iptables: string; apiServerPort: number },
  signal?: AbortSignal,
): Promise<NodeNetwork> {
  await sweep(iptables);
  const network = await claim(pid, key, signal);
  const { interfaceName, machineIp, nodeIp, podCidr } = network;
  const inside = (...command: string[]) =>
    run('nsenter', ['--target', String(pid), '--mount', '--net', '--', ...command], { signal });
  await run('ip', ['address', 'add', `${machineIp}/30`, 'dev', interfaceName], { signal });
  await run('ip', ['link', 'set', interfaceName, 'up'], { signal });
  await inside('ip', 'address', 'add', `${nodeIp}/30`, 'dev', 'eth0');
  await inside('ip', 'link', 'set', 'eth0', 'up');
  await inside('ip', 'route', 'add', 'default', 'via', machineIp);
  await inside('sh', '-c', 'echo 1 >/proc/sys/net/ipv4/ip_forward');
  // For the one Service that every pod expects: before kube-proxy has its rules, and where it cannot be had.
  const toApiServer = [
    '-d',
    '10.96.0.1',
    '-p',
    'tcp',
    '--dport',
    '443',
    '-j',
    'DNAT',
    '--to-destination',
    `${machineIp}:${apiServerPort}`,
  ];
  await inside(iptables, '-w', '-t', 'nat', '-A', 'PREROUTING', ...toApiServer);
  await inside(iptables, '-w', '-t', 'nat', '-A', 'OUTPUT', ...toApiServer);
  await run('ip', ['route', 'add', podCidr, 'via', nodeIp], { signal });
  switchForwardingOn();
  const comment = ['-m', 'comment', '--comment', interfaceName];
  const add = (...rule: string[]) => run(iptables, ['-w', ...rule, ...comment], { signal });
  await add('-I', 'FORWARD', '-i', interfaceName, '-j', 'ACCEPT');
  await add('-I', 'FORWARD', '-o', interfaceName, '-j', 'ACCEPT');
  await add(
    '-t',
    'nat',
    '-A',
    'POSTROUTING',
    '-s',
    `${nodeIp}/32,${podCidr}`,
    '!',
    '-o',
    `${PREFIX}+`,
    '-j',
    'MASQUERADE',
  );
  return network;
}

async function claim(pid: number, key: string, signal?: AbortSignal): Promise<NodeNetwork> {
  const first = createHash('sha256').update(key).digest().readUInt16BE(0);
  for (let i = 0; i < NUMBERS; i++) {
    const network = numbered((first + i) % NUMBERS);
    try {
      await run(
        'ip',
        ['link', 'add', network.interfaceName, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', String(pid)],
        { signal },
      );
      return network;
    } catch (error) {
      if (!/File exists/.test((error as { stderr?: string }).stderr ?? '')) throw error;
    }
  }
  throw new Error(`all ${NUMBERS} numbers for local nodes are in use: see \`ip link\``);
}

/** Takes the cable and its rules away. Safe to repeat. */
export async function disconnectNode(network: NodeNetwork, iptables: string): Promise<void> {
  const unlock = await lockNetwork();
  try {
    await disconnect(network, iptables);
  } finally {
    unlock();
  }
}

/** Takes away what nodes that were killed outright have left on the machine's side of the network. */
export async function sweepNetwork(iptables: string): Promise<void> {
  const unlock = await lockNetwork();
  try {
    await sweep(iptables);
  } finally {
    unlock();
  }
}

// Two sandboxes at once would otherwise switch forwarding off and on under each other.
const lockNetwork = (signal?: AbortSignal) => takeMachineLock('network', signal);

async function disconnect(network: NodeNetwork, iptables: string): Promise<void> {
  await run('ip', ['link', 'delete', network.interfaceName]).catch((error: { stderr?: string }) => {
    if (!/Cannot find device|No such device/.test(error.stderr ?? '')) throw error;
  });
  await sweep(iptables);
}

/** Deletes our rules whose interface is gone, and forwarding when no interface is left. */
async function sweep(iptables: string): Promise<void> {
  for (const table of ['filter', 'nat']) {
    const { stdout } = await run(iptables, ['-w', '-t', table, '-S']);
    for (const line of stdout.split('\n')) {
      const words = line.split(' ');
      const owner = words[words.indexOf('--comment') + 1] ?? '';
      if (words[0] !== '-A' || !words.includes('--comment') || !new RegExp(`^${PREFIX}\\d+$`).test(owner)) continue;
      if (existsSync(`/sys/class/net/${owner}`)) continue;
      // Another sandbox may be sweeping too: a rule that is gone is what was wanted.
      await run(iptables, ['-w', '-t', table, '-D', ...words.slice(1)]).catch((error: { stderr?: string }) => {
        if (!/Bad rule|does a matching rule exist|No chain/.test(error.stderr ?? '')) throw error;
      });
    }
  }
  const anyLeft = Object.keys(networkInterfaces()).some((name) => new RegExp(`^${PREFIX}\\d+$`).test(name));
  if (!anyLeft && existsSync(FORWARDING_MARK)) {
    writeFileSync('/proc/sys/net/ipv4/ip_forward', '0');
    rmSync(FORWARDING_MARK, { force: true });
  }
}

function switchForwardingOn(): void {
  const file = '/proc/sys/net/ipv4/ip_forward';
  if (readFileSync(file, 'utf8').trim() === '1') return;
  writeFileSync(FORWARDING_MARK, '');
  writeFileSync(file, '1');
}

/** Name servers that a network namespace can reach: those on the loopback are this machine's alone. */
export function nameServers(): string[] {
  for (const file of ['/run/systemd/resolve/resolv.conf', '/etc/resolv.conf']) {
    if (!existsSync(file)) continue;
    const found = [...readFileSync(file, 'utf8').matchAll(/^nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$/gm)].map(
      (m) => m[1] ?? '',
    );
    const usable = found.filter((address) => !address.startsWith('127.'));
    if (usable.length > 0) return usable.slice(0, 3);
  }
  return [];
}
