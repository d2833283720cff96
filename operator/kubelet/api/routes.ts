/**
 * What the API server asks a kubelet for, and what carries it at the provider: pure translation of paths and queries.
 *
 *   GET  /containerLogs/NS/POD/C        log?container=C
 *   POST /exec/NS/POD/C, /attach/…      exec?container=C, attach?…      (GET from WebSocket callers)
 *   POST /portForward/NS/POD            portforward
 *
 * exec, attach and portForward may also name the pod's UID before the container.
 */

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
  | { readonly kind: 'pods' | 'runningPods' | 'healthz' | 'notOffered' };

const streamOf: Readonly<Record<string, Stream>> = {
  containerLogs: 'log',
  exec: 'exec',
  attach: 'attach',
  portForward: 'portforward',
};

/** Known to kubelets, and not (yet) to us: answered so, rather than with numbers that mean nothing. */
const notOffered: ReadonlySet<string> = new Set(['stats', 'metrics', 'configz', 'logs', 'checkpoint', 'debug', 'run']);

/** Undefined: no kubelet has such a path. */
export function routeOf(path: string): Route | undefined {
  const [first = '', ...segments] = path.slice(1).split('/');
  let rest: string[];
  try {
    rest = segments.map(decodeURIComponent);
  } catch {
    return undefined;
  }
  if (first === 'healthz') return rest.length === 0 ? { kind: 'healthz' } : undefined;
  if (first === 'pods') return rest.every((part) => part === '') ? { kind: 'pods' } : undefined;
  if (first === 'runningpods') return rest.every((part) => part === '') ? { kind: 'runningPods' } : undefined;
  if (notOffered.has(first)) return { kind: 'notOffered' };
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

/**
 * What a caller must be allowed, as subresources of its node: any one of them will do. exec and the like count as `create`
 * also when a WebSocket caller sends GET: who may only read must not get a shell.
 */
export function neededAccess(route: Route, path: string, method: string): { verb: string; subresources: string[] } {
  const verb = method === 'GET' || method === 'HEAD' ? 'get' : 'create';
  switch (route.kind) {
    case 'stream':
      return { verb: route.stream === 'log' ? 'get' : 'create', subresources: ['proxy'] };
    case 'pods':
    case 'runningPods':
      return { verb, subresources: ['pods', 'proxy'] };
    case 'healthz':
      return { verb, subresources: ['healthz', 'proxy'] };
    case 'notOffered': {
      const own = /^\/(stats|metrics|configz)/.exec(path)?.[1] ?? (path.startsWith('/logs') ? 'log' : undefined);
      return { verb, subresources: own ? [own, 'proxy'] : ['proxy'] };
    }
    default:
      return route satisfies never;
  }
}
