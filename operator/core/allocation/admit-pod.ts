/**
 * Which pods a tenant may run, field by field. The provider trusts no pod: this is its own decision, whatever the
 * consumer's side checked; quota, pod security and network policy of the tenant's namespace stand behind it.
 *
 *   kept      what makes the program: containers, volumes of ConfigMaps, Secrets, claims and scratch space, probes, hooks, dns
 *   replaced  where it runs (the reserved node alone), as whom (an account without a token), its labels
 *   left out  the consumer's scheduling: affinity, tolerations, priority, service account, node
 *   refused   host access (but to a trusted tenant: the host's network and files), devices past the count, other
 *             namespaces, and every field that is not known here
 *
 * Requests stay as the consumer's scheduler counted them. Limits are capped at the lease, and set to the lease where there
 * are none, so that a tenant cannot take the CPU or memory of another; the request is then spelled out as 0, or the API
 * server would raise it to the limit. Where the pod as a whole has limits, its containers' are capped at those.
 */
import type { TenantProfile } from '../../api/gateway.ts';
import { gpuResource, group, managedBy, labels as ownLabels } from '../../api/labels.ts';
import { baselineCapabilities, safeSysctls } from '../pod-security.ts';
import { parseQuantity, QuantityError } from '../quantity.ts';
import {
  type Admission,
  fields,
  flag,
  hostOnly,
  isObject,
  leave,
  left,
  list,
  mapOf,
  never,
  oneOf,
  type Rule,
  refuse,
  text,
  whole,
  wholeOrText,
} from './fields.ts';
import {
  isDeviceAnnotation,
  isDeviceListPath,
  isDeviceVariable,
  isHarmlessValue,
  makesDeviceVariable,
  visibleDevices,
} from './gpu-variables.ts';
import { type ImageRules, imageRefusal } from './images.ts';
import { isObjectName } from './kube-path.ts';
import { toleratedTaints } from './node-view.ts';
import { type PodRules, plainRules } from './pod-rules.ts';
import { Refusal } from './refusal.ts';
import { restrictContainer, restrictPod } from './restricted.ts';
import { bytesText, cpuText, type Room } from './room.ts';

export interface PodContext {
  readonly namespace: string;
  /** The label's value: the lease's id, cut. */
  readonly leaseId: string;
  readonly nodeName: string;
  readonly room: Room;
  /** What the node calls the devices of the lease; pods of consumers call them nvidia.com/gpu. Default: the same. */
  readonly device?: string;
  /** What the provider chose for the pods of all tenants. */
  readonly rules?: PodRules;
  /** baseline unless said otherwise: see `tenantProfiles`. */
  readonly profile?: TenantProfile;
}

export interface AdmittedPod {
  readonly apiVersion: 'v1';
  readonly kind: 'Pod';
  readonly metadata: {
    readonly name: string;
    readonly namespace: string;
    readonly resourceVersion?: string;
    readonly labels: Record<string, string>;
    readonly annotations: Record<string, string>;
  };
  readonly spec: Record<string, unknown>;
}

const hostMessage = 'pods on leased nodes have no access to the host';

const objectName: Rule = (value, path, admission) => {
  if (value === null || value === '') return left;
  if (typeof value !== 'string' || !isObjectName(value))
    return refuse(admission, path, 'is not a name of an object', value);
  return value;
};

const quantity: Rule = (value, path, admission) => {
  if (typeof value !== 'string' && typeof value !== 'number') return refuse(admission, path, 'must be a quantity');
  try {
    if (parseQuantity(value) < 0n) return refuse(admission, path, 'must not be negative', value);
  } catch (error) {
    if (!(error instanceof QuantityError)) throw error;
    return refuse(admission, path, error.message);
  }
  return String(value);
};

// --- environment -----------------------------------------------------------------------------------------------------

