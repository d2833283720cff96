/** `gpulease provider check`: reads a provider's cluster and says whether tenants may be let in. */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { managedBy, labels as ownLabels } from '../api/labels.ts';
import {
  type ClusterFacts,
  checkCluster,
  type Finding,
  type SeenDaemonSet,
  type SeenWebhook,
} from '../core/allocation/cluster-check.ts';
import { isOffered, type NodeObject } from '../core/allocation/node-view.ts';
import { connectCluster } from '../engine/cluster.ts';
import { isApiError, isNotFound } from '../engine/errors.ts';
import { readBody } from '../engine/http.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../engine/types.ts';
import { readText } from './gateway-options.ts';
import { parseOptions, text, UsageError } from './options.ts';
import type { Surroundings } from './run-gpulease.ts';

const usage = `
Whether this cluster is fit to have tenants: what isolation leans on, and what to do where it is missing.

  gpulease provider check                          by the current kubeconfig, as an administrator of the provider's cluster
  gpulease provider check --toolkit-config FILE    also a copy of a node's /etc/nvidia-container-runtime/config.toml

Nothing is changed but for a namespace that is made, and removed, to try Pod Security in.

Exit status: 0 nothing stands in the way; 1 something must be mended first; 2 the command was not understood; 3 the cluster
could not be read.
`;

const declared = {
  kubeconfig: text('Kubeconfig of the provider cluster. Default: KUBECONFIG, then ~/.kube/config.', 'FILE'),
  toolkitConfig: text("Copy of a node's /etc/nvidia-container-runtime/config.toml.", 'FILE'),
  runtimeClass: { ...text('As the gateway will be given it.', 'NAME'), many: true as const },
  storageClass: text('As the gateway will be given it.', 'NAME'),
  denyEgress: { ...text('As the gateway will be given it.', 'CIDR'), many: true as const },
  format: {
    description: 'text or json.',
    value: 'WORD',
    parse: (t: string) => {
      if (t !== 'text' && t !== 'json') throw new Error('must be text or json');
      return t;
    },
  },
};

const kind = (
  group: string | undefined,
  version: string,
  plural: string,
  name: string,
  namespaced = false,
): Resource => ({
  ...(group === undefined ? {} : { group }),
  version,
  plural,
  kind: name,
  namespaced,
});
const daemonSets = kind('apps', 'v1', 'daemonsets', 'DaemonSet', true);
const runtimeClasses = kind('node.k8s.io', 'v1', 'runtimeclasses', 'RuntimeClass');
const storageClasses = kind('storage.k8s.io', 'v1', 'storageclasses', 'StorageClass');
const webhookConfigurations = kind(
  'admissionregistration.k8s.io',
  'v1',
  'mutatingwebhookconfigurations',
  'MutatingWebhookConfiguration',
);

/** Answers with the exit status. */
export async function runProviderCheck(args: readonly string[], io: Surroundings): Promise<0 | 1 | 2 | 3> {
  try {
    const options = parseOptions(usage, declared, args, io.env);
    if (!options) return 0;
    const kubeconfig = options.kubeconfig ?? io.env.KUBECONFIG ?? join(homedir(), '.kube/config');
    if (kubeconfig !== 'in-cluster' && !existsSync(kubeconfig))
      throw new UsageError(`there is no kubeconfig ${kubeconfig}: name one with --kubeconfig`);
    const cluster = connectCluster({ name: 'provider', kubeconfig, userAgent: 'gpulease-check' });
    const facts = await gather(cluster);
    const findings = checkCluster(
      {
        ...facts,
        ...(options.toolkitConfig === undefined
          ? {}
          : { toolkitConfig: readText('toolkit-config', options.toolkitConfig) }),
      },
      {
        runtimeClasses: options.runtimeClass,
        deniedCidrs: options.denyEgress,
        ...(options.storageClass === undefined ? {} : { storageClass: options.storageClass }),
      },
    );
    io.out(options.format === 'json' ? `${JSON.stringify(findings, null, 2)}\n` : inWords(findings));
    return findings.some(({ verdict }) => verdict === 'refused') ? 1 : 0;
  } catch (error) {
    io.err(`gpulease: ${(error as Error).message}\n`);
    return error instanceof UsageError ? 2 : 3;
  }
}

