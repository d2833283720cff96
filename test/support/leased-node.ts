/**
 * A virtual node on real parts, without chain and contracts: the shared control planes, a real node at the provider, a real
 * gateway with its TLS, tokens, admission and streams, and a wire to it that a test can cut. Only who may be a tenant is not
 * decided by an escrow here; that road is walked in lease.test.ts.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { createKubeletPages } from '../../operator/adapters/gateway/kubelet-pages.ts';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import {
  createCertificateApprover,
  servingCertificates,
  whoAmI,
} from '../../operator/adapters/kube/serving-certificate.ts';
import { connectGateway, type GatewayClient } from '../../operator/adapters/provider/gateway-client.ts';
import type { LeaseConnection } from '../../operator/adapters/provider/lease-connection.ts';
import type { AllocationInfo } from '../../operator/api/gateway.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { createTenants } from '../../operator/controllers/provider/tenants.ts';
import { viewNode } from '../../operator/core/allocation/node-view.ts';
import { type LeaseRecord, tenantNamespace } from '../../operator/core/allocation/record.ts';
import { gatewayRole, gatewayRoleName, tenantRole } from '../../operator/core/allocation/rights.ts';
import { bytesText, type Room, resourcesOf } from '../../operator/core/allocation/room.ts';
import type { TenantStorage } from '../../operator/core/allocation/tenant.ts';
import { remotePodName } from '../../operator/core/node/names.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { type Clock, systemClock } from '../../operator/engine/clock.ts';
import { connectCluster } from '../../operator/engine/cluster.ts';
import { readCredentials } from '../../operator/engine/credentials.ts';
import { createEventRecorder } from '../../operator/engine/events.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../operator/engine/types.ts';
import { createGateway, type Gateway } from '../../operator/gateway/app.ts';
import type { GatewayService } from '../../operator/gateway/service.ts';
import { createVirtualNodes, type VirtualNode, type VirtualNodes } from '../../operator/kubelet/virtual-nodes.ts';
import { startGpuNode } from '../../operator/sandbox/clusters/gpu-node.ts';
import { RTX_4090, simulatedGpus } from '../../operator/sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import type { ClusterNode, RealNode } from '../../operator/sandbox/clusters/node.ts';
import { hostAddress, type PlaneAccess } from '../../operator/sandbox/clusters/plane.ts';
import { freePorts } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { eventually, planes, quiet, scratch, testNamespace } from './clusters.ts';
import { type CuttingProxy, startCuttingProxy } from './cutting-proxy.ts';

export interface LeasedNode {
  readonly name: string;
  readonly leaseId: Hex32;
  /** The tenant's namespace at the provider. */
  readonly tenant: string;
  readonly node: VirtualNode;
  readonly connection: LeaseConnection;
  /** Runs a pod on it, and waits until it runs. */
  run(podName: string, command: string, more?: Partial<Pod['spec']>): Promise<Pod>;
}

export interface LeaseLab {
  readonly dir: string;
  readonly consumerPlane: PlaneAccess;
  readonly providerPlane: PlaneAccess;
  readonly consumer: Cluster;
  readonly provider: Cluster;
  /** Where the consumer's pods are. */
  readonly namespace: string;
  /** Undefined where this machine runs no real node. */
  readonly real: RealNode | undefined;
  readonly gateway: Gateway;
  /** Between operator and gateway. */
  readonly wire: CuttingProxy;
  readonly nodes: VirtualNodes;
  lease(
    name: string,
    changes?: Partial<AllocationInfo>,
    how?: {
      /** False: past the wire. */
      readonly wired?: boolean;
      /** Node of the provider, where not the lab's real one. */
      readonly providerNode?: string;
      /** What the provider lets it store. */
      readonly storage?: TenantStorage;
    },
  ): Promise<LeasedNode>;
  kubectl(args: readonly string[], options?: KubectlOptions): Promise<Ended>;
  /** Goes on in the background. The caller ends it. */
  spawnKubectl(args: readonly string[], env?: Readonly<Record<string, string>>): ChildProcess;
  readonly kubectlPath: string;
  readonly kubectlArgs: readonly string[];
  stop(): Promise<void>;
}

export interface KubectlOptions {
  readonly input?: Buffer;
  readonly env?: Readonly<Record<string, string>>;
}

export interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const leased: Room = {
  gpus: 1,
  cpuMillis: 6000,
  memoryBytes: 4 * 1024 ** 3,
  ephemeralBytes: 4 * 1024 ** 3,
  pods: 20,
};

export interface LabOptions {
  readonly log?: Log;
  /** How long serving certificates hold. */
  readonly expirationSeconds?: number;
  /** Of the virtual nodes. */
  readonly clock?: Clock;
}

