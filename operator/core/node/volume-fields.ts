/** Volumes: data of this cluster is sent along, scratch space and storage are the provider's, everything of the host is refused. */
import { storageClassName } from '../../api/labels.ts';
import {
  carried,
  downwardAnnotation,
  each,
  hostOnly,
  object,
  only,
  refer,
  refused,
  rewritten,
  type Work,
} from './carrying.ts';
import { fieldSelector, named, resourceSelector } from './container-fields.ts';
import { answerField, answerResource } from './downward.ts';
import { carryObject, type ObjectTable, type Place, Refused } from './field-table.ts';
import { remotePodName } from './names.ts';
import type { FieldRef, ResourceFieldRef, Volume } from './pod.ts';
import { ephemeralClaimName } from './storage.ts';
import { tokenSecretName, tokenWish } from './token-wish.ts';

const keyToPath: ObjectTable<Work> = {
  type: 'KeyToPath',
  fields: { key: carried(), path: carried(), mode: carried() },
};

// --- what a pod sees of itself ---------------------------------------------------------------------------------------

/** Shows a value in a file, through an annotation that the downward API at the provider reads and refreshes. */
function shown(field: string, value: string | undefined, path: string, work: Work): FieldRef {
  if (value === undefined) throw new Refused('FieldNotSupported', `${path}: ${field} is not known`);
  const annotation = downwardAnnotation(field);
  work.annotations[annotation] = value;
  return { apiVersion: 'v1', fieldPath: `metadata.annotations['${annotation}']` };
}

const downwardFile: ObjectTable<Work> = {
  type: 'DownwardAPIVolumeFile',
  fields: {
    path: carried(),
    mode: carried(),
    fieldRef: rewritten(
      'shows the names, labels and annotations of this cluster; follows their changes',
      (value, { path, work }) => {
        const ref = carryObject(fieldSelector, value as object, path, work) as unknown as FieldRef;
        const answer = answerField(work.pod, ref.fieldPath, work.view);
        if ('native' in answer) return ref;
        return shown(ref.fieldPath, 'value' in answer ? answer.value : undefined, path, work);
      },
      () => fieldSelector,
    ),
    resourceFieldRef: rewritten(
      'answered here; limits that are not set are those of the leased node',
      (value, { path, work }) => {
        const ref = carryObject(resourceSelector, value as object, path, work) as unknown as ResourceFieldRef;
        const answer = answerResource(work.pod, undefined, ref, work.view);
        return shown(`${ref.containerName}/${ref.resource}/${ref.divisor ?? 1}`, answer, path, work);
      },
      () => resourceSelector,
    ),
  },
  also: ({ resourceFieldRef, ...file }) => (resourceFieldRef ? { ...file, fieldRef: resourceFieldRef } : file),
};

const downwardProjection: ObjectTable<Work> = {
  type: 'DownwardAPIProjection',
  fields: { items: each(() => downwardFile) },
};
const downwardVolume: ObjectTable<Work> = {
  type: 'DownwardAPIVolumeSource',
  fields: { items: each(() => downwardFile), defaultMode: carried() },
};

// --- data ------------------------------------------------------------------------------------------------------------

const projectionOf = (kind: 'ConfigMap' | 'Secret'): ObjectTable<Work> => ({
  type: `${kind}Projection`,
  fields: {
    name: rewritten('the name at the provider', named(kind)),
    items: each(() => keyToPath),
    optional: carried(),
  },
});
const configMapProjection = projectionOf('ConfigMap');
const secretProjection = projectionOf('Secret');

const configMapVolume: ObjectTable<Work> = {
  type: 'ConfigMapVolumeSource',
  fields: {
    name: rewritten('the name at the provider', named('ConfigMap')),
    items: each(() => keyToPath),
    defaultMode: carried(),
    optional: carried(),
  },
};
const secretVolume: ObjectTable<Work> = {
  type: 'SecretVolumeSource',
  fields: {
    secretName: rewritten('the name at the provider', named('Secret')),
    items: each(() => keyToPath),
    defaultMode: carried(),
    optional: carried(),
  },
};

const tokenProjection: ObjectTable<Work> = {
  type: 'ServiceAccountTokenProjection',
  fields: { audience: carried('as asked for'), expirationSeconds: carried('at most an hour'), path: carried() },
};

const mostTokens = 8;

