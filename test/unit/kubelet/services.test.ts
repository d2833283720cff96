/**
 * Services across the two clusters: the virtual node at one end, the gateway at the other, tunnels and connections real, both
 * clusters in memory. What kube-proxy does with the slices is left to test/integration/services.test.ts.
 */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { signAccess } from '../../../operator/adapters/chain/messages.ts';
import { type Dial, dialTls } from '../../../operator/adapters/provider/dial.ts';
import { connectGateway } from '../../../operator/adapters/provider/gateway-client.ts';
import type { NamedService } from '../../../operator/api/lease.ts';
import { tenantNamespace } from '../../../operator/core/allocation/record.ts';
import { remotePodName, remoteServiceName } from '../../../operator/core/node/names.ts';
import type { Pod } from '../../../operator/core/node/pod.ts';
import type { EndpointSlice, Service } from '../../../operator/core/node/service.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createVirtualNodes, type NodeSpec, type VirtualNodes } from '../../../operator/kubelet/virtual-nodes.ts';
import { type CuttingProxy, startCuttingProxy } from '../../support/cutting-proxy.ts';
import { type FakeCluster, fakeCluster } from '../../support/fake-cluster.ts';
import { domain, keys, type ProviderSide, publicUrl, startProviderSide } from '../../support/provider-side.ts';
import { authority } from '../adapters/provider/tls.ts';
import { served } from './fake-lease.ts';
import { aWhile, eventually, lease, nodeName } from './world.ts';

type Slice = EndpointSlice & KubeObject;
const certificate = authority('self').then((ca) => ca.issue([{ CN: ['node'] }]));

let side: ProviderSide;
let consumer: FakeCluster;
let nodes: VirtualNodes;
let stopping: AbortController;
let running: Promise<void>;
let tenant: string;
let leaseId: `0x${string}`;
let told: { about: string; reason: string; message: string }[];
let spec: { services: NamedService[]; linked: boolean; podIP: 'None' | 'Provider' };
/** Between operator and gateway. */
let wire: CuttingProxy;
let dial: Dial;
/** At the gateway, below TLS. */
const accepted = new Set<Socket>();
/** No loopback: a real API server would not take it in an EndpointSlice. Nobody dials it here. */
let address: string;
const servers: Server[] = [];

beforeEach(async () => {
  await openProvider({ reverse: { address: '127.0.0.1', ports: { from: 42_000, to: 42_999 } } });
  consumer = fakeCluster({ name: 'consumer' });
  told = [];
  address = '10.9.8.7';
  spec = { services: [], linked: true, podIP: 'None' };
  await start();
});
afterEach(async () => {
  await stop();
  await closeProvider();
  for (const server of servers.splice(0)) server.close();
});

/** By TLS, as everywhere: HTTP/2 takes such a socket over in another way than a plain one. */
async function openProvider(options: Parameters<typeof startProviderSide>[0]): Promise<void> {
  const { key, cert, spki } = await certificate;
  side = await startProviderSide({ ...options, tls: { key, cert } });
  side.gateway.app.server.on('connection', (socket: Socket) => {
    accepted.add(socket);
    socket.once('close', () => accepted.delete(socket));
  });
  await side.gateway.app.listen({ host: '127.0.0.1', port: 0 });
  leaseId = (await side.lease()).leaseId;
  tenant = tenantNamespace(leaseId);
  const { port } = side.gateway.app.server.address() as { port: number };
  wire = await startCuttingProxy(`https://127.0.0.1:${port}`);
  dial = dialTls({ url: wire.url, spkiSHA256: spki }, 5);
}

async function closeProvider(): Promise<void> {
  await wire.close();
  const stopped = side.stop();
  // A handshake that was broken off is waited for by its server, for ten seconds.
  for (const socket of accepted) socket.destroy();
  await stopped;
}

async function start(): Promise<void> {
  stopping = new AbortController();
  const pair = await certificate;
  nodes = createVirtualNodes({
    cluster: consumer,
    address,
    listenHost: '127.0.0.1',
    servicePorts: { from: 41_000, to: 41_999 },
    kubeletVersion: 'v1.36.3+gpulease.test',
    certificates: {
      selfSigned: async () => ({
        certificatePem: pair.cert,
        privateKeyPem: pair.key,
        renewAt: new Date(Date.now() + 1e9),
      }),
      signed: async () => undefined,
    },
    callers: { clientCaPem: pair.cert },
    events: {
      event: (about, _type, reason, message) =>
        told.push({ about: `${about.kind} ${about.metadata.namespace}/${about.metadata.name}`, reason, message }),
    },
    log: silentLog,
    heartbeatSeconds: 0.2,
  });
  running = nodes.run(stopping.signal);
  serve();
  await eventually(() => expect(nodes.get(nodeName)?.state.registered).toBe(true));
}

