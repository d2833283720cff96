/**
 * The gateway on real parts: its own control plane with a GPU node, contracts on a local chain, two gateway processes side by
 * side, and consumers that speak to them as operators do.
 */
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { performServerHandshake } from 'node:http2';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyFromHex, newKeyHex } from '../../operator/adapters/chain/key.ts';
import {
  leaseIdOf,
  leaseRefOf,
  quoteFromJson,
  signAccess,
  signVoucher,
  verifyRelease,
} from '../../operator/adapters/chain/messages.ts';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { GatewayRefusal } from '../../operator/adapters/provider/errors.ts';
import { connectGateway, type GatewayClient } from '../../operator/adapters/provider/gateway-client.ts';
import type { LeaseConnection } from '../../operator/adapters/provider/lease-connection.ts';
import { customResourceDefinition } from '../../operator/api/crd.ts';
import { type AllocationInfo, reverseProtocol, type SignedQuote } from '../../operator/api/gateway.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { gpuOffer } from '../../operator/api/offer.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { gatewayHomeRules, gatewayRole, gatewayRoleName, tenantRole } from '../../operator/core/allocation/rights.ts';
import { costOf } from '../../operator/core/money/price.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { type Cluster, type KubeObject, resources } from '../../operator/engine/types.ts';
import { startGpuNode } from '../../operator/sandbox/clusters/gpu-node.ts';
import { RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { ClusterNode } from '../../operator/sandbox/clusters/node.ts';
import { type Plane, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import { createSupervisor, freePorts, type ManagedProcess, type Supervisor } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, quiet, scratch } from '../support/clusters.ts';
import { type EscrowChain, startEscrowChain } from '../support/escrow-chain.ts';

interface Replica {
  readonly process: ManagedProcess;
  readonly client: GatewayClient;
  readonly url: string;
}

const nodeName = 'gw-node-1';
const session = keyFromHex(newKeyHex());
let plane: Plane;
let node: ClusterNode;
let chain: EscrowChain;
let cluster: Cluster;
let programs: Supervisor;
let one: Replica;
let two: Replica;
let attempt = 0;

const figures: Record<string, unknown> = {};
const stops: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  console.log(JSON.stringify({ simulated: node?.simulated, ...figures }));
  for (const stop of stops.reverse())
    await stop().catch((error: Error) => console.error('while stopping:', error.message));
});

