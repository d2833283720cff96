import { describe, expect, test } from 'vitest';
import {
  claimNames,
  countClaims,
  type ResourceClaim,
  resourceSlice,
  withoutClaims,
} from '../../../../operator/core/node/device-claims.ts';
import type { Container, Pod } from '../../../../operator/core/node/pod.ts';

const node = 'gpu-train-0123456789';
const container = (name: string, claims: object[], more: Partial<Container> = {}): Container => ({
  name,
  image: 'busybox',
  resources: { limits: { cpu: '1' }, claims },
  ...more,
});
const pod = (containers: Container[], more: object = {}): Pod => ({
  metadata: { name: 'web', namespace: 'ml', uid: 'u-web' },
  spec: {
    containers,
    resourceClaims: [
      { name: 'one', resourceClaimName: 'shared' },
      { name: 'two', resourceClaimTemplateName: 'pair' },
    ],
    ...more,
  },
  status: { resourceClaimStatuses: [{ name: 'two', resourceClaimName: 'web-two-x1' }] } as Pod['status'],
});
type Result = { request: string; driver: string; pool: string; device: string; adminAccess?: boolean };
const device = (name: string, more: Partial<Result> = {}): Result => ({
  request: 'gpu',
  driver: 'gpulease.dev',
  pool: node,
  device: name,
  ...more,
});
const claim = (
  results: Result[] | undefined,
  reservedFor = [{ resource: 'pods', name: 'web', uid: 'u-web' }],
): ResourceClaim => ({
  metadata: { name: 'claim', namespace: 'ml' },
  status: results ? { allocation: { devices: { results } }, reservedFor } : {},
});
const claims = (one?: ResourceClaim, two?: ResourceClaim) =>
  new Map([...(one ? [['one', one] as const] : []), ...(two ? [['two', two] as const] : [])]);
const both = claims(
  claim([device('gpu-0')]),
  claim([device('gpu-1', { request: 'a' }), device('gpu-2', { request: 'b/big' })]),
);

test('claims are found by the name given, or the one made from a template', () => {
  expect([...claimNames(pod([]))]).toEqual([
    ['one', 'shared'],
    ['two', 'web-two-x1'],
  ]);
  expect([...claimNames({ ...pod([]), status: {} })]).toEqual([
    ['one', 'shared'],
    ['two', undefined],
  ]);
});

describe('a container', () => {
  const gpusOf = (counted: ReturnType<typeof countClaims>) =>
    'pod' in counted && counted.pod.spec.containers.map((one) => one.resources?.limits?.['nvidia.com/gpu']);

  test.each<[string, object[], string | undefined]>([
    ['no claim', [], undefined],
    ['a claim', [{ name: 'one' }], '1'],
    ['all of a claim', [{ name: 'two' }], '2'],
    ['one request of it', [{ name: 'two', request: 'a' }], '1'],
    ['a request of alternatives', [{ name: 'two', request: 'b' }], '1'],
    ['two claims', [{ name: 'one' }, { name: 'two' }], '3'],
    ['a claim and a part of it, which is in it', [{ name: 'two' }, { name: 'two', request: 'a' }], '2'],
  ])('with %s asks for as many GPUs', (_, asked, count) => {
    expect(gpusOf(countClaims(pod([container('main', asked)]), both, node))).toEqual([count]);
  });

  test('keeps what else it asks for, and no word of claims is left', () => {
    const counted = countClaims(pod([container('main', [{ name: 'one' }])]), both, node);
    expect(counted).toMatchObject({
      pod: { spec: { containers: [{ resources: { limits: { cpu: '1', 'nvidia.com/gpu': '1' } } }] } },
    });
    expect(JSON.stringify('pod' in counted && counted.pod.spec)).not.toMatch(/claims/i);
  });

  test('may use again what an init container had before it', () => {
    const init = [container('prepare', [{ name: 'one' }])];
    const counted = countClaims(pod([container('main', [{ name: 'one' }])], { initContainers: init }), both, node);
    expect(counted).toMatchObject({
      pod: { spec: { initContainers: [{ resources: { limits: { 'nvidia.com/gpu': '1' } } }] } },
    });
  });
});

