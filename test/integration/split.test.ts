/**
 * Each part a process of its own, under a service account with no more than the rights of core/rights: the road from a lease
 * to its refund, what happens when each of them is killed on the way, and what each account cannot do.
 */
import { execFile } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { accountOf, accounts } from '../../operator/core/rights/accounts.ts';
import { walletName, walletNamespace } from '../../operator/core/rights/consumer.ts';
import { type ProcessName, userOf } from '../../operator/core/rights/rule.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { kubeconfigOf, tokenOf } from '../../operator/sandbox/accounts.ts';
import { type Sandbox, startSandbox } from '../../operator/sandbox/sandbox.ts';
import {
  checkBill,
  checkConservation,
  escrowClient,
  kubectl,
  lease,
  leaseManifest,
  namespaceReady,
  offersReady,
  type Running,
  until,
} from '../../operator/sandbox/scenario.ts';
import { quiet, scratch } from '../support/clusters.ts';

const run = promisify(execFile);
let sandbox: Sandbox;
let train: Running;
const figures: Record<string, unknown> = {};
const as: Partial<Record<ProcessName, Cluster>> = {};
const dir = scratch('split');
const auditLog = (side: string) => join(dir, `${side}-audit.log`);

beforeAll(async () => {
  const policy = join(dir, 'audit-policy.yaml');
  const users = accounts.map((account) => userOf(account));
  writeFileSync(
    policy,
    JSON.stringify({
      apiVersion: 'audit.k8s.io/v1',
      kind: 'Policy',
      omitStages: ['RequestReceived'],
      rules: [{ level: 'Metadata', users }, { level: 'None' }],
    }),
  );
  const audited = (side: string) => ({
    'kube-apiserver': [`--audit-policy-file=${policy}`, `--audit-log-path=${auditLog(side)}`],
  });
  sandbox = await startSandbox({
    dir,
    report: quiet,
    voucherPeriodSeconds: 2,
    split: true,
    planeArgs: { consumer: audited('consumer'), provider: audited('provider') },
  });
  await namespaceReady(sandbox);
  await offersReady(sandbox);
  for (const process of ['operator', 'wallet', 'approver'] as const)
    as[process] = connectCluster({
      name: process,
      kubeconfig: await kubeconfigOf(sandbox.consumer, sandbox.consumerCluster, process),
    });
  for (const process of ['gateway', 'provisioner'] as const)
    as[process] = connectCluster({
      name: process,
      kubeconfig: await kubeconfigOf(sandbox.provider, sandbox.providerCluster, process),
    });
});

afterAll(async () => {
  await sandbox?.stop();
  console.log(JSON.stringify(figures));
});

interface Audited {
  readonly verb: string;
  readonly userAgent?: string;
  readonly user: { readonly username: string };
  readonly objectRef?: { readonly resource?: string; readonly subresource?: string; readonly apiGroup?: string };
  readonly responseStatus?: { readonly code?: number; readonly message?: string };
}

const asked = (process: ProcessName): readonly Audited[] => {
  const { side } = accountOf(process);
  const user = userOf(accountOf(process));
  return (
    readFileSync(auditLog(side), 'utf8')
      .split('\n')
      .filter((line) => line.includes(`"${user}"`))
      .map((line) => JSON.parse(line) as Audited)
      // Not what this test has tried with the account.
      .filter((one) => one.user.username === user && one.userAgent?.startsWith(`gpulease-${process}/`))
  );
};
const nameOf = ({ verb, objectRef }: Audited) =>
  `${verb} ${objectRef?.resource ?? '-'}${objectRef?.subresource ? `/${objectRef.subresource}` : ''}`;

const ctl = (...args: string[]) => kubectl(sandbox, ...args);
const bindings = async () =>
  (await sandbox.consumerCluster.list<KubeObject>(resources.roleBindings, { namespace: 'ml' })).items.map(
    ({ metadata }) => metadata.name,
  );

