/** What is done with both charts, in this order; each step stands on those before it. */
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { load } from 'js-yaml';
import { annotations, apiVersion, labels, managedBy } from '../../operator/api/labels.ts';
import { ledgerOfConfigMap } from '../../operator/controllers/provider/ledgers.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { type CommandError, command } from '../../operator/sandbox/command.ts';
import { root } from '../../operator/sandbox/image/builder.ts';
import { apiServerOf, type KindCluster } from '../../operator/sandbox/kind/pair.ts';
import { until } from '../../operator/sandbox/scenario.ts';
import { nothingHeld } from './chain.ts';
import { CHARTS, GATEWAY_NODE_PORT, type Lab, nameOf, type Shipped } from './lab.ts';
import { logLines } from './relay.ts';
import {
  type Change,
  gpuProviderFor,
  type Helm,
  NAMESPACE,
  OUR_NAMESPACES,
  operatorRelease,
  PROVIDER_NAME,
  providerRelease,
} from './release.ts';

export interface Bench {
  readonly lab: Lab;
  readonly helm: Helm;
}

export type Figures = Readonly<Record<string, number | string | boolean>>;

export interface Step {
  readonly name: string;
  readonly what: string;
  run(bench: Bench): Promise<Figures | undefined>;
}

const example = (name: string) => join(root, 'examples', name);

export const steps: readonly Step[] = [
  { name: 'install', what: 'both charts of the version before are installed, and a lease serves', run: install },
  {
    name: 'upgrade',
    what: "both are upgraded to this tree's under the live lease, whose pods do not notice",
    run: upgrade,
  },
  { name: 'network', what: "the consumer's pods reach the provider's gateway and nothing else of it", run: network },
  { name: 'examples', what: 'every example checks itself', run: examples },
  { name: 'helm-test', what: 'both charts test themselves', run: helmTest },
  {
    name: 'uninstall',
    what: 'both charts are uninstalled under a live lease: settled, and nothing left',
    run: uninstall,
  },
  { name: 'reinstall', what: 'both charts are installed again, and a lease serves', run: reinstall },
  {
    name: 'left-alone',
    what: "the provider's chart is uninstalled under that lease, while the consumer stays: settled, and nothing left",
    run: leftAlone,
  },
  {
    name: 'behind-nat',
    what: 'nobody can connect to the provider any more: its gateway dials the operator, then a relay',
    run: behindNat,
  },
];

/** The version that the clusters begin with. */
const first = ({ previous, current }: Lab): Shipped => ('none' in previous ? current : previous);

async function install({ lab, helm }: Bench): Promise<Figures> {
  const version = first(lab);
  const figures = await installBoth(lab, helm, version);
  await liveLease(lab);
  return { version: version.called, ...figures };
}

async function installBoth(
  lab: Lab,
  helm: Helm,
  version: Shipped,
  change: Change = {},
): Promise<{ helmSeconds: number }> {
  const since = Date.now();
  const releases = [providerRelease(lab, version, change), operatorRelease(lab, version, change)];
  for (const { name, unknownValues } of releases)
    if (unknownValues.length > 0)
      lab.report(`${name} of ${version.called} knows no ${unknownValues.join(', ')}: installed without`);
  await Promise.all(releases.map((release) => helm.install(release, lab.signal)));
  const helmSeconds = seconds(since);
  await knowProvider(lab);
  return { helmSeconds };
}