function inWords(findings: readonly Finding[]): string {
  const lines = findings.flatMap(({ check, verdict, saw, fix }) => [
    `${verdict.padEnd(9)}${check.padEnd(20)}${saw}`,
    ...(fix === undefined ? [] : [`${' '.repeat(29)}→ ${fix}`]),
  ]);
  const count = (verdict: Finding['verdict']) => findings.filter((one) => one.verdict === verdict).length;
  const sum =
    count('refused') > 0
      ? `${count('refused')} to mend before GPUs are offered.`
      : `Nothing stands in the way${count('unknown') > 0 ? ` of what could be seen; ${count('unknown')} to look at yourself` : ''}.`;
  return `${lines.join('\n')}\n\n${sum}\n`;
}

interface Template {
  spec?: { template?: { spec?: { containers?: Container[]; initContainers?: Container[] } } };
}
interface Container {
  image?: string;
  args?: string[];
  command?: string[];
  env?: { name: string; value?: string }[];
}
interface Webhook {
  name: string;
  namespaceSelector?: { matchLabels?: Record<string, string>; matchExpressions?: Expression[] };
  rules?: { resources?: string[]; apiGroups?: string[] }[];
}
interface Expression {
  key: string;
  operator: string;
  values?: string[];
}

async function gather(cluster: Cluster): Promise<ClusterFacts> {
  const list = async <T>(resource: Resource) => (await cluster.list<KubeObject & T>(resource, {})).items;
  const optional = async <T>(resource: Resource) =>
    list<T>(resource).catch((error) => {
      if (isNotFound(error)) return [];
      throw error;
    });
  const [version, nodes, sets, classes, storage, webhooks, slices, endpoints, hasAdmissionPolicies, podSecurity] =
    await Promise.all([
      get(cluster, '/version').then((answer) =>
        String((JSON.parse(answer) as { gitVersion?: string }).gitVersion ?? ''),
      ),
      list<NodeObject>(resources.nodes),
      list<Template>(daemonSets),
      list(runtimeClasses),
      list(storageClasses),
      list<{ webhooks?: Webhook[] }>(webhookConfigurations),
      optional<{ spec?: { driver?: string; nodeName?: string } }>(resources.resourceSlices),
      cluster
        .list<KubeObject & { endpoints?: { addresses?: string[] }[] }>(resources.endpointSlices, {
          namespace: 'default',
          labelSelector: `${ownLabels.serviceName}=kubernetes`,
        })
        .then(({ items }) => items),
      optional(resources.admissionPolicies).then(
        () => true,
        () => false,
      ),
      tryPodSecurity(cluster),
    ]);
  const offered = nodes.filter(({ metadata }) => isOffered(metadata.labels));
  const cgroupVersions = Object.fromEntries(
    await Promise.all(
      offered.slice(0, 64).map(async ({ metadata: { name } }) => [name, await cgroupOf(cluster, name)] as const),
    ),
  );
  return {
    version,
    nodes,
    daemonSets: sets.map(seenDaemonSet),
    hasAdmissionPolicies,
    ...(podSecurity === undefined ? {} : { podSecurity }),
    cgroupVersions,
    runtimeClasses: classes.map(({ metadata }) => metadata.name),
    storageClasses: storage.map(({ metadata }) => metadata.name),
    podWebhooks: webhooks.flatMap((one) => (one.webhooks ?? []).flatMap((webhook) => seenWebhook(webhook))),
    apiServerAddresses: endpoints.flatMap((slice) =>
      (slice.endpoints ?? []).flatMap(({ addresses }) => addresses ?? []),
    ),
    nodesWithSlices: slices
      .filter(({ spec }) => spec?.driver === 'gpu.nvidia.com')
      .flatMap(({ spec }) => (spec?.nodeName === undefined ? [] : [spec.nodeName])),
  };
}

