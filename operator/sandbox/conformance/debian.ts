/**
 * What the suite's images take from Debian: programs out of packages, unpacked and not installed, with the libraries they
 * load; and busybox, built from Debian's source package. apt checks the signatures of all of it.
 *
 * Debian's own busybox-static will not do: its shell drops environment variables such as `data-1`, and runs applets of its
 * own before what PATH names.
 */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import type { Report } from '../processes.ts';

const run = promisify(execFile);
const maxBuffer = 64 << 20;
const plain = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };

/** What must be on the machine to make the images, as packages of Debian. */
const NEEDED: Readonly<Record<string, string>> = {
  'apt-get': 'apt',
  dpkg: 'dpkg',
  gcc: 'gcc libc6-dev',
  make: 'make',
  bzip2: 'bzip2',
  tar: 'tar',
};

export async function checkBuildTools(signal?: AbortSignal): Promise<void> {
  const missing: string[] = [];
  for (const [program, packages] of Object.entries(NEEDED)) {
    const found = await run('sh', ['-c', `command -v ${program}`], { signal }).catch(() => undefined);
    if (!found) missing.push(packages);
  }
  if (missing.length === 0) return;
  if (missing.includes('apt'))
    throw new Error(
      'the images of the suite are made from Debian packages: run this on Debian or in a container of it',
    );
  throw new Error(`making the images of the suite needs: apt-get install ${missing.join(' ')}`);
}

/** Downloads packages and all that they depend on, and unpacks them into a folder. */
export async function unpackPackages(names: readonly string[], folder: string, signal?: AbortSignal): Promise<void> {
  const downloads = `${folder}.debs`;
  for (const each of [folder, downloads]) mkdirSync(each, { recursive: true });
  const leaveOut = ['recommends', 'suggests', 'conflicts', 'breaks', 'replaces', 'enhances'].map(
    (kind) => `--no-${kind}`,
  );
  const { stdout } = await run('apt-cache', ['depends', '--recurse', ...leaveOut, ...names], {
    env: plain,
    signal,
    maxBuffer,
  });
  const wanted = packagesIn(stdout);
  await run('apt-get', ['download', '-o', 'APT::Sandbox::User=root', ...wanted], {
    cwd: downloads,
    env: plain,
    signal,
    maxBuffer,
  }).catch((error: Error & { stderr?: string }) => {
    throw new Error(`apt-get could not download the packages of the suite's images:\n${error.stderr ?? error.message}`);
  });
  for (const file of readdirSync(downloads)) await run('dpkg', ['-x', join(downloads, file), folder], { signal });
}

/** Real packages that stand at the margin of apt-cache's answer; virtual ones stand in brackets. */
export const packagesIn = (answer: string): string[] => [
  ...new Set(answer.split('\n').filter((line) => /^[a-z0-9][a-z0-9.+-]*$/.test(line))),
];

/** Path in an image → file here, for each library that a program loads, out of the unpacked packages. */
export async function librariesOf(
  program: string,
  root: string,
  signal?: AbortSignal,
): Promise<ReadonlyMap<string, string>> {
  const files = readdirSync(root, { recursive: true, encoding: 'utf8' });
  const loader = files.find((file) => /(^|\/)ld-linux[^/]*\.so\.\d+$/.test(file));
  if (!loader) throw new Error('the packages hold no loader of shared libraries');
  const folders = new Set(files.filter((file) => /\.so(\.|$)/.test(file)).map((file) => join(root, dirname(file))));
  // The packages' own loader: the machine's may be of another version than the C library beside it.
  const args = ['--library-path', [...folders].join(':'), '--list', program];
  const { stdout } = await run(realpathSync(join(root, loader)), args, { env: plain, signal });
  return new Map(librariesIn(stdout).map(({ at, file }) => [at, realpathSync(file)]));
}

