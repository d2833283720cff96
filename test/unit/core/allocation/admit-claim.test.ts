/** What a tenant may ask the provider's storage for. */
import { describe, expect, test } from 'vitest';
import { admitClaim } from '../../../../operator/core/allocation/admit-claim.ts';
import { Refusal } from '../../../../operator/core/allocation/refusal.ts';

const gib = 1024 ** 3;
const context = { namespace: 'gl-0', leaseId: 'abc', storage: { className: 'fast', bytes: 10 * gib } };
const claim = (spec: object = {}, metadata: object = {}) => ({
  metadata: { name: 'data-1', ...metadata },
  spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '1Gi' } }, ...spec },
});

function refusal(body: unknown, its: Parameters<typeof admitClaim>[1] = context): string {
  try {
    admitClaim(body, its);
  } catch (error) {
    if (error instanceof Refusal) return error.message;
    throw error;
  }
  return 'admitted';
}

test('a claim is made of its size and mode, on the provider’s class, with the lease’s labels', () => {
  const made = admitClaim(
    claim({}, { labels: { 'gpulease.dev/tenant': 'false', app: 'x' }, annotations: { 'gpulease.dev/claim': 'a/b' } }),
    context,
  );
  expect(made).toEqual({
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: {
      name: 'data-1',
      namespace: 'gl-0',
      labels: expect.objectContaining({ 'gpulease.dev/lease-id': 'abc' }),
      annotations: { 'gpulease.dev/claim': 'a/b' },
    },
    spec: {
      accessModes: ['ReadWriteOnce'],
      volumeMode: 'Filesystem',
      storageClassName: 'fast',
      resources: { requests: { storage: '1Gi' } },
    },
  });
  expect((made.metadata as { labels: object }).labels).not.toMatchObject({ 'gpulease.dev/tenant': 'false' });
});

test.each([
  ['of one pod alone', { accessModes: ['ReadWriteOncePod'] }],
  ['of all that the lease may store', { resources: { requests: { storage: '10Gi' } } }],
])('a claim %s is admitted', (_, spec) => {
  expect(refusal(claim(spec))).toBe('admitted');
});

describe('a claim is refused', () => {
  test.each<[string, object, RegExp]>([
    ['that names a class', { storageClassName: 'gold' }, /^spec\.storageClassName/],
    ['that names a volume', { volumeName: 'of-another' }, /^spec\.volumeName/],
    ['that selects a volume', { selector: { matchLabels: { a: 'b' } } }, /^spec\.selector/],
    ['that copies another', { dataSource: { kind: 'PersistentVolumeClaim', name: 'x' } }, /^spec\.dataSource/],
    ['that copies another, the newer way', { dataSourceRef: { kind: 'X', name: 'x' } }, /^spec\.dataSourceRef/],
    ['that many nodes may write', { accessModes: ['ReadWriteMany'] }, /^spec\.accessModes/],
    ['with two modes', { accessModes: ['ReadWriteOnce', 'ReadOnlyMany'] }, /^spec\.accessModes/],
    ['without a mode', { accessModes: [] }, /^spec\.accessModes/],
    ['for a block device', { volumeMode: 'Block' }, /^spec\.volumeMode/],
    ['larger than the lease', { resources: { requests: { storage: '11Gi' } } }, /more than this lease may store: 10Gi/],
    ['of no size', { resources: {} }, /storage: is missing/],
    ['of size 0', { resources: { requests: { storage: '0' } } }, /more than nothing/],
    ['of a size below', { resources: { requests: { storage: '-1Gi' } } }, /more than nothing/],
    ['of a size that is none', { resources: { requests: { storage: 'much' } } }, /is not a quantity/],
    ['with limits', { resources: { requests: { storage: '1Gi' }, limits: { storage: '2Gi' } } }, /^spec\.resources/],
    ['that asks for more than storage', { resources: { requests: { storage: '1Gi', cpu: '1' } } }, /^spec\.resources/],
  ])('%s', (_, spec, said) => {
    expect(refusal(claim(spec))).toMatch(said);
  });

  test.each<[string, unknown, RegExp]>([
    ['that is in another namespace', claim({}, { namespace: 'gl-1' }), /^metadata\.namespace/],
    ['without a name', claim({}, { name: undefined }), /^metadata\.name/],
    ['with a name that is a path', claim({}, { name: '../x' }), /^metadata\.name/],
    ['with a status', { ...claim(), status: { phase: 'Bound' } }, /^status/],
    ['that is a volume', { ...claim(), kind: 'PersistentVolume' }, /not a v1 PersistentVolumeClaim/],
    ['that is nothing', null, /not a PersistentVolumeClaim/],
  ])('%s', (_, body, said) => {
    expect(refusal(body)).toMatch(said);
  });

  test('where the provider offers no storage', () => {
    expect(refusal(claim(), { ...context, storage: undefined })).toMatch(/offers no storage/);
  });
});