it('leases, carries a pod with its Secret, and shows its log', async () => {
  train = await lease(sandbox, [leaseManifest('train', 'RTX4090', '0.60')], quiet);
  figures.leaseReadySeconds = train.readySeconds;
  await until('the operator being let in', 20, async () =>
    (await bindings()).includes('gpulease-operator-in-namespace') ? true : undefined,
  );
  expect(await bindings()).not.toContain('gpulease-operator-tokens');
  await sandbox.consumerCluster.create(resources.secrets, {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: 'token', namespace: 'ml' },
    stringData: { value: 's3cret' },
  } as KubeObject);
  await sandbox.consumerCluster.create(resources.pods, {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'hello', namespace: 'ml', labels: { 'gpulease.dev/lease': 'train' } },
    spec: {
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 1,
      volumes: [{ name: 's', secret: { secretName: 'token' } }],
      containers: [
        {
          name: 'main',
          image: 'gpulease.local/busybox:1',
          command: ['sh', '-c', 'echo "$(cat /s/value)"; sleep 600'],
          volumeMounts: [{ name: 's', mountPath: '/s' }],
          resources: { limits: { 'nvidia.com/gpu': 1 } },
        },
      ],
    },
  } as KubeObject);
  await until('the pod running', 60, async () => {
    const pod = await sandbox.consumerCluster.get<KubeObject & { status?: { phase?: string } }>(resources.pods, {
      namespace: 'ml',
      name: 'hello',
    });
    return pod?.status?.phase === 'Running' ? pod : undefined;
  });
  if (!sandbox.simulated)
    await until('the log', 30, async () =>
      (await ctl('logs', '-n', 'ml', 'hello')) === 's3cret\n' ? true : undefined,
    );
});

it('has serving certificates that the approver approved', async () => {
  expect(readFileSync(sandbox.operator.logFile, 'utf8')).not.toContain('the serving certificate was refused');
  const { items } = await sandbox.consumerCluster.list<KubeObject & { status?: { conditions?: object[] } }>(
    resources.csrs,
  );
  for (const { status } of items) expect(JSON.stringify(status?.conditions ?? [])).not.toContain('Denied');
  expect(asked('approver').map(nameOf)).toContain('update certificatesigningrequests/approval');
});

it('opens one escrow although the wallet is killed while it is asked', async () => {
  await sandbox.parts!.wallet.kill('SIGKILL');
  await sandbox.consumerCluster.create(resources.gpuLeases, leaseManifest('second', 'RTX4090', '0.60'));
  const conditionOf = async (type: string) =>
    (
      await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, { namespace: 'ml', name: 'second' })
    )?.status?.conditions?.find((one) => one.type === type);
  // Silence is no news: the lease waits, and says for what.
  await until('the lease saying whom it waits for', 60, async () =>
    /wallet/.test((await conditionOf('Ready'))?.message ?? '') ? true : undefined,
  );
  const train_ = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, {
    namespace: 'ml',
    name: 'train',
  });
  expect(train_?.status?.conditions?.find((one) => one.type === 'Ready')?.status).toBe('True');
  await sandbox.parts!.wallet.restart();
  await until('the second lease being ready', 120, async () =>
    (await conditionOf('Ready'))?.status === 'True' ? true : undefined,
  );
  await ctl('delete', 'gpulease', '-n', 'ml', 'second', '--timeout=60s');
});

