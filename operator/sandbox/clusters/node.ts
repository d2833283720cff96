/**
 * A real node: kubelet, containerd and kube-proxy as processes, several side by side on one machine.
 *
 * A kubelet believes it owns the machine: fixed folders (the device plugin socket), ports, host names, process numbers. So
 * each node lives in mount, network and process namespaces of its own, like a container that uses the machine's programs;
 * inside, everything is where it always is. Its first process holds the namespaces open and dies with us, and takes all of
 * the node with it: containers, mounts, bridge, rules. What outlives the namespaces (control groups, rules on this
 * machine's side) is removed by `stop`, or by the next start.
 *
 * The machine's kernel settings stay as they are: kubelet would set six of them, and is shown the values it wants instead.
 */
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { dump } from 'js-yaml';
import {
  createSupervisor,
  endLeftovers,
  type ManagedProcess,
  type ProcessError,
  type Report,
  type Supervisor,
} from '../processes.ts';
import { type DevicePlugin, startDevicePlugin } from './device-plugin.ts';
import { gpuLabels, type SimulatedGpu } from './gpus.ts';
import { PAUSE_IMAGE, writeImages } from './images.ts';
import { KUBE_PROXY, startKubeProxy } from './kube-proxy.ts';
import { createCgroup, removeCgroup } from './node-cgroup.ts';
import { connectNode, disconnectNode, type NodeNetwork, nameServers, sweepNetwork } from './node-network.ts';
import { forgetNode, isReady, untilAllocatable } from './node-object.ts';
import type { NodePrograms } from './node-packages.ts';
import { PLANE_TLS_NAME, type PlaneAccess } from './plane.ts';

const run = promisify(execFile);

export interface NodeOptions {
  readonly plane: PlaneAccess;
  readonly name: string;
  /** The node's own folder. What an earlier node kept there is ended and wiped. */
  readonly dir: string;
  readonly gpus: readonly SimulatedGpu[];
  /** Added to the labels of the GPUs, and stronger than they. */
  readonly labels?: Readonly<Record<string, string>>;
  readonly taints?: readonly { readonly key: string; readonly value?: string; readonly effect: string }[];
  readonly region?: string;
  readonly zone?: string;
  /** Of a hollow node, beside its GPUs, e.g. more pods than a kubelet takes. A real node has what its machine has. */
  readonly capacity?: Readonly<Record<string, string>>;
  readonly report: Report;
  readonly onCrash?: (error: ProcessError) => void;
}

export type NodeProgram = 'kubelet' | 'containerd';

export interface ClusterNode {
  readonly name: string;
  /** True where pods only pretend to run: every screen must say so. */
  readonly simulated: boolean;
  readonly ip: string;
  readonly gpus: readonly SimulatedGpu[];
  readonly pids: Readonly<Record<string, number>>;
  /** Marks a GPU as broken or well again, as NVIDIA's plugin does after an XID error. Throws for an unknown UUID. */
  setHealth(uuid: string, healthy: boolean): Promise<void>;
  /** Ends the node and removes every trace of it from the machine, and its Node object while the plane answers. Safe to repeat. */
  stop(): Promise<void>;
  /** Pulls the plug: everything on the node dies at once, and the API server is not told. */
  powerOff(): Promise<void>;
}

export interface RealNode extends ClusterNode {
  readonly simulated: false;
  readonly devicePlugin: DevicePlugin;
  readonly podCidr: string;
  /** The machine as the node's pods and kubelet reach it. */
  readonly machineIp: string;
  kill(program: NodeProgram, signal?: NodeJS.Signals): Promise<void>;
  restart(program: NodeProgram, how?: { readonly signal?: 'SIGTERM' | 'SIGKILL' }, signal?: AbortSignal): Promise<void>;
  /** Runs `ctr -n k8s.io` on the node, for tests. */
  ctr(...args: string[]): Promise<string>;
  /** Gives the node container images: a docker-archive, wherever it lies on this machine. */
  importImages(archive: string): Promise<void>;
}

export interface RealNodeOptions extends NodeOptions {
  /** From `ensureNodePackages`. */
  readonly programs: NodePrograms;
  /** From `ensureTools({ need: ['node'] })`. */
  readonly kubelet: string;
  /** From `ensureTools({ need: ['proxy'] })`. Without it, Services of the cluster have no addresses that work. */
  readonly kubeProxy?: string;
}

