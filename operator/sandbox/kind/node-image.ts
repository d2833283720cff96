/**
 * The image that a node of a kind cluster is: upstream's where it can be pulled, and else one that is made here, of Debian
 * packages, kind's own files (its Go module), and the Kubernetes programs that local clusters use too.
 *
 * What differs from upstream's: pods have a bridge for a network, so a cluster has one node; kube-proxy is a unit of the node;
 * there is no storage class.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { archiveOf, type Image, layer } from '../clusters/image-archive.ts';
import { PAUSE_IMAGE, writeImages } from '../clusters/images.ts';
import { command } from '../command.ts';
import { debianRoot } from '../image/base-image.ts';
import type { Report } from '../processes.ts';
import { ETCD_VERSION, ensureTools, KUBERNETES_VERSION, keepInCache, moduleSource, platform } from '../tools/tools.ts';
import type { Docker } from './docker.ts';
import { COREDNS_VERSION, ensureCoreDns, ensureKubeadm } from './programs.ts';

/** What this version of kind takes by itself. */
const UPSTREAM = 'kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5';
/** Given to kubeadm as its repository: a name, which nobody resolves. */
export const REPOSITORY = 'gpulease.local/kubernetes';
/** Goes up when what is made here changes without a version doing so. */
const REVISION = 1;
const DEBIAN = 'bookworm';
const POD_SUBNET = '10.244.0.0/16';

export interface NodeImage {
  readonly name: string;
  /** Made here: kubeadm must be told so, see `pair.ts`. */
  readonly madeHere: boolean;
}

export async function ensureNodeImage(docker: Docker, report: Report, signal?: AbortSignal): Promise<NodeImage> {
  const has = (name: string) =>
    docker.run(['image', 'inspect', name], { signal }).then(
      () => true,
      () => false,
    );
  const made = `gpulease.local/kind-node:v${KUBERNETES_VERSION}-${REVISION}`;
  if (await has(UPSTREAM)) return { name: UPSTREAM, madeHere: false };
  if (await has(made)) return { name: made, madeHere: true };
  report(`asking for ${UPSTREAM}`);
  const pulled = await docker
    .run(['pull', '--quiet', UPSTREAM], { signal, timeoutSeconds: 900 })
    .catch((error: Error) => {
      signal?.throwIfAborted();
      report(`no registry has it here (${error.message.trim().split('\n').at(-1)?.slice(-160)})`);
      return undefined;
    });
  if (pulled !== undefined) return { name: UPSTREAM, madeHere: false };
  if (process.getuid?.() !== 0)
    throw new Error(`making a node's image takes root: pull ${UPSTREAM}, or run this as root`);

  const programs = await ensureTools({ need: ['node', 'proxy'], report }, signal);
  const kubeadm = await ensureKubeadm({ report }, signal);
  const coredns = await ensureCoreDns({ report }, signal);
  const what = "a kind node's image";
  const folder = await keepInCache(
    { what, cacheKey: `kind-node-v${KUBERNETES_VERSION}-${REVISION}-${platform}` },
    { report },
    async (out) => {
      const node = join(out, 'root');
      await debianRoot(DEBIAN, node, PACKAGES, report, signal);
      report('laying kind and Kubernetes over it');
      await layOut(node, { ...programs, kubeadm }, signal);
      await preload(node, out, { ...programs, kubeadm, coredns }, report, signal);
      await command('tar', ['-C', node, '--numeric-owner', '--xattrs', '-cf', join(out, 'node.tar'), '.'], { signal });
      rmSync(node, { recursive: true, force: true });
    },
    signal,
  );
  report('importing the node image');
  const entry = JSON.stringify(['/usr/local/bin/writable', '/usr/local/bin/entrypoint', '/sbin/init']);
  await docker.run(
    ['import', '--change', 'ENV container=docker', '--change', `ENTRYPOINT ${entry}`, join(folder, 'node.tar'), made],
    { signal, timeoutSeconds: 900 },
  );
  return { name: made, madeHere: true };
}

const PACKAGES = [
  ...['systemd', 'systemd-sysv', 'containerd', 'runc', 'containernetworking-plugins', 'busybox-static'],
  ...['iptables', 'nftables', 'conntrack', 'iproute2', 'ethtool', 'kmod', 'jq', 'procps', 'mount', 'ca-certificates'],
];

type Programs = Readonly<Partial<Record<'kubelet' | 'kubectl' | 'kube-proxy' | 'kubeadm', string>>>;

