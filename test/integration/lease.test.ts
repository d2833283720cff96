/** The whole road on real parts, as a user walks it: only through the consumer's API server. */
import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Interface } from 'ethers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import { gpuToken } from '../../operator/contracts/generated/gpu-token.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { papersOf } from '../../operator/sandbox/papers.ts';
import { freePorts } from '../../operator/sandbox/processes.ts';
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';
import {
  checkConservation,
  escrowClient,
  kubectl,
  lease,
  leaseManifest,
  minimal,
  namespaceReady,
  offersReady,
  type Running,
  settle,
  until,
} from '../../operator/sandbox/scenario.ts';
import { quiet, scratch } from '../support/clusters.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

const run = promisify(execFile);
let sandbox: Sandbox;
let train: Running;
const figures: Record<string, unknown> = {};

beforeAll(async () => {
  sandbox = await startSandbox({ dir: scratch('lease'), report: quiet, voucherPeriodSeconds: 2 });
  await namespaceReady(sandbox);
  await offersReady(sandbox);
  train = await minimal(sandbox, quiet);
  figures.leaseReadySeconds = train.readySeconds;
  figures.podRunningSeconds = train.podRunningSeconds;
});

afterAll(async () => {
  await sandbox?.stop();
  console.log(JSON.stringify(figures));
});

const ctl = (...args: string[]) => kubectl(sandbox, ...args);
const ctlArgs = () => ['--kubeconfig', sandbox.consumer.kubeconfigPath];

interface Pod extends KubeObject {
  spec: Record<string, unknown>;
  status?: { phase?: string; reason?: string; message?: string };
}

const podManifest = (name: string, spec: object, namespace = 'ml', leaseName = 'train'): KubeObject =>
  ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace },
    spec: {
      nodeSelector: { 'gpulease.dev/lease': leaseName },
      tolerations: [{ operator: 'Exists' }],
      terminationGracePeriodSeconds: 1,
      restartPolicy: 'Never',
      ...spec,
    },
  }) as KubeObject;

const shell = (script: string, more: object = {}) => [
  { name: 'main', image: 'gpulease.local/busybox:1', command: ['sh', '-c', script], ...more },
];
const gpus = (count: number) => ({ resources: { limits: { 'nvidia.com/gpu': count } } });

const apply = (...manifests: KubeObject[]) =>
  applyManifests(sandbox.consumerCluster, manifests, { fieldManager: 'kubectl' });
const getPod = (name: string, namespace = 'ml') =>
  sandbox.consumerCluster.get<Pod>(resources.pods, { namespace, name });
const phase = (name: string, wanted: string, namespace = 'ml') =>
  until(`pod ${name} ${wanted}`, 40, async () => {
    const pod = await getPod(name, namespace);
    return pod?.status?.phase === wanted ? pod : undefined;
  });
const real = () => !sandbox.simulated;

