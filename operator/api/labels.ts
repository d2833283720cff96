/** Every label, annotation, taint and finalizer of ours, and what it means. Nothing else spells them out. */

export const group = 'gpulease.dev';
export const version = 'v1alpha1';
export const apiVersion = `${group}/${version}`;

export const labels = {
  /**
   * On a virtual node, and on what is made for a lease: the name of the GpuLease. On a pod: the lease on whose node it is to
   * run. That is a lease of the pod's own namespace, unless the pod's `lease-namespace` names another.
   */
  lease: `${group}/lease`,
  /** UID of the GpuLease: tells a lease from an older one of the same name. */
  leaseUid: `${group}/lease-uid`,
  leaseNamespace: `${group}/lease-namespace`,
  /** On chain id of the lease, without 0x, cut to 63 characters. On provider-side objects. */
  leaseId: `${group}/lease-id`,
  /** On a gateway's record of a lease: the account that pays for it. */
  consumer: `${group}/consumer`,
  provider: `${group}/provider`,
  offer: `${group}/offer`,
  capacityType: `${group}/capacity-type`,
  /** On a lease, and on its virtual node: the pool that it belongs to. */
  pool: `${group}/pool`,
  /** On a virtual node: `restricted`, unless pods of every namespace may use it. See `accessLabelPrefix`. */
  access: `${group}/access`,
  /** On a real node of a provider: rent this node's GPUs out. Also the key of the taint that the gateway puts there. */
  offered: `${group}/offered`,
  /** On a GpuOffer: it is in the price list of a chart's values, and goes when it no longer is. Value: the release. */
  priceList: `${group}/price-list`,
  /** On the Secret of a receipt: the month that it belongs to, e.g. 2026-11. */
  receiptMonth: `${group}/receipt-month`,
  /** On a tenant's namespace, and everything in it. */
  tenant: `${group}/tenant`,
  managedBy: 'app.kubernetes.io/managed-by',
  /** Kubernetes' own, on an EndpointSlice: the Service it belongs to, and who keeps it. */
  serviceName: 'kubernetes.io/service-name',
  sliceManagedBy: 'endpointslice.kubernetes.io/managed-by',
} as const;

export const managedBy = 'gpulease';
/** In `labels.sliceManagedBy`. */
export const sliceManager = group;

/** Value of the label `access`. */
export const restricted = 'restricted';
/** On a virtual node, with a namespace behind the slash: its pods may use the node. Policies read it; see `policies.ts`. */
export const accessLabelPrefix = `access.${group}/`;

/** All virtual nodes are called so; pods of other nodes are none of ours. Real nodes may be called so, too. */
export const virtualNodePrefix = 'gpu-';

export const annotations = {
  /** On a carried pod at the provider: namespace, name and UID of the consumer's pod. */
  podNamespace: `${group}/pod-namespace`,
  podName: `${group}/pod-name`,
  podUid: `${group}/pod-uid`,
  /** On a tenant's namespace: where its money is, as `chain id/contract/lease id`. So it can be told when all else is lost. */
  escrow: `${group}/escrow`,
  /** On a tenant's namespace: the node of its lease, and what that node calls its devices. Policies read them. */
  tenantNode: `${group}/node`,
  tenantDevice: `${group}/device`,
  /** On a Service of the consumer: namespaces whose leases may name it, separated by commas, or *. Its own need not be named. */
  leaseNamespaces: `${group}/lease-namespaces`,
  /** On an EndpointSlice of ours: `port=port of the pod` for each of its ports, so that a restart finds them again. */
  podPorts: `${group}/pod-ports`,
  /** On a Service of a tenant: namespace/name of the consumer's Service that it stands for. */
  service: `${group}/service`,
  /** On a PersistentVolumeClaim of the consumer: `lease id/node` at which its data is, or may be. Kept by the virtual node. */
  storedAt: `${group}/stored-at`,
  /** On a claim of a tenant: namespace/name of the consumer's claim that it stands for. */
  claim: `${group}/claim`,
  /** Kubernetes' own, on a claim: the node that its first pod is to run on; taken away, the scheduler chooses again. */
  selectedNode: 'volume.kubernetes.io/selected-node',
  /** Kubernetes' own, on a PersistentVolume: who made it, and takes it away. */
  provisionedBy: 'pv.kubernetes.io/provisioned-by',
  /** On an EndpointSlice of a tenant: the tunnel behind it. */
  tunnel: `${group}/tunnel`,
} as const;

export const finalizers = {
  /** On a GpuLease: money or hardware may still be held for it. */
  lease: `${group}/release`,
  /** On a virtual Node: its lease has not ended. */
  node: `${group}/node`,
  /** On a PersistentVolumeClaim: a provider may hold data for it. */
  claim: `${group}/claim`,
  /** On a GpuProvider: leases of it have not ended. */
  provider: `${group}/provider`,
} as const;

export const taints = {
  /** On virtual nodes: value is the lease's name. */
  lease: labels.lease,
  /** The custom of virtual nodes: tooling knows it. Value: gpulease. */
  virtualNode: 'virtual-kubelet.io/provider',
  offered: labels.offered,
} as const;

export const gpuResource = 'nvidia.com/gpu';

/** Claims of this class are for storage at the provider of a leased node. */
export const storageClassName = 'gpulease';

/** Names the devices of leased nodes, and the DeviceClass that is shipped for them. */
export const deviceDriver = group;

/**
 * Labels of the provider's real node that the virtual node carries. Everything else stays behind, so that a provider
 * cannot attract pods by pretending to be, say, a control plane or somebody's dedicated pool.
 *
 * What NVIDIA's feature discovery says of GPUs and driver: product, memory, compute capability, CUDA, sharing, MIG. Not the
 * counts of MIG profiles (`nvidia.com/mig-1g.5gb.count`): those devices are not leased.
 * https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md
 */
export const carriedNodeLabelPrefixes = [
  'nvidia.com/cuda.',
  'nvidia.com/gpu.',
  'nvidia.com/mig.',
  'nvidia.com/mps.',
  'nvidia.com/vgpu.',
] as const;
/**
 * Among those, what does not describe a GPU but steers NVIDIA's operators. An operator in the consumer's cluster would
 * schedule drivers onto a node that runs them already, or quarrel over `gpu.present`, which it sets to false on each node
 * whose PCI devices it has not seen itself. An author who wants one of them sets it in `spec.node.labels`.
 */
export const keptNodeLabelPrefixes = [
  'nvidia.com/gpu.deploy.',
  'nvidia.com/gpu.present',
  'nvidia.com/gpu.workload.',
  'nvidia.com/mig.config',
  'nvidia.com/vgpu.config',
  'nvidia.com/vgpu.host-driver',
] as const;
/** Kubernetes' well-known labels of place and hardware; hostname and OS are the virtual node's own. */
export const carriedNodeLabels = [
  'topology.kubernetes.io/region',
  'topology.kubernetes.io/zone',
  'kubernetes.io/arch',
  'kubernetes.io/os',
  'node.kubernetes.io/instance-type',
] as const;

export const isCarriedNodeLabel = (key: string): boolean =>
  (carriedNodeLabels as readonly string[]).includes(key) ||
  (carriedNodeLabelPrefixes.some((prefix) => key.startsWith(prefix)) &&
    !keptNodeLabelPrefixes.some((prefix) => key.startsWith(prefix)));
