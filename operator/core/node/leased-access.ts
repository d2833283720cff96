/**
 * What GpuAccess should say, as a change of what it says: one entry a node that is served, none for nodes that are gone.
 *
 * The object lives in etcd, which takes 1.5 MB at most. Nodes for which there is no room are left out: bindings to them are
 * then not refused beforehand, but by the virtual node, as they are where the policies are not installed.
 */
import type { AccessSpec } from '../../api/access.ts';

export interface NodeAccess {
  /** Namespace and name of the lease. */
  readonly lease: string;
  readonly namespaces: readonly string[];
  readonly untainted: boolean;
  /** Its lease ends: no more pods are bound to it. */
  readonly ending: boolean;
}

export interface AccessChange {
  /** A merge patch of the spec; undefined when nothing is to be written. */
  readonly patch?: { readonly nodes?: Record<string, object | null>; readonly untainted?: string[] };
  /** Nodes that were left out for want of room. */
  readonly leftOut: readonly string[];
}

const mostBytes = 900_000;
const mostNamespaces = 64;
const mostUntainted = 1024;

/** `exists`: whether there is such a Node; entries of others' nodes that are there stay. */
export function accessChange(
  stored: AccessSpec,
  wanted: ReadonlyMap<string, NodeAccess>,
  exists: (node: string) => boolean,
): AccessChange {
  const nodes: Record<string, object | null> = {};
  const leftOut: string[] = [];
  for (const name of Object.keys(stored.nodes)) if (!wanted.has(name) && !exists(name)) nodes[name] = null;

  let bytes = Object.entries(stored.nodes).reduce((sum, [name, entry]) => sum + sizeOf(name, entry), 0);
  for (const [name, { lease, namespaces, ending }] of wanted) {
    const entry = { lease, namespaces: namespaces.slice(0, mostNamespaces), ...(ending ? { ending } : {}) };
    const before = stored.nodes[name];
    if (before && sameEntry(before, entry)) continue;
    const grows = sizeOf(name, entry) - (before ? sizeOf(name, before) : 0);
    if (bytes + grows > mostBytes) {
      leftOut.push(name);
      continue;
    }
    bytes += grows;
    nodes[name] = before?.ending && !ending ? { ...entry, ending: null } : entry;
  }

  const stays = (name: string): boolean =>
    nodes[name] !== null && (nodes[name] !== undefined || stored.nodes[name] !== undefined);
  const untainted = [
    ...stored.untainted.filter((name) => !wanted.has(name) && stays(name)),
    ...[...wanted].filter(([name, { untainted }]) => untainted && stays(name)).map(([name]) => name),
  ]
    .sort()
    .slice(0, mostUntainted);
  const sameUntainted = sameList(untainted, stored.untainted);
  if (Object.keys(nodes).length === 0 && sameUntainted) return { leftOut };
  return {
    patch: {
      ...(Object.keys(nodes).length > 0 ? { nodes } : {}),
      ...(sameUntainted ? {} : { untainted }),
    },
    leftOut,
  };
}

type Entry = AccessSpec['nodes'][string];
const sizeOf = (name: string, entry: Entry): number => JSON.stringify(entry).length + name.length + 4;
const sameEntry = (a: Entry, b: Entry): boolean =>
  a.lease === b.lease && a.ending === b.ending && sameList(a.namespaces, b.namespaces);
const sameList = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === b.length && a.every((one, i) => one === b[i]);