beforeAll(async () => {
  const dir = scratch('gateway');
  const tools = await ensureTools({ need: ['plane'], report: quiet });
  [plane, chain] = await Promise.all([
    startPlane({ name: 'gw', dir: join(dir, 'plane'), tools, report: quiet }),
    startEscrowChain({ blockTimeSeconds: 1, mineAtOnceToo: true, slotsInAnEpoch: 4, claimWindowSeconds: 5 }),
  ]);
  stops.push(
    () => plane.stop(),
    () => chain.stop(),
  );
  cluster = connectCluster({ name: 'provider', kubeconfig: plane.kubeconfig });
  await applyManifests(cluster, [customResourceDefinition(gpuOffer) as never], { fieldManager: 'test' });
  node = await startGpuNode({
    plane,
    name: nodeName,
    dir: join(dir, 'node'),
    gpus: simulatedGpus(nodeName, RTX_4090, 3),
    labels: { 'gpulease.dev/offered': 'true' },
    report: quiet,
  });
  stops.push(() => node.stop());
  await eventually(async () => {
    await applyManifests(
      cluster,
      [
        {
          apiVersion: 'gpulease.dev/v1alpha1',
          kind: 'GpuOffer',
          metadata: { name: 'rtx4090' },
          spec: {
            model: 'RTX4090',
            prices: [
              { assetSymbol: 'USDC', perGpuHour: '0.34' },
              { assetSymbol: 'GPU', perGpuHour: '0.30' },
            ],
          },
        } as never,
      ],
      { fieldManager: 'test' },
    );
    return true;
  }, 'the GpuOffer to be accepted');

  const files = {
    kubeconfig: join(dir, 'kubeconfig'),
    key: join(dir, 'provider.key'),
    addresses: join(dir, 'addresses.json'),
  };
  await allowGateway();
  writeFileSync(files.kubeconfig, await plane.issueKubeconfig('gateway', []), { mode: 0o600 });
  writeFileSync(files.key, chain.anvil.accounts[2]!.privateKey, { mode: 0o600 });
  writeFileSync(files.addresses, JSON.stringify(chain.deployment));
  programs = createSupervisor({ dir: join(dir, 'programs'), report: quiet });
  stops.push(() => programs.stop());
  const start = async (name: string): Promise<Replica> => {
    const [port = 0, operations = 0] = await freePorts(2);
    const url = `https://127.0.0.1:${port}`;
    const process_ = await programs.start({
      name,
      command: process.execPath,
      args: [
        'operator/cmd/gateway.ts',
        ...['--kubeconfig', files.kubeconfig, '--key-file', files.key, '--addresses', files.addresses],
        ...[
          '--chain',
          `${chain.anvil.chainId}=${chain.anvil.rpcUrl}`,
          '--listen',
          `127.0.0.1:${port}`,
          '--public-url',
          url,
        ],
        ...['--operations-port', String(operations), '--chain-interval', '1', '--tick', '1', '--settle-patience', '3'],
        // 0.001 USDC at 0.34 an hour: ten seconds and a half.
        ...['--max-unpaid', '0.001', '--log-level', 'debug'],
        // It has several leases at once before any was settled.
        ...['--known-consumer', chain.keys.consumer.address],
      ],
      ready: async () => (await fetch(`http://127.0.0.1:${operations}/readyz`)).ok,
      readyTimeoutSeconds: 60,
    });
    return { process: process_, url, client: await pinned(url, process_) };
  };
  one = await start('gateway-1');
  two = await start('gateway-2');
  await eventually(async () => (await one.client.offers()).offers[0]?.available === 3, 'three GPUs on offer');
});

/** The rights that the chart gives, and no others. */
async function allowGateway(): Promise<void> {
  const namespace = 'gpulease-system';
  const apiGroup = 'rbac.authorization.k8s.io';
  const subjects = [{ kind: 'User', name: 'gateway', apiGroup }];
  const bound = (kind: string, name: string) => ({ roleRef: { apiGroup, kind, name }, subjects });
  const apiVersion = `${apiGroup}/v1`;
  const name = gatewayRoleName;
  await applyManifests(
    cluster,
    [
      { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } },
      tenantRole,
      gatewayRole,
      { apiVersion, kind: 'ClusterRoleBinding', metadata: { name }, ...bound('ClusterRole', name) },
      { apiVersion, kind: 'Role', metadata: { name, namespace }, rules: gatewayHomeRules },
      { apiVersion, kind: 'RoleBinding', metadata: { name, namespace }, ...bound('Role', name) },
    ] as never[],
    { fieldManager: 'test' },
  );
}

/** Trusts the key that the gateway logged, as an operator would from its provider's word. */
async function pinned(url: string, process_: ManagedProcess): Promise<GatewayClient> {
  const line = readFileSync(process_.logFile, 'utf8')
    .split('\n')
    .find((text) => text.includes('gateway listening'));
  const { spkiSHA256 } = JSON.parse(line!.slice(line!.indexOf('{'))) as { spkiSHA256: string };
  return connectGateway({ endpoint: { url, spkiSHA256 } });
}

async function quoted(
  client: GatewayClient,
  changes: { gpus?: number; token?: `0x${string}`; maxSeconds?: number } = {},
) {
  attempt += 1;
  return client.quote({
    offerName: 'rtx4090',
    consumer: chain.keys.consumer.address,
    leaseRef: leaseRefOf('cluster', 'lease', attempt),
    chainId: chain.anvil.chainId,
    escrow: chain.client.address,
    token: chain.usdc,
    gpus: 1,
    maxSeconds: 3600,
    startTimeoutSeconds: 300,
    ...changes,
  });
}