export async function startNode(given: RealNodeOptions, signal?: AbortSignal): Promise<RealNode> {
  const options = { ...given, dir: resolve(given.dir) };
  const { plane, name, dir, gpus, programs, kubelet, report } = options;
  const started = Date.now();
  await endLeftovers(dir, report);
  await sweepNetwork(programs.iptables);
  raiseInotifyLimit(report);
  prepareFolders(dir);

  const supervisor = createSupervisor({
    dir,
    report,
    onCrash(error, program) {
      if (program === KUBE_PROXY) report(`${name}: Services have no addresses that work here, for want of kube-proxy`);
      else options.onCrash?.(error);
    },
  });
  let cgroup: string | undefined;
  let network: NodeNetwork | undefined;
  let plugin: DevicePlugin | undefined;
  let proxy: ManagedProcess | undefined;
  const release = async () => {
    await plugin?.stop();
    await supervisor.stop();
    if (network) await disconnectNode(network, programs.iptables);
    if (cgroup) await removeCgroup(cgroup);
    for (const folder of ['var-lib', 'var-log']) rmSync(join(dir, folder), { recursive: true, force: true });
  };
  try {
    signal?.throwIfAborted();
    const shell = await startNamespaces(supervisor, dir, kubelet, signal);
    const pid = shell.pid;
    cgroup = await createCgroup(createHash('sha256').update(dir).digest('hex').slice(0, 8), pid, signal);
    network = await connectNode({ pid, key: dir, iptables: programs.iptables, apiServerPort: plane.port }, signal);
    const inside = (...command: string[]) => ['--target', String(pid), '--mount', '--net', '--pid', '--', ...command];
    writeContainerdConfig(dir, network, programs);
    const ctr = async (...args: string[]) =>
      (await run('nsenter', inside(programs.ctr, '-n', 'k8s.io', ...args), { maxBuffer: 16 << 20, signal })).stdout;

    const containerd = await supervisor.start(
      {
        name: 'containerd',
        command: 'nsenter',
        args: inside(programs.containerd, '--config', '/var/lib/gpulease/containerd.toml'),
        forksProgram: true,
        ready: async () => (await ctr('version')).includes('Server'),
      },
      signal,
    );
    await ctr('images', 'import', '/var/lib/gpulease/images.tar');
    const labels = {
      ...gpuLabels(gpus, { region: options.region ?? 'local', zone: options.zone ?? 'local-a' }),
      ...options.labels,
    };
    await writeKubeletConfig(options, network, cgroup, labels);
    const startKubelet = supervisor.start(
      {
        name: 'kubelet',
        command: 'nsenter',
        args: inside(
          '/var/lib/gpulease/bin/kubelet',
          '--config=/var/lib/gpulease/kubelet.yaml',
          '--kubeconfig=/var/lib/gpulease/kubeconfig',
          '--cert-dir=/var/lib/kubelet/pki',
          `--hostname-override=${name}`,
          `--node-ip=${network.nodeIp}`,
          `--node-labels=${Object.entries(labels)
            .map(([k, v]) => `${k}=${v}`)
            .join(',')}`,
        ),
        forksProgram: true,
        readyTimeoutSeconds: 120,
        ready: (abort) => isReady(plane, name, abort),
        stopTimeoutSeconds: 5,
      },
      signal,
    );
    // The plugin waits for the kubelet's socket by itself, and the kubelet's first status should already count the GPUs.
    plugin = await startDevicePlugin({ socketDir: `/proc/${pid}/root/var/lib/kubelet/device-plugins`, gpus, report });
    const kubeletProcess = await startKubelet;
    await untilAllocatable(plane, name, gpus.length, signal);
    if (options.kubeProxy) {
      const { kubeProxy } = options;
      const folder = join(dir, 'var-lib/gpulease');
      proxy = await startKubeProxy({ plane, supervisor, kubeProxy, hostname: name, network, folder, pid }, signal);
    }
    report(
      `${name}: node ready after ${((Date.now() - started) / 1000).toFixed(1)} s at ${network.nodeIp}, ${gpus.length} GPUs`,
    );

    const byName: Record<NodeProgram, ManagedProcess> = { containerd, kubelet: kubeletProcess };
    const { nodeIp, machineIp, podCidr } = network;
    const devicePlugin = plugin;
    let ending: Promise<void> | undefined;
    return {
      name,
      simulated: false,
      ip: nodeIp,
      machineIp,
      podCidr,
      gpus,
      devicePlugin,
      get pids() {
        return supervisor.pids;
      },
      setHealth: async (uuid, healthy) => devicePlugin.setHealth(uuid, healthy),
      ctr,
      importImages: (archive) =>
        pipeInto('nsenter', inside(programs.ctr, '-n', 'k8s.io', 'images', 'import', '-'), archive),
      kill: (program, how = 'SIGKILL') => byName[program].kill(how),
      restart: (program, how, abort) => byName[program].restart(how, abort),
      async powerOff() {
        await devicePlugin.stop();
        // The shell takes the others with it; asking for them too makes their ends wanted ones.
        await Promise.all([shell, containerd, kubeletProcess, proxy].map((each) => each?.kill('SIGKILL')));
      },
      stop() {
        ending ??= (async () => {
          await release();
          await forgetNode(plane, name);
        })();
        return ending;
      },
    };
  } catch (error) {
    await release();
    throw error;
  }
}

