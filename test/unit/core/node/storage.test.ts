/** Claims to a provider's storage: what is made of them, and what a pod that uses one is told. */
import { describe, expect, test } from 'vitest';
import {
  answerClaim,
  type Claim,
  claimsOfPod,
  dataLost,
  type PersistentVolume,
  persistentVolume,
  placeOf,
  remoteClaim,
  storedAt,
  unsupported,
} from '../../../../operator/core/node/storage.ts';
import { translatePod } from '../../../../operator/core/node/translate-pod.ts';
import { pod, view } from './builders.ts';

const leaseId = `0x${'a1'.repeat(32)}`;
const here = { leaseId, node: view.nodeName };
const lease = { namespace: 'team-a', name: 'train' };

const claim = (change: Partial<Claim['spec']> = {}, metadata: Partial<Claim['metadata']> = {}): Claim => ({
  metadata: { name: 'data', namespace: 'team-a', uid: 'c-1', ...metadata },
  spec: {
    storageClassName: 'gpulease',
    accessModes: ['ReadWriteOnce'],
    resources: { requests: { storage: '5Gi' } },
    ...change,
  },
});
const bound = (change: Partial<Claim['spec']> = {}, metadata: Partial<Claim['metadata']> = {}) =>
  claim({ volumeName: 'pvc-c-1', ...change }, metadata);
const volume = (change: (made: PersistentVolume) => void = () => undefined): PersistentVolume => {
  const made = persistentVolume(claim(), here, lease);
  change(made);
  return made;
};

describe('a volume', () => {
  test('belongs to one claim, one node and one escrow', () => {
    expect(volume()).toMatchObject({
      metadata: { name: 'pvc-c-1', annotations: { 'pv.kubernetes.io/provisioned-by': 'gpulease.dev' } },
      spec: {
        claimRef: { namespace: 'team-a', name: 'data', uid: 'c-1' },
        csi: { driver: 'gpulease.dev', volumeAttributes: { lease: 'team-a/train' } },
        persistentVolumeReclaimPolicy: 'Delete',
        capacity: { storage: '5Gi' },
        nodeAffinity: {
          required: {
            nodeSelectorTerms: [
              { matchExpressions: [{ key: 'kubernetes.io/hostname', operator: 'In', values: [view.nodeName] }] },
            ],
          },
        },
      },
    });
  });

  test('says where its data are, under the very name that was asked for', () => {
    expect(placeOf(volume())).toEqual({ ...here, remoteName: remoteClaim(claim()).metadata.name });
  });

  test.each<[string, (made: PersistentVolume) => void]>([
    ['of another driver', (made) => Object.assign(made.spec.csi!, { driver: 'ebs.csi.aws.com' })],
    ['with a handle that is none of ours', (made) => Object.assign(made.spec.csi!, { volumeHandle: 'vol-1' })],
    ['with a path in its handle', (made) => Object.assign(made.spec.csi!, { volumeHandle: `${leaseId}/../x` })],
    ['that is on no node', (made) => void delete made.spec.nodeAffinity],
    ['without a source', (made) => void delete made.spec.csi],
  ])('%s is none of ours', (_, change) => {
    expect(placeOf(volume(change))).toBeUndefined();
  });
});

describe('a claim at the provider', () => {
  test('is a size and a mode, and a name that no other claim has', () => {
    expect(remoteClaim(claim())).toMatchObject({
      metadata: { annotations: { 'gpulease.dev/claim': 'team-a/data' } },
      spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '5Gi' } } },
    });
    expect(remoteClaim(claim()).spec).not.toHaveProperty('storageClassName');
    const names = [claim(), claim({}, { uid: 'c-2' }), claim({}, { name: 'other' })].map(
      (one) => remoteClaim(one).metadata.name,
    );
    expect(new Set(names).size).toBe(3);
  });

  test.each<[string, Partial<Claim['spec']>, RegExp]>([
    ['for many nodes', { accessModes: ['ReadWriteMany'] }, /ReadWriteMany/],
    ['to be read by many', { accessModes: ['ReadOnlyMany'] }, /ReadOnlyMany/],
    ['with two modes', { accessModes: ['ReadWriteOnce', 'ReadOnlyMany'] }, /accessModes/],
    ['for a block device', { volumeMode: 'Block' }, /Block/],
    ['that selects a volume', { selector: {} }, /selector/],
    ['that copies one', { dataSource: { kind: 'x' } }, /dataSource/],
    ['that asks for attributes', { volumeAttributesClassName: 'gold' }, /volumeAttributesClassName/],
  ])('is never made %s', (_, change, said) => {
    expect(unsupported(claim(change))).toMatch(said);
  });

  test.each([['ReadWriteOnce'], ['ReadWriteOncePod']])('is made with %s', (mode) => {
    expect(unsupported(claim({ accessModes: [mode] }))).toBeUndefined();
  });

  test('is looked for where it was noted, and nowhere for a note that somebody else wrote', () => {
    const noted = (text: string) => storedAt(claim({}, { annotations: { 'gpulease.dev/stored-at': text } }));
    expect(noted(`${leaseId}/gpu-a-1`)).toEqual({ leaseId, node: 'gpu-a-1' });
    for (const wrong of ['', 'x', `${leaseId}/`, `${leaseId}/../nodes`, `0x12/gpu-a`, `${leaseId}/a/b`])
      expect(noted(wrong), wrong).toBeUndefined();
  });
});

