/**
 * The real kube-proxy, so that Services of a local cluster have addresses that work: in iptables mode, inside the network
 * namespace of a node, whose rules are nobody else's.
 *
 * It is not waited for, and nothing but Services depends on it: a node is ready before its rules are, and a machine that
 * does not let us have it still has a node.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { dump } from 'js-yaml';
import type { ManagedProcess, Supervisor } from '../processes.ts';
import type { NodeNetwork } from './node-network.ts';
import { PLANE_TLS_NAME, type PlaneAccess } from './plane.ts';

export const KUBE_PROXY = 'kube-proxy';

export interface KubeProxyOptions {
  readonly plane: PlaneAccess;
  readonly supervisor: Supervisor;
  /** From `ensureTools({ need: ['proxy'] })`. */
  readonly kubeProxy: string;
  /** Of the Node that it runs on. */
  readonly hostname: string;
  readonly network: Pick<NodeNetwork, 'machineIp' | 'podCidr'>;
  /** For its configuration. */
  readonly folder: string;
  /** A process of the network namespace that it serves; it ends with that process. */
  readonly pid: number;
}

export async function startKubeProxy(options: KubeProxyOptions, signal?: AbortSignal): Promise<ManagedProcess> {
  const { plane, supervisor, hostname, network, folder } = options;
  const write = (file: string, content: string) => {
    writeFileSync(join(folder, file), content, { mode: 0o600 });
    return join(folder, file);
  };
  const at = { server: `https://${network.machineIp}:${plane.port}`, tlsServerName: PLANE_TLS_NAME };
  const kubeconfig = write('kube-proxy.kubeconfig', await plane.issueKubeconfig('system:kube-proxy', [], at));
  const unlimited = { maxPerCore: 0, min: 0, tcpEstablishedTimeout: '0s', tcpCloseWaitTimeout: '0s' };
  const config = write(
    'kube-proxy.yaml',
    dump({
      apiVersion: 'kubeproxy.config.k8s.io/v1alpha1',
      kind: 'KubeProxyConfiguration',
      clientConnection: { kubeconfig },
      hostnameOverride: hostname,
      mode: 'iptables',
      iptables: { minSyncPeriod: '100ms', localhostNodePorts: false },
      clusterCIDR: network.podCidr,
      healthzBindAddress: '127.0.0.1:10256',
      metricsBindAddress: '127.0.0.1:10249',
      // Settings of the whole machine stay as they are.
      conntrack: unlimited,
      oomScoreAdj: 0,
    }),
  );
  return supervisor.start(
    {
      name: KUBE_PROXY,
      command: 'nsenter',
      // The machine's files: what it needs of them, a node's own view of them may hide.
      args: ['--target', String(options.pid), '--net', '--pid', '--', options.kubeProxy, `--config=${config}`],
      forksProgram: true,
      stopTimeoutSeconds: 5,
    },
    signal,
  );
}
