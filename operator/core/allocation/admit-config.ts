/**
 * ConfigMaps and Secrets of a tenant: data, and nothing that means more than data in the provider's cluster. A key that
 * would become a device-choosing variable through envFrom is refused here, as pods cannot be checked for it.
 *
 * A Secret may belong to one pod, so that it goes when the pod goes; whether the tenant has that pod is for the caller of
 * this to find out. Nothing else is owned here, and nothing else is an owner.
 */
import { ownKeys, tenantLabels } from './admit-pod.ts';
import { type Admission, isObject, refuse } from './fields.ts';
import { isDeviceVariable } from './gpu-variables.ts';
import { isObjectName } from './kube-path.ts';
import { Refusal } from './refusal.ts';

/** A service account's token Secret would be filled by the provider's cluster: it is not on this list. */
export const secretTypes: readonly string[] = [
  'Opaque',
  'kubernetes.io/dockerconfigjson',
  'kubernetes.io/dockercfg',
  'kubernetes.io/tls',
  'kubernetes.io/basic-auth',
  'kubernetes.io/ssh-auth',
];

/** Put into every namespace by Kubernetes itself. */
const reservedNames: readonly string[] = ['kube-root-ca.crt'];

const textMap = (value: unknown, field: string, admission: Admission): Record<string, string> | undefined => {
  if (value === undefined || value === null) return undefined;
  if (!isObject(value)) {
    refuse(admission, field, 'must be an object');
    return undefined;
  }
  for (const [key, item] of Object.entries(value)) {
    const at = `${field}[${key.slice(0, 80)}]`;
    if (typeof item !== 'string') refuse(admission, at, 'must be a string');
    if (isDeviceVariable(key)) refuse(admission, at, 'chooses devices when used as a variable: use another key');
  }
  return value as Record<string, string>;
};

/** The pod that a Secret belongs to. */
export interface Owner {
  readonly name: string;
  readonly uid: string;
}

function ownerReference(kind: string, references: unknown, admission: Admission): object[] | undefined {
  if (references === undefined || references === null || (Array.isArray(references) && references.length === 0))
    return undefined;
  const field = 'metadata.ownerReferences';
  const [owner, ...others]: unknown[] = Array.isArray(references) ? references : [references];
  if (kind !== 'Secret' || others.length > 0 || !isObject(owner)) {
    refuse(admission, field, 'only a Secret may have an owner, and only one');
    return undefined;
  }
  const { apiVersion, kind: ownerKind, name, uid, ...more } = owner;
  const isPod = apiVersion === 'v1' && ownerKind === 'Pod' && typeof name === 'string' && isObjectName(name);
  if (!isPod || typeof uid !== 'string' || !/^[0-9a-zA-Z-]{1,64}$/.test(uid) || Object.values(more).some(Boolean)) {
    refuse(admission, field, 'must be a pod of the same lease, by name and uid, and no more than that');
    return undefined;
  }
  return [{ apiVersion, kind: ownerKind, name, uid }];
}

/** Of an object that was admitted. */
export function ownerOf(object: Readonly<Record<string, unknown>>): Owner | undefined {
  return (object.metadata as { ownerReferences?: readonly Owner[] }).ownerReferences?.[0];
}

export function admitConfig(
  kind: 'ConfigMap' | 'Secret',
  object: unknown,
  context: { readonly namespace: string; readonly leaseId: string },
): Record<string, unknown> {
  if (!isObject(object) || !isObject(object.metadata))
    throw new Refusal(400, `the body is not a ${kind} with metadata`);
  if ((object.apiVersion ?? 'v1') !== 'v1' || (object.kind ?? kind) !== kind) {
    throw new Refusal(400, `the body is not a v1 ${kind}`);
  }
  const admission: Admission = { errors: [] };
  const { metadata } = object;
  const known = [
    'apiVersion',
    'kind',
    'metadata',
    'data',
    'immutable',
    ...(kind === 'Secret' ? ['stringData', 'type'] : ['binaryData']),
  ];
  for (const key of Object.keys(object)) {
    if (!known.includes(key)) refuse(admission, key.slice(0, 80), `is not a field of a ${kind}`);
  }
  if (typeof metadata.name !== 'string' || !isObjectName(metadata.name) || reservedNames.includes(metadata.name)) {
    refuse(admission, 'metadata.name', 'is missing, reserved or not a name', metadata.name);
  }
  if (metadata.namespace !== undefined && metadata.namespace !== context.namespace) {
    refuse(admission, 'metadata.namespace', 'is the gateway’s to choose: leave it out', metadata.namespace);
  }
  const data = textMap(object.data, 'data', admission);
  const binaryData = textMap(object.binaryData, 'binaryData', admission);
  const stringData = textMap(object.stringData, 'stringData', admission);
  const ownerReferences = ownerReference(kind, metadata.ownerReferences, admission);
  const type = object.type ?? 'Opaque';
  if (kind === 'Secret' && (typeof type !== 'string' || !secretTypes.includes(type))) {
    refuse(admission, 'type', `must be one of ${secretTypes.join(', ')}`, type);
  }
  if (object.immutable !== undefined && object.immutable !== null && typeof object.immutable !== 'boolean') {
    refuse(admission, 'immutable', 'must be true or false');
  }
  if (admission.errors.length > 0) {
    const first = admission.errors[0]!;
    throw new Refusal(422, `${first.field}: ${first.message}`, { errors: admission.errors });
  }
  return {
    apiVersion: 'v1',
    kind,
    metadata: {
      name: metadata.name,
      namespace: context.namespace,
      ...(typeof metadata.resourceVersion === 'string' ? { resourceVersion: metadata.resourceVersion } : {}),
      labels: { ...ownKeys(metadata.labels), ...tenantLabels(context.leaseId) },
      annotations: ownKeys(metadata.annotations),
      ...(ownerReferences === undefined ? {} : { ownerReferences }),
    },
    ...(kind === 'Secret' ? { type } : {}),
    ...(data === undefined ? {} : { data }),
    ...(binaryData === undefined ? {} : { binaryData }),
    ...(stringData === undefined ? {} : { stringData }),
    ...(typeof object.immutable === 'boolean' ? { immutable: object.immutable } : {}),
  };
}
