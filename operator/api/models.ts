/**
 * GPU models by the names people use, and the product strings that GPU feature discovery puts on nodes
 * (label nvidia.com/gpu.product; https://github.com/NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery).
 * A lease asks for a model; an offer is matched by what its nodes really carry.
 */
export const gpuModels = {
  RTX4090: ['NVIDIA-GeForce-RTX-4090', 'NVIDIA-GeForce-RTX-4090-D'],
  RTX5090: ['NVIDIA-GeForce-RTX-5090'],
  L40S: ['NVIDIA-L40S'],
  'A100-PCIe': ['NVIDIA-A100-80GB-PCIe', 'NVIDIA-A100-PCIE-40GB'],
  'A100-SXM': ['NVIDIA-A100-SXM4-80GB', 'NVIDIA-A100-SXM4-40GB'],
  'H100-PCIe': ['NVIDIA-H100-PCIe', 'NVIDIA-H100-NVL'],
  'H100-SXM': ['NVIDIA-H100-80GB-HBM3'],
  'H200-SXM': ['NVIDIA-H200', 'NVIDIA-H200-141GB-HBM3e'],
} as const satisfies Record<string, readonly string[]>;

export type GpuModel = keyof typeof gpuModels;
export const gpuModelNames = Object.keys(gpuModels) as [GpuModel, ...GpuModel[]];

/**
 * What one "GPU" of an offer or lease really is:
 *
 *   None          a whole GPU, nobody else on it
 *   MIG-1g.10gb   a MIG device of that profile: memory and compute of its own, cut by the hardware
 *   TimeSliced    a turn on a GPU that others use as well: no memory of its own, no isolation from them but the driver's
 *   MPS           the same, shared by NVIDIA's Multi-Process Service
 *
 * https://docs.nvidia.com/datacenter/cloud-native/gpu-operator/latest/gpu-sharing.html
 */
export const partitionPattern = /^(None|TimeSliced|MPS|MIG-[1-9][0-9]?g\.[1-9][0-9]{0,3}gb(\.[a-z0-9]{1,8}){0,2})$/;
export const wholeGpu = 'None';

/**
 * A product label taken apart: feature discovery appends `-MIG-1g.10gb` where the device is part of a GPU, and `-SHARED`
 * where it is one of several turns on one.
 */
export function readProduct(label: string): {
  readonly product: string;
  readonly mig?: string;
  readonly shared: boolean;
} {
  const match = /^(.*?)(?:-MIG-([A-Za-z0-9.]+))?(-SHARED)?$/.exec(label);
  const [, product = label, mig, shared] = match ?? [];
  return { product, ...(mig === undefined ? {} : { mig }), shared: shared !== undefined };
}

/** The model of a product string, or undefined for a product that has no alias yet. Of a part: that of the whole. */
export function modelOfProduct(label: string): GpuModel | undefined {
  const { product } = readProduct(label);
  return gpuModelNames.find((model) => (gpuModels[model] as readonly string[]).includes(product));
}

/** Whether a product label can be that of such a device. A turn on a GPU is not told apart there from another kind of turn. */
export function fitsPartition(label: string, partition: string): boolean {
  const { mig, shared } = readProduct(label);
  if (partition === wholeGpu) return mig === undefined && !shared;
  if (partition.startsWith('MIG-')) return !shared && mig === partition.slice('MIG-'.length);
  return mig === undefined && shared;
}
