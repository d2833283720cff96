/**
 * A real control plane as plain processes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, on free ports of
 * this machine. Ready in a few seconds, about half a gigabyte of memory, nothing installed, no root needed.
 *
 * Pods need a node beside it: `node.ts` (a real kubelet) or `hollow-node.ts` (kwok).
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { dump, load } from 'js-yaml';
import { createSupervisor, endLeftovers, freePorts, ProcessError, type Report, type Supervisor } from '../processes.ts';
import type { ToolPaths } from '../tools/tools.ts';
import { type ApiClient, createApiClient } from './api-client.ts';
import { type Authority, createAuthority, createKeyPem, type KeyPem, openAuthority } from './certificates.ts';

export type PlaneProgram = 'etcd' | 'kube-apiserver' | 'kube-controller-manager' | 'kube-scheduler';

export interface PlaneOptions {
  /** Also the name of the kubeconfig's context and cluster. */
  readonly name: string;
  /** The plane's own folder. What an earlier plane kept there is ended and wiped. */
  readonly dir: string;
  readonly tools: ToolPaths;
  readonly report: Report;
  /** Lets the API server refuse kubelets whose certificate the plane's CA did not sign. Off, as kubeadm leaves it. */
  readonly verifyKubelets?: boolean;
  /** Appended to a program's command line; a flag given twice takes the later value. */
  readonly extraArgs?: Readonly<Partial<Record<PlaneProgram, readonly string[]>>>;
  /** A program ended that nobody asked to end. */
  readonly onCrash?: (error: ProcessError) => void;
  readonly now?: () => Date;
}

/** What needs no hold on the plane's processes: any process of this machine and user can have it, see `openPlane`. */
export interface PlaneAccess {
  readonly name: string;
  readonly dir: string;
  /** https://127.0.0.1:port */
  readonly server: string;
  readonly port: number;
  readonly kubeconfigPath: string;
  /** Of a cluster admin (system:masters), certificates inside. */
  readonly kubeconfig: string;
  readonly caPem: string;
  /** Signs the certificate with which the API server calls kubelets (user kube-apiserver-kubelet-client). */
  readonly kubeletClientCaPem: string;
  /** As cluster admin. */
  readonly api: ApiClient;
  /** A kubeconfig for a client certificate with this user and these groups; `at` for callers that reach the plane elsewhere. */
  issueKubeconfig(
    user: string,
    groups: readonly string[],
    at?: { readonly server?: string; readonly tlsServerName?: string },
  ): Promise<string>;
  /** A serving certificate of the plane's CA. */
  issueServing(commonName: string, hosts: readonly string[], organizations?: readonly string[]): Promise<KeyPem>;
}

/** For tests that fill the store up. */
export interface EtcdAccess {
  readonly url: string;
  readonly caFile: string;
  readonly certificateFile: string;
  readonly privateKeyFile: string;
}

export interface Plane extends PlaneAccess {
  readonly tools: ToolPaths;
  readonly pids: Readonly<Record<string, number>>;
  readonly etcd: EtcdAccess;
  /** SIGKILL unless another signal is given; the program stays down until `restart`. */
  kill(program: PlaneProgram, signal?: NodeJS.Signals): Promise<void>;
  /** The same data, ports and flags. Ends the program first if it runs: SIGTERM unless told otherwise. */
  restart(
    program: PlaneProgram,
    how?: { readonly signal?: 'SIGTERM' | 'SIGKILL' },
    signal?: AbortSignal,
  ): Promise<void>;
  /** Safe to repeat. The logs stay. */
  stop(): Promise<void>;
}

const SERVICE_CIDR = '10.96.0.0/16';
const SERVICE_IP = '10.96.0.1';
const ISSUER = 'https://kubernetes.default.svc.cluster.local';
/** The name that a caller may verify at whatever address it reaches the API server. */
export const PLANE_TLS_NAME = 'kubernetes.default.svc';

export async function startPlane(given: PlaneOptions, signal?: AbortSignal): Promise<Plane> {
  const options = { ...given, dir: resolve(given.dir) };
  await endLeftovers(options.dir, options.report);
  const attempts = 3;
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(options, signal);
    } catch (error) {
      // Between finding a port free and using it, somebody else may have taken it.
      const portTaken = error instanceof ProcessError && /address already in use|bind:/i.test(error.logTail);
      if (!portTaken || attempt === attempts) throw error;
      options.report(`${options.name}: a port was taken meanwhile, trying others`);
    }
  }
}