describe('a pod', () => {
  const main = [container('main', [{ name: 'one' }])];

  test('without claims is left as it is', () => {
    const plain: Pod = { metadata: { name: 'x' }, spec: { containers: [{ name: 'main' }] } };
    expect(countClaims(plain, new Map(), node)).toEqual({ pod: plain });
    expect(withoutClaims(plain)).toBe(plain);
  });

  test.each<[string, Map<string, ResourceClaim>]>([
    ['is not made', claims(undefined, claim([]))],
    ['is not allocated', claims(claim(undefined), claim([]))],
  ])('waits while a claim %s', (_, given) => {
    expect(countClaims(pod(main), given, node)).toEqual({
      waits: 'The claim of spec.resourceClaims[0] (one) is not allocated yet.',
    });
  });

  test.each<[string, Container[], Map<string, ResourceClaim>, RegExp]>([
    [
      'for a device of another driver',
      main,
      claims(claim([device('x', { driver: 'net.example.com' })]), claim([])),
      /^spec.resourceClaims\[0\]: a device of driver net.example.com is not here/,
    ],
    ['for a device of another node', main, claims(claim([device('x', { pool: 'gpu-other' })]), claim([])), /not here/],
    [
      'for administrative access',
      main,
      claims(claim([device('gpu-0', { adminAccess: true })]), claim([])),
      /no administrative access/,
    ],
    [
      'for a claim that another pod uses',
      main,
      claims(claim([device('gpu-0')], [{ resource: 'pods', name: 'first', uid: 'u-first' }]), claim([])),
      /in use by first/,
    ],
    [
      'for two containers that share a GPU',
      [...main, container('side', [{ name: 'one' }])],
      both,
      /containers main and side share a GPU/,
    ],
  ])('is refused %s', (_, containers, given, message) => {
    const counted = countClaims(pod(containers), given, node);
    expect(counted).toEqual({ refused: 'FieldNotSupported', message: expect.stringMatching(message) });
  });

  test('is refused for a sidecar that shares a GPU, as the two run together', () => {
    const initContainers = [container('side', [{ name: 'one' }], { restartPolicy: 'Always' })];
    expect(countClaims(pod(main, { initContainers }), both, node)).toMatchObject({ refused: 'FieldNotSupported' });
  });

  test('is looked at without its claims for what they do not matter to', () => {
    const bare = withoutClaims(pod(main));
    expect(bare.spec.resourceClaims).toBeUndefined();
    expect(bare.spec.containers[0]?.resources).toEqual({ limits: { cpu: '1' } });
  });
});

describe('the slice of a node', () => {
  const served = {
    gpus: 2,
    resources: { cpu: '8', memory: '16Gi', ephemeralStorage: '20Gi' },
    pods: 20,
    nodeInfo: {},
    nodeLabels: {
      'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090',
      'nvidia.com/gpu.family': 'ada-lovelace',
      'nvidia.com/gpu.memory': '24564',
      'nvidia.com/gpu.compute.major': '8',
      'nvidia.com/gpu.compute.minor': '9',
      'nvidia.com/cuda.driver-version.major': '550',
      'nvidia.com/cuda.driver-version.minor': '127',
      'nvidia.com/cuda.driver-version.revision': '08',
    },
  };
  const of = (nodeLabels: Record<string, string>, gpus = 2) =>
    resourceSlice({ name: node, uid: 'u-node', labels: {} }, { ...served, nodeLabels, gpus }, 1);

  test('has one device a leased GPU, and goes with the node', () => {
    const slice = of(served.nodeLabels);
    expect(slice.metadata.ownerReferences).toMatchObject([{ kind: 'Node', uid: 'u-node' }]);
    expect(slice.spec).toMatchObject({
      driver: 'gpulease.dev',
      nodeName: node,
      pool: { name: node, generation: 1, resourceSliceCount: 1 },
    });
    expect(slice.spec.devices.map(({ name }) => name)).toEqual(['gpu-0', 'gpu-1']);
  });

  test('says of a GPU what feature discovery says, as versions where they are some', () => {
    expect(of(served.nodeLabels).spec.devices[0]).toEqual({
      name: 'gpu-0',
      attributes: {
        type: { string: 'gpu' },
        productName: { string: 'NVIDIA-GeForce-RTX-4090' },
        architecture: { string: 'ada-lovelace' },
        cudaComputeCapability: { version: '8.9.0' },
        driverVersion: { version: '550.127.8' },
      },
      capacity: { memory: { value: '24564Mi' } },
    });
  });

  test('leaves out what a provider does not say, or says so that nobody would take it', () => {
    expect(of({ 'nvidia.com/gpu.memory': 'much', 'nvidia.com/gpu.compute.major': 'nine' }).spec.devices[0]).toEqual({
      name: 'gpu-0',
      attributes: { type: { string: 'gpu' } },
    });
  });

  test('has no more devices than a slice may hold', () => {
    expect(of({}, 1000).spec.devices).toHaveLength(128);
  });
});
