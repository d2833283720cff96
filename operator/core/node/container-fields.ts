/** Containers, their environment, probes and hooks. */
import { gpuResource } from '../../api/labels.ts';
import { parseQuantity } from '../quantity.ts';
import { carried, each, hostOnly, leftBehind, object, only, refer, refused, rewritten, type Work } from './carrying.ts';
import { answerField, answerResource, escapeExpansion } from './downward.ts';
import { carryObject, type ObjectTable, type Place, Refused } from './field-table.ts';
import type { Container, FieldRef, ResourceFieldRef } from './pod.ts';
import { containerSecurity } from './security-fields.ts';

// --- environment -----------------------------------------------------------------------------------------------------

/** An answer instead of a question. */
class Answered {
  readonly value: string;
  constructor(value: string) {
    this.value = value;
  }
}

export const fieldSelector: ObjectTable<Work> = {
  type: 'ObjectFieldSelector',
  fields: { apiVersion: carried(), fieldPath: carried() },
};
export const resourceSelector: ObjectTable<Work> = {
  type: 'ResourceFieldSelector',
  fields: { containerName: carried(), divisor: carried(), resource: carried() },
};

const keySelector = (kind: 'ConfigMap' | 'Secret'): ObjectTable<Work> => ({
  type: `${kind}KeySelector`,
  fields: { name: rewritten('the name at the provider', named(kind)), key: carried(), optional: carried() },
});
const configMapKey = keySelector('ConfigMap');
const secretKey = keySelector('Secret');

/** Renames a ConfigMap or Secret, and notes that it is needed. */
export function named(kind: 'ConfigMap' | 'Secret') {
  return (value: unknown, { of, work }: Place<Work>) => refer(kind, value as string, of.optional === true, work);
}

const envSourceOf: ObjectTable<Work> = {
  type: 'EnvVarSource',
  fields: {
    configMapKeyRef: object(() => configMapKey, 'the ConfigMap is sent along'),
    secretKeyRef: object(() => secretKey, 'the Secret is sent along'),
    fieldRef: rewritten(
      'answered here, with the names of this cluster; only podIP and podIPs are answered by the provider',
      (value, { path, work }) => {
        const ref = carryObject(fieldSelector, value as object, path, work) as unknown as FieldRef;
        const answer = answerField(work.pod, ref.fieldPath, work.view);
        if ('native' in answer) return ref;
        if ('value' in answer) return new Answered(escapeExpansion(answer.value));
        throw new Refused('FieldNotSupported', `${path}.fieldPath: ${ref.fieldPath} is not known`);
      },
      () => fieldSelector,
    ),
    resourceFieldRef: rewritten(
      'answered here; limits that are not set are those of the leased node',
      (value, { path, work }) => {
        const ref = carryObject(resourceSelector, value as object, path, work) as unknown as ResourceFieldRef;
        const answer = answerResource(work.pod, work.container, ref, work.view);
        if (answer === undefined) throw new Refused('FieldNotSupported', `${path}: ${ref.resource} is not known`);
        return new Answered(answer);
      },
      () => resourceSelector,
    ),
    fileKeyRef: object(() => fileKey),
  },
};

const fileKey: ObjectTable<Work> = {
  type: 'FileKeySelector',
  fields: { volumeName: carried(), path: carried(), key: carried(), optional: carried() },
};

const envVar: ObjectTable<Work> = {
  type: 'EnvVar',
  fields: { name: carried(), value: carried(), valueFrom: object(() => envSourceOf) },
  also(env) {
    const answer = Object.values((env.valueFrom as object | undefined) ?? {}).find((from) => from instanceof Answered);
    return answer ? { name: env.name, value: answer.value } : env;
  },
};

const envFromRef = (kind: 'ConfigMap' | 'Secret'): ObjectTable<Work> => ({
  type: `${kind}EnvSource`,
  fields: { name: rewritten('the name at the provider', named(kind)), optional: carried() },
});
const configMapEnv = envFromRef('ConfigMap');
const secretEnv = envFromRef('Secret');

const envFrom: ObjectTable<Work> = {
  type: 'EnvFromSource',
  fields: {
    prefix: carried(),
    configMapRef: object(() => configMapEnv, 'the ConfigMap is sent along'),
    secretRef: object(() => secretEnv, 'the Secret is sent along'),
  },
};

// --- probes and hooks ------------------------------------------------------------------------------------------------

const otherHost = refused(
  'HostAccessRefused',
  'probes and hooks name no other host: the kubelet would call it from the provider’s network',
);
const exec: ObjectTable<Work> = { type: 'ExecAction', fields: { command: carried() } };
const header: ObjectTable<Work> = { type: 'HTTPHeader', fields: { name: carried(), value: carried() } };
const httpGet: ObjectTable<Work> = {
  type: 'HTTPGetAction',
  fields: { path: carried(), port: carried(), host: otherHost, scheme: carried(), httpHeaders: each(() => header) },
};
const tcpSocket: ObjectTable<Work> = { type: 'TCPSocketAction', fields: { port: carried(), host: otherHost } };
const sleep: ObjectTable<Work> = { type: 'SleepAction', fields: { seconds: carried() } };
const grpc: ObjectTable<Work> = { type: 'GRPCAction', fields: { port: carried(), service: carried() } };