const fieldPaths =
  /^(metadata\.(name|namespace|uid)|metadata\.(labels|annotations)(\['[^']{1,317}'\])?|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs))$/;

const fieldRef = fields({
  apiVersion: leave,
  fieldPath: (value, path, admission) =>
    typeof value === 'string' && fieldPaths.test(value)
      ? value
      : refuse(admission, path, 'is not a field that can be referred to', value),
});

const resourceFieldRef = fields({
  containerName: text(63),
  resource: oneOf(
    [
      'limits.cpu',
      'limits.memory',
      'limits.ephemeral-storage',
      'requests.cpu',
      'requests.memory',
      'requests.ephemeral-storage',
    ],
    'is not a resource that can be referred to',
  ),
  divisor: wholeOrText,
});

const keyRef = fields({ name: objectName, key: text(253), optional: flag });

const envVariable = fields(
  {
    name: text(512),
    value: text(131_072),
    valueFrom: fields({
      fieldRef,
      resourceFieldRef,
      configMapKeyRef: keyRef,
      secretKeyRef: keyRef,
      // The file is of the pod's own scratch space; the variable's name, which is what matters, stands here.
      fileKeyRef: fields({ volumeName: text(63), path: text(), key: text(253), optional: flag }),
    }),
  },
  (kept, path, admission) => {
    const { name, value } = kept as { name?: string; value?: string };
    if (typeof name !== 'string' || name === '') return refuse(admission, `${path}.name`, 'is missing');
    if (isDeviceVariable(name) && !(typeof value === 'string' && isHarmlessValue(name, value))) {
      return refuse(
        admission,
        `${path}.name`,
        `${name} chooses devices, which only the resource ${gpuResource} may do: remove the variable`,
        name,
      );
    }
    return kept;
  },
);

const envSource = fields({
  prefix: (value, path, admission) => {
    if (value === '' || value === null) return left;
    if (typeof value !== 'string') return refuse(admission, path, 'must be a string');
    return makesDeviceVariable(value)
      ? refuse(admission, path, 'could make a variable that chooses devices: use another prefix', value)
      : value;
  },
  configMapRef: fields({ name: objectName, optional: flag }),
  secretRef: fields({ name: objectName, optional: flag }),
});

// --- security --------------------------------------------------------------------------------------------------------

const confined = fields({
  type: oneOf(['RuntimeDefault'], 'must be RuntimeDefault: profiles of the host, and none, are not available'),
  localhostProfile: never('profiles of the host are not available'),
});

const seLinux = fields({
  level: text(256),
  type: oneOf(
    ['', 'container_t', 'container_init_t', 'container_kvm_t', 'container_engine_t'],
    'is not a type that containers may have',
  ),
  user: never('must not be set'),
  role: never('must not be set'),
});

const windows = never('Windows containers are not supported');

const containerSecurity = fields({
  privileged: never(`privileged containers are refused: ${hostMessage}`),
  allowPrivilegeEscalation: flag,
  capabilities: fields({
    add: list((value, path, admission) => {
      const name = typeof value === 'string' ? value.replace(/^CAP_/, '') : '';
      return baselineCapabilities.includes(name)
        ? value
        : refuse(admission, path, 'is a capability that pods on leased nodes may not add', value);
    }, 64),
    drop: list(text(64), 64),
  }),
  runAsUser: whole,
  runAsGroup: whole,
  runAsNonRoot: flag,
  readOnlyRootFilesystem: flag,
  procMount: oneOf(['Default'], 'must be Default'),
  seccompProfile: confined,
  appArmorProfile: confined,
  seLinuxOptions: seLinux,
  windowsOptions: windows,
});

const podSecurity = fields({
  runAsUser: whole,
  runAsGroup: whole,
  runAsNonRoot: flag,
  supplementalGroups: list(whole, 256),
  supplementalGroupsPolicy: oneOf(['Merge', 'Strict'], 'must be Merge or Strict'),
  fsGroup: whole,
  fsGroupChangePolicy: oneOf(['OnRootMismatch', 'Always'], 'must be OnRootMismatch or Always'),
  seccompProfile: confined,
  appArmorProfile: confined,
  seLinuxOptions: seLinux,
  seLinuxChangePolicy: oneOf(['MountOption', 'Recursive'], 'must be MountOption or Recursive'),
  windowsOptions: windows,
  sysctls: list(
    fields({
      name: (value, path, admission) =>
        typeof value === 'string' && safeSysctls.includes(value)
          ? value
          : refuse(admission, path, 'is not a sysctl that pods on leased nodes may set', value),
      value: text(256),
    }),
    64,
  ),
});

// --- containers ------------------------------------------------------------------------------------------------------

const noHost = never(
  'a probe or hook must not name another host: the kubelet would call it from the provider’s network',
);

const handler = {
  exec: fields({ command: list(text(131_072), 1024) }),
  httpGet: fields({
    path: text(),
    port: wholeOrText,
    host: noHost,
    scheme: oneOf(['HTTP', 'HTTPS'], 'must be HTTP or HTTPS'),
    httpHeaders: list(fields({ name: text(256), value: text() }), 64),
  }),
  tcpSocket: fields({ port: wholeOrText, host: noHost }),
};

const probe = fields({
  ...handler,
  grpc: fields({ port: whole, service: text(256) }),
  initialDelaySeconds: whole,
  timeoutSeconds: whole,
  periodSeconds: whole,
  successThreshold: whole,
  failureThreshold: whole,
  terminationGracePeriodSeconds: whole,
});

const hook = fields({ ...handler, sleep: fields({ seconds: whole }) });

const amounts: Rule = (value, path, admission) => {
  const kept = mapOf(quantity, 16)(value, path, admission);
  if (!isObject(kept)) return kept;
  for (const name of Object.keys(kept)) {
    if (!['cpu', 'memory', 'ephemeral-storage', gpuResource].includes(name)) {
      refuse(
        admission,
        `${path}[${name.slice(0, 80)}]`,
        `is not a resource of a leased node; there are cpu, memory, ephemeral-storage and ${gpuResource}`,
      );
    }
  }
  return kept;
};

/** What a pod as a whole may ask for; everything else is its containers' to ask for. */
const podAmounts: Rule = (value, path, admission) => {
  const kept = amounts(value, path, admission);
  if (!isObject(kept)) return kept;
  for (const name of Object.keys(kept)) {
    if (name !== 'cpu' && name !== 'memory')
      refuse(admission, `${path}[${name}]`, 'is not asked for by whole pods: set it on a container');
  }
  return kept;
};

const mountPath: Rule = (value, path, admission) => {
  if (typeof value !== 'string' || value === '') return refuse(admission, path, 'must be a path');
  return isDeviceListPath(value)
    ? refuse(admission, path, `is where devices are chosen, which only the resource ${gpuResource} may do`, value)
    : value;
};

const containerRules: Readonly<Record<string, Rule>> = {
  name: text(63),
  image: text(1024),
  command: list(text(131_072), 4096),
  args: list(text(131_072), 4096),
  workingDir: text(),
  ports: list(
    fields({
      name: text(63),
      containerPort: whole,
      protocol: oneOf(['TCP', 'UDP', 'SCTP'], 'must be TCP, UDP or SCTP'),
      hostPort: never(`ports of the host are refused: ${hostMessage}`),
      hostIP: never(`addresses of the host are refused: ${hostMessage}`),
    }),
    256,
  ),
  env: list(envVariable, 4096),
  envFrom: list(envSource, 256),
  resources: fields({
    requests: amounts,
    limits: amounts,
    claims: never('dynamic resource claims are not supported yet'),
  }),
  resizePolicy: list(
    fields({
      resourceName: oneOf(['cpu', 'memory'], 'must be cpu or memory'),
      restartPolicy: oneOf(['NotRequired', 'RestartContainer'], 'must be NotRequired or RestartContainer'),
    }),
    8,
  ),
  restartPolicy: oneOf(['Always', 'OnFailure', 'Never'], 'must be Always, OnFailure or Never'),
  restartPolicyRules: list(
    fields({
      action: oneOf(['Restart', 'RestartAllContainers'], 'must be Restart or RestartAllContainers'),
      exitCodes: fields({
        operator: oneOf(['In', 'NotIn'], 'must be In or NotIn'),
        values: list(whole, 255),
      }),
    }),
    20,
  ),
  volumeMounts: list(
    fields({
      name: text(63),
      mountPath,
      subPath: text(),
      subPathExpr: text(),
      readOnly: flag,
      recursiveReadOnly: oneOf(['Disabled', 'IfPossible', 'Enabled'], 'must be Disabled, IfPossible or Enabled'),
      mountPropagation: oneOf(['None', 'HostToContainer'], `must be None or HostToContainer: ${hostMessage}`),
    }),
    256,
  ),
  volumeDevices: never('block devices are not supported'),
  livenessProbe: probe,
  readinessProbe: probe,
  startupProbe: probe,
  lifecycle: fields({ postStart: hook, preStop: hook, stopSignal: text(32) }),
  terminationMessagePath: text(),
  terminationMessagePolicy: oneOf(['File', 'FallbackToLogsOnError'], 'must be File or FallbackToLogsOnError'),
  imagePullPolicy: oneOf(['Always', 'IfNotPresent', 'Never'], 'must be Always, IfNotPresent or Never'),
  securityContext: containerSecurity,
  stdin: flag,
  stdinOnce: flag,
  tty: flag,
};

/** They share the pod's limits, and may have none of their own: Kubernetes refuses those. */
const ephemeralRules: Readonly<Record<string, Rule>> = {
  ...containerRules,
  resources: never('ephemeral containers ask for no resources'),
  targetContainerName: text(63),
};

// --- volumes ---------------------------------------------------------------------------------------------------------

const keyPath = fields({ key: text(253), path: text(), mode: whole });
const downwardItem = fields({ path: text(), mode: whole, fieldRef, resourceFieldRef });

const projectedRules = {
  configMap: fields({ name: objectName, items: list(keyPath), optional: flag }),
  secret: fields({ name: objectName, items: list(keyPath), optional: flag }),
  downwardAPI: fields({ items: list(downwardItem) }),
};
export const projectedSources: readonly string[] = Object.keys(projectedRules);

/** Kinds of volumes that every tenant may have. */
export const admittedVolumes = [
  'emptyDir',
  'configMap',
  'secret',
  'downwardAPI',
  'projected',
  'image',
  'persistentVolumeClaim',
] as const;

const volumeKinds: Readonly<Record<string, Rule>> = {
  name: text(63),
  emptyDir: fields({
    medium: oneOf(['', 'Memory'], 'must be empty or Memory'),
    sizeLimit: (value, path, admission) => (value === null ? left : quantity(value, path, admission)),
  }),
  configMap: fields({ name: objectName, items: list(keyPath), defaultMode: whole, optional: flag }),
  secret: fields({ secretName: objectName, items: list(keyPath), defaultMode: whole, optional: flag }),
  downwardAPI: fields({ items: list(downwardItem), defaultMode: whole }),
  projected: fields({
    defaultMode: whole,
    sources: list(
      fields({
        ...projectedRules,
        serviceAccountToken: never('service account tokens of the provider are not given to pods'),
        clusterTrustBundle: never('trust bundles of the provider are not given to pods'),
        podCertificate: never('certificates of the provider are not given to pods'),
      }),
      64,
    ),
  }),
  hostPath: hostOnly(fields({ path: text(), type: text(32) }), `hostPath volumes are refused: ${hostMessage}`),
  image: fields({
    reference: text(1024),
    pullPolicy: oneOf(['Always', 'IfNotPresent', 'Never'], 'must be Always, IfNotPresent or Never'),
  }),
  // A claim of the tenant's own namespace, made through here or not at all.
  persistentVolumeClaim: fields({ claimName: objectName, readOnly: flag }),
  ephemeral: never('claims are made by themselves: make one, and name it in persistentVolumeClaim'),
  csi: never('CSI volumes are not supported on leased nodes'),
};

const volume: Rule = (value, path, admission) => {
  if (isObject(value)) {
    const unknown = Object.keys(value).find((key) => !Object.hasOwn(volumeKinds, key));
    if (unknown !== undefined) {
      return refuse(
        admission,
        `${path}.${unknown.slice(0, 80)}`,
        `is not a kind of volume for leased nodes; there are ${admittedVolumes.slice(0, -1).join(', ')} and ${admittedVolumes.at(-1)}`,
      );
    }
  }
  return fields(volumeKinds)(value, path, admission);
};

// --- the pod ---------------------------------------------------------------------------------------------------------

const specRules: Readonly<Record<string, Rule>> = {
  containers: list(fields(containerRules), 64),
  initContainers: list(fields(containerRules), 64),
  volumes: list(volume, 256),
  restartPolicy: oneOf(['Always', 'OnFailure', 'Never'], 'must be Always, OnFailure or Never'),
  terminationGracePeriodSeconds: whole,
  activeDeadlineSeconds: whole,
  dnsPolicy: oneOf(['ClusterFirst', 'ClusterFirstWithHostNet', 'Default', 'None'], 'is not a dnsPolicy'),
  dnsConfig: fields({
    nameservers: list(text(64), 3),
    searches: list(text(256), 32),
    options: list(fields({ name: text(256), value: text(256) }), 64),
  }),
  hostname: text(64),
  subdomain: text(63),
  hostnameOverride: text(64),
  setHostnameAsFQDN: flag,
  hostAliases: list(fields({ ip: text(64), hostnames: list(text(253), 64) }), 256),
  imagePullSecrets: list(fields({ name: objectName }), 16),
  securityContext: podSecurity,
  shareProcessNamespace: flag,
  readinessGates: list(fields({ conditionType: text(317) }), 16),
  os: fields({ name: oneOf(['linux'], 'must be linux') }),
  hostUsers: oneOf([false, true], 'must be true or false'),

  hostNetwork: hostOnly(flag, `hostNetwork is refused: ${hostMessage}`),
  hostPID: never(`hostPID is refused: ${hostMessage}`),
  hostIPC: never(`hostIPC is refused: ${hostMessage}`),
  nodeName: never('is the gateway’s to choose'),
  ephemeralContainers: never('ephemeral containers come to a pod that runs: create it without'),
  resourceClaims: never('dynamic resource claims are not supported yet'),
  resources: fields({
    requests: podAmounts,
    limits: podAmounts,
    claims: never('dynamic resource claims are not supported yet'),
  }),
  schedulingGates: never('must be empty: the pod would never start'),

  serviceAccountName: leave,
  serviceAccount: leave,
  automountServiceAccountToken: leave,
  nodeSelector: leave,
  affinity: leave,
  tolerations: leave,
  topologySpreadConstraints: leave,
  schedulerName: leave,
  schedulingGroup: leave,
  workloadRef: leave,
  priority: leave,
  priorityClassName: leave,
  preemptionPolicy: leave,
  runtimeClassName: leave,
  overhead: leave,
  enableServiceLinks: leave,
};

const admitSpec = fields(specRules);
const admitChangedSpec = fields({ ...specRules, ephemeralContainers: list(fields(ephemeralRules), 64) });

const mayTenantSet = (key: string): boolean =>
  key.startsWith(`${group}/`) &&
  !([ownLabels.offered, ownLabels.tenant, ownLabels.leaseId, ownLabels.lease] as string[]).includes(key);

/**
 * Labels and annotations outside our own group are left out: in the provider's cluster they mean something to somebody
 * (service meshes, identity webhooks, CNI plugins, CDI), and that is not the tenant's to say.
 */
export const ownKeys = (value: unknown): Record<string, string> =>
  isObject(value)
    ? Object.fromEntries(
        Object.entries(value).filter(
          (entry): entry is [string, string] => mayTenantSet(entry[0]) && typeof entry[1] === 'string',
        ),
      )
    : {};

/** On everything of a tenant. */
export const tenantLabels = (leaseId: string): Record<string, string> => ({
  [ownLabels.managedBy]: managedBy,
  [ownLabels.leaseId]: leaseId,
  [ownLabels.tenant]: 'true',
});

/** An annotation that asks for devices is refused, not dropped: its author expects something of it. */
function refuseDeviceAnnotations(annotations: unknown, admission: Admission): void {
  if (!isObject(annotations)) return;
  for (const key of Object.keys(annotations)) {
    if (isDeviceAnnotation(key)) {
      refuse(
        admission,
        `metadata.annotations[${key.slice(0, 80)}]`,
        `chooses devices, which only the resource ${gpuResource} may do`,
      );
    }
  }
}

interface Amounts {
  requests?: Record<string, string>;
  limits?: Record<string, string>;
}
interface Container {
  image?: string;
  securityContext?: Record<string, unknown>;
  env?: { name: string; value?: string }[];
  resources?: Amounts;
}

/** Volumes made of an image are run by nobody, but are downloaded and unpacked all the same. */
function refuseImageVolumes(volumes: unknown, rules: ImageRules, admission: Admission): void {
  if (!Array.isArray(volumes)) return;
  volumes.forEach((volume: { image?: { reference?: string } }, index) => {
    const reference = volume.image?.reference;
    const why = reference === undefined ? undefined : imageRefusal(reference, rules);
    if (why !== undefined) refuse(admission, `spec.volumes[${index}].image.reference`, why, reference);
  });
}

/** The most that may be asked for of each resource, and whose limit that is. */
type Caps = readonly { readonly name: string; readonly most: bigint; readonly text: string; readonly whose: string }[];

const capsOf = (room: Room): Caps =>
  [
    { name: 'cpu', most: BigInt(room.cpuMillis), text: cpuText(room.cpuMillis) },
    { name: 'memory', most: BigInt(room.memoryBytes) * 1000n, text: bytesText(room.memoryBytes) },
    { name: 'ephemeral-storage', most: BigInt(room.ephemeralBytes) * 1000n, text: bytesText(room.ephemeralBytes) },
  ].map((cap) => ({ ...cap, whose: 'the lease' }));

/** Those of a container in a pod that has limits as a whole. */
const within = (limits: Readonly<Record<string, string>>, caps: Caps): Caps =>
  caps.map((cap) => {
    const own = limits[cap.name];
    return own === undefined ? cap : { name: cap.name, most: parseQuantity(own), text: own, whose: 'the pod' };
  });

/** The resources of the pod as a whole, where it asks for any. Containers that ask for the same stand for a missing request. */
function podResources(
  asked: Amounts | undefined,
  containers: readonly Container[],
  caps: Caps,
  admission: Admission,
): { requests: Record<string, string>; limits: Record<string, string> } | undefined {
  if (Object.keys({ ...asked?.requests, ...asked?.limits }).length === 0) return undefined;
  const requests = { ...asked?.requests };
  const limits = { ...asked?.limits };
  for (const { name, most, text } of caps) {
    if (name === 'ephemeral-storage') continue;
    const sumsUp = containers.some(({ resources }) => resources?.requests?.[name] ?? resources?.limits?.[name]);
    if (requests[name] === undefined && limits[name] !== undefined && !sumsUp) requests[name] = limits[name];
    const request = requests[name];
    if (request !== undefined && parseQuantity(request) > most)
      refuse(admission, `spec.resources.requests[${name}]`, `is more than the lease has (${text})`, request);
    const limit = limits[name];
    if (limit === undefined || parseQuantity(limit) > most) limits[name] = text;
  }
  return { requests, limits };
}

function withLimits(
  container: Container,
  path: string,
  caps: Caps,
  gpusLeased: number,
  admission: Admission,
): Container {
  const requests = { ...container.resources?.requests };
  const limits = { ...container.resources?.limits };
  for (const { name, most, text, whose } of caps) {
    requests[name] ??= limits[name] ?? '0';
    if (parseQuantity(requests[name]) > most) {
      refuse(admission, `${path}.resources.requests[${name}]`, `is more than ${whose} has (${text})`, requests[name]);
    }
    const limit = limits[name];
    if (limit === undefined || parseQuantity(limit) > most) limits[name] = text;
  }
  const gpus = limits[gpuResource] ?? requests[gpuResource];
  if (gpus !== undefined) {
    if (parseQuantity(gpus) > BigInt(gpusLeased) * 1000n) {
      refuse(admission, `${path}.resources.limits[${gpuResource}]`, `is more than the lease has (${gpusLeased})`, gpus);
    }
    if (parseQuantity(requests[gpuResource] ?? gpus) !== parseQuantity(gpus)) {
      refuse(admission, `${path}.resources.requests[${gpuResource}]`, 'must equal the limit', requests[gpuResource]);
    }
    limits[gpuResource] = gpus;
    requests[gpuResource] = gpus;
  }
  return { ...container, resources: { requests, limits } };
}

const asksForGpu = (container: Container): boolean => {
  const gpus = container.resources?.limits?.[gpuResource];
  return gpus !== undefined && parseQuantity(gpus) > 0n;
};

/** The container as the node's device plugin understands it: GPUs asked for under the name that they have there. */
function calling(container: Container, device: string): Container {
  if (device === gpuResource || container.resources === undefined) return container;
  const renamed = (amounts: Record<string, string> | undefined) =>
    amounts &&
    Object.fromEntries(Object.entries(amounts).map(([name, amount]) => [name === gpuResource ? device : name, amount]));
  return {
    ...container,
    resources: { requests: renamed(container.resources.requests), limits: renamed(container.resources.limits) },
  };
}

/** Set in the container itself, so that it wins over envFrom and over the image's own environment. */
function withoutDevices(container: Container): Container {
  if (asksForGpu(container)) {
    // An image may bring the variable; the device plugin's value must win, so ours must not be there at all.
    return { ...container, env: (container.env ?? []).filter((one) => one.name !== visibleDevices) };
  }
  const env = (container.env ?? []).filter((one) => one.name !== visibleDevices);
  return { ...container, env: [...env, { name: visibleDevices, value: 'void' }] };
}

/**
 * The pod as it will be created, or a Refusal that names every field in the way. `running`: it is there, and this is what it
 * should become; only then may it have ephemeral containers.
 */
export function admitPod(pod: unknown, context: PodContext, running = false): AdmittedPod {
  const rules = context.rules ?? plainRules;
  const admission: Admission = { errors: [], hostAccess: context.profile === 'trusted' };
  if (!isObject(pod) || !isObject(pod.metadata) || !isObject(pod.spec)) {
    throw new Refusal(400, 'the body is not a pod with metadata and spec');
  }
  if ((pod.apiVersion ?? 'v1') !== 'v1' || (pod.kind ?? 'Pod') !== 'Pod')
    throw new Refusal(400, 'the body is not a v1 Pod');
  const { name, namespace, resourceVersion, annotations, labels, generateName } = pod.metadata;
  if (typeof name !== 'string' || !isObjectName(name)) {
    refuse(
      admission,
      'metadata.name',
      generateName === undefined ? 'is missing or not a name' : 'must be given: names are not generated',
      name,
    );
  }
  if (namespace !== undefined && namespace !== context.namespace) {
    refuse(admission, 'metadata.namespace', 'is the gateway’s to choose: leave it out', namespace);
  }
  refuseDeviceAnnotations(annotations, admission);

  const admit = running ? admitChangedSpec : admitSpec;
  const { resources: asked, ...spec } = admit(pod.spec, 'spec', admission) as Record<string, unknown>;
  const listed = (list: unknown): Container[] => (Array.isArray(list) ? (list as Container[]) : []);
  // What is not well-formed is not counted.
  const wellFormed = admission.errors.length === 0;
  const caps = capsOf(context.room);
  const whole = wellFormed
    ? podResources(
        asked as Amounts | undefined,
        [...listed(spec.containers), ...listed(spec.initContainers)],
        caps,
        admission,
      )
    : undefined;
  const containerCaps = whole === undefined ? caps : within(whole.limits, caps);
  const complete = (list: unknown, path: string): Container[] =>
    listed(list).map((container, index) =>
      wellFormed
        ? withoutDevices(withLimits(container, `${path}[${index}]`, containerCaps, context.room.gpus, admission))
        : container,
    );
  const containers = complete(spec.containers, 'spec.containers');
  const initContainers = complete(spec.initContainers, 'spec.initContainers');
  const ephemeralContainers = listed(spec.ephemeralContainers).map(withoutDevices);
  const isRestricted = rules.podSecurity === 'restricted' && context.profile !== 'trusted';
  const securityContext = isRestricted ? restrictPod(spec.securityContext, admission) : spec.securityContext;
  /** By the provider's own rules, and under the names that its nodes use. */
  const finish = (list: readonly Container[], name: string): Container[] =>
    list.map((container, index) => {
      const path = `spec.${name}[${index}]`;
      const why = container.image === undefined ? undefined : imageRefusal(container.image, rules.images);
      if (why !== undefined) refuse(admission, `${path}.image`, why, container.image);
      const called = calling(container, context.device ?? gpuResource);
      return isRestricted
        ? restrictContainer(called, path, securityContext as Record<string, unknown>, admission)
        : called;
    });
  const finished = {
    containers: finish(containers, 'containers'),
    initContainers: finish(initContainers, 'initContainers'),
    ephemeralContainers: finish(ephemeralContainers, 'ephemeralContainers'),
  };
  refuseImageVolumes(spec.volumes, rules.images, admission);
  if (containers.length === 0) refuse(admission, 'spec.containers', 'is missing or empty');

  if (admission.errors.length > 0) {
    const first = admission.errors[0]!;
    throw new Refusal('PodRefused', `${first.field}: ${first.message}`, { errors: admission.errors });
  }
  const usesGpu = [...containers, ...initContainers].some(asksForGpu);
  const runtimeClass = (usesGpu ? rules.gpuRuntimeClass : undefined) ?? rules.runtimeClass;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: name as string,
      namespace: context.namespace,
      ...(typeof resourceVersion === 'string' ? { resourceVersion } : {}),
      labels: {
        ...ownKeys(labels),
        ...tenantLabels(context.leaseId),
      },
      annotations: ownKeys(annotations),
    },
    spec: {
      ...spec,
      containers: finished.containers,
      ...(initContainers.length > 0 ? { initContainers: finished.initContainers } : {}),
      ...(ephemeralContainers.length > 0 ? { ephemeralContainers: finished.ephemeralContainers } : {}),
      ...(securityContext === undefined ? {} : { securityContext }),
      ...(whole === undefined ? {} : { resources: whole }),
      dnsPolicy:
        spec.dnsPolicy === 'ClusterFirstWithHostNet' && spec.hostNetwork !== true
          ? 'ClusterFirst'
          : (spec.dnsPolicy ?? 'ClusterFirst'),
      serviceAccountName: 'default',
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      ...(runtimeClass === undefined ? {} : { runtimeClassName: runtimeClass }),
      // By field, not by label: labels of a node can be given to another. The scheduler looks at this node alone.
      affinity: {
        nodeAffinity: {
          requiredDuringSchedulingIgnoredDuringExecution: {
            nodeSelectorTerms: [
              { matchFields: [{ key: 'metadata.name', operator: 'In', values: [context.nodeName] }] },
            ],
          },
        },
      },
      tolerations: toleratedTaints.map(({ key, effect }) => ({ key, operator: 'Exists', effect })),
    },
  };
}
