#!/usr/bin/env node
/** `npm run test:network`: each rule of a tenant's network policy, on real pods, with something that enforces it. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { applyManifests } from '../adapters/kube/apply-manifests.ts';
import { admitPod } from '../core/allocation/admit-pod.ts';
import { tenantNamespace } from '../core/allocation/record.ts';
import { tenantRole } from '../core/allocation/rights.ts';
import { leaseIdLabel, tenantObjects } from '../core/allocation/tenant.ts';
import { connectCluster } from '../engine/cluster.ts';
import { startGpuNode } from '../sandbox/clusters/gpu-node.ts';
import { RTX_4090, simulatedGpus } from '../sandbox/clusters/gpus.ts';
import { TOOLS_IMAGE } from '../sandbox/clusters/images.ts';
import { ensureKubeRouter, KUBE_ROUTER_VERSION, startKubeRouter } from '../sandbox/clusters/kube-router.ts';
import type { RealNode } from '../sandbox/clusters/node.ts';
import { startPlane } from '../sandbox/clusters/plane.ts';
import { createSupervisor, stopWithSignals } from '../sandbox/processes.ts';
import { ensureTools } from '../sandbox/tools/tools.ts';
import { parseOptions, UsageError } from './options.ts';

const usage = `
Two tenants, the gateway, the resolver and a pod of the provider's own on a real node; kube-router enforces NetworkPolicies.
Each connection is tried twice: without enforcement, where all of them must come through, or the trial shows nothing; and
with it. Needs what a real node needs: Linux, root, containerd. Takes a minute, and once per machine some to build.

  npm run test:network
`;
const declared = { verbose: { description: 'Shows what the clusters report.', parse: () => true } };

const run = promisify(execFile);
const started = Date.now();
const seconds = () => Math.round((Date.now() - started) / 100) / 10;

const gib = 1024 ** 3;
const room = { gpus: 1, cpuMillis: 2000, memoryBytes: gib, ephemeralBytes: gib, pods: 10 };
const nodeName = 'net-node';
const leases = { one: `0x${'a1'.repeat(32)}`, two: `0x${'b2'.repeat(32)}` } as const;
/** Addresses that are public, and given to nobody: https://www.rfc-editor.org/rfc/rfc5737 */
const internet = '203.0.113.7';
const deniedByProvider = '198.51.100.7';
const metadata = '169.254.169.254';
const [ownTunnel, tunnelOfAnother] = [20_001, 20_002];
/** Not one that others listen on, on all addresses of the machine. */
const web = 18_473;

interface Place {
  readonly namespace: string;
  readonly name: string;
}
interface Trial {
  readonly what: string;
  readonly from: Place | 'outside';
  readonly to: (at: Addresses) => string;
  readonly allowed: boolean;
}
interface Addresses {
  readonly of: (place: Place) => string;
  readonly node: string;
  readonly machine: string;
}

const tenant = (lease: keyof typeof leases, name: string): Place => ({
  namespace: tenantNamespace(leases[lease]),
  name,
});
const client = tenant('one', 'client');
const server = tenant('one', 'server');
const stranger = tenant('two', 'server');
const gateway = { namespace: 'gpulease-system', name: 'gateway' };
const neighbour = { namespace: 'gpulease-system', name: 'neighbour' };
const resolver = { namespace: 'kube-system', name: 'dns' };
const own = { namespace: 'default', name: 'own' };