async function knowProvider(lab: Lab): Promise<void> {
  const { consumer } = lab;
  await consumer.kubectl(['apply', '-f', '-'], { input: await gpuProviderFor(lab) });
  await consumer
    .kubectl(['wait', '--for=condition=Ready', 'gpuprovider', '--all', '--timeout=120s'], { timeoutSeconds: 130 })
    .catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await consumer.kubectl(['get', 'gpuproviders', '-o', 'yaml'])}`);
    });
  await until(
    'mirroring an offer',
    60,
    async () => {
      const { items } = await lab.consumerCluster.list(resources.gpuOffers, {}, lab.signal);
      return (
        items.some((offer) => ((offer as { status?: { available?: number } }).status?.available ?? 0) > 0) || undefined
      );
    },
    lab.signal,
  );
}

/** Seconds from a container's start to its pod's readiness, by the kubelet's own account, which counts whole seconds. */
async function startTimes(lab: Lab): Promise<Figures> {
  const out: Record<string, number> = {};
  for (const cluster of [lab.consumerCluster, lab.providerCluster]) {
    for (const pod of await ourPods(cluster)) {
      const component = pod.metadata.labels?.['app.kubernetes.io/component'];
      const started = pod.status?.containerStatuses?.[0]?.state?.running?.startedAt;
      const ready = pod.status?.conditions?.find(
        ({ type, status }) => type === 'Ready' && status === 'True',
      )?.lastTransitionTime;
      if (component && started && ready)
        out[`${component}ReadySeconds`] = (Date.parse(ready) - Date.parse(started)) / 1000;
    }
  }
  return out;
}

interface Pod extends KubeObject {
  readonly status?: {
    readonly phase?: string;
    readonly conditions?: readonly {
      readonly type: string;
      readonly status: string;
      readonly lastTransitionTime: string;
    }[];
    readonly containerStatuses?: readonly {
      readonly restartCount: number;
      readonly state?: { readonly running?: { readonly startedAt: string } };
    }[];
  };
}

/** `reached`, `refused`, or `nothing` where packets vanish, as a pod of the cluster finds it. */
async function reach(lab: Lab, cluster: KindCluster, host: string, port: number): Promise<string> {
  const script = `const s = require('net').connect({ host: '${host}', port: ${port}, timeout: 3000 });
const say = (word) => { console.log(word); process.exit(0); };
s.on('connect', () => say('reached')).on('timeout', () => say('nothing')).on('error', (e) => say(e.code === 'ECONNREFUSED' ? 'refused' : 'nothing'));`;
  const said = await cluster.kubectl(['-n', 'default', 'exec', 'probe', '--', 'node', '-e', script], {
    signal: lab.signal,
  });
  return said.trim();
}

async function probe(lab: Lab, cluster: KindCluster): Promise<void> {
  const pod = {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'probe', namespace: 'default' },
    spec: {
      terminationGracePeriodSeconds: 0,
      tolerations: [{ operator: 'Exists' }],
      containers: [
        {
          name: 'probe',
          image: nameOf(lab.current),
          imagePullPolicy: 'Never',
          command: ['node', '-e', 'setInterval(() => {}, 1 << 30)'],
        },
      ],
    },
  };
  await cluster.kubectl(['-n', 'default', 'delete', 'pod', 'probe', '--ignore-not-found']); // of a run that was cut off
  await cluster.kubectl(['apply', '-f', '-'], { input: JSON.stringify(pod) });
  await cluster.kubectl(['-n', 'default', 'wait', '--for=condition=Ready', 'pod/probe', '--timeout=60s']);
}

async function network({ lab }: Bench): Promise<Figures> {
  const { consumer, provider, gateway } = lab;
  await Promise.all([probe(lab, consumer), probe(lab, provider)]);
  const api = apiServerOf(provider);
  const found: string[] = [];
  let probes = 0;
  const expect = async (who: KindCluster, host: string, port: number, what: string, reached: boolean) => {
    probes += 1;
    const how = await reach(lab, who, host, port);
    if ((how === 'reached') !== reached) found.push(`${what} (${host}:${port}): ${how}`);
  };
  // First that the question can be answered with yes.
  await expect(provider, api.host, api.port, "the provider's API server from the provider's own pods", true);
  await expect(consumer, gateway.host, gateway.port, "the provider's gateway from the consumer's pods", true);
  const mistake = await lab.mistake(api.port);
  await expect(consumer, mistake.host, mistake.port, "the provider's API server, opened to the consumer's pods", true);
  await mistake.close();
  await expect(consumer, mistake.host, mistake.port, 'the same, closed again', false);

  await expect(consumer, api.host, api.port, "the provider's API server from the consumer's pods", false);
  await expect(consumer, provider.nodeIp, 10_250, "the provider's kubelet from the consumer's pods", false);
  await expect(
    consumer,
    provider.nodeIp,
    GATEWAY_NODE_PORT,
    "the gateway's node port from the consumer's pods, past its balancer",
    false,
  );
  await expect(consumer, gateway.host, api.port, "the API server's port at the gateway's address", false);
  await expect(provider, consumer.nodeIp, 6443, "the consumer's API server from the provider's pods", false);
  for (const cluster of [consumer, provider])
    await cluster.kubectl(['-n', 'default', 'delete', 'pod', 'probe', '--wait=false']);

  // And that the operator does go that way: it keeps a request at each provider that it knows.
  const way = `${gateway.host}:${gateway.port}`;
  const peers = await until(`a connection of the operator to ${way}`, 30, async () => {
    const all = await peersOfOperator(lab);
    return all.includes(way) ? all : undefined;
  });
  const past = peers.filter((peer) => peer.startsWith(`${provider.nodeIp}:`));
  if (past.length > 0) found.push(`the operator is connected to the provider's node: ${past.join(', ')}`);
  if (found.length > 0) throw new Error(`not as it should be:\n${found.join('\n')}`);
  return { probes, operatorConnections: peers.length };
}

