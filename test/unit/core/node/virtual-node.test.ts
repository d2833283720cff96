import { describe, expect, test } from 'vitest';
import { tolerationPatch } from '../../../../operator/core/node/tolerations.ts';
import {
  adoptNode,
  buildNode,
  conditionsChanged,
  declaredFeatures,
  type LeaseNode,
  type Node,
  nodeCapacity,
  nodeConditions,
  nodeStatus,
  type ServedNode,
  statusChanged,
} from '../../../../operator/core/node/virtual-node.ts';
import { pod } from './builders.ts';

const lease: LeaseNode = {
  lease: { name: 'train', namespace: 'ml', uid: 'u-1' },
  leaseId: `0x${'a'.repeat(64)}`,
  providerName: 'acme',
  offerName: 'acme-4090',
  capacityType: 'OnDemand',
};
const served: ServedNode = {
  gpus: 2,
  resources: { cpu: '8', memory: '16Gi', ephemeralStorage: '20Gi' },
  pods: 20,
  nodeLabels: {},
  nodeInfo: { osImage: 'x'.repeat(1000), kernelVersion: '6.1' },
};
const now = new Date('2026-03-01T12:00:00Z');
const labelsOf = (nodeLabels: Record<string, string>, more: Partial<LeaseNode> = {}) =>
  buildNode({ ...lease, ...more }, { ...served, nodeLabels }).metadata.labels;

describe('labels', () => {
  test('carry what describes the GPU and the place', () => {
    expect(
      labelsOf({
        'nvidia.com/gpu.product': 'NVIDIA-H100',
        'topology.kubernetes.io/zone': 'a',
        'kubernetes.io/arch': 'arm64',
      }),
    ).toMatchObject({
      'nvidia.com/gpu.product': 'NVIDIA-H100',
      'topology.kubernetes.io/zone': 'a',
      'kubernetes.io/arch': 'arm64',
      'gpulease.dev/lease': 'train',
      'gpulease.dev/provider': 'acme',
      'kubernetes.io/hostname': buildNode(lease, served).metadata.name,
    });
  });

  test.each([
    ['nvidia.com/gpu.memory', '81559'],
    ['nvidia.com/gpu.compute.major', '9'],
    ['nvidia.com/gpu.sharing-strategy', 'none'],
    ['nvidia.com/cuda.driver-version.full', '550.127.08'],
    ['nvidia.com/mig.strategy', 'single'],
    ['topology.kubernetes.io/region', 'eu-1'],
    ['node.kubernetes.io/instance-type', 'p5'],
  ])('carry %s', (key, value) => {
    expect(labelsOf({ [key]: value })).toMatchObject({ [key]: value });
  });

  test.each([
    ['have drivers installed on it', 'nvidia.com/gpu.deploy.driver', 'true'],
    ['be quarrelled over', 'nvidia.com/gpu.present', 'true'],
    ['have its GPUs cut', 'nvidia.com/mig.config', 'all-1g.10gb'],
    ['show devices that are not leased', 'nvidia.com/mig-1g.5gb.count', '7'],
    ['change with each restart of a labeller', 'nvidia.com/gfd.timestamp', '1555019244'],
  ])('do not let the node %s', (_, key, value) => {
    expect(labelsOf({ [key]: value })).toEqual(labelsOf({}));
  });

  test('tell the architecture that the kubelet tells, where the node has no label of it', () => {
    const nodeInfo = { architecture: 'arm64' };
    const arch = (nodeLabels: Record<string, string>, info: Record<string, string>) =>
      buildNode(lease, { ...served, nodeLabels, nodeInfo: info }).metadata.labels?.['kubernetes.io/arch'];
    expect(arch({}, nodeInfo)).toBe('arm64');
    expect(arch({ 'kubernetes.io/arch': 'amd64' }, nodeInfo)).toBe('amd64');
    expect(arch({}, { architecture: 'not a label' })).toBeUndefined();
    expect(arch({}, {})).toBeUndefined();
  });

  test('tell who may use the node, so that the scheduler looks elsewhere for all others', () => {
    const of = (allowedNamespaces: string[]) =>
      Object.entries(labelsOf({}, { allowedNamespaces }) ?? {}).filter(([key]) => key.includes('access'));
    expect(of(['ml', 'web'])).toEqual([
      ['gpulease.dev/access', 'restricted'],
      ['access.gpulease.dev/ml', ''],
      ['access.gpulease.dev/web', ''],
    ]);
    expect(of(['*'])).toEqual([]);
  });

  test('tell the pool of the lease', () => {
    expect(labelsOf({}, { pool: 'spare' })).toMatchObject({ 'gpulease.dev/pool': 'spare' });
    expect(labelsOf({ 'gpulease.dev/pool': 'forged' })).not.toHaveProperty('gpulease.dev/pool');
  });

  test.each([
    ['a role', 'node-role.kubernetes.io/control-plane', ''],
    ['somebody’s pool', 'pool', 'payments'],
    ['a label of ours', 'gpulease.dev/lease', 'other'],
    ['another host', 'kubernetes.io/hostname', 'db-1'],
    ['a prefix that only looks like it', 'nvidia.com.evil.io/x', 'y'],
    ['a value that is none', 'nvidia.com/gpu.product', 'a b'],
    ['a name that is none', 'nvidia.com/a/b', 'x'],
  ])('do not let a provider claim %s', (_, key, value) => {
    expect(labelsOf({ [key]: value })).toEqual(labelsOf({}));
  });

  test('let the lease’s author add some, but not ours', () => {
    const labels = labelsOf({}, { labels: { team: 'ml', 'gpulease.dev/provider': 'forged' } });
    expect(labels).toMatchObject({ team: 'ml', 'gpulease.dev/provider': 'acme' });
  });

  test('cut the name of a lease that is too long for a value', () => {
    const long = { ...lease.lease, name: `${'n'.repeat(62)}.tail` };
    expect(labelsOf({}, { lease: long })?.['gpulease.dev/lease']).toBe('n'.repeat(62));
  });
});

