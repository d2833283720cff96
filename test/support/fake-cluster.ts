/**
 * An API server in memory: a `Cluster` for unit tests and simulations, with the engine's own client in front of it, so that
 * paths, paging, error mapping and watches are the real ones.
 *
 * It does: any resource, by group and plural; resourceVersion, uid, generation; 404, 409, 410, 422; preconditions; no-op
 * writes that write nothing; finalizers and deletionTimestamp; graceful deletion of pods that have a node; namespaces that
 * take their contents along; label and field selectors; pages; watches with bookmarks; merge, JSON and (keyed by name or
 * type) strategic patches; server-side apply with ownership by field; status subresources; eviction, binding, resize,
 * ephemeralcontainers and token subresources; raw requests of all these paths.
 *
 * It does not: validate against schemas or default anything but a pod's phase; refuse changes of immutable fields; show
 * managedFields, or report apply conflicts (the engine always forces); count what plain updates own towards apply; collect
 * garbage by ownerReferences; check RBAC, quota, or that a namespace was ever made; keep more than one version of a resource; create
 * on PUT; change metadata through a status subresource. It has no timers: watches end when told to. The suite in
 * test/conformance/cluster runs on it and on a real API server.
 */
import type { IncomingMessage } from 'node:http';
import { type Duplex, PassThrough } from 'node:stream';
import { type Clock, sleep, systemClock } from '../../operator/engine/clock.ts';
import { clusterOver } from '../../operator/engine/cluster.ts';
import { sameJson } from '../../operator/engine/equal.ts';
import { isRecord, UnknownOutcomeError } from '../../operator/engine/errors.ts';
import type { Answer, Outgoing } from '../../operator/engine/http.ts';
import { apiVersionOf, keyOf, keyText } from '../../operator/engine/paths.ts';
import {
  type Cluster,
  type KubeObject,
  type ObjectKey,
  type Resource,
  resources as wellKnown,
} from '../../operator/engine/types.ts';
import {
  applyJsonPatch,
  applyMergePatch,
  applyStrategicPatch,
  mergeApplied,
  namesEntry,
  ownedPaths,
  removePath,
  valueAt,
} from './patches.ts';
import { matchesFields, matchesLabels } from './selectors.ts';

export interface FakeRequest {
  readonly method: string;
  /** Without query. */
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string | string[]>>;
  /** Parsed JSON, where it is JSON. */
  readonly body?: unknown;
  /** The token it was made with, instead of the cluster's own credentials. */
  readonly as?: string;
  /** Absent for paths that are no resource. */
  readonly resource?: Resource;
  readonly namespace?: string;
  readonly name?: string;
  readonly subresource?: string;
  readonly watch: boolean;
}

