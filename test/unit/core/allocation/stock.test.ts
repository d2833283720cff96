import { describe, expect, test } from 'vitest';
import {
  candidates,
  type NodeStock,
  offerInfoOf,
  stockOf,
  withdrawnOf,
} from '../../../../operator/core/allocation/inventory.ts';
import {
  type NodeObject,
  podRoom,
  sellableRoom,
  sharePerGpu,
  viewNode,
} from '../../../../operator/core/allocation/node-view.ts';
import { mostPodsPerGpu, noRoom, type Room } from '../../../../operator/core/allocation/room.ts';
import { gpuNode, offer } from '../../../support/provider-side.ts';

const node = (name: string, gpus: number, more: Record<string, unknown> = {}) =>
  viewNode(gpuNode(name, gpus, more) as unknown as NodeObject);
const stock = (name: string, gpus: number, sold: Partial<Room> = {}, others: Room = noRoom): NodeStock => {
  const view = node(name, gpus);
  return { node: view, device: view.devices[0]!, sellable: sellableRoom(view, others), sold: { ...noRoom, ...sold } };
};

describe('what of a node may be sold', () => {
  test('what it has, less others and headroom', () => {
    const others = podRoom({
      metadata: { name: 'ds' },
      spec: { containers: [{ resources: { requests: { cpu: '400m' } } }] },
    });
    // 32 cores less a twentieth, less what the DaemonSet asks for.
    expect(sellableRoom(node('a', 2), others)).toMatchObject({
      gpus: 2,
      cpuMillis: 32_000 - 1600 - 400,
      pods: 110 - 6 - 1,
    });
  });

  test('a GPU that a pod of the provider’s own holds is not sold', () => {
    const own = podRoom({
      metadata: { name: 'own' },
      spec: { containers: [{ resources: { limits: { 'nvidia.com/gpu': '1' } } }] },
    });
    expect(sellableRoom(node('a', 2), own).gpus).toBe(1);
  });

  test.each([
    ['cordoned', { spec: { unschedulable: true } }],
    [
      'unready',
      { status: { allocatable: { 'nvidia.com/gpu': '2' }, conditions: [{ type: 'Ready', status: 'Unknown' }] } },
    ],
    ['not offered', { metadata: { name: 'a', labels: { 'gpulease.dev/offered': 'false' } } }],
    [
      'leaving',
      { metadata: { name: 'a', labels: { 'gpulease.dev/offered': '' }, deletionTimestamp: '2026-01-01T00:00:00Z' } },
    ],
  ])('nothing of a node that is %s', (_name, more) => {
    expect(sellableRoom(node('a', 2, more), noRoom)).toEqual(noRoom);
  });

  test('an unhealthy GPU is withdrawn', () => {
    const status = (gpuNode('a', 2) as unknown as NodeObject).status;
    const sick = { status: { ...status, allocatable: { ...status?.allocatable, 'nvidia.com/gpu': '1' } } };
    expect(sellableRoom(node('a', 2, sick), noRoom).gpus).toBe(1);
  });

  test('tells consumers only the labels that are theirs to know', () => {
    expect(Object.keys(node('a', 2).devices[0]!.labels).sort()).toEqual([
      'kubernetes.io/arch',
      'nvidia.com/gpu.memory',
      'nvidia.com/gpu.product',
      'topology.kubernetes.io/region',
    ]);
    expect(node('a', 2).nodeInfo).not.toHaveProperty('machineID');
  });
});

describe('what a pod takes', () => {
  const cpu = (amount: string) => ({ resources: { requests: { cpu: amount } } });
  test.each([
    ['the sum of its containers', { containers: [cpu('1'), cpu('500m')] }, 1500],
    [
      'its largest init container, when that is more',
      { containers: [cpu('1')], initContainers: [cpu('3'), cpu('2')] },
      3000,
    ],
    [
      'its sidecars always',
      { containers: [cpu('1')], initContainers: [{ ...cpu('2'), restartPolicy: 'Always' }, cpu('2')] },
      4000,
    ],
    ['its overhead', { containers: [cpu('1')], overhead: { cpu: '250m' } }, 1250],
    ['its limits where it requests nothing', { containers: [{ resources: { limits: { cpu: '2' } } }] }, 2000],
  ])('%s', (_name, spec, cpuMillis) => {
    expect(podRoom({ metadata: { name: 'p' }, spec }).cpuMillis).toBe(cpuMillis);
  });
});