/** Runs a program that reads a file as its standard input: the node's own view of files may not show it. */
async function pipeInto(command: string, args: readonly string[], file: string): Promise<void> {
  const input = await open(file);
  try {
    const child = spawn(command, args, { stdio: [input.fd, 'ignore', 'pipe'] });
    let said = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-2000);
    });
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    if (code !== 0) throw new Error(`${command} ${args.at(-4)} … failed (exit code ${code}): ${said.trim()}`);
  } finally {
    await input.close();
  }
}

function prepareFolders(dir: string): void {
  for (const folder of ['var-lib', 'var-log']) rmSync(join(dir, folder), { recursive: true, force: true });
  // The device plugin's folder exists before the kubelet, so that the plugin can watch it from the start.
  for (const folder of ['var-lib/gpulease/bin', 'var-lib/gpulease/cni', 'var-lib/kubelet/device-plugins', 'var-log']) {
    mkdirSync(join(dir, folder), { recursive: true, mode: 0o755 });
  }
  const servers = nameServers();
  writeFileSync(join(dir, 'var-lib/gpulease/resolv.conf'), servers.map((s) => `nameserver ${s}\n`).join(''));
}

/** What kubelet sets on a machine; shown to it, in its own view of /proc/sys, as set already. */
const KERNEL_SETTINGS = {
  'vm/overcommit_memory': 1,
  'vm/panic_on_oom': 0,
  'kernel/panic': 10,
  'kernel/panic_on_oops': 1,
  'kernel/keys/root_maxkeys': 1_000_000,
  'kernel/keys/root_maxbytes': 25_000_000,
} as const;

/**
 * The node's first process. It must collect orphans, as any first process (a shell that waits does), and end when we do
 * (its standard input closes). Shared propagation lets containers see mounts that are made while they run.
 */
const FIRST_PROCESS = `
set -e
dir=$1 tools=$2 settings=$3
mount --make-rshared /
mount --bind "$tools" "$dir/var-lib/gpulease/bin"
for setting in $settings; do
  mkdir -p "$dir/var-lib/gpulease/sys/$(dirname "\${setting%%=*}")"
  echo "\${setting#*=}" >"$dir/var-lib/gpulease/sys/\${setting%%=*}"
  mount --bind "$dir/var-lib/gpulease/sys/\${setting%%=*}" "/proc/sys/\${setting%%=*}"
done
resolv=$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)
mount --bind "$dir/var-log" /var/log
mount --rbind "$dir/var-lib" /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
case $resolv in
  /run/*) mkdir -p "$(dirname "$resolv")"; cp /var/lib/gpulease/resolv.conf "$resolv" ;;
  *) [ ! -e "$resolv" ] || mount --bind /var/lib/gpulease/resolv.conf "$resolv" ;;
esac
ip link set lo up
trap 'exit 0' TERM
exec 3<&0
cat <&3 >/dev/null &
echo ready >/run/gpulease-node
wait $!
`;

async function startNamespaces(
  supervisor: Supervisor,
  dir: string,
  kubelet: string,
  signal?: AbortSignal,
): Promise<ManagedProcess> {
  const settings = Object.entries(KERNEL_SETTINGS).map(([file, value]) => `${file}=${value}`);
  const tools = kubelet.slice(0, kubelet.lastIndexOf('/'));
  const namespaces = [
    '--mount',
    '--propagation',
    'private',
    '--net',
    '--pid',
    '--fork',
    '--kill-child',
    '--mount-proc',
  ];
  const shell: ManagedProcess = await supervisor.start(
    {
      name: 'node',
      command: 'unshare',
      args: [...namespaces, '/bin/sh', '-c', FIRST_PROCESS, 'gpulease-node', dir, tools, settings.join(' ')],
      forksProgram: true,
      holdStdin: true,
      readyTimeoutSeconds: 20,
      ready: async () => {
        const { stdout } = await run('cat', [`/proc/${supervisor.get('node').pid}/root/run/gpulease-node`], { signal });
        return stdout.trim() === 'ready';
      },
    },
    signal,
  );
  return shell;
}

const OVERLAYFS_MAGIC = 0x794c7630;

