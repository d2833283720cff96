/**
 * How any controller runs, in the words that all parts share. The engine knows Kubernetes, not GPUs.
 *
 *   Cluster    one API server: requests, streams, watches
 *   Informer   a watched, cached, indexed list of one resource in one cluster
 *   Controller a keyed queue fed by informers, that calls a reconciler
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';

export interface ObjectKey {
  readonly namespace?: string;
  readonly name: string;
}

export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: {
    name: string;
    namespace?: string;
    uid?: string;
    resourceVersion?: string;
    generation?: number;
    creationTimestamp?: string;
    deletionTimestamp?: string;
    deletionGracePeriodSeconds?: number;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    finalizers?: string[];
    ownerReferences?: {
      apiVersion: string;
      kind: string;
      name: string;
      uid: string;
      controller?: boolean;
      blockOwnerDeletion?: boolean;
    }[];
  };
}

/** Names a resource of the API: `{ version: 'v1', plural: 'pods', namespaced: true }`. */
export interface Resource {
  /** Empty or absent for the core group. */
  readonly group?: string;
  readonly version: string;
  readonly plural: string;
  readonly kind: string;
  readonly namespaced: boolean;
}

/** The API server said no. A network failure is never this, but an `UnknownOutcomeError`. */
export interface ApiStatus {
  readonly code: number;
  /** Kubernetes' machine word: NotFound, AlreadyExists, Conflict, Invalid, Forbidden, Expired, TooManyRequests… */
  readonly reason: string;
  readonly message: string;
  readonly retryAfterSeconds?: number;
}

export interface ListOptions {
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  /** Objects a page; all pages are read. */
  readonly limit?: number;
  /** Applied to each object as its page arrives, so that a long list is never held whole. */
  readonly trim?: (object: KubeObject) => KubeObject;
}

export interface RawRequest {
  readonly method: string;
  /** Absolute path on the API server, with query. */
  readonly path: string;
  readonly headers?: Record<string, string | string[]>;
  readonly body?: string | Buffer;
  /** Until the headers of the answer, 30 by default. 0 waits for ever: a followed log may have nothing to say yet. */
  readonly timeoutSeconds?: number;
  /** Default: `streams`. */
  readonly over?: ConnectionKind;
}

/**
 * `calls`: the answer is short and read at once; few connections, taken by turns. `streams`: a connection of its own. `watches`:
 * one that many watches share, where there is such a thing, else as `streams`.
 */
export type ConnectionKind = 'calls' | 'streams' | 'watches';

export type WatchRequest = Omit<RawRequest, 'body' | 'over'>;

export interface SharedWatches {
  /**
   * The answer's headers are there, its body follows. Undefined: this server has no connections to share. Rejects with
   * UnknownOutcomeError, or the signal's reason.
   */
  open(request: WatchRequest, signal?: AbortSignal): Promise<IncomingMessage | undefined>;
}

/** One API server, and the credentials for it. Every call throws ApiError for the server's no, and UnknownOutcomeError for silence. */
export interface Cluster {
  readonly name: string;
  readonly server: string;
  get<T extends KubeObject>(resource: Resource, key: ObjectKey, signal?: AbortSignal): Promise<T | undefined>;
  /** All pages. `resourceVersion` is that of the list. */
  list<T extends KubeObject>(
    resource: Resource,
    options?: ListOptions,
    signal?: AbortSignal,
  ): Promise<{ items: T[]; resourceVersion: string }>;
  create<T extends KubeObject>(resource: Resource, object: T, signal?: AbortSignal): Promise<T>;
  /** Whole object; refused with Conflict when metadata.resourceVersion is set and not the latest. */
  replace<T extends KubeObject>(
    resource: Resource,
    object: T,
    options?: { subresource?: string },
    signal?: AbortSignal,
  ): Promise<T>;
  /** Server-side apply, forced, of only the fields given. */
  apply<T extends KubeObject>(
    resource: Resource,
    object: T,
    options: { fieldManager: string; subresource?: string },
    signal?: AbortSignal,
  ): Promise<T>;
  /** `brief`: of the answer no more than `metadata` is to be read, and a server need not send more. */
  patch<T extends KubeObject>(
    resource: Resource,
    key: ObjectKey,
    patch: unknown,
    options?: { type?: 'json' | 'merge' | 'strategic'; subresource?: string; brief?: boolean },
    signal?: AbortSignal,
  ): Promise<T>;
  /** Resolves also when it was gone already. */
  delete(
    resource: Resource,
    key: ObjectKey,
    options?: { gracePeriodSeconds?: number; uid?: string; resourceVersion?: string; propagationPolicy?: string },
    signal?: AbortSignal,
  ): Promise<void>;
  /** POSTs a subresource such as pods/NAME/eviction or serviceaccounts/NAME/token. */
  createSubresource<T>(
    resource: Resource,
    key: ObjectKey,
    subresource: string,
    body: unknown,
    signal?: AbortSignal,
  ): Promise<T>;
  /** Any request, the answer as a stream; no status is an error. `as`: use this bearer token instead of our own credentials. */
  raw(request: RawRequest, options?: { as?: string }, signal?: AbortSignal): Promise<IncomingMessage>;
  /**
   * Repeats an HTTP upgrade to the API server. Answers with the 101 and the raw socket, or with the refusal. `head` is what
   * the other side sent already after its 101.
   */
  upgrade(
    request: RawRequest,
    options?: { as?: string },
    signal?: AbortSignal,
  ): Promise<
    { response: IncomingMessage; socket: Duplex; head: Buffer } | { response: IncomingMessage; socket?: undefined }
  >;
}

