import { describe, expect, test } from 'vitest';
import { candidates, type NodeStock, offerInfoOf, stockOf } from '../../../../operator/core/allocation/inventory.ts';
import {
  type NodeObject,
  podRoom,
  sellableRoom,
  sharePerGpu,
  viewNode,
} from '../../../../operator/core/allocation/node-view.ts';
import { noRoom, type Room } from '../../../../operator/core/allocation/room.ts';
import { gpuNode, offer } from '../../../support/provider-side.ts';

const node = (name: string, gpus: number, more: Record<string, unknown> = {}) =>
  viewNode(gpuNode(name, gpus, more) as unknown as NodeObject);
const stock = (name: string, gpus: number, sold: Partial<Room> = {}, others: Room = noRoom): NodeStock => {
  const view = node(name, gpus);
  return { node: view, sellable: sellableRoom(view, others), sold: { ...noRoom, ...sold } };
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
    expect(Object.keys(node('a', 2).carriedLabels).sort()).toEqual([
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
