/**
 * The consumer's pod as it is sent to the provider.
 *
 * Carried: what makes the containers what they are. Left behind: what placed the pod (affinity, tolerations, priority, node
 * name), its service account and token, its labels and annotations, which are nobody's business there. Refused at once, with
 * words for the pod: what no provider gives. The provider decides again by itself; nothing here is a fence for it.
 *
 * References to ConfigMaps and Secrets are renamed, and listed, so that only those are sent. Questions about itself
 * (`fieldRef`, `resourceFieldRef`) are answered with the consumer's values: in env as plain values, in files through
 * annotations of ours, which the downward API at the provider reads and refreshes.
 *
 * Missing so far: environment variables of the consumer's Services; volumes that are claims; device claims (DRA).
 */
import { annotations, gpuResource, group, labels, managedBy } from '../../api/labels.ts';
import { formatQuantity, parseQuantity, QuantityError } from '../quantity.ts';
import { answerField, answerResource, escapeExpansion, type SelfView } from './downward.ts';
import { remoteObjectName, remotePodName } from './names.ts';
import type { Container, DownwardItem, EnvVar, Pod, PodSpec, ProjectedSource, Volume } from './pod.ts';
import { podRequests } from './requests.ts';
import { sha256Hex } from './sha256.ts';

export type PodRefusal =
  | 'NamespaceNotAllowed'
  | 'HostAccessRefused'
  | 'PrivilegedRefused'
  | 'VolumeNotSupported'
  | 'LeaseExceeded'
  | 'ServiceAccountTokenNotCarried'
  | 'FieldNotSupported';

export interface Reference {
  readonly name: string;
  /** Nobody needs it: the pod starts without. */
  readonly optional: boolean;
}

export type Translation =
  | {
      readonly pod: Pod;
      readonly configMaps: readonly Reference[];
      readonly secrets: readonly Reference[];
      readonly refused?: undefined;
    }
  | { readonly refused: PodRefusal; readonly message: string };

/** On the remote pod: hash of what was sent, so that an unchanged pod is not sent again after a restart. */
export const carriedHash = `${group}/carried`;
/** On the remote pod: values that downward API files show, by hash of the field. */
export const downwardAnnotation = (field: string): string => `${group}/downward-${sha256Hex(field).slice(0, 16)}`;

/** Annotations of one pod may not be more in all (the API server's limit is 256 KiB); the rest is room for the provider's. */
const maxAnnotationBytes = 200_000;

const carriedPodFields = [
  'activeDeadlineSeconds',
  'dnsConfig',
  'dnsPolicy',
  'hostAliases',
  'hostUsers',
  'os',
  'resources',
  'restartPolicy',
  'runtimeClassName',
  'securityContext',
  'setHostnameAsFQDN',
  'shareProcessNamespace',
  'subdomain',
  'terminationGracePeriodSeconds',
] as const;

/** Settled here, or meaningless at the provider. */
const handledPodFields: ReadonlySet<string> = new Set([
  ...carriedPodFields,
  'affinity',
  'automountServiceAccountToken',
  'containers',
  'enableServiceLinks',
  'ephemeralContainers',
  'hostIPC',
  'hostNetwork',
  'hostPID',
  'hostname',
  'imagePullSecrets',
  'initContainers',
  'nodeName',
  'nodeSelector',
  'overhead',
  'preemptionPolicy',
  'priority',
  'priorityClassName',
  'readinessGates',
  'schedulerName',
  'schedulingGates',
  'schedulingGroup',
  'serviceAccount',
  'serviceAccountName',
  'tolerations',
  'topologySpreadConstraints',
  'volumes',
  'workloadRef',
]);

const carriedContainerFields = [
  'name',
  'image',
  'command',
  'args',
  'workingDir',
  'livenessProbe',
  'readinessProbe',
  'startupProbe',
  'lifecycle',
  'terminationMessagePath',
  'terminationMessagePolicy',
  'imagePullPolicy',
  'securityContext',
  'stdin',
  'stdinOnce',
  'tty',
  'restartPolicy',
  'restartPolicyRules',
  'resizePolicy',
  'targetContainerName',
] as const;
const handledContainerFields: ReadonlySet<string> = new Set([
  ...carriedContainerFields,
  'env',
  'envFrom',
  'ports',
  'resources',
  'volumeMounts',
]);

/** Pod Security "baseline": what any container may have. */
const baselineCapabilities: ReadonlySet<string> = new Set([
  'AUDIT_WRITE',
  'CHOWN',
  'DAC_OVERRIDE',
  'FOWNER',
  'FSETID',
  'KILL',
  'MKNOD',
  'NET_BIND_SERVICE',
  'SETFCAP',
  'SETGID',
  'SETPCAP',
  'SETUID',
  'SYS_CHROOT',
]);