/** Who the operator's pod has TCP connections with, by the table of its own network namespace. */
async function peersOfOperator(lab: Lab): Promise<string[]> {
  const script = `const { readFileSync } = require('fs');
const four = (hex) => hex.match(/../g).reverse().map((one) => parseInt(one, 16)).join('.');
const rows = ['tcp', 'tcp6'].flatMap((name) => readFileSync('/proc/net/' + name, 'utf8').trim().split('\\n').slice(1));
const established = rows.map((row) => row.trim().split(/\\s+/)).filter((row) => row[3] === '01');
console.log(established.map(([, , peer]) => four(peer.split(':')[0].slice(-8)) + ':' + parseInt(peer.split(':')[1], 16)).join(' '));`;
  const said = await lab.consumer.kubectl(
    ['-n', NAMESPACE, 'exec', 'deployment/gpulease-operator', '--', 'node', '-e', script],
    { signal: lab.signal },
  );
  return said.trim().split(' ');
}

/** Needs a provider that nobody can connect to: see the step `behind-nat`. */
const BEHIND_NAT = '03-behind-nat';

async function examples({ lab }: Bench): Promise<Figures> {
  const out: Record<string, number> = {};
  const all = readdirSync(join(root, 'examples'))
    .sort()
    .filter((name) => existsSync(join(example(name), 'check.sh')));
  for (const name of [BEHIND_NAT, '01-minimal'])
    if (!all.includes(name)) throw new Error(`examples/${name} has no check.sh`);
  // Two at a time, as people work beside each other: mostly they wait. Each has a namespace of its own.
  const waiting = all.filter((name) => name !== BEHIND_NAT);
  const worker = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift())
      out[name] = await checkExample(lab, name);
  };
  await Promise.all([worker(), worker()]);
  return out;
}

/** Seconds. */
async function checkExample(lab: Lab, name: string): Promise<number> {
  const since = Date.now();
  const env = { KUBECONFIG: lab.consumer.kubeconfig, PATH: `${dirname(lab.kubectl)}:${process.env.PATH}` };
  const said = await command('sh', [join(example(name), 'check.sh')], {
    env,
    timeoutSeconds: 600,
    signal: lab.signal,
  });
  if (/nothing to check/.test(said)) throw new Error(`examples/${name} checked nothing: ${said.trim()}`);
  lab.report(`examples/${name} checked in ${seconds(since)} s`);
  return seconds(since);
}