describe('streams, through the API server only', () => {
  it('shows the log, and follows it', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    expect(await ctl('logs', '-n', 'ml', 'hello-gpu', '--tail', '1')).toMatch(/^GPU: GPU-[0-9a-f-]{36}\n$/);
    const follow = spawn(sandbox.kubectl, [...ctlArgs(), 'logs', '-f', '-n', 'ml', 'hello-gpu', '--tail', '0']);
    let text = '';
    follow.stdout.on('data', (chunk) => (text += chunk));
    await until('three more lines', 20, () => (text.split('\n').length > 3 ? true : undefined));
    follow.kill();
  });

  it('passes on the exit code of exec', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    const code = await run(sandbox.kubectl, [
      ...ctlArgs(),
      'exec',
      '-n',
      'ml',
      'hello-gpu',
      '--',
      'sh',
      '-c',
      'exit 7',
    ]).then(
      () => 0,
      (error: { code: number }) => error.code,
    );
    expect(code).toBe(7);
  });

  it('gives exec a terminal, and tells it when its size changes', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    const inPod =
      'trap "echo resized" WINCH; test -t 0 && echo a-terminal; for i in 1 2 3 4 5 6; do sleep 0.5 & wait $!; done';
    const exec = [sandbox.kubectl, ...ctlArgs(), 'exec', '-it', '-n', 'ml', 'hello-gpu', '--', 'sh', '-c', inPod];
    const quoted = exec.map((a) => `'${a}'`).join(' ');
    const resize =
      '(sleep 1.5; stty rows 40 cols 132 </dev/tty; kill -WINCH $(pgrep -n -f "exec -it -n ml hello-gpu")) &';
    const { stdout } = await run('script', ['-qec', `stty rows 31 cols 101; ${resize} ${quoted}`, '/dev/null']);
    expect(stdout).toContain('a-terminal\r\n');
    expect(stdout).toContain('resized');
  });

  it('carries 20 MB through standard input, which is then half-closed', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    const data = randomBytes(20 << 20);
    const child = spawn(sandbox.kubectl, [...ctlArgs(), 'exec', '-i', '-n', 'ml', 'hello-gpu', '--', 'sha256sum']);
    let text = '';
    child.stdout.on('data', (chunk) => (text += chunk));
    child.stdin.end(data);
    const code = await new Promise((resolve) => child.once('exit', resolve));
    expect(code).toBe(0);
    expect(text.split(' ')[0]).toBe(createHash('sha256').update(data).digest('hex'));
  });

  it('forwards ports', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    await ctl(
      'exec',
      '-n',
      'ml',
      'hello-gpu',
      '--',
      'sh',
      '-c',
      'mkdir -p /tmp/w && echo from-the-pod > /tmp/w/x && httpd -p 8080 -h /tmp/w',
    );
    const [port] = await freePorts(1);
    const child = spawn(sandbox.kubectl, [...ctlArgs(), 'port-forward', '-n', 'ml', 'pod/hello-gpu', `${port}:8080`]);
    try {
      const body = await until('an answer through the forwarded port', 20, async () => {
        const answer = await fetch(`http://127.0.0.1:${port}/x`).catch(() => undefined);
        return answer?.ok ? await answer.text() : undefined;
      });
      expect(body).toBe('from-the-pod\n');
    } finally {
      child.kill();
    }
  });

  it("describes the pod with the provider's events, and the node with GPU labels", async () => {
    if (real())
      await until('the Started event', 20, async () =>
        (await ctl('describe', 'pod', '-n', 'ml', 'hello-gpu')).includes('Started') ? true : undefined,
      );
    const node = await ctl('get', 'node', train.witness.node!, '-o', 'yaml');
    expect(node).toContain('nvidia.com/gpu.product: NVIDIA-GeForce-RTX-4090');
    expect(node).toContain('gpulease.dev/lease: train');
    expect(node).toMatch(/nvidia.com\/gpu: ["']?1/);
  });

  it('refuses callers of the kubelet API who are nobody', async () => {
    const node = await sandbox.consumerCluster.get<
      KubeObject & {
        status: { addresses: { address: string }[]; daemonEndpoints: { kubeletEndpoint: { Port: number } } };
      }
    >(resources.nodes, { name: train.witness.node! });
    const url = `https://${node!.status.addresses[0]!.address}:${node!.status.daemonEndpoints.kubeletEndpoint.Port}/containerLogs/ml/hello-gpu/main`;
    const { stdout } = await run('curl', ['-sk', '-o', '/dev/null', '-w', '%{http_code}', url]);
    expect(stdout).toBe('401');
  });
});