class Refused extends Error {
  readonly reason: PodRefusal;
  constructor(reason: PodRefusal, message: string) {
    super(message);
    this.reason = reason;
  }
}

export function translatePod(pod: Pod, view: SelfView): Translation {
  try {
    return translate(pod, view);
  } catch (error) {
    if (error instanceof Refused) return { refused: error.reason, message: error.message };
    throw error;
  }
}

interface Work {
  readonly pod: Pod;
  readonly view: SelfView;
  readonly configMaps: Map<string, boolean>;
  readonly secrets: Map<string, boolean>;
  readonly annotations: Record<string, string>;
  /** Volumes that are not carried, and neither are their mounts. */
  readonly dropped: Set<string>;
}

function translate(pod: Pod, view: SelfView): Translation {
  const { spec } = pod;
  for (const field of ['hostNetwork', 'hostPID', 'hostIPC'])
    if (spec[field] === true && !(field === 'hostNetwork' && view.hostAccess))
      throw new Refused('HostAccessRefused', `spec.${field}: leased nodes give no access to the host`);
  refuseUnknown(spec, handledPodFields, 'spec');
  refuseMoreThanLeased(pod, view);

  const work: Work = {
    pod,
    view,
    configMaps: new Map(),
    secrets: new Map(),
    annotations: {
      [annotations.podNamespace]: pod.metadata.namespace ?? '',
      [annotations.podName]: pod.metadata.name,
      [annotations.podUid]: pod.metadata.uid ?? '',
    },
    dropped: new Set(),
  };
  const volumes = (spec.volumes ?? []).flatMap((volume, i) => carryVolume(volume, `spec.volumes[${i}]`, work));
  const remote: PodSpec = {
    ...pick(spec, carriedPodFields),
    ...(spec.hostNetwork === true && { hostNetwork: true }),
    // The provider's Services are not the consumer's.
    enableServiceLinks: false,
    automountServiceAccountToken: false,
    hostname: spec.hostname ?? hostnameOf(pod.metadata.name),
    containers: spec.containers.map((c, i) => carryContainer(c, `spec.containers[${i}]`, work)),
  };
  if (spec.initContainers?.length)
    remote.initContainers = spec.initContainers.map((c, i) => carryContainer(c, `spec.initContainers[${i}]`, work));
  if (spec.ephemeralContainers?.length)
    remote.ephemeralContainers = spec.ephemeralContainers.map((c, i) =>
      carryContainer(c, `spec.ephemeralContainers[${i}]`, work),
    );
  if (volumes.length > 0) remote.volumes = volumes;
  if (spec.imagePullSecrets?.length)
    remote.imagePullSecrets = spec.imagePullSecrets
      .filter((secret) => secret.name)
      .map((secret) => ({ name: secretName(secret.name!, true, work) }));

  const bytes = Object.values(work.annotations).reduce((sum, value) => sum + value.length, 0);
  if (bytes > maxAnnotationBytes)
    throw new Refused(
      'FieldNotSupported',
      `downward API files show ${bytes} bytes of metadata, at most ${maxAnnotationBytes} can be carried`,
    );
  const carried = {
    metadata: {
      name: remotePodName(pod.metadata.name, pod.metadata.uid ?? ''),
      labels: { [labels.managedBy]: managedBy },
      annotations: work.annotations,
    },
    spec: remote,
  };
  work.annotations[carriedHash] = sha256Hex(JSON.stringify(carried)).slice(0, 32);
  const list = (found: Map<string, boolean>) => [...found].map(([name, optional]) => ({ name, optional }));
  return {
    pod: { apiVersion: 'v1', kind: 'Pod', ...carried },
    configMaps: list(work.configMaps),
    secrets: list(work.secrets),
  };
}