/** As the lease controller does again and again. */
function serve(): void {
  const connection = connectGateway({ url: publicUrl, dial }).lease({
    leaseId,
    provider: keys.provider.address,
    signAccess: async (message) => (await signAccess(keys.session, domain, message)).signature,
    now: () => new Date(),
  });
  const node: NodeSpec = {
    lease,
    leaseId,
    providerName: 'acme',
    offerName: 'acme-4090',
    capacityType: 'OnDemand',
    allowedNamespaces: ['team-a'],
    podIP: spec.podIP,
    services: [...spec.services],
    served: served(2),
    healthy: () => ({ ready: true }),
    linked: () => spec.linked,
  };
  nodes.start(node, connection);
}

async function stop(): Promise<void> {
  stopping.abort(new Error('stopped'));
  await running;
}

/** A pod on the node that runs at the provider, with the machine's own address. */
async function web(name = 'web', change: (pod: Pod) => void = () => undefined): Promise<Pod> {
  const pod: Pod = {
    metadata: { name, namespace: 'team-a', labels: { app: 'web' } },
    spec: { nodeName, restartPolicy: 'Always', containers: [{ name: 'main', image: 'busybox' }] },
    status: { phase: 'Pending' },
  };
  change(pod);
  const [made] = consumer.seed(resources.pods, pod);
  await eventually(() => expect(remote(made!)).toBeDefined());
  side.cluster.change<Pod>(resources.pods, keyAtProvider(made!), (its) => {
    its.spec.nodeName = 'node-a';
    its.status = {
      phase: 'Running',
      startTime: '2026-01-01T00:00:00Z',
      podIP: '127.0.0.1',
      podIPs: [{ ip: '127.0.0.1' }],
      conditions: [{ type: 'Ready', status: 'True' }],
    } as never;
  });
  return made!;
}
const keyAtProvider = (pod: Pod) => ({
  namespace: tenant,
  name: remotePodName(pod.metadata.name, pod.metadata.uid!),
});
const remote = (pod: Pod) => side.cluster.object<Pod>(resources.pods, keyAtProvider(pod));

const service = (name: string, given: Partial<Service['spec']> = {}, namespace = 'team-a'): Service & KubeObject => ({
  metadata: { name, namespace },
  spec: { clusterIP: '10.96.0.9', selector: { app: 'web' }, ports: [{ port: 80, targetPort: 8080 }], ...given },
});
const seed = (...services: (Service & KubeObject)[]) => consumer.seed(resources.services, ...services);

const slices = () => consumer.objects<Slice>(resources.endpointSlices);
const portOf = (slice: Slice | undefined) => slice?.ports?.[0]?.port ?? 0;
const conditions = () => slices()[0]?.endpoints?.[0]?.conditions;

type Behaviour = (socket: Socket) => void;
const echo: Behaviour = (socket) => void socket.pipe(socket);
/** What runs in a pod, or behind a Service of the consumer: on this machine, at a free port. */
async function program(behave: Behaviour, host = '127.0.0.1'): Promise<number> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined);
    behave(socket);
  });
  servers.push(server);
  await once(server.listen(0, host), 'listening');
  return (server.address() as { port: number }).port;
}
/** Endpoints on the loopback are dialled by nobody. */
const ownAddress = Object.values(networkInterfaces())
  .flat()
  .find((one) => one?.family === 'IPv4' && !one.internal)?.address;

interface Heard {
  readonly text: string;
  readonly how: 'end' | 'reset';
}
/** Says something, ends, and listens until the other side has ended. */
async function talk(port: number, text: string): Promise<Heard> {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
  let heard = '';
  socket.on('data', (chunk) => {
    heard += String(chunk);
  });
  socket.on('error', () => undefined);
  const how = new Promise<Heard['how']>((resolve) => {
    socket.once('end', () => resolve('end'));
    socket.once('close', () => resolve('reset'));
  });
  socket.end(text);
  const outcome = await how;
  socket.destroy();
  return { text: heard, how: outcome };
}

function isListening(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  return new Promise((resolve) => {
    socket.once('error', () => resolve(false));
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
  });
}

