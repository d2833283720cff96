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

/** The model of a product string, or undefined for a product that has no alias yet. */
export function modelOfProduct(product: string): GpuModel | undefined {
  return gpuModelNames.find((model) => (gpuModels[model] as readonly string[]).includes(product));
}