function carryContainer(container: Container, path: string, work: Work): Container {
  refuseUnknown(container, handledContainerFields, path);
  const security = container.securityContext;
  if (security?.privileged === true)
    throw new Refused(
      'PrivilegedRefused',
      `${path}.securityContext.privileged: leased nodes run no privileged containers`,
    );
  if (security?.procMount !== undefined && security.procMount !== 'Default')
    throw new Refused('PrivilegedRefused', `${path}.securityContext.procMount: only Default is given`);
  const added = security?.capabilities?.add?.find((capability) => !baselineCapabilities.has(capability));
  if (added !== undefined)
    throw new Refused(
      'PrivilegedRefused',
      `${path}.securityContext.capabilities.add: ${added} is not given on leased nodes`,
    );
  if (container.resources?.claims?.length)
    throw new Refused('FieldNotSupported', `${path}.resources.claims: device claims are not carried yet`);

  const carried: Container = { ...pick(container, carriedContainerFields) };
  if (container.resources) carried.resources = pick(container.resources, ['limits', 'requests']);
  if (container.ports?.length)
    carried.ports = container.ports.map(({ hostPort, hostIP: _, ...port }, i) => {
      // With hostNetwork Kubernetes itself sets it, to the container's port, here and again at the provider.
      if (hostPort && work.pod.spec.hostNetwork !== true)
        throw new Refused(
          'HostAccessRefused',
          `${path}.ports[${i}].hostPort: leased nodes open no ports on the host; leave it out`,
        );
      return port;
    });
  if (container.env?.length)
    carried.env = container.env.map((env, i) => carryEnv(env, container, `${path}.env[${i}]`, work));
  if (container.envFrom?.length)
    carried.envFrom = container.envFrom.map(({ prefix, configMapRef, secretRef }) => ({
      ...(prefix === undefined ? {} : { prefix }),
      ...(configMapRef && {
        configMapRef: {
          ...configMapRef,
          name: configMapName(configMapRef.name ?? '', configMapRef.optional === true, work),
        },
      }),
      ...(secretRef && {
        secretRef: { ...secretRef, name: secretName(secretRef.name ?? '', secretRef.optional === true, work) },
      }),
    }));
  const mounts = container.volumeMounts?.filter((mount) => !work.dropped.has(mount.name));
  if (mounts?.length) carried.volumeMounts = mounts;
  return carried;
}

function carryEnv(env: EnvVar, container: Container, path: string, work: Work): EnvVar {
  const from = env.valueFrom;
  if (!from) return env;
  if (from.configMapKeyRef) {
    const ref = from.configMapKeyRef;
    const name = configMapName(ref.name ?? '', ref.optional === true, work);
    return { name: env.name, valueFrom: { configMapKeyRef: { ...ref, name } } };
  }
  if (from.secretKeyRef) {
    const ref = from.secretKeyRef;
    const name = secretName(ref.name ?? '', ref.optional === true, work);
    return { name: env.name, valueFrom: { secretKeyRef: { ...ref, name } } };
  }
  if (from.fieldRef) {
    const answer = answerField(work.pod, from.fieldRef.fieldPath, work.view);
    if ('native' in answer) return env;
    if ('value' in answer) return { name: env.name, value: escapeExpansion(answer.value) };
    throw new Refused(
      'FieldNotSupported',
      `${path}.valueFrom.fieldRef.fieldPath: ${from.fieldRef.fieldPath} is not known`,
    );
  }
  if (from.resourceFieldRef) {
    const value = answerResource(work.pod, container, from.resourceFieldRef, work.view);
    if (value === undefined)
      throw new Refused(
        'FieldNotSupported',
        `${path}.valueFrom.resourceFieldRef: ${from.resourceFieldRef.resource} is not known`,
      );
    return { name: env.name, value };
  }
  throw new Refused(
    'FieldNotSupported',
    `${path}.valueFrom.${Object.keys(from)[0] ?? ''}: not carried to leased nodes yet`,
  );
}

/** None for the token of the service account, which Kubernetes mounts into every pod. */
function carryVolume(volume: Volume, path: string, work: Work): Volume[] {
  const { name } = volume;
  if (isServiceAccountVolume(volume)) {
    work.dropped.add(name);
    return [];
  }
  if (volume.emptyDir) return [{ name, emptyDir: volume.emptyDir }];
  if (volume.image) return [{ name, image: volume.image }];
  if (volume.hostPath && work.view.hostAccess) return [{ name, hostPath: volume.hostPath }];
  if (volume.configMap) {
    const { configMap } = volume;
    const renamed = configMapName(configMap.name ?? '', configMap.optional === true, work);
    return [{ name, configMap: { ...configMap, name: renamed } }];
  }
  if (volume.secret) {
    const { secret } = volume;
    const renamed = secretName(secret.secretName ?? '', secret.optional === true, work);
    return [{ name, secret: { ...secret, secretName: renamed } }];
  }
  if (volume.downwardAPI) {
    const items = volume.downwardAPI.items?.map((item, i) => carryItem(item, `${path}.downwardAPI.items[${i}]`, work));
    return [{ name, downwardAPI: { ...volume.downwardAPI, items } }];
  }
  if (volume.projected) {
    const sources = volume.projected.sources?.map((source, i) =>
      carrySource(source, `${path}.projected.sources[${i}]`, work),
    );
    return [{ name, projected: { ...volume.projected, sources } }];
  }
  const kind = Object.keys(volume).find((key) => key !== 'name') ?? 'unknown';
  if (kind === 'hostPath')
    throw new Refused('HostAccessRefused', `${path}.hostPath: leased nodes give no access to the host's files`);
  throw new Refused(
    'VolumeNotSupported',
    `${path}.${kind}: leased nodes have emptyDir, configMap, secret, downwardAPI and projected volumes only`,
  );
}

