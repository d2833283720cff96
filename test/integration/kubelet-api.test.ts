/**
 * The kubelet API of a virtual node on real parts: figures that a real kubelet measured, a real metrics-server that reads them,
 * a real API server that says who may; and calls from inside a pod's network.
 */
import { execFile } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import https from 'node:https';
import { join } from 'node:path';
import tls from 'node:tls';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyManifests } from '../../operator/adapters/kube/apply-manifests.ts';
import { readPage } from '../../operator/core/exposition.ts';
import type { Pod } from '../../operator/core/node/pod.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { hostAddress } from '../../operator/sandbox/clusters/plane.ts';
import { createSupervisor, freePorts } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';
import { openChannels, targetOf } from '../support/channel-socket.ts';
import { leapingClock } from '../support/clock.ts';
import { eventually, quiet } from '../support/clusters.ts';
import { type LeasedNode, type LeaseLab, startLeaseLab } from '../support/leased-node.ts';

const run = promisify(execFile);
const real = process.env.GPULEASE_NODES !== 'hollow';
const clock = leapingClock();
const figures: Record<string, unknown> = {};
const stops: (() => Promise<unknown>)[] = [];

let lab: LeaseLab;
let mine: LeasedNode;
let others: LeasedNode;

/** Works a little, and holds 24 MB. */
const works =
  'dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; trap "exit 0" TERM; ' +
  'while true; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.1; done';

beforeAll(async () => {
  if (!real) return;
  lab = await startLeaseLab('kubelet-api', { clock, expirationSeconds: 600 });
  [mine, others] = await Promise.all([lab.lease('mine'), lab.lease('others')]);
  await Promise.all([
    mine.run('worker', works, {
      containers: [
        {
          name: 'main',
          image: 'gpulease.local/busybox:1',
          command: ['sh', '-c', works],
          resources: { limits: { cpu: '500m', memory: '128Mi' } },
          livenessProbe: { exec: { command: ['true'] }, periodSeconds: 1 },
        },
      ],
    }),
    others.run('neighbour', works),
  ]);
});
afterAll(async () => {
  for (const stop of stops.reverse())
    await stop().catch((error: Error) => console.error('while stopping:', error.message));
  await lab?.stop();
  console.log(JSON.stringify(figures));
});

const raw = (node: LeasedNode, path: string) =>
  lab.kubectl(['get', '--raw', `/api/v1/nodes/${node.name}/proxy/${path}`]);

interface Summary {
  node: { nodeName: string; cpu: Record<string, number>; memory: Record<string, number>; fs?: object };
  pods: {
    podRef: { name: string; namespace: string; uid: string };
    containers: { name: string; cpu?: Record<string, number>; memory?: Record<string, number> }[];
    cpu?: Record<string, number>;
  }[];
}