describe('a Service whose pod runs at the provider', () => {
  async function exposed(behave: Behaviour = echo): Promise<number> {
    const port = await program(behave);
    seed(service('web', { ports: [{ name: 'http', port: 80, targetPort: port }] }));
    await web();
    await eventually(() => expect(conditions()?.ready).toBe(true));
    return portOf(slices()[0]);
  }

  test('has a slice with the operator’s address, behind which the pod answers', async () => {
    const port = await exposed();
    expect(slices()[0]).toMatchObject({
      metadata: { namespace: 'team-a', labels: { 'kubernetes.io/service-name': 'web' } },
      endpoints: [{ addresses: ['10.9.8.7'], targetRef: { name: 'web' } }],
      ports: [{ name: 'http' }],
    });
    expect(port).toBeGreaterThanOrEqual(41_000);
    expect(await talk(port, 'hello')).toEqual({ text: 'hello', how: 'end' });
  });

  test('each side ends when it likes, and what it still has to say arrives', async () => {
    const port = await exposed((socket) => {
      let asked = '';
      socket.on('data', (chunk) => {
        asked += String(chunk);
      });
      socket.on('end', () => setTimeout(() => socket.end(`you said ${asked.length} bytes`), 50));
    });
    expect(await talk(port, 'x'.repeat(300_000))).toEqual({ text: 'you said 300000 bytes', how: 'end' });
  });

  test('a pod that breaks off is not taken for one that ended', async () => {
    const port = await exposed((socket) => {
      socket.write('half an ans');
      setTimeout(() => socket.resetAndDestroy(), 100);
    });
    expect((await talk(port, 'question')).how).toBe('reset');
  });

  test('nor is a way that breaks', async () => {
    const port = await exposed((socket) => void socket.write('half an ans'));
    const heard = talk(port, 'question');
    await aWhile(150);
    wire.cut();
    expect((await heard).how).toBe('reset');
  });

  test('a way that fell silent, and is there again, is not waited for', async () => {
    const port = await exposed();
    expect((await talk(port, 'hello')).text).toBe('hello');
    wire.freeze();
    spec.linked = false;
    nodes.get(nodeName)!.refresh();
    await eventually(() => expect(conditions()?.ready).toBe(false));
    // The earlier connections stay silent for ever.
    wire.mend({ forget: true });
    await aWhile(3500);
    expect((await talk(port, 'hello again')).text).toBe('hello again');
  });

  test('a port on which nothing listens is refused', async () => {
    const port = await exposed();
    for (const server of servers.splice(0)) server.close();
    expect((await talk(port, 'anybody?')).how).toBe('reset');
  });

  test('a hundred at once share one connection to the gateway', async () => {
    const port = await exposed();
    const said = Array.from({ length: 100 }, (_, i) => `this is number ${i}`);
    const before = wire.connections;
    const heard = await Promise.all(said.map((text) => talk(port, text)));
    expect(heard.map(({ text }) => text)).toEqual(said);
    // Others may have come for calls of another kind.
    expect(wire.connections - before).toBeLessThan(5);
    await eventually(() => expect(nodes.traffic()).toEqual({ ports: 1, toPods: 0, toServices: 0 }));
  });

  test('the connection is the pod’s alone: one on its host’s network is not dialled', async () => {
    const port = await exposed();
    const [its] = side.cluster.objects<Pod>(resources.pods);
    side.cluster.change<Pod>(resources.pods, { namespace: tenant, name: its!.metadata.name }, (pod) => {
      pod.spec.hostNetwork = true;
    });
    expect((await talk(port, 'hello')).how).toBe('reset');
  });

  test('the slice follows the pod: not ready, not linked, ending, gone', async () => {
    const port = await exposed();
    const [its] = consumer.objects<Pod>(resources.pods);
    const at = keyAtProvider(its!);
    const ready = (status: string) =>
      side.cluster.change<Pod>(resources.pods, at, (pod) => {
        pod.status!.conditions = [{ type: 'Ready', status }];
      });
    ready('False');
    await eventually(() => expect(conditions()).toMatchObject({ ready: false, serving: false }));
    ready('True');
    await eventually(() => expect(conditions()?.ready).toBe(true));

    spec.linked = false;
    nodes.get(nodeName)!.refresh();
    await eventually(() => expect(conditions()?.ready).toBe(false));
    spec.linked = true;
    nodes.get(nodeName)!.refresh();
    await eventually(() => expect(conditions()?.ready).toBe(true));

    const long = connect({ host: '127.0.0.1', port });
    long.on('error', () => undefined);
    long.write('still ');
    await once(long, 'data');
    await consumer.delete(resources.pods, { namespace: 'team-a', name: 'web' });
    await eventually(() => expect(conditions()).toEqual({ ready: false, serving: true, terminating: true }));
    long.write('here');
    await once(long, 'data');
    const gone = new Promise((resolve) => long.once('close', resolve));
    side.cluster.erase(resources.pods, at);
    await gone;
    await eventually(() => expect(slices()).toEqual([]));
    await expect(talk(port, 'hello')).resolves.toMatchObject({ how: 'reset' });
  });

  test('a Service that goes takes its slice and port along, and a connection goes on', async () => {
    const port = await exposed();
    const long = connect({ host: '127.0.0.1', port });
    long.write('a');
    await once(long, 'data');
    await consumer.delete(resources.services, { namespace: 'team-a', name: 'web' });
    await eventually(() => expect(slices()).toEqual([]));
    await eventually(async () => expect(await isListening(port)).toBe(false));
    long.write('b');
    expect(String((await once(long, 'data'))[0])).toBe('b');
    long.destroy();
  });

  test('a restart finds the port again, and writes nothing', async () => {
    const port = await exposed();
    const written = slices()[0]!.metadata.resourceVersion;
    await stop();
    expect((await talk(port, 'hello')).how).toBe('reset');
    await start();
    await eventually(async () => expect(await talk(port, 'hello')).toEqual({ text: 'hello', how: 'end' }));
    expect(slices()[0]!.metadata.resourceVersion).toBe(written);
  });

  test('a replica that takes over puts its own address there', async () => {
    const port = await exposed();
    await stop();
    address = '10.9.8.6';
    await start();
    await eventually(() => expect(slices()[0]?.endpoints?.[0]?.addresses).toEqual(['10.9.8.6']));
    expect(slices()).toHaveLength(1);
    expect(portOf(slices()[0])).toBe(port);
  });

  test('another takes its place when somebody else has that port', async () => {
    const port = await exposed();
    await stop();
    const squatter = createServer();
    servers.push(squatter);
    await once(squatter.listen(port, '127.0.0.1'), 'listening');
    await start();
    await eventually(() => expect(portOf(slices()[0])).not.toBe(port));
    expect(await talk(portOf(slices()[0]), 'hello')).toEqual({ text: 'hello', how: 'end' });
  });

  test('what an earlier run left for a pod that is gone is taken away', async () => {
    await exposed();
    await stop();
    consumer.erase(resources.pods, { namespace: 'team-a', name: 'web' });
    await start();
    await eventually(() => expect(slices()).toEqual([]));
  });

  test('two pods are two slices of one Service', async () => {
    await exposed();
    await web('web-2');
    await eventually(() => expect(slices()).toHaveLength(2));
    expect(new Set(slices().map(portOf)).size).toBe(2);
  });

  test('where pods show the provider’s address, Kubernetes does it all', async () => {
    await exposed();
    spec.podIP = 'Provider';
    serve();
    await eventually(() => expect(slices()).toEqual([]));
  });

  test('somebody who changes or deletes a slice is put right', async () => {
    await exposed();
    const { name } = slices()[0]!.metadata;
    consumer.change<Slice>(resources.endpointSlices, { namespace: 'team-a', name }, (slice) => {
      slice.endpoints![0]!.addresses = ['192.0.2.1'];
    });
    await eventually(() => expect(slices()[0]?.endpoints?.[0]?.addresses).toEqual(['10.9.8.7']));
    await consumer.delete(resources.endpointSlices, { namespace: 'team-a', name });
    await eventually(() => expect(conditions()?.ready).toBe(true));
  });

  test('a headless one is refused, once, in words', async () => {
    seed(service('headless', { clusterIP: 'None' }));
    await web('a', (pod) => {
      pod.spec.subdomain = 'headless';
    });
    await web('b');
    await eventually(() => expect(told.map(({ reason }) => reason)).toContain('PodNameNotServed'));
    await aWhile();
    const headless = told.filter(({ reason }) => reason === 'HeadlessNotServed');
    expect(headless).toHaveLength(1);
    expect(headless[0]).toMatchObject({ about: 'Service team-a/headless' });
    expect(headless[0]?.message).toContain('spec.node.podIP: Provider');
    expect(slices()).toEqual([]);
  });
});