const approved = new Set<string>();

async function opened(signed: SignedQuote): Promise<Hex32> {
  const quote = quoteFromJson(signed.quote as never);
  if (!approved.has(quote.token)) {
    await chain.send(chain.keys.consumer, chain.client.calls.approve(quote.token));
    approved.add(quote.token);
  }
  const deposit = costOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour) - 1n;
  const call = chain.client.calls.open(
    { message: quote, signature: signed.signature as `0x${string}` },
    session.address,
    deposit,
  );
  const { status } = await chain.send(chain.keys.consumer, call);
  if (status !== 1)
    throw new Error(`open was reverted: ${JSON.stringify(await chain.client.simulate(quote.consumer, call))}`);
  return leaseIdOf(quote.consumer, quote.leaseRef);
}

const connected = (replica: Replica, leaseId: Hex32): LeaseConnection =>
  replica.client.lease({
    leaseId,
    provider: chain.keys.provider.address,
    signAccess: async (message) => (await signAccess(session, chain.client.domain, message)).signature,
    now: () => new Date(),
  });

interface Leased {
  readonly leaseId: Hex32;
  readonly at: LeaseConnection;
  readonly quote: SignedQuote;
  readonly info: AllocationInfo;
}

async function leased(changes: Parameters<typeof quoted>[1] = {}, replica = one): Promise<Leased> {
  // GPUs are sold again when nothing of their last tenant is left, some seconds after its lease ended.
  await eventually(async () => ((await replica.client.offers()).offers[0]?.available ?? 0) >= 1, 'a free GPU', 60);
  const quote = await quoted(replica.client, changes);
  const leaseId = await opened(quote);
  const asked = Date.now();
  const info = await replica.client.allocate(quote);
  figures.allocateMs ??= Date.now() - asked;
  return { leaseId, quote, info, at: connected(replica, leaseId) };
}

const vouch = async (lease: Leased, servedSeconds: number, last = false) => {
  const { signature } = await signVoucher(session, chain.client.domain, {
    leaseId: lease.leaseId,
    servedSeconds,
    last,
  });
  return lease.at.voucher({ servedSeconds, last, signature });
};

/** Keeps a lease paid while a test looks at other things. */
async function paying<T>(lease: Leased, work: () => Promise<T>): Promise<T> {
  const opened = (await chain.client.lease(lease.leaseId))!.openedAt;
  const timer = setInterval(() => {
    vouch(lease, Math.max(1, Math.floor(Date.now() / 1000) - opened)).catch(() => undefined);
  }, 2000);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}

async function release(lease: Leased) {
  for (;;) {
    const receipt = await lease.at.release();
    if (receipt.state === 'Ended') return receipt;
    await sleep(200);
  }
}

async function text(response: IncomingMessage): Promise<string> {
  let all = '';
  for await (const chunk of response) all += String(chunk);
  return all;
}

const json = async (response: IncomingMessage) => ({
  status: response.statusCode,
  body: JSON.parse(await text(response)) as Record<string, never> & { reason?: string; detail?: string },
});

const post = async (lease: Leased, path: string, object: object) =>
  json(
    await lease.at.raw({
      method: 'POST',
      path,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(object),
    }),
  );

const pod = (name: string, spec: Record<string, unknown> = {}, container: Record<string, unknown> = {}) => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: {
    name,
    labels: { app: 'x' },
    annotations: { 'gpulease.dev/pod-name': name, 'sidecar.istio.io/inject': 'true' },
  },
  spec: {
    restartPolicy: 'Never',
    terminationGracePeriodSeconds: 1,
    containers: [
      {
        name: 'main',
        image: TOOLS_IMAGE,
        imagePullPolicy: 'IfNotPresent',
        command: ['sh', '-c', 'env; sleep 600'],
        ...container,
      },
    ],
    ...spec,
  },
});