async function behindNat({ lab, helm }: Bench): Promise<Figures> {
  const { consumer, gateway, relay } = lab;
  const own = await until(
    'the operator saying how it is dialled',
    30,
    async () =>
      logLines(await consumer.kubectl(['-n', NAMESPACE, 'logs', 'deployment/gpulease-operator', '--tail=-1'])).find(
        ({ dialOut }) => dialOut !== undefined,
      )?.dialOut,
    lab.signal,
  );
  const since = Date.now();
  await helm.install(providerRelease(lab, lab.current, { dialOut: [own, relay.provider.dialOut] }), lab.signal);
  const upgradeSeconds = seconds(since);
  await consumer.kubectl(['delete', 'gpuprovider', PROVIDER_NAME, '--timeout=60s']);
  await gateway.close();
  await probe(lab, consumer);
  const how = await reach(lab, consumer, gateway.host, gateway.port);
  await consumer.kubectl(['-n', 'default', 'delete', 'pod', 'probe', '--wait=false']);
  if (how === 'reached') throw new Error('the gateway can still be connected to: nothing would be proven');

  const { metadata, spec } = load(await gpuProviderFor(lab)) as GpuProvider;
  const { url, spkiSHA256 } = relay.consumer;
  // As the provider's chart shows it, and as its comment says where a relay is between.
  const ends = [{ ...spec.endpoint }, { via: 'Relay', relay: { url, spkiSHA256 } }];
  if (ends[0]!.via !== 'Reverse') throw new Error(`the chart shows ${JSON.stringify(spec.endpoint)}`);
  const out: Record<string, number> = { upgradeSeconds };
  for (const endpoint of ends) {
    const provider = { apiVersion, kind: 'GpuProvider', metadata, spec: { ...spec, endpoint } };
    await consumer.kubectl(['apply', '-f', '-'], { input: JSON.stringify(provider) });
    out[`by${endpoint.via}Seconds`] = await checkExample(lab, BEHIND_NAT);
    await consumer.kubectl(['delete', 'gpuprovider', metadata.name, '--timeout=60s']);
  }
  const { escrows } = await nothingHeld(lab.chain);
  await nothingLeft(lab);
  return { ...out, escrows };
}

interface GpuProvider {
  readonly metadata: { readonly name: string };
  readonly spec: { readonly endpoint: { readonly via?: string } };
}

async function helmTest({ lab, helm }: Bench): Promise<undefined> {
  await Promise.all([operatorRelease(lab), providerRelease(lab)].map((release) => helm.test(release, lab.signal)));
}

interface Seen {
  readonly uid: string;
  readonly restarts: number;
}
interface LivePods {
  readonly here: Seen;
  readonly there: Seen;
}

/** The example's lease and pod, serving. */
async function liveLease(lab: Lab): Promise<LivePods> {
  const { consumer } = lab;
  const apply = (file: string) => consumer.kubectl(['apply', '-f', join(example('01-minimal'), file)]);
  await apply('namespace.yaml');
  await until('the service account of namespace ml', 30, () =>
    consumer.kubectl(['-n', 'ml', 'get', 'serviceaccount', 'default']).then(
      () => true,
      () => undefined,
    ),
  );
  await apply('lease.yaml');
  await consumer
    .kubectl(['-n', 'ml', 'wait', '--for=condition=Ready', 'gpulease/train', '--timeout=120s'], { timeoutSeconds: 130 })
    .catch(async (error: Error) => {
      throw new Error(
        `${error.message}\n${await consumer.kubectl(['-n', 'ml', 'get', 'gpulease', 'train', '-o', 'yaml'])}`,
      );
    });
  await apply('pod.yaml');
  await consumer.kubectl(['-n', 'ml', 'wait', '--for=condition=Ready', 'pod/hello-gpu', '--timeout=120s'], {
    timeoutSeconds: 130,
  });
  return pods(lab);
}

async function pods(lab: Lab): Promise<LivePods> {
  const seen = (pod: Pod | undefined, where: string): Seen => {
    if (pod?.status?.phase !== 'Running')
      throw new Error(`the leased pod does not run ${where}: ${pod?.status?.phase ?? 'it is gone'}`);
    const restarts = (pod.status.containerStatuses ?? []).reduce((sum, one) => sum + one.restartCount, 0);
    return { uid: pod.metadata.uid!, restarts };
  };
  const here = await lab.consumerCluster.get<Pod>(resources.pods, { namespace: 'ml', name: 'hello-gpu' });
  const { items } = await lab.providerCluster.list<Pod>(resources.pods, {
    labelSelector: `${labels.managedBy}=${managedBy}`,
  });
  const there = items.find((pod) => pod.metadata.annotations?.[annotations.podUid] === here?.metadata.uid);
  return { here: seen(here, 'at the consumer'), there: seen(there, 'at the provider') };
}

