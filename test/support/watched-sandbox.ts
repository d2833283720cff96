/**
 * A sandbox in which no secret may be written anywhere: what it makes of keys, tokens and Secrets is noted while it runs, and
 * when it is stopped all that its programs wrote and told is searched for them. A leak makes `stop` throw, after all has ended.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { request } from 'node:https';
import { join } from 'node:path';
import type { GpuLease } from '../../operator/api/lease.ts';
import { createInformer } from '../../operator/engine/informer.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import { type Sandbox, type SandboxOptions, startSandbox as start } from '../../operator/sandbox/sandbox.ts';
import { createSecrets, type Finding, Leak, type Secrets, secretsIn, secretsOfKubeconfig } from './secrets.ts';

export interface Searched {
  /** Values that were looked for, in all their spellings. */
  readonly secrets: number;
  readonly logCharacters: number;
  readonly objects: number;
  /** Refusals of the gateway and of virtual nodes to requests with secrets in them. */
  readonly refusals: number;
}

export interface WatchedSandbox extends Sandbox {
  /** What was searched when it was stopped. */
  readonly searched: Searched | undefined;
}

/** As the sandbox's own; see above. */
export async function startSandbox(options: SandboxOptions, signal?: AbortSignal): Promise<WatchedSandbox> {
  const sandbox = await start(options, signal);
  const watch = watchSecrets(sandbox);
  let searched: Searched | undefined;
  return {
    ...sandbox,
    get searched() {
      return searched;
    },
    async stop() {
      let leak: Error | undefined;
      try {
        if (!signal?.aborted) searched = await watch.check();
      } catch (error) {
        leak = error as Error;
      }
      watch.stop();
      await sandbox.stop();
      if (leak) throw leak;
      if (searched) console.log(`no secret found: ${JSON.stringify(searched)}`);
    },
  };
}

/** What is looked at as it was last seen, also when it has gone since. */
const remembered: readonly Resource[] = [resources.gpuLeases, resources.pods];

export function watchSecrets(sandbox: Sandbox) {
  const secrets = createSecrets();
  const ending = new AbortController();
  const seen = new Map<string, KubeObject>();
  const clusters = [sandbox.consumerCluster, sandbox.providerCluster];

  for (const { privateKey } of sandbox.chain.accounts) secrets.add('a private key of the chain', privateKey);
  for (const cluster of clusters) {
    const follow = (resource: Resource, hear: (object: KubeObject) => void) => {
      const informer = createInformer<KubeObject>({ cluster, resource, log: silentLog });
      informer.onChange(({ object }) => hear(object));
      void informer.run(ending.signal);
    };
    follow(resources.secrets, (object) => {
      for (const { what, value } of secretsIn(object as Parameters<typeof secretsIn>[0])) secrets.add(what, value);
    });
    for (const resource of remembered)
      follow(resource, (object) => {
        if (seen.size < 20_000) seen.set(`${cluster.name} ${object.metadata.uid}`, object);
      });
  }
  return {
    secrets,
    stop: () => ending.abort(new Error('stopped')),
    async check(): Promise<Searched> {
      addFiles(secrets, sandbox.dir);
      const findings: Finding[] = [];
      const refusals = await probe(sandbox, secrets, findings);
      const objects = await searchObjects(clusters, secrets, seen, findings);
      const logCharacters = searchLogs(join(sandbox.dir, 'programs/log'), secrets, findings);
      if (findings.length > 0) throw new Leak(findings);
      return { secrets: secrets.size, logCharacters, objects, refusals };
    },
  };
}

/** Key files and kubeconfigs, however deep. */
export function addFiles(secrets: Secrets, dir: string): void {
  for (const entry of readdirSync(dir, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile() || !/\.(key|kubeconfig)$|^kubeconfig$/.test(entry.name)) continue;
    const file = join(entry.parentPath, entry.name);
    const text = readFileSync(file, 'utf8');
    if (entry.name.endsWith('.key')) {
      const lines = text.split('\n').filter((line) => !line.startsWith('-----'));
      secrets.add(`the key in ${entry.name}`, lines.join('\n'));
    } else for (const one of secretsOfKubeconfig(text)) secrets.add(`a credential in ${entry.name}`, one);
  }
}

/** Gives how many characters there were. */
export function searchLogs(dir: string, secrets: Secrets, findings: Finding[]): number {
  let characters = 0;
  for (const name of existsSync(dir) ? readdirSync(dir) : []) {
    const text = readFileSync(join(dir, name), 'utf8');
    characters += text.length;
    findings.push(...secrets.search(`log ${name}`, text));
  }
  return characters;
}

