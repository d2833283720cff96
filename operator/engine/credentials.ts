/**
 * Who we are to an API server, and the connections to it. client-node runs credential plugins and knows proxies; the
 * connections are ours, because its HTTP hides the raw streams and upgrades that we need.
 *
 * Invariant: a request made with somebody else's token carries nothing of ours. Such requests have agents of their own,
 * made without a client certificate, so that neither a pooled connection nor a resumed TLS session can lend them ours.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { isIP } from 'node:net';
import tls from 'node:tls';
import type { KubeConfig } from '@kubernetes/client-node';
import { UnknownOutcomeError } from './errors.ts';
import { clientNode, inClusterConfig, type LoadedConfig, parseKubeconfig, readKubeconfig } from './kubeconfig.ts';
import type { ConnectionKind } from './types.ts';

/** Of which there are pools. */
type Pool = Exclude<ConnectionKind, 'watches'>;

export interface Access {
  readonly headers: Readonly<Record<string, string>>;
  readonly agent: http.Agent;
}

/** Ourselves, to another server of the same cluster. */
export interface Identity {
  readonly headers: Readonly<Record<string, string>>;
  readonly cert?: Buffer | string;
  readonly key?: Buffer | string;
  /** By which the API server is known, and often its kubelets, too. */
  readonly clusterCa?: Buffer | string;
}

export interface Credentials {
  readonly server: URL;
  /** As ourselves. */
  own(pool: Pool): Promise<Access>;
  /** For a kubelet: who asks for this makes sure of the server before anything of it is sent. */
  identity(): Promise<Identity>;
  /** As the bearer of this token, and nothing else. */
  bearer(token: string, pool: Pool): Access;
  /** A connection for requests of bearers. Absent where there is none to be had: over plain HTTP, or by way of a proxy. */
  dialBare?(protocol: string): Promise<tls.TLSSocket>;
  /** The server did not know us: read the credentials again before the next request. */
  forget(): void;
}

interface TlsMaterial {
  ca?: Buffer | string;
  cert?: Buffer | string;
  key?: Buffer | string;
  servername?: string;
  rejectUnauthorized?: boolean;
}

/** Files with certificates and tokens are looked at again after this time, as client-go does. */
const refreshSeconds = 60;
const keepAliveMs = 15_000;
const connectSeconds = 30;