export interface InformerOptions<T extends KubeObject> {
  readonly cluster: Cluster;
  readonly resource: Resource;
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  /** Drops what nobody reads before it is kept. Must keep metadata.{name,namespace,uid,resourceVersion}. */
  readonly trim?: (object: T) => T;
  readonly indexes?: Readonly<Record<string, (object: T) => readonly string[]>>;
}

export type Change<T> = { readonly type: 'added' | 'updated' | 'deleted'; readonly object: T; readonly old?: T };

/** A watched, cached list. What it holds is a hint that is seconds old at worst; money decisions read the server. */
export interface Informer<T extends KubeObject> {
  readonly resource: Resource;
  /** Lists, then watches until the signal fires. Resolves when stopped; never rejects for a failing server. */
  run(signal: AbortSignal): Promise<void>;
  readonly synced: boolean;
  waitForSync(signal?: AbortSignal): Promise<void>;
  get(key: ObjectKey): T | undefined;
  list(): readonly T[];
  byIndex(index: string, value: string): readonly T[];
  /** Called for each change, in order; a throwing handler is logged and harms nobody else. Returns the way to stop. */
  onChange(handler: (change: Change<T>) => void): () => void;
  /** Seconds since the server last said anything, list, event or bookmark. */
  readonly staleSeconds: number;
}

export interface Result {
  /** Look again then, even if nothing changes. */
  readonly requeueAfterSeconds?: number;
}

export type Reconcile = (key: ObjectKey, signal: AbortSignal) => Promise<Result>;

export interface Controller {
  readonly name: string;
  enqueue(key: ObjectKey, afterSeconds?: number): void;
  /** Runs until the signal fires and the reconciles in flight have ended. */
  run(signal: AbortSignal): Promise<void>;
}

export interface EventRecorder {
  /** Tells a user something that happened. Repeats become a series. Never throws; never blocks. */
  event(about: KubeObject, type: 'Normal' | 'Warning', reason: string, message: string, action?: string): void;
}

export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
  child(fields: object): Log;
}

