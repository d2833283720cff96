/**
 * The charts on a real API server with its controllers: installed, upgraded, tested, drained, removed, installed again. There are no
 * nodes, so what would run as a pod of a hook runs here, with the arguments that Helm rendered, under the account that the chart
 * made: that it works proves its rights.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { apiVersion, finalizers, labels, managedBy } from '../../operator/api/labels.ts';
import { runDrain } from '../../operator/cmd/run-drain.ts';
import { runSelfTest } from '../../operator/cmd/run-self-test.ts';
import { runSetup } from '../../operator/cmd/run-setup.ts';
import { recordName, recordText } from '../../operator/core/allocation/record.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import { type Plane, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import * as build from '../support/builders.ts';
import { type Chart, chartFolder, ciValues, type Lab, type Manifest, rendered, run } from './lab.ts';

type Row = (name: string, look: () => Promise<string | undefined>) => Promise<void>;

const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};
const signal = AbortSignal.timeout(900_000);
const base64 = (text: string) => Buffer.from(text).toString('base64');

export async function onServer({
  lab,
  dir,
  report,
  row,
}: {
  lab: Lab;
  dir: string;
  report: (line: string) => void;
  row: Row;
}): Promise<object> {
  const tools = await ensureTools({ need: ['plane'], report });
  const plane = await startPlane({ name: 'charts', dir: join(dir, 'plane'), tools, report });
  try {
    const world = { lab, dir, plane, cluster: connectCluster({ name: 'charts', kubeconfig: plane.kubeconfig }) };
    await operatorRows(world, row);
    await providerRows(world, row);
    return { kubernetes: (await kubectl(world, 'version', '-o', 'json').then(JSON.parse)).serverVersion.gitVersion };
  } finally {
    await plane.stop();
  }
}

interface World {
  readonly lab: Lab;
  readonly dir: string;
  readonly plane: Plane;
  readonly cluster: Cluster;
}

async function helm({ lab, plane, dir }: World, ...args: string[]): Promise<string> {
  const env = {
    ...process.env,
    KUBECONFIG: plane.kubeconfigPath,
    HELM_CACHE_HOME: join(dir, 'helm'),
    HELM_CONFIG_HOME: join(dir, 'helm'),
    HELM_DATA_HOME: join(dir, 'helm'),
  };
  const { status, stdout, stderr } = await run(lab.helm, args, env);
  if (status !== 0) throw new Error(`helm ${args[0]}: ${stderr.trim().slice(-2000)}`);
  return stdout;
}

async function kubectl({ plane }: World, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(plane.tools.kubectl, ['--kubeconfig', plane.kubeconfigPath, ...args]);
  if (status !== 0) throw new Error(`kubectl ${args.slice(0, 3).join(' ')}: ${stderr.trim().slice(-2000)}`);
  return stdout;
}

async function until<T>(what: string, look: () => Promise<T | undefined>, seconds = 60): Promise<T> {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    await sleep(200);
  }
}

/** Pods that nobody runs, but that admission, pod security above all, has let in. */
async function podsOf(world: World, namespace: string, component: string): Promise<string> {
  return until(`a pod of ${component}`, async () => {
    const { items } = await world.cluster.list(
      resources.pods,
      { namespace, labelSelector: `app.kubernetes.io/component=${component}` },
      signal,
    );
    return items[0]?.metadata.name;
  });
}

