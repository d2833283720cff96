/** What an upgrade begins with: the version before this one, as Git has it. */
import { mkdirSync, rmSync } from 'node:fs';
import { command } from '../command.ts';

/** A work tree: its charts, and what its image is made of. */
export interface Version {
  /** For people. */
  readonly called: string;
  readonly folder: string;
  /** Dates its image. */
  readonly sourceDateEpoch: number;
}

/** Standard output of `git ARGS`, or undefined: it is not known there, or there is no Git at all. */
export type Git = (args: readonly string[]) => Promise<string | undefined>;

/** Where charts and image come from; a tree in which something here is not committed is newer than its last commit. */
const SHIPPED = ['charts', 'operator', 'Dockerfile', 'package.json', 'package-lock.json'];

export type Choice =
  | { readonly revision: string; readonly commit: string; readonly called: string }
  | { readonly none: string };

/**
 * The last release before this tree, or where nothing was released the commit before. `wanted` names another one.
 * Throws where that one is not there; `none` says in words why there is nothing to upgrade from.
 */
export async function choosePrevious(git: Git, wanted?: string): Promise<Choice> {
  const commitOf = async (revision: string) =>
    (await git(['rev-parse', '--verify', '--quiet', '--end-of-options', `${revision}^{commit}`]))?.trim();
  const chosen = (revision: string, commit: string, what: string): Choice => ({
    revision,
    commit,
    called: `${revision === commit ? commit.slice(0, 7) : revision} (${what})`,
  });
  if (wanted !== undefined) {
    const commit = await commitOf(wanted);
    if (commit === undefined) throw new Error(`--from ${wanted}: Git knows no such commit here`);
    return chosen(wanted, commit, `commit ${commit.slice(0, 7)}, as asked for`);
  }
  const head = await commitOf('HEAD');
  if (head === undefined) return { none: 'this is no checkout of a Git repository' };
  const changed = (await git(['status', '--porcelain', '--', ...SHIPPED]))?.trim();
  const latest = changed ? head : await commitOf('HEAD^');
  if (latest === undefined) return { none: 'this checkout has no commit before its last one' };
  const release = (await git(['describe', '--tags', '--abbrev=0', '--match', 'v[0-9]*', latest]))?.trim();
  const released = release ? await commitOf(release) : undefined;
  if (release && released) return chosen(release, released, 'the last release');
  return chosen(latest, latest, changed ? 'the last commit, which lacks what is changed here' : 'the commit before');
}

/** Writes that version into `folder`, which is emptied. */
export async function checkOut(
  { commit, called }: { readonly commit: string; readonly called: string },
  root: string,
  folder: string,
  signal?: AbortSignal,
): Promise<Version> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const archive = `${folder}.tar`;
  try {
    await command('git', ['archive', '--output', archive, commit], { cwd: root, signal });
    await command('tar', ['-C', folder, '-xf', archive], { signal });
  } finally {
    rmSync(archive, { force: true });
  }
  const date = await command('git', ['log', '-1', '--format=%ct', commit], { cwd: root, signal });
  return { called, folder, sourceDateEpoch: Number(date.trim()) };
}

export const gitIn =
  (root: string, signal?: AbortSignal): Git =>
  (args) =>
    command('git', args, { cwd: root, signal }).catch(() => {
      signal?.throwIfAborted();
      return undefined;
    });
