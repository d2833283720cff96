/**
 * What is for rent: offers × the nodes that they cover, less what is sold.
 *
 * Two offers may cover the same node (a reserved and a spot price, say); what is sold counts against the node, whichever
 * offer it was sold under.
 */

import type { OfferInfo } from '../../api/gateway.ts';
import { gpuResource } from '../../api/labels.ts';
import { modelOfProduct, wholeGpu } from '../../api/models.ts';
import type { GpuOffer, OfferSpec, OfferStatus } from '../../api/offer.ts';
import type { NodeDevice, NodeView } from './node-view.ts';
import { sharePerGpu } from './node-view.ts';
import { bytesOf, cpuMillisOf, minus, mostPodsPerGpu, noRoom, type Room, resourcesOf, smaller } from './room.ts';

/** A node with one kind of its devices: what of them may be sold, and is. CPU, memory and the rest are the whole node's. */
export interface NodeStock {
  readonly node: NodeView;
  readonly device: NodeDevice;
  /** All that may be sold, sold or not. */
  readonly sellable: Room;
  readonly sold: Room;
  /** Of `sold`: GPUs of leases that have ended, and what of their tenants is not gone yet. */
  readonly cleaning?: { readonly gpus: number; readonly why: readonly string[] };
}

export interface OfferStock {
  readonly name: string;
  readonly spec: OfferSpec;
  readonly nodes: readonly NodeStock[];
  /** What comes with each GPU. */
  readonly perGpu: Room;
  readonly product: string;
  readonly memoryMiB: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly total: number;
  readonly available: number;
  readonly largestAvailable: number;
}

/** As it is told and promised: left out for whole GPUs, so that what is signed for them is what it always was. */
export const partitionOf = ({ partition }: Pick<OfferSpec, 'partition'>): { readonly partition?: string } =>
  partition === undefined || partition === wholeGpu ? {} : { partition };

export const freeOn = (stock: NodeStock): Room => minus(stock.sellable, stock.sold);

function covers(spec: OfferSpec, { node, device }: NodeStock): boolean {
  if (
    !node.offered ||
    device.partition !== (spec.partition ?? wholeGpu) ||
    modelOfProduct(device.product) !== spec.model
  )
    return false;
  return Object.entries(spec.nodeSelector ?? {}).every(([key, value]) => node.labels[key] === value);
}

/** Labels that all nodes share, so that a virtual node of this offer is sure to carry them. */
function sharedLabels(devices: readonly NodeDevice[]): Record<string, string> {
  const [first, ...others] = devices;
  if (first === undefined) return {};
  return Object.fromEntries(
    Object.entries(first.labels).filter(([key, value]) => others.every(({ labels }) => labels[key] === value)),
  );
}

/** Nodes of an offer from which nothing new is sold, or not all, and why; the first few. */
export const withdrawnOf = (stock: OfferStock): readonly string[] =>
  stock.nodes
    .flatMap(({ node, device }) => {
      if (node.withdrawnBecause !== undefined) return [`${node.name}: ${node.withdrawnBecause}`];
      if (device.unhealthy === 0) return [];
      return [`${node.name}: ${device.unhealthy} of ${device.count + device.unhealthy} GPUs are unhealthy`];
    })
    .slice(0, 8);

/** GPUs of an offer that wait for their last tenant to be gone, in words; the first few. */
export const cleaningOf = (stock: OfferStock): readonly string[] =>
  stock.nodes.flatMap(({ node, cleaning }) => (cleaning?.why ?? []).map((why) => `${node.name}: ${why}`)).slice(0, 4);

const ratio = (amount: number, part: number): number =>
  part === 0 ? Number.POSITIVE_INFINITY : Math.floor(amount / part);

/** Whole GPUs, each with its share of the rest, that fit into a room. */
export function gpusThatFit(room: Room, perGpu: Room): number {
  return Math.min(
    room.gpus,
    ratio(room.cpuMillis, perGpu.cpuMillis),
    ratio(room.memoryBytes, perGpu.memoryBytes),
    ratio(room.ephemeralBytes, perGpu.ephemeralBytes),
    ratio(room.pods, perGpu.pods),
  );
}

