/**
 * Pages of the provider's kubelets, read at the kubelet itself with the gateway's own credentials and the rights nodes/stats
 * and nodes/metrics. Not through the API server's node proxy: the right for that is the right to run commands everywhere.
 *
 * One reading serves all leases of a node for some seconds, and all that ask meanwhile wait for it; so tenants, however often
 * they ask, cost a kubelet no more than a metrics-server does.
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import https from 'node:https';
import { StringDecoder } from 'node:string_decoder';
import {
  createPageSplitter,
  kubeletPath,
  type NodePage,
  type SplitPage,
  splitSummary,
} from '../../core/allocation/node-pages.ts';
import { isTenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Clock } from '../../engine/clock.ts';
import type { Credentials, Identity } from '../../engine/credentials.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';

export interface KubeletPagesOptions {
  readonly cluster: Pick<Cluster, 'get'>;
  readonly credentials: Pick<Credentials, 'identity' | 'forget'>;
  /** PEM of the CA that signed the kubelets' serving certificates. Default: the cluster's. */
  readonly ca?: string;
  /** Any certificate will do. Who answers at a node's address then learns our token. */
  readonly insecure?: boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly timeoutSeconds?: number;
}

export interface KubeletPages {
  /** What the page says of a tenant's pods. Throws a Refusal that the tenant may read: it names neither node nor address. */
  read(nodeName: string, page: NodePage, namespace: string, signal?: AbortSignal): Promise<string>;
  close(): void;
}

/** Kubelets themselves measure every ten seconds or so. */
const keptSeconds = 5;
/** Of 110 pods, cAdvisor's page has 4 MB. */
const mostBytes = 32 * 1024 * 1024;
const mostPages = 1024;
const longestLine = 64 * 1024;
/** As API servers prefer them, less what names need: the name servers of nodes are not ours. */
const addressTypes = ['InternalIP', 'InternalDNS', 'ExternalIP', 'ExternalDNS', 'Hostname'];

interface Node extends KubeObject {
  status?: {
    addresses?: { type?: unknown; address?: unknown }[];
    daemonEndpoints?: { kubeletEndpoint?: { Port?: unknown } };
  };
}

class NoPage extends Error {
  /** Whether asking again may help. */
  readonly passing: boolean;
  constructor(message: string, passing = true) {
    super(message);
    this.passing = passing;
  }
}

