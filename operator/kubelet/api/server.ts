/**
 * The kubelet API of one virtual node: HTTPS on a port of its own, so that every call that names no node is unambiguous.
 * Logs are a piped GET; exec, attach and port-forward are upgrades, repeated at the provider and then joined.
 */
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { remotePodName } from '../../core/node/names.ts';
import type { Pod } from '../../core/node/pod.ts';
import { isRecord } from '../../engine/errors.ts';
import { pathOnly, readBody } from '../../engine/http.ts';
import type { Log } from '../../engine/types.ts';
import type { RemoteLease } from '../remote.ts';
import type { ServingCertificate } from '../types.ts';
import type { Callers } from './callers.ts';
import { tellLoss } from './loss.ts';
import { join, switchingHead, upgradeHeaders } from './pipe.ts';
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
  const server = https.createServer({
    ...secrets(options.certificate, options.clientCaPem),
    // Tokens come without a certificate, so none is demanded; who has neither is turned away by `admit`.
    requestCert: true,
    rejectUnauthorized: false,
    allowHalfOpen: true,
    ALPNProtocols: ['http/1.1'],
    maxHeaderSize: maxHeaderBytes,
    headersTimeout: 10_000,
    requestTimeout: 30_000,
    keepAliveTimeout: 30_000,
    handshakeTimeout: 10_000,
    // A followed log may be silent for ever: that its reader is gone must show all the same.
    keepAlive: true,
    keepAliveInitialDelay: 30_000,
  } as https.ServerOptions);
  server.maxConnections = maxConnections;

  /** The route, once it is known who asks and that they may. Throws a Refusal. */
  async function admit(request: IncomingMessage, signal: AbortSignal): Promise<{ route: Route; url: URL }> {
    const caller = await callers.identify(request, signal);
    if (!caller) throw new Refusal(401, 'Unauthorized');
    const url = new URL(request.url ?? '/', 'https://kubelet');
    const route = routeOf(url.pathname);
    const { verb, subresources } = route
      ? neededAccess(route, url.pathname, request.method ?? 'GET')
      : { verb: 'get', subresources: ['proxy'] };
    if (!(await callers.allowed(caller, nodeName, verb, subresources, signal)))
      throw new Refusal(
        403,
        `Forbidden (user=${caller.user}, verb=${verb}, resource=nodes, subresource=${subresources.join(' or ')})`,
      );
    if (!route) throw new Refusal(404, '404 page not found');
    return { route, url };
  }

  /** Where at the provider the call goes on. */
  async function target(route: Route & { kind: 'stream' }, url: URL, signal: AbortSignal): Promise<Target> {
    const pod = await options.podOf(route.namespace, route.pod, signal);
    if (!pod || (route.uid !== undefined && route.uid !== pod.metadata.uid))
      throw new Refusal(404, `pod "${route.pod}" is not on node ${nodeName}`);
    if (route.container !== undefined && !hasContainer(pod, route.container))
      throw new Refusal(404, `container "${route.container}" not found in pod "${route.pod}"`);
    const name = remotePodName(pod.metadata.name, pod.metadata.uid ?? '');
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
    switch (route.kind) {
      case 'healthz':
        return say(response, 200, 'ok');
      case 'pods':
        return list(response, options.podsHere());
      case 'runningPods':
        return list(response, options.podsHere().filter(isRunning));
      case 'notOffered':
        throw new Refusal(501, `${url.pathname}: not offered by virtual nodes`);
      case 'stream':
        break;
      default:
        route satisfies never;
        return;
    }
    if (route.stream !== 'log') throw new Refusal(400, 'Upgrade request required');
    if (request.method !== 'GET') throw new Refusal(405, 'Method Not Allowed');
    const there = await target(route, url, gone.signal);
    const { path } = there;
    const follows = /[?&]follow=(true|1)/.test(path);
    const log = await lease.raw({ method: 'GET', path, timeoutSeconds: follows ? 0 : answerSeconds }, gone.signal);
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

  server.on('request', (request, response) => {
    request.resume();
    answer(request, response).catch((error: unknown) => {
      if (response.destroyed) return;
      if (response.headersSent) return void response.destroy();
      const { status, message } = refusalFor(error, request);
      say(response, status, message);
    });
  });
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
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
  });
  server.on('tlsClientError', (error) => log.debug({ node: nodeName, error }, 'a TLS handshake failed'));

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  server.on('error', (error) => log.warn({ node: nodeName, error }, 'the kubelet API has a problem'));
  const open = new Set<Duplex>();
  server.on('connection', (socket: Duplex) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
  });

  return {
    port: (server.address() as AddressInfo).port,
    renew: (certificate, ca) => server.setSecureContext(secrets(certificate, ca)),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        // Upgraded sockets are no longer the server's, and a followed log would keep it open for ever.
        for (const socket of open) socket.destroy();
      }),
  };
}

function hasContainer(pod: Pod, name: string): boolean {
  const { containers, initContainers, ephemeralContainers } = pod.spec;
  return [...containers, ...(initContainers ?? []), ...(ephemeralContainers ?? [])].some((c) => c.name === name);
}

const isRunning = (pod: Pod): boolean =>
  (pod.status?.containerStatuses ?? []).some((status) => status.state?.running !== undefined);

function say(response: ServerResponse, status: number, message: string): void {
  response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8' });
  response.end(`${message}\n`);
}

function list(response: ServerResponse, pods: readonly Pod[]): void {
  response.writeHead(200, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify({ kind: 'PodList', apiVersion: 'v1', metadata: {}, items: pods }));
}

/** The provider's no, in its own words where it has some. A kubelet answers in plain text. */
async function refusalOf(response: IncomingMessage, { path, remote, local }: Target): Promise<Refusal> {
  const status = response.statusCode ?? 502;
  const text = (
    await readBody(response, pathOnly(path), { maxBytes: 64 * 1024, timeoutSeconds: answerSeconds })
  ).toString('utf8');
  let message = text;
  try {
    const body: unknown = JSON.parse(text);
    if (isRecord(body)) message = String(body.detail ?? body.message ?? body.title ?? text);
  } catch {
    // Plain text, then.
  }
  // A 401 or 3xx is between us and the gateway; the caller did nothing wrong.
  return new Refusal(
    status >= 400 && status !== 401 ? status : 502,
    message.slice(0, 2048).replaceAll(remote, local).trim(),
  );
}
