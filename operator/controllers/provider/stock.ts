/**
 * What the provider has, from watched lists: nodes, pods, offers, ledgers. A hint that is seconds old at worst, good for
 * offers and quotes; a reservation reads the node, its pods and its ledger anew.
 */
import { gpuResource, labels as ownLabels } from '../../api/labels.ts';
import type { GpuOffer } from '../../api/offer.ts';
import { type NodeStock, type OfferStock, stockOf } from '../../core/allocation/inventory.ts';
import { cleaningOn, LedgerError, type NodeLedger, soldOn } from '../../core/allocation/ledger.ts';
import {
  holdsRoom,
  isOffered,
  type NodeDevice,
  type NodeObject,
  type NodeView,
  type PodObject,
  podRoom,
  sellableRoom,
  viewNode,
} from '../../core/allocation/node-view.ts';
import { isTenantNamespace } from '../../core/allocation/record.ts';
import { noRoom, plus, type Room } from '../../core/allocation/room.ts';
import { sameJson } from '../../engine/equal.ts';
import { createInformer } from '../../engine/informer.ts';
import { type Change, type Cluster, type Informer, type KubeObject, type Log, resources } from '../../engine/types.ts';
import { hasLedgerName, type LedgerConfigMap, ledgerName, ledgerOfConfigMap, ledgerSelector } from './ledgers.ts';

export type WatchedNode = KubeObject & NodeObject;
export type WatchedPod = KubeObject & PodObject;
export type WatchedOffer = KubeObject & GpuOffer;

/**
 * Pods of tenants are counted by the ledger, whether they run or not; so they need not be watched, and there are more of them
 * than of all others. Each has this label, which the gateway sets and no tenant can take away; what somebody made by hand in
 * a tenant's namespace is known by that.
 */
const notOfTenants = `!${ownLabels.leaseId}`;

const trimPod = (pod: WatchedPod): WatchedPod => ({
  metadata: {
    name: pod.metadata.name,
    namespace: pod.metadata.namespace,
    uid: pod.metadata.uid,
    resourceVersion: pod.metadata.resourceVersion,
  },
  spec: {
    nodeName: pod.spec?.nodeName,
    containers: pod.spec?.containers?.map(({ resources: wants }) => ({ resources: wants })),
    initContainers: pod.spec?.initContainers?.map(({ resources: wants, restartPolicy }) => ({
      resources: wants,
      restartPolicy,
    })),
    overhead: pod.spec?.overhead,
    resources: pod.spec?.resources,
  },
  status: { phase: pod.status?.phase },
});

const trimNode = (node: WatchedNode): WatchedNode => ({
  metadata: {
    name: node.metadata.name,
    uid: node.metadata.uid,
    resourceVersion: node.metadata.resourceVersion,
    deletionTimestamp: node.metadata.deletionTimestamp,
    labels: node.metadata.labels,
  },
  spec: node.spec && { unschedulable: node.spec.unschedulable, taints: node.spec.taints },
  status: node.status && {
    allocatable: node.status.allocatable,
    capacity: node.status.capacity,
    conditions: node.status.conditions,
    nodeInfo: node.status.nodeInfo,
  },
});

const othersOf = (pods: readonly PodObject[], device: string): Room =>
  pods
    .filter((pod) => holdsRoom(pod) && !isTenantNamespace(pod.metadata.namespace))
    .map((pod) => podRoom(pod, device))
    .reduce(plus, noRoom);

/** A kind of device that a node has no more, or whose labels say nothing for sure: what is sold of it still is. */
const unknownDevice = (resource: string): NodeDevice => ({
  resource,
  partition: '',
  product: '',
  memoryMiB: 0,
  count: 0,
  unhealthy: 0,
  labels: {},
});

function readable(map: LedgerConfigMap): NodeLedger | undefined {
  try {
    return ledgerOfConfigMap(map);
  } catch (error) {
    if (error instanceof LedgerError) return undefined;
    throw error;
  }
}

export interface Stock {
  readonly nodes: Informer<WatchedNode>;
  readonly pods: Informer<WatchedPod>;
  readonly offers: Informer<WatchedOffer>;
  readonly ledgers: Informer<LedgerConfigMap>;
  readonly synced: boolean;
  /** Seconds since the nodes were last heard of. */
  readonly staleSeconds: number;
  run(signal: AbortSignal): Promise<void>;
  waitForSync(signal?: AbortSignal): Promise<void>;
  node(name: string): NodeView | undefined;
  /** Whether a change of a pod moves what is free: most pods of a cluster are on nodes that are not for rent. */
  countsAnew(change: Change<WatchedPod>): boolean;
  offer(name: string): OfferStock | undefined;
  all(): readonly OfferStock[];
  /** The node whose ledger has set something aside for the lease, and which of its devices. */
  holderOf(leaseId: string): { readonly node: string; readonly device?: string } | undefined;
  /** The offered nodes themselves, each once for each kind of its devices. */
  onOffer(): readonly NodeStock[];
  /** From the API server itself, with one kind of device as GPUs. Undefined: the node is gone. */
  sellableNow(node: string, device: string, signal?: AbortSignal): Promise<Room | undefined>;
}

