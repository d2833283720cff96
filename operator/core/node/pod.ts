/**
 * As much of a Pod as is looked at. Parts that are only carried, such as a probe, stay `unknown`.
 * https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
 */

export interface ObjectMeta {
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
}

export interface Pod {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  spec: PodSpec;
  status?: PodStatus;
}

export interface PodSpec {
  containers: Container[];
  initContainers?: Container[];
  ephemeralContainers?: Container[];
  volumes?: Volume[];
  nodeName?: string;
  hostname?: string;
  serviceAccountName?: string;
  restartPolicy?: string;
  terminationGracePeriodSeconds?: number;
  activeDeadlineSeconds?: number;
  tolerations?: Toleration[];
  readinessGates?: { conditionType: string }[];
  imagePullSecrets?: { name?: string }[];
  [field: string]: unknown;
}

export interface Toleration {
  key?: string;
  operator?: string;
  value?: string;
  effect?: string;
  tolerationSeconds?: number;
}

export interface Resources {
  limits?: Record<string, string | number>;
  requests?: Record<string, string | number>;
  claims?: unknown[];
}

export interface Container {
  name: string;
  image?: string;
  env?: EnvVar[];
  envFrom?: EnvFromSource[];
  resources?: Resources;
  volumeMounts?: VolumeMount[];
  ports?: { hostPort?: number; hostIP?: string; containerPort?: number; [field: string]: unknown }[];
  securityContext?: {
    privileged?: boolean;
    procMount?: string;
    capabilities?: { add?: string[]; drop?: string[] };
    [field: string]: unknown;
  };
  restartPolicy?: string;
  [field: string]: unknown;
}

export interface VolumeMount {
  name: string;
  mountPath: string;
  [field: string]: unknown;
}

export interface KeyRef {
  name?: string;
  key: string;
  optional?: boolean;
}
export interface FieldRef {
  apiVersion?: string;
  fieldPath: string;
}
export interface ResourceFieldRef {
  containerName?: string;
  resource: string;
  divisor?: string | number;
}
export interface EnvVar {
  name: string;
  value?: string;
  valueFrom?: {
    configMapKeyRef?: KeyRef;
    secretKeyRef?: KeyRef;
    fieldRef?: FieldRef;
    resourceFieldRef?: ResourceFieldRef;
    [field: string]: unknown;
  };
}
export interface EnvFromSource {
  prefix?: string;
  configMapRef?: { name?: string; optional?: boolean };
  secretRef?: { name?: string; optional?: boolean };
}

export interface DownwardItem {
  path: string;
  mode?: number;
  fieldRef?: FieldRef;
  resourceFieldRef?: ResourceFieldRef;
}
export interface ProjectedSource {
  configMap?: { name?: string; optional?: boolean; items?: unknown[] };
  secret?: { name?: string; optional?: boolean; items?: unknown[] };
  downwardAPI?: { items?: DownwardItem[] };
  serviceAccountToken?: unknown;
  [field: string]: unknown;
}
export interface Volume {
  name: string;
  emptyDir?: unknown;
  configMap?: { name?: string; optional?: boolean; [field: string]: unknown };
  secret?: { secretName?: string; optional?: boolean; [field: string]: unknown };
  downwardAPI?: { items?: DownwardItem[]; [field: string]: unknown };
  projected?: { sources?: ProjectedSource[]; [field: string]: unknown };
  [field: string]: unknown;
}

export interface PodCondition {
  type: string;
  /** Always there in what is stored. */
  status?: string;
  reason?: string;
  message?: string;
  lastTransitionTime?: string | null;
  lastProbeTime?: string | null;
  observedGeneration?: number;
  /** In what is written: take it away. */
  $patch?: 'delete';
}

export interface ContainerState {
  waiting?: { reason?: string; message?: string };
  running?: { startedAt?: string };
  terminated?: {
    exitCode: number;
    signal?: number;
    reason?: string;
    message?: string;
    startedAt?: string;
    finishedAt?: string;
    containerID?: string;
  };
}

export interface ContainerStatus {
  name: string;
  state?: ContainerState;
  lastState?: ContainerState;
  ready: boolean;
  restartCount: number;
  image: string;
  imageID: string;
  containerID?: string;
  started?: boolean;
  resources?: Resources;
  allocatedResources?: Record<string, string>;
  allocatedResourcesStatus?: { name: string; resources: { resourceID: string; health: string; message?: string }[] }[];
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean; recursiveReadOnly?: string }[];
  user?: { linux: { uid: number; gid: number; supplementalGroups?: number[] } };
  stopSignal?: string;
}

export interface PodStatus {
  phase?: string;
  reason?: string | null;
  message?: string | null;
  conditions?: PodCondition[];
  startTime?: string;
  hostIP?: string;
  hostIPs?: { ip: string }[];
  podIP?: string;
  podIPs?: { ip: string }[];
  initContainerStatuses?: ContainerStatus[];
  containerStatuses?: ContainerStatus[];
  ephemeralContainerStatuses?: ContainerStatus[];
  observedGeneration?: number;
  qosClass?: string;
  resources?: Resources;
  allocatedResources?: Record<string, string>;
}

/** Succeeded and Failed are for ever. */
export function isTerminal(pod: Pod): boolean {
  return pod.status?.phase === 'Succeeded' || pod.status?.phase === 'Failed';
}

/** DaemonSets replace a failed pod at once, so theirs are never refused, only left alone. */
export function isOfDaemonSet(pod: Pod): boolean {
  return (pod.metadata.ownerReferences ?? []).some(
    (owner) => owner.controller === true && owner.kind === 'DaemonSet' && owner.apiVersion.startsWith('apps/'),
  );
}

/** The node that a DaemonSet made an unbound pod for: it says so in a field of its node affinity. */
export function daemonTarget(pod: Pod): string | undefined {
  const { affinity } = pod.spec as {
    affinity?: {
      nodeAffinity?: {
        requiredDuringSchedulingIgnoredDuringExecution?: {
          nodeSelectorTerms?: { matchFields?: { key: string; operator: string; values?: string[] }[] }[];
        };
      };
    };
  };
  const terms = affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms ?? [];
  return terms.flatMap((term) => term.matchFields ?? []).find(({ key }) => key === 'metadata.name')?.values?.[0];
}