async function layOut(node: string, programs: Programs, signal?: AbortSignal): Promise<void> {
  const files = join(await moduleSource('kind', 'sigs.k8s.io/kind', {}, signal), 'images/base/files');
  const at = (path: string) => {
    mkdirSync(dirname(join(node, path)), { recursive: true });
    return join(node, path);
  };
  const write = (path: string, content: string, mode = 0o644) => {
    writeFileSync(at(path), content);
    chmodSync(join(node, path), mode);
  };
  const take = (path: string, mode: number) => {
    copyFileSync(join(files, path), at(path)); // a module's files are read-only, and lost their modes
    chmodSync(join(node, path), mode);
  };
  const takeAll = (folder: string, mode: number) => {
    for (const name of readdirSync(join(files, folder))) take(join(folder, name), mode);
  };
  take('usr/local/bin/entrypoint', 0o755);
  takeAll('kind/bin', 0o755);
  takeAll('etc/sysctl.d', 0o644);
  take('etc/default/kubelet', 0o644);
  takeAll('etc/systemd/system/kubelet.service.d', 0o644);
  for (const unit of ['kubelet.slice', 'kubelet.service', 'undo-mount-hacks.service'])
    take(`etc/systemd/system/${unit}`, 0o644);
  write(
    'etc/systemd/system/containerd.service',
    readFileSync(join(files, 'etc/systemd/system/containerd.service'), 'utf8').replace('/usr/local/bin/', '/usr/bin/'),
  );
  for (const folder of ['kind/manifests', 'etc/kubernetes/manifests', 'etc/cni/net.d'])
    mkdirSync(join(node, folder), { recursive: true });

  // A container has no devices to settle and no disks to mount: what Debian wants started at boot goes, as in kind's own image.
  for (const folder of ['multi-user', 'local-fs', 'basic'].map((target) => `lib/systemd/system/${target}.target.wants`))
    empty(join(node, folder), /./);
  empty(join(node, 'lib/systemd/system/sockets.target.wants'), /udev|initctl/);
  empty(join(node, 'lib/systemd/system/sysinit.target.wants'), /^systemd-tmpfiles-setup\.service$/);
  for (const folder of readdirSync(join(node, 'etc/systemd/system')).filter((name) => name.endsWith('.wants')))
    empty(join(node, 'etc/systemd/system', folder), /./);
  write('etc/systemd/journald.conf.d/container.conf', '[Journal]\nReadKMsg=no\n');

  // Without --privileged, Docker mounts /sys and the control groups read-only; a node writes both.
  write(
    'usr/local/bin/writable',
    `#!/bin/bash
while read -r target options; do
  case "$target" in /sys | /sys/fs/cgroup*) ;; *) continue ;; esac
  case ",$options," in *,ro,*) mount -o remount,rw "$target" || mount -o remount,rw,bind "$target" ;; esac
done < <(findmnt --list --noheadings --output TARGET,VFS-OPTIONS --types sysfs,tmpfs,cgroup,cgroup2)
exec "$@"
`,
    0o755,
  );
  // restrict_oom_score_adj: to lower a score takes a capability that a node may lack.
  write(
    'etc/containerd/config.toml',
    `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
`,
  );
  const range = POD_SUBNET.replace(/\.0\/16$/, '.0/24');
  const network = {
    cniVersion: '1.0.0',
    name: 'bridge',
    plugins: [
      {
        type: 'bridge',
        bridge: 'cni0',
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: { type: 'host-local', ranges: [[{ subnet: range }]], routes: [{ dst: '0.0.0.0/0' }] },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  };
  write('etc/cni/net.d/10-bridge.conflist', JSON.stringify(network));
  // kind applies this after the cluster is up, and takes an empty file for an error.
  write(
    'kind/manifests/default-storage.yaml',
    'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: no-default-storage, namespace: kube-system}\n',
  );
  const proxy = `/usr/bin/kube-proxy --kubeconfig=/etc/kubernetes/admin.conf --hostname-override=$$(hostname) --cluster-cidr=${POD_SUBNET} --conntrack-max-per-core=0 --proxy-mode=iptables`;
  write(
    'etc/systemd/system/kube-proxy.service',
    `[Unit]
After=containerd.service
[Service]
ExecStart=/bin/sh -c 'until [ -f /etc/kubernetes/admin.conf ]; do sleep 0.5; done; exec ${proxy}'
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
`,
  );
  for (const program of ['kubelet', 'kubectl', 'kube-proxy', 'kubeadm'] as const) {
    cpSync(programs[program]!, at(`usr/bin/${program}`));
    chmodSync(join(node, 'usr/bin', program), 0o755);
  }
  write('kind/version', `v${KUBERNETES_VERSION}`);
  const inside = (...args: string[]) => command('chroot', [node, ...args], { signal });
  await inside('systemctl', 'enable', 'kubelet', 'containerd', 'undo-mount-hacks', 'kube-proxy');
  await inside('systemctl', 'mask', 'systemd-binfmt.service');
}

function empty(folder: string, names: RegExp): void {
  if (!existsSync(folder)) return;
  for (const name of readdirSync(folder)) if (names.test(name)) rmSync(join(folder, name), { recursive: true });
}

/** kubeadm's images, each one static program, imported by the node's own containerd before there is a node. */
async function preload(
  node: string,
  out: string,
  programs: Readonly<Partial<Record<string, string>>>,
  report: Report,
  signal?: AbortSignal,
): Promise<void> {
  const image = (name: string, version: string, program: string, run: object = {}): Image => ({
    name: `${REPOSITORY}/${name}:${version}`,
    layers: [
      layer([
        { path: program, mode: 0o755, data: readFileSync(programs[name]!) },
        { path: 'tmp/', mode: 0o1777 },
      ]),
    ],
    run,
  });
  const listed = execFileSync(
    programs.kubeadm!,
    ['config', 'images', 'list', '--kubernetes-version', `v${KUBERNETES_VERSION}`, '--image-repository', REPOSITORY],
    { encoding: 'utf8' },
  );
  const tagOf = (name: string) => {
    const tag = new RegExp(`/${name}:(\\S+)`).exec(listed)?.[1];
    if (!tag) throw new Error(`kubeadm names no image of ${name}: ${listed}`);
    return tag;
  };
  if (!tagOf('etcd').startsWith(ETCD_VERSION) || tagOf('coredns') !== `v${COREDNS_VERSION}`)
    report(
      `kubeadm ${KUBERNETES_VERSION} expects ${tagOf('etcd')} and ${tagOf('coredns')}; taking ${ETCD_VERSION} and ${COREDNS_VERSION}`,
    );
  const archives = join(out, 'archives');
  mkdirSync(archives);
  const planes = ['kube-apiserver', 'kube-controller-manager', 'kube-scheduler'];
  const images = [
    ...planes.map((name) => image(name, `v${KUBERNETES_VERSION}`, `usr/local/bin/${name}`)),
    image('etcd', tagOf('etcd'), 'usr/local/bin/etcd'),
    image('coredns', tagOf('coredns'), 'coredns', { Entrypoint: ['/coredns'] }),
  ];
  writeFileSync(join(archives, 'plane.tar'), archiveOf(images));
  const blobs = images
    .flatMap(({ layers }) => layers)
    .map((one) => `sha256:${createHash('sha256').update(one).digest('hex')}`);
  writeImages(join(archives, 'tools.tar'), join(node, 'bin/busybox'));
  report("importing the control plane's images into it");
  mkdirSync(join(node, 'mnt/archives'));
  // In namespaces of its own: whatever it mounts and starts is gone with it.
  const script = `
mount --make-rprivate /
mount -t proc proc "$1/proc"; mount -t tmpfs tmpfs "$1/run"; mount -t tmpfs tmpfs "$1/tmp"; mount --bind "$2" "$1/mnt/archives"
mount --rbind /dev "$1/dev"; mount --rbind /sys "$1/sys"
printf 'version = 2\\ndisabled_plugins = ["io.containerd.grpc.v1.cri","io.containerd.internal.v1.opt"]\\n' >"$1/tmp/config.toml"
chroot "$1" /usr/bin/containerd --config /tmp/config.toml >"$2/containerd.log" 2>&1 &
for i in $(seq 300); do chroot "$1" ctr version >/dev/null 2>&1 && break; sleep 0.1; done
for archive in plane tools; do chroot "$1" ctr -n k8s.io images import --snapshotter overlayfs "/mnt/archives/$archive.tar"; done
# Containers run from the snapshots: without the blobs every cluster is some hundred megabytes smaller.
root=$1; shift 2
for blob in "$@"; do
  chroot "$root" ctr -n k8s.io content rm "$blob" >/dev/null
  # Collected a moment later.
  for i in $(seq 100); do [ -e "$root/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/\${blob#*:}" ] || break; sleep 0.1; done
done
kill %1; wait %1 || true`;
  await command(
    'unshare',
    ['--mount', '--pid', '--fork', '--kill-child', 'bash', '-euc', script, 'preload', node, archives, ...blobs],
    { signal, timeoutSeconds: 900 },
  );
  rmSync(join(node, 'mnt/archives'), { recursive: true });
  rmSync(archives, { recursive: true });
}