async function startOnce(options: PlaneOptions, signal?: AbortSignal): Promise<Plane> {
  const { name, dir, tools, report } = options;
  const started = Date.now();
  signal?.throwIfAborted();
  for (const folder of ['etcd', 'pki']) {
    rmSync(join(dir, folder), { recursive: true, force: true });
    mkdirSync(join(dir, folder), { recursive: true, mode: 0o700 });
  }
  const [etcdPort = 0, peerPort = 0, port = 0] = await freePorts(3);
  const pki = await writePki(join(dir, 'pki'), name, (options.now ?? (() => new Date()))());
  const server = `https://127.0.0.1:${port}`;
  const supervisor = createSupervisor({ dir, report, onCrash: options.onCrash });
  const context: Context = { options, supervisor, pki, port, etcdPort, peerPort, server };
  try {
    const admin = await pki.cluster.issue({ commonName: 'admin', organizations: ['system:masters'], use: 'client' });
    const api = createApiClient({ server, caPem: pki.cluster.caPem, ...admin });
    await startPrograms(context, api, signal);
    writeFileSync(
      join(dir, 'kubeconfig'),
      kubeconfigYaml({ name, user: `${name}-admin`, server, caPem: pki.cluster.caPem, client: admin }),
      { mode: 0o600 },
    );
    await untilDefaultServiceAccount(api, signal);
    api.close();
    report(`${name}: control plane ready after ${((Date.now() - started) / 1000).toFixed(1)} s at ${server}`);
    const access = await openPlane(dir, options.now);
    return {
      ...access,
      tools,
      get pids() {
        return supervisor.pids;
      },
      etcd: {
        url: `https://127.0.0.1:${etcdPort}`,
        caFile: join(dir, 'pki/etcd-ca.crt'),
        certificateFile: join(dir, 'pki/etcd-client.crt'),
        privateKeyFile: join(dir, 'pki/etcd-client.key'),
      },
      kill: (program, how = 'SIGKILL') => supervisor.get(program).kill(how),
      restart: (program, how, abort) => supervisor.get(program).restart(how, abort),
      async stop() {
        access.api.close();
        await supervisor.stop();
      },
    };
  } catch (error) {
    await supervisor.stop();
    throw error;
  }
}

/** A plane that this or another process has started in `dir`: who may read its folder may do everything with it. */
export async function openPlane(dir: string, now: () => Date = () => new Date()): Promise<PlaneAccess> {
  const kubeconfigPath = join(dir, 'kubeconfig');
  const kubeconfig = readFileSync(kubeconfigPath, 'utf8');
  const { server, name } = readKubeconfig(kubeconfig);
  const read = (file: string) => readFileSync(join(dir, 'pki', file), 'utf8');
  const authority = await openAuthority(read('ca.crt'), read('ca.key'), now());
  const { caPem } = authority;
  const admin = await authority.issue({
    commonName: `${name}-admin`,
    organizations: ['system:masters'],
    use: 'client',
  });
  return {
    name,
    dir,
    server,
    port: Number(new URL(server).port),
    kubeconfigPath,
    kubeconfig,
    caPem,
    kubeletClientCaPem: caPem,
    api: createApiClient({ server, caPem, ...admin }),
    async issueKubeconfig(user, groups, at = {}) {
      const client = await authority.issue({ commonName: user, organizations: groups, use: 'client' });
      return kubeconfigYaml({
        name,
        user,
        server: at.server ?? server,
        caPem,
        client,
        tlsServerName: at.tlsServerName,
      });
    },
    issueServing: (commonName, hosts, organizations) =>
      authority.issue({ commonName, hosts, organizations, use: 'server' }),
  };
}

function readKubeconfig(yaml: string): { readonly name: string; readonly server: string } {
  const config = load(yaml) as { clusters: { name: string; cluster: { server: string } }[] };
  const [first] = config.clusters;
  if (!first) throw new Error('the kubeconfig names no cluster');
  return { name: first.name, server: first.cluster.server };
}

interface Context {
  readonly options: PlaneOptions;
  readonly supervisor: Supervisor;
  readonly pki: Pki;
  readonly port: number;
  readonly etcdPort: number;
  readonly peerPort: number;
  readonly server: string;
}