/** What the loader lists, as files and where an image wants them. */
export function librariesIn(listed: string): { at: string; file: string }[] {
  return listed.split('\n').flatMap((line) => {
    const [, name, file] = /^\s*(\S+) => (\S.*?)(?: \(0x[0-9a-f]+\))?$/.exec(line) ?? [];
    if (!name || !file) return []; // what the kernel brings
    if (!file.startsWith('/')) throw new Error(`the library ${name} is in none of the packages`);
    // The loader is named with its folder, which programs know by heart.
    return [{ at: name.startsWith('/') ? name.slice(1) : `usr/lib/${basename(name)}`, file }];
  });
}

/** First of Debian's releases that has busybox 1.37. */
const BUSYBOX_RELEASE = 'trixie';
export const BUSYBOX_VERSION = '1.37';

/** Upstream's busybox with its own default configuration, static, made in `folder`; answers with the program. */
export async function buildBusybox(folder: string, report: Report, signal?: AbortSignal): Promise<string> {
  const started = Date.now();
  report(`building busybox ${BUSYBOX_VERSION} from Debian's source package (once per machine, about 1 min on 2 cores)`);
  mkdirSync(join(folder, 'lists/partial'), { recursive: true });
  const { stdout: mirrors } = await run(
    'apt-get',
    ['indextargets', '--format', '$(REPO_URI) $(LABEL)', 'Created-By: Packages'],
    { env: plain, signal },
  );
  const mirror = /^(\S+) Debian$/m.exec(mirrors)?.[1] ?? 'http://deb.debian.org/debian';
  // Beside the machine's own lists, which stay as they are.
  writeFileSync(join(folder, 'sources.list'), `deb-src ${mirror} ${BUSYBOX_RELEASE} main\n`);
  const apt = (...args: string[]) =>
    run(
      'apt-get',
      [
        ...['-o', `Dir::Etc::sourcelist=${join(folder, 'sources.list')}`, '-o', 'Dir::Etc::sourceparts=-'],
        ...['-o', `Dir::State::lists=${join(folder, 'lists')}`, '-o', 'APT::Sandbox::User=root', '-qq'],
        ...args,
      ],
      { cwd: folder, env: plain, signal, maxBuffer },
    ).catch((error: Error & { stderr?: string }) => {
      throw new Error(`apt-get ${args[0]} failed for the source of busybox:\n${error.stderr ?? error.message}`);
    });
  await apt('update');
  await apt('source', '--download-only', 'busybox');
  const source = readdirSync(folder).find((file) =>
    new RegExp(`^busybox_${BUSYBOX_VERSION.replace('.', '\\.')}\\..*\\.orig\\.tar\\.bz2$`).test(file),
  );
  if (!source) throw new Error(`Debian ${BUSYBOX_RELEASE} has no busybox ${BUSYBOX_VERSION} any more`);
  await run('tar', ['xjf', source], { cwd: folder, signal });
  const tree = readdirSync(folder, { withFileTypes: true }).find(
    (e) => e.isDirectory() && e.name.startsWith('busybox-'),
  );
  const cwd = join(folder, tree?.name ?? '');
  const make = (...args: string[]) =>
    run('make', args, { cwd, env: { ...plain, KCONFIG_NOTIMESTAMP: '1' }, signal, maxBuffer }).catch(
      (error: Error & { stderr?: string }) => {
        throw new Error(`building busybox failed (make ${args[0]}):\n${(error.stderr ?? error.message).slice(-2000)}`);
      },
    );
  await make('defconfig');
  const config = join(cwd, '.config');
  writeFileSync(config, staticWithoutTc(readFileSync(config, 'utf8')));
  // What the changes bring up anew is answered with the default.
  await run('sh', ['-c', 'yes "" | make oldconfig'], { cwd, env: plain, signal, maxBuffer });
  await make(`-j${availableParallelism()}`, 'busybox');
  const program = join(cwd, 'busybox');
  if (!existsSync(program)) throw new Error('make ended without a busybox');
  report(`built busybox ${BUSYBOX_VERSION} in ${Math.round((Date.now() - started) / 1000)} s`);
  return program;
}

/** tc does not compile with the headers of Linux 6.8 and later. */
export const staticWithoutTc = (config: string): string =>
  config
    .replace(/^# CONFIG_STATIC is not set$/m, 'CONFIG_STATIC=y')
    .replace(/^CONFIG_TC=y$/m, '# CONFIG_TC is not set');
