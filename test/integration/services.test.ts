/**
 * Services on real parts, both ways: a pod on a leased node behind a Service of the consumer, through a real kube-proxy of the
 * consumer's; and Services of the consumer in a leased pod, by name, through the real kube-proxy of the provider's node.
 *
 * The pods hold busybox, etcd (a real gRPC server) and kubectl (an HTTP client that looks names up as most programs do, which
 * a static busybox cannot).
 */
import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import http, { createServer as createHttpServer } from 'node:http';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import * as grpc from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import type { EndpointSlice, Service } from '../../operator/core/node/service.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { archiveOf, type Entry, layer } from '../../operator/sandbox/clusters/image-archive.ts';
import { startKubeProxy } from '../../operator/sandbox/clusters/kube-proxy.ts';
import type { RealNode } from '../../operator/sandbox/clusters/node.ts';
import { connectNode, disconnectNode } from '../../operator/sandbox/clusters/node-network.ts';
import { hostAddress } from '../../operator/sandbox/clusters/plane.ts';
import { createSupervisor } from '../../operator/sandbox/processes.ts';
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';
import { kubectl, lease, leaseManifest, namespaceReady, offersReady, until } from '../../operator/sandbox/scenario.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { quiet, scratch } from '../support/clusters.ts';
import { type CuttingProxy, startCuttingProxy } from '../support/cutting-proxy.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

const run = promisify(execFile);
const hollow = process.env.GPULEASE_NODES === 'hollow';
const image = 'gpulease.local/programs:1';
const dir = scratch('services');
const figures: Record<string, unknown> = {};
const stops: (() => Promise<unknown>)[] = [];
let sandbox: Sandbox;
/** Between operator and gateway. */
let wire: CuttingProxy;
/** Runs a command on a node of the consumer's, where its kube-proxy is. */
let onConsumerNode: (...command: string[]) => Promise<string>;

type Slice = EndpointSlice & KubeObject;