describe('a Service of the consumer that the lease names', () => {
  const addressThere = '10.200.0.5';
  const nameAtProvider = remoteServiceName('team-a', 'db');

  /** The fake gives no addresses: this one is there already, as after an earlier start. */
  function allotted(name = nameAtProvider): void {
    side.cluster.seed<Service & KubeObject>(resources.services, {
      metadata: { name, namespace: tenant },
      spec: { clusterIP: addressThere, ports: [] },
    });
  }
  async function reached(behave: Behaviour = echo, given: NamedService = { name: 'db' }): Promise<number> {
    allotted();
    const port = await program(behave, ownAddress ?? '127.0.0.1');
    consumer.seed<Slice>(resources.endpointSlices, {
      metadata: { name: 'db-1', namespace: 'team-a', labels: { 'kubernetes.io/service-name': 'db' } },
      addressType: 'IPv4',
      endpoints: [{ addresses: [ownAddress ?? '10.1.2.3'], conditions: { ready: true } }],
      ports: [{ name: 'pg', port }],
    });
    seed(
      service('db', {
        selector: undefined,
        ports: [
          { name: 'pg', port: 5432 },
          { name: 'admin', port: 8000 },
        ],
      }),
    );
    spec.services = [given];
    serve();
    return port;
  }
  const tunnelSlice = () =>
    side.cluster
      .objects<Slice>(resources.endpointSlices)
      .find(({ metadata }) => metadata.name.startsWith(nameAtProvider));
  const isOpen = () => eventually(() => expect(tunnelSlice()?.endpoints?.[0]?.conditions?.ready).toBe(true));
  const tunnelPort = (name: string) => tunnelSlice()?.ports?.find((one) => one.name === name)?.port ?? 0;

  test('has a Service at the provider, and its names in the hosts file of new pods', async () => {
    await reached();
    await isOpen();
    const made = side.cluster.object<Service & KubeObject>(resources.services, {
      namespace: tenant,
      name: nameAtProvider,
    });
    expect(made?.spec.selector).toBeUndefined();
    expect(made?.spec.ports?.map(({ port }) => port)).toEqual([5432, 8000]);
    const pod = await web();
    expect(remote(pod)?.spec.hostAliases).toEqual([
      { ip: addressThere, hostnames: ['db', 'db.team-a', 'db.team-a.svc', 'db.team-a.svc.cluster.local'] },
    ]);
  });

  describe.skipIf(ownAddress === undefined)('and a pod of the tenant', () => {
    test('connects to it through the operator, each way as long as it likes', async () => {
      await reached((socket) => {
        let asked = '';
        socket.on('data', (chunk) => {
          asked += String(chunk);
        });
        socket.on('end', () => socket.end(`you said ${asked.length} bytes`));
      });
      await web();
      await isOpen();
      expect(await talk(tunnelPort('pg'), 'x'.repeat(300_000))).toEqual({ text: 'you said 300000 bytes', how: 'end' });
    });

    test('is broken off when what it talks to breaks off, or the way does', async () => {
      let behave: Behaviour = (socket) => setTimeout(() => socket.resetAndDestroy(), 50);
      await reached((socket) => behave(socket));
      await web();
      await isOpen();
      expect((await talk(tunnelPort('pg'), 'question')).how).toBe('reset');
      behave = (socket) => void socket.write('half an ans');
      const heard = talk(tunnelPort('pg'), 'question');
      await aWhile(150);
      wire.cut();
      expect((await heard).how).toBe('reset');
    });

    test('reaches none of its ports that nobody serves', async () => {
      await reached();
      await web();
      await isOpen();
      // The slice of the consumer's Service has no such port.
      expect((await talk(tunnelPort('admin'), 'hello')).how).toBe('reset');
    });

    test('finds only what the lease names now, whatever the gateway still asks for', async () => {
      await reached();
      await web();
      await isOpen();
      const port = tunnelPort('pg');
      // The gateway is not told, as if it did not want to know.
      side.cluster.failNext({ method: 'DELETE', resource: 'services', fail: 500, times: 100 });
      spec.services = [{ name: 'other' }];
      serve();
      await aWhile();
      expect((await talk(port, 'hello')).how).toBe('reset');
    });

    test('goes on with what is open while the lease names another Service', async () => {
      await reached();
      await web();
      await isOpen();
      const long = connect({ host: '127.0.0.1', port: tunnelPort('pg') });
      long.on('error', () => undefined);
      long.write('a');
      await once(long, 'data');
      allotted(remoteServiceName('team-a', 'other'));
      const before = tunnelSlice()!.metadata.annotations!['gpulease.dev/tunnel'];
      spec.services = [{ name: 'db' }, { name: 'other' }];
      serve();
      await eventually(() => expect(tunnelSlice()!.metadata.annotations!['gpulease.dev/tunnel']).not.toBe(before));
      long.write('b');
      expect(String((await once(long, 'data'))[0])).toBe('b');
      expect(await talk(tunnelPort('pg'), 'new')).toEqual({ text: 'new', how: 'end' });
      long.destroy();
    });
  });

  test('leaves its quota and policy no wider than that', async () => {
    await reached();
    await isOpen();
    const quotas = side.cluster.objects<KubeObject & { spec: { hard: Record<string, string> } }>(
      resources.resourceQuotas,
    );
    expect(quotas.find(({ metadata }) => metadata.name === 'lease')?.spec.hard.services).toBe('1');
    const policy = side.cluster.objects<KubeObject & { spec: { egress: { ports?: { port: number }[] }[] } }>(
      resources.networkPolicies,
    )[0];
    const ports = policy!.spec.egress.flatMap((rule) => rule.ports ?? []).map(({ port }) => port);
    for (const name of ['pg', 'admin']) expect(ports).toContain(tunnelPort(name));
  });

  test('a pod waits until its names are known', async () => {
    side.cluster.failNext({ method: 'PATCH', resource: 'services', fail: 500, times: 3 });
    await reached();
    const pod = await web();
    expect(remote(pod)?.spec.hostAliases).toHaveLength(1);
  });

  test('a provider that carries none is told on the lease, and pods run without', async () => {
    await stop();
    await closeProvider();
    await openProvider({});
    spec.services = [{ name: 'db' }];
    await start();
    const pod = await web();
    expect(remote(pod)?.spec.hostAliases).toBeUndefined();
    expect(told).toContainEqual(
      expect.objectContaining({ about: 'GpuLease team-a/train', reason: 'ServicesNotOffered' }),
    );
  });

  test('what it is named for is told when it is not there or not shared', async () => {
    spec.services = [{ name: 'nobody' }, { name: 'secret', namespace: 'prod' }];
    seed(service('secret', {}, 'prod'));
    serve();
    await eventually(() =>
      expect(told.map(({ reason }) => reason)).toEqual(expect.arrayContaining(['ServiceNotFound', 'ServiceNotShared'])),
    );
    // It may come later: people are told first.
    await eventually(() =>
      expect(side.cluster.objects(resources.services).map(({ metadata }) => metadata.name)).toEqual([
        remoteServiceName('team-a', 'nobody'),
      ]),
    );
  });

  test('a tunnel that breaks leaves no endpoint, and comes back', async () => {
    await reached();
    await isOpen();
    const holder = tunnelSlice()!.metadata.annotations!['gpulease.dev/tunnel'];
    wire.cut();
    await eventually(() => expect(tunnelSlice()?.endpoints?.[0]?.conditions?.ready).toBe(false));
    wire.mend();
    await isOpen();
    expect(tunnelSlice()!.metadata.annotations!['gpulease.dev/tunnel']).not.toBe(holder);
  });

  test('a tunnel that fell silent is replaced when the provider answers again', async () => {
    await reached();
    await isOpen();
    const holder = () => tunnelSlice()!.metadata.annotations!['gpulease.dev/tunnel'];
    const before = holder();
    wire.freeze();
    wire.mend({ forget: true });
    spec.linked = false;
    nodes.get(nodeName)!.refresh();
    // A connection that was kept for calls is silent as well, and given up first.
    await vi.waitFor(() => expect(holder()).not.toBe(before), 18_000);
    await isOpen();
  });

  test('a stranger at the tunnel’s port is turned away', async () => {
    await reached();
    await isOpen();
    // No pod of the tenant has this machine's address yet.
    const started = Date.now();
    expect((await talk(tunnelPort('pg'), 'let me in')).how).toBe('reset');
    expect(Date.now() - started).toBeGreaterThan(1000);
  }, 15_000);

  test('what is no longer named is no longer there', async () => {
    await reached();
    await isOpen();
    const port = tunnelPort('pg');
    spec.services = [];
    serve();
    await eventually(() =>
      expect(side.cluster.object(resources.services, { namespace: tenant, name: nameAtProvider })).toBeUndefined(),
    );
    await eventually(async () => expect(await isListening(port)).toBe(false));
  });

  test('a lease that names none tells the provider nothing', async () => {
    await web();
    await aWhile();
    expect(side.cluster.requests.some(({ resource }) => resource?.plural === 'services')).toBe(false);
  });
});