describe('what each account cannot do', () => {
  const secretOf = (namespace: string, name: string) => (cluster: Cluster) =>
    cluster.get(resources.secrets, { namespace, name });
  const listSecrets = (namespace: string) => (cluster: Cluster) => cluster.list(resources.secrets, { namespace });
  const outbox = (cluster: Cluster) => {
    const { chainId } = sandbox.chain;
    return secretOf(walletNamespace, `outbox-${chainId}-${sandbox.wallet.slice(2, 12).toLowerCase()}`)(cluster);
  };
  const binding = (namespace: string, role: string, subject: object) => (cluster: Cluster) =>
    cluster.create(resources.roleBindings, {
      apiVersion: 'rbac.authorization.k8s.io/v1',
      kind: 'RoleBinding',
      metadata: { name: 'stolen', namespace, labels: { 'app.kubernetes.io/managed-by': 'gpulease' } },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: role },
      subjects: [subject],
    } as KubeObject);
  const own = { kind: 'ServiceAccount', name: 'gpulease-approver', namespace: 'gpulease-system' };
  const operator = { kind: 'ServiceAccount', name: 'gpulease-operator', namespace: 'gpulease-system' };
  const patchPod = (cluster: Cluster) =>
    cluster.patch(
      resources.pods,
      { namespace: 'default', name: 'bystander' },
      { metadata: { labels: { stolen: 'yes' } } },
      { type: 'merge' },
    );

  beforeAll(async () => {
    await sandbox.consumerCluster.create(resources.pods, {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'bystander', namespace: 'default' },
      spec: { nodeName: 'somewhere', containers: [{ name: 'c', image: 'i' }] },
    } as KubeObject);
    await sandbox.consumerCluster.create(resources.nodes, {
      apiVersion: 'v1',
      kind: 'Node',
      metadata: { name: 'gpu-of-others' },
    } as KubeObject);
  });

  const cases: [string, keyof typeof as, (cluster: Cluster) => Promise<unknown>][] = [
    ["the operator read the wallet's transactions", 'operator', outbox],
    ["the operator list the wallet's Secrets", 'operator', listSecrets(walletNamespace)],
    ['the operator read a Secret of a namespace without leases', 'operator', secretOf('default', 'anything')],
    ['the operator list Secrets where a lease is', 'operator', listSecrets('ml')],
    ['the operator change a pod on another node', 'operator', patchPod],
    [
      'the operator change a node that is not its own',
      'operator',
      (cluster) =>
        cluster.patch(resources.nodes, { name: 'gpu-of-others' }, { spec: { unschedulable: true } }, { type: 'merge' }),
    ],
    [
      'the operator let itself into a namespace',
      'operator',
      binding('default', 'gpulease-operator-in-namespace', operator),
    ],
    [
      'the operator make a pod',
      'operator',
      (cluster) =>
        cluster.create(resources.pods, {
          apiVersion: 'v1',
          kind: 'Pod',
          metadata: { name: 'p', namespace: 'default' },
          spec: { containers: [{ name: 'c', image: 'i' }] },
        } as KubeObject),
    ],
    [
      'the operator move the wallet',
      'operator',
      (cluster) =>
        cluster.patch(
          resources.configMaps,
          { namespace: walletNamespace, name: walletName },
          { data: { url: 'https://elsewhere' } },
          { type: 'merge' },
        ),
    ],
    ['the wallet read records of leases', 'wallet', listSecrets('gpulease-system')],
    ['the approver read a Secret', 'approver', listSecrets('gpulease-system')],
    ['the approver bind itself', 'approver', binding('default', 'gpulease-operator-tokens', own)],
    [
      'the approver let the operator into kube-system',
      'approver',
      binding('kube-system', 'gpulease-operator-tokens', operator),
    ],
    ['the approver bind another role', 'approver', binding('default', 'cluster-admin', operator)],
    [
      'the gateway make a namespace',
      'gateway',
      (cluster) => cluster.create(resources.namespaces, { metadata: { name: 'x' } }),
    ],
    ["the gateway read the provider's transactions", 'gateway', listSecrets('gpulease-provisioner')],
    [
      'the gateway write a ledger',
      'gateway',
      (cluster) =>
        cluster.create(resources.configMaps, { metadata: { name: 'ledger-x', namespace: 'gpulease-system' } }),
    ],
    ['the gateway read a Secret of the cluster', 'gateway', listSecrets('kube-system')],
    ['the provisioner read a Secret of a tenant', 'provisioner', (cluster) => cluster.list(resources.secrets)],
  ];
  it.each(cases)('does not let %s', async (_, who, attempt) => {
    await expect(attempt(as[who]!)).rejects.toMatchObject({ code: 403 });
  });

  it("does not let a thief of the operator's token pay anybody", async () => {
    const place = await sandbox.consumerCluster.get<KubeObject & { data: Record<string, string> }>(
      resources.configMaps,
      {
        namespace: walletNamespace,
        name: walletName,
      },
    );
    const ask = async (token: string, body: object) => {
      const url = `${place!.data.url}/v1/chains/${sandbox.chain.chainId}/transactions`;
      const { stdout } = await run('curl', [
        ...['-sk', '-X', 'POST', '-H', `authorization: Bearer ${token}`, '-d', JSON.stringify(body), url],
      ]);
      return JSON.parse(stdout) as { outcome?: string; refusal?: { message: string }; message?: string };
    };
    const token = await tokenOf(sandbox.consumerCluster, 'operator', 'gpulease-wallet');
    const { USDC } = sandbox.deployment.tokens;
    const thief = '00000000000000000000000000000000000000aa';
    const transfer = `0xa9059cbb${thief.padStart(64, '0')}${'1'.padStart(64, '0')}`;
    expect((await ask(token, { key: 'steal', to: USDC!.address, data: transfer })).refusal?.message).toMatch(
      /does not sign this/,
    );
    const approve = `0x095ea7b3${thief.padStart(64, '0')}${'f'.repeat(64)}`;
    expect((await ask(token, { key: 'steal', to: USDC!.address, data: approve })).refusal?.message).toMatch(
      /may not take token/,
    );
    // A token of the right account for the API server, and one of another account for the wallet.
    const general = await tokenOf(sandbox.consumerCluster, 'operator');
    expect((await ask(general, {})).message).toMatch(/audience/);
    const others = await tokenOf(sandbox.consumerCluster, 'approver', 'gpulease-wallet');
    expect((await ask(others, {})).message).toMatch(/may not ask/);
  });
});

