/**
 * The control groups of a local node: one group under the root of each hierarchy (v1) or of the only one (v2), in which its
 * kubelet keeps its pods. Two kubelets in one group would clean each other's pods away.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { takeMachineLock } from '../lock.ts';

const ROOT = '/sys/fs/cgroup';

/** Folders of the mounted hierarchies. */
function hierarchies(): string[] {
  if (existsSync(join(ROOT, 'cgroup.controllers'))) return [ROOT];
  return readdirSync(ROOT)
    .map((name) => join(ROOT, name))
    .filter((folder) => existsSync(join(folder, 'cgroup.procs')));
}

const PREFIX = 'gpulease-';
/** Holds the node's first process: a node's group is never empty while the node lives. */
const ALIVE = 'alive';

/** Makes the group `gpulease-<id>` and puts the node's first process in a corner of it. Returns its name. */
export async function createCgroup(id: string, pid: number, signal?: AbortSignal): Promise<string> {
  const name = `${PREFIX}${id}`;
  const unlock = await takeMachineLock('cgroups', signal);
  try {
    for (const old of ownGroups()) if (!isAlive(old)) await removeCgroup(old);
    makeGroup(name);
    for (const hierarchy of hierarchies()) {
      mkdirSync(join(hierarchy, name, ALIVE), { recursive: true });
      fillCpuset(hierarchy, join(hierarchy, name), join(hierarchy, name, ALIVE));
      writeFileSync(join(hierarchy, name, ALIVE, 'cgroup.procs'), String(pid));
    }
    return name;
  } finally {
    unlock();
  }
}

function ownGroups(): string[] {
  const names = hierarchies().flatMap((hierarchy) => readdirSync(hierarchy).filter((name) => name.startsWith(PREFIX)));
  return [...new Set(names)];
}

function isAlive(name: string): boolean {
  return hierarchies().some((hierarchy) => processesIn(join(hierarchy, name, ALIVE)).length > 0);
}

function makeGroup(name: string): void {
  for (const hierarchy of hierarchies()) {
    const group = join(hierarchy, name);
    mkdirSync(group, { recursive: true });
    fillCpuset(hierarchy, hierarchy, group);
  }
  if (hierarchies()[0] === ROOT) enableControllers(ROOT);
}

/** In v1 a new cpuset is empty, and an empty one lets no process in. */
function fillCpuset(hierarchy: string, parent: string, group: string): void {
  if (!hierarchy.endsWith('/cpuset')) return;
  for (const file of ['cpuset.cpus', 'cpuset.mems']) {
    if (readFileSync(join(group, file), 'utf8').trim() !== '') continue;
    writeFileSync(join(group, file), readFileSync(join(parent, file), 'utf8').trim());
  }
}

/** v2 gives a group only the controllers that its parent hands down. */
function enableControllers(folder: string): void {
  const wanted = ['cpuset', 'cpu', 'io', 'memory', 'hugetlb', 'pids'];
  const there = readFileSync(join(folder, 'cgroup.controllers'), 'utf8').trim().split(' ');
  const on = readFileSync(join(folder, 'cgroup.subtree_control'), 'utf8').trim().split(' ');
  const add = wanted.filter((c) => there.includes(c) && !on.includes(c));
  if (add.length > 0) writeFileSync(join(folder, 'cgroup.subtree_control'), add.map((c) => `+${c}`).join(' '));
}

/** Ends every process in the group and removes it. Safe to repeat. */
export async function removeCgroup(name: string): Promise<void> {
  for (const hierarchy of hierarchies()) {
    const group = join(hierarchy, name);
    if (!existsSync(group)) continue;
    for (let attempt = 0; ; attempt++) {
      for (const pid of processesIn(group)) killQuietly(pid);
      try {
        removeTree(group);
        break;
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code;
        if (code === 'ENOENT') break;
        // A group stays busy until the last of its processes has been collected.
        if (code !== 'EBUSY' || attempt > 200) throw error;
        await sleep(25);
      }
    }
  }
}

function processesIn(group: string): number[] {
  if (!existsSync(group)) return [];
  const below = readdirSync(group, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .flatMap((entry) => processesIn(join(group, entry.name)));
  return [...readFileSync(join(group, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number), ...below];
}

function removeTree(group: string): void {
  for (const entry of readdirSync(group, { withFileTypes: true })) {
    if (entry.isDirectory()) removeTree(join(group, entry.name));
  }
  rmdirSync(group);
}

function killQuietly(pid: number): void {
  if (pid <= 1) return; // 0: a process outside our own process namespace
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
