/**
 * Claims of a tenant to the provider's storage: a size and how it is mounted. From which class, and which volume, is the
 * provider's to choose: a claim that named a volume or a source could lay hands on what somebody else stored there.
 */
import { formatBytes, parseQuantity, QuantityError } from '../quantity.ts';
import { ownKeys, tenantLabels } from './admit-pod.ts';
import { type Admission, isObject, refuse } from './fields.ts';
import { isObjectName } from './kube-path.ts';
import { Refusal } from './refusal.ts';
import { bytesText } from './room.ts';
import type { TenantStorage } from './tenant.ts';

export interface ClaimContext {
  readonly namespace: string;
  readonly leaseId: string;
  /** Absent: the tenant may store nothing. */
  readonly storage?: TenantStorage;
}

/** All of a lease's pods are on one node, so more would never be used. */
const accessModes: readonly unknown[] = ['ReadWriteOnce', 'ReadWriteOncePod'];

export function admitClaim(claim: unknown, context: ClaimContext): Record<string, unknown> {
  const { storage } = context;
  if (storage === undefined)
    throw new Refusal(422, 'this provider offers no storage beyond the life of a pod: use emptyDir');
  if (!isObject(claim) || !isObject(claim.metadata) || !isObject(claim.spec))
    throw new Refusal(400, 'the body is not a PersistentVolumeClaim with metadata and spec');
  if ((claim.apiVersion ?? 'v1') !== 'v1' || (claim.kind ?? 'PersistentVolumeClaim') !== 'PersistentVolumeClaim')
    throw new Refusal(400, 'the body is not a v1 PersistentVolumeClaim');
  const admission: Admission = { errors: [] };
  const { metadata, spec } = claim;
  if (typeof metadata.name !== 'string' || !isObjectName(metadata.name))
    refuse(admission, 'metadata.name', 'is missing or not a name', metadata.name);
  if (metadata.namespace !== undefined && metadata.namespace !== context.namespace)
    refuse(admission, 'metadata.namespace', 'is the gateway’s to choose: leave it out', metadata.namespace);
  for (const key of Object.keys(claim))
    if (!['apiVersion', 'kind', 'metadata', 'spec'].includes(key))
      refuse(admission, key.slice(0, 80), 'is not a field of a claim that is made');
  for (const key of Object.keys(spec))
    if (!['accessModes', 'resources', 'volumeMode'].includes(key))
      refuse(admission, `spec.${key.slice(0, 80)}`, 'is the provider’s to choose: leave it out');
  const modes = spec.accessModes;
  if (!Array.isArray(modes) || modes.length !== 1 || !accessModes.includes(modes[0]))
    refuse(admission, 'spec.accessModes', `must be one of ${accessModes.join(', ')}`);
  if (spec.volumeMode !== undefined && spec.volumeMode !== 'Filesystem')
    refuse(admission, 'spec.volumeMode', 'must be Filesystem', spec.volumeMode);
  const size = admittedSize(spec.resources, storage, admission);
  if (admission.errors.length > 0) {
    const first = admission.errors[0]!;
    throw new Refusal(422, `${first.field}: ${first.message}`, { errors: admission.errors });
  }
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: {
      name: metadata.name,
      namespace: context.namespace,
      labels: { ...ownKeys(metadata.labels), ...tenantLabels(context.leaseId) },
      annotations: ownKeys(metadata.annotations),
    },
    spec: {
      accessModes: modes,
      volumeMode: 'Filesystem',
      storageClassName: storage.className,
      resources: { requests: { storage: size } },
    },
  };
}

function admittedSize(resources: unknown, storage: TenantStorage, admission: Admission): string | undefined {
  const path = 'spec.resources.requests.storage';
  const { requests, ...more } = isObject(resources) ? resources : {};
  const { storage: asked, ...others } = isObject(requests) ? requests : {};
  if (Object.keys(more).length + Object.keys(others).length > 0)
    refuse(admission, 'spec.resources', 'has requests.storage and nothing else');
  if (typeof asked !== 'string' && typeof asked !== 'number') {
    refuse(admission, path, 'is missing');
    return undefined;
  }
  try {
    const amount = parseQuantity(asked);
    if (amount <= 0n) refuse(admission, path, 'must be more than nothing', asked);
    if (amount > BigInt(storage.bytes) * 1000n)
      refuse(admission, path, `is more than this lease may store: ${bytesText(storage.bytes)}`, asked);
    return formatBytes(amount);
  } catch (error) {
    if (!(error instanceof QuantityError)) throw error;
    refuse(admission, path, error.message);
    return undefined;
  }
}