/** What a hook would run: its arguments, and a kubeconfig of its account, with its roles, while `use` lasts. */
async function asHook<T>(
  world: World,
  chart: Chart,
  namespace: string,
  file: string,
  set: readonly string[],
  use: (args: string[], env: NodeJS.ProcessEnv) => Promise<T>,
): Promise<T> {
  const { manifests } = await rendered(world.lab, { chart, set, namespace });
  const name = { uninstall: `gpulease-uninstall-${chart}`, test: `gpulease-test-${chart}`, setup: 'gpulease-setup' }[
    file
  ]!;
  const own = manifests.filter(({ metadata }) => metadata.name === name);
  const accounts = own.filter(({ kind }) => kind !== 'Job' && kind !== 'Pod');
  const job = own.find(({ kind }) => kind === 'Job' || kind === 'Pod') as Manifest;
  const path = join(world.dir, `${name}.yaml`);
  writeFileSync(path, JSON.stringify({ apiVersion: 'v1', kind: 'List', items: accounts }));
  await kubectl(world, 'apply', '-f', path);
  // The Job itself is looked at by the API server, and not made.
  writeFileSync(`${path}.job`, JSON.stringify(job));
  await kubectl(world, 'create', '--dry-run=server', '-f', `${path}.job`);
  const token = (await kubectl(world, '-n', namespace, 'create', 'token', name)).trim();
  const kubeconfig = join(world.dir, `${name}.kubeconfig`);
  writeFileSync(kubeconfig, JSON.stringify(kubeconfigOf(world.plane, token)));
  const spec = job.kind === 'Pod' ? job.spec : job.spec.template.spec;
  try {
    return await use(spec.containers[0].args.slice(1), { GPULEASE_KUBECONFIG: kubeconfig });
  } finally {
    await kubectl(world, 'delete', '-f', path);
  }
}

const kubeconfigOf = ({ server, caPem }: Plane, token: string) => ({
  apiVersion: 'v1',
  kind: 'Config',
  'current-context': 'hook',
  contexts: [{ name: 'hook', context: { cluster: 'charts', user: 'hook' } }],
  clusters: [{ name: 'charts', cluster: { server, 'certificate-authority-data': base64(caPem) } }],
  users: [{ name: 'hook', user: { token } }],
});

/** Whether an account may do something, as the API server decides. */
async function mayNot(
  world: World,
  account: string,
  questions: readonly (readonly [allowed: boolean, verb: string, resource: string, namespace?: string])[],
): Promise<string | undefined> {
  const wrong: string[] = [];
  for (const [allowed, verb, what, namespace] of questions) {
    // kubectl takes what stands after a slash for a name.
    const [resource = '', subresource] = what.split('/');
    const { stdout } = await run(world.plane.tools.kubectl, [
      '--kubeconfig',
      world.plane.kubeconfigPath,
      'auth',
      'can-i',
      verb,
      resource,
      ...(subresource ? ['--subresource', subresource] : []),
      '--as',
      `system:serviceaccount:${account}`,
      ...(namespace ? ['-n', namespace] : ['-A']),
    ]);
    if ((stdout.trim() === 'yes') !== allowed)
      wrong.push(`${account} ${allowed ? 'may not' : 'may'} ${verb} ${what} in ${namespace ?? 'all namespaces'}`);
  }
  return wrong.length === 0 ? undefined : wrong.join('; ');
}

/** Labels of the release on what is there, other than Helm's own record and what is kept on purpose. */
async function leftovers(world: World, release: string): Promise<string[]> {
  const kinds = (await kubectl(world, 'api-resources', '--verbs=list', '-o', 'name'))
    .trim()
    .split('\n')
    .filter((one) => !/^(events|componentstatuses|bindings)/.test(one));
  const found: string[] = [];
  for (let at = 0; at < kinds.length; at += 20) {
    const list = await kubectl(
      world,
      'get',
      kinds.slice(at, at + 20).join(','),
      '-A',
      '-l',
      `app.kubernetes.io/instance=${release}`,
      '--ignore-not-found',
      '-o',
      'name',
    );
    found.push(...list.trim().split('\n').filter(Boolean));
  }
  return found;
}

const system = 'gpulease-system';