describe.runIf(real)('what a virtual node tells of its pods', () => {
  test('/stats/summary: its pods by the names and UIDs of the consumer, and their sum', async () => {
    let summary: Summary | undefined;
    await eventually(
      async () => {
        const { stdout } = await raw(mine, 'stats/summary');
        summary = JSON.parse(stdout) as Summary;
        const { node, pods } = summary;
        return (pods[0]?.containers[0]?.cpu?.usageNanoCores ?? 0) > 0 && (node.cpu?.usageCoreNanoSeconds ?? 0) > 0;
      },
      'the kubelet to have measured twice',
      60,
    );
    const { node, pods } = summary!;
    const pod = await lab.consumer.get<Pod>(resources.pods, { namespace: lab.namespace, name: 'worker' });
    expect(pods.map(({ podRef }) => podRef)).toEqual([
      { name: 'worker', namespace: lab.namespace, uid: pod!.metadata.uid },
    ]);
    expect(pods[0]!.containers.map(({ name }) => name)).toEqual(['main']);
    expect(pods[0]!.containers[0]!.memory!.workingSetBytes).toBeGreaterThan(24e6);
    expect(node.nodeName).toBe(mine.name);
    expect(node.cpu.usageCoreNanoSeconds).toBeGreaterThan(0);
    expect(node.memory.workingSetBytes).toBeGreaterThan(24e6);
    expect(node.memory.workingSetBytes! + node.memory.availableBytes!).toBe(4 * 1024 ** 3);
    figures.summary = { cpu: node.cpu, memory: node.memory };
  });

  test('/stats/summary, of CPU and memory only', async () => {
    const { stdout } = await raw(mine, 'stats/summary?only_cpu_and_memory=true');
    const { node, pods } = JSON.parse(stdout) as Summary;
    expect(node.fs).toBeUndefined();
    expect(Object.keys(pods[0]!).sort()).toEqual(expect.arrayContaining(['containers', 'cpu', 'memory', 'podRef']));
  });

  test.each<[string, RegExp, string[]]>([
    [
      'metrics/resource',
      /^(node_|container_|pod_|(resource_)?scrape_error)/,
      ['node_cpu_usage_seconds_total', 'container_memory_working_set_bytes', 'pod_cpu_usage_seconds_total'],
    ],
    ['metrics/cadvisor', /^(container|machine)_/, ['container_cpu_usage_seconds_total', 'machine_memory_bytes']],
    ['metrics/probes', /^prober_/, ['prober_probe_total']],
    ['metrics', /^kube/, ['kubelet_running_pods', 'kubelet_node_name']],
  ])('/%s: series of its own pods alone', async (path, families, expected) => {
    const { stdout, stderr, code } = await raw(mine, path);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const names = new Set<string>();
    const pods = new Set<string>();
    readPage(stdout, ({ name, labels }) => {
      names.add(name);
      const label = (key: string) => labels.find(([one]) => one === key)?.[1];
      if (label('pod') !== undefined) pods.add(`${label('namespace')}/${label('pod')}`);
    });
    for (const name of names) expect(name).toMatch(families);
    for (const name of expected) expect([...names]).toContain(name);
    if (path !== 'metrics') expect([...pods]).toEqual([`${lab.namespace}/worker`]);
    // Of the provider and of its other tenant, nothing.
    expect(stdout).not.toMatch(/kubelet-api-real|neighbour|gl-[0-9a-f]{20}/);
    figures[path] = { series: names.size, bytes: stdout.length };
  });

  test('/configz, /healthz, /pods, /runningpods, and what is switched off', async () => {
    const config = JSON.parse((await raw(mine, 'configz')).stdout) as { kubeletconfig: Record<string, unknown> };
    expect(config.kubeletconfig).toMatchObject({
      kind: 'KubeletConfiguration',
      port: mine.node.state.port,
      maxPods: 20,
      authentication: { anonymous: { enabled: false } },
      authorization: { mode: 'Webhook' },
    });
    expect((await raw(mine, 'healthz')).stdout).toBe('ok\n');
    for (const path of ['pods', 'runningpods/']) {
      const { items } = JSON.parse((await raw(mine, path)).stdout) as { items: Pod[] };
      expect(items.map(({ metadata }) => metadata.name)).toEqual(['worker']);
    }
    expect((await raw(mine, 'logs/')).code).toBe(1);
  });

  test('a node without a kubelet says so, in every page, and the rest goes on', async () => {
    const hollow = await lab.lease('hollow', {}, { providerNode: 'nowhere' });
    for (const path of ['stats/summary', 'metrics/resource', 'metrics/cadvisor']) {
      const { code, stderr } = await raw(hollow, path);
      expect(code).toBe(1);
      expect(stderr).toContain('has no kubelet that measures');
    }
    expect((await raw(hollow, 'healthz')).stdout).toBe('ok\n');
  });

  test('kubectl top, through a real metrics-server', async () => {
    const { 'metrics-server': program } = await ensureTools({ need: ['plane', 'metrics'], report: quiet });
    const started = Date.now();
    await startMetricsServer(program!);
    const top = async (what: string, ...rest: string[]) =>
      (await lab.kubectl(['top', what, ...rest, '--no-headers'])).stdout.trim().split(/\s+/);
    await eventually(
      async () => (await top('pod', 'worker')).length >= 3 && (await top('node', mine.name)).length >= 5,
      'metrics-server to have read twice',
      90,
    );
    figures.topAfterSeconds = (Date.now() - started) / 1000;
    const [pod, cpu, memory] = await top('pod', 'worker');
    expect(pod).toBe('worker');
    expect(Number(/^(\d+)m$/.exec(cpu!)?.[1])).toBeGreaterThan(0);
    expect(Number(/^(\d+)Mi$/.exec(memory!)?.[1])).toBeGreaterThanOrEqual(24);
    const [node, nodeCpu, , nodeMemory] = await top('node', mine.name);
    expect(node).toBe(mine.name);
    expect(Number(/^(\d+)m$/.exec(nodeCpu!)?.[1])).toBeGreaterThan(0);
    expect(Number(/^(\d+)Mi$/.exec(nodeMemory!)?.[1])).toBeGreaterThanOrEqual(24);
    figures.top = { pod: [cpu, memory], node: [nodeCpu, nodeMemory] };
  });
});

