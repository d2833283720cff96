/** Claims to the provider's storage, from the scheduler's choice of a node to the end of their data. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { remoteClaimName } from '../../../operator/core/node/names.ts';
import type { Claim, PersistentVolume } from '../../../operator/core/node/storage.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import type { NodeSpec } from '../../../operator/kubelet/virtual-nodes.ts';
import { served } from './fake-lease.ts';
import { aWhile, eventually, nodeName, type World, world } from './world.ts';

const leaseId = `0x${'1'.repeat(64)}` as const;
const claims = resources.persistentVolumeClaims;
const selected = 'volume.kubernetes.io/selected-node';
const noted = 'gpulease.dev/stored-at';
const finalizer = 'gpulease.dev/claim';
const inUse = 'kubernetes.io/pvc-protection';
type StoredClaim = Claim & KubeObject;
type StoredVolume = PersistentVolume & KubeObject;

let w: World;
const withStorage: Partial<NodeSpec> = { served: { ...served(2), storage: '10Gi' } };
beforeEach(async () => {
  w = world();
  await w.start(withStorage);
});
afterEach(() => w.stop());

const seed = (change: (claim: StoredClaim) => void = () => undefined): StoredClaim => {
  const claim: StoredClaim = {
    metadata: { name: 'data', namespace: 'team-a', annotations: { [selected]: nodeName }, finalizers: [inUse] },
    spec: {
      storageClassName: 'gpulease',
      accessModes: ['ReadWriteOnce'],
      resources: { requests: { storage: '5Gi' } },
    },
    status: { phase: 'Pending' },
  };
  change(claim);
  return w.consumer.seed(claims, claim)[0]!;
};
const key = { namespace: 'team-a', name: 'data' };
const claim = () => w.consumer.object<StoredClaim>(claims, key);
const volumes = () => w.consumer.objects<StoredVolume>(resources.persistentVolumes);
const remotes = () => w.provider.objects<StoredClaim>(claims);
const said = (reason: string) => w.told.filter((one) => one.reason === reason).map(({ message }) => message);
const lost = () => claim()?.status?.conditions?.find(({ type }) => type === 'DataLost');

/** As Kubernetes binds a claim to the volume that names it. */
async function bind(): Promise<StoredVolume> {
  await eventually(() => expect(volumes()).toHaveLength(1));
  const volume = volumes()[0]!;
  w.consumer.change<StoredClaim>(claims, key, (one) => {
    one.spec.volumeName = volume.metadata.name;
    one.status = { ...one.status, phase: 'Bound' };
  });
  w.consumer.change<StoredVolume>(resources.persistentVolumes, { name: volume.metadata.name }, (one) => {
    one.status = { phase: 'Bound' };
  });
  return volume;
}
const bindPod = () =>
  w.bind('web', (pod) => {
    pod.spec.volumes = [{ name: 'd', persistentVolumeClaim: { claimName: 'data' } }];
    pod.spec.containers[0]!.volumeMounts = [{ name: 'd', mountPath: '/data' }];
  });
const deleteClaim = () => w.consumer.delete(claims, key);
/** As Kubernetes does when no pod uses it. */
const unused = () =>
  w.consumer.change<StoredClaim>(claims, key, (one) => {
    one.metadata.finalizers = one.metadata.finalizers?.filter((name) => name !== inUse);
  });
/** Any change of the volume is a reason to look at it. */
const touch = (change: (volume: StoredVolume) => void = () => undefined) =>
  w.consumer.change<StoredVolume>(resources.persistentVolumes, { name: volumes()[0]!.metadata.name }, (one) => {
    one.metadata.annotations = { ...one.metadata.annotations, touched: String(Math.random()) };
    change(one);
  });