describe.skipIf(hollow)('Services', () => {
  beforeAll(async () => {
    sandbox = await startSandbox({
      dir,
      report: quiet,
      voucherPeriodSeconds: 2,
      async route(link, url) {
        if (link !== 'operator-to-gateway') return url;
        wire = await startCuttingProxy(url);
        return wire.url;
      },
    });
    stops.push(() => sandbox.stop());
    if (sandbox.simulated) throw new Error('these tests need a real node: GPULEASE_NODES=hollow leaves them out');
    await namespaceReady(sandbox);
    await offersReady(sandbox);
    await Promise.all([programImage(), consumerNode(), consumerServices()]);
    const running = await lease(
      sandbox,
      [leaseManifest('train', 'RTX4090', '0.60', { services: [{ name: 'hello' }, { name: 'missing' }] })],
      quiet,
    );
    stops.push(async () => running.witness.stop());
  });
  afterAll(async () => {
    let leak: Error | undefined;
    for (const stop of stops.reverse())
      await stop().catch((error: Error) => {
        console.error('while stopping:', error.message);
        if (error.name === 'Leak') leak = error;
      });
    console.log(JSON.stringify(figures));
    if (leak) throw leak;
  });

  describe('whose pods are on a leased node', () => {
    let address: string;
    const port = async (name: string) =>
      (await slices('web'))[0]!.ports!.find((one) => one.name === name)!.port as number;

    beforeAll(async () => {
      await apply(
        service('web', {
          selector: { app: 'web' },
          ports: [
            { name: 'http', port: 80, targetPort: 'http' },
            { name: 'echo', port: 9000 },
            { name: 'grpc', port: 2379, appProtocol: 'kubernetes.io/h2c' },
          ],
        }),
      );
      const from = Date.now();
      await apply(
        pod(
          'web',
          `mkdir -p /tmp/w && hostname > /tmp/w/index.html && httpd -p 8080 -h /tmp/w
          nc -ll -p 9000 -e cat &
          exec etcd --log-level=warn --data-dir=/tmp/etcd --listen-client-urls=http://0.0.0.0:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380`,
        ),
      );
      const [slice] = await isReady('web', true);
      figures.podToReadyEndpointSeconds = seconds(from);
      address = slice!.endpoints![0]!.addresses[0]!;
      await until('etcd', 30, () => check().catch(() => undefined));
    });

    const check = async () => {
      const client = new grpc.Client(`${address}:${await port('grpc')}`, grpc.credentials.createInsecure());
      try {
        return await new Promise<string>((resolve, reject) =>
          client.makeUnaryRequest(
            '/grpc.health.v1.Health/Check',
            (bytes: Buffer) => bytes,
            (bytes: Buffer) => bytes,
            Buffer.alloc(0),
            { deadline: Date.now() + 5000 },
            (error, answer) => (error ? reject(error) : resolve(answer!.toString('hex'))),
          ),
        );
      } finally {
        client.close();
      }
    };

    it('have a slice each, with the operator’s address, that Kubernetes leaves alone', async () => {
      const all = await slices('web', 'all');
      const ours = all.filter(
        ({ metadata }) => metadata.labels?.['endpointslice.kubernetes.io/managed-by'] === 'gpulease.dev',
      );
      expect(ours).toHaveLength(1);
      expect(ours[0]!.ports!.map(({ name }) => name)).toEqual(['http', 'echo', 'grpc']);
      // Kubernetes' own controller makes one, too, and has nothing to put into it.
      expect(all.filter((one) => !ours.includes(one)).flatMap(({ endpoints }) => endpoints ?? [])).toEqual([]);
    });

    it('answer at the Service’s own address, through a kube-proxy of the consumer', async () => {
      const { spec } = (await sandbox.consumerCluster.get<Service & KubeObject>(resources.services, key('web')))!;
      const page = await until('an answer', 20, () =>
        onConsumerNode('curl', '-s', '-m', '2', `http://${spec.clusterIP}/`).catch(() => undefined),
      );
      expect(page).toBe('web\n');
    });

    /** Where the provider's own nodes would reach it: what the same costs without us. */
    const direct = async () => {
      const { items } = await sandbox.providerCluster.list<Pod & KubeObject>(resources.pods);
      const its = items.find(({ metadata }) => metadata.annotations?.['gpulease.dev/pod-name'] === 'web');
      return (its?.status as { podIP?: string } | undefined)?.podIP ?? '';
    };

    it('answer a hundred at once', async () => {
      const agent = new http.Agent({ keepAlive: false, maxSockets: Number.POSITIVE_INFINITY });
      const measure = async (at: string) => {
        const from = performance.now();
        const pages = await Promise.all(Array.from({ length: 100 }, () => get(at, agent)));
        expect(new Set(pages)).toEqual(new Set(['web\n']));
        const hundredMs = Math.round(performance.now() - from);
        const one = performance.now();
        for (let i = 0; i < 50; i++) await get(at, agent);
        return { hundredMs, oneMs: Math.round((performance.now() - one) / 5) / 10 };
      };
      figures.connections = await measure(`http://${address}:${await port('http')}/`);
      figures.connectionsDirect = await measure(`http://${await direct()}:8080/`);
    });

    it('take 50 MB and give them back, and half-closed connections end in order', async () => {
      const blob = randomBytes(50 << 20);
      const measure = async (host: string, at: number) => {
        const from = performance.now();
        const back = await exchange(host, at, blob);
        expect(back.length).toBe(blob.length);
        expect(sha(back)).toBe(sha(blob));
        return Math.round(performance.now() - from) / 1000;
      };
      figures.fiftyMegabytesSeconds = await measure(address, await port('echo'));
      figures.fiftyMegabytesDirectSeconds = await measure(await direct(), 9000);
    });

    it('speak gRPC', async () => {
      // HealthCheckResponse{status: SERVING}
      expect(await check()).toBe('0801');
      const answers = await Promise.all(Array.from({ length: 20 }, check));
      expect(new Set(answers)).toEqual(new Set(['0801']));
    });

    it('keep a connection on which nobody says anything', async () => {
      const idle = connect(await port('echo'), address);
      await once(idle, 'connect');
      await sleep(45_000);
      idle.write('still there?');
      expect(String((await once(idle, 'data'))[0])).toBe('still there?');
      idle.destroy();
    });

    it('are found again at the same ports after the operator was killed', async () => {
      const before = (await slices('web'))[0]!.ports!;
      const from = Date.now();
      await sandbox.operator.restart({ signal: 'SIGKILL' });
      const at = `http://${address}:${await port('http')}/`;
      await until('an answer', 60, () => get(at).catch(() => undefined));
      figures.operatorRestartSeconds = seconds(from);
      expect((await slices('web'))[0]!.ports).toEqual(before);
    });

    it('lose their endpoints within seconds when the provider is cut, and have them back when it returns', async () => {
      const at = connect(await port('echo'), address);
      const broken = new Promise((resolve) => at.once('close', resolve));
      at.on('error', () => undefined);
      let from = Date.now();
      wire.cut();
      await isReady('web', false);
      figures.cutWithdrawnSeconds = seconds(from);
      await broken;
      expect(seconds(from)).toBeLessThan(10);
      from = Date.now();
      wire.mend();
      await isReady('web', true);
      figures.mendedReadySeconds = seconds(from);
      expect(seconds(from)).toBeLessThan(10);
      expect(await get(`http://${address}:${await port('http')}/`)).toBe('web\n');

      from = Date.now();
      wire.freeze();
      await isReady('web', false);
      figures.frozenWithdrawnSeconds = seconds(from);
      expect(seconds(from)).toBeLessThan(20);
      wire.mend();
      await isReady('web', true);
      await until('an answer', 20, async () => get(`http://${address}:${await port('http')}/`).catch(() => undefined));
    });

    it('drain: a pod that is deleted takes no new connections and goes on with the old', async () => {
      await apply(service('drain', { selector: { app: 'drain' }, ports: [{ port: 9000 }] }));
      await apply(
        pod('drain', 'trap "sleep 4; exit 0" TERM; nc -ll -p 9000 -e cat & wait; wait', {
          terminationGracePeriodSeconds: 20,
        }),
      );
      const [slice] = await isReady('drain', true);
      const open = connect(slice!.ports![0]!.port!, address);
      await until('the pod to listen', 10, async () => {
        open.write('a');
        return (await Promise.race([once(open, 'data'), sleep(500)])) ? true : undefined;
      });
      await sandbox.consumerCluster.delete(resources.pods, key('drain'));
      const [ending] = await until('the endpoint to be terminating', 10, async () => {
        const now = await slices('drain');
        return now[0]?.endpoints?.[0]?.conditions?.terminating ? now : undefined;
      });
      expect(ending!.endpoints![0]!.conditions).toEqual({ ready: false, serving: true, terminating: true });
      open.write('b');
      expect(String((await once(open, 'data'))[0])).toContain('b');
      open.on('error', () => undefined);
      const closed = new Promise((resolve) => open.once('close', resolve));
      await until('the slice to go', 30, async () => ((await slices('drain')).length === 0 ? true : undefined));
      await closed;
    });

    it('are refused in words when they are headless, or not TCP', async () => {
      await apply(
        service('headless', { clusterIP: 'None', selector: { app: 'web' }, ports: [{ port: 80 }] }),
        service('dns', { selector: { app: 'web' }, ports: [{ port: 53, protocol: 'UDP' }] }),
      );
      const about = (name: string, reason: string) =>
        until(`event ${reason}`, 20, async () => {
          const text = await kubectl(sandbox, 'describe', 'service', '-n', 'ml', name);
          return text.includes(reason) ? text : undefined;
        });
      expect(await about('headless', 'HeadlessNotServed')).toContain('spec.node.podIP: Provider');
      expect(await about('dns', 'ProtocolNotServed')).toContain('UDP 53');
      expect(await slices('headless')).toEqual([]);
    });
  });

  describe('that the lease names', () => {
    beforeAll(async () => {
      await apply(pod('client', 'trap "exit 0" TERM; while true; do sleep 1; done'));
      await until('pod client', 40, async () =>
        (await podOf('client'))?.status?.phase === 'Running' ? true : undefined,
      );
    });
    const exec = (...command: string[]) => kubectl(sandbox, 'exec', '-n', 'ml', 'client', '--', ...command);
    const addressAtProvider = async () =>
      (await exec('awk', '/ hello$|[ \\t]hello[ \\t]/ {print $1; exit}', '/etc/hosts')).trim();

    it.each(['hello', 'hello.ml', 'hello.ml.svc', 'hello.ml.svc.cluster.local'])('are reached as %s', async (name) => {
      const page = await until('an answer', 20, () =>
        exec('kubectl', '--server', `http://${name}`, 'get', '--raw', '/greeting').catch(() => undefined),
      );
      expect(page).toContain(`hello, Host ${name}`);
    });

    it('are named before they are there, and answer once they are', async () => {
      const hosts = await exec('cat', '/etc/hosts');
      expect(hosts).toContain('missing.ml.svc.cluster.local');
      expect(await kubectl(sandbox, 'describe', 'gpulease', '-n', 'ml', 'train')).toContain('ServiceNotFound');
      const hello = (await slices('hello', 'all'))[0]!;
      await apply(service('missing', { ports: [{ name: 'http', port: 80 }] }), endpoints('missing', hello.ports!));
      const page = await until('an answer', 30, () =>
        exec('kubectl', '--server', 'http://missing', 'get', '--raw', '/').catch(() => undefined),
      );
      expect(page).toContain('hello, Host missing');
    });

    it('take 50 MB and give them back', async () => {
      const ip = await addressAtProvider();
      const from = Date.now();
      const sums = await exec(
        'sh',
        '-c',
        `head -c ${50 << 20} /dev/urandom > /tmp/blob; nc ${ip} 9000 < /tmp/blob > /tmp/back; sha256sum < /tmp/blob; sha256sum < /tmp/back; wc -c < /tmp/back`,
      );
      figures.reverseFiftyMegabytesSeconds = seconds(from);
      const [sent, back, size] = sums.trim().split('\n');
      expect(Number(size)).toBe(50 << 20);
      expect(back).toBe(sent);
    });

    it('answer a hundred at once', async () => {
      const ip = await addressAtProvider();
      const from = Date.now();
      const said = await exec(
        'sh',
        '-c',
        `for i in $(seq 100); do (echo "number $i" | nc ${ip} 9000 > /tmp/said.$i) & done; wait; cat /tmp/said.* | sort -u | wc -l`,
      );
      figures.reverseHundredSeconds = seconds(from);
      expect(said.trim()).toBe('100');
    });

    it('and a leased pod in between: gRPC in by one tunnel and out by the other', async () => {
      const server = new grpc.Server();
      server.register(
        '/test.Echo/Say',
        (call: grpc.ServerUnaryCall<Buffer, Buffer>, done: grpc.sendUnaryData<Buffer>) =>
          done(null, Buffer.concat([Buffer.from('you said '), call.request])),
        (bytes: Buffer) => bytes,
        (bytes: Buffer) => bytes,
        'unary',
      );
      const grpcPort = await new Promise<number>((resolve, reject) =>
        server.bindAsync(`${hostAddress()}:0`, grpc.ServerCredentials.createInsecure(), (error, bound) =>
          error ? reject(error) : resolve(bound),
        ),
      );
      stops.push(async () => server.forceShutdown());
      await apply(
        endpoints('hello', [
          ...(await slices('hello', 'all'))[0]!.ports!.filter(({ name }) => name !== 'grpc'),
          { name: 'grpc', port: grpcPort },
        ]),
      );
      const ip = await addressAtProvider();
      await apply(service('relay', { selector: { app: 'relay' }, ports: [{ port: 8081 }] }));
      await apply(pod('relay', `exec nc -ll -p 8081 -e nc ${ip} 7000`));
      const [slice] = await isReady('relay', true);
      const client = new grpc.Client(
        `${slice!.endpoints![0]!.addresses[0]}:${slice!.ports![0]!.port}`,
        grpc.credentials.createInsecure(),
      );
      const say = (text: string) =>
        new Promise<string>((resolve, reject) =>
          client.makeUnaryRequest(
            '/test.Echo/Say',
            (bytes: Buffer) => bytes,
            (bytes: Buffer) => bytes,
            Buffer.from(text),
            { deadline: Date.now() + 5000 },
            (error, answer) => (error ? reject(error) : resolve(String(answer))),
          ),
        );
      await until('an answer', 20, () => say('hi').catch(() => undefined));
      const said = await Promise.all(Array.from({ length: 50 }, (_, i) => say(`number ${i}`)));
      expect(said).toEqual(Array.from({ length: 50 }, (_, i) => `you said number ${i}`));
      client.close();
    });

    it('are reached by the pods of this lease alone', async () => {
      const ip = await addressAtProvider();
      const tunnels = await sandbox.providerCluster.list<Slice>(resources.endpointSlices, {
        labelSelector: 'endpointslice.kubernetes.io/managed-by=gpulease.dev',
      });
      const slice = tunnels.items.find(({ ports }) => ports?.some(({ name }) => name === 'echo'))!;
      const direct = `${slice.endpoints![0]!.addresses[0]} ${slice.ports!.find(({ name }) => name === 'echo')!.port}`;
      const other = await lease(sandbox, [leaseManifest('other', 'RTX4090', '0.60')], quiet);
      stops.push(async () => other.witness.stop());
      const knock = `for to in "${ip} 9000" "${direct}"; do echo "let me in" | timeout 12 nc $to; echo "nothing from $to"; done; sleep 600`;
      await apply(pod('stranger', knock, {}, 'other'));
      const log = await until('both to be over', 60, async () => {
        const text = await kubectl(sandbox, 'logs', '-n', 'ml', 'stranger').catch(() => '');
        return text.includes(`nothing from ${direct}`) ? text : undefined;
      });
      expect(log).toContain(`nothing from ${ip} 9000`);
      expect(log).not.toContain('let me in');
    });

    it('come back after the provider was cut', async () => {
      const ip = await addressAtProvider();
      wire.cut();
      await sleep(1500);
      wire.mend();
      const from = Date.now();
      await until('an echo', 40, async () => {
        const said = await exec('sh', '-c', `echo again | timeout 3 nc ${ip} 9000`).catch(() => '');
        return said.trim() === 'again' ? true : undefined;
      });
      figures.reverseBackSeconds = seconds(from);
    });
  });

  it('leave nothing behind when the lease ends', async () => {
    await kubectl(sandbox, 'delete', 'gpulease', '-n', 'ml', 'train', '--timeout=60s');
    await until('the slices to go', 30, async () => {
      const ours = await sandbox.consumerCluster.list<Slice>(resources.endpointSlices, {
        labelSelector: 'endpointslice.kubernetes.io/managed-by=gpulease.dev',
      });
      return ours.items.length === 0 ? true : undefined;
    });
  });
});

