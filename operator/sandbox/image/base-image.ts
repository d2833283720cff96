/**
 * A stand-in for the image that ours is built on, made where no registry answers: Debian's minimal system, the Node.js that
 * runs this (which npm brought) and npm, laid out as upstream's slim image is.
 */
import { copyFileSync, cpSync, mkdirSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { command, ensurePrograms, whereIs } from '../command.ts';
import type { Report } from '../processes.ts';
import { keepInCache, platform } from '../tools/tools.ts';

const DEBIAN = 'bookworm';

/** An archive of its files, made once a machine. */
export async function makeBase(report: Report, signal?: AbortSignal): Promise<string> {
  if (process.getuid?.() !== 0)
    throw new Error('a stand-in of the base image is made by root: pull it, or run this as root');
  const what = 'a stand-in of the base image';
  const folder = await keepInCache(
    { what, cacheKey: `base-${DEBIAN}-node-${process.version}-1-${platform}` },
    { report },
    async (out) => {
      const files = `${out}/root`;
      await debianRoot(DEBIAN, files, [], report, signal);
      mkdirSync(join(files, 'usr/local/bin'), { recursive: true });
      cpSync(realpathSync(process.execPath), join(files, 'usr/local/bin/node'));
      const npm = whereIs('npm');
      if (!npm) throw new Error(`${what} takes npm from this machine: install it`);
      const at = join(files, 'usr/local/lib/node_modules/npm');
      cpSync(dirname(dirname(realpathSync(npm))), at, { recursive: true, verbatimSymlinks: true });
      for (const name of ['npm', 'npx'])
        symlinkSync(`../lib/node_modules/npm/bin/${name}-cli.js`, join(files, 'usr/local/bin', name));
      await command(
        'tar',
        ['-C', files, '--numeric-owner', '--sort=name', '--mtime=@0', '-cf', join(out, 'root.tar'), '.'],
        {
          signal,
        },
      );
      rmSync(files, { recursive: true, force: true });
    },
    signal,
  );
  return join(folder, 'root.tar');
}

/** Debian's smallest system and some packages, in a folder; as little of it as images keep. */
export async function debianRoot(
  release: string,
  folder: string,
  packages: readonly string[],
  report: Report,
  signal?: AbortSignal,
): Promise<void> {
  const smallest = await minimalSystem(release, report, signal);
  mkdirSync(folder, { recursive: true });
  await command('tar', ['-C', folder, '--numeric-owner', '-xf', smallest], { signal, timeoutSeconds: 900 });
  if (packages.length > 0) {
    report(`installing ${packages.length} Debian packages and what they need into it (about 1 min)`);
    copyFileSync('/etc/resolv.conf', join(folder, 'etc/resolv.conf'));
    // Nothing is started, and nothing is written through to the disk: if we are cut off, all of it is made anew.
    const script = `mount -t proc proc "$1/proc"
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"
root=$1; shift
apt() { chroot "$root" apt-get -qq -o Dpkg::Options::=--force-unsafe-io "$@"; }
apt update; apt install --yes --no-install-recommends "$@"
rm "$root/usr/sbin/policy-rc.d"`;
    await command('unshare', ['--mount', '--', 'sh', '-euc', script, 'install', folder, ...packages], {
      timeoutSeconds: 1800,
      signal,
      env: { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' },
    });
  }
  strip(folder);
}

/** An archive of Debian's smallest system, made once a machine. */
async function minimalSystem(release: string, report: Report, signal?: AbortSignal): Promise<string> {
  const what = `Debian ${release} in a folder`;
  await ensurePrograms(what, { debootstrap: 'debootstrap' }, report, signal);
  const folder = await keepInCache(
    { what, cacheKey: `debian-${release}-1-${platform}` },
    { report },
    async (out) => {
      report(`unpacking Debian ${release} (about 1 min)`);
      const files = `${out}/root`;
      // In a namespace of mounts: what it mounts in the folder is gone with it, however it ends.
      const debootstrap = ['debootstrap', '--variant=minbase', release, files, await mirror(signal)];
      await command('unshare', ['--mount', '--', ...debootstrap], {
        timeoutSeconds: 1800,
        signal,
        env: { DEBIAN_FRONTEND: 'noninteractive' },
      });
      strip(files);
      await command('tar', ['-C', files, '--numeric-owner', '--sort=name', '-cf', join(out, 'root.tar'), '.'], {
        signal,
      });
      rmSync(files, { recursive: true, force: true });
    },
    signal,
  );
  return join(folder, 'root.tar');
}

function strip(folder: string): void {
  for (const rest of ['cache/apt', 'lib/apt/lists']
    .map((path) => `var/${path}`)
    .concat(['doc', 'man', 'locale', 'info'].map((path) => `usr/share/${path}`))) {
    rmSync(join(folder, rest), { recursive: true, force: true });
    mkdirSync(join(folder, rest), { recursive: true });
  }
  for (const log of [
    'log/bootstrap.log',
    'log/dpkg.log',
    'log/alternatives.log',
    'log/apt',
    'cache/ldconfig/aux-cache',
  ])
    rmSync(join(folder, 'var', log), { recursive: true, force: true });
  writeFileSync(join(folder, 'etc/machine-id'), '');
}

/** Where this machine's own packages come from. */
async function mirror(signal?: AbortSignal): Promise<string> {
  const said = await command('apt-get', ['indextargets', '--format', '$(REPO_URI) $(LABEL)', 'Created-By: Packages'], {
    env: { LC_ALL: 'C' },
    signal,
  });
  return /^(\S+) Debian$/m.exec(said)?.[1] ?? 'http://deb.debian.org/debian';
}