export function stockOf(offer: GpuOffer, all: readonly NodeStock[]): OfferStock {
  const { spec } = offer;
  const nodes = all.filter((stock) => covers(spec, stock));
  const open = nodes.filter((stock) => stock.sellable.gpus > 0);
  const devicesOn = (name: string) =>
    all.filter(({ node }) => node.name === name).reduce((sum, { sellable }) => sum + sellable.gpus, 0);
  // The same promise on whichever node the lease lands: the smallest share of all.
  const share = open
    .map((stock) => sharePerGpu(stock.sellable, devicesOn(stock.node.name)))
    .reduce<Room | undefined>((least, one) => (least === undefined ? one : smaller(least, one)), undefined);
  const fixed = spec.resourcesPerGpu;
  const perGpu: Room = {
    gpus: 1,
    cpuMillis: fixed?.cpu === undefined ? (share?.cpuMillis ?? 0) : cpuMillisOf(fixed.cpu),
    memoryBytes: fixed?.memory === undefined ? (share?.memoryBytes ?? 0) : bytesOf(fixed.memory),
    ephemeralBytes:
      fixed?.ephemeralStorage === undefined ? (share?.ephemeralBytes ?? 0) : bytesOf(fixed.ephemeralStorage),
    // What is sold is what is believed again before a tenant is made of it.
    pods: Math.min(share?.pods ?? 0, mostPodsPerGpu),
  };
  const free = open.map((stock) => gpusThatFit(freeOn(stock), perGpu));
  const devices = nodes.map((stock) => stock.device);
  return {
    name: offer.metadata.name,
    spec,
    nodes,
    perGpu: nodes.length === 0 ? { ...noRoom, gpus: 1 } : perGpu,
    product: devices.map(({ product }) => product).sort()[0] ?? '',
    memoryMiB: devices.length === 0 ? 0 : Math.min(...devices.map(({ memoryMiB }) => memoryMiB)),
    labels: sharedLabels(devices),
    // A withdrawn node still counts with what is sold of it: that is rented out, whatever its state.
    total: nodes.reduce((sum, stock) => sum + Math.max(stock.sellable.gpus, stock.sold.gpus), 0),
    available: free.reduce((sum, gpus) => sum + gpus, 0),
    largestAvailable: Math.max(0, ...free),
  };
}

/** Nodes of the offer that have the room free, the fullest first, so that large blocks stay whole. */
export function candidates(stock: OfferStock, wanted: Room): readonly NodeStock[] {
  return stock.nodes
    .filter((one) => {
      const free = freeOn(one);
      return (
        wanted.gpus <= free.gpus &&
        wanted.cpuMillis <= free.cpuMillis &&
        wanted.memoryBytes <= free.memoryBytes &&
        wanted.ephemeralBytes <= free.ephemeralBytes &&
        wanted.pods <= free.pods
      );
    })
    .sort((a, b) => freeOn(a).gpus - freeOn(b).gpus || (a.node.name < b.node.name ? -1 : 1));
}

/** Where a lease lies, for its record. */
export const placeOn = ({ node, device }: NodeStock): { readonly nodeName: string; readonly device?: string } => ({
  nodeName: node.name,
  device: device.resource === gpuResource ? undefined : device.resource,
});

const placeOf = (stock: OfferStock) => ({
  ...(stock.labels['topology.kubernetes.io/region'] === undefined
    ? {}
    : { region: stock.labels['topology.kubernetes.io/region'] }),
  ...(stock.labels['topology.kubernetes.io/zone'] === undefined
    ? {}
    : { zone: stock.labels['topology.kubernetes.io/zone'] }),
});

export function offerInfoOf(stock: OfferStock): OfferInfo {
  return {
    name: stock.name,
    model: stock.spec.model,
    ...partitionOf(stock.spec),
    interconnect: stock.spec.interconnect,
    capacityType: stock.spec.capacityType,
    prices: stock.spec.prices,
    minDurationSeconds: stock.spec.minDurationSeconds,
    maxDurationSeconds: stock.spec.maxDurationSeconds,
    product: stock.product,
    memoryMiB: stock.memoryMiB,
    ...placeOf(stock),
    total: stock.total,
    available: stock.available,
    largestAvailable: stock.largestAvailable,
    resourcesPerGpu: resourcesOf(stock.perGpu),
    labels: stock.labels,
  };
}

/** Without conditions and observedAt, which the writer adds when anything of this changed. */
export function offerStatusOf(
  stock: OfferStock,
): Omit<OfferStatus, 'conditions' | 'observedAt' | 'observedGeneration'> {
  return {
    product: stock.product,
    memoryMiB: stock.memoryMiB,
    ...placeOf(stock),
    total: stock.total,
    available: stock.available,
    largestAvailable: stock.largestAvailable,
    labels: stock.labels,
    resourcesPerGpu: resourcesOf(stock.perGpu),
  };
}