const key = (name: string) => ({ namespace: 'ml', name });
const seconds = (from: number) => Math.round((Date.now() - from) / 100) / 10;
const sha = (data: Buffer) => createHash('sha256').update(data).digest('hex');
const apply = (...manifests: KubeObject[]) =>
  applyManifests(sandbox.consumerCluster, manifests, { fieldManager: 'kubectl' });
const podOf = (name: string) => sandbox.consumerCluster.get<Pod>(resources.pods, key(name));

const service = (name: string, spec: Partial<Service['spec']>): KubeObject =>
  ({ apiVersion: 'v1', kind: 'Service', metadata: key(name), spec }) as KubeObject;

/** Endpoints on this machine, for a Service of the consumer: no pod of it runs there. */
const endpoints = (name: string, ports: Slice['ports']): KubeObject =>
  ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: `${name}-1`, namespace: 'ml', labels: { 'kubernetes.io/service-name': name } },
    addressType: 'IPv4',
    endpoints: [{ addresses: [hostAddress()], conditions: { ready: true } }],
    ports: ports!.map(({ name: portName, port }) => ({ name: portName, port, protocol: 'TCP' })),
  }) as unknown as KubeObject;

const pod = (name: string, script: string, spec: object = {}, leaseName = 'train'): KubeObject =>
  ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { ...key(name), labels: { app: name } },
    spec: {
      nodeSelector: { 'gpulease.dev/lease': leaseName },
      tolerations: [{ operator: 'Exists' }],
      terminationGracePeriodSeconds: 1,
      restartPolicy: 'Never',
      containers: [
        { name: 'main', image, command: ['sh', '-c', script], ports: [{ name: 'http', containerPort: 8080 }] },
      ],
      ...spec,
    },
  }) as unknown as KubeObject;

