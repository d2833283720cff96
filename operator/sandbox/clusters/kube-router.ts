/**
 * kube-router as what enforces NetworkPolicies on a local node, beside the bridge CNI that it has: none of the rest that
 * kube-router can do. It runs in the network namespace of the node, so its rules go with the node.
 * https://github.com/cloudnativelabs/kube-router
 */
import { execFile } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { ManagedProcess, Report, Supervisor } from '../processes.ts';
import { ensureBuilt, type GoBuild, platform } from '../tools/tools.ts';
import { PLANE_TLS_NAME, type PlaneAccess } from './plane.ts';

const run = promisify(execFile);

export const KUBE_ROUTER_VERSION = '2.1.0';

const build: GoBuild = {
  what: `kube-router v${KUBE_ROUTER_VERSION}`,
  module: 'kube-router',
  tools: { 'kube-router': 'github.com/cloudnativelabs/kube-router/v2/cmd/kube-router' },
  cacheKey: `kube-router-v${KUBE_ROUTER_VERSION}-${platform}`,
  ldflags: '-s -w',
  about: 'about 3 min on 2 cores',
};

/** Builds it and installs what it calls; throws what cannot be had, with the way to have it. */
export async function ensureKubeRouter(report: Report, signal?: AbortSignal): Promise<string> {
  if (!existsSync('/usr/sbin/ipset') && !existsSync('/sbin/ipset')) {
    report('installing the Debian package ipset, which kube-router calls');
    await run(
      'apt-get',
      ['-o', 'DPkg::Lock::Timeout=300', '-qq', 'install', '--yes', '--no-install-recommends', 'ipset'],
      {
        signal,
        env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
      },
    ).catch((error: Error) => {
      throw new Error(`kube-router needs the program ipset, and installing it failed: ${error.message}`);
    });
  }
  return join(await ensureBuilt(build, { report }, signal), 'kube-router');
}

export async function startKubeRouter(
  options: {
    readonly program: string;
    readonly plane: PlaneAccess;
    readonly supervisor: Supervisor;
    readonly nodeName: string;
    /** Where the node reaches the API server. */
    readonly machineIp: string;
    /** A process of the node. */
    readonly pid: number;
    readonly folder: string;
  },
  signal?: AbortSignal,
): Promise<ManagedProcess> {
  const { program, plane, supervisor, nodeName, machineIp, pid, folder } = options;
  const at = { server: `https://${machineIp}:${plane.port}`, tlsServerName: PLANE_TLS_NAME };
  const kubeconfig = join(folder, 'kube-router.kubeconfig');
  writeFileSync(kubeconfig, await plane.issueKubeconfig('gpulease-kube-router', ['system:masters'], at), {
    mode: 0o600,
  });
  const inside = (...command: string[]) => ['--target', String(pid), '--net', '--', ...command];
  // Pods of one node meet on a bridge: only so does what they send each other pass iptables.
  await run('nsenter', inside('sh', '-c', 'echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables'), { signal });
  return supervisor.start(
    {
      name: 'kube-router',
      command: 'nsenter',
      args: inside(
        program,
        `--kubeconfig=${kubeconfig}`,
        `--hostname-override=${nodeName}`,
        '--run-firewall=true',
        '--run-router=false',
        '--run-service-proxy=false',
        '--enable-cni=false',
        '--health-port=0',
        '--iptables-sync-period=10s',
        '--cache-sync-timeout=60s',
      ),
      stopTimeoutSeconds: 5,
    },
    signal,
  );
}