/** All objects but Secrets, events among them. */
export async function searchObjects(
  clusters: readonly Pick<Cluster, 'name' | 'list'>[],
  secrets: Secrets,
  gone: ReadonlyMap<string, KubeObject>,
  findings: Finding[],
): Promise<number> {
  let count = 0;
  const search = (cluster: string, kind: string, object: KubeObject) => {
    count += 1;
    const { namespace, name } = object.metadata;
    findings.push(
      ...secrets.search(`${kind} ${namespace ?? ''}/${name} of the ${cluster}'s cluster`, JSON.stringify(object)),
    );
  };
  for (const cluster of clusters) {
    const there = new Set<string>();
    for (const resource of Object.values(resources) as Resource[]) {
      if (resource.plural === 'secrets') continue;
      // A cluster that does not have the kind has none of it; reviews cannot be listed.
      const items = await cluster.list<KubeObject>(resource).then(
        (list) => list.items,
        () => [],
      );
      for (const object of items) {
        there.add(`${cluster.name} ${object.metadata.uid}`);
        search(cluster.name, resource.kind, object);
      }
    }
    for (const [key, object] of gone)
      if (key.startsWith(`${cluster.name} `) && !there.has(key)) search(cluster.name, object.kind ?? 'object', object);
  }
  return count;
}

interface Wrong {
  readonly method: 'GET' | 'POST';
  readonly path: string;
  readonly bearer?: string;
  readonly body?: string;
}

/**
 * Asks gateway and virtual nodes for what they must refuse, with secrets of our own making in all places where one can be, and
 * searches the refusals. They are also in the logs then, if anybody writes down what he is sent.
 */
async function probe(sandbox: Sandbox, secrets: Secrets, findings: Finding[]): Promise<number> {
  const hex = (bytes: number) => `0x${randomBytes(bytes).toString('hex')}`;
  const canaries = { key: hex(32), signature: hex(65), token: randomBytes(32).toString('base64url') };
  for (const [name, value] of Object.entries(canaries)) secrets.add(`a ${name} that was sent to be refused`, value);
  const { key, signature, token } = canaries;
  const lease = `/v1/leases/0x${'ab'.repeat(32)}`;
  const access = {
    provider: sandbox.providerAddress,
    audienceUrl: sandbox.gatewayUrl,
    nonce: hex(32),
    expiresAt: 1,
    signature,
  };
  const wrong: Wrong[] = [
    { method: 'GET', path: lease, bearer: token },
    { method: 'GET', path: `${lease}?token=${token}` },
    { method: 'GET', path: `${lease}/kube/api/v1/namespaces/default/secrets/x`, bearer: token },
    { method: 'POST', path: `${lease}/token`, body: JSON.stringify(access) },
    { method: 'POST', path: `${lease}/token`, body: JSON.stringify({ ...access, signature: `${signature}00` }) },
    {
      method: 'POST',
      path: `${lease}/vouchers`,
      bearer: token,
      body: JSON.stringify({ servedSeconds: 1, last: false, signature }),
    },
    { method: 'POST', path: '/v1/leases', body: JSON.stringify({ quote: { privateKey: key }, signature }) },
    { method: 'POST', path: '/v1/quotes', body: `{"privateKey":"${key}` },
    { method: 'POST', path: '/v1/quotes', body: JSON.stringify({ [key]: signature }) },
    { method: 'POST', path: `/v1/${token}`, bearer: token },
  ];
  let refusals = 0;
  const ask = async (base: string, one: Wrong) => {
    const answer = await send(base, one).catch(() => undefined);
    if (!answer) return;
    const where = `answer ${answer.status} to ${one.method} ${one.path.replaceAll(token, '…')}`;
    if (answer.status >= 400) refusals += 1;
    findings.push(...secrets.search(where, answer.text));
  };
  for (const one of wrong) await ask(sandbox.gatewayUrl, one);
  const leases = await sandbox.consumerCluster.list<GpuLease & KubeObject>(resources.gpuLeases).catch(() => undefined);
  const nodes = await sandbox.consumerCluster.list<NodeWithPort>(resources.nodes).catch(() => undefined);
  for (const node of leases ? (nodes?.items ?? []).slice(0, 2) : []) {
    const port = node.status?.daemonEndpoints?.kubeletEndpoint?.Port;
    const address = node.status?.addresses?.find(({ type }) => type === 'InternalIP')?.address;
    if (!port || !address) continue;
    await ask(`https://${address}:${port}`, { method: 'GET', path: '/pods', bearer: token });
    await ask(`https://${address}:${port}`, { method: 'GET', path: `/containerLogs/a/b/c?token=${token}` });
  }
  return refusals;
}

interface NodeWithPort extends KubeObject {
  status?: {
    addresses?: { type: string; address: string }[];
    daemonEndpoints?: { kubeletEndpoint?: { Port?: number } };
  };
}

function send(base: string, { method, path, bearer, body }: Wrong): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const headers = {
      ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    };
    // Whom we speak to makes no difference: the secrets are made for it.
    const call = request(
      new URL(path, base),
      { method, headers, rejectUnauthorized: false, timeout: 5000 },
      (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          text += text.length < 1_000_000 ? chunk : '';
        });
        response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
        response.on('error', reject);
      },
    );
    call.on('timeout', () => call.destroy(new Error('no answer')));
    call.on('error', reject);
    call.end(body);
  });
}