/** `kubeconfig`: `in-cluster`, the text of a kubeconfig, or the path of one. */
export function readCredentials(kubeconfig: string): Credentials {
  let config = load(kubeconfig);
  const current = config.getCurrentCluster();
  if (!current) throw new Error('the kubeconfig names no current cluster: set current-context');
  const server = new URL(current.server);
  if (server.protocol !== 'https:' && server.protocol !== 'http:')
    throw new Error(`the kubeconfig's server must be an http(s) URL, not ${server.protocol}`);
  if (server.protocol === 'http:' && !current.skipTLSVerify)
    throw new Error('the kubeconfig has an http server: set insecure-skip-tls-verify to say that this is meant');

  interface Own {
    readonly access: Record<Pool, Access>;
    readonly identity: Identity;
    readonly fingerprint: string;
    readonly readAt: number;
  }
  let own: Own | undefined;
  let reading: Promise<Own> | undefined;
  const bareMaterial: TlsMaterial = {
    ca: bufferOf(current.caFile, current.caData),
    servername: current.tlsServerName,
    rejectUnauthorized: current.skipTLSVerify ? false : undefined,
  };
  const bare = agentsFor(server, withoutUser(config), bareMaterial);

  async function read(): Promise<Own> {
    const options: https.RequestOptions & { ca?: Buffer; servername?: string } = { headers: {} };
    try {
      await config.applyToHTTPSOptions(options);
    } catch (error) {
      throw new UnknownOutcomeError(`the credentials for ${server.host} could not be read: ${why(error)}`, {
        neverSent: true,
      });
    }
    const headers = { ...(options.headers as Record<string, string>) };
    if (options.auth) headers.Authorization = `Basic ${Buffer.from(options.auth).toString('base64')}`;
    if (headers.Authorization) headers.Authorization = headers.Authorization.trim();
    const material: TlsMaterial = {
      ca: options.ca,
      cert: options.cert as Buffer | undefined,
      key: options.key as Buffer | undefined,
      servername: options.servername,
      rejectUnauthorized: options.rejectUnauthorized,
    };
    const fingerprint = fingerprintOf(material);
    // A new certificate needs new connections. The old ones finish what they carry, and idle out.
    const agents =
      own?.fingerprint === fingerprint
        ? { calls: own.access.calls.agent, streams: own.access.streams.agent }
        : agentsFor(server, config, material);
    own = {
      access: { calls: { headers, agent: agents.calls }, streams: { headers, agent: agents.streams } },
      identity: { headers, cert: material.cert, key: material.key, clusterCa: material.ca },
      fingerprint,
      readAt: performance.now(),
    };
    return own;
  }

  async function fresh(): Promise<Own> {
    if (own && performance.now() - own.readAt < refreshSeconds * 1000) return own;
    reading ??= read().finally(() => {
      reading = undefined;
    });
    return reading;
  }

  return {
    server,
    own: async (pool) => (await fresh()).access[pool],
    identity: async () => (await fresh()).identity,
    bearer(token, pool) {
      // An empty token must not become "no token given": that would be a request as ourselves.
      if (!/^[\x21-\x7e]+$/.test(token)) throw new TypeError('not a bearer token');
      return { headers: { Authorization: `Bearer ${token}` }, agent: bare[pool] };
    },
    ...(server.protocol === 'https:' && !current.proxyUrl ? { dialBare: dialTo(server, bareMaterial) } : {}),
    forget() {
      own = undefined;
      // A rewritten kubeconfig is read again, but never moves us to another server.
      const reread = tryLoad(kubeconfig);
      if (reread?.getCurrentCluster()?.server === current.server) config = reread;
    },
  };
}

function tryLoad(kubeconfig: string): LoadedConfig | undefined {
  try {
    return load(kubeconfig);
  } catch {
    return undefined; // half-written just now: what we have stays in use until the next refusal
  }
}

function load(kubeconfig: string): LoadedConfig {
  if (kubeconfig === 'in-cluster') {
    if (!process.env.KUBERNETES_SERVICE_HOST)
      throw new Error('not in a cluster: KUBERNETES_SERVICE_HOST is not set; give a kubeconfig');
    return inClusterConfig(process.env);
  }
  const isText = kubeconfig.includes('\n') || kubeconfig.trimStart().startsWith('{');
  try {
    return isText ? parseKubeconfig(kubeconfig) : readKubeconfig(kubeconfig);
  } catch (error) {
    throw new Error(`the kubeconfig${isText ? '' : ` ${kubeconfig}`} could not be read: ${why(error)}`);
  }
}

/** Only client-node's makes anything of its user when it makes agents. */
function withoutUser(config: LoadedConfig): LoadedConfig {
  const cluster = (config as Partial<KubeConfig>).users && (config as KubeConfig).getCurrentCluster();
  if (!cluster) return config;
  const bare = new (clientNode().KubeConfig)();
  bare.loadFromClusterAndUser(cluster, { name: 'nobody' });
  return bare;
}

function agentsFor(server: URL, config: LoadedConfig, material: TlsMaterial): Record<Pool, http.Agent> {
  const proxy = config.getCurrentCluster()?.proxyUrl;
  if (proxy) {
    const agent = proxyAgent(config as KubeConfig, material);
    return { calls: agent, streams: agent };
  }
  // Idle connections go before the server drops its end (90 s), so that a write never meets a closing one.
  const shared = { keepAlive: true, keepAliveMsecs: keepAliveMs, noDelay: true, timeout: 30_000 };
  const secureContext = server.protocol === 'https:' ? secureContextOf(server, material) : undefined;
  const make = (options: http.AgentOptions): http.Agent =>
    secureContext ? new https.Agent({ ...options, ...identityOf(material), secureContext }) : new http.Agent(options);
  return {
    // All of them are kept when a burst is over, or each wave of it would begin with handshakes; idle, they go by themselves.
    calls: make({ ...shared, maxSockets: 64, maxFreeSockets: 64 }),
    streams: make({ ...shared, maxSockets: Number.POSITIVE_INFINITY, maxFreeSockets: 4 }),
  };
}