describe('offers', () => {
  test('each GPU comes with its share, in figures that a reader can take in', () => {
    const share = sharePerGpu(stock('a', 3).sellable);
    expect(share.cpuMillis % 10).toBe(0);
    expect(share.memoryBytes % (1024 * 1024)).toBe(0);
    expect(share.cpuMillis * 3).toBeLessThanOrEqual(stock('a', 3).sellable.cpuMillis);
  });

  test('count what can really be leased', () => {
    const seen = stockOf(offer('o'), [stock('a', 4, { gpus: 1 }), stock('b', 2, { gpus: 2 })]);
    expect(offerInfoOf(seen)).toMatchObject({ total: 6, available: 3, largestAvailable: 3, memoryMiB: 24564 });
  });

  test('a node whose memory is sold out has no GPU to offer, however many are free', () => {
    const all = stock('a', 4).sellable.memoryBytes;
    expect(stockOf(offer('o'), [stock('a', 4, { gpus: 1, memoryBytes: all })])).toMatchObject({
      total: 4,
      available: 0,
    });
  });

  test('take only nodes of their model and selector', () => {
    expect(stockOf(offer('o', { model: 'H100-SXM' }), [stock('a', 4)]).total).toBe(0);
    expect(stockOf(offer('o', { nodeSelector: { 'provider.example/secret': 'shelf-8' } }), [stock('a', 4)]).total).toBe(
      0,
    );
    expect(stockOf(offer('o', { nodeSelector: { 'provider.example/secret': 'shelf-7' } }), [stock('a', 4)]).total).toBe(
      4,
    );
  });

  test('small leases fill the fullest node, so that large ones still fit', () => {
    const seen = stockOf(offer('o'), [stock('a', 8), stock('b', 8, { gpus: 6 }), stock('c', 8, { gpus: 8 })]);
    expect(candidates(seen, { ...noRoom, gpus: 1 }).map((one) => one.node.name)).toEqual(['b', 'a']);
    expect(candidates(seen, { ...noRoom, gpus: 8 }).map((one) => one.node.name)).toEqual(['a']);
  });

  test('resources that the provider fixed are what is promised', () => {
    const seen = stockOf(offer('o', { resourcesPerGpu: { cpu: 4, memory: '16Gi' } }), [stock('a', 4)]);
    expect(offerInfoOf(seen).resourcesPerGpu).toMatchObject({ cpu: '4', memory: '16Gi' });
    // 30.4 cores that may be sold hold seven such shares, but there are four GPUs.
    expect(seen.available).toBe(4);
  });
});