const trials: readonly Trial[] = [
  { what: 'a tenant reaches its own pods', from: client, to: ({ of }) => `${of(server)}:${web}`, allowed: true },
  { what: 'the gateway reaches a tenant', from: gateway, to: ({ of }) => `${of(server)}:${web}`, allowed: true },
  {
    what: 'a pod beside the gateway does not',
    from: neighbour,
    to: ({ of }) => `${of(server)}:${web}`,
    allowed: false,
  },
  { what: 'another tenant does not', from: stranger, to: ({ of }) => `${of(server)}:${web}`, allowed: false },
  { what: 'a pod of the provider does not', from: own, to: ({ of }) => `${of(server)}:${web}`, allowed: false },
  { what: 'nobody from outside does', from: 'outside', to: ({ of }) => `${of(server)}:${web}`, allowed: false },
  { what: 'a tenant reaches the resolver, port 53', from: client, to: ({ of }) => `${of(resolver)}:53`, allowed: true },
  { what: '… and no other port of it', from: client, to: ({ of }) => `${of(resolver)}:${web}`, allowed: false },
  {
    what: 'a tenant reaches its tunnel at the gateway',
    from: client,
    to: ({ of }) => `${of(gateway)}:${ownTunnel}`,
    allowed: true,
  },
  { what: '… and nobody else’s', from: client, to: ({ of }) => `${of(gateway)}:${tunnelOfAnother}`, allowed: false },
  { what: '… and not a pod beside it', from: client, to: ({ of }) => `${of(neighbour)}:${ownTunnel}`, allowed: false },
  { what: 'a tenant does not reach another', from: client, to: ({ of }) => `${of(stranger)}:${web}`, allowed: false },
  {
    what: 'a tenant does not reach the provider’s pods',
    from: client,
    to: ({ of }) => `${of(own)}:${web}`,
    allowed: false,
  },
  { what: 'a tenant reaches the internet', from: client, to: () => `${internet}:${web}`, allowed: true },
  {
    what: '… but not what the provider denies of it',
    from: client,
    to: () => `${deniedByProvider}:${web}`,
    allowed: false,
  },
  {
    what: 'a tenant does not reach private networks',
    from: client,
    to: ({ machine }) => `${machine}:${web}`,
    allowed: false,
  },
  { what: 'a tenant does not reach cloud metadata', from: client, to: () => `${metadata}:${web}`, allowed: false },
  { what: 'a tenant does not reach its node', from: client, to: ({ node }) => `${node}:${web}`, allowed: false },
];

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const report = (line: string) => {
    if (options.verbose || /^(building|built|installing|installed|waiting)\b/.test(line)) console.log(line);
  };
  const dir = mkdtempSync(join(tmpdir(), 'gpulease-network-'));
  const stops: (() => Promise<unknown>)[] = [async () => rmSync(dir, { recursive: true, force: true })];
  const abort = new AbortController();
  const clearUp = async () => {
    abort.abort(new Error('stopped'));
    for (const stop of stops.splice(0).reverse()) await stop().catch((error: Error) => console.error(error.message));
  };
  const off = stopWithSignals(clearUp, console.log);
  try {
    await prove(dir, stops, report, abort.signal);
  } finally {
    await clearUp();
    off();
  }
}