interface PodSeen extends KubeObject {
  spec: { nodeName?: string; tolerations?: object[] };
  status: { phase: string; containerStatuses?: { state: object }[]; message?: string };
}

const gpu = { resources: { limits: { 'nvidia.com/gpu': '1' } } };

async function running(lease: Leased, name: string): Promise<PodSeen> {
  let seen: PodSeen | undefined;
  await eventually(async () => {
    seen = (await json(await lease.at.raw({ method: 'GET', path: `kube/pods/${name}` }))).body as unknown as PodSeen;
    if (seen.status?.phase !== 'Running') throw new Error(JSON.stringify(seen.status ?? seen));
    return true;
  }, `pod ${name} to run`);
  return seen!;
}

describe('a tenant', () => {
  let lease: Leased;
  beforeAll(async () => {
    lease = await leased();
  });
  afterAll(() => release(lease));
  const namespace = () => tenantNamespace(lease.leaseId);

  test('is told what it has', async () => {
    expect(lease.info).toMatchObject({ state: 'Serving', gpus: 1, nodeReady: true });
    expect(lease.info.nodeLabels['nvidia.com/gpu.product']).toBe('NVIDIA-GeForce-RTX-4090');
    expect(Object.keys(lease.info.nodeLabels).some((key) => key.startsWith('gpulease.dev'))).toBe(false);
    const stored = await cluster.get<KubeObject & { spec: { taints?: object[] } }>(resources.nodes, { name: nodeName });
    expect(stored!.spec.taints).toContainEqual(
      expect.objectContaining({ key: 'gpulease.dev/offered', effect: 'NoSchedule' }),
    );
  });

  test('runs a pod on the node that it leased, with a GPU of its own and no token', async () => {
    await paying(lease, async () => {
      expect(await post(lease, 'kube/pods', pod('train', {}, gpu))).toMatchObject({ status: 201 });
      const seen = await running(lease, 'train');
      expect(seen.spec.nodeName).toBe(nodeName);
      expect(seen.metadata.labels).not.toHaveProperty('app');
      expect(seen.metadata.annotations).toMatchObject({ 'gpulease.dev/pod-name': 'train' });
      expect(seen.metadata.annotations).not.toHaveProperty('sidecar.istio.io/inject');
      const log = await text(await lease.at.raw({ method: 'GET', path: 'kube/pods/train/log?container=main' }));
      if (!node.simulated) {
        expect(log).toMatch(/NVIDIA_VISIBLE_DEVICES=GPU-[0-9a-f-]{36}/);
      }
      expect(log).not.toMatch(/KUBERNETES_SERVICE_HOST_TOKEN/);
    });
  });

  test('has as many Services of its consumer as the consumer names, with the gateway’s own rights', async () => {
    interface ServiceSeen extends KubeObject {
      spec: { clusterIP: string; selector?: object; ports: { port: number }[] };
    }
    const there = async () =>
      (await cluster.list<ServiceSeen>(resources.services, { namespace: namespace() })).items.map(({ spec }) => spec);
    const put = async (...names: string[]) =>
      json(
        await lease.at.raw({
          method: 'PUT',
          path: 'services',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({
            services: names.map((name) => ({
              namespace: 'ml',
              name,
              ports: [{ name: 'pg', port: 5432 }, { port: 80 }],
            })),
          }),
        }),
      );
    await paying(lease, async () => {
      const { status, body } = await put('db', 'api');
      expect(status, JSON.stringify(body)).toBe(200);
      const { services } = body as unknown as { services: { name: string; address: string }[] };
      expect(services.map(({ name }) => name)).toEqual(['db', 'api']);
      expect((await there()).map(({ clusterIP }) => clusterIP).sort()).toEqual(
        services.map(({ address }) => address).sort(),
      );
      for (const { selector, ports } of await there()) {
        expect(selector).toBeUndefined();
        expect(ports.map(({ port }) => port)).toEqual([5432, 80]);
      }
      // The other replica, and the same again: the addresses stay.
      expect((await put('db')).body).toEqual({ services: [services[0]] });
      expect(await there()).toHaveLength(1);

      // Behind them is the tunnel, while there is one.
      interface SliceSeen extends KubeObject {
        endpoints: { addresses: string[]; conditions: { ready: boolean } }[];
        ports: { port: number }[];
      }
      const slice = async () =>
        (await cluster.list<SliceSeen>(resources.endpointSlices, { namespace: namespace() })).items[0];
      const isReady = (ready: boolean) =>
        eventually(
          async () => (await slice())?.endpoints[0]?.conditions.ready === ready,
          `endpoints that are ${ready ? '' : 'not '}ready`,
        );
      const headers = { Connection: 'Upgrade', Upgrade: reverseProtocol };
      const { socket, head } = await lease.at.upgrade({ method: 'POST', path: 'reverse', headers });
      if (head?.length) socket!.unshift(head);
      const session = performServerHandshake(socket!);
      session.on('error', () => undefined);
      await isReady(true);
      expect((await slice())!.ports).toHaveLength(2);
      const policy = await cluster.get<KubeObject & { spec: { egress: object[] } }>(resources.networkPolicies, {
        namespace: namespace(),
        name: 'lease',
      });
      for (const { port } of (await slice())!.ports)
        expect(JSON.stringify(policy!.spec.egress)).toContain(`"port":${port}`);
      session.destroy();
      await isReady(false);

      expect((await put()).status).toBe(200);
      expect(await there()).toEqual([]);
    });
  });

  test('a pod that asks for no GPU is shown none, whatever its ConfigMap says', async () => {
    await paying(lease, async () => {
      const refused = await post(lease, 'kube/configmaps', {
        metadata: { name: 'sly' },
        data: { NVIDIA_VISIBLE_DEVICES: 'all' },
      });
      expect(refused).toMatchObject({ status: 422 });
      expect(
        await post(lease, 'kube/configmaps', { metadata: { name: 'plain' }, data: { GREETING: 'hello' } }),
      ).toMatchObject({ status: 201 });
      expect(
        await post(lease, 'kube/pods', pod('cpu', {}, { envFrom: [{ configMapRef: { name: 'plain' } }] })),
      ).toMatchObject({ status: 201 });
      await running(lease, 'cpu');
      if (node.simulated) return;
      const log = await text(await lease.at.raw({ method: 'GET', path: 'kube/pods/cpu/log' }));
      expect(log).toMatch(/^NVIDIA_VISIBLE_DEVICES=void$/m);
      expect(log).toMatch(/^GREETING=hello$/m);
    });
  });

  test('cannot have a second GPU: refused by field, and by the quota where two pods share the one', async () => {
    expect(
      await post(lease, 'kube/pods', pod('greedy', {}, { resources: { limits: { 'nvidia.com/gpu': '2' } } })),
    ).toMatchObject({
      status: 422,
      body: { reason: 'PodRefused', detail: expect.stringContaining('more than the lease has') },
    });
    expect(await post(lease, 'kube/pods', pod('second', {}, gpu))).toMatchObject({
      status: 409,
      body: { reason: 'CapacityExhausted', detail: expect.stringContaining('exceeded quota') },
    });
  });

  test('cannot reach out of its namespace with the account that the gateway uses', async () => {
    const token = await cluster.createSubresource<{ status: { token: string } }>(
      resources.serviceAccounts,
      { namespace: namespace(), name: 'tenant' },
      'token',
      { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 600 } },
    );
    const ask = async (method: string, path: string) =>
      (
        await cluster.raw(
          { method, path, body: method === 'POST' ? '{}' : undefined, headers: { 'content-type': 'application/json' } },
          { as: token.status.token },
        )
      ).statusCode;
    expect(await ask('GET', `/api/v1/namespaces/${namespace()}/pods`)).toBe(200);
    for (const path of [
      '/api/v1/secrets',
      '/api/v1/nodes',
      '/api/v1/namespaces/kube-system/pods',
      '/api/v1/namespaces/gpulease-system/secrets',
    ]) {
      expect(await ask('GET', path), path).toBe(403);
    }
    expect(await ask('POST', `/api/v1/namespaces/${namespace()}/serviceaccounts/tenant/token`)).toBe(403);
    expect(await ask('POST', `/api/v1/namespaces/${namespace()}/services`)).toBe(403);
  });

  test('runs a command through the upgrade, exit code and all', async () => {
    if (node.simulated) return;
    await paying(lease, async () => {
      const answer = await lease.at.upgrade({
        method: 'GET',
        path: `kube/pods/train/exec?container=main&stdout=true&stderr=true&command=sh&command=-c&command=${encodeURIComponent('echo out; echo err >&2; exit 7')}`,
        headers: {
          connection: 'Upgrade',
          upgrade: 'websocket',
          'sec-websocket-version': '13',
          'sec-websocket-key': Buffer.alloc(16, 1).toString('base64'),
          'sec-websocket-protocol': 'v5.channel.k8s.io',
        },
      });
      expect(answer.response.statusCode).toBe(101);
      expect(answer.response.headers['sec-websocket-protocol']).toBe('v5.channel.k8s.io');
      const chunks: Buffer[] = [answer.head!];
      answer.socket!.on('data', (chunk: Buffer) => chunks.push(chunk));
      await Promise.race([once(answer.socket!, 'close'), once(answer.socket!, 'end'), sleep(10_000)]);
      const said = Buffer.concat(chunks).toString('latin1');
      expect(said).toContain('out\n');
      expect(said).toContain('err\n');
      expect(said).toMatch(/"reason":"NonZeroExitCode".*"message":"7"/);
      answer.socket!.destroy();
    });
  });

  test('watches its pods', async () => {
    await paying(lease, async () => {
      const response = await lease.at.raw({
        method: 'GET',
        path: 'kube/pods?watch=true&allowWatchBookmarks=true',
        timeoutSeconds: 5,
      });
      expect(response.statusCode).toBe(200);
      const names = new Set<string>();
      for await (const chunk of response) {
        for (const line of String(chunk).split('\n')) {
          const name = /"name":"(train|cpu)"/.exec(line)?.[1];
          if (name) names.add(name);
        }
        if (names.size === 2) break;
      }
      expect(names).toEqual(new Set(['train', 'cpu']));
    });
  });

  test('is deleted with its grace, and gone is NotFound', async () => {
    await paying(lease, async () => {
      expect((await lease.at.raw({ method: 'DELETE', path: 'kube/pods/cpu?gracePeriodSeconds=1' })).statusCode).toBe(
        200,
      );
      await eventually(async () => {
        const { status, body } = await json(await lease.at.raw({ method: 'GET', path: 'kube/pods/cpu' }));
        return status === 404 && body.reason === 'NotFound';
      }, 'the pod to be gone');
    });
  });
});

