/**
 * PersistentVolumeClaims on the storage of a leased node's provider.
 *
 *   the scheduler selects a node of ours for a claim → a claim is made at its provider → a PersistentVolume here stands for it
 *   the claim goes, after the pods that use it → the claim at the provider goes → the PersistentVolume goes
 *
 * The data live at the provider, in the tenant of one lease, and go with it. A volume therefore belongs to one node and one
 * escrow: `lease id/claim at the provider` is its handle. One whose lease has ended is never filled anew under the same claim,
 * since its pods would take an empty disk for theirs; the claim says `DataLost`, and waits for a person.
 * https://kubernetes.io/docs/concepts/storage/persistent-volumes/
 */
import { annotations, group, labels, managedBy, storageClassName } from '../../api/labels.ts';
import { remoteClaimName, volumeName } from './names.ts';
import type { ObjectMeta, Pod, PodCondition } from './pod.ts';

export interface Claim {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  spec: {
    storageClassName?: string;
    volumeName?: string;
    accessModes?: string[];
    volumeMode?: string;
    resources?: { requests?: { storage?: string | number } };
    selector?: unknown;
    dataSource?: unknown;
    dataSourceRef?: unknown;
    volumeAttributesClassName?: string;
  };
  status?: { phase?: string; conditions?: PodCondition[] };
}

export interface PersistentVolume {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  spec: {
    capacity?: { storage?: string | number };
    accessModes?: string[];
    volumeMode?: string;
    storageClassName?: string;
    persistentVolumeReclaimPolicy?: string;
    claimRef?: { apiVersion?: string; kind?: string; namespace?: string; name?: string; uid?: string };
    csi?: { driver: string; volumeHandle: string; volumeAttributes?: Record<string, string> };
    nodeAffinity?: { required?: { nodeSelectorTerms?: { matchExpressions?: NodeRequirement[] }[] } };
  };
  status?: { phase?: string };
}

interface NodeRequirement {
  key: string;
  operator: string;
  values?: string[];
}

/** Where the data of a claim are. */
export interface StoredAt {
  readonly leaseId: string;
  /** The virtual node of that lease. */
  readonly node: string;
}

const storedAtPattern = /^(0x[0-9a-f]{64})\/([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)$/;
const pairOf = (text: string | undefined): readonly [string, string] | undefined => {
  const match = storedAtPattern.exec(text ?? '');
  return match ? [match[1]!, match[2]!] : undefined;
};

export const isLeasedClaim = (claim: Pick<Claim, 'spec'>): boolean => claim.spec.storageClassName === storageClassName;

/** Where a volume was asked for, or may have been: noted before the first request leaves. */
export function storedAt(claim: Claim): StoredAt | undefined {
  const [leaseId, node] = pairOf(claim.metadata.annotations?.[annotations.storedAt]) ?? [];
  return leaseId === undefined || node === undefined ? undefined : { leaseId, node };
}

export const storedAtText = ({ leaseId, node }: StoredAt): string => `${leaseId.toLowerCase()}/${node}`;

export const selectedNode = (claim: Claim): string | undefined =>
  claim.metadata.annotations?.[annotations.selectedNode] || undefined;

/** Where the data of a volume of ours are, and under which name; undefined: it is none of ours. */
export function placeOf(volume: PersistentVolume): (StoredAt & { readonly remoteName: string }) | undefined {
  const { csi, nodeAffinity } = volume.spec;
  if (csi?.driver !== group) return undefined;
  const [leaseId, remoteName] = pairOf(csi.volumeHandle) ?? [];
  const requirements = nodeAffinity?.required?.nodeSelectorTerms?.[0]?.matchExpressions ?? [];
  const node = requirements.find(({ key }) => key === hostname)?.values?.[0];
  if (leaseId === undefined || remoteName === undefined || node === undefined) return undefined;
  return { leaseId, node, remoteName };
}

const hostname = 'kubernetes.io/hostname';

/** Why no provider will ever hold what this claim asks for; undefined: one may. A claim cannot be changed: it is made anew. */
export function unsupported(claim: Claim): string | undefined {
  const { spec } = claim;
  const modes = spec.accessModes ?? [];
  if (modes.length !== 1 || (modes[0] !== 'ReadWriteOnce' && modes[0] !== 'ReadWriteOncePod'))
    return `accessModes must be ReadWriteOnce or ReadWriteOncePod, as a volume is on one leased node; here it is ${modes.join(', ')}`;
  if ((spec.volumeMode ?? 'Filesystem') !== 'Filesystem')
    return `volumeMode must be Filesystem; here it is ${spec.volumeMode}`;
  if (spec.selector) return 'a selector chooses among volumes that exist; leased nodes make new ones: leave it out';
  if (spec.dataSource || spec.dataSourceRef)
    return 'dataSource is not carried to providers: begin with an empty volume';
  if (spec.volumeAttributesClassName) return 'volumeAttributesClassName is not carried to providers: leave it out';
  return undefined;
}

/** What is asked for at the provider. The class is the provider's to choose. */
export function remoteClaim(claim: Claim): Claim {
  const { name, namespace, uid = '' } = claim.metadata;
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: {
      name: remoteClaimName(name, uid),
      labels: { [labels.managedBy]: managedBy },
      annotations: { [annotations.claim]: `${namespace}/${name}` },
    },
    spec: {
      accessModes: claim.spec.accessModes,
      resources: { requests: { storage: claim.spec.resources?.requests?.storage } },
    },
  };
}