describe('what was sold is sold once', () => {
  let other: Running;

  it('gives two leases disjoint GPUs, and tells a third that none is left', async () => {
    other = await lease(sandbox, [leaseManifest('other', 'RTX4090', '0.60')], quiet);
    await apply(
      podManifest('other-gpu', { containers: shell('echo "GPU: $NVIDIA_VISIBLE_DEVICES"', gpus(1)) }, 'ml', 'other'),
    );
    await phase('other-gpu', 'Succeeded');
    if (real()) {
      const uuid = (await ctl('logs', '-n', 'ml', 'other-gpu')).match(/GPU: (GPU-\S+)/)?.[1];
      expect(uuid).toBeDefined();
      expect(train.gpuUuids).not.toContain(uuid);
    }
    await apply(leaseManifest('third', 'RTX4090', '0.60'));
    const reason = await until('a reason', 30, async () => {
      const third = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, {
        namespace: 'ml',
        name: 'third',
      });
      const ready = third?.status?.conditions?.find((c) => c.type === 'Ready');
      return ready?.reason === 'CapacityExhausted' ? ready : undefined;
    });
    expect(reason.message).toContain('free on one node');
    await ctl('delete', 'gpulease', '-n', 'ml', 'third', '--timeout=30s');
  });

  it("refuses a pod of the provider's own that would take a sold GPU", async () => {
    const own = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'own', namespace: 'default' },
      spec: { tolerations: [{ operator: 'Exists' }], containers: shell('sleep 60', gpus(1)) },
    } as unknown as KubeObject;
    await expect(sandbox.providerCluster.create(resources.pods, own)).rejects.toThrow(/gpulease/i);
    const plain = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'plain', namespace: 'default' },
      spec: { containers: shell('sleep 60', gpus(1)) },
    } as unknown as KubeObject;
    await sandbox.providerCluster.create(resources.pods, plain);
    await sleep(2000);
    const pending = await sandbox.providerCluster.get<Pod>(resources.pods, { namespace: 'default', name: 'plain' });
    expect(pending?.status?.phase).toBe('Pending');
    await sandbox.providerCluster.delete(
      resources.pods,
      { namespace: 'default', name: 'plain' },
      { gracePeriodSeconds: 0 },
    );
  });

  it('shows no GPU to a pod that asks for none', async () => {
    await apply(podManifest('no-gpu', { containers: shell('echo "devices: $NVIDIA_VISIBLE_DEVICES"') }));
    await phase('no-gpu', 'Succeeded');
    if (real()) expect(await ctl('logs', '-n', 'ml', 'no-gpu')).toBe('devices: void\n');
  });

  it('ends a lease: pays what was served, refunds the rest, removes the node', async () => {
    await settle(sandbox, other, quiet);
    const { items } = await sandbox.consumerCluster.list(resources.nodes, {
      labelSelector: 'gpulease.dev/lease=other',
    });
    expect(items).toEqual([]);
    await checkConservation(sandbox);
  });
});