describe('the provider’s own pods', () => {
  const own = async (name: string, spec: object) => {
    const answer = await plane.api.request('POST', '/api/v1/namespaces/default/pods', {
      ...pod(name, {}, gpu),
      spec: { ...pod(name, {}, gpu).spec, ...spec },
    });
    return { status: answer.status, text: answer.text };
  };

  test('cannot take a sold GPU by tolerating everything, or by naming the node', async () => {
    const tolerant = await own('tolerant', { tolerations: [{ operator: 'Exists' }] });
    expect(tolerant.status).toBe(403);
    expect(tolerant.text).toContain('the GPUs of offered nodes are rented out');
    const direct = await own('direct', { nodeName });
    expect(direct.status).toBe(403);
    expect(direct.text).toContain('use a nodeSelector on kubernetes.io/hostname instead');
  });

  test('are accepted otherwise, and wait for a node of their own', async () => {
    expect((await own('patient', {})).status).toBe(201);
    await sleep(1000);
    const waiting = await cluster.get<PodSeen>(resources.pods, { namespace: 'default', name: 'patient' });
    expect(waiting!.spec.nodeName).toBeUndefined();
    const change = (spec: object, metadata: object = {}) =>
      cluster.patch(resources.pods, { namespace: 'default', name: 'patient' }, { spec, metadata }, { type: 'merge' });
    const added = [...(waiting!.spec.tolerations ?? []), { operator: 'Exists' }];
    await expect(change({ tolerations: added })).rejects.toThrow('rented out');
    await change({}, { labels: { still: 'editable' } });
    await cluster.delete(resources.pods, { namespace: 'default', name: 'patient' }, { gracePeriodSeconds: 0 });
  });
});