const same = (one: LivePods, other: LivePods) => JSON.stringify(one) === JSON.stringify(other);

async function upgrade({ lab, helm }: Bench): Promise<Figures> {
  const from = first(lab);
  const before = await liveLease(lab);
  // Where the version before is this one, something must change, or nothing is proven.
  const podAnnotations = { 'gpulease.dev/e2e': `upgraded-${Date.now()}` };
  const programs = await programPods(lab);
  const { helmSeconds } = await installBoth(lab, helm, lab.current, { podAnnotations });
  for (const uid of await programPods(lab))
    if (programs.includes(uid))
      throw new Error('a process of ours was not replaced by the upgrade: nothing was proven');
  const now = await pods(lab);
  if (!same(before, now))
    throw new Error(`the upgrade was noticed: ${JSON.stringify(before)} became ${JSON.stringify(now)}`);

  // Conditions may be the old processes' word; a voucher that comes from now on is the new ones'.
  const vouched = await servedSeconds(lab);
  const onward = await until('the next voucher', 60, async () => {
    const seconds = await servedSeconds(lab);
    return seconds > vouched ? seconds : undefined;
  });
  await lab.consumer.kubectl(['-n', 'ml', 'wait', '--for=condition=Ready', 'gpulease/train', '--timeout=60s']);
  const said = await lab.consumer.kubectl(['-n', 'ml', 'logs', 'hello-gpu', '--tail=1']);
  if (!said.startsWith('GPU: GPU-')) throw new Error(`the leased pod says after the upgrade: ${said}`);
  if (!same(before, await pods(lab))) throw new Error('the leased pod was changed a while after the upgrade');
  await endLease(lab);
  return {
    from: from.called,
    otherCharts: from !== lab.current && (await chartsDiffer(from, lab.current)),
    otherImage: nameOf(from) !== nameOf(lab.current),
    helmSeconds,
    podsUnchanged: true,
    servedSeconds: onward,
    ...(await startTimes(lab)),
  };
}

async function chartsDiffer(one: Shipped, other: Shipped): Promise<boolean> {
  const folders = CHARTS.map((chart) => [join(one.folder, chart), join(other.folder, chart)] as const);
  const differ = await Promise.all(
    folders.map(([here, there]) =>
      command('diff', ['--recursive', '--brief', here, there]).then(
        () => false,
        () => true,
      ),
    ),
  );
  return differ.includes(true);
}

/** Of the last voucher of the live lease. */
async function servedSeconds(lab: Lab): Promise<number> {
  const lease = await lab.consumerCluster.get<KubeObject & { status?: { settlement?: { servedSeconds?: number } } }>(
    resources.gpuLeases,
    { namespace: 'ml', name: 'train' },
  );
  return lease?.status?.settlement?.servedSeconds ?? 0;
}

/** As a person ends it: settled, and nothing left. */
async function endLease(lab: Lab): Promise<{ escrows: number }> {
  await lab.consumer.kubectl(['-n', 'ml', 'delete', 'pod', 'hello-gpu', '--ignore-not-found', '--timeout=60s']);
  await lab.consumer.kubectl(['-n', 'ml', 'delete', 'gpulease', 'train', '--timeout=180s'], { timeoutSeconds: 200 });
  const { escrows } = await nothingHeld(lab.chain);
  await nothingLeft(lab);
  return { escrows };
}

async function ourPods(cluster: Cluster): Promise<Pod[]> {
  const lists = await Promise.all(OUR_NAMESPACES.map((namespace) => cluster.list<Pod>(resources.pods, { namespace })));
  return lists.flatMap(({ items }) => items);
}