export function createStock(cluster: Cluster, namespace: string, log: Log): Stock {
  const nodes = createInformer<WatchedNode>({ cluster, resource: resources.nodes, trim: trimNode, log });
  const pods = createInformer<WatchedPod>({
    cluster,
    resource: resources.pods,
    labelSelector: notOfTenants,
    trim: trimPod,
    indexes: { node: (pod) => (pod.spec?.nodeName ? [pod.spec.nodeName] : []) },
    log,
  });
  const offers = createInformer<WatchedOffer>({ cluster, resource: resources.gpuOffers, log });
  const ledgers = createInformer<LedgerConfigMap>({
    cluster,
    resource: resources.configMaps,
    namespace,
    labelSelector: ledgerSelector,
    log,
  });
  const informers = [nodes, pods, offers, ledgers];

  /** Of watched nodes, which are never changed, only replaced. */
  const views = new WeakMap<WatchedNode, NodeView>();
  function viewOf(node: WatchedNode): NodeView {
    const view = views.get(node) ?? viewNode(node);
    views.set(node, view);
    return view;
  }

  function stockOfNode(node: WatchedNode): readonly NodeStock[] {
    const view = viewOf(node);
    const map = ledgers.get({ namespace, name: ledgerName(view.name) });
    try {
      const ledger = map && ledgerOfConfigMap(map);
      const others = pods.byIndex('node', view.name);
      const held = Object.values(ledger?.entries ?? {}).map(({ device }) => device ?? gpuResource);
      const lost = [...new Set(held)].filter((resource) => !view.devices.some((one) => one.resource === resource));
      return [...view.devices, ...lost.map(unknownDevice)].map((device) => ({
        node: view,
        device,
        sellable: hasLedgerName(view.name)
          ? sellableRoom(view, othersOf(others, device.resource), device.resource)
          : noRoom,
        sold: ledger === undefined ? noRoom : soldOn(ledger, device.resource),
        ...(ledger === undefined ? {} : { cleaning: cleaningOn(ledger, device.resource) }),
      }));
    } catch (error) {
      // What is sold of it cannot be told, so nothing more is.
      log.warn({ node: view.name, error: String(error) }, 'a ledger cannot be read: its node is not offered');
      return view.devices.map((device) => ({ node: view, device, sellable: noRoom, sold: noRoom }));
    }
  }

  const stocks = (): readonly NodeStock[] =>
    nodes
      .list()
      .filter((node) => viewOf(node).offered)
      .flatMap(stockOfNode);

  return {
    nodes,
    pods,
    offers,
    ledgers,
    get synced() {
      return informers.every((informer) => informer.synced);
    },
    get staleSeconds() {
      return nodes.staleSeconds;
    },
    async run(signal) {
      await Promise.all(informers.map((informer) => informer.run(signal)));
    },
    async waitForSync(signal) {
      await Promise.all(informers.map((informer) => informer.waitForSync(signal)));
    },
    node(name) {
      const node = nodes.get({ name });
      return node && viewOf(node);
    },
    countsAnew({ type, object, old }) {
      if (isTenantNamespace(object.metadata.namespace)) return false;
      const name = object.spec?.nodeName;
      if (!isOffered(name === undefined ? undefined : nodes.get({ name })?.metadata.labels)) return false;
      if (type !== 'updated' || old === undefined) return true;
      return holdsRoom(old) !== holdsRoom(object) || !sameJson(old.spec, object.spec);
    },
    offer(name) {
      const offer = offers.get({ name });
      // A mirrored offer is somebody else's: this cluster may be a consumer, too.
      return offer === undefined || offer.spec.providerName !== undefined ? undefined : stockOf(offer, stocks());
    },
    holderOf(leaseId) {
      for (const map of ledgers.list()) {
        // One that cannot be read is told of elsewhere; nothing is known of what it holds.
        const ledger = readable(map);
        const held = ledger && Object.hasOwn(ledger.entries, leaseId) ? ledger.entries[leaseId] : undefined;
        if (held) return { node: ledger!.node, ...(held.device === undefined ? {} : { device: held.device }) };
      }
      return undefined;
    },
    onOffer: stocks,
    all() {
      const all = stocks();
      return offers
        .list()
        .filter((offer) => offer.spec.providerName === undefined)
        .map((offer) => stockOf(offer, all));
    },
    async sellableNow(name, device, signal) {
      const [node, { items }] = await Promise.all([
        cluster.get<WatchedNode>(resources.nodes, { name }, signal),
        cluster.list<WatchedPod>(
          resources.pods,
          { fieldSelector: `spec.nodeName=${name}`, labelSelector: notOfTenants },
          signal,
        ),
      ]);
      if (node === undefined) return undefined;
      const others = items.filter((pod) => pod.spec?.nodeName === name);
      return sellableRoom(viewNode(node), othersOf(others, device), device);
    },
  };
}