export interface FakeAnswer {
  readonly code: number;
  readonly body?: unknown;
  /** Instead of a body: sent as it comes. */
  readonly stream?: NodeJS.ReadableStream;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Fault {
  readonly method?: string;
  /** Plural. */
  readonly resource?: string;
  readonly subresource?: string;
  /**
   * A status code; `unreachable`: nothing arrives; `answer-lost`: the request is carried out, and the caller never hears.
   */
  readonly fail: number | 'unreachable' | 'answer-lost';
  readonly reason?: string;
  readonly message?: string;
  readonly retryAfterSeconds?: number;
  /** 1 by default. */
  readonly times?: number;
}

export interface FakeCluster extends Cluster {
  /** Stores as given, status included, adding what an API server adds. */
  seed<T extends KubeObject>(resource: Resource, ...objects: T[]): T[];
  /** A copy of what is stored. */
  object<T extends KubeObject>(resource: Resource, key: ObjectKey): T | undefined;
  objects<T extends KubeObject>(resource: Resource): T[];
  /** Changes a copy and stores it, as some other writer would: kubelet, user, controller. */
  change<T extends KubeObject>(resource: Resource, key: ObjectKey, mutate: (object: T) => void): T;
  /** Gone at once, whatever its finalizers and grace say. */
  erase(resource: Resource, key: ObjectKey): void;
  /** Asked before anything else; the first that answers decides. Returns the way to stop. */
  intercept(handler: (request: FakeRequest) => FakeAnswer | undefined | Promise<FakeAnswer | undefined>): () => void;
  onUpgrade(
    handler: (
      request: FakeRequest,
    ) => { socket: Duplex; head?: Buffer; headers?: Record<string, string> } | FakeAnswer | undefined,
  ): void;
  failNext(fault: Fault): void;
  /** Every request takes so long, by the injected clock. */
  latencyMs: number;
  /** Nothing gets through, in either direction, until it is set to false; open watches fall silent or break. */
  setUnreachable(unreachable: boolean, watches?: 'silent' | 'broken'): void;
  endWatches(how?: 'closed' | 'broken'): void;
  sendBookmarks(): void;
  /** Forgets what happened so far: watches and pages from before answer 410. */
  expireHistory(): void;
  readonly openWatches: number;
  /** The last 10,000 requests. */
  readonly requests: readonly FakeRequest[];
  /** Those that were meant to change something. */
  readonly writes: readonly FakeRequest[];
  readonly revision: string;
}

interface Happening {
  readonly revision: number;
  readonly place: string;
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
  readonly object: KubeObject;
  readonly old?: KubeObject;
}

interface OpenWatch {
  readonly place: string;
  readonly kind: string;
  readonly apiVersion: string;
  readonly namespace?: string;
  readonly query: URLSearchParams;
  readonly stream: PassThrough;
  /** Set while the network is said to be cut silently. */
  muted: boolean;
}

type Stored = KubeObject & { spec?: Record<string, unknown>; status?: Record<string, unknown> };

class Refusal extends Error {
  readonly answer: FakeAnswer;
  constructor(code: number, reason: string, message: string, causes: object[] = []) {
    super(message);
    this.answer = statusAnswer(code, reason, message, causes);
  }
}

const withoutStatus = new Set([
  'secrets',
  'configmaps',
  'events',
  'leases',
  'serviceaccounts',
  'limitranges',
  'networkpolicies',
  'roles',
  'rolebindings',
  'clusterroles',
  'clusterrolebindings',
  'validatingadmissionpolicybindings',
  'priorityclasses',
]);
const historyLength = 10_000;

export function fakeCluster(
  options: { name?: string; clock?: Clock; resources?: readonly Resource[] } = {},
): FakeCluster {
  const clock = options.clock ?? systemClock;
  const known = new Map<string, Resource>();
  const stores = new Map<string, Map<string, Stored>>();
  /** Fields that a manager applied: place/key → `manager subresource` → paths. */
  const owners = new Map<string, Map<string, Set<string>>>();
  let history: Happening[] = [];
  let oldest = 0;
  let revision = 1000;
  let uids = 0;
  const goneNamespaces = new Set<string>();
  const watches = new Set<OpenWatch>();
  const interceptors = new Set<Parameters<FakeCluster['intercept']>[0]>();
  let upgradeHandler: Parameters<FakeCluster['onUpgrade']>[0] | undefined;
  const faults: (Fault & { left: number })[] = [];
  const requests: FakeRequest[] = [];
  let unreachable = false;

  const placeOf = (resource: { group?: string; plural: string }) => `${resource.group ?? ''}/${resource.plural}`;
  const learn = (resource: Resource) => void known.set(placeOf(resource), resource);
  for (const resource of [...Object.values(wellKnown), ...(options.resources ?? [])]) learn(resource);

  function storeOf(resource: Resource): Map<string, Stored> {
    const place = placeOf(resource);
    if (!known.has(place)) learn(resource);
    let store = stores.get(place);
    if (!store) {
      store = new Map();
      stores.set(place, store);
    }
    return store;
  }

  const isCustom = (resource: Resource) => !!resource.group?.includes('.') && !resource.group.endsWith('.k8s.io');
  const hasStatus = (resource: Resource) => !withoutStatus.has(resource.plural);
  const hasGeneration = (resource: Resource) => isCustom(resource) || resource.plural === 'pods';

  // ---- storing

  function record(resource: Resource, type: Happening['type'], object: Stored, old?: Stored) {
    const happening: Happening = { revision, place: placeOf(resource), type, object, old };
    history.push(happening);
    if (history.length > historyLength) oldest = history.shift()!.revision;
    for (const watch of watches) {
      const line = lineFor(watch, happening);
      if (line && !watch.muted) watch.stream.write(line);
    }
  }

  function lineFor(watch: OpenWatch, { place, type, object, old }: Happening): string | undefined {
    if (watch.place !== place) return undefined;
    if (watch.namespace !== undefined && object.metadata.namespace !== watch.namespace) return undefined;
    const before = old !== undefined && matches(old, watch.query);
    const after = type !== 'DELETED' && matches(object, watch.query);
    const seen = before ? (after ? 'MODIFIED' : 'DELETED') : after ? 'ADDED' : undefined;
    return seen && `${JSON.stringify({ type: seen, object })}\n`;
  }

  const matches = (object: KubeObject, query: URLSearchParams) =>
    matchesLabels(object, query.get('labelSelector') ?? '') && matchesFields(object, query.get('fieldSelector') ?? '');

  function put(resource: Resource, object: Stored, old?: Stored): Stored {
    revision++;
    const stored = copy(object);
    stored.metadata.resourceVersion = String(revision);
    storeOf(resource).set(keyText(keyOf(stored)), stored);
    record(resource, old ? 'MODIFIED' : 'ADDED', stored, old);
    return stored;
  }

  function drop(resource: Resource, object: Stored) {
    revision++;
    const key = keyText(keyOf(object));
    storeOf(resource).delete(key);
    owners.delete(`${placeOf(resource)}/${key}`);
    const last = copy(object);
    last.metadata.resourceVersion = String(revision);
    record(resource, 'DELETED', last, object);
    const { namespace } = object.metadata;
    if (namespace !== undefined) finishNamespace(namespace);
  }

  function finishNamespace(name: string) {
    const namespace = storeOf(wellKnown.namespaces).get(name);
    if (!namespace?.metadata.deletionTimestamp || namespace.metadata.finalizers?.length) return;
    for (const store of stores.values()) {
      for (const object of store.values()) if (object.metadata.namespace === name) return;
    }
    drop(wellKnown.namespaces, namespace);
    goneNamespaces.add(name);
  }

  /** The one way in which an existing object changes. Returns what is stored afterwards; undefined when it went. */
  function update(
    resource: Resource,
    old: Stored,
    wanted: Stored,
    subresource?: string,
    patching = false,
  ): Stored | undefined {
    const next = copy(wanted);
    const { metadata } = next;
    // The status of custom kinds is written without a look at the rest of the object, its uid included.
    const looksAtUid = subresource !== 'status' || !isCustom(resource);
    if (looksAtUid && metadata.uid !== undefined && metadata.uid !== old.metadata.uid && patching)
      throw new Refusal(
        422,
        'Invalid',
        `${resource.kind} "${metadata.name}" is invalid: metadata.uid: field is immutable`,
        [{ reason: 'FieldValueInvalid', message: 'field is immutable', field: 'metadata.uid' }],
      );
    if (looksAtUid && metadata.uid !== undefined && metadata.uid !== old.metadata.uid)
      throw conflict(resource, old.metadata.name, `the UID in the request (${metadata.uid}) is not that of the object`);
    if (metadata.resourceVersion !== undefined && metadata.resourceVersion !== old.metadata.resourceVersion)
      throw conflict(
        resource,
        old.metadata.name,
        'the object has been modified; please apply your changes to the latest version and try again',
      );
    if (
      metadata.name !== old.metadata.name ||
      (metadata.namespace ?? old.metadata.namespace) !== old.metadata.namespace
    )
      throw new Refusal(400, 'BadRequest', 'the name of the object does not match the name on the URL');
    let result: Stored;
    if (subresource === 'status') {
      result = { ...copy(old), status: next.status };
      if (result.status === undefined) delete result.status;
    } else {
      result = next;
      if (hasStatus(resource)) {
        if (old.status === undefined) delete result.status;
        else result.status = copy(old.status);
      }
      if (old.metadata.deletionTimestamp) {
        const added = (metadata.finalizers ?? []).filter((name) => !old.metadata.finalizers?.includes(name));
        if (added.length > 0)
          throw new Refusal(
            422,
            'Invalid',
            `metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers ${JSON.stringify(added)}`,
          );
      }
      for (const field of [
        'uid',
        'creationTimestamp',
        'deletionTimestamp',
        'deletionGracePeriodSeconds',
        'generation',
        'namespace',
      ] as const) {
        const value = old.metadata[field];
        if (value === undefined) delete metadata[field];
        else Object.assign(metadata, { [field]: value });
      }
      for (const field of ['labels', 'annotations', 'finalizers', 'ownerReferences'] as const) {
        const value = metadata[field];
        if (value !== undefined && Object.keys(value).length === 0) delete metadata[field];
      }
    }
    result.apiVersion = apiVersionOf(resource);
    result.kind = resource.kind;
    result.metadata.resourceVersion = old.metadata.resourceVersion;
    if (sameJson(result, old)) return old;
    if (subresource === undefined && hasGeneration(resource) && !sameJson(content(result), content(old)))
      result.metadata.generation = (old.metadata.generation ?? 0) + 1;
    const ending = result.metadata.deletionTimestamp !== undefined && !result.metadata.finalizers?.length;
    const waits = resource.plural === 'pods' && (result.metadata.deletionGracePeriodSeconds ?? 0) > 0;
    if (ending && !waits && resource.plural !== 'namespaces') {
      drop(resource, { ...result });
      return undefined;
    }
    const stored = put(resource, result, old);
    if (resource.plural === 'namespaces') finishNamespace(stored.metadata.name);
    return stored;
  }

  const content = (object: Stored) => ({ ...object, metadata: undefined, status: undefined });

  function insert(resource: Resource, given: Stored, keepStatus: boolean): Stored {
    const object = copy(given);
    const metadata = object.metadata as Stored['metadata'] & { generateName?: string };
    if (!metadata.name && metadata.generateName)
      metadata.name = `${metadata.generateName}${(++uids).toString(36).padStart(5, '0')}`;
    if (
      typeof metadata.name !== 'string' ||
      !/^[a-z0-9]([-a-z0-9.:]*[a-z0-9])?$/.test(metadata.name) ||
      metadata.name.length > 253
    )
      throw new Refusal(422, 'Invalid', `${resource.kind} "${metadata.name}" is invalid: metadata.name: Invalid value`);
    if (metadata.resourceVersion !== undefined)
      throw new Refusal(500, 'InternalError', 'resourceVersion should not be set on objects to be created');
    const store = storeOf(resource);
    const key = keyText(keyOf(object));
    if (store.has(key))
      throw new Refusal(409, 'AlreadyExists', `${qualified(resource)} "${metadata.name}" already exists`);
    // Tests need not make the namespaces that they use; but one that is gone lets nothing in, however late it comes.
    if (resource.namespaced && goneNamespaces.has(metadata.namespace ?? ''))
      throw new Refusal(404, 'NotFound', `namespaces "${metadata.namespace}" not found`);
    const namespace = resource.namespaced ? storeOf(wellKnown.namespaces).get(metadata.namespace ?? '') : undefined;
    if (namespace?.metadata.deletionTimestamp)
      throw new Refusal(
        403,
        'Forbidden',
        `${qualified(resource)} "${metadata.name}" is forbidden: unable to create new content in namespace ${metadata.namespace} because it is being terminated`,
        [{ reason: 'NamespaceTerminating' }],
      );
    object.apiVersion = apiVersionOf(resource);
    object.kind = resource.kind;
    metadata.uid = `00000000-0000-4000-8000-${(++uids).toString(16).padStart(12, '0')}`;
    metadata.creationTimestamp = seconds(clock.now());
    delete metadata.deletionTimestamp;
    delete metadata.deletionGracePeriodSeconds;
    if (hasGeneration(resource)) metadata.generation = 1;
    else delete metadata.generation;
    if (!keepStatus && hasStatus(resource) && (isCustom(resource) || resource.plural === 'pods')) delete object.status;
    if (resource.plural === 'pods') object.status ??= { phase: 'Pending' };
    if (resource.plural === 'namespaces') {
      object.status ??= { phase: 'Active' };
      goneNamespaces.delete(metadata.name);
    }
    return put(resource, object);
  }

  // ---- verbs

  function find(resource: Resource, key: ObjectKey): Stored {
    const found = storeOf(resource).get(keyText(key));
    if (!found) throw new Refusal(404, 'NotFound', `${qualified(resource)} "${key.name}" not found`);
    return found;
  }

  function remove(resource: Resource, key: ObjectKey, body: unknown): FakeAnswer {
    const old = find(resource, key);
    const asked = isRecord(body) ? body : {};
    const preconditions = isRecord(asked.preconditions) ? asked.preconditions : {};
    for (const field of ['uid', 'resourceVersion'] as const) {
      if (preconditions[field] !== undefined && preconditions[field] !== old.metadata[field])
        throw conflict(
          resource,
          key.name,
          `the ${field} in the precondition (${preconditions[field]}) does not match ${old.metadata[field]}`,
        );
    }
    let grace = 0;
    if (resource.plural === 'pods' && old.spec?.nodeName) {
      const phase = old.status?.phase;
      const usual =
        typeof old.spec.terminationGracePeriodSeconds === 'number' ? old.spec.terminationGracePeriodSeconds : 30;
      grace = typeof asked.gracePeriodSeconds === 'number' ? asked.gracePeriodSeconds : usual;
      if (phase === 'Succeeded' || phase === 'Failed') grace = 0;
      if (old.metadata.deletionGracePeriodSeconds !== undefined)
        grace = Math.min(grace, old.metadata.deletionGracePeriodSeconds);
    }
    const isNamespace = resource.plural === 'namespaces';
    if (grace === 0 && !old.metadata.finalizers?.length && !isNamespace) {
      drop(resource, old);
      return {
        code: 200,
        body: {
          kind: 'Status',
          apiVersion: 'v1',
          status: 'Success',
          details: { name: key.name, uid: old.metadata.uid },
        },
      };
    }
    if (old.metadata.deletionTimestamp && old.metadata.deletionGracePeriodSeconds === grace)
      return { code: 200, body: old };
    const marked = copy(old);
    if (old.metadata.deletionGracePeriodSeconds === undefined || grace < old.metadata.deletionGracePeriodSeconds)
      marked.metadata.deletionTimestamp = seconds(new Date(clock.now().getTime() + grace * 1000));
    marked.metadata.deletionGracePeriodSeconds = grace;
    if (hasGeneration(resource)) marked.metadata.generation = (old.metadata.generation ?? 0) + 1;
    if (isNamespace) marked.status = { ...marked.status, phase: 'Terminating' };
    const stored = put(resource, marked, old);
    if (isNamespace) {
      for (const [place, store] of stores) {
        const inside = known.get(place)!;
        for (const object of [...store.values()]) {
          if (object.metadata.namespace === key.name) remove(inside, keyOf(object), undefined);
        }
      }
      finishNamespace(key.name);
    }
    return { code: 200, body: stored };
  }

  function apply(resource: Resource, request: FakeRequest, key: ObjectKey): FakeAnswer {
    const manager = request.query.get('fieldManager');
    if (!manager) throw new Refusal(422, 'Invalid', 'fieldManager: Required value: is required for apply patch');
    const given = asObject(request.body);
    const inStatus = request.subresource === 'status';
    const old = storeOf(resource).get(keyText(key));
    const part: Record<string, unknown> = inStatus
      ? { status: given.status ?? {} }
      : applicable(given, hasStatus(resource));
    const paths = new Set(ownedPaths(part));
    const ownerKey = `${placeOf(resource)}/${keyText(key)}`;
    const managers = owners.get(ownerKey) ?? new Map<string, Set<string>>();
    const me = `${manager} ${request.subresource ?? ''}`;
    if (!old) {
      if (inStatus) throw new Refusal(404, 'NotFound', `${qualified(resource)} "${key.name}" not found`);
      if (given.metadata.uid)
        throw conflict(resource, key.name, `uid mismatch: no object was found for ${given.metadata.uid}`);
      const created = insert(resource, { ...given, metadata: { ...given.metadata, ...key } }, false);
      owners.set(ownerKey, new Map([[me, paths]]));
      return { code: 201, body: created };
    }
    const next = copy(old) as unknown as Record<string, unknown>;
    // What names an entry of a list goes last, or the rest of the entry would not be found any more.
    for (const path of [...(managers.get(me) ?? [])].sort((a, b) => Number(namesEntry(a)) - Number(namesEntry(b)))) {
      const others = [...managers].some(([name, theirs]) => name !== me && theirs.has(path));
      if (!paths.has(path) && !others) removePath(next, path);
    }
    const before = copy(next);
    mergeApplied(next, part);
    for (const [name, theirs] of managers) {
      if (name === me) continue;
      for (const path of theirs) if (!sameJson(valueAt(before, path), valueAt(next, path))) theirs.delete(path);
    }
    const wanted = next as unknown as Stored;
    wanted.metadata.uid = given.metadata.uid;
    wanted.metadata.resourceVersion = given.metadata.resourceVersion;
    const stored = update(resource, old, wanted, request.subresource, true);
    managers.set(me, paths);
    owners.set(ownerKey, managers);
    return { code: 200, body: stored ?? wanted };
  }

  function patch(resource: Resource, request: FakeRequest, key: ObjectKey): FakeAnswer {
    const type = String(header(request.headers, 'content-type') ?? '').split(';', 1)[0];
    if (type === 'application/apply-patch+yaml') return apply(resource, request, key);
    const old = find(resource, key);
    let next: unknown;
    if (type === 'application/merge-patch+json') next = applyMergePatch(copy(old), request.body);
    else if (type === 'application/json-patch+json') {
      try {
        next = applyJsonPatch(copy(old), request.body);
      } catch (error) {
        throw new Refusal(422, 'Invalid', `the server rejected our request due to an error in our request: ${error}`);
      }
    } else if (type === 'application/strategic-merge-patch+json') {
      if (isCustom(resource))
        throw new Refusal(
          415,
          'UnsupportedMediaType',
          'the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml',
        );
      next = applyStrategicPatch(copy(old), request.body);
    } else throw new Refusal(415, 'UnsupportedMediaType', `unknown patch type ${type}`);
    const wanted = asObject(next);
    const given = isRecord(request.body) && isRecord(request.body.metadata) ? request.body.metadata : {};
    // A version in the patch is a precondition; without one, the patch is for whatever is there.
    if (given.resourceVersion === undefined) wanted.metadata.resourceVersion = old.metadata.resourceVersion;
    return { code: 200, body: changed(resource, old, wanted, request.subresource, true) };
  }

  function replace(resource: Resource, request: FakeRequest, key: ObjectKey): FakeAnswer {
    const old = find(resource, key);
    const given = asObject(request.body);
    if (isCustom(resource) && given.metadata.resourceVersion === undefined)
      throw new Refusal(422, 'Invalid', 'metadata.resourceVersion: Invalid value: 0: must be specified for an update');
    return { code: 200, body: changed(resource, old, given, request.subresource) };
  }

  /** A plain write takes from appliers what it changes. */
  function changed(resource: Resource, old: Stored, wanted: Stored, subresource?: string, patching = false): Stored {
    const stored = update(resource, old, wanted, subresource, patching);
    for (const theirs of owners.get(`${placeOf(resource)}/${keyText(keyOf(old))}`)?.values() ?? []) {
      for (const path of theirs)
        if (!sameJson(valueAt(old, path), valueAt(stored ?? wanted, path))) theirs.delete(path);
    }
    return stored ?? wanted;
  }

  function list(resource: Resource, request: FakeRequest): FakeAnswer {
    let items = [...storeOf(resource).values()]
      .filter((object) => request.namespace === undefined || object.metadata.namespace === request.namespace)
      .filter((object) => matches(object, request.query))
      .sort((a, b) => (keyText(keyOf(a)) < keyText(keyOf(b)) ? -1 : 1));
    let at = revision;
    const token = request.query.get('continue');
    if (token) {
      const { after, revision: from } = JSON.parse(Buffer.from(token, 'base64url').toString());
      if (from < oldest)
        throw new Refusal(
          410,
          'Expired',
          'The provided continue parameter is too old to display a consistent list result.',
        );
      at = from;
      items = items.filter((object) => keyText(keyOf(object)) > after);
    }
    const limit = Number(request.query.get('limit') ?? 0);
    const page = limit > 0 ? items.slice(0, limit) : items;
    const last = page.at(-1);
    const more =
      last && page.length < items.length
        ? Buffer.from(JSON.stringify({ after: keyText(keyOf(last)), revision: at })).toString('base64url')
        : undefined;
    const body = {
      kind: `${resource.kind}List`,
      apiVersion: apiVersionOf(resource),
      metadata: { resourceVersion: String(at), continue: more },
      items: page.map(({ apiVersion: _, kind: __, ...item }) => item),
    };
    return { code: 200, body };
  }

  function openWatch(resource: Resource, request: FakeRequest): FakeAnswer {
    const stream = new PassThrough({ highWaterMark: 64 * 1024 * 1024 });
    const watch: OpenWatch = {
      place: placeOf(resource),
      kind: resource.kind,
      apiVersion: apiVersionOf(resource),
      namespace: request.namespace,
      query: request.query,
      stream,
      muted: false,
    };
    const from = request.query.get('resourceVersion') || '0';
    if (from !== '0' && Number(from) < oldest) {
      const object = statusAnswer(410, 'Expired', `too old resource version: ${from} (${oldest})`).body;
      stream.end(`${JSON.stringify({ type: 'ERROR', object })}\n`);
      return { code: 200, stream };
    }
    if (from === '0') {
      for (const object of storeOf(resource).values()) {
        const line = lineFor(watch, { revision, place: watch.place, type: 'ADDED', object });
        if (line) stream.write(line);
      }
    } else {
      for (const happening of history) {
        const line = happening.revision > Number(from) ? lineFor(watch, happening) : undefined;
        if (line) stream.write(line);
      }
    }
    watches.add(watch);
    stream.once('close', () => watches.delete(watch));
    return { code: 200, stream };
  }

  function subresource(resource: Resource, request: FakeRequest, key: ObjectKey): FakeAnswer {
    const what = `${resource.plural}/${request.subresource}`;
    const body = isRecord(request.body) ? request.body : {};
    if (request.method === 'POST' && what === 'pods/eviction') {
      remove(resource, key, isRecord(body.deleteOptions) ? body.deleteOptions : undefined);
      return { code: 201, body: { kind: 'Status', apiVersion: 'v1', status: 'Success', code: 201 } };
    }
    if (request.method === 'POST' && what === 'pods/binding') {
      const old = find(resource, key);
      const target = isRecord(body.target) ? body.target.name : undefined;
      put(resource, { ...copy(old), spec: { ...old.spec, nodeName: target } }, old);
      return { code: 201, body: { kind: 'Status', apiVersion: 'v1', status: 'Success', code: 201 } };
    }
    if (request.method === 'PUT' && (what === 'pods/resize' || what === 'pods/ephemeralcontainers')) {
      const old = find(resource, key);
      const given = asObject(request.body);
      if (
        given.metadata.resourceVersion !== undefined &&
        given.metadata.resourceVersion !== old.metadata.resourceVersion
      )
        throw conflict(resource, key.name, 'the object has been modified');
      const wanted = copy(old);
      const spec = wanted.spec ?? {};
      const asked = given.spec ?? {};
      if (what === 'pods/ephemeralcontainers') spec.ephemeralContainers = asked.ephemeralContainers;
      else {
        const named = (list: unknown) => (Array.isArray(list) ? (list as { name: string; resources?: unknown }[]) : []);
        for (const container of [...named(spec.containers), ...named(spec.initContainers)]) {
          const same = [...named(asked.containers), ...named(asked.initContainers)].find(
            (c) => c.name === container.name,
          );
          if (same?.resources !== undefined) container.resources = same.resources;
        }
        if (asked.resources !== undefined) spec.resources = asked.resources;
      }
      return { code: 200, body: changed(resource, old, { ...wanted, spec }) };
    }
    if (request.method === 'POST' && what === 'serviceaccounts/token') {
      const account = find(resource, key);
      const spec = isRecord(body.spec) ? body.spec : {};
      const lifetime = typeof spec.expirationSeconds === 'number' ? spec.expirationSeconds : 3600;
      const status = {
        token: `fake-token-of-${key.namespace}-${key.name}-${++uids}`,
        expirationTimestamp: seconds(new Date(clock.now().getTime() + lifetime * 1000)),
      };
      return {
        code: 201,
        body: { ...body, metadata: { name: key.name, namespace: account.metadata.namespace }, status },
      };
    }
    throw new Refusal(404, 'NotFound', 'the server could not find the requested resource');
  }

  function serve(request: FakeRequest): FakeAnswer {
    const { resource } = request;
    if (!resource || (resource.namespaced && request.name !== undefined && request.namespace === undefined))
      throw new Refusal(404, 'NotFound', 'the server could not find the requested resource');
    if (request.name === undefined) {
      if (request.method === 'GET') return request.watch ? openWatch(resource, request) : list(resource, request);
      if (request.method === 'POST') {
        const object = asObject(request.body);
        if (resource.namespaced) {
          if (request.namespace === undefined) throw new Refusal(405, 'MethodNotAllowed', 'a namespace is needed');
          object.metadata = { ...object.metadata, namespace: object.metadata.namespace ?? request.namespace };
          if (object.metadata.namespace !== request.namespace)
            throw new Refusal(
              400,
              'BadRequest',
              'the namespace of the provided object does not match the namespace sent on the request',
            );
        }
        return { code: 201, body: insert(resource, object, false) };
      }
      throw new Refusal(405, 'MethodNotAllowed', 'the server does not allow this method on the requested resource');
    }
    const key: ObjectKey = { name: request.name, ...(resource.namespaced ? { namespace: request.namespace } : {}) };
    const status = request.subresource === 'status' && hasStatus(resource);
    if (request.subresource !== undefined && !status) return subresource(resource, request, key);
    switch (request.method) {
      case 'GET':
        return { code: 200, body: find(resource, key) };
      case 'PUT':
        return replace(resource, request, key);
      case 'PATCH':
        return patch(resource, request, key);
      case 'DELETE':
        if (status) break;
        return remove(resource, key, request.body);
    }
    throw new Refusal(405, 'MethodNotAllowed', 'the server does not allow this method on the requested resource');
  }

  // ---- the network

  function parseRequest(outgoing: Outgoing, as?: string): FakeRequest {
    const url = new URL(outgoing.path, 'http://fake');
    const parts = url.pathname.split('/').slice(1).map(decodeURIComponent);
    const base = {
      method: outgoing.method,
      path: url.pathname,
      query: url.searchParams,
      headers: outgoing.headers ?? {},
      body: parseBody(outgoing.body),
      as,
      watch: ['true', '1'].includes(url.searchParams.get('watch') ?? ''),
    };
    const group = parts[0] === 'apis' ? parts[1] : '';
    const rest = parts[0] === 'apis' ? parts.slice(3) : parts[0] === 'api' ? parts.slice(2) : [];
    let namespace: string | undefined;
    if (
      rest[0] === 'namespaces' &&
      rest.length > 2 &&
      !(rest.length === 3 && ['status', 'finalize'].includes(rest[2] ?? ''))
    ) {
      namespace = rest[1];
      rest.splice(0, 2);
    }
    const resource = known.get(`${group}/${rest[0]}`);
    return { ...base, resource, namespace, name: rest[1], subresource: rest.slice(2).join('/') || undefined };
  }

  function faultFor(request: FakeRequest): Fault | undefined {
    const fault = faults.find(
      (f) =>
        (f.method === undefined || f.method === request.method) &&
        (f.resource === undefined || f.resource === request.resource?.plural) &&
        (f.subresource === undefined || f.subresource === request.subresource),
    );
    if (fault && --fault.left === 0) faults.splice(faults.indexOf(fault), 1);
    return fault;
  }

  async function answer(request: FakeRequest): Promise<FakeAnswer> {
    try {
      for (const handler of interceptors) {
        const answered = await handler(request);
        if (answered) return answered;
      }
      return serve(request);
    } catch (error) {
      if (error instanceof Refusal) return error.answer;
      throw error;
    }
  }

  async function transmit(outgoing: Outgoing, _kind: unknown, as?: string, signal?: AbortSignal): Promise<Answer> {
    if (signal?.aborted) throw signal.reason;
    const request = parseRequest(outgoing, as);
    requests.push(request);
    if (requests.length > 10_000) requests.shift();
    if (fake.latencyMs > 0) await sleep(clock, fake.latencyMs, signal);
    const what = `${request.method} ${request.path}`;
    if (unreachable) throw new UnknownOutcomeError(`${what}: the fake network is cut`, { neverSent: true });
    const fault = faultFor(request);
    if (fault?.fail === 'unreachable')
      throw new UnknownOutcomeError(`${what}: unreachable, as asked`, { neverSent: true });
    if (typeof fault?.fail === 'number') {
      const { fail, reason = '', message = 'failing, as asked', retryAfterSeconds } = fault;
      const headers = retryAfterSeconds === undefined ? undefined : { 'retry-after': String(retryAfterSeconds) };
      return { response: respond({ ...statusAnswer(fail, reason, message), headers }, signal) };
    }
    if (header(request.headers, 'upgrade')) {
      const upgraded = upgradeHandler?.(request) ?? statusAnswer(404, 'NotFound', 'nothing to upgrade to');
      if ('socket' in upgraded) {
        const response = respond({ code: 101, headers: upgraded.headers }, signal);
        return { response, socket: upgraded.socket, head: upgraded.head ?? Buffer.alloc(0) };
      }
      return { response: respond(upgraded, signal) };
    }
    const answered = await unlessAborted(answer(request), signal);
    if (fault?.fail === 'answer-lost') throw new UnknownOutcomeError(`${what}: the answer was lost, as asked`);
    return { response: respond(answered, signal) };
  }

  const cluster = clusterOver(
    { server: `https://${options.name ?? 'fake'}.invalid`, transmit },
    { name: options.name ?? 'fake', clock },
  );

  const fake: FakeCluster = {
    ...cluster,
    // Lets typed calls use resources that nobody registered; raw paths can then name them too.
    get: (resource, ...rest) => {
      storeOf(resource);
      return cluster.get(resource, ...rest);
    },
    list: (resource, ...rest) => {
      storeOf(resource);
      return cluster.list(resource, ...rest);
    },
    create: (resource, ...rest) => {
      storeOf(resource);
      return cluster.create(resource, ...rest);
    },
    apply: (resource, ...rest) => {
      storeOf(resource);
      return cluster.apply(resource, ...rest);
    },
    seed<T extends KubeObject>(resource: Resource, ...objects: T[]): T[] {
      return objects.map((object) => copy(insert(resource, object as Stored, true)) as unknown as T);
    },
    object: <T extends KubeObject>(resource: Resource, key: ObjectKey) => {
      const found = storeOf(resource).get(keyText(key));
      return found && (copy(found) as unknown as T);
    },
    objects: <T extends KubeObject>(resource: Resource) =>
      [...storeOf(resource).values()].map((o) => copy(o) as unknown as T),
    change<T extends KubeObject>(resource: Resource, key: ObjectKey, mutate: (object: T) => void): T {
      const old = find(resource, key);
      const wanted = copy(old);
      mutate(wanted as unknown as T);
      const { status } = wanted;
      let stored = update(resource, old, wanted);
      if (stored && !sameJson(stored.status, status))
        stored = update(resource, stored, { ...copy(stored), status }, 'status');
      return copy(stored ?? wanted) as unknown as T;
    },
    erase: (resource, key) => drop(resource, find(resource, key)),
    intercept(handler) {
      interceptors.add(handler);
      return () => interceptors.delete(handler);
    },
    onUpgrade(handler) {
      upgradeHandler = handler;
    },
    failNext: (fault) => void faults.push({ ...fault, left: fault.times ?? 1 }),
    latencyMs: 0,
    setUnreachable(value, how = 'broken') {
      unreachable = value;
      if (!value) return;
      if (how === 'broken') fake.endWatches('broken');
      for (const watch of watches) watch.muted = true;
    },
    endWatches(how = 'closed') {
      for (const watch of [...watches]) {
        watches.delete(watch);
        if (how === 'closed') watch.stream.end();
        else watch.stream.destroy(new Error('the connection was reset'));
      }
    },
    sendBookmarks() {
      for (const { query, stream, kind, apiVersion, muted } of watches) {
        if (muted || query.get('allowWatchBookmarks') !== 'true') continue;
        const object = { kind, apiVersion, metadata: { resourceVersion: String(revision) } };
        stream.write(`${JSON.stringify({ type: 'BOOKMARK', object })}\n`);
      }
    },
    expireHistory() {
      revision++;
      history = [];
      oldest = revision;
    },
    get openWatches() {
      return watches.size;
    },
    requests,
    get writes() {
      return requests.filter((request) => request.method !== 'GET');
    },
    get revision() {
      return String(revision);
    },
  };
  return fake;

  function conflict(resource: Resource, name: string, message: string): Refusal {
    return new Refusal(
      409,
      'Conflict',
      `Operation cannot be fulfilled on ${qualified(resource)} "${name}": ${message}`,
    );
  }
}

const qualified = ({ plural, group }: Resource) => (group ? `${plural}.${group}` : plural);

function statusAnswer(code: number, reason: string, message: string, causes: object[] = []): FakeAnswer {
  const details = causes.length > 0 ? { causes } : undefined;
  return { code, body: { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message, details } };
}

function asObject(body: unknown): Stored {
  if (!isRecord(body)) throw new Refusal(400, 'BadRequest', 'the body of the request is not an object');
  return { ...body, metadata: isRecord(body.metadata) ? { ...body.metadata } : {} } as unknown as Stored;
}

/** What of an object takes part in an apply: not its identity. */
function applicable(object: Stored, statusApart: boolean): Record<string, unknown> {
  const { apiVersion: _, kind: __, metadata, status, ...rest } = object;
  const { labels, annotations, finalizers, ownerReferences } = metadata;
  const part = { ...rest, metadata: { labels, annotations, finalizers, ownerReferences }, status };
  const plain = JSON.parse(JSON.stringify(part)) as Record<string, unknown>;
  if (statusApart) delete plain.status;
  // To say nothing about metadata is not to say that there is none.
  if (Object.keys(plain.metadata as object).length === 0) delete plain.metadata;
  return plain;
}

function parseBody(body: string | Buffer | undefined): unknown {
  if (body === undefined) return undefined;
  try {
    return JSON.parse(body.toString());
  } catch {
    return body.toString();
  }
}

function header(headers: Readonly<Record<string, string | string[]>>, name: string) {
  return Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
}

/** As much of an IncomingMessage as anybody reads. */
function respond(answer: FakeAnswer, signal?: AbortSignal): IncomingMessage {
  const stream = (answer.stream as PassThrough | undefined) ?? new PassThrough();
  const headers: Record<string, string> = { 'content-type': 'application/json', ...answer.headers };
  Object.assign(stream, {
    statusCode: answer.code,
    statusMessage: '',
    httpVersion: '1.1',
    headers,
    rawHeaders: Object.entries(headers).flat(),
  });
  // A stream that was ended, not torn, is complete.
  Object.defineProperty(stream, 'complete', { get: () => stream.writableEnded ?? true });
  const onAbort = () => stream.destroy(signal?.reason instanceof Error ? signal.reason : new Error('aborted'));
  if (signal?.aborted) onAbort();
  signal?.addEventListener('abort', onAbort, { once: true });
  stream.once('close', () => signal?.removeEventListener('abort', onAbort));
  stream.on('error', () => undefined); // as with a socket: readers hear of it by their own means
  if (!answer.stream)
    stream.end(
      answer.body === undefined
        ? undefined
        : typeof answer.body === 'string'
          ? answer.body
          : JSON.stringify(answer.body),
    );
  return stream as unknown as IncomingMessage;
}

/** A caller that stops waiting is let go; what it asked for may still happen. */
function unlessAborted<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

const copy = <T>(value: T): T => structuredClone(value);

const seconds = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z');
