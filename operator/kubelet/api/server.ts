/**
 * The kubelet API of one virtual node: HTTPS on a port of its own, so that every call that names no node is unambiguous.
 * Logs are a piped GET; exec, attach and port-forward are upgrades, repeated at the provider and then joined.
 */
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import type { NodePage } from '../../core/allocation/node-pages.ts';
import { configzOf } from '../../core/node/configz.ts';
import { noUsage } from '../../core/node/node-usage.ts';
import { ownPage } from '../../core/node/own-page.ts';
import { hasContainer, type PageOptions } from '../../core/node/page.ts';
import type { Pod } from '../../core/node/pod.ts';
import { resourcePage } from '../../core/node/resource-page.ts';
import { cadvisorPage, probesPage } from '../../core/node/series-page.ts';
import { summaryPage } from '../../core/node/summary-page.ts';
import type { ServedNode } from '../../core/node/virtual-node.ts';
import { isRecord } from '../../engine/errors.ts';
import { pathOnly, readBody } from '../../engine/http.ts';
import type { Log } from '../../engine/types.ts';
import { switchingHead, upgradeHeaders } from '../../wire/upgrade-headers.ts';
import { join } from '../../wire/upgraded.ts';
import type { RemoteLease } from '../remote.ts';
import { remoteNameOf } from '../remote-name.ts';
import type { ServingCertificate } from '../types.ts';
import type { Callers } from './callers.ts';
import { tellLoss } from './loss.ts';
import { neededAccess, type Route, routeOf, subresourceQuery } from './routes.ts';

export interface KubeletServerOptions {
  readonly nodeName: string;
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  readonly certificate: ServingCertificate;
  /** PEM of the CA that signs callers' client certificates. */
  readonly clientCaPem?: string;
  readonly callers: Callers;
  readonly lease: RemoteLease;
  /** The consumer's pod, when it is on this node. */
  readonly podOf: (namespace: string, name: string, signal: AbortSignal) => Promise<Pod | undefined>;
  readonly podsHere: () => readonly Pod[];
  /** The consumer's pod on this node that is called so at the provider. */
  readonly podOfRemote: (remoteName: string) => Pod | undefined;
  readonly served: () => ServedNode;
  readonly kubeletVersion: string;
  readonly heartbeatLastsSeconds: number;
  readonly now: () => Date;
  readonly log: Log;
}

export interface KubeletServer {
  readonly port: number;
  /** New connections get the new certificate, and are checked against the new CA. */
  renew(certificate: ServingCertificate, clientCaPem: string | undefined): void;
  close(): Promise<void>;
}

export type StartKubeletServer = (options: KubeletServerOptions) => Promise<KubeletServer>;

/** An exec's command travels in the URL. */
const maxHeaderBytes = 1024 * 1024;
const maxConnections = 1000;
const answerSeconds = 30;
/** cAdvisor's page of 250 pods with ten containers each. */
const maxPageBytes = 32 * 1024 * 1024;
const pageSeconds = 15;
/** Longer than from one scrape of a node's metrics to the next. */
const restAfterMs = 90_000;

/** A call, as it goes on at the provider; and the two names of its pod. */
interface Target {
  readonly path: string;
  readonly remote: string;
  readonly local: string;
}

class Refusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export async function startKubeletServer(options: KubeletServerOptions): Promise<KubeletServer> {
  const { nodeName, callers, lease, log } = options;
  const secrets = (certificate: ServingCertificate, ca: string | undefined) => ({
    key: certificate.privateKeyPem,
    cert: certificate.certificatePem,
    minVersion: 'TLSv1.2' as const,
    ...(ca === undefined ? {} : { ca }),
  });
  let shown = secrets(options.certificate, options.clientCaPem);
  let knowsClientCa = options.clientCaPem !== undefined;
  const port = () => (listener.address() as AddressInfo).port;