/** As if its pods ran: nobody is there who could say so. Deployments are counted by their controller, from these. */
async function pretend(world: World, namespace: string, components: readonly string[]): Promise<void> {
  const now = new Date().toISOString();
  const ready = ['Initialized', 'ContainersReady', 'Ready'].map((type) => ({
    type,
    status: 'True',
    lastTransitionTime: now,
  }));
  for (const component of components) {
    const labelSelector = `app.kubernetes.io/component=${component}`;
    const { items } = await world.cluster.list(resources.pods, { namespace, labelSelector }, signal);
    for (const { metadata } of items)
      await world.cluster.patch(
        resources.pods,
        { namespace, name: metadata.name },
        { status: { phase: 'Running', conditions: ready } },
        { type: 'strategic', subresource: 'status' },
        signal,
      );
    await until(`${component} being available`, async () => {
      type Deployment = KubeObject & { status?: { availableReplicas?: number } };
      const key = { namespace, name: `gpulease-${component}` };
      const found = await world.cluster.get<Deployment>(deployments, key, signal);
      return (found?.status?.availableReplicas ?? 0) > 0 ? true : undefined;
    });
  }
}

async function lock(world: World, namespace: string, name: string): Promise<void> {
  const now = new Date().toISOString().replace('Z', '000Z');
  await world.cluster.apply(
    resources.leases,
    {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: { name, namespace },
      spec: { holderIdentity: 'somebody', renewTime: now, leaseDurationSeconds: 15 },
    } as KubeObject,
    { fieldManager: 'test' },
    signal,
  );
}