async function prove(
  dir: string,
  stops: (() => Promise<unknown>)[],
  report: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const program = await ensureKubeRouter(report, signal);
  const tools = await ensureTools({ need: ['plane', 'node'], report }, signal);
  const plane = await startPlane({ name: 'net', dir: join(dir, 'plane'), tools, report }, signal);
  stops.push(() => plane.stop());
  const node = await startGpuNode(
    { plane, name: nodeName, dir: join(dir, 'node'), gpus: simulatedGpus(nodeName, RTX_4090, 2), report },
    signal,
  );
  stops.push(() => node.stop());
  if (node.simulated) throw new UsageError('no real node can run here (see above), so there is nothing to enforce on');
  const real = node as RealNode;
  const supervisor = createSupervisor({ dir: join(dir, 'router'), report });
  stops.push(() => supervisor.stop());
  console.log(`${seconds()} s  a control plane and a real node`);

  await servers(real, stops);
  const cluster = connectCluster({ name: 'provider', kubeconfig: plane.kubeconfig });
  const apply = (objects: readonly object[]) =>
    applyManifests(cluster, objects as never[], { fieldManager: 'test' }, signal);
  const options = {
    deniedCidrs: ['198.51.100.0/24'],
    gateway: { namespace: gateway.namespace, podLabels: { app: 'gateway' } },
  };
  await apply([tenantRole, { apiVersion: 'v1', kind: 'Namespace', metadata: { name: gateway.namespace } }]);
  for (const leaseId of Object.values(leases)) {
    const lease = { leaseId, chainId: 1, escrow: `0x${'e'.repeat(40)}`, room, nodeName };
    await apply(tenantObjects(lease, options, [ownTunnel]).map(({ object }) => object));
  }
  const listen = (...ports: number[]) => ports.map((port) => `httpd -p ${port} -h /tmp`).join('; ');
  const pod = ({ namespace, name }: Place, labels: object, ...ports: number[]) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { namespace, name, labels },
    spec: {
      terminationGracePeriodSeconds: 0,
      containers: [
        {
          name: 'main',
          image: TOOLS_IMAGE,
          command: ['sh', '-c', `echo here >/tmp/index.html; ${listen(...ports)}; sleep 3600 & wait`],
        },
      ],
    },
  });
  const ofTenant = (lease: keyof typeof leases, name: string) => {
    const place = tenant(lease, name);
    const { metadata, ...rest } = pod(place, {}, web);
    return admitPod(
      { ...rest, metadata: { name } },
      { namespace: place.namespace, leaseId: leaseIdLabel(leases[lease]), nodeName, room },
    );
  };
  const pods = [
    ofTenant('one', 'client'),
    ofTenant('one', 'server'),
    ofTenant('two', 'server'),
    pod(gateway, { app: 'gateway' }, ownTunnel, tunnelOfAnother),
    pod(neighbour, { app: 'other' }, ownTunnel),
    pod(resolver, { 'k8s-app': 'kube-dns' }, 53, web),
    pod(own, {}, web),
  ];
  const until = async (what: string, done: () => Promise<boolean>, withinSeconds: number) => {
    const end = Date.now() + withinSeconds * 1000;
    while (!(await done().catch(() => false))) {
      if (Date.now() > end) throw new Error(`${what}: not within ${withinSeconds} s`);
      await sleep(500, undefined, { signal });
    }
  };
  // A namespace takes pods once its default account is there.
  const accepted = async () => {
    await apply(pods);
    return true;
  };
  await until('pods to be accepted', accepted, 60);
  const running = new Map<string, string>();
  const keyOf = ({ namespace, name }: Place) => `${namespace}/${name}`;
  await until(
    'pods to run',
    async () => {
      for (const { metadata } of pods) {
        const { status } = await plane.api.call<{
          status: { podIP?: string; containerStatuses?: { ready: boolean }[] };
        }>('GET', `/api/v1/namespaces/${metadata.namespace}/pods/${metadata.name}`);
        if (!status.containerStatuses?.[0]?.ready || !status.podIP) return false;
        running.set(keyOf(metadata), status.podIP);
      }
      return true;
    },
    180,
  );
  console.log(`${seconds()} s  ${running.size} pods run`);

  const addresses: Addresses = {
    of: (place) => running.get(keyOf(place))!,
    node: real.ip,
    machine: real.machineIp,
  };
  const inside = (...command: string[]) =>
    run('nsenter', ['--target', String(real.pids.node), '--mount', '--', ...command]);
  const networks = await networksOf(inside);
  let lastError = '';
  /** From the network namespace of the pod itself. */
  const comesThrough = async ({ from, to }: Trial): Promise<boolean> => {
    const url = `http://${to(addresses)}/index.html`;
    if (from === 'outside')
      return fetch(url, { signal: AbortSignal.timeout(2500) }).then(
        (answer) => answer.ok,
        () => false,
      );
    const network = networks.get(addresses.of(from));
    if (network === undefined) throw new Error(`no network namespace has the address of pod ${keyOf(from)}`);
    // A limit of our own: the busybox of Debian 12 dies of `wget -T`. No proxy of this machine's is to be asked.
    const call = ['timeout', '3', 'env', '-i', '/bin/busybox', 'wget', '-q', '-O', '-', url];
    return inside('nsenter', `--net=${network}`, ...call).then(
      () => true,
      (error: Error & { stderr?: string }) => {
        lastError = (error.stderr || error.message).trim().slice(-300);
        return false;
      },
    );
  };
  const all = () => Promise.all(trials.map(comesThrough));

  let open: readonly boolean[] = [];
  const allOpen = async () => {
    open = await all();
    return open.every(Boolean);
  };
  await until('every connection to come through without enforcement', allOpen, 60).catch((error: Error) => {
    const dead = trials.filter((_, at) => !open[at]).map(({ what }) => what);
    throw new Error(`${error.message}: ${dead.join('; ')} (${lastError})`);
  });
  console.log(`${seconds()} s  without enforcement all ${trials.length} connections come through`);

  const enforcing = Date.now();
  await startKubeRouter(
    {
      program,
      plane,
      supervisor,
      nodeName,
      machineIp: real.machineIp,
      pid: real.pids.node!,
      folder: dir,
    },
    signal,
  );
  let seen: readonly boolean[] = [];
  const right = () => trials.every(({ allowed }, at) => seen[at] === allowed);
  const enforced = async () => {
    seen = await all();
    return right();
  };
  await until('the policy to be enforced', enforced, 90).catch(() => undefined);
  const enforcedSeconds = Math.round((Date.now() - enforcing) / 100) / 10;
  // Once more: what came out right by chance, on a busy machine, does not twice.
  if (right()) seen = await all();

  console.log(`\n${'connection'.padEnd(50)}${'wanted'.padEnd(10)}seen`);
  trials.forEach(({ what, allowed }, at) => {
    const word = (yes: boolean | undefined) => (yes ? 'through' : 'refused');
    console.log(
      `${what.padEnd(50)}${word(allowed).padEnd(10)}${word(seen[at])}${seen[at] === allowed ? '' : '   ← wrong'}`,
    );
  });
  const wrong = trials.filter(({ allowed }, at) => seen[at] !== allowed).length;
  console.log(
    JSON.stringify({
      enforcer: `kube-router v${KUBE_ROUTER_VERSION}`,
      trials: trials.length,
      refused: seen.filter((one) => !one).length,
      wrong,
      enforcedSeconds,
      seconds: seconds(),
    }),
  );
  if (wrong > 0) process.exitCode = 1;
}