  /** The route, once it is known who asks and that they may. Throws a Refusal. */
  async function admit(request: IncomingMessage, signal: AbortSignal): Promise<{ route: Route; url: URL }> {
    const caller = await reviewed('who calls', () => callers.identify(request, signal));
    if (!caller) throw new Refusal(401, 'Unauthorized');
    const url = new URL(request.url ?? '/', 'https://kubelet');
    const { verb, subresources } = neededAccess(url.pathname, request.method ?? 'GET');
    if (!(await reviewed('what they may', () => callers.allowed(caller, nodeName, verb, subresources, signal))))
      throw new Refusal(
        403,
        `Forbidden (user=${caller.user}, verb=${verb}, resource=nodes, subresource(s)=[${subresources.join(' ')}])`,
      );
    const route = routeOf(url.pathname);
    if (!route) throw new Refusal(404, '404 page not found');
    return { route, url };
  }

  /** Nobody is let in because the cluster could not be asked; but it is no fault of the caller's or the provider's. */
  async function reviewed<T>(what: string, review: () => Promise<T>): Promise<T> {
    try {
      return await review();
    } catch (error) {
      log.warn({ node: nodeName, error }, `the cluster did not say ${what}: a call of the kubelet API was turned away`);
      throw new Refusal(503, `the cluster did not say ${what}: try again`);
    }
  }

  /** Where at the provider the call goes on. */
  async function target(route: Route & { kind: 'stream' }, url: URL, signal: AbortSignal): Promise<Target> {
    const pod = await options.podOf(route.namespace, route.pod, signal);
    if (!pod || (route.uid !== undefined && route.uid !== pod.metadata.uid))
      throw new Refusal(404, `pod "${route.pod}" is not on node ${nodeName}`);
    if (route.container !== undefined && !hasContainer(pod, route.container))
      throw new Refusal(404, `container "${route.container}" not found in pod "${route.pod}"`);
    const name = remoteNameOf(pod);
    const query = subresourceQuery(route, url.searchParams).toString();
    return {
      path: `kube/pods/${name}/${route.stream}${query === '' ? '' : `?${query}`}`,
      remote: name,
      local: route.pod,
    };
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    response.once('close', () => gone.abort(new Error('the caller left')));
    const { route, url } = await admit(request, gone.signal);
    if (route.kind === 'off') throw new Refusal(route.status, route.why);
    if (route.kind === 'stream' && route.stream !== 'log') throw new Refusal(400, 'Upgrade request required');
    if (request.method !== 'GET') throw new Refusal(405, 'Method Not Allowed');
    switch (route.kind) {
      case 'healthz':
        return say(response, 200, 'ok');
      case 'pods':
        return list(response, options.podsHere());
      case 'runningPods':
        return list(response, options.podsHere().filter(isRunning));
      case 'configz':
        return json(
          response,
          configzOf({ ...options, address: options.host, port: port(), served: options.served(), knowsClientCa }),
        );
      case 'metrics':
        return text(response, ownPage(options.podsHere(), options));
      case 'figures':
        return figures(route.page, url.searchParams, response);
      case 'stream':
        return logs(route, url, response, gone.signal);
      default:
        route satisfies never;
    }
  }

  /** What several ask for at once is asked for once. Who leaves does not end it for the others. */
  const reading = new Map<NodePage, Promise<string>>();
  function pageOfProvider(page: NodePage): Promise<string> {
    const known = reading.get(page);
    if (known) return known;
    const path = `kube/node/${page}`;
    const read = (async () => {
      const answer = await lease.raw(
        { method: 'GET', path, timeoutSeconds: pageSeconds },
        AbortSignal.timeout(2 * pageSeconds * 1000),
      );
      if (answer.statusCode !== 200) throw await refusalOf(answer, { path });
      return (await readBody(answer, path, { maxBytes: maxPageBytes, timeoutSeconds: pageSeconds })).toString('utf8');
    })().finally(() => reading.delete(page));
    reading.set(page, read);
    return read;
  }

  const startTime = options.now();
  let usage = { ofResource: noUsage, ofSummary: noUsage };