async function operatorRows(world: World, row: Row): Promise<void> {
  const { cluster } = world;
  const install = [
    'install',
    'gpulease',
    chartFolder('operator'),
    '--namespace',
    system,
    '--create-namespace',
    '--values',
    ciValues('operator'),
  ];

  await row('operator: is installed, and admission lets its pods in', async () => {
    await helm(world, ...install);
    await podsOf(world, system, 'operator');
    await podsOf(world, 'gpulease-wallet', 'wallet');
    await podsOf(world, system, 'approver');
    return undefined;
  });

  await row(
    'operator: an upgrade changes what was asked for, and replaces no pods for a new version alone',
    async () => {
      const pod = await podsOf(world, system, 'approver');
      const out = await helm(
        world,
        'upgrade',
        'gpulease',
        chartFolder('operator'),
        '--namespace',
        system,
        '--values',
        ciValues('operator'),
        '--set',
        'operator.replicas=2,operator.flags.sweepSeconds=30',
      );
      if (!out.includes('STATUS: deployed')) return out;
      const { spec } = (await cluster.get<KubeObject & { spec?: { replicas?: number } }>(
        deployments,
        { namespace: system, name: 'gpulease-operator' },
        signal,
      ))!;
      if (spec?.replicas !== 2) return `it has ${spec?.replicas} replicas`;
      return (await podsOf(world, system, 'approver')) === pod ? undefined : 'the pod of the approver was replaced';
    },
  );

  await row(
    'operator: accounts may do their part and no more',
    async () =>
      [
        await mayNot(world, `${system}:gpulease-operator`, [
          [true, 'patch', 'nodes'],
          [true, 'list', 'secrets', system],
          [false, 'list', 'secrets', 'gpulease-wallet'],
          [false, 'get', 'secrets', 'default'],
          [false, 'create', 'pods', 'default'],
          [false, 'create', 'serviceaccounts/token', 'default'],
          [false, 'update', 'certificatesigningrequests/approval'],
          [false, 'create', 'rolebindings', 'default'],
          [false, 'create', 'mutatingadmissionpolicies'],
        ]),
        await mayNot(world, 'gpulease-wallet:gpulease-wallet', [
          [true, 'patch', 'secrets', 'gpulease-wallet'],
          [false, 'list', 'secrets', 'gpulease-wallet'],
          [false, 'get', 'secrets', system],
          [false, 'list', 'nodes'],
          [false, 'list', 'gpuleases'],
        ]),
        await mayNot(world, `${system}:gpulease-approver`, [
          [true, 'update', 'certificatesigningrequests/approval'],
          [false, 'get', 'secrets', system],
          [false, 'patch', 'nodes'],
          [false, 'create', 'clusterrolebindings'],
        ]),
      ]
        .filter(Boolean)
        .join('; ') || undefined,
  );

  await row('operator: helm test says what is wrong, and that all is well, under its own account', async () => {
    const test = async () => {
      const said: string[] = [];
      const status = await asHook(world, 'operator', system, 'test', [], (args, env) =>
        runSelfTest(args, env, { say: (line) => said.push(line) }, signal),
      );
      return { status, said: said.join('\n') };
    };
    const before = await test();
    if (before.status !== 1 || !/FAILED {2}deployment gpulease-wallet: has no pod/.test(before.said))
      return `before: ${before.said}`;
    await pretend(world, system, ['operator', 'approver']);
    await pretend(world, 'gpulease-wallet', ['wallet']);
    await lock(world, system, 'gpulease-operator');
    const after = await test();
    return after.status === 0 && /ok {6}admission policies/.test(after.said) ? undefined : `after: ${after.said}`;
  });

  await row(
    'operator: draining ends a lease, waits for its settlement, and frees finalizers, under its own account',
    async () => {
      const key = { namespace: 'default', name: 'train' };
      await cluster.create(
        resources.gpuLeases,
        {
          apiVersion,
          kind: 'GpuLease',
          metadata: { ...key, finalizers: [finalizers.lease] },
          spec: { gpu: { models: ['RTX4090'] }, pricing: { maxPricePerGpuHour: '0.60' } },
        } as KubeObject,
        signal,
      );
      await cluster.create(
        resources.gpuProviders,
        {
          apiVersion,
          kind: 'GpuProvider',
          metadata: { name: 'ams', finalizers: [finalizers.provider] },
          spec: build.provider().spec,
        } as KubeObject,
        signal,
      );
      const record = build.record({ lease: key, quote: build.quoteRecord(), deposit: '720000' });
      const secret = { name: 'lease-uid', namespace: system };
      await cluster.create(
        resources.secrets,
        {
          apiVersion: 'v1',
          kind: 'Secret',
          type: 'gpulease.dev/lease-record',
          metadata: { ...secret, labels: { [labels.managedBy]: managedBy, [labels.leaseUid]: 'uid' } },
          data: { record: base64(JSON.stringify(record)) },
        } as KubeObject,
        signal,
      );
      const said: string[] = [];
      const operator = async () => {
        await until(
          'the lease being deleted',
          async () => (await cluster.get(resources.gpuLeases, key, signal))?.metadata.deletionTimestamp,
        );
        await cluster.patch(resources.gpuLeases, key, { metadata: { finalizers: null } }, { type: 'merge' }, signal);
        await sleep(3000);
        await cluster.delete(resources.secrets, secret, {}, signal);
      };
      const [status] = await Promise.all([
        asHook(world, 'operator', system, 'uninstall', [], (args, env) =>
          runDrain(args, env, { say: (line) => said.push(line), pollMs: 500 }, signal),
        ),
        operator(),
      ]);
      const provider = await cluster.get(resources.gpuProviders, { name: 'ams' }, signal);
      const operatorNow = await cluster.get<KubeObject & { spec?: { replicas?: number } }>(
        deployments,
        { namespace: system, name: 'gpulease-operator' },
        signal,
      );
      if (status !== 0 || !said.join('\n').includes('0.72 USDC')) return said.join('\n');
      if (provider?.metadata.finalizers?.length) return 'the provider still has our finalizer';
      return operatorNow?.spec?.replicas === 0 ? undefined : 'the operator was not stopped';
    },
  );

  await row('operator: uninstalling leaves kinds and the namespace of the wallet, and nothing else', async () => {
    await helm(world, 'uninstall', 'gpulease', '--namespace', system, '--no-hooks', '--wait');
    const left = (await leftovers(world, 'gpulease')).filter(
      (one) => one !== 'namespace/gpulease-wallet' && !one.startsWith('pod/'),
    );
    const kinds = await kubectl(world, 'get', 'crd', '-o', 'name');
    if (!kinds.includes('gpuleases.gpulease.dev')) return 'the kinds are gone';
    const policies = await kubectl(world, 'get', 'validatingadmissionpolicies,mutatingadmissionpolicies', '-o', 'name');
    return [...left, ...policies.split('\n').filter((one) => one.includes('gpulease'))].join(', ') || undefined;
  });

  await row('operator: is installed again over what was kept', async () => {
    await helm(world, ...install);
    await podsOf(world, 'gpulease-wallet', 'wallet');
    await helm(world, 'uninstall', 'gpulease', '--namespace', system, '--no-hooks', '--wait');
    return undefined;
  });

  await row('operator: a namespace that somebody else has made is left to them', async () => {
    await kubectl(world, 'create', 'namespace', 'our-wallet');
    await helm(world, ...install, '--set', 'wallet.namespace=our-wallet');
    await helm(world, 'uninstall', 'gpulease', '--namespace', system, '--no-hooks', '--wait');
    const { metadata } = (await cluster.get(resources.namespaces, { name: 'our-wallet' }, signal))!;
    return metadata.annotations?.['meta.helm.sh/release-name'] ? 'Helm took it' : undefined;
  });
}

