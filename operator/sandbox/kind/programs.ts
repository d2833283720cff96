/** What kind clusters are made of beside the programs of any local cluster: kind itself, kubeadm and CoreDNS. */
import { join } from 'node:path';
import {
  type BuildOptions,
  ensureBuilt,
  type GoBuild,
  KUBERNETES_VERSION,
  kubernetesFlags,
  platform,
} from '../tools/tools.ts';

export const KIND_VERSION = '0.33.0';
/** kubeadm's own choice for this version of Kubernetes. */
export const COREDNS_VERSION = '1.14.2';

const kind: GoBuild = {
  what: `kind v${KIND_VERSION}`,
  module: 'kind',
  tools: { kind: 'sigs.k8s.io/kind' },
  cacheKey: `kind-v${KIND_VERSION}-${platform}`,
  ldflags: '-s -w',
  about: 'about 20 s on 2 cores',
};

// It takes its own version for that of the cluster.
const kubeadm: GoBuild = {
  what: `kubeadm v${KUBERNETES_VERSION}`,
  module: 'kubernetes',
  tools: { kubeadm: 'k8s.io/kubernetes/cmd/kubeadm' },
  cacheKey: `kubeadm-v${KUBERNETES_VERSION}-${platform}`,
  ldflags: kubernetesFlags,
  about: 'about 1 min on 2 cores',
};

const coredns: GoBuild = {
  what: `CoreDNS v${COREDNS_VERSION}`,
  module: 'coredns',
  tools: { coredns: '.' },
  cacheKey: `coredns-v${COREDNS_VERSION}-${platform}`,
  ldflags: '-s -w',
  about: 'about 2 min on 2 cores',
};

const program = async (build: GoBuild, options: BuildOptions, signal?: AbortSignal): Promise<string> =>
  join(await ensureBuilt(build, options, signal), Object.keys(build.tools)[0]!);

export const ensureKind = (options: BuildOptions, signal?: AbortSignal) => program(kind, options, signal);
export const ensureKubeadm = (options: BuildOptions, signal?: AbortSignal) => program(kubeadm, options, signal);
export const ensureCoreDns = (options: BuildOptions, signal?: AbortSignal) => program(coredns, options, signal);