/** What stands here for the claim at the provider: bound to this very claim, and usable on that node alone. */
export function persistentVolume(
  claim: Claim,
  at: StoredAt,
  lease: { readonly namespace: string; readonly name: string },
): PersistentVolume {
  const { name, namespace, uid = '' } = claim.metadata;
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: {
      name: volumeName(uid),
      labels: { [labels.managedBy]: managedBy },
      annotations: { [annotations.provisionedBy]: group },
    },
    spec: {
      capacity: { storage: claim.spec.resources?.requests?.storage },
      accessModes: claim.spec.accessModes,
      volumeMode: 'Filesystem',
      storageClassName: claim.spec.storageClassName,
      persistentVolumeReclaimPolicy: 'Delete',
      claimRef: { apiVersion: 'v1', kind: 'PersistentVolumeClaim', namespace, name, uid },
      csi: {
        driver: group,
        volumeHandle: `${at.leaseId.toLowerCase()}/${remoteClaimName(name, uid)}`,
        volumeAttributes: { lease: `${lease.namespace}/${lease.name}` },
      },
      nodeAffinity: {
        required: {
          nodeSelectorTerms: [{ matchExpressions: [{ key: hostname, operator: 'In', values: [at.node] }] }],
        },
      },
    },
  };
}

// --- what becomes of it ------------------------------------------------------------------------------------------------

export const dataLostCondition = 'DataLost';

/** Undefined when the claim says so already. `why`: undefined when the data are there, which is only said after they were not. */
export function dataLost(claim: Claim, why: string | undefined, now: Date): PodCondition | undefined {
  const before = claim.status?.conditions?.find(({ type }) => type === dataLostCondition);
  if (why === undefined && before?.status !== 'True') return undefined;
  if (why !== undefined && before?.status === 'True' && before.message === why) return undefined;
  return {
    type: dataLostCondition,
    status: why === undefined ? 'False' : 'True',
    reason: why === undefined ? 'DataFound' : 'DataGone',
    message: why ?? 'The provider has the data after all.',
    lastTransitionTime: now.toISOString().replace(/\.\d{3}Z$/, 'Z'),
  };
}

/** What a person does about lost data; said wherever they are found to be lost. */
export const afterLoss =
  'No empty volume is put in its place: delete the claim, and it is made anew with the next pod.';

// --- the pod's side ----------------------------------------------------------------------------------------------------

/** What a volume of a pod becomes: a claim at the provider, a reason to wait, or one to refuse the pod. */
export type ClaimAnswer = { readonly remoteName: string } | { readonly waits: string } | { readonly refused: string };

/** Looks up what is known of a claim of the pod's namespace, by the node that asks. */
export type ClaimView = (pod: Pod, claimName: string, ephemeral: boolean) => ClaimAnswer;

/** Of the consumer's pod: names of the claims that its volumes use. */
export function claimsOfPod(pod: Pod): readonly { readonly name: string; readonly ephemeral: boolean }[] {
  const claims: { name: string; ephemeral: boolean }[] = [];
  for (const volume of pod.spec.volumes ?? []) {
    const named = (volume.persistentVolumeClaim as { claimName?: unknown } | undefined)?.claimName;
    if (typeof named === 'string') claims.push({ name: named, ephemeral: false });
    else if (volume.ephemeral) claims.push({ name: ephemeralClaimName(pod, volume.name), ephemeral: true });
  }
  return claims;
}

/** https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#persistentvolumeclaim-naming */
export const ephemeralClaimName = (pod: Pod, volume: string): string => `${pod.metadata.name}-${volume}`;

/** Judges one claim for a pod on `node`. Claim and volume as they are known; absent may only mean that they are not known yet. */
export function answerClaim(
  pod: Pod,
  name: string,
  ephemeral: boolean,
  node: StoredAt,
  claim: Claim | undefined,
  volume: PersistentVolume | undefined,
): ClaimAnswer {
  if (!claim) return { waits: `claim ${name} is not there` };
  const { uid } = claim.metadata;
  if (ephemeral && !claim.metadata.ownerReferences?.some((o) => o.controller === true && o.uid === pod.metadata.uid))
    return { refused: `claim ${name} is not of this pod, although it has the name of its volume` };
  if (!isLeasedClaim(claim))
    return {
      refused: `claim ${name} is of storage class "${claim.spec.storageClassName ?? ''}", which leased nodes cannot reach: use a claim of class ${storageClassName}, whose data are kept by the provider of the lease`,
    };
  if (!claim.spec.volumeName) return { waits: `claim ${name} has no volume yet: see its events` };
  if (!volume) return { waits: `claim ${name} is bound to volume ${claim.spec.volumeName}, which is not there` };
  const place = placeOf(volume);
  if (!place)
    return { refused: `claim ${name} is bound to volume ${volume.metadata.name}, which no leased node has made` };
  const { claimRef } = volume.spec;
  if (claimRef?.uid !== uid || claimRef?.namespace !== claim.metadata.namespace || claimRef?.name !== name)
    return { refused: `claim ${name} names volume ${volume.metadata.name}, which belongs to another claim` };
  if (place.node !== node.node)
    return { refused: `the data of claim ${name} are on node ${place.node}, and cannot be used on another` };
  const lost = claim.status?.conditions?.find(({ type, status }) => type === dataLostCondition && status === 'True');
  if (lost || place.leaseId !== node.leaseId.toLowerCase())
    return { waits: `the data of claim ${name} are lost: ${lost?.message ?? `their lease has ended. ${afterLoss}`}` };
  return { remoteName: place.remoteName };
}