/** As its manifests run it, but as a process of this machine; with the rights that it asks for, and no others. */
async function startMetricsServer(program: string): Promise<void> {
  const plane = lab.consumerPlane;
  const [port = 0] = await freePorts(1);
  const apiGroup = 'rbac.authorization.k8s.io';
  const subjects = [{ kind: 'User', name: 'metrics-server', apiGroup }];
  const bind = (name: string, role: string) => ({
    apiVersion: `${apiGroup}/v1`,
    kind: 'ClusterRoleBinding',
    metadata: { name },
    roleRef: { apiGroup, kind: 'ClusterRole', name: role },
    subjects,
  });
  const service = { namespace: 'kube-system', name: 'metrics-server' };
  const names = ['metrics-server.kube-system.svc'];
  const serving = await plane.issueServing('metrics-server', names);
  const write = (name: string, text: string) => {
    const file = join(lab.dir, name);
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  };
  const kubeconfig = write('metrics-server.kubeconfig', await plane.issueKubeconfig('metrics-server', []));
  const manifests = [
    {
      apiVersion: `${apiGroup}/v1`,
      kind: 'ClusterRole',
      metadata: { name: 'system:metrics-server' },
      rules: [
        { apiGroups: [''], resources: ['nodes/metrics'], verbs: ['get'] },
        { apiGroups: [''], resources: ['pods', 'nodes'], verbs: ['get', 'list', 'watch'] },
      ],
    },
    bind('system:metrics-server', 'system:metrics-server'),
    bind('metrics-server:system:auth-delegator', 'system:auth-delegator'),
    {
      apiVersion: `${apiGroup}/v1`,
      kind: 'RoleBinding',
      metadata: { namespace: 'kube-system', name: 'metrics-server-auth-reader' },
      roleRef: { apiGroup, kind: 'Role', name: 'extension-apiserver-authentication-reader' },
      subjects,
    },
    { apiVersion: 'v1', kind: 'Service', metadata: service, spec: { ports: [{ name: 'https', port: 443 }] } },
    {
      apiVersion: 'discovery.k8s.io/v1',
      kind: 'EndpointSlice',
      metadata: { ...service, labels: { 'kubernetes.io/service-name': service.name } },
      addressType: 'IPv4',
      endpoints: [{ addresses: [hostAddress()], conditions: { ready: true } }],
      ports: [{ name: 'https', port, protocol: 'TCP' }],
    },
    {
      apiVersion: 'apiregistration.k8s.io/v1',
      kind: 'APIService',
      metadata: { name: 'v1beta1.metrics.k8s.io' },
      spec: {
        service,
        group: 'metrics.k8s.io',
        version: 'v1beta1',
        caBundle: Buffer.from(plane.caPem).toString('base64'),
        groupPriorityMinimum: 100,
        versionPriority: 100,
      },
    },
  ];
  await applyManifests(lab.consumer, manifests as never[], { fieldManager: 'test' });
  // An API that nobody serves would hold up the deletion of every namespace.
  stops.push(() =>
    lab.consumer.delete(
      { group: 'apiregistration.k8s.io', version: 'v1', plural: 'apiservices', kind: 'APIService', namespaced: false },
      { name: 'v1beta1.metrics.k8s.io' },
    ),
  );
  const supervisor = createSupervisor({ dir: join(lab.dir, 'metrics-server'), report: quiet });
  stops.push(() => supervisor.stop());
  await supervisor.start({
    name: 'metrics-server',
    command: program,
    args: [
      `--kubeconfig=${kubeconfig}`,
      `--authentication-kubeconfig=${kubeconfig}`,
      `--authorization-kubeconfig=${kubeconfig}`,
      `--secure-port=${port}`,
      `--tls-cert-file=${write('metrics-server.crt', serving.certificatePem)}`,
      `--tls-private-key-file=${write('metrics-server.key', serving.privateKeyPem)}`,
      // The node's certificate is the cluster's: it is verified.
      `--kubelet-certificate-authority=${write('ca.crt', plane.caPem)}`,
      '--kubelet-preferred-address-types=InternalIP',
      '--kubelet-use-node-status-port',
      '--metric-resolution=10s',
      '--kubelet-request-timeout=9s',
    ],
    readyTimeoutSeconds: 60,
    ready: async () => (await lab.kubectl(['get', '--raw', '/apis/metrics.k8s.io/v1beta1'])).code === 0,
  });
}