describe('parts of GPUs are offered as what they are', () => {
  const h100 = 'NVIDIA-H100-80GB-HBM3';
  const labelled = (labels: Record<string, string>, allocatable: Record<string, string>) => {
    const bare = gpuNode('a', 0) as unknown as NodeObject;
    return viewNode({
      ...bare,
      metadata: { name: 'a', labels: { ...bare.metadata.labels, 'nvidia.com/gpu.memory': '81559', ...labels } },
      status: { ...bare.status, allocatable: { ...bare.status?.allocatable, ...allocatable } },
    });
  };
  const stocksOf = (view: ReturnType<typeof viewNode>, sold: Room = noRoom): NodeStock[] =>
    view.devices.map((device) => ({
      node: view,
      device,
      sellable: sellableRoom(view, noRoom, device.resource),
      sold,
    }));
  const single = labelled(
    {
      'nvidia.com/gpu.product': `${h100}-MIG-1g.10gb`,
      'nvidia.com/gpu.memory': '9728',
      'nvidia.com/mig.strategy': 'single',
    },
    { 'nvidia.com/gpu': '7' },
  );
  const mixed = labelled(
    {
      'nvidia.com/gpu.product': h100,
      'nvidia.com/gpu.count': '2',
      'nvidia.com/gpu.family': 'hopper',
      'nvidia.com/gpu.replicas': '1',
      'nvidia.com/mig.strategy': 'mixed',
      'nvidia.com/mig-1g.10gb.product': `${h100}-MIG-1g.10gb`,
      'nvidia.com/mig-1g.10gb.memory': '9728',
      'nvidia.com/mig-1g.10gb.count': '4',
      'nvidia.com/mig-1g.10gb.replicas': '1',
      'nvidia.com/mig-1g.10gb.multiprocessors': '16',
    },
    { 'nvidia.com/gpu': '2', 'nvidia.com/mig-1g.10gb': '4' },
  );
  const sliced = labelled(
    {
      'nvidia.com/gpu.product': `${h100}-SHARED`,
      'nvidia.com/gpu.replicas': '4',
      'nvidia.com/gpu.sharing-strategy': 'time-slicing',
    },
    { 'nvidia.com/gpu': '8' },
  );
  const renamed = labelled(
    { 'nvidia.com/gpu.product': h100, 'nvidia.com/gpu.replicas': '4', 'nvidia.com/gpu.sharing-strategy': 'mps' },
    { 'nvidia.com/gpu.shared': '8' },
  );

  test.each([
    ['the strategy single', single, 'nvidia.com/gpu', 'MIG-1g.10gb', 9728, 7],
    ['the strategy mixed', mixed, 'nvidia.com/mig-1g.10gb', 'MIG-1g.10gb', 9728, 4],
    ['time-slicing, memory by its even share', sliced, 'nvidia.com/gpu', 'TimeSliced', 20389, 8],
    ['MPS under another name', renamed, 'nvidia.com/gpu.shared', 'MPS', 20389, 8],
  ])('%s', (_name, view, resource, partition, memoryMiB, count) => {
    expect(view.devices.find((device) => device.resource === resource)).toMatchObject({ partition, memoryMiB, count });
    const seen = stockOf(offer('part', { model: 'H100-SXM', partition }), stocksOf(view));
    expect(offerInfoOf(seen)).toMatchObject({ partition, memoryMiB, available: count });
  });

  test.each([
    ['MIG', single],
    ['time-slicing', sliced],
    ['renamed time-slicing', renamed],
    [
      'time-slicing that feature discovery only counts',
      labelled({ 'nvidia.com/gpu.product': h100, 'nvidia.com/gpu.replicas': '4' }, { 'nvidia.com/gpu': '8' }),
    ],
  ])('and never as a whole GPU: %s', (_name, view) => {
    expect(stockOf(offer('whole', { model: 'H100-SXM' }), stocksOf(view)).total).toBe(0);
  });

  test('whole GPUs beside parts are offered apart from them, and neither counts the other', () => {
    const whole = stockOf(offer('whole', { model: 'H100-SXM' }), stocksOf(mixed));
    expect(offerInfoOf(whole)).toMatchObject({ total: 2, available: 2, memoryMiB: 81559, product: h100 });
    expect(offerInfoOf(whole)).not.toHaveProperty('partition');
    // The node's CPU is shared by all six, so that one kind cannot promise it all.
    expect(whole.perGpu.cpuMillis * 6).toBeLessThanOrEqual(32_000);
  });

  test('no more pods are sold for a GPU than a lease may have', () => {
    const like = gpuNode('wide', 1) as unknown as NodeObject;
    const allocatable = { ...like.status?.allocatable, pods: '5000' };
    const [wide] = stocksOf(viewNode({ ...like, status: { ...like.status, allocatable } }));
    expect(wide!.sellable.pods).toBeGreaterThan(mostPodsPerGpu);
    expect(stockOf(offer('wide'), [wide!]).perGpu.pods).toBe(mostPodsPerGpu);
  });

  test('a node of parts is labelled as one that has nothing else', () => {
    const { labels } = offerInfoOf(
      stockOf(offer('part', { model: 'H100-SXM', partition: 'MIG-1g.10gb' }), stocksOf(mixed)),
    );
    expect(labels).toMatchObject({
      'nvidia.com/gpu.product': `${h100}-MIG-1g.10gb`,
      'nvidia.com/gpu.memory': '9728',
      'nvidia.com/gpu.count': '4',
      'nvidia.com/gpu.multiprocessors': '16',
      'nvidia.com/gpu.family': 'hopper',
      'nvidia.com/mig.strategy': 'single',
    });
    expect(Object.keys(labels).some((key) => key.startsWith('nvidia.com/mig-'))).toBe(false);
  });

  test.each([
    ['an invalid MIG layout', { 'nvidia.com/gpu.product': `${h100}-MIG-INVALID` }, { 'nvidia.com/gpu': '0' }],
    [
      'MIG devices that are shared once more',
      { 'nvidia.com/mig-1g.10gb.product': `${h100}-MIG-1g.10gb-SHARED`, 'nvidia.com/mig-1g.10gb.replicas': '2' },
      { 'nvidia.com/mig-1g.10gb': '8' },
    ],
  ])('nothing of %s', (_name, labels, allocatable) => {
    const view = labelled(
      labels as unknown as Record<string, string>,
      allocatable as unknown as Record<string, string>,
    );
    expect(view.devices.filter((device) => device.partition !== 'None')).toEqual([]);
  });

  test('a pod of the provider’s own takes the devices that it asks for, and no others', () => {
    const own = {
      metadata: { name: 'own' },
      spec: { containers: [{ resources: { limits: { 'nvidia.com/mig-1g.10gb': '3' } } }] },
    };
    const left = (device: string) => sellableRoom(mixed, podRoom(own, device), device).gpus;
    expect([left('nvidia.com/mig-1g.10gb'), left('nvidia.com/gpu')]).toEqual([1, 2]);
  });
});