describe('two gateways', () => {
  test('never promise a GPU twice', async () => {
    await eventually(async () => (await one.client.offers()).offers[0]?.available === 3, 'all GPUs to be free');
    const quotes = await Promise.all(
      Array.from({ length: 8 }, (_, index) => quoted(index % 2 ? one.client : two.client)),
    );
    const leases: Hex32[] = [];
    for (const quote of quotes) leases.push(await opened(quote));
    const answers = await Promise.all(
      quotes.flatMap((quote) =>
        [one, two].map(({ client }) =>
          client.allocate(quote).then(
            (info) => info.leaseId,
            (error: unknown) => {
              if (error instanceof GatewayRefusal && error.reason === 'CapacityExhausted') return undefined;
              throw error;
            },
          ),
        ),
      ),
    );
    const given = new Set(answers.filter((leaseId) => leaseId !== undefined));
    expect(given.size).toBe(3);
    const map = await cluster.get<KubeObject & { data: Record<string, string> }>(resources.configMaps, {
      namespace: 'gpulease-system',
      name: `ledger-${nodeName}`,
    });
    expect(Object.keys((JSON.parse(map!.data['ledger.json']!) as { entries: object }).entries)).toHaveLength(3);
    // All are let go of, the refused ones too: nothing was served, so nothing is paid.
    await Promise.all(
      leases.map(async (leaseId) => {
        const receipt = await release({ leaseId, at: connected(one, leaseId) } as Leased);
        expect(receipt.servedSeconds).toBe(0);
        await verifyRelease(
          chain.client.domain,
          { message: { leaseId, servedSeconds: 0 }, signature: receipt.signature as `0x${string}` },
          chain.keys.provider.address,
        );
      }),
    );
  });
});