  async function figures(page: NodePage, query: URLSearchParams, response: ServerResponse): Promise<void> {
    const given = await pageOfProvider(page);
    const here = new Set(options.podsHere().map((pod) => pod.metadata.uid));
    const pageOptions: PageOptions = {
      nodeName,
      served: options.served(),
      podOf: options.podOfRemote,
      isHere: (uid) => here.has(uid),
      now: options.now(),
    };
    switch (page) {
      case 'stats': {
        const onlyCpuAndMemory = query.get('only_cpu_and_memory') === 'true';
        const summary = summaryPage(parsed(given), usage.ofSummary, { ...pageOptions, startTime, onlyCpuAndMemory });
        if (!summary) throw new Refusal(502, 'what the provider answered is no summary');
        usage = { ...usage, ofSummary: summary.memory };
        return json(response, summary.page);
      }
      case 'metrics/resource': {
        const resource = resourcePage(given, usage.ofResource, pageOptions);
        usage = { ...usage, ofResource: resource.memory };
        return text(response, resource.text);
      }
      case 'metrics/cadvisor':
        return text(response, cadvisorPage(given, pageOptions));
      case 'metrics/probes':
        return text(response, probesPage(given, pageOptions));
      default:
        page satisfies never;
    }
  }

  async function logs(
    route: Route & { kind: 'stream' },
    url: URL,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<void> {
    const there = await target(route, url, signal);
    const { path } = there;
    const follows = /[?&]follow=(true|1)/.test(path);
    const log = await lease.raw({ method: 'GET', path, timeoutSeconds: follows ? 0 : answerSeconds }, signal);
    if (log.statusCode !== 200) throw await refusalOf(log, there);
    // Up to the end of the connection, not in chunks: when the last chunk comes together with what it ends, an API server that
    // passes a log on by WebSocket loses that (`messageCopy` in k8s.io/streaming does not look at what comes with an end).
    response.removeHeader('Transfer-Encoding');
    // A followed log may be silent for long: its reader must know at once that it began.
    response.writeHead(200, { 'Content-Type': 'text/plain', Connection: 'close' });
    response.flushHeaders();
    log.once('error', () => response.destroy());
    log.once('aborted', () => response.destroy());
    log.pipe(response);
  }

  async function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const gone = new AbortController();
    const onClose = () => gone.abort(new Error('the caller left'));
    socket.once('close', onClose);
    const { route, url } = await admit(request, gone.signal);
    if (route.kind !== 'stream' || route.stream === 'log') throw new Refusal(400, 'nothing to upgrade here');
    const there = await target(route, url, gone.signal);
    const other = await lease.upgrade(
      {
        method: request.method ?? 'POST',
        path: there.path,
        headers: upgradeHeaders(request),
        timeoutSeconds: answerSeconds,
      },
      gone.signal,
    );
    if (!other.socket) throw await refusalOf(other.response, there);
    // From here on the two sockets look after each other.
    socket.off('close', onClose);
    if (socket.destroyed) {
      other.socket.destroy();
      return;
    }
    socket.write(switchingHead(other.response));
    const before = route.stream === 'portforward' ? undefined : tellLoss(other.response.headers);
    join(socket, other.socket, head, other.head, { before });
  }

  const refusalFor = (error: unknown, request: IncomingMessage): Refusal => {
    if (error instanceof Refusal) return error;
    log.debug({ node: nodeName, path: request.url?.split('?', 1)[0], error }, 'a call of the kubelet API failed');
    return new Refusal(502, `the provider did not answer: ${error instanceof Error ? error.message : 'failed'}`);
  };

  /**
   * Of most nodes nobody asks anything most of the time, and what TLS and HTTP keep for each takes a quarter of a megabyte: it is made
   * for the first caller, and let go of some time after the last.
   */
  let server: https.Server | undefined;
  function serving(): https.Server {
    server ??= startHttps();
    return server;
  }

  function startHttps(): https.Server {
    const made = https.createServer({
      ...shown,
      // Tokens come without a certificate, so none is demanded; who has neither is turned away by `admit`.
      requestCert: true,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
      maxHeaderSize: maxHeaderBytes,
      headersTimeout: 10_000,
      connectionsCheckingInterval: 5_000,
      requestTimeout: 30_000,
      keepAliveTimeout: 30_000,
      handshakeTimeout: 10_000,
    } as https.ServerOptions);
    made.on('request', onRequest);
    made.on('upgrade', onUpgrade);
    made.on('tlsClientError', (error) => log.debug({ node: nodeName, error }, 'a TLS handshake failed'));
    made.on('error', onError);
    // It listens nowhere itself, and begins to look after slow callers with this word.
    made.emit('listening');
    return made;
  }