describe('what a pod may not have, it does not get, and says why', () => {
  const cases: [string, object, RegExp][] = [
    ['privileged', { containers: shell('true', { securityContext: { privileged: true } }) }, /privileged/i],
    ['hostpath', { containers: shell('true'), volumes: [{ name: 'h', hostPath: { path: '/' } }] }, /hostPath/i],
    ['hostnetwork', { hostNetwork: true, containers: shell('true') }, /hostNetwork/i],
    [
      'nvidia-env',
      { containers: shell('true', { env: [{ name: 'NVIDIA_VISIBLE_DEVICES', value: 'all' }] }) },
      /NVIDIA_VISIBLE_DEVICES/,
    ],
  ];
  it.each(cases)('%s', async (name, spec, message) => {
    await apply(podManifest(name, spec));
    const pod = await phase(name, 'Failed');
    expect(pod.status?.message).toMatch(message);
  });

  it('leaves a pod that asks for more GPUs than are leased Pending', async () => {
    await apply(podManifest('too-many', { containers: shell('true', gpus(2)) }));
    await sleep(1500);
    expect((await getPod('too-many'))?.status?.phase).toBe('Pending');
  });

  it("refuses another namespace's pod that tolerates everything, and sends none of its Secrets", async () => {
    const secret = {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'private', namespace: 'stranger' },
      stringData: { key: 'do-not-send-this' },
    } as unknown as KubeObject;
    await apply({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'stranger' } } as KubeObject, secret);
    await until('the service account', 20, async () =>
      (await sandbox.consumerCluster.get(resources.serviceAccounts, { namespace: 'stranger', name: 'default' }))
        ? true
        : undefined,
    );
    await apply(
      podManifest(
        'intruder',
        { containers: shell('true', { envFrom: [{ secretRef: { name: 'private' } }] }) },
        'stranger',
      ),
    );
    await until('the reason in its events', 30, async () =>
      (await ctl('describe', 'pod', '-n', 'stranger', 'intruder')).includes(
        'pods of namespace stranger may not use lease ml/train',
      )
        ? true
        : undefined,
    );
    expect((await getPod('intruder', 'stranger'))?.status?.phase).toBe('Pending');
    const { items } = await sandbox.providerCluster.list<KubeObject & { data?: Record<string, string> }>(
      resources.secrets,
    );
    const sent = items.flatMap((s) => Object.values(s.data ?? {})).map((d) => Buffer.from(d, 'base64').toString());
    expect(sent.some((text) => text.includes('do-not-send-this'))).toBe(false);
  });

  it('carries the ConfigMaps and Secrets that a pod names', async ({ skip }) => {
    if (!real()) skip('pods are simulated');
    await apply(
      {
        apiVersion: 'v1',
        kind: 'ConfigMap',
        metadata: { name: 'settings', namespace: 'ml' },
        data: { mode: 'fast' },
      } as unknown as KubeObject,
      {
        apiVersion: 'v1',
        kind: 'Secret',
        metadata: { name: 'token', namespace: 'ml' },
        stringData: { value: 's3cret' },
      } as unknown as KubeObject,
      podManifest('config', {
        volumes: [{ name: 's', secret: { secretName: 'token' } }],
        containers: shell('echo "$MODE $(cat /s/value) $(hostname) $POD"', {
          env: [
            { name: 'MODE', valueFrom: { configMapKeyRef: { name: 'settings', key: 'mode' } } },
            { name: 'POD', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } },
          ],
          volumeMounts: [{ name: 's', mountPath: '/s' }],
        }),
      }),
    );
    await phase('config', 'Succeeded');
    expect(await ctl('logs', '-n', 'ml', 'config')).toBe('fast s3cret config config\n');
  });
});

/** Waits until the lease's Ready condition gives this reason. */
const verdict = (name: string, reason: string) => {
  let last = '';
  return until(`${reason} on ${name}`, 30, async () => {
    const seen = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, {
      namespace: 'ml',
      name,
    });
    const found = seen?.status?.conditions?.find((c) => c.type === 'Ready');
    last = `${found?.reason}: ${found?.message}`;
    return found?.reason === reason ? found : undefined;
  }).catch((error: Error) => {
    throw new Error(`${error.message}; it says ${last}`);
  });
};

