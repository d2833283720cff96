/**
 * Where the programs of a local cluster come from: `KUBEBUILDER_ASSETS`, PATH, our cache, or the Go toolchain, in that order.
 *
 * Versions are pinned by the go.mod files beside this one and checked by their go.sum; a built program is kept outside the
 * work tree, in a folder named after the versions and the platform, so that a clone or a clean-up costs nothing.
 *
 * Invariant: a folder in the cache is complete. Programs are built in a folder beside it and moved in by one rename.
 */
import { execFile, spawn } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { basename, delimiter, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { takeLock } from '../lock.ts';
import { identityOf, type Report } from '../processes.ts';

export const KUBERNETES_VERSION = '1.36.3';
/** The version Kubernetes itself is released with (kubeadm's DefaultEtcdVersion). */
export const ETCD_VERSION = '3.6.8';
export const KWOK_VERSION = '0.8.0';
export const METRICS_SERVER_VERSION = '0.9.0';

/**
 * plane: what a control plane needs. node: also the kubelet. proxy: also kube-proxy. hollow: also kwok. metrics: also
 * metrics-server, which only tests ask for.
 */
export type Need = 'plane' | 'node' | 'proxy' | 'hollow' | 'metrics';

export type Tool =
  | 'etcd'
  | 'kube-apiserver'
  | 'kube-controller-manager'
  | 'kube-scheduler'
  | 'kubectl'
  | 'kubelet'
  | 'kube-proxy'
  | 'kwok'
  | 'metrics-server';

/** Absolute paths; those that were not asked for may be missing. */
export interface ToolPaths {
  readonly etcd: string;
  readonly 'kube-apiserver': string;
  readonly 'kube-controller-manager': string;
  readonly 'kube-scheduler': string;
  readonly kubectl: string;
  readonly kubelet?: string;
  readonly 'kube-proxy'?: string;
  readonly kwok?: string;
  readonly 'metrics-server'?: string;
}

export interface ToolsOptions {
  readonly need: readonly Need[];
  readonly report: Report;
  readonly env?: Readonly<Record<string, string | undefined>>;
}

const PLANE: readonly Tool[] = ['etcd', 'kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubectl'];

/** Programs that one call of Go makes, and the folder of the cache that they are kept in. */
export interface GoBuild {
  /** For people: what is being built. */
  readonly what: string;
  /** Folder beside this file whose go.mod pins what they are made of. */
  readonly module: string;
  /** Name of the program: its package. */
  readonly tools: Readonly<Record<string, string>>;
  /** The package's tests as a program (`go test -c`), rather than the package. One tool only. */
  readonly testProgram?: boolean;
  /** Versions and platform, so that the cache never holds an old one under a new name. */
  readonly cacheKey: string;
  readonly ldflags: string;
  /** How long it takes, for people. */
  readonly about: string;
}

export interface BuildOptions {
  readonly report: Report;
  readonly env?: Readonly<Record<string, string | undefined>>;
}

export const platform = `${process.platform}-${process.arch}`;

export function ldflags(version: string, ...packages: string[]): string {
  const [major, minor] = version.split('.');
  const stamp = (p: string) => `-X ${p}.gitVersion=v${version} -X ${p}.gitMajor=${major} -X ${p}.gitMinor=${minor}`;
  return ['-s -w', ...packages.map(stamp)].join(' ');
}

const kubernetes = (name: Tool): Record<string, string> => ({ [name]: `k8s.io/kubernetes/cmd/${name}` });
export const kubernetesFlags = ldflags(
  KUBERNETES_VERSION,
  'k8s.io/component-base/version',
  'k8s.io/client-go/pkg/version',
);

// The kubelet is apart, so that a test that wants only a control plane does not wait for it.
const BUILDS: readonly GoBuild[] = [
  {
    what: `etcd v${ETCD_VERSION}`,
    module: 'kubernetes',
    tools: { etcd: 'go.etcd.io/etcd/server/v3' },
    cacheKey: `etcd-v${ETCD_VERSION}-${platform}`,
    ldflags: '-s -w',
    about: 'about 1 min on 2 cores',
  },
  {
    what: `Kubernetes v${KUBERNETES_VERSION} programs`,
    module: 'kubernetes',
    tools: Object.assign(
      {},
      ...(['kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubectl'] as const).map(kubernetes),
    ) as Record<string, string>,
    cacheKey: `kubernetes-v${KUBERNETES_VERSION}-${platform}`,
    ldflags: kubernetesFlags,
    about: 'about 6 min on 2 cores',
  },
  {
    what: `kubelet v${KUBERNETES_VERSION}`,
    module: 'kubernetes',
    tools: kubernetes('kubelet'),
    cacheKey: `kubelet-v${KUBERNETES_VERSION}-${platform}`,
    ldflags: kubernetesFlags,
    about: 'about 1 min on 2 cores',
  },
  {
    what: `kube-proxy v${KUBERNETES_VERSION}`,
    module: 'kubernetes',
    tools: kubernetes('kube-proxy'),
    cacheKey: `kube-proxy-v${KUBERNETES_VERSION}-${platform}`,
    ldflags: kubernetesFlags,
    about: 'about 1 min on 2 cores',
  },
  {
    what: `kwok v${KWOK_VERSION}`,
    module: 'kwok',
    tools: { kwok: 'sigs.k8s.io/kwok/cmd/kwok' },
    cacheKey: `kwok-v${KWOK_VERSION}-${platform}`,
    ldflags: `-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=v${KWOK_VERSION}`,
    about: 'about 1 min on 2 cores',
  },
  {
    what: `metrics-server v${METRICS_SERVER_VERSION}`,
    module: 'metrics-server',
    tools: { 'metrics-server': 'sigs.k8s.io/metrics-server/cmd/metrics-server' },
    cacheKey: `metrics-server-v${METRICS_SERVER_VERSION}-${platform}`,
    ldflags: ldflags(METRICS_SERVER_VERSION, 'k8s.io/client-go/pkg/version', 'k8s.io/component-base/version'),
    about: 'about 5 min on 2 cores',
  },
];

/** Finds or builds what is needed. Only the last way takes time, and it says so. */
export async function ensureTools(
  { need, report, env = process.env }: ToolsOptions,
  signal?: AbortSignal,
): Promise<ToolPaths> {
  const wanted = new Set<Tool>(PLANE);
  if (need.includes('node')) wanted.add('kubelet');
  if (need.includes('proxy')) wanted.add('kube-proxy');
  if (need.includes('hollow')) wanted.add('kwok');
  if (need.includes('metrics')) wanted.add('metrics-server');
  const cache = cacheFolder(env);
  const paths: Partial<Record<Tool, string>> = {};
  for (const tool of wanted) {
    const found = await findInstalled(tool, env);
    if (found) paths[tool] = found;
  }
  const missingOf = (build: GoBuild) => (Object.keys(build.tools) as Tool[]).filter((t) => wanted.has(t) && !paths[t]);
  const folderOf = (build: GoBuild) => join(cache, build.cacheKey);
  const toBuild = BUILDS.filter((build) => missingOf(build).length > 0 && !existsSync(folderOf(build)));
  if (toBuild.length > 0) await checkGo(toBuild.flatMap(missingOf), env, aroundGo);
  for (const build of toBuild) await buildPrograms(build, { report, env }, signal);
  for (const build of BUILDS) {
    for (const tool of missingOf(build)) paths[tool] = join(folderOf(build), tool);
  }
  return paths as ToolPaths;
}

/** `${GPULEASE_CACHE}`, or the user's cache folder. */
export function cacheFolder(env: Readonly<Record<string, string | undefined>> = process.env): string {
  return join(env.GPULEASE_CACHE || env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'gpulease', 'tools');
}

async function findInstalled(
  tool: Tool,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string | undefined> {
  const folders = [env.KUBEBUILDER_ASSETS, ...(env.PATH ?? '').split(delimiter)].filter((f): f is string => !!f);
  for (const folder of folders) {
    const path = join(folder, tool);
    if (isProgram(path) && (await hasRightVersion(tool, path))) return path;
  }
  return undefined;
}

/** Same minor version of Kubernetes, etcd and metrics-server, exactly ours of kwok, whose stages we carry. */
async function hasRightVersion(tool: Tool, path: string): Promise<boolean> {
  const args = tool === 'kubectl' ? ['version', '--client', '--output=json'] : ['--version'];
  const wanted =
    tool === 'etcd'
      ? minorOf(ETCD_VERSION)
      : tool === 'kwok'
        ? new RegExp(`\\bv?${quoteDots(KWOK_VERSION)}\\b`)
        : minorOf(tool === 'metrics-server' ? METRICS_SERVER_VERSION : KUBERNETES_VERSION);
  try {
    const { stdout } = await promisify(execFile)(path, args, { timeout: 10_000, maxBuffer: 1 << 20 });
    return wanted.test(stdout);
  } catch {
    return false; // for another machine, or too old to know the flag: as good as absent
  }
}

function minorOf(version: string): RegExp {
  return new RegExp(`\\bv?${quoteDots(version.split('.').slice(0, 2).join('.'))}\\.\\d+`);
}

function quoteDots(text: string): string {
  return text.replaceAll('.', '\\.');
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** The folder with the programs of one build, built unless they are there. */
export async function ensureBuilt(build: GoBuild, options: BuildOptions, signal?: AbortSignal): Promise<string> {
  const { env = process.env } = options;
  const folder = join(cacheFolder(env), build.cacheKey);
  if (existsSync(folder)) return folder;
  await checkGo(Object.keys(build.tools), env);
  return buildPrograms(build, options, signal);
}

function buildPrograms(
  build: GoBuild,
  { report, env = process.env }: BuildOptions,
  signal?: AbortSignal,
): Promise<string> {
  const moduleFolder = join(import.meta.dirname, build.module);
  const packages = Object.values(build.tools);
  const [only] = Object.keys(build.tools);
  const verb = build.testProgram ? ['test', '-c'] : ['build'];
  return keepInCache(
    build,
    { report, env },
    async (folder) => {
      const output = packages.length === 1 ? join(folder, only ?? '') : `${folder}/`;
      const args = [...verb, '-o', output, '-ldflags', build.ldflags, ...packages];
      await go(args, { build, moduleFolder, report, env }, signal);
    },
    signal,
  );
}

/**
 * A folder of the cache, filled by `make` unless it is there: `make` is given another one, which takes its place when it
 * is complete. Processes that want the same wait for each other.
 */
export async function keepInCache(
  { what, cacheKey }: Pick<GoBuild, 'what' | 'cacheKey'>,
  { report, env = process.env }: BuildOptions,
  make: (folder: string) => Promise<void>,
  signal?: AbortSignal,
): Promise<string> {
  const folder = join(cacheFolder(env), cacheKey);
  if (existsSync(folder)) return folder;
  mkdirSync(cacheFolder(env), { recursive: true });
  const onWait = () => report(`waiting for another process that is building ${what}`);
  const unlock = await takeLock(`${folder}.lock`, { onWait }, signal);
  try {
    if (existsSync(folder)) return folder; // the other one built it
    removeUnfinished(folder);
    const temporary = `${folder}.tmp-${process.pid}`;
    mkdirSync(temporary);
    try {
      await make(temporary);
      moveInto(temporary, folder);
    } finally {
      rmSync(temporary, { recursive: true, force: true });
    }
    return folder;
  } finally {
    unlock();
  }
}

/** Where a module that a build pins is on this machine, with all its files. */
export async function moduleSource(
  module: string,
  path: string,
  { env = process.env }: Pick<BuildOptions, 'env'> = {},
  signal?: AbortSignal,
): Promise<string> {
  // Also brings it, where Go's cache was emptied since.
  const { stdout } = await promisify(execFile)('go', ['mod', 'download', '-json', path], {
    cwd: join(import.meta.dirname, module),
    env: { ...env, GOFLAGS: '-mod=readonly', GOWORK: 'off' } as NodeJS.ProcessEnv,
    signal,
  });
  return (JSON.parse(stdout) as { Dir: string }).Dir;
}

/** What builders left that were killed. */
function removeUnfinished(folder: string): void {
  const begins = `${basename(folder)}.tmp-`;
  for (const name of readdirSync(dirname(folder)))
    if (name.startsWith(begins) && identityOf(Number(name.slice(begins.length))) === undefined)
      rmSync(join(dirname(folder), name), { recursive: true, force: true });
}

function moveInto(temporary: string, folder: string): void {
  try {
    renameSync(temporary, folder);
  } catch (error) {
    // Two builders, when both found the lock of a third that had died: the first to finish is as good.
    if (!existsSync(folder)) throw error;
  }
}

const aroundGo =
  ', or set KUBEBUILDER_ASSETS to a folder with these programs ' +
  `(Kubernetes ${KUBERNETES_VERSION}, etcd ${ETCD_VERSION}, kwok ${KWOK_VERSION})`;

async function checkGo(
  tools: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  otherwise = '',
): Promise<void> {
  const goMod = readFileSync(join(import.meta.dirname, 'kubernetes', 'go.mod'), 'utf8');
  const [, major = '1', minor = '0'] = /^go (\d+)\.(\d+)/m.exec(goMod) ?? [];
  const fix = `install Go ${major}.${minor} or newer (https://go.dev/dl/)${otherwise}`;
  let version: string;
  try {
    // Outside the module: inside, Go would try to fetch the toolchain that go.mod names, and fail with another message.
    ({ stdout: version } = await promisify(execFile)('go', ['env', 'GOVERSION'], {
      cwd: '/',
      env: { ...env } as NodeJS.ProcessEnv,
    }));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new Error(`${tools.join(', ')} must be built, and there is no Go on PATH: ${fix}`);
  }
  const have = /go(\d+)\.(\d+)/.exec(version);
  // Since 1.21 Go fetches a newer toolchain by itself, unless it was told not to.
  const { stdout: toolchain } = await promisify(execFile)('go', ['env', 'GOTOOLCHAIN'], {
    cwd: '/',
    env: { ...env } as NodeJS.ProcessEnv,
  });
  const old = !have || Number(have[1]) < Number(major) || (have[1] === major && Number(have[2]) < Number(minor));
  if (old && (Number(have?.[2] ?? 0) < 21 || toolchain.trim() === 'local')) {
    throw new Error(`building ${tools.join(', ')} needs Go ${major}.${minor}, here is ${version.trim()}: ${fix}`);
  }
}

async function go(
  args: readonly string[],
  {
    build,
    moduleFolder,
    report,
    env,
  }: { build: GoBuild; moduleFolder: string; report: Report; env: Readonly<Record<string, string | undefined>> },
  signal?: AbortSignal,
): Promise<void> {
  const started = Date.now();
  const say = () =>
    report(
      `building ${build.what} with go (once per machine, ${build.about}) … ${Math.round((Date.now() - started) / 1000)} s`,
    );
  say();
  const ticker = setInterval(say, 5000);
  try {
    // readonly: what is built is what go.sum says. No cgo: the programs run whatever the C library is.
    const child = spawn('go', args, {
      cwd: moduleFolder,
      env: {
        ...env,
        CGO_ENABLED: '0',
        GOFLAGS: '-mod=readonly -buildvcs=false -trimpath',
        GOWORK: 'off',
      } as NodeJS.ProcessEnv,
      stdio: ['ignore', 'ignore', 'pipe'],
      signal,
    });
    let tail = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      tail = (tail + text).slice(-4000);
    });
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    if (code !== 0) throw new Error(`building ${build.what} failed (go exit code ${code}):\n${tail.trim()}`);
    report(`built ${build.what} in ${Math.round((Date.now() - started) / 1000)} s`);
  } finally {
    clearInterval(ticker);
  }
}