  function onRequest(request: IncomingMessage, response: ServerResponse): void {
    request.resume();
    answer(request, response).catch((error: unknown) => {
      if (response.destroyed) return;
      if (response.headersSent) return void response.destroy();
      const { status, message } = refusalFor(error, request);
      say(response, status, message);
    });
  }
  function onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => socket.destroy());
    upgrade(request, socket, head).catch((error: unknown) => {
      if (socket.destroyed) return;
      const { status, message } = refusalFor(error, request);
      const body = Buffer.from(`${message}\n`);
      socket.end(
        `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? 'Error'}\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
        // Not when the caller closes its half, which it may never do.
        () => socket.destroy(),
      );
    });
  }
  const onError = (error: Error) => log.warn({ node: nodeName, error }, 'the kubelet API has a problem');

  const open = new Set<Duplex>();
  let idle: NodeJS.Timeout | undefined;
  function rest(): void {
    clearTimeout(idle);
    // What it says of not listening is no news.
    server?.close(() => undefined);
    server = undefined;
  }
  const listener = net.createServer(
    // A followed log may be silent for ever: that its reader is gone must show all the same.
    { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 },
    (socket) => {
      clearTimeout(idle);
      open.add(socket);
      socket.once('close', () => {
        open.delete(socket);
        if (open.size === 0) idle = setTimeout(rest, restAfterMs).unref();
      });
      serving().emit('connection', socket);
    },
  );
  listener.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    listener.once('error', reject);
    listener.listen(options.port, options.host, () => {
      listener.off('error', reject);
      resolve();
    });
  });
  listener.on('error', onError);

  return {
    port: port(),
    renew(certificate, ca) {
      knowsClientCa = ca !== undefined;
      shown = secrets(certificate, ca);
      server?.setSecureContext(shown);
    },
    close: () =>
      new Promise((resolve) => {
        listener.close(() => resolve());
        // Upgraded sockets are no longer the server's, and a followed log would keep it open for ever.
        for (const socket of open) socket.destroy();
        rest();
      }),
  };
}

const isRunning = ({ status }: Pod): boolean =>
  [status?.containerStatuses, status?.initContainerStatuses, status?.ephemeralContainerStatuses].some((statuses) =>
    statuses?.some(({ state }) => state?.running !== undefined),
  );

function say(response: ServerResponse, status: number, message: string): void {
  response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8' });
  response.end(`${message}\n`);
}

function json(response: ServerResponse, body: object): void {
  response.writeHead(200, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify(body));
}

function text(response: ServerResponse, page: string): void {
  response.writeHead(200, { 'Content-Type': 'text/plain; version=0.0.4; charset=utf-8' });
  response.end(page);
}

const list = (response: ServerResponse, items: readonly Pod[]): void =>
  json(response, { kind: 'PodList', apiVersion: 'v1', metadata: {}, items });

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The provider's no, in its own words where it has some. A kubelet answers in plain text. */
async function refusalOf(
  response: IncomingMessage,
  { path, remote, local = '' }: Pick<Target, 'path'> & Partial<Target>,
): Promise<Refusal> {
  const status = response.statusCode ?? 502;
  const text = (
    await readBody(response, pathOnly(path), { maxBytes: 64 * 1024, timeoutSeconds: answerSeconds })
  ).toString('utf8');
  const body = parsed(text);
  const words = isRecord(body) ? String(body.detail ?? body.message ?? body.title ?? text) : text;
  const message = words.slice(0, 2048);
  // A 401 or 3xx is between us and the gateway; the caller did nothing wrong.
  return new Refusal(
    status >= 400 && status !== 401 ? status : 502,
    (remote === undefined ? message : message.replaceAll(remote, local)).trim(),
  );
}