describe('money', () => {
  test('the last voucher closes the escrow, to the second', async () => {
    const lease = await leased();
    await sleep(3000);
    await vouch(lease, 2);
    expect(await lease.at.allocation()).toMatchObject({ vouchedSeconds: 2 });
    await vouch(lease, 3, true);
    await eventually(async () => (await chain.client.lease(lease.leaseId))?.closed === true, 'the escrow to be closed');
    const escrow = (await chain.client.lease(lease.leaseId))!;
    expect(escrow).toMatchObject({ closeReason: 'LastVoucher', servedSeconds: 3, claimed: (340_000n * 3n) / 3600n });
    expect(escrow.refunded).toBe(escrow.deposit - escrow.claimed);
  });

  test('in the other token, without a fee', async () => {
    const lease = await leased({ token: chain.gpu });
    await sleep(2000);
    await vouch(lease, 2, true);
    await eventually(async () => (await chain.client.lease(lease.leaseId))?.closed === true, 'the escrow to be closed');
    expect(await chain.client.lease(lease.leaseId)).toMatchObject({
      claimed: (300_000_000_000_000_000n * 2n) / 3600n,
      feeTaken: 0n,
    });
  });

  test('unpaid beyond its grace: the pod is ended, the voucher settled, the escrow closed', async () => {
    const lease = await leased();
    expect(lease.info.graceSeconds).toBe(10);
    await post(lease, 'kube/pods', pod('unpaid'));
    await running(lease, 'unpaid');
    await vouch(lease, 1);
    await eventually(
      async () => ['Suspended', 'Ended'].includes((await lease.at.allocation()).state),
      'the lease to be suspended',
      40,
    );
    expect(await lease.at.allocation()).toMatchObject({ reason: 'Unpaid' });
    await eventually(async () => (await chain.client.lease(lease.leaseId))?.closed === true, 'the escrow to be closed');
    expect(await chain.client.lease(lease.leaseId)).toMatchObject({ closeReason: 'ProviderUnpaid', servedSeconds: 1 });
    await eventually(
      async () =>
        (await cluster.list(resources.pods, { namespace: tenantNamespace(lease.leaseId) })).items.length === 0,
      'the pods to be gone',
    );
  });

  test('several leases that end together are settled in one transaction', async () => {
    const leases = [await leased(), await leased()];
    await sleep(2500);
    await Promise.all(leases.map((lease) => vouch(lease, 2)));
    // Held still for a moment, so that the next round finds both.
    for (const replica of [one, two]) process.kill(replica.process.pid, 'SIGSTOP');
    try {
      for (const lease of leases) await chain.send(chain.keys.consumer, chain.client.calls.requestClose(lease.leaseId));
    } finally {
      for (const replica of [one, two]) process.kill(replica.process.pid, 'SIGCONT');
    }
    for (const lease of leases) {
      await eventually(
        async () => (await chain.client.lease(lease.leaseId))?.closed === true,
        'the escrow to be finalized',
        60,
      );
      expect(await chain.client.lease(lease.leaseId)).toMatchObject({
        servedSeconds: 2,
        closeReason: 'ConsumerRequested',
      });
    }
  });
});