describe.runIf(real)('who is let in', () => {
  const rights = ['stats', 'metrics', 'log', 'pods', 'configz', 'healthz', 'proxy', 'checkpoint'] as const;
  type Right = (typeof rights)[number];
  const clients = new Map<Right | 'none', { cert: string; key: string }>();
  const credentials = async (user: string) => {
    const { cert, key } = targetOf(await lab.consumerPlane.issueKubeconfig(user, []));
    return { cert, key };
  };

  beforeAll(async () => {
    const apiGroup = 'rbac.authorization.k8s.io';
    const manifests = rights.flatMap((right) => [
      {
        apiVersion: `${apiGroup}/v1`,
        kind: 'ClusterRole',
        metadata: { name: `test-only-${right}` },
        rules: [{ apiGroups: [''], resources: [`nodes/${right}`], verbs: ['get'] }],
      },
      {
        apiVersion: `${apiGroup}/v1`,
        kind: 'ClusterRoleBinding',
        metadata: { name: `test-only-${right}` },
        roleRef: { apiGroup, kind: 'ClusterRole', name: `test-only-${right}` },
        subjects: [{ kind: 'User', name: `only-${right}`, apiGroup }],
      },
    ]);
    await applyManifests(lab.consumer, manifests as never[], { fieldManager: 'test' });
    for (const right of rights) clients.set(right, await credentials(`only-${right}`));
    clients.set('none', await credentials('nobody-in-particular'));
    // An API server learns of new rights by watching.
    await mayGet('checkpoint', 'only-checkpoint');
  });

  /** Asked at the API server: the node remembers a no for half a minute. */
  const mayGet = (right: Right, user: string) =>
    eventually(async () => {
      const review = {
        metadata: { name: '' },
        spec: {
          user,
          resourceAttributes: { verb: 'get', version: 'v1', resource: 'nodes', subresource: right, name: 'n' },
        },
      };
      const { status } = await lab.consumer.create<KubeObject & { status?: { allowed?: boolean } }>(
        resources.subjectAccessReviews,
        review as KubeObject,
      );
      return status?.allowed === true;
    }, `${user} to be known to have the right`);

  const call = (as: Right | 'none', path: string): Promise<number> =>
    new Promise((resolve, reject) => {
      const request = https.get(
        {
          host: lab.real!.machineIp,
          port: mine.node.state.port,
          path,
          ca: lab.consumerPlane.caPem,
          agent: false,
          ...clients.get(as),
        },
        (response) => {
          response.resume();
          response.once('end', () => resolve(response.statusCode ?? 0));
        },
      );
      request.on('error', reject);
    });

  test.each<[string, readonly Right[]]>([
    ['/stats/summary', ['stats']],
    ['/metrics', ['metrics']],
    ['/metrics/resource', ['metrics']],
    ['/metrics/cadvisor', ['metrics']],
    ['/metrics/probes', ['metrics']],
    ['/logs/', ['log']],
    ['/pods', ['pods', 'proxy']],
    ['/runningpods/', ['pods', 'proxy']],
    ['/configz', ['configz', 'proxy']],
    ['/healthz', ['healthz', 'proxy']],
    ['/checkpoint/a/b/c', ['checkpoint']],
    ['/containerLogs/a/b/c', ['proxy']],
    ['/nothing', ['proxy']],
    // By GET, and with the right to get: a shell needs more.
    ['/exec/a/b/c?command=sh', []],
    ['/attach/a/b/c', []],
    ['/portForward/a/b', []],
    ['/run/a/b/c', []],
  ])('%s is for who may get nodes/%j, as the API server says', async (path, letIn) => {
    const told = await Promise.all(
      [...rights, 'none' as const].map(async (right) => [right, (await call(right, path)) !== 403] as const),
    );
    expect(told.filter(([, isLetIn]) => isLetIn).map(([right]) => right)).toEqual(letIn);
  });

  describe('from inside a pod’s network', () => {
    /** Runs in the network of a pod of the real node, as a container of it would. */
    async function fromPod(...curl: string[]): Promise<{ status: number; body: string }> {
      const { shell } = await networkOfPod();
      const url = `https://${lab.real!.machineIp}:${mine.node.state.port}`;
      const [path = '', ...rest] = curl;
      const { stdout } = await run('nsenter', [
        ...shell,
        'curl',
        '-sk',
        '-m',
        '10',
        '-w',
        '\\n%{http_code}',
        ...rest,
        `${url}${path}`,
      ]);
      const at = stdout.lastIndexOf('\n');
      return { status: Number(stdout.slice(at + 1)), body: stdout.slice(0, at) };
    }

    async function networkOfPod(): Promise<{ shell: string[]; address: string }> {
      const remote = await lab.provider.list<Pod>(resources.pods, { namespace: mine.tenant });
      const address = (remote.items[0]!.status as { podIP?: string }).podIP!;
      const tasks = (await lab.real!.ctr('task', 'ls')).split('\n').slice(1);
      const node = ['--target', String(lab.real!.pids.node), '--mount', '--pid', '--'];
      for (const pid of tasks.map((line) => line.trim().split(/\s+/)[1]).filter((one) => /^\d+$/.test(one ?? ''))) {
        const shell = [...node, 'nsenter', '--target', pid!, '--net', '--'];
        const { stdout } = await run('nsenter', [...shell, 'ip', '-4', '-o', 'addr', 'show', 'scope', 'global']);
        if (stdout.includes(`${address}/`)) return { shell, address };
      }
      throw new Error(`no container has the address ${address}`);
    }

    async function token(name: string): Promise<string> {
      const account: KubeObject = { metadata: { namespace: lab.namespace, name } };
      await applyManifests(lab.consumer, [{ apiVersion: 'v1', kind: 'ServiceAccount', ...account } as never], {
        fieldManager: 'test',
      });
      const answer = await lab.consumer.createSubresource<{ status: { token: string } }>(
        resources.serviceAccounts,
        { namespace: lab.namespace, name },
        'token',
        { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 600 } },
      );
      return answer.status.token;
    }

    const paths = [
      '/pods',
      '/runningpods/',
      '/stats/summary',
      '/metrics',
      '/metrics/resource',
      '/metrics/cadvisor',
      '/metrics/probes',
      '/configz',
      '/healthz',
      '/logs/',
      '/containerLogs/team/worker/main',
      '/exec/team/worker/main?command=id',
      '/attach/team/worker/main',
      '/portForward/team/worker',
      '/run/team/worker/main',
      '/checkpoint/team/worker/main',
      '/nothing',
    ];

    test('nobody is told anything: 401', async () => {
      for (const path of paths)
        expect([path, await fromPod(path)]).toEqual([path, { status: 401, body: 'Unauthorized\n' }]);
      const forged = `${Buffer.from('{"alg":"RS256"}').toString('base64url')}.${Buffer.from('{"sub":"system:admin"}').toString('base64url')}.AAAA`;
      expect((await fromPod('/pods', '-H', `Authorization: Bearer ${forged}`)).status).toBe(401);
    });

    test('an upgrade by nobody is turned away: 401', async () => {
      const upgrade = [
        '-X',
        'POST',
        '-H',
        'Connection: Upgrade',
        '-H',
        'Upgrade: SPDY/3.1',
        '-H',
        'X-Stream-Protocol-Version: v4.channel.k8s.io',
      ];
      for (const path of ['/exec/team/worker/main?command=id', '/attach/team/worker/main', '/portForward/team/worker'])
        expect((await fromPod(path, '--http1.1', ...upgrade)).status).toBe(401);
    });

    test('an account without the right is told that, and nothing else: 403', async () => {
      const bearer = ['-H', `Authorization: Bearer ${await token('powerless')}`];
      for (const path of paths) {
        const { status, body } = await fromPod(path, ...bearer);
        expect([path, status]).toEqual([path, 403]);
        expect(body).toMatch(
          /^Forbidden \(user=system:serviceaccount:\S+:powerless, verb=\w+, resource=nodes, subresource\(s\)=\[[\w ]+\]\)\n$/,
        );
      }
    });

    test('an account with the right is served', async () => {
      const bearer = ['-H', `Authorization: Bearer ${await token('reader')}`];
      const apiGroup = 'rbac.authorization.k8s.io';
      await applyManifests(
        lab.consumer,
        [
          {
            apiVersion: `${apiGroup}/v1`,
            kind: 'ClusterRoleBinding',
            metadata: { name: 'test-reader' },
            roleRef: { apiGroup, kind: 'ClusterRole', name: 'test-only-metrics' },
            subjects: [{ kind: 'ServiceAccount', namespace: lab.namespace, name: 'reader' }],
          } as never,
        ],
        { fieldManager: 'test' },
      );
      await mayGet('metrics', `system:serviceaccount:${lab.namespace}:reader`);
      expect((await fromPod('/metrics/resource', ...bearer)).status).toBe(200);
      expect((await fromPod('/pods', ...bearer)).status).toBe(403);
    });
  });
});