export async function startLeaseLab(name: string, options: LabOptions = {}): Promise<LeaseLab> {
  const dir = scratch(name);
  const stops: (() => Promise<unknown> | unknown)[] = [];
  const stop = async () => {
    for (const one of stops.splice(0).reverse()) await one();
    rmSync(dir, { recursive: true, force: true });
  };
  try {
    return await build(name, dir, options, stops, stop);
  } catch (error) {
    await stop();
    throw error;
  }
}

async function build(
  name: string,
  dir: string,
  { log = silentLog, expirationSeconds, clock = systemClock }: LabOptions,
  stops: (() => Promise<unknown> | unknown)[],
  stop: () => Promise<void>,
): Promise<LeaseLab> {
  const [{ consumer: consumerPlane, provider: providerPlane }, tools] = await Promise.all([
    planes(),
    ensureTools({ need: ['plane'], report: quiet }),
  ]);
  const started: ClusterNode = await startGpuNode({
    plane: providerPlane,
    name: `${name}-real`,
    dir: join(dir, 'node'),
    gpus: simulatedGpus(`${name}-real`, RTX_4090, 2),
    report: quiet,
  });
  stops.push(() => started.stop());
  const real = started.simulated ? undefined : (started as RealNode);
  const consumer = connectCluster({ name: 'consumer', kubeconfig: consumerPlane.kubeconfig });
  const provider = connectCluster({ name: 'provider', kubeconfig: providerPlane.kubeconfig });
  const team = await testNamespace(consumerPlane, 'team');
  stops.push(() => team.remove());

  const gatewayConfig = await allowGateway(providerPlane, provider, `gateway-${name}`);
  const asGateway = connectCluster({ name: 'provider', kubeconfig: gatewayConfig });
  const now = () => new Date();
  const tenants = createTenants({ cluster: asGateway, now, log, tenant: { deniedCidrs: [] } });
  const records = new Map<Hex32, { record: LeaseRecord; info: AllocationInfo }>();
  const must = (leaseId: Hex32) => {
    const found = records.get(leaseId);
    if (!found) throw new Error('no such lease');
    return found;
  };
  const service = {
    checkAccess: async () => undefined,
    allocation: async (leaseId: Hex32) => must(leaseId).info,
    tenant: async (leaseId: Hex32) => must(leaseId).record,
    consumerOf: () => undefined,
    token: (leaseId: Hex32, signal?: AbortSignal) => tenants.token(leaseId, signal),
    forgetToken: (leaseId: Hex32) => tenants.forgetToken(leaseId),
  } as unknown as GatewayService;
  const nodePages = createKubeletPages({
    cluster: asGateway,
    credentials: readCredentials(gatewayConfig),
    clock: systemClock,
    log,
  });
  stops.push(() => nodePages.close());
  const serving = await providerPlane.issueServing('gateway', ['127.0.0.1']);
  const [port = 0] = await freePorts(1);
  const ownUrl = `https://127.0.0.1:${port}`;
  const wire = await startCuttingProxy(ownUrl);
  stops.push(() => wire.close());
  const gateway = createGateway({
    service,
    upstream: asGateway,
    nodePages,
    tokenKey: randomBytes(32),
    publicUrls: [wire.url, ownUrl],
    now,
    log,
    tls: { cert: serving.certificatePem, key: serving.privateKeyPem },
  });
  await gateway.app.listen({ host: '127.0.0.1', port });
  stops.push(() => gateway.close());

  const [client, straight] = [wire.url, ownUrl].map((url): GatewayClient => {
    const gatewayClient = connectGateway({ endpoint: { url, caBundle: providerPlane.caPem } });
    stops.push(() => gatewayClient.close());
    return gatewayClient;
  }) as [GatewayClient, GatewayClient];
  const address = real?.machineIp ?? hostAddress();
  const common = { cluster: consumer, now: () => clock.now(), log };
  const nodes = createVirtualNodes({
    cluster: consumer,
    address,
    kubeletVersion: 'v1.36.3+gpulease.test',
    certificates: servingCertificates({ ...common, expirationSeconds }),
    events: createEventRecorder({ cluster: consumer, controller: 'gpulease.dev/test', instance: name }),
    clock,
    log,
    objectPollSeconds: 1,
  });
  const approver = createCertificateApprover({
    ...common,
    isOurNode: (node) => nodes.get(node) !== undefined,
    addresses: [address],
    requesters: [await whoAmI(consumer)],
  });
  const stopping = new AbortController();
  const running = Promise.all([nodes.run(stopping.signal), approver.run(stopping.signal)]);
  stops.push(async () => {
    stopping.abort(new Error('the test is over'));
    await running;
  });

  const lease: LeaseLab['lease'] = async (leaseName, changes = {}, { wired = true, providerNode, storage } = {}) => {
    const leaseId = `0x${randomBytes(32).toString('hex')}` as const;
    const tenant = tenantNamespace(leaseId);
    await tenants.make({
      leaseId,
      chainId: 31337,
      escrow: `0x${'e'.repeat(40)}`,
      room: leased,
      nodeName: providerNode ?? started.name,
      storage,
    });
    stops.push(() => provider.delete(resources.namespaces, { name: tenant }));
    const object = await provider.get<KubeObject>(resources.nodes, { name: started.name });
    const info: AllocationInfo = {
      leaseId,
      state: 'Serving',
      gpus: leased.gpus,
      resources: resourcesOf(leased),
      pods: leased.pods,
      nodeLabels: {},
      nodeInfo: viewNode(object as Parameters<typeof viewNode>[0]).nodeInfo,
      nodeReady: true,
      vouchedSeconds: 0,
      graceSeconds: 600,
      ...(storage && { storage: bytesText(storage.bytes) }),
      ...changes,
    };
    const nodeOfIt = providerNode ?? started.name;
    const record = { leaseId, nodeName: nodeOfIt, room: leased, storage, state: 'Serving' } as LeaseRecord;
    records.set(leaseId, { record, info });
    const connection = (wired ? client : straight).lease({
      leaseId,
      provider: `0x${'1'.repeat(40)}`,
      signAccess: async () => `0x${'22'.repeat(65)}`,
      now,
    });
    const node = nodes.start(
      {
        lease: { name: leaseName, namespace: team.name, uid: randomUUID() },
        leaseId,
        providerName: 'acme',
        offerName: 'acme-4090',
        capacityType: 'OnDemand',
        allowedNamespaces: [team.name],
        served: info,
        healthy: () => ({ ready: true }),
      },
      connection,
    );
    stops.push(() => eventually(() => nodes.remove(node.name), `node ${node.name} to go`));
    await eventually(async () => node.state.ready, `node ${node.name} to be ready`);
    const nodeName = node.name;
    return {
      name: nodeName,
      leaseId,
      tenant,
      node,
      connection,
      async run(podName, command, more = {}) {
        await consumer.create(resources.pods, podOn(nodeName, team.name, podName, command, more));
        const key = { namespace: team.name, name: podName };
        let pod: Pod | undefined;
        await eventually(async () => {
          pod = await consumer.get<Pod>(resources.pods, key);
          return pod?.status?.phase === 'Running';
        }, `pod ${podName} to run`);
        return pod!;
      },
    };
  };
  const kubectlArgs = ['--kubeconfig', consumerPlane.kubeconfigPath, '-n', team.name];
  return {
    dir,
    consumerPlane,
    providerPlane,
    consumer,
    provider,
    namespace: team.name,
    real,
    gateway,
    wire,
    nodes,
    lease,
    kubectlPath: tools.kubectl,
    kubectlArgs,
    kubectl: (args, { input, env } = {}) =>
      new Promise((resolve) => {
        const child = execFile(
          tools.kubectl,
          [...kubectlArgs, ...args],
          { maxBuffer: 1 << 28, encoding: 'latin1', env: { ...process.env, ...env } },
          (error, stdout, stderr) => resolve({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
        );
        child.stdin?.on('error', () => undefined);
        child.stdin?.end(input);
      }),
    spawnKubectl: (args, env) =>
      spawn(tools.kubectl, [...kubectlArgs, ...args], { stdio: 'pipe', env: { ...process.env, ...env } }),
    stop,
  };
}

/** A user with the rights that the chart gives, and no others: a kubeconfig with its client certificate. */
async function allowGateway(plane: PlaneAccess, provider: Cluster, user: string): Promise<string> {
  const apiGroup = 'rbac.authorization.k8s.io';
  await applyManifests(
    provider,
    [
      tenantRole,
      gatewayRole,
      {
        apiVersion: `${apiGroup}/v1`,
        kind: 'ClusterRoleBinding',
        metadata: { name: user },
        roleRef: { apiGroup, kind: 'ClusterRole', name: gatewayRoleName },
        subjects: [{ kind: 'User', name: user, apiGroup }],
      },
    ] as never[],
    { fieldManager: 'test' },
  );
  return plane.issueKubeconfig(user, []);
}

export function podOn(
  nodeName: string,
  namespace: string,
  name: string,
  command: string,
  more: Partial<Pod['spec']> = {},
): Pod {
  return {
    metadata: { name, namespace, labels: { app: name } },
    spec: {
      nodeSelector: { 'kubernetes.io/hostname': nodeName },
      tolerations: [{ operator: 'Exists' }],
      terminationGracePeriodSeconds: 1,
      restartPolicy: 'Never',
      containers: [
        {
          name: 'main',
          image: TOOLS_IMAGE,
          command: ['sh', '-c', command],
          resources: { requests: { cpu: '100m', memory: '64Mi' }, limits: { cpu: '1', memory: '256Mi' } },
        },
      ],
      ...more,
    },
  };
}

/** The provider's pod behind a consumer's. */
export const remoteOf = (lab: LeaseLab, on: LeasedNode, pod: Pod): Promise<Pod | undefined> =>
  lab.provider.get<Pod>(resources.pods, {
    namespace: on.tenant,
    name: remotePodName(pod.metadata.name, pod.metadata.uid ?? ''),
  });
