/**
 * Whether a cluster is fit to have tenants: what isolation leans on and only the provider can set up. Each finding says what
 * was seen and what to do; a check that nothing could be learnt of says so, and is not passed.
 *
 *   refused   do not offer GPUs before this is mended
 *   warning   works, and is weaker or less than you may think
 *   unknown   nothing could be learnt: look yourself
 */
import { labels as ownLabels, taints } from '../../api/labels.ts';
import { modelOfProduct } from '../../api/models.ts';
import { isOffered, type NodeObject, viewNode } from './node-view.ts';
import { privateV4 } from './tenant.ts';

export type Verdict = 'ok' | 'warning' | 'unknown' | 'refused';

export interface Finding {
  readonly check: string;
  readonly verdict: Verdict;
  readonly saw: string;
  /** Absent: nothing is to be done. */
  readonly fix?: string;
}

/** A DaemonSet, reduced to what tells which program it is and how it is set. */
export interface SeenDaemonSet {
  readonly name: string;
  readonly namespace: string;
  readonly images: readonly string[];
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface SeenWebhook {
  readonly name: string;
  /** It is asked about pods in namespaces with the labels of a tenant. */
  readonly seesTenants: boolean;
}

export interface ClusterFacts {
  /** As `kubectl version` has it, e.g. v1.36.3. */
  readonly version: string;
  readonly nodes: readonly NodeObject[];
  readonly daemonSets: readonly SeenDaemonSet[];
  readonly hasAdmissionPolicies: boolean;
  /** Whether a privileged pod was refused in a namespace of level baseline; undefined: it could not be tried. */
  readonly podSecurity?: boolean;
  /** Of each offered node, from its kubelet's metrics; undefined: it did not tell. */
  readonly cgroupVersions: Readonly<Record<string, number | undefined>>;
  readonly runtimeClasses: readonly string[];
  readonly storageClasses: readonly string[];
  readonly podWebhooks: readonly SeenWebhook[];
  /** Nodes on which another driver hands out GPUs (dynamic resource allocation). */
  readonly nodesWithSlices: readonly string[];
  /** Where the API server is reached from inside the cluster. */
  readonly apiServerAddresses: readonly string[];
  /** Text of a node's /etc/nvidia-container-runtime/config.toml, where it was given. */
  readonly toolkitConfig?: string;
}

/** What the provider will run the gateway with. */
export interface Wanted {
  readonly runtimeClasses: readonly string[];
  readonly storageClass?: string;
  /** Networks that tenants are kept out of, beside all private ones. */
  readonly deniedCidrs: readonly string[];
}

export const oldestMinor = 33;

const ok = (check: string, saw: string): Finding => ({ check, verdict: 'ok', saw });
const not = (check: string, verdict: Exclude<Verdict, 'ok'>, saw: string, fix: string): Finding => ({
  check,
  verdict,
  saw,
  fix,
});
const some = (names: readonly string[]): string =>
  names.length > 4 ? `${names.slice(0, 4).join(', ')} and ${names.length - 4} more` : names.join(', ');
const minorOf = (version: string): number => Number(/^v?1\.(\d+)/.exec(version)?.[1] ?? Number.NaN);

export function checkCluster(facts: ClusterFacts, wanted: Wanted): readonly Finding[] {
  const offered = facts.nodes.filter(({ metadata }) => isOffered(metadata.labels));
  return [
    kubernetes(facts),
    facts.hasAdmissionPolicies
      ? ok('admission policies', 'the API server has ValidatingAdmissionPolicy v1')
      : not(
          'admission policies',
          'refused',
          'the API server has no ValidatingAdmissionPolicy v1',
          'upgrade Kubernetes, or do not switch the admission plugin off: pods of tenants would be judged by the gateway alone',
        ),
    podSecurity(facts),
    networkPolicies(facts),
    publicAddresses(facts, wanted),
    ...nodes(offered),
    ...kubelets(offered, facts),
    deviceList(facts),
    toolkit(facts),
    ...wanted.runtimeClasses.map((name) =>
      facts.runtimeClasses.includes(name)
        ? ok('runtime class', `${name} exists`)
        : not(
            'runtime class',
            'refused',
            `there is no RuntimeClass ${name}`,
            'create it, and install its handler on the offered nodes',
          ),
    ),
    ...(wanted.storageClass === undefined
      ? []
      : [
          facts.storageClasses.includes(wanted.storageClass)
            ? ok('storage class', `${wanted.storageClass} exists`)
            : not(
                'storage class',
                'refused',
                `there is no StorageClass ${wanted.storageClass}`,
                'create it, or leave --storage-class out',
              ),
        ]),
    webhooks(facts),
    slices(facts, offered),
  ];
}

function kubernetes({ version }: ClusterFacts): Finding {
  const minor = minorOf(version);
  if (Number.isNaN(minor))
    return not('kubernetes', 'unknown', `version "${version.slice(0, 40)}"`, 'compare with the README');
  return minor >= oldestMinor
    ? ok('kubernetes', version)
    : not('kubernetes', 'refused', version, `upgrade to 1.${oldestMinor} or newer, which is what this is tested with`);
}

function podSecurity({ podSecurity: refused }: ClusterFacts): Finding {
  const check = 'pod security';
  if (refused) return ok(check, 'a privileged pod is refused where the level is baseline');
  return refused === undefined
    ? not(check, 'unknown', 'could not be tried', 'run the check as somebody who may create namespaces')
    : not(
        check,
        'refused',
        'a privileged pod was let into a namespace of level baseline',
        'switch the admission plugin PodSecurity on (--enable-admission-plugins of the API server), and exempt no namespace "gl-…"',
      );
}

/** Programs that enforce NetworkPolicies, by a word in the name of their image; and those that are known not to. */
const enforcers: readonly (readonly [
  word: RegExp,
  name: string,
  unless?: (set: SeenDaemonSet) => string | undefined,
])[] = [
  [/calico\/node|calico-node/, 'Calico'],
  [/cilium\/cilium(@|:|$)|\/cilium-agent/, 'Cilium'],
  [/antrea/, 'Antrea'],
  [
    /kube-router/,
    'kube-router',
    (set) => (set.args.some((arg) => arg === '--run-firewall=false') ? 'its firewall is off' : undefined),
  ],
  [/kube-network-policies/, 'kube-network-policies'],
  [/kindnetd/, 'kindnet'],
  [/ovn-kube|ovnkube/, 'OVN-Kubernetes'],
  [/kube-ovn/, 'Kube-OVN'],
  [/weave-npc/, 'Weave Net'],
  [/azure-npm/, 'Azure Network Policy Manager'],
  [/netd.*anetd|\/anetd/, 'GKE Dataplane V2'],
  [
    /aws-network-policy-agent|aws-eks-network-policy/,
    'Amazon VPC CNI',
    (set) =>
      set.args.some((arg) => arg === '--enable-network-policy=false') ? 'enable-network-policy is false' : undefined,
  ],
];

function networkPolicies({ daemonSets }: ClusterFacts): Finding {
  const check = 'network policies';
  const fix =
    'install a network plugin that enforces NetworkPolicies (Calico, Cilium, Antrea, kube-router, kube-network-policies), and try it: tenants would reach your nodes, services and each other';
  let off: string | undefined;
  for (const set of daemonSets) {
    for (const [word, name, unless] of enforcers) {
      if (!set.images.some((image) => word.test(image))) continue;
      const why = unless?.(set);
      if (why === undefined) return ok(check, `${name} (DaemonSet ${set.namespace}/${set.name})`);
      off = `${name} is installed, but ${why}`;
    }
  }
  const flannel = daemonSets.find(({ images }) => images.some((image) => /flannel/.test(image)));
  if (off !== undefined) return not(check, 'refused', off, fix);
  return flannel
    ? not(
        check,
        'refused',
        `flannel (${flannel.namespace}/${flannel.name}) enforces none, and nothing else was found`,
        fix,
      )
    : not(
        check,
        'unknown',
        'no DaemonSet that is known to enforce them was found (k3s and RKE2 enforce them in their own process)',
        fix,
      );
}

const v4 = (address: string): number | undefined => {
  const parts = address.split('.').map(Number);
  if (parts.length !== 4 || parts.some((part) => !Number.isInteger(part) || part < 0 || part > 255)) return undefined;
  return parts.reduce((sum, part) => sum * 256 + part, 0);
};

/** IPv4 alone; what is no address is in no network. */
function isIn(address: string, cidr: string): boolean {
  const [network = '', length] = cidr.split('/');
  const [one, other] = [v4(address), v4(network)];
  if (one === undefined || other === undefined) return false;
  const size = 2 ** (32 - Number(length ?? 32));
  return Math.floor(one / size) === Math.floor(other / size);
}

function publicAddresses({ nodes: all, apiServerAddresses }: ClusterFacts, { deniedCidrs }: Wanted): Finding {
  const check = 'public addresses';
  const ofNodes = all.flatMap(({ status }) =>
    (status?.addresses ?? []).filter(({ type }) => type.endsWith('IP')).map(({ address }) => address),
  );
  const denied = [...privateV4, ...deniedCidrs];
  const open = [...new Set([...ofNodes, ...apiServerAddresses])].filter(
    (address) => v4(address) !== undefined && !denied.some((cidr) => isIn(address, cidr)),
  );
  return open.length === 0
    ? ok(check, 'tenants are kept out of the addresses of all nodes and of the API server')
    : not(
        check,
        'warning',
        `${some(open)}: nodes, or the API server, where tenants would reach them as part of the internet`,
        `give the gateway ${open
          .slice(0, 4)
          .map((address) => `--deny-egress ${address}/32`)
          .join(' ')}, or the networks that they are in`,
      );
}

function nodes(offered: readonly NodeObject[]): readonly Finding[] {
  const check = 'offered nodes';
  if (offered.length === 0)
    return [
      not(
        check,
        'refused',
        `no node is labelled ${ownLabels.offered}`,
        `kubectl label node NAME ${ownLabels.offered}=true`,
      ),
    ];
  const views = offered.map(viewNode);
  const findings: Finding[] = [];
  const bare = views.filter(({ labels }) => labels['nvidia.com/gpu.product'] === undefined);
  if (bare.length > 0)
    findings.push(
      not(
        'gpu labels',
        'refused',
        `${some(bare.map(({ name }) => name))}: no label nvidia.com/gpu.product`,
        'install GPU feature discovery (it comes with the GPU operator, and with the device plugin’s chart: --set gfd.enabled=true)',
      ),
    );
  const strange = views.filter(
    ({ labels }) =>
      labels['nvidia.com/gpu.product'] !== undefined && modelOfProduct(labels['nvidia.com/gpu.product']) === undefined,
  );
  if (strange.length > 0)
    findings.push(
      not(
        'gpu models',
        'warning',
        some(strange.map(({ name, labels }) => `${name}: ${labels['nvidia.com/gpu.product']}`)),
        'products without a name in the reference’s list of models cannot be offered yet',
      ),
    );
  const none = views.filter(({ devices }) => devices.every(({ count }) => count === 0));
  if (none.length > 0)
    findings.push(
      not(
        'gpus',
        'refused',
        `${some(none.map(({ name }) => name))}: no healthy device that can be offered as what it is`,
        'look at the device plugin’s log; MIG devices that are time-sliced once more, and an invalid MIG layout, are not offered',
      ),
    );
  const shared = views.filter(({ devices }) =>
    devices.some(({ partition }) => ['TimeSliced', 'MPS'].includes(partition)),
  );
  if (shared.length > 0)
    findings.push(
      not(
        'shared gpus',
        'warning',
        `${some(shared.map(({ name }) => name))}: several tenants would use one GPU at a time, without memory of their own`,
        'offer them only under a GpuOffer of partition TimeSliced or MPS, or switch sharing off on these nodes; MIG isolates',
      ),
    );
  const away = views.filter(({ withdrawnBecause }) => withdrawnBecause !== undefined);
  if (away.length > 0)
    findings.push(
      not(
        'withdrawn nodes',
        'warning',
        some(away.map(({ name, withdrawnBecause }) => `${name}: ${withdrawnBecause}`)),
        `nothing is sold of them until that is mended; a taint of your own can go, ${taints.offered} keeps your pods away`,
      ),
    );
  if (findings.length === 0)
    findings.push(
      ok(
        check,
        some(
          views.map(
            ({ name, devices }) =>
              `${name}: ${devices.map(({ count, product, partition }) => `${count} × ${product}${partition === 'None' ? '' : ` (${partition})`}`).join(', ')}`,
          ),
        ),
      ),
    );
  return findings;
}

function kubelets(offered: readonly NodeObject[], { version, cgroupVersions }: ClusterFacts): readonly Finding[] {
  if (offered.length === 0) return [];
  const findings: Finding[] = [];
  const versionOf = (node: NodeObject) => String(node.status?.nodeInfo?.kubeletVersion ?? '');
  const old = offered.filter((node) => !(minorOf(versionOf(node)) >= oldestMinor));
  findings.push(
    old.length === 0
      ? ok('kubelets', `${versionOf(offered[0]!)}${offered.length > 1 ? ` on ${offered.length} nodes` : ''}`)
      : not(
          'kubelets',
          'refused',
          some(old.map((node) => `${node.metadata.name}: ${versionOf(node)}`)),
          `upgrade them to 1.${oldestMinor} or newer (the API server is ${version})`,
        ),
  );
  const names = offered.map(({ metadata }) => metadata.name);
  const first = names.filter((name) => cgroupVersions[name] === 1);
  const silent = names.filter((name) => cgroupVersions[name] === undefined);
  if (first.length > 0)
    findings.push(
      not(
        'control groups',
        'refused',
        `version 1 on ${some(first)}`,
        'boot these nodes with the unified hierarchy: memory of tenants is bounded by it, and kubelets of 1.35 and later refuse version 1',
      ),
    );
  else if (silent.length > 0)
    findings.push(
      not(
        'control groups',
        'unknown',
        `the kubelets of ${some(silent)} do not tell which version they run on`,
        'on the node, `stat -fc %T /sys/fs/cgroup` must say cgroup2fs',
      ),
    );
  else findings.push(ok('control groups', 'version 2'));
  return findings;
}

const plugins = ({ daemonSets }: ClusterFacts) =>
  daemonSets.filter(({ images }) => images.some((image) => /k8s-device-plugin|nvidia-device-plugin/.test(image)));

function deviceList(facts: ClusterFacts): Finding {
  const check = 'device plugin';
  const found = plugins(facts);
  if (found.length === 0)
    return not(
      check,
      'unknown',
      'no DaemonSet of NVIDIA’s device plugin was found',
      'make sure that it hands devices over by CDI or by volume mounts',
    );
  const strategyOf = ({ env, args }: SeenDaemonSet) =>
    args.map((arg) => /^--device-list-strategy=(.*)$/.exec(arg)?.[1]).find(Boolean) ??
    env.DEVICE_LIST_STRATEGY ??
    'envvar';
  const byVariable = found.filter((set) => strategyOf(set).split(',').includes('envvar'));
  return byVariable.length === 0
    ? ok(check, `${strategyOf(found[0]!)} (${found[0]!.namespace}/${found[0]!.name})`)
    : not(
        check,
        'warning',
        `${byVariable[0]!.namespace}/${byVariable[0]!.name} hands devices over by the variable NVIDIA_VISIBLE_DEVICES`,
        'set deviceListStrategy to cdi-cri, cdi-annotations or volume-mounts, so that the toolkit can refuse the variable from unprivileged containers',
      );
}

const accepting = 'accept-nvidia-visible-devices-envvar-when-unprivileged';
const acceptingVariable = 'ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED';

function toolkit({ daemonSets, toolkitConfig }: ClusterFacts): Finding {
  const check = 'container toolkit';
  const fix =
    `set ${accepting} = false (GPU operator: toolkit.env ${acceptingVariable}=false, and devicePlugin.env DEVICE_LIST_STRATEGY=volume-mounts or CDI): ` +
    'an image’s environment alone would be given every GPU of the node';
  if (toolkitConfig !== undefined) {
    // Comments and quotes as TOML has them; the last assignment that is not commented out.
    const said = [...toolkitConfig.matchAll(new RegExp(`^[ \\t]*${accepting}[ \\t]*=[ \\t]*(true|false)`, 'gm'))].at(
      -1,
    )?.[1];
    return said === 'false'
      ? ok(check, `${accepting} = false`)
      : not(
          check,
          'refused',
          said === undefined ? `${accepting} is not set, which means true` : `${accepting} = true`,
          fix,
        );
  }
  const found = daemonSets.filter(
    ({ name, images }) => /container-toolkit/.test(name) || images.some((image) => /container-toolkit/.test(image)),
  );
  const set = found.find(({ env }) => env[acceptingVariable] !== undefined) ?? found[0];
  if (set === undefined)
    return not(
      check,
      'unknown',
      'the toolkit is not installed by a DaemonSet, so how it is set cannot be seen from here',
      `give --toolkit-config a copy of a node’s /etc/nvidia-container-runtime/config.toml; there, ${fix}`,
    );
  return set.env[acceptingVariable] === 'false'
    ? ok(check, `${acceptingVariable}=false (${set.namespace}/${set.name})`)
    : not(
        check,
        'refused',
        `${set.namespace}/${set.name}: ${acceptingVariable}=${set.env[acceptingVariable] ?? '(not set, which means true)'}`,
        fix,
      );
}

function webhooks({ podWebhooks }: ClusterFacts): Finding {
  const seeing = podWebhooks.filter(({ seesTenants }) => seesTenants);
  return seeing.length === 0
    ? ok('webhooks', 'none changes pods of tenants')
    : not(
        'webhooks',
        'warning',
        `${some(seeing.map(({ name }) => name))} may change pods of tenants`,
        `exclude namespaces with the label ${ownLabels.tenant} (namespaceSelector): what they add, the policy of tenants refuses where it is a token, a host path or another node`,
      );
}

function slices({ nodesWithSlices }: ClusterFacts, offered: readonly NodeObject[]): Finding {
  const both = offered
    .filter(({ metadata }) => nodesWithSlices.includes(metadata.name))
    .map(({ metadata }) => metadata.name);
  return both.length === 0
    ? ok('resource claims', 'no offered node hands out GPUs to ResourceClaims')
    : not(
        'resource claims',
        'refused',
        `${some(both)}: GPUs are handed out to ResourceClaims, too, which are not counted here`,
        'take NVIDIA’s DRA driver for GPUs off the offered nodes, or they are sold twice',
      );
}