/** Whom to expect. Not even named where it is not said: to Node, `rejectUnauthorized: undefined` is a no. */
const identityOf = ({ servername, rejectUnauthorized }: TlsMaterial): tls.ConnectionOptions => ({
  ...(servername === undefined ? {} : { servername }),
  ...(rejectUnauthorized === undefined ? {} : { rejectUnauthorized }),
});

/** TLS to the server. What was not spoken, because the server speaks no such protocol, is in the error's cause. */
function dialTo(server: URL, material: TlsMaterial): (protocol: string) => Promise<tls.TLSSocket> {
  const host = server.hostname.replace(/^\[|\]$/g, '');
  let secureContext: tls.SecureContext | undefined;
  return (protocol) =>
    new Promise((resolve, reject) => {
      secureContext ??= secureContextOf(server, material);
      const socket = tls.connect({
        host,
        port: Number(server.port || 443),
        ...(isIP(host) ? {} : { servername: host }),
        ...identityOf(material),
        secureContext,
        ALPNProtocols: [protocol],
        timeout: connectSeconds * 1000,
      });
      const fail = (error: Error) => {
        socket.destroy();
        reject(new UnknownOutcomeError(`${server.host}: ${error.message}`, { neverSent: true, cause: error }));
      };
      const late = () => fail(new Error(`no connection within ${connectSeconds} s`));
      socket.once('error', fail);
      socket.once('timeout', late);
      socket.once('secureConnect', () => {
        socket.off('error', fail);
        socket.off('timeout', late);
        socket.setTimeout(0);
        socket.setNoDelay(true);
        socket.setKeepAlive(true, keepAliveMs);
        resolve(socket);
      });
    });
}

/** Once for all connections of an agent: reading certificates and keys costs more than many a call. */
function secureContextOf(server: URL, { ca, cert, key }: TlsMaterial): tls.SecureContext {
  try {
    return tls.createSecureContext({ ca, cert, key });
  } catch (error) {
    throw new UnknownOutcomeError(`the certificates for ${server.host} cannot be used: ${why(error)}`, {
      neverSent: true,
    });
  }
}

/** client-node makes agents for HTTP and SOCKS proxies, and keeps the first; a fresh copy makes a fresh one. */
function proxyAgent(config: KubeConfig, material: TlsMaterial): http.Agent {
  const copy = new (clientNode().KubeConfig)();
  copy.loadFromOptions({
    clusters: config.clusters,
    users: config.users,
    contexts: config.contexts,
    currentContext: config.currentContext,
  });
  const create = (copy as unknown as { createAgent(cluster: unknown, options: https.AgentOptions): http.Agent })
    .createAgent;
  return create.call(copy, copy.getCurrentCluster(), {
    ...Object.fromEntries(Object.entries(material).filter(([, value]) => value !== undefined)),
    keepAlive: true,
  });
}

function fingerprintOf(material: TlsMaterial): string {
  const hash = createHash('sha256');
  for (const part of [material.ca, material.cert, material.key, material.servername]) {
    hash.update(part ?? '').update('\0');
  }
  return hash.update(String(material.rejectUnauthorized)).digest('hex');
}

function bufferOf(file?: string, data?: string): Buffer | undefined {
  if (data) return Buffer.from(data, 'base64');
  return file ? readFileSync(file) : undefined;
}

/** Parsers quote what they could not parse, and that may be a token: their words are not repeated. */
function why(error: unknown): string {
  if (error instanceof SyntaxError || (error instanceof Error && error.name === 'YAMLException'))
    return 'not the JSON or YAML it should be';
  return error instanceof Error ? error.message.slice(0, 300) : 'unknown error';
}