async function startPrograms(context: Context, api: ApiClient, signal?: AbortSignal): Promise<void> {
  const { options, supervisor, pki, port, etcdPort, peerPort, server } = context;
  const { tools, dir } = options;
  const extra = (program: PlaneProgram) => options.extraArgs?.[program] ?? [];
  const file = (name: string) => join(dir, 'pki', name);
  const etcdUrl = `https://127.0.0.1:${etcdPort}`;
  const peerUrl = `http://127.0.0.1:${peerPort}`;
  const readyz = async (abort: AbortSignal) => (await api.request('GET', '/readyz', undefined, abort)).status === 200;

  const etcd = supervisor.start(
    {
      name: 'etcd',
      command: tools.etcd,
      args: [
        '--name=etcd',
        `--data-dir=${join(dir, 'etcd')}`,
        // Nothing here outlives the machine: without fsync a plane starts faster and wears no disk.
        '--unsafe-no-fsync',
        '--logger=zap',
        '--log-level=warn',
        `--listen-client-urls=${etcdUrl}`,
        `--advertise-client-urls=${etcdUrl}`,
        `--listen-peer-urls=${peerUrl}`,
        `--initial-advertise-peer-urls=${peerUrl}`,
        `--initial-cluster=etcd=${peerUrl}`,
        `--cert-file=${file('etcd-server.crt')}`,
        `--key-file=${file('etcd-server.key')}`,
        '--client-cert-auth',
        `--trusted-ca-file=${file('etcd-ca.crt')}`,
        ...extra('etcd'),
      ],
    },
    signal,
  );
  await etcd;
  // The API server waits for etcd by itself; starting it at once saves a second.
  await supervisor.start(
    {
      name: 'kube-apiserver',
      command: tools['kube-apiserver'],
      args: [
        `--etcd-servers=${etcdUrl}`,
        `--etcd-cafile=${file('etcd-ca.crt')}`,
        `--etcd-certfile=${file('etcd-client.crt')}`,
        `--etcd-keyfile=${file('etcd-client.key')}`,
        `--secure-port=${port}`,
        // All addresses, since nodes call from network namespaces of their own; who calls needs a certificate or token.
        '--bind-address=0.0.0.0',
        `--advertise-address=${hostAddress()}`,
        `--service-cluster-ip-range=${SERVICE_CIDR}`,
        `--tls-cert-file=${file('apiserver.crt')}`,
        `--tls-private-key-file=${file('apiserver.key')}`,
        `--client-ca-file=${file('ca.crt')}`,
        `--service-account-key-file=${file('sa.pub')}`,
        `--service-account-signing-key-file=${file('sa.key')}`,
        `--service-account-issuer=${ISSUER}`,
        '--authorization-mode=Node,RBAC',
        '--enable-admission-plugins=NodeRestriction',
        '--allow-privileged=true',
        `--kubelet-client-certificate=${file('kubelet-client.crt')}`,
        `--kubelet-client-key=${file('kubelet-client.key')}`,
        ...(options.verifyKubelets ? [`--kubelet-certificate-authority=${file('ca.crt')}`] : []),
        // Node names resolve nowhere here: logs and exec are dialled by address.
        '--kubelet-preferred-address-types=InternalIP',
        `--requestheader-client-ca-file=${file('front-proxy-ca.crt')}`,
        '--requestheader-allowed-names=front-proxy-client',
        '--requestheader-extra-headers-prefix=X-Remote-Extra-',
        '--requestheader-group-headers=X-Remote-Group',
        '--requestheader-username-headers=X-Remote-User',
        `--proxy-client-cert-file=${file('front-proxy-client.crt')}`,
        `--proxy-client-key-file=${file('front-proxy-client.key')}`,
        '--enable-aggregator-routing=true',
        '--max-requests-inflight=1000',
        '--max-mutating-requests-inflight=500',
        '--shutdown-delay-duration=0s',
        '--profiling=false',
        ...extra('kube-apiserver'),
      ],
      ready: readyz,
      readyTimeoutSeconds: 120,
      // A connection that somebody keeps open may hold its ordered end up for a minute.
      stopTimeoutSeconds: 5,
    },
    signal,
  );
  const caller = async (user: string, path: string) => {
    const client = await pki.cluster.issue({ commonName: user, use: 'client' });
    writeFileSync(path, kubeconfigYaml({ name: options.name, user, server, caPem: pki.cluster.caPem, client }), {
      mode: 0o600,
    });
    return path;
  };
  // The default of 20 to 50 requests a second is what a burst of pods would measure instead of us.
  const clientLimits = [
    '--kube-api-qps=500',
    '--kube-api-burst=1000',
    '--leader-elect=false',
    '--secure-port=0',
    '--profiling=false',
  ];
  const managerConfig = await caller('system:kube-controller-manager', file('kube-controller-manager.kubeconfig'));
  const schedulerConfig = await caller('system:kube-scheduler', file('kube-scheduler.kubeconfig'));
  await Promise.all([
    supervisor.start(
      {
        name: 'kube-controller-manager',
        command: tools['kube-controller-manager'],
        args: [
          `--kubeconfig=${managerConfig}`,
          ...clientLimits,
          `--service-account-private-key-file=${file('sa.key')}`,
          `--root-ca-file=${file('ca.crt')}`,
          '--use-service-account-credentials=true',
          `--cluster-signing-cert-file=${file('ca.crt')}`,
          `--cluster-signing-key-file=${file('ca.key')}`,
          `--requestheader-client-ca-file=${file('front-proxy-ca.crt')}`,
          ...extra('kube-controller-manager'),
        ],
      },
      signal,
    ),
    supervisor.start(
      {
        name: 'kube-scheduler',
        command: tools['kube-scheduler'],
        args: [`--kubeconfig=${schedulerConfig}`, ...clientLimits, ...extra('kube-scheduler')],
      },
      signal,
    ),
  ]);
}

