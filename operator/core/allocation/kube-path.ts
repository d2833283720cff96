/**
 * The narrow proxy, as data: which requests under `/v1/leases/{id}/kube/` exist, and what each becomes on the API server.
 *
 * Everything is taken apart, checked against a list and put together anew; nothing of the caller's path or query is
 * passed on as it came. What is not on the list does not exist.
 */

import { isNodePage, type NodePage } from './node-pages.ts';

export type KubeKind = 'pods' | 'configmaps' | 'secrets' | 'persistentvolumeclaims' | 'events' | 'node';
export type PodStream = 'log' | 'exec' | 'attach' | 'portforward';

export interface KubeTarget {
  readonly kind: KubeKind;
  readonly name?: string;
  readonly stream?: PodStream;
  /** Of the kubelet, where `kind` is node. */
  readonly page?: NodePage;
  readonly methods: readonly string[];
}

const dnsName = /^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/;
export const isObjectName = (name: string): boolean => dnsName.test(name) && !name.includes('..');

const objects: readonly string[] = ['pods', 'configmaps', 'secrets', 'persistentvolumeclaims'];
const streams: readonly string[] = ['log', 'exec', 'attach', 'portforward'];

/** `rest`: the path after `kube/`, without query. Undefined: there is no such path. */
export function kubeTarget(rest: string): KubeTarget | undefined {
  const [kind, name, sub, ...more] = rest.split('/');
  if (kind === undefined || more.length > 0) return undefined;
  if (kind === 'node' && name !== undefined) {
    const page = rest.slice('node/'.length);
    return isNodePage(page) ? { kind, page, methods: ['GET'] } : undefined;
  }
  if (kind === 'node' || kind === 'events') return name === undefined ? { kind, methods: ['GET'] } : undefined;
  if (!objects.includes(kind)) return undefined;
  if (name === undefined) return { kind: kind as KubeKind, methods: ['GET', 'POST'] };
  if (!isObjectName(name)) return undefined;
  if (sub === undefined) {
    // A claim is never changed: what of it may be is how large it is, and that is quota that others count on.
    const methods = kind === 'persistentvolumeclaims' ? ['GET', 'DELETE'] : ['GET', 'PUT', 'DELETE'];
    return { kind: kind as KubeKind, name, methods };
  }
  if (kind !== 'pods' || !streams.includes(sub)) return undefined;
  return { kind: 'pods', name, stream: sub as PodStream, methods: sub === 'log' ? ['GET'] : ['GET', 'POST'] };
}

type Check = (value: string) => boolean;
const flag: Check = (value) => /^(true|false|1|0)$/.test(value);
const number: Check = (value) => /^\d{1,10}$/.test(value);
const word: Check = (value) => value.length <= 512;
const container: Check = (value) => /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(value);

const listQuery: Readonly<Record<string, Check>> = {
  watch: flag,
  allowWatchBookmarks: flag,
  sendInitialEvents: flag,
  resourceVersion: (value) => value.length <= 64,
  resourceVersionMatch: (value) => value === 'Exact' || value === 'NotOlderThan',
  timeoutSeconds: number,
  limit: number,
  continue: (value) => value.length <= 4096,
  labelSelector: word,
  fieldSelector: word,
};
const objectQuery: Readonly<Record<string, Check>> = { resourceVersion: (value) => value.length <= 64 };
const logQuery: Readonly<Record<string, Check>> = {
  container,
  follow: flag,
  previous: flag,
  timestamps: flag,
  tailLines: number,
  sinceSeconds: number,
  sinceTime: (value) => value.length <= 40,
  limitBytes: number,
  stream: (value) => ['All', 'Stdout', 'Stderr'].includes(value),
};
const execQuery: Readonly<Record<string, Check>> = {
  container,
  stdin: flag,
  stdout: flag,
  stderr: flag,
  tty: flag,
  // Each argument of the command; as long as any shell would take.
  command: (value) => value.length <= 131_072,
};
const { command: _none, ...attachQuery } = execQuery;
const portQuery: Readonly<Record<string, Check>> = {
  ports: (value) => /^\d{1,5}(,\d{1,5})*$/.test(value),
  port: (value) => /^\d{1,5}(,\d{1,5})*$/.test(value),
};
const deleteQuery: Readonly<Record<string, Check>> = {
  gracePeriodSeconds: number,
  uid: (value) => value.length <= 64,
  resourceVersion: (value) => value.length <= 64,
};

function allowedQuery(target: KubeTarget, method: string): Readonly<Record<string, Check>> {
  switch (target.stream) {
    case 'log':
      return logQuery;
    case 'exec':
      return execQuery;
    case 'attach':
      return attachQuery;
    case 'portforward':
      return portQuery;
    case undefined:
      if (method === 'DELETE') return deleteQuery;
      if (method !== 'GET' || target.page !== undefined) return {};
      return target.name === undefined ? listQuery : objectQuery;
    default:
      return target.stream satisfies never;
  }
}

/** The query parameters that are known and well-formed; the name of the first that is neither, otherwise. */
export function checkQuery(
  target: KubeTarget,
  method: string,
  given: Iterable<readonly [string, string]>,
): { readonly query: readonly (readonly [string, string])[] } | { readonly refused: string } {
  const allowed = allowedQuery(target, method);
  const query: (readonly [string, string])[] = [];
  for (const [key, value] of given) {
    const check = Object.hasOwn(allowed, key) ? allowed[key] : undefined;
    if (check === undefined || !check(value)) return { refused: key };
    if (query.length >= 1024) return { refused: key };
    query.push([key, value]);
  }
  return { query };
}

/** The path on the API server, in the tenant's namespace. */
export function upstreamPath(namespace: string, target: KubeTarget): string {
  const parts = ['/api/v1/namespaces', namespace, target.kind, target.name, target.stream];
  return parts.filter((part) => part !== undefined).join('/');
}