/** The network namespaces that the CNI made on the node, by their address. */
async function networksOf(
  inside: (...command: string[]) => Promise<{ stdout: string }>,
): Promise<ReadonlyMap<string, string>> {
  const script = 'for n in /var/run/netns/*; do echo "$n $(nsenter --net=$n ip -4 -o address show dev eth0)"; done';
  const { stdout } = await inside('sh', '-c', script);
  return new Map(
    stdout.split('\n').flatMap((line) => {
      const address = / inet (\d+\.\d+\.\d+\.\d+)\//.exec(line)?.[1];
      return address === undefined ? [] : [[address, line.split(' ')[0]!] as const];
    }),
  );
}

/** Somebody who answers at each address outside of the cluster, on the cable between this machine and the node. */
async function servers(node: RealNode, stops: (() => Promise<unknown>)[]): Promise<void> {
  const cable = `gplease${node.machineIp.split('.')[2]}`;
  for (const address of [internet, deniedByProvider, metadata]) {
    await run('ip', ['address', 'add', `${address}/32`, 'dev', cable]);
    stops.push(() => run('ip', ['address', 'delete', `${address}/32`, 'dev', cable]).catch(() => undefined));
  }
  const listen = (address: string) =>
    new Promise<Server>((resolve, reject) => {
      const http = createServer((_request, response) => response.end('here\n'));
      http.once('error', reject);
      http.listen(web, address, () => resolve(http));
    });
  for (const address of [internet, deniedByProvider, metadata, node.machineIp]) {
    const http = await listen(address);
    stops.push(() => new Promise((resolve) => http.close(resolve)));
  }
  // On the node itself: what a kubelet or an exporter there would be.
  const child = execFile('nsenter', [
    '--target',
    String(node.pids.node),
    '--net',
    '--',
    process.execPath,
    '-e',
    `require('node:http').createServer((_, a) => a.end('here')).listen(${web}, '${node.ip}')`,
  ]);
  stops.push(async () => void child.kill());
}

await main().catch((error: Error) => {
  if (error instanceof UsageError) {
    console.error(error.message);
    process.exitCode = 2;
    return;
  }
  console.error(`failed after ${seconds()} s: ${error.message}`);
  process.exitCode = 1;
});