describe('a pod with a claim', () => {
  const its = pod({ volumes: [{ name: 'd', persistentVolumeClaim: { claimName: 'data', readOnly: true } }] });
  const answer = (c: Claim | undefined, v: PersistentVolume | undefined, ephemeral = false) =>
    answerClaim(its, 'data', ephemeral, here, c, v);

  test('is sent with the name at the provider', () => {
    const claimOf = () => answer(bound(), volume());
    const { remoteName } = placeOf(volume())!;
    expect(translatePod(its, { ...view, claimOf })).toMatchObject({
      pod: { spec: { volumes: [{ name: 'd', persistentVolumeClaim: { claimName: remoteName, readOnly: true } }] } },
    });
  });

  test('that Kubernetes made for it is sent in the same way', () => {
    const own = pod({ volumes: [{ name: 'd', ephemeral: { volumeClaimTemplate: { spec: {} } } }] });
    expect(claimsOfPod(own)).toEqual([{ name: 'web-0-d', ephemeral: true }]);
    const asked: unknown[] = [];
    const claimOf = (...[, name, ephemeral]: [unknown, string, boolean]) => {
      asked.push([name, ephemeral]);
      return { remoteName: 'x-1' };
    };
    const translated = translatePod(own, { ...view, claimOf });
    expect(asked).toEqual([['web-0-d', true]]);
    expect(translated).toMatchObject({ pod: { spec: { volumes: [{ name: 'd' }] } } });
    expect('pod' in translated && translated.pod.spec.volumes).toEqual([
      { name: 'd', persistentVolumeClaim: { claimName: 'x-1' } },
    ]);
  });

  test.each<[string, Claim | undefined, PersistentVolume | undefined, RegExp]>([
    ['that is not there', undefined, undefined, /not there/],
    ['that has no volume yet', claim(), undefined, /no volume yet/],
    ['whose volume is gone', bound(), undefined, /pvc-c-1, which is not there/],
    [
      'whose data were stored with another lease of the same node',
      bound(),
      volume((made) => Object.assign(made.spec.csi!, { volumeHandle: `0x${'b2'.repeat(32)}/data-1` })),
      /are lost.*delete the claim/,
    ],
    [
      'whose data are lost',
      { ...bound(), status: { conditions: [{ type: 'DataLost', status: 'True', message: 'The lease ended.' }] } },
      volume(),
      /are lost: The lease ended/,
    ],
  ])('waits for one %s', (_, c, v, said) => {
    expect(answer(c, v)).toMatchObject({ waits: expect.stringMatching(said) });
  });

  test.each<[string, Claim, PersistentVolume | undefined, RegExp, boolean?]>([
    ['of another class', bound({ storageClassName: 'standard' }), undefined, /class "standard".*class gpulease/],
    ['of no class', bound({ storageClassName: undefined }), undefined, /class ""/],
    [
      'whose volume is of another driver',
      bound(),
      volume((made) => Object.assign(made.spec.csi!, { driver: 'ebs' })),
      /no leased node has made/,
    ],
    [
      'that names the volume of another claim',
      bound(),
      volume((made) => Object.assign(made.spec.claimRef!, { uid: 'c-9' })),
      /belongs to another claim/,
    ],
    ['of another namespace’s volume', bound({}, { namespace: 'team-b' }), volume(), /belongs to another claim/],
    [
      'whose data are on another node',
      bound(),
      volume((made) => {
        made.spec.nodeAffinity!.required!.nodeSelectorTerms![0]!.matchExpressions![0]!.values = ['gpu-other'];
      }),
      /on node gpu-other/,
    ],
    ['that only has the name of its own', bound(), volume(), /not of this pod/, true],
  ])('is refused for one %s', (_, c, v, said, ephemeral = false) => {
    expect(answer(c, v, ephemeral)).toMatchObject({ refused: expect.stringMatching(said) });
    const claimOf = () => answer(c, v, ephemeral);
    expect(translatePod(its, { ...view, claimOf })).toMatchObject({
      refused: 'VolumeNotSupported',
      message: expect.stringMatching(/^spec\.volumes\[0\]\.persistentVolumeClaim\.claimName: /),
    });
  });

  test('of its own is known by its owner', () => {
    const ownerReferences = [{ apiVersion: 'v1', kind: 'Pod', name: 'web-0', uid: '3f1c', controller: true }];
    expect(answer(bound({}, { ownerReferences }), volume(), true)).toHaveProperty('remoteName');
  });

  test('is refused where nothing is known of claims', () => {
    expect(translatePod(its, view)).toMatchObject({ refused: 'VolumeNotSupported' });
  });
});

describe('that data are lost', () => {
  const now = new Date('2026-01-01T00:00:00Z');
  const says = (status: string, message: string): Claim => ({
    ...bound(),
    status: { conditions: [{ type: 'DataLost', status, message }] },
  });

  test('is said once', () => {
    expect(dataLost(bound(), 'gone.', now)).toMatchObject({ status: 'True', message: 'gone.' });
    expect(dataLost(says('True', 'gone.'), 'gone.', now)).toBeUndefined();
  });
  test('is taken back when they are there after all', () => {
    expect(dataLost(says('True', 'gone.'), undefined, now)).toMatchObject({ status: 'False' });
    expect(dataLost(says('False', 'x'), undefined, now)).toBeUndefined();
  });
  test('is not even denied of a claim that was never without', () => {
    expect(dataLost(bound(), undefined, now)).toBeUndefined();
  });
});