/** UIDs of our own processes' pods in both clusters. Finished ones are of hooks. */
async function programPods(lab: Lab): Promise<string[]> {
  const uids: string[] = [];
  for (const cluster of [lab.consumerCluster, lab.providerCluster]) {
    const running = (await ourPods(cluster)).filter(
      (pod) => pod.status?.phase === 'Running' && !pod.metadata.deletionTimestamp,
    );
    if (running.length === 0) throw new Error('none of our processes runs');
    uids.push(...running.map((pod) => pod.metadata.uid!));
  }
  return uids;
}

async function uninstall({ lab, helm }: Bench): Promise<Figures> {
  await liveLease(lab);
  // What is looked for later is there now: otherwise it would be found gone whatever happened.
  const kinds = new Set((await leftOfLeases(lab)).map(({ kind }) => kind));
  for (const kind of leaseKinds)
    if (!kinds.has(kind)) throw new Error(`a live lease has no ${kind}: that none is left would prove nothing`);
  await nothingHeld(lab.chain).then(
    () => {
      throw new Error('a live lease has nothing in escrow: that nothing is held would prove nothing');
    },
    () => undefined,
  );
  const installed = await leftOfBoth(lab);
  if (installed.length === 0) throw new Error('the charts have made nothing: that nothing is left would prove nothing');

  await refusedOnce(lab, helm);
  const since = Date.now();
  await helm.uninstall(operatorRelease(lab), lab.signal);
  const operatorSeconds = seconds(since);
  const money = await nothingHeld(lab.chain);
  await nothingLeft(lab);
  const then = Date.now();
  await helm.uninstall(providerRelease(lab), lab.signal);
  const providerSeconds = seconds(then);
  const left = await leftOfBoth(lab);
  if (left.length > 0) throw new Error(`left behind:\n${left.join('\n')}`);
  return {
    operatorSeconds,
    providerSeconds,
    escrows: money.escrows,
    paid: String(money.paid),
    fee: String(money.fee),
    refunded: String(money.refunded),
    held: '0',
    objectsOfCharts: installed.length,
    leftOfCharts: left.length,
  };
}

/** Refused, an uninstallation changes nothing, and says how the release is had back; which is done, word by word. */
async function refusedOnce(lab: Lab, helm: Helm): Promise<void> {
  const refusing = operatorRelease(lab, lab.current, { onOpenLeases: 'Refuse' });
  const before = await pods(lab);
  await helm.install(refusing, lab.signal);
  const said = await helm
    .run(refusing, ['uninstall', refusing.name, '--wait', '--timeout', '2m'], 150, lab.signal)
    .then(
      () => {
        throw new Error('the operator was uninstalled, though a lease is open and onOpenLeases is Refuse');
      },
      (error: CommandError) => `${error.message}\n${error.stdout}`,
    );
  const words = /helm (rollback gpulease-operator \d+) --namespace \S+/.exec(said)?.[1]?.split(' ');
  if (!/Refused: leases are open/.test(said) || !words)
    throw new Error(`a refused uninstallation does not say how it is undone: ${said}`);
  await helm.run(refusing, [...words, '--wait', '--timeout', '2m'], 150, lab.signal);
  await helm.install(operatorRelease(lab), lab.signal); // which Helm would refuse without the rollback
  const now = await pods(lab);
  if (!same(before, now))
    throw new Error(`the refusal was noticed: ${JSON.stringify(before)} became ${JSON.stringify(now)}`);
}

const leaseKinds = ['node', 'tenant', 'pod', 'reservation', 'heartbeat'] as const;
interface Left {
  readonly kind: (typeof leaseKinds)[number];
  readonly name: string;
}