describe('a node is withdrawn, and its offer says why', () => {
  const status = (gpuNode('a', 2) as unknown as NodeObject).status!;
  test.each([
    [
      'under pressure',
      { status: { ...status, conditions: [...status.conditions!, { type: 'DiskPressure', status: 'True' }] } },
      'DiskPressure',
    ],
    ['cordoned', { spec: { unschedulable: true } }, 'cordoned'],
    [
      'tainted with what pods of tenants do not tolerate',
      { spec: { taints: [{ key: 'team', value: 'vision', effect: 'NoSchedule' }] } },
      'taint team:NoSchedule',
    ],
  ])('%s', (_name, more, why) => {
    const view = node('a', 2, more);
    expect(sellableRoom(view, noRoom)).toEqual(noRoom);
    const seen = stockOf(offer('o'), [{ node: view, device: view.devices[0]!, sellable: noRoom, sold: noRoom }]);
    expect(withdrawnOf(seen)).toEqual([expect.stringContaining(`a: ${why}`)]);
  });

  test('in part, where the device plugin gave up some of its GPUs', () => {
    const allocatable = { ...status.allocatable, 'nvidia.com/gpu': '6' };
    const view = node('a', 6, {
      status: { ...status, allocatable, capacity: { ...allocatable, 'nvidia.com/gpu': '8' } },
    });
    const seen = stockOf(offer('o'), [
      { node: view, device: view.devices[0]!, sellable: sellableRoom(view, noRoom), sold: noRoom },
    ]);
    expect(seen).toMatchObject({ total: 6, available: 6 });
    expect(withdrawnOf(seen)).toEqual(['a: 2 of 8 GPUs are unhealthy']);
  });

  test('but not for taints that they do tolerate', () => {
    const taints = [
      { key: 'nvidia.com/gpu', value: 'present', effect: 'NoSchedule' },
      { key: 'gpulease.dev/offered', value: 'true', effect: 'NoSchedule' },
      { key: 'busy', effect: 'PreferNoSchedule' },
    ];
    expect(sellableRoom(node('a', 2, { spec: { taints } }), noRoom).gpus).toBe(2);
  });
});