describe('kill -9', () => {
  test('of both gateways in mid-lease: the pod goes on, the token works again, the voucher is still there', async () => {
    const lease = await leased();
    await post(lease, 'kube/pods', pod('steady'));
    const before = await running(lease, 'steady');
    await sleep(2000);
    await vouch(lease, 2);
    for (const replica of [one, two]) await replica.process.kill('SIGKILL');
    await sleep(1000);
    await Promise.all([one, two].map((replica) => replica.process.restart()));
    await paying(lease, async () => {
      expect(await lease.at.allocation()).toMatchObject({ state: 'Serving', vouchedSeconds: 2 });
      const after = await running(lease, 'steady');
      expect(after.metadata.uid).toBe(before.metadata.uid);
      expect(await connected(two, lease.leaseId).allocation()).toMatchObject({ state: 'Serving' });
    });
    await eventually(async () => (await release(lease)).state === 'Ended', 'the release', 60);
  });
});

test('SIGTERM ends a gateway at once, watches and all, and tells a session why', async () => {
  const lease = await leased();
  const response = await lease.at.raw({ method: 'GET', path: 'kube/pods?watch=true' });
  response.on('error', () => undefined);
  response.resume();
  let heard = '';
  if (!node.simulated) {
    await post(lease, 'kube/pods', pod('session'));
    await running(lease, 'session');
    const { socket, head } = await lease.at.upgrade({
      method: 'GET',
      path: 'kube/pods/session/exec?container=main&stdout=true&command=sleep&command=60',
      headers: {
        connection: 'Upgrade',
        upgrade: 'websocket',
        'sec-websocket-version': '13',
        'sec-websocket-key': Buffer.alloc(16, 1).toString('base64'),
        'sec-websocket-protocol': 'v5.channel.k8s.io',
      },
    });
    heard = head!.toString('latin1');
    socket!.on('data', (chunk: Buffer) => {
      heard += chunk.toString('latin1');
    });
    socket!.once('end', () => socket!.end());
  }
  const asked = Date.now();
  await one.process.stop();
  figures.stopMs = Date.now() - asked;
  expect(Date.now() - asked).toBeLessThan(6000);
  if (!node.simulated) expect(heard).toMatch(/"status":"Failure".*gateway restarts/);
  expect(readFileSync(one.process.logFile, 'utf8')).toContain('gateway stopped');
  await release({ ...lease, at: connected(two, lease.leaseId) });
});