describe('a node', () => {
  test('has exactly the leased capacity', () => {
    expect(nodeCapacity(served)).toEqual({
      'nvidia.com/gpu': '2',
      cpu: '8',
      memory: '16Gi',
      'ephemeral-storage': '20Gi',
      pods: '20',
    });
  });

  test('shows no GPUs to count where it shows them as devices, or each could be given twice', () => {
    const place = { address: '10.1.1.1', port: 7, kubeletVersion: 'v1' };
    expect(nodeStatus(served, place).allocatable).toEqual(nodeCapacity(served));
    const { allocatable, capacity } = nodeStatus(served, place, 'Devices');
    expect(allocatable).toEqual({ cpu: '8', memory: '16Gi', 'ephemeral-storage': '20Gi', pods: '20' });
    expect(capacity).toEqual(allocatable);
  });

  test('is tainted, unless the lease says otherwise', () => {
    const own = [
      { key: 'gpulease.dev/lease', value: 'train', effect: 'NoSchedule' },
      { key: 'virtual-kubelet.io/provider', value: 'gpulease', effect: 'NoSchedule' },
    ];
    const extra = { key: 'x', value: 'y', effect: 'NoExecute' };
    expect(buildNode({ ...lease, taints: [extra] }, served).spec.taints).toEqual([...own, extra]);
    expect(buildNode({ ...lease, untainted: true, taints: [extra] }, served).spec.taints).toEqual([extra]);
  });

  test('publishes an address only, no host name that nobody resolves', () => {
    const status = nodeStatus(served, { address: '10.1.1.1', port: 7, kubeletVersion: 'v1' });
    expect(status.addresses).toEqual([{ type: 'InternalIP', address: '10.1.1.1' }]);
    expect(status.nodeInfo?.osImage?.length).toBe(256);
  });
});

describe('adopting a stored node', () => {
  const stored = (): Node => {
    const node = buildNode(lease, served);
    node.metadata.resourceVersion = '5';
    node.metadata.labels!.mine = 'kept';
    node.spec.taints!.push({ key: 'node.kubernetes.io/not-ready', effect: 'NoSchedule', timeAdded: 't' });
    node.spec.unschedulable = true;
    return node;
  };
  test('changes nothing where nothing is amiss', () => {
    expect(adoptNode(stored(), lease, served)).toBeUndefined();
  });
  test('takes away that a namespace may use it, when it may no longer', () => {
    const node = buildNode({ ...lease, allowedNamespaces: ['ml', 'web'] }, served);
    const fewer = adoptNode(node, { ...lease, allowedNamespaces: ['ml'] }, served);
    expect(fewer?.metadata.labels).toHaveProperty(['access.gpulease.dev/ml']);
    expect(fewer?.metadata.labels).not.toHaveProperty(['access.gpulease.dev/web']);
    const all = adoptNode(node, { ...lease, allowedNamespaces: ['*'] }, served);
    expect(Object.keys(all?.metadata.labels ?? {}).filter((key) => key.includes('access'))).toEqual([]);
    expect(adoptNode(fewer!, { ...lease, allowedNamespaces: ['ml'] }, served)).toBeUndefined();
  });
  test('puts back what is missing, and leaves what others put there', () => {
    const node = stored();
    node.metadata.finalizers = ['other/one'];
    node.spec.taints = node.spec.taints!.slice(1);
    const adopted = adoptNode(node, lease, served)!;
    expect(adopted.metadata.finalizers).toEqual(['other/one', 'gpulease.dev/node']);
    expect(adopted.metadata.labels?.mine).toBe('kept');
    expect(adopted.spec.unschedulable).toBe(true);
    expect(adopted.spec.taints?.map((t) => t.key)).toEqual([
      'gpulease.dev/lease',
      'virtual-kubelet.io/provider',
      'node.kubernetes.io/not-ready',
    ]);
  });
  test('takes our taints away when the lease becomes untainted', () => {
    expect(adoptNode(stored(), { ...lease, untainted: true }, served)?.spec.taints?.map((t) => t.key)).toEqual([
      'node.kubernetes.io/not-ready',
    ]);
  });
});

