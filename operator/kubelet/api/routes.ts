/**
 * What the API server asks a kubelet for, and what carries it at the provider: pure translation of paths and queries.
 *
 *   GET  /stats/summary                 kube/node/stats
 *   GET  /metrics/{resource,…}          kube/node/metrics/{resource,…}
 *   GET  /containerLogs/NS/POD/C        log?container=C
 *   POST /exec/NS/POD/C, /attach/…      exec?container=C, attach?…      (GET from WebSocket callers)
 *   POST /portForward/NS/POD            portforward
 *
 * exec, attach and portForward may also name the pod's UID before the container.
 */
import { isNodePage, type NodePage } from '../../core/allocation/node-pages.ts';

export type Stream = 'log' | 'exec' | 'attach' | 'portforward';

export type Route =
  | {
      readonly kind: 'stream';
      readonly stream: Stream;
      readonly namespace: string;
      readonly pod: string;
      readonly uid?: string;
      readonly container?: string;
    }
  | { readonly kind: 'figures'; readonly page: NodePage }
  | { readonly kind: 'pods' | 'runningPods' | 'healthz' | 'configz' | 'metrics' }
  | { readonly kind: 'off'; readonly status: number; readonly why: string };

const streamOf: Readonly<Record<string, Stream>> = {
  containerLogs: 'log',
  exec: 'exec',
  attach: 'attach',
  portForward: 'portforward',
};

/** Kubelets have these, and some have them switched off, in these words. */
const off: Readonly<Record<string, Route>> = {
  logs: { kind: 'off', status: 405, why: "logs endpoint is disabled: the node's own logs are the provider's" },
  debug: { kind: 'off', status: 405, why: 'profiling endpoint is disabled.' },
  checkpoint: { kind: 'off', status: 501, why: 'checkpoints are not offered by virtual nodes' },
  run: { kind: 'off', status: 501, why: 'run is not offered by virtual nodes: use exec' },
};

const healthChecks: readonly string[] = ['ping', 'log', 'syncloop'];

/** Undefined: no kubelet has such a path. */
export function routeOf(path: string): Route | undefined {
  const [first = '', ...segments] = path.slice(1).split('/');
  let rest: string[];
  try {
    rest = segments.map(decodeURIComponent);
  } catch {
    return undefined;
  }
  const nothingMore = rest.every((part) => part === '');
  switch (first) {
    case 'healthz':
      return nothingMore || (rest.length === 1 && healthChecks.includes(rest[0]!)) ? { kind: 'healthz' } : undefined;
    case 'pods':
      return nothingMore ? { kind: 'pods' } : undefined;
    case 'runningpods':
      return nothingMore ? { kind: 'runningPods' } : undefined;
    case 'configz':
      return nothingMore ? { kind: 'configz' } : undefined;
    case 'stats':
      return rest.length === 1 && rest[0] === 'summary' ? { kind: 'figures', page: 'stats' } : undefined;
    case 'metrics': {
      if (nothingMore) return { kind: 'metrics' };
      const page = `metrics/${rest.join('/')}`;
      return isNodePage(page) ? { kind: 'figures', page } : undefined;
    }
    default:
      break;
  }
  if (Object.hasOwn(off, first)) return off[first];
  const stream = Object.hasOwn(streamOf, first) ? streamOf[first] : undefined;
  if (!stream || rest.some((part) => part === '')) return undefined;
  const [namespace, pod, ...names] = rest;
  if (namespace === undefined || pod === undefined) return undefined;
  const wantsContainer = stream !== 'portforward';
  const takesUid = stream !== 'log';
  const container = wantsContainer ? names.pop() : undefined;
  if (wantsContainer && container === undefined) return undefined;
  const uid = takesUid ? names.pop() : undefined;
  if (names.length > 0) return undefined;
  return {
    kind: 'stream',
    stream,
    namespace,
    pod,
    ...(uid !== undefined && { uid }),
    ...(container !== undefined && { container }),
  };
}

const logQuery = [
  'follow',
  'previous',
  'sinceSeconds',
  'sinceTime',
  'timestamps',
  'tailLines',
  'limitBytes',
  'stream',
] as const;

/** The query of the pod's subresource. What is not known is left behind. */
export function subresourceQuery(route: Route & { kind: 'stream' }, asked: URLSearchParams): URLSearchParams {
  const query = new URLSearchParams();
  const copy = (from: string, to = from) => {
    for (const value of asked.getAll(from)) query.append(to, value);
  };
  if (route.container !== undefined) query.set('container', route.container);
  switch (route.stream) {
    case 'log':
      for (const name of logQuery) copy(name);
      // All is what everybody gets, and API servers that know of no choice refuse the word.
      if (query.get('stream') === 'All') query.delete('stream');
      // As callers of long ago said it.
      if (!query.has('tailLines') && asked.get('tail') !== 'all') copy('tail', 'tailLines');
      break;
    case 'exec':
    case 'attach':
      for (const [from, to] of [
        ['input', 'stdin'],
        ['output', 'stdout'],
        ['error', 'stderr'],
        ['tty', 'tty'],
      ] as const)
        if (isOn(asked.get(from))) query.set(to, 'true');
      if (route.stream === 'exec') copy('command');
      break;
    case 'portforward':
      copy('port', 'ports');
      break;
    default:
      route.stream satisfies never;
  }
  return query;
}

const isOn = (value: string | null): boolean => value === '1' || value === 'true';

/** As kubelets of 1.36 map paths to subresources of their node, with fine-grained authorization: any one of them will do. */
const rights: readonly (readonly [path: string, ...subresources: string[]])[] = [
  ['/pods', 'pods', 'proxy'],
  ['/runningpods', 'pods', 'proxy'],
  ['/healthz', 'healthz', 'proxy'],
  ['/configz', 'configz', 'proxy'],
  ['/stats', 'stats'],
  ['/metrics', 'metrics'],
  ['/logs', 'log'],
  ['/checkpoint', 'checkpoint'],
  ['/statusz', 'statusz'],
  ['/flagz', 'configz'],
];

const verbOf: Readonly<Record<string, string>> = {
  GET: 'get',
  POST: 'create',
  PUT: 'update',
  PATCH: 'patch',
  DELETE: 'delete',
};

/**
 * What a caller must be allowed. exec and the like count as `create` also when a WebSocket caller sends GET, which kubelets
 * do not ask for: who may only read must not get a shell.
 */
export function neededAccess(path: string, method: string): { verb: string; subresources: readonly string[] } {
  const [, ...subresources] = rights.find(([own]) => path === own || path.startsWith(`${own}/`)) ?? ['', 'proxy'];
  const givesShell = /^\/(exec|attach|portForward|run)(\/|$)/.test(path);
  return { verb: givesShell ? 'create' : (verbOf[method] ?? ''), subresources };
}