describe('a claim whose first pod is to run on the node', () => {
  test('is asked for at the provider, and shown as a volume of that node and that claim', async () => {
    const { metadata } = seed();
    const volume = await bind();
    const remoteName = remoteClaimName('data', metadata.uid!);
    expect(remotes()).toMatchObject([
      {
        metadata: { name: remoteName },
        spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '5Gi' } } },
      },
    ]);
    expect(volume).toMatchObject({
      metadata: { name: `pvc-${metadata.uid}` },
      spec: {
        claimRef: { namespace: 'team-a', name: 'data', uid: metadata.uid },
        csi: { driver: 'gpulease.dev', volumeHandle: `${leaseId}/${remoteName}` },
      },
    });
    expect(claim()?.metadata).toMatchObject({
      finalizers: [inUse, finalizer],
      annotations: { [noted]: `${leaseId}/${nodeName}` },
    });
    expect(said('ProvisioningSucceeded')).toHaveLength(1);
  });

  test('is noted before the provider is asked', async () => {
    w.provider.intercept((request) => {
      if (request.method !== 'POST' || request.resource?.plural !== claims.plural) return undefined;
      return claim()?.metadata.finalizers?.includes(finalizer) && claim()?.metadata.annotations?.[noted]
        ? undefined
        : { code: 500, body: { kind: 'Status', message: 'asked too early' } };
    });
    seed();
    await bind();
    expect(
      w.lease.requests.filter(({ method, path }) => method === 'POST' && path.endsWith(claims.plural)),
    ).toHaveLength(1);
  });

  test.each<[string, (claim: StoredClaim) => void]>([
    ['of another class', (one) => Object.assign(one.spec, { storageClassName: 'standard' })],
    ['that no pod uses yet', (one) => void delete one.metadata.annotations],
  ])('is left alone when it is one %s', async (_, change) => {
    seed(change);
    await aWhile();
    expect(remotes()).toEqual([]);
    expect(claim()?.metadata.finalizers).toEqual([inUse]);
  });

  test('is made once, though the process dies after the provider has made it', async () => {
    const mend = w.consumer.intercept(({ method, resource }) =>
      method === 'POST' && resource?.plural === 'persistentvolumes'
        ? { code: 503, body: { kind: 'Status', reason: 'ServiceUnavailable', message: 'etcd is away' } }
        : undefined,
    );
    seed();
    await eventually(() => expect(remotes()).toHaveLength(1));
    await w.stop();
    expect(volumes()).toEqual([]);
    const { uid } = remotes()[0]!.metadata;
    mend();
    await w.start(withStorage);
    await bind();
    expect(remotes().map(({ metadata }) => metadata.uid)).toEqual([uid]);
  });

  test('is made once, though the provider’s answer was lost', async () => {
    w.provider.failNext({ method: 'POST', resource: claims.plural, fail: 'answer-lost' });
    seed();
    await bind();
    expect(remotes()).toHaveLength(1);
  });

  test('waits for a provider that does not answer, and says so', async () => {
    w.lease.cut = true;
    seed();
    await eventually(() => expect(said('ProviderUnreachable')).toHaveLength(1));
    expect(claim()?.metadata.annotations).toHaveProperty([selected]);
    expect(volumes()).toEqual([]);
    w.lease.cut = false;
    await bind();
  });

  test('does not even ask a provider that is known not to answer, and asks as soon as it does', async () => {
    await w.stop();
    let linked = false;
    await w.start({ ...withStorage, linked: () => linked });
    w.nodes.get(nodeName)!.refresh();
    seed();
    await eventually(() => expect(said('ProviderUnreachable')).toHaveLength(1));
    expect(w.lease.requests.filter(({ path }) => path.includes(claims.plural))).toEqual([]);
    linked = true;
    w.nodes.get(nodeName)!.refresh();
    await bind();
  });

  test('waits for an earlier one of its name that has not gone yet', async () => {
    w.lease.cut = true;
    const { metadata } = seed();
    w.provider.seed<StoredClaim>(claims, {
      metadata: {
        name: remoteClaimName('data', metadata.uid!),
        namespace: 'tenant',
        finalizers: [inUse],
      },
      spec: {},
    });
    const remote = { namespace: 'tenant', name: remotes()[0]!.metadata.name };
    await w.provider.delete(claims, remote);
    w.lease.cut = false;
    await eventually(() => expect(w.lease.requests.some(({ method }) => method === 'POST')).toBe(true));
    await aWhile();
    expect(volumes()).toEqual([]);
    w.provider.erase(claims, remote);
    await eventually(() => expect(volumes()).toHaveLength(1));
    expect(remotes()[0]?.metadata.deletionTimestamp).toBeUndefined();
  });

  test('writes nothing more once it is there, nor does another process', async () => {
    seed();
    await bind();
    await aWhile();
    const writes = () =>
      [...w.consumer.writes, ...w.provider.writes].filter(({ resource }) => resource?.plural.startsWith('persistent'));
    const before = writes().length;
    await w.stop();
    await w.start(withStorage);
    await aWhile(600);
    expect(writes()).toHaveLength(before);
  });
});