const hook: ObjectTable<Work> = {
  type: 'LifecycleHandler',
  fields: {
    exec: object(() => exec),
    httpGet: object(() => httpGet),
    tcpSocket: object(() => tcpSocket),
    sleep: object(() => sleep),
  },
};
const lifecycle: ObjectTable<Work> = {
  type: 'Lifecycle',
  fields: { postStart: object(() => hook), preStop: object(() => hook), stopSignal: carried() },
};
const probe: ObjectTable<Work> = {
  type: 'Probe',
  fields: {
    exec: object(() => exec),
    httpGet: object(() => httpGet),
    tcpSocket: object(() => tcpSocket),
    grpc: object(() => grpc),
    initialDelaySeconds: carried(),
    timeoutSeconds: carried(),
    periodSeconds: carried(),
    successThreshold: carried(),
    failureThreshold: carried(),
    terminationGracePeriodSeconds: carried(),
  },
};

// --- the container ---------------------------------------------------------------------------------------------------

const port: ObjectTable<Work> = {
  type: 'ContainerPort',
  fields: {
    name: carried(),
    containerPort: carried(),
    protocol: carried(),
    hostPort: hostOnly('leased nodes open no ports on the host; leave it out', (_, { path, work }) => {
      // With hostNetwork Kubernetes itself sets it, to the container's port, here and again at the provider.
      if (work.pod.spec.hostNetwork === true) return undefined;
      throw new Refused('HostAccessRefused', `${path}: leased nodes open no ports on the host; leave it out`);
    }),
    hostIP: leftBehind('means nothing without hostPort'),
  },
};

/** Of a resource that the node does not have, nothing is asked for: more was refused before. */
const amounts = rewritten('cpu, memory, ephemeral-storage and GPUs, at most what is leased', (value) => {
  const kept = Object.entries(value as Record<string, string | number>).filter(
    ([name, quantity]) => leasedResources.has(name) || parseQuantity(quantity) > 0n,
  );
  return kept.length === 0 ? undefined : Object.fromEntries(kept);
});
const leasedResources: ReadonlySet<string> = new Set(['cpu', 'memory', 'ephemeral-storage', gpuResource]);

export const resources: ObjectTable<Work> = {
  type: 'ResourceRequirements',
  fields: {
    limits: amounts,
    requests: amounts,
    claims: refused(
      'FieldNotSupported',
      'device claims are not carried, except as counts of GPUs where the lease shows devices (node.gpusAs): ask for nvidia.com/gpu',
    ),
  },
};

const resizePolicy: ObjectTable<Work> = {
  type: 'ContainerResizePolicy',
  fields: { resourceName: carried(), restartPolicy: carried() },
};
const exitCodes: ObjectTable<Work> = {
  type: 'ContainerRestartRuleOnExitCodes',
  fields: { operator: carried(), values: carried() },
};
const restartRule: ObjectTable<Work> = {
  type: 'ContainerRestartRule',
  fields: { action: carried(), exitCodes: object(() => exitCodes) },
};

const mount: ObjectTable<Work> = {
  type: 'VolumeMount',
  fields: {
    name: carried(),
    mountPath: carried(),
    subPath: carried(),
    subPathExpr: carried(),
    readOnly: carried(),
    recursiveReadOnly: carried(),
    mountPropagation: only(
      ['None', 'HostToContainer'],
      'HostAccessRefused',
      'None and HostToContainer only: Bidirectional reaches the host',
    ),
  },
};

const fields: ObjectTable<Work>['fields'] = {
  name: carried(),
  image: carried('a later change is carried, too'),
  imagePullPolicy: carried(),
  command: carried(),
  args: carried(),
  workingDir: carried(),
  env: each(() => envVar),
  envFrom: each(() => envFrom, 'after the variables of this cluster’s Services'),
  ports: each(() => port),
  resources: object(() => resources, 'requests as they are; limits capped at the lease; cpu and memory may be resized'),
  resizePolicy: each(() => resizePolicy),
  restartPolicy: carried(),
  restartPolicyRules: each(() => restartRule),
  livenessProbe: object(() => probe),
  readinessProbe: object(() => probe),
  startupProbe: object(() => probe),
  lifecycle: object(() => lifecycle),
  securityContext: object(() => containerSecurity),
  stdin: carried(),
  stdinOnce: carried(),
  tty: carried(),
  terminationMessagePath: carried(),
  terminationMessagePolicy: carried(),
  volumeDevices: refused('VolumeNotSupported', 'leased nodes have no block devices for pods'),
  volumeMounts: rewritten(
    'without those of volumes that stay behind',
    (value, { path, work }) => {
      const mounts = (value as { name: string }[]).filter(({ name }) => !work.dropped.has(name));
      return mounts.length === 0 ? undefined : mounts.map((one, i) => carryObject(mount, one, `${path}[${i}]`, work));
    },
    () => mount,
    true,
  ),
};

/** The variables of Services come first, so that everything else in the container wins over them. */
const withServices: NonNullable<ObjectTable<Work>['also']> = (container, { work }) => {
  const first = { configMapRef: { name: work.services, optional: true } };
  return { ...container, envFrom: [first, ...((container.envFrom as object[] | undefined) ?? [])] };
};

export const containerTable: ObjectTable<Work> = { type: 'Container', fields, also: withServices };

export const ephemeralContainerTable: ObjectTable<Work> = {
  type: 'EphemeralContainer',
  fields: { ...fields, targetContainerName: carried() },
  also: withServices,
};

export function carryContainer(table: ObjectTable<Work>, container: Container, path: string, work: Work): Container {
  work.container = container;
  return carryObject(table, container, path, work) as unknown as Container;
}