describe('mistakes cost nothing, and say what to change', () => {
  const cases: [string, KubeObject, string, RegExp][] = [
    ['price above limit', leaseManifest('cheap', 'H100-SXM', '0.10'), 'PriceAboveLimit', /2\.69.*maxPricePerGpuHour/s],
    ['no such offer', leaseManifest('none', 'L40S', '1'), 'NoMatchingOffer', /ModelMismatch/],
    ['suspended', leaseManifest('later', 'RTX4090', '0.60', { suspend: true }), 'Suspended', /suspend/],
    [
      'spend limit below the minimum',
      leaseManifest('poor', 'H100-SXM', '3', { pricing: { maxPricePerGpuHour: '3', spendLimit: '0.000001' } }),
      'InvalidSpec',
      /spendLimit/,
    ],
    [
      'waits for approval',
      leaseManifest('manual', 'H100-SXM', '3', { approval: 'Manual' }),
      'AwaitingApproval',
      /approvedQuoteHash to 0x[0-9a-f]{64}/,
    ],
  ];
  it.each(cases)('%s', async (_, manifest, reason, message) => {
    await apply(manifest);
    const { name } = manifest.metadata;
    const ready = await verdict(name, reason);
    expect(ready.message).toMatch(message);
    await ctl('delete', 'gpulease', '-n', 'ml', name, '--timeout=30s');
  });

  interface Provider extends KubeObject {
    spec: { endpoint: { url: string }; identity: object; payment: { rails: { chainId: number; maxEscrow: string }[] } };
  }
  const others: [string, (spec: Provider['spec']) => void, string, () => RegExp][] = [
    [
      'impostor',
      (spec) => {
        spec.identity = { address: '0x00000000000000000000000000000000000000aa' };
      },
      'IdentityMismatch',
      () => new RegExp(`signs as ${sandbox.providerAddress}.*spec.identity.address`, 's'),
    ],
    [
      'unreachable',
      (spec) => {
        spec.endpoint.url = 'https://127.0.0.1:1';
      },
      'ProviderUnreachable',
      () => /ECONNREFUSED.*spec.endpoint/s,
    ],
    [
      'other-chain',
      (spec) => {
        for (const rail of spec.payment.rails) rail.chainId = 4242;
      },
      'WrongChain',
      () => /--chain 4242=URL/,
    ],
    [
      'little-trusted',
      (spec) => {
        for (const rail of spec.payment.rails) rail.maxEscrow = '0.01';
      },
      'LimitReached',
      () => /maxEscrow 0\.01 USDC on chain 31337.* or maxEscrow in its spec\.payment\.rails/,
    ],
  ];
  it.each(others)('provider %s', async (name, change, reason, message) => {
    const good = await sandbox.consumerCluster.get<Provider>(resources.gpuProviders, { name: 'sandbox' });
    const spec = structuredClone(good!.spec);
    change(spec);
    await apply(
      { apiVersion: good!.apiVersion, kind: good!.kind, metadata: { name, labels: { who: name } }, spec } as KubeObject,
      leaseManifest(name, 'H100-SXM', '3', { providerSelector: { matchLabels: { who: name } } }),
    );
    const ready = await verdict(name, reason);
    expect(ready.message).toMatch(message());
    await ctl('delete', 'gpulease', '-n', 'ml', name, '--timeout=30s');
    await ctl('delete', 'gpuprovider', name, '--timeout=30s');
  });

  it('a wallet without the money', async () => {
    const { GPU } = sandbox.deployment.tokens;
    const [deployer, wallet] = sandbox.chain.accounts.map((a) => a.address);
    const move = async (from: string, to: string, amount: bigint) => {
      const data = new Interface(gpuToken.abi).encodeFunctionData('transfer', [to, amount]);
      await sandbox.chain.rpc('eth_sendTransaction', { from, to: GPU!.address, data });
    };
    const all = 1_000n * 10n ** 18n;
    await move(wallet!, deployer!, all);
    await apply(leaseManifest('broke', 'H100-SXM', '3', {}, 'GPU'));
    const ready = await verdict('broke', 'InsufficientFunds');
    expect(ready.message).toMatch(/has 0 GPU; the deposit is 2.64 GPU. Send it 2.64 GPU more/);
    await ctl('delete', 'gpulease', '-n', 'ml', 'broke', '--timeout=30s');
    await move(deployer!, wallet!, all);
  });
});

it('ends a lease whose Node somebody deletes', async () => {
  const running = await lease(sandbox, [leaseManifest('unplugged', 'H100-SXM', '3')], quiet);
  await sandbox.consumerCluster.delete(resources.nodes, { name: running.witness.node! });
  await until('the lease ending by itself', 60, async () => {
    const seen = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, running.key);
    return seen?.status?.endedAt ? true : undefined;
  });
  const ended = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, running.key);
  expect(ended?.status?.endReason).toBe('Released');
  expect(ended?.status?.settlement?.refundedBaseUnits).toMatch(/^[1-9]/);
  await ctl('delete', 'gpulease', '-n', 'ml', 'unplugged', '--timeout=30s');
  running.witness.stop();
});