describe('the scheduler chooses again, and the claim says why,', () => {
  const chosenAgain = async (message: RegExp) => {
    await eventually(() => expect(said('ProvisioningFailed').at(-1)).toMatch(message));
    await eventually(() => expect(claim()?.metadata.annotations ?? {}).not.toHaveProperty([selected]));
    expect(claim()?.metadata.annotations ?? {}).not.toHaveProperty([noted]);
    expect(claim()?.metadata.finalizers).toEqual([inUse]);
    expect(remotes()).toEqual([]);
    expect(volumes()).toEqual([]);
  };

  test('when the provider offers no storage', async () => {
    await w.stop();
    await w.start();
    seed();
    await chosenAgain(/Provider acme of lease team-a\/train offers no storage/);
    expect(w.lease.requests.filter(({ path }) => path.includes('persistentvolumeclaims'))).toEqual([]);
  });

  test('when its namespace may not use the lease', async () => {
    await w.stop();
    await w.start({ ...withStorage, allowedNamespaces: ['team-b'] });
    seed();
    await chosenAgain(/Namespace team-a may not use lease team-a\/train: add it/);
    expect(w.lease.requests.filter(({ path }) => path.includes('persistentvolumeclaims'))).toEqual([]);
  });

  test('when the provider refuses it', async () => {
    w.provider.intercept((request) =>
      request.method === 'POST' && request.resource?.plural === claims.plural
        ? { code: 409, body: { kind: 'Status', reason: 'CapacityExhausted', message: 'no room for this now' } }
        : undefined,
    );
    seed();
    await chosenAgain(/refused the claim: .*no room for this now/);
  });

  test('when the node is not leased', async () => {
    w.consumer.seed<KubeObject>(resources.nodes, { metadata: { name: 'worker-1' } });
    seed((one) => Object.assign(one.metadata, { annotations: { [selected]: 'worker-1' } }));
    await chosenAgain(/Node worker-1 is not leased/);
  });

  test('when the node is gone', async () => {
    seed((one) => Object.assign(one.metadata, { annotations: { [selected]: 'gpu-away-1' } }));
    await chosenAgain(/gpu-away-1.*is gone/);
  });

  test('but not while nobody knows yet what became of the node', async () => {
    w.consumer.seed<KubeObject>(resources.nodes, {
      metadata: { name: 'gpu-other-1', labels: { 'app.kubernetes.io/managed-by': 'gpulease' } },
    });
    seed((one) => Object.assign(one.metadata, { annotations: { [selected]: 'gpu-other-1' } }));
    await aWhile();
    expect(claim()?.metadata.annotations).toHaveProperty([selected]);
    expect(said('ProvisioningFailed')).toEqual([]);
  });

  test('and takes back what was asked for where it had chosen before', async () => {
    w.consumer.failNext({ method: 'POST', resource: 'persistentvolumes', fail: 'unreachable', times: 1000 });
    seed();
    await eventually(() => expect(remotes()).toHaveLength(1));
    w.consumer.change<StoredClaim>(claims, key, (one) => {
      one.metadata.annotations = { ...one.metadata.annotations, [selected]: 'gpu-other-1' };
    });
    await eventually(() => expect(remotes()).toEqual([]));
    await eventually(() => expect(claim()?.metadata.annotations ?? {}).not.toHaveProperty([noted]));
  });
});

test('a claim that was asked for in an earlier attempt of the lease is asked for anew', async () => {
  seed((one) => {
    one.metadata.annotations = { [selected]: nodeName, [noted]: `0x${'2'.repeat(64)}/${nodeName}` };
    one.metadata.finalizers = [inUse, finalizer];
  });
  expect((await bind()).spec.csi?.volumeHandle).toMatch(leaseId);
  expect(claim()?.metadata.annotations?.[noted]).toBe(`${leaseId}/${nodeName}`);
});

test('what a volume shows is never taken back, though no watch has told of that volume', async () => {
  await w.stop();
  const { metadata } = seed((one) => {
    one.metadata.annotations = { [noted]: `${leaseId}/${nodeName}`, [selected]: 'gpu-other-1' };
    one.metadata.finalizers = [inUse, finalizer];
  });
  const remote = { namespace: 'tenant', name: remoteClaimName('data', metadata.uid!) };
  w.provider.seed<StoredClaim>(claims, { metadata: remote, spec: {} });
  w.consumer.seed<StoredVolume>(resources.persistentVolumes, { metadata: { name: `pvc-${metadata.uid}` }, spec: {} });
  await w.start(withStorage);
  await aWhile();
  expect(remotes()).toHaveLength(1);
  w.consumer.erase(resources.persistentVolumes, { name: `pvc-${metadata.uid}` });
  w.consumer.change<StoredClaim>(claims, key, (one) => {
    one.metadata.labels = { touched: 'true' };
  });
  await eventually(() => expect(remotes()).toEqual([]));
});

