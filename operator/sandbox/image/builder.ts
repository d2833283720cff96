/**
 * Builds the Dockerfile with what this machine has: buildah, which needs no daemon, or else a Docker daemon.
 *
 * Where the base image is not at hand and no registry answers, buildah gets one that is made here (`base-image.ts`), under the
 * usual name, in a store of its own, so that no other build on the machine takes it for the real one.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { command, ensurePrograms, whereIs } from '../command.ts';
import { MACHINE_FOLDER } from '../lock.ts';
import type { Report } from '../processes.ts';
import { cacheFolder } from '../tools/tools.ts';
import { makeBase } from './base-image.ts';

export const root = join(import.meta.dirname, '../../..');

/** The Dockerfile's own default. */
export const BASE_IMAGE = 'docker.io/library/node:24-bookworm-slim';
/** What a stand-in of the base image is known by. */
export const STAND_IN_LABEL = 'gpulease.dev/stand-in';

export interface BuildRequest {
  readonly tag: string;
  /** Dates everything in the image. Default: the last commit, so that a commit has one image. */
  readonly sourceDateEpoch: number;
  /** Leaves earlier builds' layers aside. */
  readonly fresh?: boolean;
  /** OS/ARCHITECTURE. Default: this machine's. */
  readonly platform?: string;
  /** The work tree that it is built from. Default: this one. */
  readonly context?: string;
}

export interface BuiltImage {
  readonly tag: string;
  /** Of the manifest, as a registry would name it; of the configuration, where Docker built it. */
  readonly digest: string;
  readonly bytes: number;
  readonly baseBytes: number;
  /** The base image was made on this machine. */
  readonly baseIsStandIn: boolean;
}

export interface Builder {
  readonly name: 'buildah' | 'docker';
  build(request: BuildRequest, signal?: AbortSignal): Promise<BuiltImage>;
  /** What an earlier build made, if it is there. */
  find(tag: string, signal?: AbortSignal): Promise<BuiltImage | undefined>;
  /** As `docker load` and `kind load image-archive` read it. */
  save(tag: string, file: string, signal?: AbortSignal): Promise<void>;
  /** One file out of an image. */
  read(tag: string, path: string, signal?: AbortSignal): Promise<string>;
}

export async function findBuilder(
  wanted: 'auto' | 'buildah' | 'docker',
  report: Report,
  signal?: AbortSignal,
): Promise<Builder> {
  if (wanted === 'docker') return docker(report);
  if (wanted === 'auto' && !whereIs('buildah') && process.getuid?.() !== 0 && whereIs('docker')) return docker(report);
  await ensurePrograms('building images', { buildah: 'buildah', runc: 'runc' }, report, signal);
  return buildah(report);
}

/** Time of the last commit, for SOURCE_DATE_EPOCH; outside a repository, the beginning of time. */
export async function commitTime(env: NodeJS.ProcessEnv = process.env, signal?: AbortSignal): Promise<number> {
  if (env.SOURCE_DATE_EPOCH) {
    if (!/^\d{1,11}$/.test(env.SOURCE_DATE_EPOCH))
      throw new Error(`SOURCE_DATE_EPOCH must be seconds since 1970; given: ${env.SOURCE_DATE_EPOCH}`);
    return Number(env.SOURCE_DATE_EPOCH);
  }
  const said = await command('git', ['log', '-1', '--format=%ct'], { cwd: root, signal }).catch(() => '0');
  return Number(said.trim());
}

/** What .dockerignore leaves out of folders that are copied, as far as it matters here. */
const LEFT_OUT = /^operator\/(contracts\/(out|cache)|sandbox\/(?!image(\/(bundle|sbom)\.ts)?$).*)$/;

/** Changes with every file that the image of a work tree is made of. */
export function contextHash(folder: string = root): string {
  const hash = createHash('sha256');
  const add = (path: string) => {
    if (LEFT_OUT.test(path)) return;
    const full = join(folder, path);
    if (statSync(full).isDirectory()) for (const name of readdirSync(full).sort()) add(`${path}/${name}`);
    else hash.update(`${path}\0`).update(readFileSync(full)).update('\0');
  };
  for (const path of CONTEXT) add(path);
  return hash.digest('hex');
}