describe.runIf(real)('the serving certificate', () => {
  const shown = () =>
    new Promise<X509Certificate>((resolve, reject) => {
      const socket = tls.connect(
        { host: lab.real!.machineIp, port: mine.node.state.port!, ca: lab.consumerPlane.caPem },
        () => {
          resolve(new X509Certificate(socket.getPeerX509Certificate()!.raw));
          socket.destroy();
        },
      );
      socket.on('error', reject);
    });

  test('of ten minutes is replaced by the cluster’s signer before it ends, and open streams go on', async () => {
    await eventually(async () => (await shown()).subject.includes(`system:node:${mine.name}`), 'a signed certificate');
    const first = await shown();
    expect(Date.parse(first.validTo) - Date.now()).toBeLessThanOrEqual(600_000);
    const path = `/api/v1/namespaces/${lab.namespace}/pods/worker/exec?container=main&stdin=true&stdout=true&command=cat`;
    const stream = await openChannels(targetOf(lab.consumerPlane.kubeconfig), path, 'v5.channel.k8s.io');
    stream.send(0, 'before;');
    await eventually(async () => stream.received(1).toString() === 'before;', 'the echo');
    clock.leap(9.5 * 60_000);
    await eventually(async () => (await shown()).serialNumber !== first.serialNumber, 'another certificate');
    const second = await shown();
    expect(second.checkIssued(new X509Certificate(lab.consumerPlane.caPem))).toBe(true);
    stream.send(0, 'after;');
    await eventually(async () => stream.received(1).toString() === 'before;after;', 'the echo');
    stream.closeChannel(0);
    await stream.ended;
    expect(stream.exitCode()).toBe(0);
    expect((await raw(mine, 'healthz')).stdout).toBe('ok\n');
  });
});