test('a claim that leased nodes cannot serve says so, and is asked for nowhere', async () => {
  seed((one) => Object.assign(one.spec, { accessModes: ['ReadWriteMany'] }));
  await eventually(() => expect(said('ProvisioningFailed')).toMatchObject([expect.stringContaining('ReadWriteMany')]));
  expect(remotes()).toEqual([]);
});

describe('a pod that uses a claim', () => {
  test('is sent with its name at the provider', async () => {
    const { metadata } = seed();
    await bind();
    const pod = bindPod();
    await eventually(() => expect(w.remote(pod)).toBeDefined());
    expect(w.remote(pod)?.spec.volumes).toEqual([
      { name: 'd', persistentVolumeClaim: { claimName: remoteClaimName('data', metadata.uid!) } },
    ]);
  });

  test('waits until it is bound, and no longer', async () => {
    seed();
    const pod = bindPod();
    await eventually(() => expect(said('FailedMount').at(-1)).toMatch(/claim data has no volume yet/));
    expect(w.remote(pod)).toBeUndefined();
    expect(w.pod('web')?.status?.phase).toBe('Pending');
    await bind();
    await eventually(() => expect(w.remote(pod)).toBeDefined());
  });

  test('of another class is refused', async () => {
    seed((one) => Object.assign(one.spec, { storageClassName: 'standard', volumeName: 'pv-1' }));
    const pod = bindPod();
    await eventually(() =>
      expect(w.pod('web')?.status).toMatchObject({ phase: 'Failed', reason: 'VolumeNotSupported' }),
    );
    expect(w.remote(pod)).toBeUndefined();
  });
});

describe('a claim that is deleted', () => {
  test('goes at the provider once no pod uses it, and its volume with it', async () => {
    seed();
    await bind();
    await deleteClaim();
    await aWhile();
    expect(remotes()).toHaveLength(1);
    unused();
    await eventually(() => expect(claim()).toBeUndefined());
    expect(remotes()).toEqual([]);
    await eventually(() => expect(volumes()).toEqual([]));
  });

  test('stays until it is gone at the provider', async () => {
    seed();
    await bind();
    const remote = { namespace: 'tenant', name: remotes()[0]!.metadata.name };
    w.provider.change<StoredClaim>(claims, remote, (one) => {
      one.metadata.finalizers = [inUse];
    });
    await deleteClaim();
    unused();
    await eventually(() => expect(remotes()[0]?.metadata.deletionTimestamp).toBeDefined());
    await aWhile();
    expect(claim()).toBeDefined();
    expect(volumes()).toHaveLength(1);
    w.provider.erase(claims, remote);
    await eventually(() => expect(claim()).toBeUndefined());
  });

  test('stays while the provider does not answer, and says so', async () => {
    seed();
    await bind();
    w.lease.cut = true;
    await deleteClaim();
    unused();
    await eventually(() => expect(said('DeletionWaits')).toHaveLength(1));
    expect(claim()?.metadata.finalizers).toEqual([finalizer]);
    expect(volumes()).toHaveLength(1);
    await w.stop();
    w.lease.cut = false;
    await w.start(withStorage);
    await eventually(() => expect(claim()).toBeUndefined());
    await eventually(() => expect(volumes()).toEqual([]));
    expect(remotes()).toEqual([]);
  });

  test('takes with it what was made and never shown', async () => {
    w.consumer.failNext({ method: 'POST', resource: 'persistentvolumes', fail: 'unreachable', times: 1000 });
    seed();
    await eventually(() => expect(remotes()).toHaveLength(1));
    await deleteClaim();
    unused();
    await eventually(() => expect(claim()).toBeUndefined());
    expect(remotes()).toEqual([]);
  });

  test('leaves its data where its volume is to be retained', async () => {
    seed();
    await bind();
    await deleteClaim();
    // In the last moment, before any watch can tell of it.
    touch((one) => Object.assign(one.spec, { persistentVolumeReclaimPolicy: 'Retain' }));
    unused();
    await eventually(() => expect(claim()).toBeUndefined());
    await aWhile();
    expect(volumes()).toHaveLength(1);
    expect(remotes()).toHaveLength(1);
  });

  test('takes its data along even if its finalizer was taken off', async () => {
    seed();
    await bind();
    w.consumer.erase(claims, key);
    await eventually(() => expect(remotes()).toEqual([]));
    await eventually(() => expect(volumes()).toEqual([]));
  });
});