export function createKubeletPages(options: KubeletPagesOptions): KubeletPages {
  const { cluster, credentials, clock, log, timeoutSeconds = 10 } = options;
  const pages = new Map<string, Promise<SplitPage>>();
  const told = new Map<string, string>();
  let agent: { readonly of: string; readonly agent: https.Agent } | undefined;

  /** Connections are made anew when the credentials are: a new certificate needs new ones. */
  function agentFor(identity: Identity): https.Agent {
    const { cert, key } = identity;
    const fingerprint = createHash('sha256').update([cert, key, identity.clusterCa].join('\0')).digest('hex');
    // The old one finishes what it carries; its idle connections run out.
    if (agent?.of === fingerprint) return agent.agent;
    const made = new https.Agent({
      keepAlive: true,
      maxSockets: 2,
      maxTotalSockets: 64,
      maxFreeSockets: 1,
      timeout: 60_000,
      ca: options.ca ?? identity.clusterCa,
      ...(cert !== undefined && { cert }),
      ...(key !== undefined && { key }),
      minVersion: 'TLSv1.2',
      rejectUnauthorized: options.insecure !== true,
    });
    agent = { of: fingerprint, agent: made };
    return made;
  }

  async function placeOf(nodeName: string, signal: AbortSignal): Promise<{ host: string; port: number }> {
    const node = await cluster.get<Node>(resources.nodes, { name: nodeName }, signal);
    const port = node?.status?.daemonEndpoints?.kubeletEndpoint?.Port;
    const addresses = node?.status?.addresses ?? [];
    const host = addressTypes
      .map((type) => addresses.find((one) => one.type === type)?.address)
      .find((address) => typeof address === 'string' && address !== '');
    if (typeof port !== 'number' || port <= 0 || port > 65_535 || typeof host !== 'string')
      throw new NoPage('the Node names no address and port of a kubelet', false);
    return { host, port };
  }

  async function get(nodeName: string, page: NodePage): Promise<IncomingMessage> {
    const signal = AbortSignal.timeout(timeoutSeconds * 1000);
    const { host, port } = await placeOf(nodeName, signal);
    const identity = await credentials.identity();
    return new Promise((resolve, reject) => {
      const request = https.get({
        host,
        port,
        path: kubeletPath(page),
        agent: agentFor(identity),
        headers: { ...identity.headers, Accept: page === 'stats' ? 'application/json' : 'text/plain;version=0.0.4' },
        // Also ends the body.
        signal,
      });
      request.on('error', reject);
      request.once('response', resolve);
    });
  }

  async function fetchPage(nodeName: string, page: NodePage): Promise<SplitPage> {
    const response = await get(nodeName, page);
    const status = response.statusCode ?? 0;
    if (status !== 200) {
      response.destroy();
      if (status === 401) credentials.forget();
      if (status === 404 || status === 405) throw new NoPage(`it has no ${kubeletPath(page)}: no real kubelet`, false);
      const right = page === 'stats' ? 'nodes/stats' : 'nodes/metrics';
      throw new NoPage(
        status === 401 || status === 403
          ? `it answers ${status}: the gateway's account needs the right to get ${right}, and the kubelet webhook authentication and authorization`
          : `it answers ${status}`,
      );
    }
    if (page !== 'stats') {
      const { line, split } = createPageSplitter(page, isTenantNamespace);
      await eachLine(response, line);
      return split;
    }
    const summary = splitSummary(JSON.parse(await wholeText(response)), isTenantNamespace);
    if (!summary) throw new NoPage('its /stats/summary is no summary');
    return summary;
  }

  /** Said once, until it is another. */
  function tell(nodeName: string, page: NodePage, error: unknown): void {
    const why = wordsOf(error, timeoutSeconds);
    if (told.get(nodeName) === why) return;
    if (told.size >= mostPages) told.clear();
    told.set(nodeName, why);
    log.warn({ node: nodeName, page, why }, 'a kubelet gives no figures: tenants of its node have no metrics');
  }

  async function fetched(nodeName: string, page: NodePage): Promise<SplitPage> {
    try {
      const split = await fetchPage(nodeName, page);
      told.delete(nodeName);
      return split;
    } catch (error) {
      tell(nodeName, page, error);
      if (error instanceof NoPage && !error.passing)
        throw new Refusal(501, 'the provider’s node has no kubelet that measures: it is simulated, or of another kind');
      throw new Refusal(503, 'the kubelet of the provider’s node gives no figures now: try again', {
        retryAfterSeconds: keptSeconds,
      });
    }
  }

  function page(nodeName: string, which: NodePage): Promise<SplitPage> {
    const key = `${nodeName}/${which}`;
    const known = pages.get(key);
    if (known) return known;
    if (pages.size >= mostPages)
      return Promise.reject(new Refusal(503, 'too many nodes are asked for figures at once: try again'));
    // A failure is kept, too: a kubelet that is down is not asked by each of its tenants.
    const reading = fetched(nodeName, which).finally(() => {
      clock.setTimeout(() => pages.delete(key), keptSeconds * 1000);
    });
    // Nobody may be waiting for it any more.
    reading.catch(() => undefined);
    pages.set(key, reading);
    return reading;
  }

  return {
    async read(nodeName, which, namespace, signal) {
      // The reading is everybody's: who leaves does not end it.
      const split = await unlessAborted(page(nodeName, which), signal);
      return split.of(namespace);
    },
    close: () => agent?.agent.destroy(),
  };
}

async function eachLine(response: IncomingMessage, line: (text: string) => void): Promise<void> {
  const decoder = new StringDecoder('utf8');
  let rest = '';
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > mostBytes) throw new NoPage(`its page is longer than ${mostBytes} bytes`);
    const lines = (rest + decoder.write(chunk)).split('\n');
    rest = lines.pop() ?? '';
    // What is longer than any line could be is read as two that are malformed.
    if (rest.length > longestLine) rest = '#';
    for (const text of lines) line(text);
  }
  if (!response.complete) throw new NoPage('its page broke off');
  line(rest);
}

async function wholeText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > mostBytes) throw new NoPage(`its page is longer than ${mostBytes} bytes`);
    chunks.push(chunk);
  }
  if (!response.complete) throw new NoPage('its page broke off');
  return Buffer.concat(chunks).toString('utf8');
}

function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

/** For the provider's own log: what to do, where that is known. */
function wordsOf(error: unknown, timeoutSeconds: number): string {
  if (!(error instanceof Error)) return 'unknown error';
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ABORT_ERR' || error.name === 'TimeoutError') return `no answer within ${timeoutSeconds} s`;
  if (code !== undefined && /CERT|SELF_SIGNED|UNABLE_TO_|HOSTNAME|ALTNAME/.test(code))
    return `its certificate is not trusted (${code}): give --kubelet-certificate-authority, or let the cluster sign kubelets' certificates (serverTLSBootstrap)`;
  if (code === 'ECONNRESET' && error.message === 'aborted')
    return `its page broke off, or did not end within ${timeoutSeconds} s`;
  if (error instanceof SyntaxError) return 'its answer is not JSON';
  return (code && !error.message.includes(code) ? `${code}: ${error.message}` : error.message).slice(0, 300);
}
