/** What charts are tested with: Helm, which installs them, and kubeconform, which holds what they say against schemas. */
import { join } from 'node:path';
import { type BuildOptions, ensureBuilt, type GoBuild, platform } from './tools.ts';

export const HELM_VERSION = '4.3.1';
export const KUBECONFORM_VERSION = '0.8.0';

const helm: GoBuild = {
  what: `helm v${HELM_VERSION}`,
  module: 'helm',
  tools: { helm: 'helm.sh/helm/v4/cmd/helm' },
  cacheKey: `helm-v${HELM_VERSION}-${platform}`,
  ldflags: `-s -w -X helm.sh/helm/v4/internal/version.version=v${HELM_VERSION}`,
  about: 'about 2 min on 2 cores',
};

const kubeconform: GoBuild = {
  what: `kubeconform v${KUBECONFORM_VERSION}`,
  module: 'kubeconform',
  tools: { kubeconform: 'github.com/yannh/kubeconform/cmd/kubeconform' },
  cacheKey: `kubeconform-v${KUBECONFORM_VERSION}-${platform}`,
  ldflags: '-s -w',
  about: 'about 20 s on 2 cores',
};

/** Path of a program, which is built unless our cache has it. PATH is not asked: another version writes other manifests. */
export const ensureHelm = async (options: BuildOptions, signal?: AbortSignal): Promise<string> =>
  join(await ensureBuilt(helm, options, signal), 'helm');

export const ensureKubeconform = async (options: BuildOptions, signal?: AbortSignal): Promise<string> =>
  join(await ensureBuilt(kubeconform, options, signal), 'kubeconform');