/** Well-known resources. */
export const resources = {
  pods: { version: 'v1', plural: 'pods', kind: 'Pod', namespaced: true },
  nodes: { version: 'v1', plural: 'nodes', kind: 'Node', namespaced: false },
  secrets: { version: 'v1', plural: 'secrets', kind: 'Secret', namespaced: true },
  configMaps: { version: 'v1', plural: 'configmaps', kind: 'ConfigMap', namespaced: true },
  namespaces: { version: 'v1', plural: 'namespaces', kind: 'Namespace', namespaced: false },
  serviceAccounts: { version: 'v1', plural: 'serviceaccounts', kind: 'ServiceAccount', namespaced: true },
  services: { version: 'v1', plural: 'services', kind: 'Service', namespaced: true },
  endpointSlices: {
    group: 'discovery.k8s.io',
    version: 'v1',
    plural: 'endpointslices',
    kind: 'EndpointSlice',
    namespaced: true,
  },
  persistentVolumeClaims: {
    version: 'v1',
    plural: 'persistentvolumeclaims',
    kind: 'PersistentVolumeClaim',
    namespaced: true,
  },
  persistentVolumes: { version: 'v1', plural: 'persistentvolumes', kind: 'PersistentVolume', namespaced: false },
  resourceQuotas: { version: 'v1', plural: 'resourcequotas', kind: 'ResourceQuota', namespaced: true },
  limitRanges: { version: 'v1', plural: 'limitranges', kind: 'LimitRange', namespaced: true },
  events: { version: 'v1', plural: 'events', kind: 'Event', namespaced: true },
  eventsV1: { group: 'events.k8s.io', version: 'v1', plural: 'events', kind: 'Event', namespaced: true },
  leases: { group: 'coordination.k8s.io', version: 'v1', plural: 'leases', kind: 'Lease', namespaced: true },
  networkPolicies: {
    group: 'networking.k8s.io',
    version: 'v1',
    plural: 'networkpolicies',
    kind: 'NetworkPolicy',
    namespaced: true,
  },
  roles: { group: 'rbac.authorization.k8s.io', version: 'v1', plural: 'roles', kind: 'Role', namespaced: true },
  roleBindings: {
    group: 'rbac.authorization.k8s.io',
    version: 'v1',
    plural: 'rolebindings',
    kind: 'RoleBinding',
    namespaced: true,
  },
  clusterRoles: {
    group: 'rbac.authorization.k8s.io',
    version: 'v1',
    plural: 'clusterroles',
    kind: 'ClusterRole',
    namespaced: false,
  },
  csrs: {
    group: 'certificates.k8s.io',
    version: 'v1',
    plural: 'certificatesigningrequests',
    kind: 'CertificateSigningRequest',
    namespaced: false,
  },
  tokenReviews: {
    group: 'authentication.k8s.io',
    version: 'v1',
    plural: 'tokenreviews',
    kind: 'TokenReview',
    namespaced: false,
  },
  subjectAccessReviews: {
    group: 'authorization.k8s.io',
    version: 'v1',
    plural: 'subjectaccessreviews',
    kind: 'SubjectAccessReview',
    namespaced: false,
  },
  crds: {
    group: 'apiextensions.k8s.io',
    version: 'v1',
    plural: 'customresourcedefinitions',
    kind: 'CustomResourceDefinition',
    namespaced: false,
  },
  admissionPolicies: {
    group: 'admissionregistration.k8s.io',
    version: 'v1',
    plural: 'validatingadmissionpolicies',
    kind: 'ValidatingAdmissionPolicy',
    namespaced: false,
  },
  admissionPolicyBindings: {
    group: 'admissionregistration.k8s.io',
    version: 'v1',
    plural: 'validatingadmissionpolicybindings',
    kind: 'ValidatingAdmissionPolicyBinding',
    namespaced: false,
  },
  mutatingPolicies: {
    group: 'admissionregistration.k8s.io',
    version: 'v1',
    plural: 'mutatingadmissionpolicies',
    kind: 'MutatingAdmissionPolicy',
    namespaced: false,
  },
  mutatingPolicyBindings: {
    group: 'admissionregistration.k8s.io',
    version: 'v1',
    plural: 'mutatingadmissionpolicybindings',
    kind: 'MutatingAdmissionPolicyBinding',
    namespaced: false,
  },
  resourceClaims: {
    group: 'resource.k8s.io',
    version: 'v1',
    plural: 'resourceclaims',
    kind: 'ResourceClaim',
    namespaced: true,
  },
  resourceSlices: {
    group: 'resource.k8s.io',
    version: 'v1',
    plural: 'resourceslices',
    kind: 'ResourceSlice',
    namespaced: false,
  },
  gpuLeases: { group: 'gpulease.dev', version: 'v1alpha1', plural: 'gpuleases', kind: 'GpuLease', namespaced: true },
  gpuProviders: {
    group: 'gpulease.dev',
    version: 'v1alpha1',
    plural: 'gpuproviders',
    kind: 'GpuProvider',
    namespaced: false,
  },
  gpuAccesses: {
    group: 'gpulease.dev',
    version: 'v1alpha1',
    plural: 'gpuaccesses',
    kind: 'GpuAccess',
    namespaced: false,
  },
  gpuBudgets: {
    group: 'gpulease.dev',
    version: 'v1alpha1',
    plural: 'gpubudgets',
    kind: 'GpuBudget',
    namespaced: false,
  },
  gpuOffers: { group: 'gpulease.dev', version: 'v1alpha1', plural: 'gpuoffers', kind: 'GpuOffer', namespaced: false },
} as const satisfies Record<string, Resource>;