describe('data are lost', () => {
  const mayNotBeFilledAnew = async () => {
    expect(lost()).toMatchObject({ status: 'True', message: expect.stringContaining('No empty volume is put') });
    await eventually(() => expect(said('DataGone')).toHaveLength(1));
    expect(volumes()).toHaveLength(1);
    await aWhile();
    expect(claim()?.spec.volumeName).toBe(volumes()[0]!.metadata.name);
  };

  test('with their lease; the claim says so, and goes without asking anybody', async () => {
    seed();
    await bind();
    await eventually(() => expect(w.nodes.claims(nodeName)).toEqual(['team-a/data']));
    const { requests } = w.lease;
    await w.nodes.remove(nodeName);
    await eventually(() => expect(lost()?.status).toBe('True'));
    await mayNotBeFilledAnew();
    const asked = requests.length;
    await deleteClaim();
    unused();
    await eventually(() => expect(claim()).toBeUndefined());
    await eventually(() => expect(volumes()).toEqual([]));
    expect(requests).toHaveLength(asked);
  });

  test('with another attempt of the same lease; a pod there waits instead of finding an empty disk', async () => {
    seed();
    await bind();
    await w.stop();
    w.provider.erase(claims, { namespace: 'tenant', name: remotes()[0]!.metadata.name });
    await w.start({ ...withStorage, leaseId: `0x${'2'.repeat(64)}` });
    await eventually(() => expect(lost()?.message).toMatch(/has ended/));
    const pod = bindPod();
    await eventually(() => expect(said('FailedMount').at(-1)).toMatch(/data of claim data are lost/));
    expect(w.remote(pod)).toBeUndefined();
    expect(remotes()).toEqual([]);
    await mayNotBeFilledAnew();
  });

  test('when the provider that serves the lease no longer has them', async () => {
    seed();
    await bind();
    w.provider.erase(claims, { namespace: 'tenant', name: remotes()[0]!.metadata.name });
    touch();
    await eventually(() => expect(lost()?.message).toMatch(/no longer has the data/));
    await mayNotBeFilledAnew();
    expect(remotes()).toEqual([]);
  });

  test.each<[string, () => void]>([
    ['the provider does not answer', () => Object.assign(w.lease, { cut: true })],
    ['the provider does not say that it serves the lease', () => Object.assign(w.lease, { state: 'Provisioning' })],
  ])('by no means because %s', async (_, silence) => {
    seed();
    await bind();
    w.provider.erase(claims, { namespace: 'tenant', name: remotes()[0]!.metadata.name });
    silence();
    touch();
    await aWhile();
    expect(lost()).toBeUndefined();
  });

  test('nor because this process has just begun, and serves no node yet', async () => {
    seed();
    await bind();
    await w.stop();
    w.consumer.seed<KubeObject>(resources.nodes, {
      metadata: { name: 'gpu-other-1', labels: { 'app.kubernetes.io/managed-by': 'gpulease' } },
    });
    touch((one) => {
      one.spec.nodeAffinity!.required!.nodeSelectorTerms![0]!.matchExpressions![0]!.values = ['gpu-other-1'];
    });
    await w.start(withStorage);
    await aWhile();
    expect(lost()).toBeUndefined();
  });

  test('until they are found; then that is said', async () => {
    seed();
    await bind();
    const [remote] = remotes();
    w.provider.erase(claims, { namespace: 'tenant', name: remote!.metadata.name });
    touch();
    await eventually(() => expect(lost()?.status).toBe('True'));
    const { resourceVersion: _, uid: __, ...metadata } = remote!.metadata;
    w.provider.seed<StoredClaim>(claims, { ...remote!, metadata });
    touch();
    await eventually(() => expect(lost()?.status).toBe('False'));
  });
});

test('claims are told before their lease ends, those of other leases are not', async () => {
  seed();
  await bind();
  await eventually(() => expect(w.nodes.claims(nodeName)).toEqual(['team-a/data']));
  w.nodes.tellClaims(nodeName, 'Warning', 'LeaseEnding', 'copy it away');
  expect(said('LeaseEnding')).toEqual(['copy it away']);
  expect(w.nodes.claims('gpu-other-1')).toEqual([]);
});