const there = 'gpulease-provider';

async function providerRows(world: World, row: Row): Promise<void> {
  const { cluster } = world;
  // Beside the other chart's kinds, in a namespace of another name.
  const set = ['crds.enabled=false', 'setup.timeoutSeconds=10'];
  const values = ['--values', ciValues('provider'), ...set.flatMap((one) => ['--set', one])];

  await row('provider: is installed beside another chart’s kinds, and admission lets its pods in', async () => {
    await helm(
      world,
      'install',
      'rent',
      chartFolder('provider'),
      '--namespace',
      there,
      '--create-namespace',
      '--no-hooks',
      ...values,
    );
    await podsOf(world, there, 'gateway');
    await podsOf(world, 'gpulease-provisioner', 'provisioner');
    return undefined;
  });

  await row(
    'provider: accounts may do their part and no more',
    async () =>
      [
        await mayNot(world, `${there}:gpulease-gateway`, [
          [true, 'list', 'nodes'],
          [true, 'list', 'secrets', there],
          [false, 'list', 'secrets', 'gpulease-provisioner'],
          [false, 'patch', 'nodes'],
          [false, 'create', 'namespaces'],
          [false, 'create', 'serviceaccounts/token', 'default'],
          [false, 'create', 'rolebindings', 'default'],
        ]),
        await mayNot(world, 'gpulease-provisioner:gpulease-provisioner', [
          [true, 'create', 'namespaces'],
          [true, 'patch', 'nodes'],
          [false, 'get', 'secrets', 'default'],
          [false, 'create', 'pods/exec', 'default'],
          [false, 'create', 'clusterroles'],
        ]),
      ]
        .filter(Boolean)
        .join('; ') || undefined,
  );

  await row('provider: the price list is written, kept to itself, and changed, under its own account', async () => {
    const setup = async (more: readonly string[]) => {
      const list = (
        await rendered(world.lab, { chart: 'provider', set: [...set, ...more], namespace: there })
      ).manifests.find(({ metadata }) => metadata.name === 'gpulease-price-list')!;
      const file = join(world.dir, 'offers.json');
      writeFileSync(file, list.data['offers.json']);
      const said: string[] = [];
      await asHook(world, 'provider', there, 'setup', [...set, ...more], (args, env) =>
        runSetup(
          args.map((one) =>
            one.startsWith('--offers=')
              ? `--offers=${file}`
              : one.startsWith('--wait-seconds=')
                ? '--wait-seconds=1'
                : one,
          ),
          env,
          { say: (line) => said.push(line) },
          signal,
        ),
      );
      return said.join('\n');
    };
    const said = await setup([]);
    const offers = async () =>
      (await cluster.list(resources.gpuOffers, {}, signal)).items
        .map(({ metadata }) => metadata.name)
        .sort()
        .join(' ');
    if ((await offers()) !== 'h100-sxm rtx4090') return `offers are ${await offers()}: ${said}`;
    if (!said.includes('did not answer')) return said;
    await setup(['offers.h100-sxm=null']);
    if ((await offers()) !== 'rtx4090') return `offers are ${await offers()}`;
    await cluster.create(
      resources.gpuOffers,
      {
        apiVersion,
        kind: 'GpuOffer',
        metadata: { name: 'mine' },
        spec: { model: 'H100-SXM', prices: [{ assetSymbol: 'USDC', perGpuHour: '3' }] },
      } as KubeObject,
      signal,
    );
    const taken = await setup([
      'offers.mine.model=H100-SXM',
      'offers.mine.prices[0].assetSymbol=USDC,offers.mine.prices[0].perGpuHour=1.5',
    ]).catch((error: Error) => error.message);
    return /GpuOffer mine is there and not of this price list/.test(taken) ? undefined : taken;
  });

  await row(
    'provider: draining tells the gateway, waits for settlement and takes the taint off, under its own account',
    async () => {
      await cluster.create(
        resources.nodes,
        {
          apiVersion: 'v1',
          kind: 'Node',
          metadata: { name: 'gpu-1', labels: { [labels.offered]: 'true' } },
          spec: { taints: [{ key: labels.offered, value: 'true', effect: 'NoSchedule' }] },
        } as KubeObject,
        signal,
      );
      const key = { name: recordName(build.leaseId), namespace: there };
      const record = {
        version: 1,
        leaseId: build.leaseId,
        chainId: 31337,
        escrow: build.escrowAddress,
        quote: { consumer: build.wallet, expiresAt: 0 },
        nodeName: 'gpu-1',
        state: 'Serving',
        createdAt: '',
        paidSeconds: 0,
      } as never;
      await cluster.create(
        resources.secrets,
        {
          apiVersion: 'v1',
          kind: 'Secret',
          metadata: { ...key, labels: { [labels.managedBy]: managedBy, [labels.leaseId]: 'x' } },
          data: { record: base64(recordText(record)) },
        } as KubeObject,
        signal,
      );
      const said: string[] = [];
      const gateway = async () => {
        const controls = await until('the gateway being told', () =>
          cluster.get<KubeObject & { data?: Record<string, string> }>(
            resources.configMaps,
            { namespace: there, name: 'gpulease-controls' },
            signal,
          ),
        );
        const over = { ...(record as object), state: 'Ended', tornDown: true, settled: true } as never;
        await cluster.patch(
          resources.secrets,
          key,
          { data: { record: base64(recordText(over)) } },
          { type: 'merge' },
          signal,
        );
        return controls.data?.mode;
      };
      const [status, mode] = await Promise.all([
        asHook(world, 'provider', there, 'uninstall', set, (args, env) =>
          runDrain(args, env, { say: (line) => said.push(line), pollMs: 500 }, signal),
        ),
        gateway(),
      ]);
      if (status !== 0 || mode !== 'HoldAndDrain') return `${mode}: ${said.join('\n')}`;
      const node = (await cluster.get<KubeObject & { spec?: { taints?: { key: string }[] } }>(
        resources.nodes,
        { name: 'gpu-1' },
        signal,
      ))!;
      if (node.spec?.taints?.some((one) => one.key === labels.offered)) return 'the node is still tainted';
      const offers = (await cluster.list(resources.gpuOffers, {}, signal)).items
        .map(({ metadata }) => metadata.name)
        .join(' ');
      return offers === 'mine' ? undefined : `offers left: ${offers}`;
    },
  );

  await row('provider: uninstalling leaves the namespace of the provisioner, and nothing else', async () => {
    await helm(world, 'uninstall', 'rent', '--namespace', there, '--no-hooks', '--wait');
    const left = (await leftovers(world, 'rent')).filter(
      (one) => one !== 'namespace/gpulease-provisioner' && !one.startsWith('pod/'),
    );
    return left.join(', ') || undefined;
  });
}
