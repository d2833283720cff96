/** Claims to devices, on a node whose lease shows its GPUs so. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ResourceClaim, ResourceSlice } from '../../../operator/core/node/device-claims.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { aWhile, eventually, nodeName, type World, world } from './world.ts';

let w: World;
beforeEach(async () => {
  w = world();
  await w.start({ gpusAs: 'Devices' });
});
afterEach(() => w.stop());

const slice = () => w.consumer.object<ResourceSlice & KubeObject>(resources.resourceSlices, { name: nodeName });
const bindClaimant = () =>
  w.bind('web', (pod) => {
    pod.spec.resourceClaims = [{ name: 'gpus', resourceClaimName: 'pair' }];
    pod.spec.containers[0]!.resources = { claims: [{ name: 'gpus' }] };
  });
const allocate = (driver = 'gpulease.dev') =>
  w.consumer.seed<ResourceClaim & KubeObject>(resources.resourceClaims, {
    metadata: { name: 'pair', namespace: 'team-a' },
    status: {
      allocation: {
        devices: { results: ['gpu-0', 'gpu-1'].map((device) => ({ request: 'r', driver, pool: nodeName, device })) },
      },
    },
  });

test('a pod is sent with as many GPUs as it was allocated', async () => {
  allocate();
  const pod = bindClaimant();
  await eventually(() => expect(w.remote(pod)).toBeDefined());
  expect(w.remote(pod)?.spec.containers[0]?.resources).toMatchObject({ limits: { 'nvidia.com/gpu': '2' } });
  expect(w.remote(pod)?.spec.resourceClaims).toBeUndefined();
});

test('a pod whose claim is not allocated waits, and says for what', async () => {
  const pod = bindClaimant();
  await eventually(() => expect(w.told.map(({ reason }) => reason)).toContain('ClaimNotAllocated'));
  await aWhile();
  expect(w.remote(pod)).toBeUndefined();
  expect(w.pod('web')?.status?.phase).toBe('Pending');
});

test('a pod with a device of somebody else is refused, before anything of it leaves', async () => {
  allocate('net.example.com');
  const pod = bindClaimant();
  await eventually(() => expect(w.pod('web')?.status).toMatchObject({ phase: 'Failed', reason: 'FieldNotSupported' }));
  expect(w.remote(pod)).toBeUndefined();
});

test('the node shows its devices, and writes them once', async () => {
  await eventually(() => expect(slice()?.spec.devices).toHaveLength(2));
  expect(w.node()?.status?.allocatable).not.toHaveProperty('nvidia.com/gpu');
  const writes = () => w.consumer.writes.filter((r) => r.resource?.plural === 'resourceslices').length;
  await aWhile(600);
  expect(writes()).toBe(1);
});

test('a slice of an earlier node of that name is replaced', async () => {
  await eventually(() => expect(slice()).toBeDefined());
  const old = slice()!.metadata.uid;
  await w.stop();
  w.consumer.change<ResourceSlice & KubeObject>(resources.resourceSlices, { name: nodeName }, (object) => {
    object.metadata.ownerReferences![0]!.uid = 'earlier';
  });
  await w.start({ gpusAs: 'Devices' });
  await eventually(() => expect(slice()?.metadata.uid).not.toBe(old));
  expect(slice()?.metadata.ownerReferences?.[0]?.uid).toBe(w.node()?.metadata.uid);
});

test('more GPUs make another generation of the pool', async () => {
  await eventually(() => expect(slice()?.spec.devices).toHaveLength(2));
  await w.stop();
  w.consumer.change<ResourceSlice & KubeObject>(resources.resourceSlices, { name: nodeName }, (object) => {
    object.spec.devices.pop();
  });
  await w.start({ gpusAs: 'Devices' });
  await eventually(() => expect(slice()?.spec).toMatchObject({ pool: { generation: 2 }, devices: [{}, {}] }));
});
