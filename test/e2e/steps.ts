/** What is done with both charts, in this order; each step stands on those before it. */
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { annotations, labels, managedBy } from '../../operator/api/labels.ts';
import { ledgerOfConfigMap } from '../../operator/controllers/provider/ledgers.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { command } from '../../operator/sandbox/command.ts';
import { root } from '../../operator/sandbox/image/builder.ts';
import { apiServerOf, type KindCluster } from '../../operator/sandbox/kind/pair.ts';
import { until } from '../../operator/sandbox/scenario.ts';
import { nothingHeld } from './chain.ts';
import type { Lab } from './lab.ts';
import {
  gpuProviderFor,
  type Helm,
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
  { name: 'install', what: 'both charts are installed, and the consumer knows the provider', run: install },
  { name: 'network', what: "the consumer's pods reach the provider's gateway and nothing else of it", run: network },
  { name: 'examples', what: 'every example checks itself', run: examples },
  { name: 'helm-test', what: 'both charts test themselves', run: helmTest },
  { name: 'upgrade', what: 'both charts are upgraded under a live lease, whose pods do not notice', run: upgrade },
  {
    name: 'uninstall',
    what: 'both charts are uninstalled under a live lease: settled, and nothing left',
    run: uninstall,
  },
  { name: 'reinstall', what: 'both charts are installed again, and a lease serves', run: reinstall },
];

async function install({ lab, helm }: Bench): Promise<Figures> {
  const since = Date.now();
  await Promise.all([
    helm.install(providerRelease(lab), root, lab.signal),
    helm.install(operatorRelease(lab), root, lab.signal),
  ]);
  const helmSeconds = seconds(since);
  await knowProvider(lab);
  return { helmSeconds, seconds: seconds(since), ...(await startTimes(lab)) };
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
  const { repository, tag } = lab.image;
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
          image: `${repository}:${tag}`,
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
  const expect = async (who: KindCluster, host: string, port: number, what: string, reached: boolean) => {
    const how = await reach(lab, who, host, port);
    if ((how === 'reached') !== reached) found.push(`${what} (${host}:${port}): ${how}`);
  };
  // First that the question can be answered with yes.
  await expect(provider, api.host, api.port, "the provider's API server from the provider's own pods", true);
  await expect(consumer, gateway.host, gateway.port, "the provider's gateway from the consumer's pods", true);
  await expect(consumer, api.host, api.port, "the provider's API server from the consumer's pods", false);
  await expect(consumer, provider.nodeIp, 10_250, "the provider's kubelet from the consumer's pods", false);
  await expect(
    consumer,
    provider.nodeIp,
    30_443,
    "the gateway's node port from the consumer's pods, past its balancer",
    false,
  );
  await expect(consumer, gateway.host, api.port, "the API server's port at the gateway's address", false);
  await expect(provider, consumer.nodeIp, 6443, "the consumer's API server from the provider's pods", false);
  for (const cluster of [consumer, provider])
    await cluster.kubectl(['-n', 'default', 'delete', 'pod', 'probe', '--wait=false']);
  if (found.length > 0) throw new Error(`not as it should be:\n${found.join('\n')}`);
  return { probes: 7 };
}

async function examples({ lab }: Bench): Promise<Figures> {
  const out: Record<string, number> = {};
  const all = readdirSync(join(root, 'examples'))
    .sort()
    .filter((name) => existsSync(join(example(name), 'check.sh')));
  if (all.length === 0) throw new Error('there are no examples');
  for (const name of all) {
    const since = Date.now();
    const env = { KUBECONFIG: lab.consumer.kubeconfig, PATH: `${dirname(lab.kubectl)}:${process.env.PATH}` };
    await command('sh', [join(example(name), 'check.sh')], { env, timeoutSeconds: 600, signal: lab.signal });
    out[name] = seconds(since);
    lab.report(`examples/${name} checked in ${out[name]} s`);
  }
  return out;
}

