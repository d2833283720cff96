/**
 * The programs of the Kubernetes end-to-end suite, made from the same release as the sandbox's control planes: the suite
 * and its runner for this machine, and what its container images hold.
 */
import { join } from 'node:path';
import {
  type BuildOptions,
  ensureBuilt,
  type GoBuild,
  KUBERNETES_VERSION,
  kubernetesFlags,
  moduleSource,
  platform,
} from '../tools/tools.ts';

export interface SuitePrograms {
  readonly e2eTest: string;
  readonly ginkgo: string;
  readonly agnhost: string;
  /** Says whether it could raise its own privileges. */
  readonly nonewprivs: string;
}

const SUITE: GoBuild = {
  what: `the Kubernetes v${KUBERNETES_VERSION} end-to-end suite`,
  module: 'conformance',
  tools: { 'e2e.test': 'k8s.io/kubernetes/test/e2e' },
  testProgram: true,
  cacheKey: `e2e-v${KUBERNETES_VERSION}-${platform}`,
  ldflags: kubernetesFlags,
  about: 'about 4 min on 2 idle cores, 10 on busy ones',
};

const HELPERS: GoBuild = {
  what: 'ginkgo, agnhost and nonewprivs',
  module: 'conformance',
  tools: {
    ginkgo: 'github.com/onsi/ginkgo/v2/ginkgo',
    agnhost: 'k8s.io/kubernetes/test/images/agnhost',
    nonewprivs: 'k8s.io/kubernetes/test/images/nonewprivs',
  },
  cacheKey: `e2e-helpers-v${KUBERNETES_VERSION}-${platform}`,
  // agnhost tells its version; it is also the tag that the suite asks for.
  ldflags: '-s -w -X main.Version=2.63.0',
  about: 'about 1 min on 2 cores',
};

export async function ensureSuite(options: BuildOptions, signal?: AbortSignal): Promise<SuitePrograms> {
  const helpers = await ensureBuilt(HELPERS, options, signal);
  const suite = await ensureBuilt(SUITE, options, signal);
  return {
    e2eTest: join(suite, 'e2e.test'),
    ginkgo: join(helpers, 'ginkgo'),
    agnhost: join(helpers, 'agnhost'),
    nonewprivs: join(helpers, 'nonewprivs'),
  };
}

/** Where the suite's source lies: some of its images are made of files there. */
export const suiteSource = (signal?: AbortSignal): Promise<string> =>
  moduleSource('conformance', 'k8s.io/kubernetes', {}, signal);