it('ends a lease whose term is over, by itself', async () => {
  const running = await lease(
    sandbox,
    [leaseManifest('short', 'H100-SXM', '3', { term: { durationSeconds: 60 }, drainTimeoutSeconds: 60 })],
    quiet,
  );
  const told = async (about: string, ...reasons: string[]) => {
    const { items } = await sandbox.consumerCluster.list<KubeObject & { reason: string; regarding: { name: string } }>(
      resources.eventsV1,
      { namespace: 'ml' },
    );
    const all = items.filter(({ regarding }) => regarding.name === about).map(({ reason }) => reason);
    return reasons.map((reason) => all.filter((one) => one === reason).length);
  };
  await apply(podManifest('guest', { containers: shell('sleep 600') }, 'ml', 'short'));
  await phase('guest', 'Running');
  const status = await until('the end of the term', 120, async () => {
    const seen = await sandbox.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, running.key);
    return seen?.status?.endedAt ? seen.status : undefined;
  });
  expect(status.endReason).toBe('Expired');
  // Draining began six seconds before the end, and took less.
  expect(status.settlement?.servedSeconds).toBeGreaterThanOrEqual(53);
  expect(status.settlement?.servedSeconds).toBeLessThanOrEqual(60);
  expect(status.conditions?.find((c) => c.type === 'Settled')?.status).toBe('True');
  // Everybody was told once beforehand, and once when it began.
  expect(await told('short', 'EndsSoon', 'Expired')).toEqual([1, 1]);
  expect(await told('guest', 'LeaseEndsSoon', 'LeaseEnding')).toEqual([1, 1]);
  expect(await getPod('guest')).toBeUndefined();
  await ctl('delete', 'gpulease', '-n', 'ml', 'short', '--timeout=30s');
  running.witness.stop();
});

const usdcTotals = async () => (await escrowClient(sandbox)).totals(sandbox.deployment.tokens.USDC!.address);

it('stops everything at the end: the first lease is settled too', async () => {
  const bill = await settle(sandbox, train, quiet);
  expect(BigInt(bill.deposit)).toBe(BigInt(bill.paid) + BigInt(bill.fee) + BigInt(bill.refunded));
  figures.totals = await checkConservation(sandbox);
  // Each escrow that any of these leases ever had left a receipt, which is true by signatures, sums and the chain itself.
  const { receipts, statement } = await papersOf(sandbox);
  const { deposited, refunded } = await usdcTotals();
  const sum = (field: 'deposit' | 'refunded') =>
    receipts
      .filter(({ asset }) => asset.symbol === 'USDC')
      .reduce((total, { settlement }) => total + BigInt(settlement[field]), 0n);
  expect([sum('deposit'), sum('refunded')]).toEqual([deposited, refunded]);
  const paper = receipts.find(({ leaseId }) => leaseId === train.witness.lease?.status?.settlement?.leaseId)!;
  expect(paper.settlement).toMatchObject({
    deposit: bill.deposit,
    paid: bill.paid,
    fee: bill.fee,
    refunded: bill.refunded,
  });
  expect(paper.settlement.transactions.flatMap(({ events }) => events)).toEqual(
    expect.arrayContaining(['LeaseOpened', 'LeaseClosed']),
  );
  expect(statement.lines.map((line) => line.lease)).toEqual(expect.arrayContaining(['train', 'other', 'short']));
  figures.receipts = receipts.length;
  expect(paper.release?.servedSeconds).toBe(paper.settlement.servedSeconds);
  const gpulease = (...args: string[]) =>
    run(process.execPath, ['operator/cmd/gpulease.ts', ...args, '--kubeconfig', sandbox.consumer.kubeconfigPath]);
  const { stdout: verdicts } = await gpulease(
    'receipt',
    'verify',
    '--chain',
    `${sandbox.chain.chainId}=${sandbox.chain.rpcUrl}`,
  );
  expect(verdicts.match(/^TRUE /gm)).toHaveLength(receipts.length);
  const { stdout: archive } = await gpulease('receipt', 'list', '--lease-namespace', 'ml', '--format', 'json');
  expect(JSON.parse(archive)).toEqual(expect.arrayContaining([paper]));
  const { items } = await sandbox.providerCluster.list(resources.namespaces, { labelSelector: 'gpulease.dev/tenant' });
  expect(items.filter((n) => !n.metadata.deletionTimestamp)).toEqual([]);
});