it('settles, and leaves nothing', async () => {
  await ctl('delete', 'pod', '-n', 'ml', 'hello', '--timeout=60s');
  const { leaseId } = train.witness.lease!.status!.settlement!;
  await ctl('delete', 'gpulease', '-n', 'ml', 'train', '--timeout=120s');
  const escrow = await (await escrowClient(sandbox)).lease(leaseId as Hex32);
  // To the base unit. How long the node was Ready is looked at where nothing is killed.
  checkBill(escrow!, escrow!.servedSeconds);
  expect(escrow!.servedSeconds).toBeGreaterThan(10);
  train.witness.stop();
  figures.totals = await checkConservation(sandbox);
  await until('the operator being let out', 60, async () => ((await bindings()).length === 0 ? true : undefined));
  await until('tenants gone', 60, async () => {
    const { items } = await sandbox.providerCluster.list(resources.namespaces, {
      labelSelector: 'gpulease.dev/tenant',
    });
    return items.length === 0 ? true : undefined;
  });
});

/** Asked for and done without: what is watched where that is allowed, and polled where it is not. */
const doneWithout: Partial<Record<ProcessName, readonly string[]>> = {
  // Secrets of pods, and the policy that spares pods, which the chart brings.
  operator: [
    'list secrets',
    'watch secrets',
    'patch mutatingadmissionpolicies',
    'patch mutatingadmissionpolicybindings',
  ],
};

describe('by the audit of the API servers', () => {
  it.each(accounts.map(({ process }) => process))('%s was refused nothing that it needs', (process) => {
    const all = asked(process);
    expect(all.length).toBeGreaterThan(0);
    const refused = new Set(
      all
        .filter(({ responseStatus }) => responseStatus?.code === 403)
        .map((one) => `${nameOf(one)}${/exceeded quota/.test(one.responseStatus?.message ?? '') ? ' (quota)' : ''}`)
        .filter((name) => !doneWithout[process]?.includes(name) && !name.endsWith('(quota)')),
    );
    expect([...refused]).toEqual([]);
    const used = new Set(all.map(nameOf));
    const rights = [...accountOf(process).cluster, ...accountOf(process).within.flatMap(({ rules }) => rules)].flatMap(
      ({ resources: its, verbs }) => its.flatMap((resource) => verbs.map((verb) => `${verb} ${resource}`)),
    );
    figures[`unusedHere_${process}`] = [...new Set(rights.filter((right) => !used.has(right)))];
  });
});