describe('conditions', () => {
  const ready = nodeConditions(undefined, { ready: true }, now);
  test('write nothing while they say the same', () => {
    const again = nodeConditions(ready, { ready: true }, new Date('2026-03-01T13:00:00Z'));
    expect(conditionsChanged(ready, again)).toBe(false);
    expect(again[0]?.lastTransitionTime).toBe('2026-03-01T12:00:00Z');
  });
  test('say why the node is not ready', () => {
    const not = nodeConditions(ready, { ready: false, reason: 'Unpaid', message: 'used up' }, now);
    expect(conditionsChanged(ready, not)).toBe(true);
    expect(not[0]).toMatchObject({ type: 'Ready', status: 'False', reason: 'Unpaid', message: 'used up' });
  });
});

test('a stored status that lacks nothing is not written again', () => {
  const wanted = nodeStatus(served, { address: 'a', port: 1, kubeletVersion: 'v' });
  expect(statusChanged({ ...wanted, images: [], conditions: [] }, wanted)).toBe(false);
  expect(statusChanged({ ...wanted, daemonEndpoints: { kubeletEndpoint: { Port: 2 } } }, wanted)).toBe(true);
});

describe('features that are declared', () => {
  test.each<[string, string[]]>([
    ['v1.36.3', ['ExtendWebSocketsToKubelet']],
    ['v1.31.0-eks-1234', ['ExtendWebSocketsToKubelet']],
    ['v2.0.0', ['ExtendWebSocketsToKubelet']],
    ['v1.30.9', []],
    ['v1.9.1', []],
    ['fake', []],
    ['', []],
    ['v1', []],
    ['v1.9999999999.0', []],
  ])('of a provider with kubelet %s are %j', (kubeletVersion, expected) => {
    expect(declaredFeatures({ nodeInfo: { kubeletVersion } })).toEqual(expected);
  });

  test('of a provider that says nothing are none', () => {
    expect(declaredFeatures(served)).toEqual([]);
  });

  const wanted = (kubeletVersion: string) =>
    nodeStatus({ ...served, nodeInfo: { kubeletVersion } }, { address: 'a', port: 1, kubeletVersion: 'v' });
  test.each<[string, Partial<NonNullable<Node['status']>>, string, boolean]>([
    ['is a change', { declaredFeatures: ['Other'] }, 'v1.36.0', true],
    ['is taken back', { declaredFeatures: ['ExtendWebSocketsToKubelet'] }, 'v1.29.0', true],
    ['is there', { declaredFeatures: ['ExtendWebSocketsToKubelet'] }, 'v1.36.0', false],
    ['is not kept by an older API server, which is no reason to write for ever', {}, 'v1.36.0', false],
  ])('what %s', (_, stored, kubeletVersion, changed) => {
    const { declaredFeatures: _declared, ...rest } = wanted(kubeletVersion);
    expect(statusChanged({ ...rest, ...stored }, wanted(kubeletVersion))).toBe(changed);
  });

  test('goes along with the first status', () => {
    expect(statusChanged(undefined, wanted('v1.36.0'))).toBe(true);
    expect(statusChanged({}, wanted('v1.36.0'))).toBe(true);
  });
});

describe('tolerations of an accepted pod', () => {
  test('lose their seconds for not-ready and unreachable, and nothing else changes', () => {
    const given = pod({
      tolerations: [
        { key: 'mine', effect: 'NoExecute', tolerationSeconds: 5 },
        { key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 },
        { key: 'node.kubernetes.io/unreachable', operator: 'Exists', effect: 'NoExecute' },
      ],
    });
    expect(tolerationPatch(given)).toEqual([
      { op: 'test', path: '/metadata/uid', value: '3f1c' },
      { op: 'test', path: '/spec/tolerations/1/key', value: 'node.kubernetes.io/not-ready' },
      { op: 'remove', path: '/spec/tolerations/1/tolerationSeconds' },
    ]);
  });
  test('are left alone when they have none', () => {
    expect(tolerationPatch(pod({ tolerations: [{ operator: 'Exists' }] }))).toBeUndefined();
  });
});