function seenDaemonSet({ metadata, spec }: KubeObject & Template): SeenDaemonSet {
  const pod = spec?.template?.spec;
  const containers = [...(pod?.initContainers ?? []), ...(pod?.containers ?? [])];
  return {
    name: metadata.name,
    namespace: metadata.namespace ?? '',
    images: containers.map(({ image }) => image ?? ''),
    args: containers.flatMap(({ command, args }) => [...(command ?? []), ...(args ?? [])]),
    env: Object.fromEntries(
      containers.flatMap(({ env }) => (env ?? []).map(({ name, value }) => [name, value ?? ''] as const)),
    ),
  };
}

/** Whether a webhook is asked about pods in a namespace with the labels that tenants' have. */
function seenWebhook({ name, rules, namespaceSelector }: Webhook): SeenWebhook[] {
  const asked = (rules ?? []).some(({ resources: of = [] }) =>
    of.some((one) => ['*', 'pods', 'pods/*', '*/*'].includes(one)),
  );
  if (!asked) return [];
  const has: Record<string, string> = { [ownLabels.tenant]: 'true', [ownLabels.managedBy]: managedBy };
  const { matchLabels = {}, matchExpressions = [] } = namespaceSelector ?? {};
  // Other labels of the namespace (its own name, the level of Pod Security) select no single tenant away from all others.
  const holds = ({ key, operator, values = [] }: Expression) => {
    const value = has[key];
    if (operator === 'In') return value !== undefined && values.includes(value);
    if (operator === 'NotIn') return value === undefined || !values.includes(value);
    return operator === 'Exists' ? value !== undefined : value === undefined;
  };
  const seesTenants =
    Object.entries(matchLabels).every(([key, value]) => has[key] === value) && matchExpressions.every(holds);
  return [{ name, seesTenants }];
}

async function get(cluster: Cluster, path: string): Promise<string> {
  const response = await cluster.raw({ method: 'GET', path, over: 'calls' });
  const body = await readBody(response, path, { maxBytes: 16 << 20, timeoutSeconds: 20 });
  if ((response.statusCode ?? 500) >= 300) throw new Error(`${path}: answered ${response.statusCode}`);
  return body.toString('utf8');
}

/** Kubelets tell it in their metrics since 1.35 or so. */
async function cgroupOf(cluster: Cluster, node: string): Promise<number | undefined> {
  try {
    const page = await get(cluster, `/api/v1/nodes/${node}/proxy/metrics`);
    const said = /^kubelet_cgroup_version(?:\{[^}]*\})? (\d)/m.exec(page)?.[1];
    return said === undefined ? undefined : Number(said);
  } catch {
    return undefined;
  }
}

/** In a namespace that is made for it: what the plugin says depends on the namespace's labels. */
async function tryPodSecurity(cluster: Cluster): Promise<boolean | undefined> {
  const name = `gpulease-check-${randomBytes(4).toString('hex')}`;
  try {
    await cluster.create<KubeObject>(resources.namespaces, {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name, labels: { 'pod-security.kubernetes.io/enforce': 'baseline' } },
    });
  } catch (error) {
    if (isApiError(error)) return undefined;
    throw error;
  }
  try {
    const answer = await cluster.raw({
      method: 'POST',
      path: `/api/v1/namespaces/${name}/pods?dryRun=All`,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: 'check' },
        spec: {
          automountServiceAccountToken: false,
          containers: [{ name: 'main', image: 'none', securityContext: { privileged: true } }],
        },
      }),
      over: 'calls',
    });
    const said = (await readBody(answer, 'the trial pod', { maxBytes: 1 << 20, timeoutSeconds: 20 })).toString('utf8');
    if (answer.statusCode === 201) return false;
    return answer.statusCode === 403 && said.includes('PodSecurity') ? true : undefined;
  } finally {
    await cluster.delete(resources.namespaces, { name });
  }
}
