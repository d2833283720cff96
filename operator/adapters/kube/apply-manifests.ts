/**
 * `kubectl apply --server-side` for programs: manifests in any order, with namespaces and CRDs before what needs them.
 * Safe to repeat.
 */
import { type Clock, sleep, systemClock } from '../../engine/clock.ts';
import { ApiError, isNotFound, isRecord } from '../../engine/errors.ts';
import { readBody } from '../../engine/http.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../../engine/types.ts';

export interface ApplyOptions {
  readonly fieldManager: string;
  /** For manifests that name none. */
  readonly namespace?: string;
  /** A new CRD is served some moments after it is accepted; so long is waited for it. 30 by default. */
  readonly timeoutSeconds?: number;
  readonly clock?: Clock;
}

const early = ['Namespace', 'CustomResourceDefinition', 'ServiceAccount', 'ClusterRole', 'Role'];

/** Resolves with what the server stored, in the order of the manifests. Lists are opened. */
export async function applyManifests(
  cluster: Cluster,
  documents: readonly unknown[],
  options: ApplyOptions,
  signal?: AbortSignal,
): Promise<KubeObject[]> {
  const clock = options.clock ?? systemClock;
  const deadlineMs = clock.monotonicMs() + (options.timeoutSeconds ?? 30) * 1000;
  const kinds = new Map<string, Resource[]>();
  const manifests = documents.flatMap(open);
  const order = manifests.map((_, index) => index).sort((a, b) => rank(manifests[a]!) - rank(manifests[b]!) || a - b);
  const stored: KubeObject[] = [];

  async function resourceOf(manifest: Manifest): Promise<Resource> {
    for (;;) {
      const served = kinds.get(manifest.apiVersion) ?? (await discover(cluster, manifest.apiVersion, signal));
      const found = served.find((resource) => resource.kind === manifest.kind);
      if (found) {
        kinds.set(manifest.apiVersion, served);
        return found;
      }
      if (clock.monotonicMs() >= deadlineMs)
        throw new Error(`${cluster.name} serves no ${manifest.apiVersion} ${manifest.kind}; is its CRD installed?`);
      await sleep(clock, 200, signal);
    }
  }

  for (const index of order) {
    const manifest = manifests[index]!;
    const resource = await resourceOf(manifest);
    const namespace = resource.namespaced ? (manifest.metadata.namespace ?? options.namespace ?? 'default') : undefined;
    const object = { ...manifest, metadata: { ...manifest.metadata, namespace } };
    for (;;) {
      try {
        stored[index] = await cluster.apply(resource, object, { fieldManager: options.fieldManager }, signal);
        break;
      } catch (error) {
        // Discovery lists a new kind a little before its handler is there.
        const settling = isNotFound(error) && /could not find the requested resource/.test(error.message);
        if (!settling || clock.monotonicMs() >= deadlineMs) throw error;
        await sleep(clock, 200, signal);
      }
    }
    if (manifest.kind === 'CustomResourceDefinition')
      await established(cluster, manifest.metadata.name, clock, deadlineMs, signal);
  }
  return stored;
}

type Manifest = KubeObject & { apiVersion: string; kind: string };

function open(document: unknown): Manifest[] {
  if (document === null || document === undefined) return []; // an empty document between two `---`
  if (isRecord(document) && document.kind === 'List' && Array.isArray(document.items))
    return document.items.flatMap(open);
  const metadata = isRecord(document) ? document.metadata : undefined;
  if (
    !isRecord(document) ||
    typeof document.apiVersion !== 'string' ||
    typeof document.kind !== 'string' ||
    !isRecord(metadata) ||
    typeof metadata.name !== 'string'
  )
    throw new TypeError('not a manifest: apiVersion, kind and metadata.name are needed');
  return [document as unknown as Manifest];
}

function rank(manifest: Manifest): number {
  const at = early.indexOf(manifest.kind);
  return at < 0 ? early.length : at;
}

async function discover(cluster: Cluster, apiVersion: string, signal?: AbortSignal): Promise<Resource[]> {
  const [version = '', group] = apiVersion.split('/').reverse();
  const path = group ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  const response = await cluster.raw(
    { method: 'GET', path, headers: { Accept: 'application/json' } },
    undefined,
    signal,
  );
  const body = await readBody(response, `GET ${path}`, { maxBytes: 4 * 1024 * 1024, timeoutSeconds: 30 });
  if (response.statusCode === 404) return []; // not served, or not yet
  if (response.statusCode !== 200)
    throw new ApiError(
      { code: response.statusCode ?? 0, reason: 'Unknown', message: `discovery of ${apiVersion} failed` },
      `GET ${path}`,
    );
  const { resources: listed } = JSON.parse(body.toString('utf8')) as {
    resources: { name: string; kind: string; namespaced: boolean }[];
  };
  return listed
    .filter(({ name }) => !name.includes('/'))
    .map(({ name, kind, namespaced }) => ({ group, version, plural: name, kind, namespaced }));
}

async function established(cluster: Cluster, name: string, clock: Clock, deadlineMs: number, signal?: AbortSignal) {
  for (;;) {
    const crd = await cluster.get<
      KubeObject & { status?: { conditions?: { type: string; status: string; message?: string }[] } }
    >(resources.crds, { name }, signal);
    const conditions = crd?.status?.conditions ?? [];
    if (conditions.some(({ type, status }) => type === 'Established' && status === 'True')) return;
    const refused = conditions.find(({ type, status }) => type === 'NamesAccepted' && status === 'False');
    if (refused) throw new Error(`CRD ${name} was not accepted: ${refused.message}`);
    if (clock.monotonicMs() >= deadlineMs) throw new Error(`CRD ${name} was not established in time`);
    await sleep(clock, 100, signal);
  }
}