const CONTEXT = ['Dockerfile', '.dockerignore', '.npmrc', 'package.json', 'package-lock.json', 'LICENSE', 'operator'];

/** What package downloads inside a build need of this machine, where it has it. */
function secrets(env: NodeJS.ProcessEnv): string[] {
  const ca = env.NODE_EXTRA_CA_CERTS;
  const npmrc = env.NPM_CONFIG_USERCONFIG ?? join(homedir(), '.npmrc');
  return [
    ...(ca && existsSync(ca) ? ['--secret', `id=ca,src=${ca}`] : []),
    ...(existsSync(npmrc) ? ['--secret', `id=npmrc,src=${npmrc}`] : []),
  ];
}

function buildah(report: Report): Builder {
  const own = [
    ...['--root', join(dirname(cacheFolder()), 'images'), '--runroot', join(MACHINE_FOLDER, 'images')],
    ...['--storage-driver', 'overlay'],
  ];
  /** The user's own store, where it has the base image; ours otherwise. */
  let store: readonly string[] | undefined;
  const run = (
    args: readonly string[],
    options: { timeoutSeconds?: number; signal?: AbortSignal; cwd?: string } = {},
  ) => command('buildah', [...(store ?? own), ...args], { cwd: root, ...options });
  const exists = (name: string, signal?: AbortSignal) =>
    run(['inspect', '--type', 'image', '--format', '{{.FromImageID}}', name], { signal }).then(
      (id) => id.trim(),
      () => undefined,
    );

  async function findBase(signal?: AbortSignal): Promise<void> {
    if (store) return;
    const theirs = await command('buildah', ['inspect', '--type', 'image', BASE_IMAGE], { signal }).catch(
      () => undefined,
    );
    if (theirs) {
      store = [];
      return;
    }
    store = own;
    if (process.getuid?.() === 0) for (const folder of [own[1]!, own[3]!]) mkdirSync(folder, { recursive: true });
    if (await exists(BASE_IMAGE, signal)) return;
    report(`asking for ${BASE_IMAGE}`);
    const pulled = await run(['pull', '--quiet', BASE_IMAGE], { timeoutSeconds: 300, signal }).catch((error: Error) => {
      signal?.throwIfAborted();
      report(`no registry has it here (${error.message.trim().split('\n').at(-1)?.slice(-160)})`);
      return undefined;
    });
    if (pulled) return;
    const archive = await makeBase(report, signal);
    const container = (await run(['from', 'scratch'], { signal })).trim();
    try {
      await run(['add', '--quiet', container, archive, '/'], { signal });
      await run(
        [
          ...['config', '--env', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
          ...['--env', `NODE_VERSION=${process.version.slice(1)}`, '--cmd', '["node"]'],
          ...['--label', `${STAND_IN_LABEL}=true`, container],
        ],
        { signal },
      );
      await run(['commit', '--quiet', '--timestamp', '0', container, BASE_IMAGE], { signal, timeoutSeconds: 900 });
    } finally {
      await run(['rm', container]).catch(() => undefined);
    }
    report(`made a stand-in of ${BASE_IMAGE} from Debian's packages and Node.js ${process.version}`);
  }

  const inspect = async (name: string, format: string, signal?: AbortSignal) =>
    (await run(['inspect', '--type', 'image', '--format', format, name], { signal })).trim();
  const bytesOf = async (name: string, signal?: AbortSignal) => {
    // What its layers hold, unpacked: the archive of an image without compression is as long.
    const folder = (await run(['from', '--pull-never', name], { signal })).trim();
    try {
      const mount = (await run(['mount', folder], { signal })).trim();
      return Number((await command('du', ['-sb', '--one-file-system', mount], { signal })).split(/\s/)[0]);
    } finally {
      await run(['rm', folder]).catch(() => undefined);
    }
  };

  const about = async (tag: string, signal?: AbortSignal): Promise<BuiltImage> => ({
    tag,
    digest: await inspect(tag, '{{.FromImageDigest}}', signal),
    bytes: await bytesOf(tag, signal),
    baseBytes: await bytesOf(BASE_IMAGE, signal),
    baseIsStandIn: (await inspect(BASE_IMAGE, `{{index .OCIv1.Config.Labels "${STAND_IN_LABEL}"}}`, signal)) === 'true',
  });

  return {
    name: 'buildah',
    async build({ tag, sourceDateEpoch, fresh, platform, context = root }, signal) {
      await findBase(signal);
      await run(
        [
          ...['build', '--isolation', process.getuid?.() === 0 ? 'chroot' : 'rootless', '--pull-never'],
          ...['--timestamp', String(sourceDateEpoch), '--build-arg', `SOURCE_DATE_EPOCH=${sourceDateEpoch}`],
          ...['--label', `gpulease.dev/context=${contextHash(context)}`],
          ...(fresh ? ['--no-cache'] : ['--layers']),
          ...(platform ? ['--platform', platform] : []),
          ...secrets(process.env),
          ...['--tag', tag, '--file', 'Dockerfile', '.'],
        ],
        { cwd: context, signal, timeoutSeconds: 1800 },
      );
      return about(tag, signal);
    },
    async find(tag, signal) {
      await findBase(signal);
      return (await exists(tag, signal)) ? about(tag, signal) : undefined;
    },
    async save(tag, file, signal) {
      await findBase(signal);
      rmSync(file, { force: true });
      await run(['push', '--quiet', tag, `docker-archive:${file}:${tag}`], { signal, timeoutSeconds: 900 });
    },
    async read(tag, path, signal) {
      await findBase(signal);
      const container = (await run(['from', '--pull-never', tag], { signal })).trim();
      try {
        const mount = (await run(['mount', container], { signal })).trim();
        return readFileSync(join(mount, path), 'utf8');
      } finally {
        await run(['rm', container]).catch(() => undefined);
      }
    },
  };
}

function docker(report: Report): Builder {
  const run = (args: readonly string[], timeoutSeconds = 120, signal?: AbortSignal, cwd = root) =>
    command('docker', args, { cwd, env: { DOCKER_BUILDKIT: '1' }, timeoutSeconds, signal });
  const size = async (name: string, signal?: AbortSignal) =>
    Number((await run(['image', 'inspect', '--format', '{{.Size}}', name], 120, signal)).trim());
  const about = async (tag: string, signal?: AbortSignal): Promise<BuiltImage> => {
    const label = `{{index .Config.Labels "${STAND_IN_LABEL}"}}`;
    return {
      tag,
      digest: (await run(['image', 'inspect', '--format', '{{.Id}}', tag], 60, signal)).trim(),
      bytes: await size(tag, signal),
      baseBytes: await size(BASE_IMAGE, signal).catch(() => 0),
      baseIsStandIn: (await run(['image', 'inspect', '--format', label, tag], 60, signal)).trim() === 'true',
    };
  };
  return {
    name: 'docker',
    async build({ tag, sourceDateEpoch, fresh, platform, context = root }, signal) {
      report('building with Docker, whose images are dated by the clock unless BuildKit rewrites their dates');
      await run(
        [
          ...['build', '--build-arg', `SOURCE_DATE_EPOCH=${sourceDateEpoch}`],
          ...['--label', `gpulease.dev/context=${contextHash(context)}`],
          ...(fresh ? ['--no-cache'] : []),
          ...(platform ? ['--platform', platform] : []),
          ...secrets(process.env),
          ...['--tag', tag, '--file', 'Dockerfile', '.'],
        ],
        1800,
        signal,
        context,
      );
      return about(tag, signal);
    },
    async find(tag, signal) {
      const there = await run(['image', 'inspect', tag], 60, signal).catch(() => undefined);
      return there === undefined ? undefined : about(tag, signal);
    },
    async save(tag, file, signal) {
      await run(['save', '--output', file, tag], 900, signal);
    },
    async read(tag, path, signal) {
      const container = (await run(['create', tag], 60, signal)).trim();
      try {
        const tar = await run(['cp', `${container}:${path}`, '-'], 60, signal);
        return tar.slice(512, 512 + Number.parseInt(tar.slice(124, 135), 8));
      } finally {
        await run(['rm', container]).catch(() => undefined);
      }
    },
  };
}