/** Ours, or everybody's. */
async function slices(name: string, whose: 'ours' | 'all' = 'ours'): Promise<Slice[]> {
  const mine = whose === 'all' ? '' : ',endpointslice.kubernetes.io/managed-by=gpulease.dev';
  const { items } = await sandbox.consumerCluster.list<Slice>(resources.endpointSlices, {
    namespace: 'ml',
    labelSelector: `kubernetes.io/service-name=${name}${mine}`,
  });
  return items;
}

const isReady = (name: string, ready: boolean) =>
  until(`the endpoint of ${name} to be ${ready ? '' : 'not '}ready`, 60, async () => {
    const found = await slices(name);
    return found[0]?.endpoints?.[0]?.conditions?.ready === ready ? found : undefined;
  });

function get(url: string, agent?: http.Agent): Promise<string> {
  return new Promise((resolve, reject) => {
    // busybox's httpd has a backlog of 9: of a hundred straight to it at once, some are sent again after 1, 3 and 7 s.
    const timeout = agent === undefined ? 5000 : 30_000;
    const request = http.get(url, { agent: agent ?? false, timeout }, (response) => {
      let body = '';
      response.on('data', (chunk) => {
        body += String(chunk);
      });
      response.on('end', () => resolve(body));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.on('timeout', () => request.destroy(new Error('no answer')));
  });
}

/** Sends all, ends, and reads until the other side has ended. */
async function exchange(host: string, port: number, blob: Buffer): Promise<Buffer> {
  const socket = connect({ host, port, allowHalfOpen: true });
  const chunks: Buffer[] = [];
  socket.on('data', (chunk) => chunks.push(chunk));
  socket.end(blob);
  await once(socket, 'end');
  return Buffer.concat(chunks);
}

async function programImage(): Promise<void> {
  const tools = await ensureTools({ need: ['plane'], report: quiet });
  const busybox = ['/bin/busybox', '/usr/bin/busybox']
    .map((path) => {
      try {
        return readFileSync(path);
      } catch {
        return undefined;
      }
    })
    .find(Boolean)!;
  const applets = [
    'sh',
    'cat',
    'nc',
    'httpd',
    'hostname',
    'mkdir',
    'sleep',
    'awk',
    'head',
    'sha256sum',
    'wc',
    'seq',
    'sort',
    'timeout',
  ];
  const content: Entry[] = [
    { path: 'bin/', mode: 0o755 },
    { path: 'bin/busybox', mode: 0o755, data: busybox },
    ...applets.map((applet) => ({ path: `bin/${applet}`, mode: 0o777, linkTo: 'busybox' })),
    { path: 'bin/kubectl', mode: 0o755, data: readFileSync(tools.kubectl) },
    { path: 'bin/etcd', mode: 0o755, data: readFileSync(tools.etcd) },
    { path: 'etc/', mode: 0o755 },
    { path: 'etc/passwd', mode: 0o644, data: Buffer.from('root:x:0:0:root:/root:/bin/sh\n') },
    { path: 'root/', mode: 0o755 },
    { path: 'tmp/', mode: 0o1777 },
  ];
  const file = join(dir, 'programs.tar');
  writeFileSync(file, archiveOf([{ name: image, layers: [layer(content)], run: {} }]));
  for (const node of sandbox.nodes as readonly RealNode[])
    if (node.name === 'gpu-4090') await node.ctr('images', 'import', file);
}

/** What the consumer's nodes would do with Services: a network of its own with a real kube-proxy in it. */
async function consumerNode(): Promise<void> {
  const folder = join(dir, 'consumer-node');
  mkdirSync(folder, { recursive: true });
  const { 'kube-proxy': kubeProxy } = await ensureTools({ need: ['proxy'], report: quiet });
  const supervisor = createSupervisor({ dir: folder, report: quiet });
  stops.push(() => supervisor.stop());
  const shell = await supervisor.start({
    name: 'network',
    command: 'unshare',
    args: [
      '--net',
      '--mount',
      '--pid',
      '--fork',
      '--kill-child',
      '--mount-proc',
      'sh',
      '-c',
      'ip link set lo up; trap "exit 0" TERM; sleep 100000 & wait',
    ],
    forksProgram: true,
  });
  const iptables = 'iptables';
  const network = await connectNode({ pid: shell.pid, key: folder, iptables, apiServerPort: sandbox.consumer.port });
  stops.push(() => disconnectNode(network, iptables));
  const hostname = 'consumer-node';
  await sandbox.consumer.api.call('POST', '/api/v1/nodes', {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: hostname },
    spec: { unschedulable: true },
    status: { addresses: [{ type: 'InternalIP', address: network.nodeIp }] },
  });
  await startKubeProxy({
    plane: sandbox.consumer,
    supervisor,
    kubeProxy: kubeProxy!,
    hostname,
    network,
    folder,
    pid: shell.pid,
  });
  onConsumerNode = async (...command) =>
    (await run('nsenter', ['--target', String(shell.pid), '--net', '--', ...command])).stdout;
}

/** `hello`: HTTP on 80, an echo on 9000, and a port for gRPC that one of the tests serves. */
async function consumerServices(): Promise<void> {
  const listening = async (server: Server): Promise<number> => {
    await once(server.listen(0, hostAddress()), 'listening');
    stops.push(() => new Promise((resolve) => server.close(resolve)));
    return (server.address() as { port: number }).port;
  };
  const sockets = new Set<Socket>();
  const page = createHttpServer((request, response) => response.end(`hello, Host ${request.headers.host}\n`));
  const echo = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    socket.on('error', () => undefined);
    socket.pipe(socket);
  });
  const [httpPort, echoPort] = [await listening(page), await listening(echo)];
  stops.push(async () => {
    page.closeAllConnections();
    for (const socket of sockets) socket.destroy();
  });
  await apply(
    service('hello', {
      ports: [
        { name: 'http', port: 80 },
        { name: 'echo', port: 9000 },
        { name: 'grpc', port: 7000 },
      ],
    }),
    endpoints('hello', [
      { name: 'http', port: httpPort },
      { name: 'echo', port: echoPort },
    ]),
  );
}