/** What there is of leases: nodes and their heartbeats, tenants, their pods, GPUs in a ledger. */
async function leftOfLeases(lab: Lab): Promise<Left[]> {
  const found: Left[] = [];
  const add = (kind: Left['kind'], names: readonly string[]) => found.push(...names.map((name) => ({ kind, name })));
  const ours = `${labels.managedBy}=${managedBy}`;
  const nodes = await lab.consumerCluster.list(resources.nodes, { labelSelector: ours });
  add(
    'node',
    nodes.items.map((node) => node.metadata.name),
  );
  const heartbeats = await lab.consumerCluster.list(resources.leases, { namespace: 'kube-node-lease' });
  add(
    'heartbeat',
    heartbeats.items.map((one) => one.metadata.name).filter((name) => name !== lab.consumer.node),
  );
  const tenants = await lab.providerCluster.list(resources.namespaces, { labelSelector: labels.tenant });
  add(
    'tenant',
    tenants.items.map((one) => one.metadata.name),
  );
  const carried = await lab.providerCluster.list(resources.pods, { labelSelector: ours });
  const ofTenants = carried.items.filter((one) => one.metadata.labels?.[labels.tenant] !== undefined);
  add(
    'pod',
    ofTenants.map((one) => `${one.metadata.namespace}/${one.metadata.name}`),
  );
  for (const map of (await lab.providerCluster.list<KubeObject>(resources.configMaps, {})).items) {
    if (!map.metadata.name.startsWith('ledger-')) continue;
    const { entries } = ledgerOfConfigMap(map as never);
    add(
      'reservation',
      Object.keys(entries).map((id) => `${id} in ${map.metadata.name}`),
    );
  }
  return found;
}

/** A tenant's namespace, and with it the room, goes a moment after its lease. */
async function nothingLeft(lab: Lab): Promise<void> {
  let left: Left[] = [];
  await until(
    'everything of the lease being gone',
    90,
    async () => {
      left = await leftOfLeases(lab);
      return left.length === 0 || undefined;
    },
    lab.signal,
  ).catch((error: Error) => {
    throw new Error(`${error.message}; left behind: ${left.map(({ kind, name }) => `${kind} ${name}`).join(', ')}`);
  });
}

const leftOfBoth = async (lab: Lab) => [...(await leftOfUs(lab.consumer, lab)), ...(await leftOfUs(lab.provider, lab))];

/** What the charts make, and what their programs make beside: all but the kinds, which are kept by choice, and namespaces. */
async function leftOfUs(cluster: KindCluster, { provider }: Lab): Promise<string[]> {
  const kindsOfObjects = [
    'clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings,storageclasses,csidrivers,deviceclasses',
    'deployments,daemonsets,jobs,pods,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies',
  ];
  const found: string[] = [];
  const columns = 'custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name';
  for (const list of kindsOfObjects) {
    const said = await cluster.kubectl(['get', list, '-A', '-o', columns, '--no-headers']);
    // Kubernetes' own: an account in each namespace, and pods of the control plane, named after the node.
    const ours = said
      .split('\n')
      .filter(
        (line) => /gpulease/.test(line.replaceAll(cluster.node, '')) && !/^ServiceAccount .* default *$/.test(line),
      );
    found.push(...ours.map((line) => `${cluster.name}: ${line.replaceAll(/\s+/g, ' ')}`));
  }
  if (cluster === provider) {
    const taints = await cluster.kubectl(['get', 'node', cluster.node, '-o', 'jsonpath={.spec.taints[*].key}']);
    if (taints.includes(labels.offered)) found.push(`the taint ${labels.offered} of the provider's node`);
  }
  return found;
}

async function reinstall({ lab, helm }: Bench): Promise<Figures> {
  const since = Date.now();
  const figures = await installBoth(lab, helm, lab.current);
  await liveLease(lab);
  return { ...figures, readySeconds: seconds(since) };
}

async function leftAlone({ lab, helm }: Bench): Promise<Figures> {
  await pods(lab);
  const since = Date.now();
  await helm.uninstall(providerRelease(lab), lab.signal);
  const providerSeconds = seconds(since);
  const { escrows } = await nothingHeld(lab.chain);
  const left = await leftOfUs(lab.provider, lab);
  if (left.length > 0) throw new Error(`left behind:\n${left.join('\n')}`);
  await endLease(lab);
  return { providerSeconds, escrows };
}

const seconds = (since: number) => Math.round((Date.now() - since) / 100) / 10;