const projection: ObjectTable<Work> = {
  type: 'VolumeProjection',
  fields: {
    configMap: object(() => configMapProjection, 'sent along, and changed when it changes'),
    secret: object(() => secretProjection, 'sent along, and changed when it changes'),
    downwardAPI: object(() => downwardProjection),
    serviceAccountToken: rewritten(
      'with `spec.access.serviceAccountTokens: Bound` on the lease, a Secret with a token bound to the pod; otherwise the volume that Kubernetes adds to every pod stays behind, and one that the author wrote is refused',
      (value, { path, work }) => {
        if (work.view.serviceAccountTokens !== 'Bound')
          throw new Refused(
            'ServiceAccountTokenNotCarried',
            `${path}: tokens of this cluster are not sent to providers, unless the lease sets spec.access.serviceAccountTokens: Bound`,
          );
        const asked = carryObject(tokenProjection, value as object, path, work) as {
          audience?: string;
          expirationSeconds?: number;
          path: string;
        };
        const wish = tokenWish(asked.audience, asked.expirationSeconds);
        if (!work.tokens.some(({ key }) => key === wish.key)) work.tokens.push(wish);
        if (work.tokens.length > mostTokens)
          throw new Refused('FieldNotSupported', `${path}: a pod has at most ${mostTokens} different tokens`);
        const { name, uid } = work.pod.metadata;
        return { name: tokenSecretName(remotePodName(name, uid ?? '')), items: [{ key: wish.key, path: asked.path }] };
      },
      () => tokenProjection,
    ),
    clusterTrustBundle: refused(
      'VolumeNotSupported',
      'trust bundles are not carried to leased nodes: put the certificates into a ConfigMap',
    ),
    podCertificate: refused(
      'VolumeNotSupported',
      'certificates of this cluster are not made for pods on leased nodes: put one into a Secret',
    ),
  },
  also: ({ serviceAccountToken, ...source }) =>
    serviceAccountToken ? { ...source, secret: serviceAccountToken } : source,
};

const projected: ObjectTable<Work> = {
  type: 'ProjectedVolumeSource',
  fields: { sources: each(() => projection), defaultMode: carried() },
};

// --- storage -----------------------------------------------------------------------------------------------------------

/** The name at the provider of the claim that a volume is. What waits was waited for before the pod was translated. */
function remoteClaimOf(claim: string, ephemeral: boolean, { path, work }: Place<Work>): string {
  const answer = work.view.claimOf?.(work.pod, claim, ephemeral) ?? { refused: `claim ${claim} is not known here` };
  if ('remoteName' in answer) return answer.remoteName;
  throw new Refused('VolumeNotSupported', `${path}: ${'refused' in answer ? answer.refused : answer.waits}`);
}

const claimVolume: ObjectTable<Work> = {
  type: 'PersistentVolumeClaimVolumeSource',
  fields: {
    claimName: rewritten(
      `a claim of class \`${storageClassName}\`, whose data are with the lease; the name at the provider`,
      (value, place) => remoteClaimOf(value as string, false, place),
    ),
    readOnly: carried(),
  },
};

// --- the volume ------------------------------------------------------------------------------------------------------

const emptyDir: ObjectTable<Work> = {
  type: 'EmptyDirVolumeSource',
  fields: {
    medium: only(['', 'Memory'], 'VolumeNotSupported', 'empty or Memory: leased nodes have no huge pages'),
    sizeLimit: carried(),
  },
};
const image: ObjectTable<Work> = {
  type: 'ImageVolumeSource',
  fields: { reference: carried(), pullPolicy: carried() },
};

const kinds =
  'leased nodes have emptyDir, configMap, secret, downwardAPI, projected, image, persistentVolumeClaim and ephemeral volumes only';
const other = refused('VolumeNotSupported', kinds);

export const volumeTable: ObjectTable<Work> = {
  type: 'Volume',
  fields: {
    name: carried(),
    emptyDir: object(() => emptyDir, 'scratch space of the provider'),
    configMap: object(() => configMapVolume, 'sent along, and changed when it changes'),
    secret: object(() => secretVolume, 'sent along, and changed when it changes'),
    downwardAPI: object(() => downwardVolume),
    projected: object(() => projected),
    image: object(() => image, 'pulled by the provider'),
    hostPath: hostOnly('leased nodes give no access to the host’s files'),
    persistentVolumeClaim: object(
      () => claimVolume,
      `claims of class \`${storageClassName}\`, on the storage of the lease’s provider; others are refused`,
    ),
    ephemeral: rewritten(
      `the claim that Kubernetes makes of its template, which must be of class \`${storageClassName}\``,
      (_, place) => {
        const { name } = place.of as unknown as Volume;
        return { claimName: remoteClaimOf(ephemeralClaimName(place.work.pod, name), true, place) };
      },
    ),
    csi: other,
    awsElasticBlockStore: other,
    azureDisk: other,
    azureFile: other,
    cephfs: other,
    cinder: other,
    fc: other,
    flexVolume: other,
    flocker: other,
    gcePersistentDisk: other,
    gitRepo: other,
    glusterfs: other,
    iscsi: other,
    nfs: other,
    photonPersistentDisk: other,
    portworxVolume: other,
    quobyte: other,
    rbd: other,
    scaleIO: other,
    storageos: other,
    vsphereVolume: other,
  },
  unknown: (_, path) => new Refused('VolumeNotSupported', `${path}: ${kinds}`),
  also: ({ ephemeral, ...volume }) => (ephemeral ? { ...volume, persistentVolumeClaim: ephemeral } : volume),
};

export function carryVolumes(value: unknown, { path, work }: Place<Work>): object[] | undefined {
  const carried = (value as Volume[]).flatMap((volume, i) => {
    if (work.view.serviceAccountTokens !== 'Bound' && isServiceAccountVolume(volume)) {
      work.dropped.add(volume.name);
      return [];
    }
    return [carryObject(volumeTable, volume, `${path}[${i}]`, work)];
  });
  return carried.length === 0 ? undefined : carried;
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

export const pullSecret: ObjectTable<Work> = {
  type: 'LocalObjectReference',
  fields: {
    name: rewritten('the name at the provider', (value, { work }) => refer('Secret', value as string, true, work)),
  },
};