async function helmTest({ lab, helm }: Bench): Promise<undefined> {
  await helm.test(operatorRelease(lab), lab.signal);
  await helm.test(providerRelease(lab), lab.signal);
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
  const before = await liveLease(lab);
  const since = Date.now();
  const change = { podAnnotations: { 'gpulease.dev/e2e': `upgraded-${Date.now()}` } };
  const programs = await programPods(lab);
  await Promise.all([
    helm.install(providerRelease(lab, change), root, lab.signal),
    helm.install(operatorRelease(lab, change), root, lab.signal),
  ]);
  const after = await programPods(lab);
  for (const uid of after)
    if (programs.includes(uid))
      throw new Error('a process of ours was not replaced by the upgrade: nothing was proven');
  const took = seconds(since);
  await lab.consumer.kubectl(['-n', 'ml', 'wait', '--for=condition=Ready', 'gpulease/train', '--timeout=120s'], {
    timeoutSeconds: 130,
  });
  const now = await pods(lab);
  if (!same(before, now))
    throw new Error(`the upgrade was noticed: ${JSON.stringify(before)} became ${JSON.stringify(now)}`);
  const said = await lab.consumer.kubectl(['-n', 'ml', 'logs', 'hello-gpu', '--tail=1']);
  if (!said.startsWith('GPU: GPU-')) throw new Error(`the leased pod says after the upgrade: ${said}`);
  return { upgradeSeconds: took, podsUnchanged: true };
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
  const since = Date.now();
  await helm.uninstall(operatorRelease(lab), lab.signal);
  const operatorSeconds = seconds(since);
  await until(
    'the escrow of the live lease being settled',
    120,
    () =>
      nothingHeld(lab.chain).then(
        () => true,
        () => undefined,
      ),
    lab.signal,
  ).catch(async () => nothingHeld(lab.chain));
  const money = await nothingHeld(lab.chain);
  await nothingLeft(lab);
  const then = Date.now();
  await helm.uninstall(providerRelease(lab), lab.signal);
  const providerSeconds = seconds(then);
  await nothingOfUs(lab);
  return {
    operatorSeconds,
    providerSeconds,
    escrows: money.escrows,
    paid: String(money.paid),
    fee: String(money.fee),
    refunded: String(money.refunded),
  };
}

/** After all leases have ended: no node, no pod, no tenant, no reservation. */
async function nothingLeft(lab: Lab): Promise<void> {
  const found: string[] = [];
  const nodes = await lab.consumerCluster.list(resources.nodes, { labelSelector: `${labels.managedBy}=${managedBy}` });
  found.push(...nodes.items.map((node) => `node ${node.metadata.name}`));
  const tenants = await lab.providerCluster.list(resources.namespaces, { labelSelector: labels.tenant });
  found.push(
    ...tenants.items.filter((one) => !one.metadata.deletionTimestamp).map((one) => `tenant ${one.metadata.name}`),
  );
  const carried = await lab.providerCluster.list(resources.pods, { labelSelector: `${labels.managedBy}=${managedBy}` });
  found.push(
    ...carried.items
      .filter((one) => one.metadata.labels?.[labels.tenant] !== undefined)
      .map((one) => `pod ${one.metadata.namespace}/${one.metadata.name}`),
  );
  for (const map of (await lab.providerCluster.list<KubeObject>(resources.configMaps, {})).items) {
    if (!map.metadata.name.startsWith('ledger-')) continue;
    for (const id of Object.keys(ledgerOfConfigMap(map as never).entries))
      found.push(`GPUs held for ${id} in ${map.metadata.name}`);
  }
  if (found.length > 0) throw new Error(`left behind: ${found.join(', ')}`);
}

/** After both charts are gone: what they installed is gone with them, but for the kinds, which are kept by choice. */
async function nothingOfUs(lab: Lab): Promise<void> {
  const kindsOfObjects = [
    'clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,storageclasses,csidrivers,deviceclasses',
    'deployments,daemonsets,jobs,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies',
  ];
  const found: string[] = [];
  for (const cluster of [lab.consumer, lab.provider]) {
    for (const list of kindsOfObjects) {
      const said = await cluster.kubectl(['get', list, '-A', '-o', 'name']);
      found.push(
        ...said
          .split('\n')
          .filter((line) => /gpulease/.test(line))
          .map((line) => `${cluster.name}: ${line}`),
      );
    }
  }
  const taints = await lab.provider.kubectl(['get', 'node', lab.provider.node, '-o', 'jsonpath={.spec.taints[*].key}']);
  if (taints.includes(labels.offered)) found.push(`the taint ${labels.offered} of the provider's node`);
  if (found.length > 0) throw new Error(`left behind:\n${found.join('\n')}`);
}

async function reinstall(bench: Bench): Promise<Figures> {
  const { lab } = bench;
  const since = Date.now();
  // As a person would: what the consumer knew of the provider is written anew with it.
  await lab.consumer
    .kubectl(['delete', 'gpuprovider', PROVIDER_NAME, '--ignore-not-found', '--timeout=60s'])
    .catch(() => undefined);
  await install(bench);
  await liveLease(lab);
  await lab.consumer.kubectl(['-n', 'ml', 'delete', 'pod', 'hello-gpu', '--timeout=60s']);
  await lab.consumer.kubectl(['-n', 'ml', 'delete', 'gpulease', 'train', '--timeout=180s'], { timeoutSeconds: 200 });
  const money = await nothingHeld(lab.chain);
  await until(
    'the tenant being gone',
    60,
    () =>
      nothingLeft(lab).then(
        () => true,
        () => undefined,
      ),
    lab.signal,
  ).catch(() => nothingLeft(lab));
  return { seconds: seconds(since), escrows: money.escrows };
}

const seconds = (since: number) => Math.round((Date.now() - since) / 100) / 10;