function carrySource(source: ProjectedSource, path: string, work: Work): ProjectedSource {
  if (source.configMap) {
    const name = configMapName(source.configMap.name ?? '', source.configMap.optional === true, work);
    return { configMap: { ...source.configMap, name } };
  }
  if (source.secret) {
    const name = secretName(source.secret.name ?? '', source.secret.optional === true, work);
    return { secret: { ...source.secret, name } };
  }
  if (source.downwardAPI)
    return {
      downwardAPI: {
        items: source.downwardAPI.items?.map((item, i) => carryItem(item, `${path}.downwardAPI.items[${i}]`, work)),
      },
    };
  if (source.serviceAccountToken)
    throw new Refused(
      'ServiceAccountTokenNotCarried',
      `${path}.serviceAccountToken: tokens of this cluster are not sent to providers`,
    );
  throw new Refused('VolumeNotSupported', `${path}.${Object.keys(source)[0] ?? ''}: not carried to leased nodes`);
}

function carryItem(item: DownwardItem, path: string, work: Work): DownwardItem {
  const { fieldRef, resourceFieldRef, ...file } = item;
  let field: string;
  let value: string | undefined;
  if (fieldRef) {
    field = fieldRef.fieldPath;
    const answer = answerField(work.pod, field, work.view);
    if ('native' in answer) return item;
    if ('value' in answer) value = answer.value;
  } else {
    const ref = resourceFieldRef ?? { resource: '' };
    field = `${ref.containerName}/${ref.resource}/${ref.divisor ?? 1}`;
    value = answerResource(work.pod, undefined, ref, work.view);
  }
  if (value === undefined) throw new Refused('FieldNotSupported', `${path}: ${field} is not known`);
  const annotation = downwardAnnotation(field);
  work.annotations[annotation] = value;
  return { ...file, fieldRef: { apiVersion: 'v1', fieldPath: `metadata.annotations['${annotation}']` } };
}

/** As the ServiceAccount admission plugin makes it: by name, and with nothing in it that a user would have asked for. */
function isServiceAccountVolume(volume: Volume): boolean {
  const sources = volume.projected?.sources;
  return (
    volume.name.startsWith('kube-api-access-') &&
    sources?.length === 3 &&
    sources.some((s) => s.serviceAccountToken !== undefined) &&
    sources.some((s) => s.configMap?.name === 'kube-root-ca.crt') &&
    sources.some((s) => s.downwardAPI !== undefined)
  );
}

function refuseMoreThanLeased(pod: Pod, view: SelfView): void {
  try {
    for (const [resource, asked] of Object.entries(podRequests(pod))) {
      const given = parseQuantity(view.capacity[resource] ?? 0);
      if (asked > given)
        throw new Refused(
          'LeaseExceeded',
          `the pod asks for ${formatQuantity(asked)} ${resource}, the lease has ${formatQuantity(given)}${
            resource === gpuResource ? ': lease more GPUs, or ask for fewer' : ''
          }`,
        );
    }
  } catch (error) {
    if (error instanceof QuantityError) throw new Refused('FieldNotSupported', error.message);
    throw error;
  }
}

/** A field that nobody here has thought about might be the one that makes the pod safe, or right. */
function refuseUnknown(object: object, known: ReadonlySet<string>, path: string): void {
  for (const [field, value] of Object.entries(object)) {
    if (known.has(field) || value === undefined || value === null) continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw new Refused('FieldNotSupported', `${path}.${field}: not carried to leased nodes yet`);
  }
}

function configMapName(name: string, optional: boolean, work: Work): string {
  return rename('ConfigMap', name, optional, work.configMaps, work);
}

function secretName(name: string, optional: boolean, work: Work): string {
  return rename('Secret', name, optional, work.secrets, work);
}

function rename(
  kind: 'ConfigMap' | 'Secret',
  name: string,
  optional: boolean,
  found: Map<string, boolean>,
  work: Work,
): string {
  found.set(name, optional && (found.get(name) ?? true));
  return remoteObjectName(kind, work.pod.metadata.namespace ?? '', name);
}

/** The pod's name, as the kubelet gives it to a container, made a DNS label. */
function hostnameOf(podName: string): string {
  return podName.replaceAll('.', '-').slice(0, 63).replace(/-+$/, '');
}

function pick<T extends object, K extends keyof T>(object: T, fields: readonly K[]): Pick<T, K> {
  const picked: Partial<T> = {};
  for (const field of fields) if (object[field] !== undefined) picked[field] = object[field];
  return picked as Pick<T, K>;
}