/** A pod made before its namespace has the `default` ServiceAccount is refused. */
async function untilDefaultServiceAccount(api: ApiClient, signal?: AbortSignal): Promise<void> {
  const path = '/api/v1/namespaces/default/serviceaccounts/default';
  const deadline = Date.now() + 60_000;
  while ((await api.request('GET', path, undefined, signal)).status !== 200) {
    if (Date.now() > deadline)
      throw new Error('the ServiceAccount "default" was not made within 60 s: see kube-controller-manager.log');
    await sleep(50, undefined, { signal });
  }
}

interface Pki {
  readonly cluster: Authority;
}

async function writePki(dir: string, name: string, now: Date): Promise<Pki> {
  const [cluster, etcd, frontProxy, serviceAccounts] = await Promise.all([
    createAuthority(`${name}-ca`, now),
    createAuthority(`${name}-etcd-ca`, now),
    createAuthority(`${name}-front-proxy-ca`, now),
    createKeyPem(),
  ]);
  const write = (file: string, pem: string) => writeFileSync(join(dir, file), pem, { mode: 0o600 });
  write('ca.crt', cluster.caPem);
  write('ca.key', cluster.caKeyPem);
  write('etcd-ca.crt', etcd.caPem);
  write('front-proxy-ca.crt', frontProxy.caPem);
  write('sa.key', serviceAccounts.privateKeyPem);
  write('sa.pub', serviceAccounts.publicKeyPem);
  const hosts = [
    'localhost',
    'kubernetes',
    'kubernetes.default',
    PLANE_TLS_NAME,
    `${PLANE_TLS_NAME}.cluster.local`,
    '127.0.0.1',
    SERVICE_IP,
    hostAddress(),
  ];
  const issue = async (file: string, by: Authority, request: Parameters<Authority['issue']>[0]) => {
    const pair = await by.issue(request);
    write(`${file}.crt`, pair.certificatePem);
    write(`${file}.key`, pair.privateKeyPem);
  };
  const kubeletClient = { commonName: 'kube-apiserver-kubelet-client', organizations: ['system:masters'] };
  await Promise.all([
    issue('apiserver', cluster, { commonName: 'kube-apiserver', hosts, use: 'server' }),
    issue('kubelet-client', cluster, { ...kubeletClient, use: 'client' }),
    issue('etcd-server', etcd, { commonName: 'etcd', hosts: ['localhost', '127.0.0.1'], use: 'both' }),
    issue('etcd-client', etcd, { commonName: 'kube-apiserver', use: 'client' }),
    issue('front-proxy-client', frontProxy, { commonName: 'front-proxy-client', use: 'client' }),
  ]);
  return { cluster };
}

interface KubeconfigParts {
  readonly name: string;
  readonly user: string;
  readonly server: string;
  readonly caPem: string;
  readonly client: KeyPem;
  readonly tlsServerName?: string;
}

function kubeconfigYaml({ name, user, server, caPem, client, tlsServerName }: KubeconfigParts): string {
  const base64 = (text: string) => Buffer.from(text).toString('base64');
  const cluster = {
    server,
    'certificate-authority-data': base64(caPem),
    ...(tlsServerName ? { 'tls-server-name': tlsServerName } : {}),
  };
  return dump({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': name,
    clusters: [{ name, cluster }],
    users: [
      {
        name: user,
        user: {
          'client-certificate-data': base64(client.certificatePem),
          'client-key-data': base64(client.privateKeyPem),
        },
      },
    ],
    contexts: [{ name, context: { cluster: name, user } }],
  });
}

/** An address of this machine that is not the loopback, which the `kubernetes` Service may not point at. */
export function hostAddress(): string {
  for (const addresses of Object.values(networkInterfaces())) {
    for (const address of addresses ?? []) {
      if (address.family === 'IPv4' && !address.internal && !address.address.startsWith('169.254.'))
        return address.address;
    }
  }
  return '127.0.0.1';
}