function writeContainerdConfig(dir: string, network: NodeNetwork, programs: NodePrograms): void {
  writeImages(join(dir, 'var-lib/gpulease/images.tar'), programs.busybox);
  // An overlay cannot have another overlay as its upper layer, which is what a container's own disk is.
  const snapshotter = statfsSync(dir).type === OVERLAYFS_MAGIC ? 'native' : 'overlayfs';
  writeFileSync(
    join(dir, 'var-lib/gpulease/containerd.toml'),
    `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE no pod could start: its pause process wants a lower score than its parent's.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "${snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${programs.cniBin}"
    conf_dir = "/var/lib/gpulease/cni"
`,
  );
  const bridge = {
    type: 'bridge',
    bridge: 'cni0',
    isGateway: true,
    hairpinMode: true,
    ipam: { type: 'host-local', ranges: [[{ subnet: network.podCidr }]], routes: [{ dst: '0.0.0.0/0' }] },
  };
  writeFileSync(
    join(dir, 'var-lib/gpulease/cni/10-bridge.conflist'),
    JSON.stringify({
      cniVersion: '0.4.0',
      name: 'gpulease',
      plugins: [bridge, { type: 'portmap', capabilities: { portMappings: true } }],
    }),
  );
}

async function writeKubeletConfig(
  { plane, name, dir, taints }: NodeOptions,
  network: NodeNetwork,
  cgroup: string,
  labels: Readonly<Record<string, string>>,
): Promise<void> {
  const write = (file: string, content: string) =>
    writeFileSync(join(dir, 'var-lib/gpulease', file), content, { mode: 0o600 });
  const server = `https://${network.machineIp}:${plane.port}`;
  const identity = { server, tlsServerName: PLANE_TLS_NAME };
  write('kubeconfig', await plane.issueKubeconfig(`system:node:${name}`, ['system:nodes'], identity));
  const serving = await plane.issueServing(`system:node:${name}`, [name, network.nodeIp], ['system:nodes']);
  write('kubelet.crt', serving.certificatePem);
  write('kubelet.key', serving.privateKeyPem);
  write('ca.crt', plane.kubeletClientCaPem);
  for (const [key, value] of Object.entries(labels)) {
    if (/[,=\s]/.test(key + value)) throw new Error(`label ${key}=${value} cannot be given to a kubelet`);
  }
  const dns = nameServers();
  write(
    'kubelet.yaml',
    dump({
      apiVersion: 'kubelet.config.k8s.io/v1beta1',
      kind: 'KubeletConfiguration',
      failCgroupV1: false, // since 1.35 a kubelet refuses machines with control groups v1 unless told so
      failSwapOn: false,
      cgroupDriver: 'cgroupfs',
      cgroupRoot: `/${cgroup}`,
      containerRuntimeEndpoint: 'unix:///run/containerd/containerd.sock',
      volumePluginDir: '/var/lib/kubelet/volume-plugins',
      authentication: {
        anonymous: { enabled: false },
        webhook: { enabled: true, cacheTTL: '10s' },
        x509: { clientCAFile: '/var/lib/gpulease/ca.crt' },
      },
      authorization: { mode: 'Webhook' },
      tlsCertFile: '/var/lib/gpulease/kubelet.crt',
      tlsPrivateKeyFile: '/var/lib/gpulease/kubelet.key',
      clusterDomain: 'cluster.local',
      // No cluster DNS runs here. The machine's own name server keeps outside names working, and pods free of a warning.
      clusterDNS: dns.slice(0, 1),
      resolvConf: '/var/lib/gpulease/resolv.conf',
      registerWithTaints: taints ?? [],
      maxPods: 200,
      // A broken GPU shows within two seconds instead of ten; an unchanged status is still written every five minutes only.
      nodeStatusUpdateFrequency: '2s',
      nodeStatusReportFrequency: '5m',
      kubeAPIQPS: 200,
      kubeAPIBurst: 400,
      serializeImagePulls: false,
      // The images here can be had nowhere else, and the machine's disk is not ours to judge.
      imageGCHighThresholdPercent: 100,
      imageGCLowThresholdPercent: 99,
      evictionHard: {
        'memory.available': '50Mi',
        'nodefs.available': '1%',
        'nodefs.inodesFree': '1%',
        'imagefs.available': '1%',
      },
    }),
  );
}

/** One control plane and one node hold about thirty inotify instances; many kernels allow a user 128 in all. */
const inotifyInstances = 1024;

function raiseInotifyLimit(report: NodeOptions['report']): void {
  const file = '/proc/sys/fs/inotify/max_user_instances';
  const now = Number(readFileSync(file, 'utf8'));
  if (now >= inotifyInstances) return;
  report(`raising fs.inotify.max_user_instances from ${now} to ${inotifyInstances}: kubelets watch many files`);
  writeFileSync(file, String(inotifyInstances));
}
