/**
 * The GPUs that a sandbox's nodes pretend to have: what they are called, and the labels that NVIDIA's GPU feature discovery
 * would put on such a node.
 */
import { createHash } from 'node:crypto';

export interface GpuModel {
  /** As in the label nvidia.com/gpu.product. */
  readonly product: string;
  readonly memoryMiB: number;
  readonly family: string;
  readonly compute: readonly [major: number, minor: number];
  readonly migCapable: boolean;
  readonly instanceType: string;
}

export const H100: GpuModel = {
  product: 'NVIDIA-H100-80GB-HBM3',
  memoryMiB: 81559,
  family: 'hopper',
  compute: [9, 0],
  migCapable: true,
  instanceType: 'gpu-h100-sxm',
};

export const RTX_4090: GpuModel = {
  product: 'NVIDIA-GeForce-RTX-4090',
  memoryMiB: 24564,
  family: 'ada-lovelace',
  compute: [8, 9],
  migCapable: false,
  instanceType: 'gpu-rtx-4090',
};

export interface SimulatedGpu {
  readonly model: GpuModel;
  /** GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, as nvidia-smi shows it. */
  readonly uuid: string;
}

/** The same node has the same GPUs whenever it is started. */
export function simulatedGpus(nodeName: string, model: GpuModel, count: number): SimulatedGpu[] {
  return Array.from({ length: count }, (_, index) => ({ model, uuid: gpuUuid(nodeName, index) }));
}

export function gpuUuid(nodeName: string, index: number): string {
  const hex = createHash('sha256').update(`${nodeName}/${index}`).digest('hex');
  const variant = ((Number.parseInt(hex.slice(16, 17), 16) & 0x3) | 0x8).toString(16);
  return `GPU-${hex.slice(0, 8)}-${hex.slice(8, 12)}-5${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

const DRIVER = ['550', '127', '08'] as const;
const CUDA = ['12', '4'] as const;

/** A node has one model, as feature discovery assumes; `place` becomes region and zone. */
export function gpuLabels(
  gpus: readonly SimulatedGpu[],
  place: { readonly region: string; readonly zone: string },
): Record<string, string> {
  const labels: Record<string, string> = {
    'topology.kubernetes.io/region': place.region,
    'topology.kubernetes.io/zone': place.zone,
  };
  const model = gpus[0]?.model;
  if (!model) return labels;
  return {
    ...labels,
    'node.kubernetes.io/instance-type': model.instanceType,
    'nvidia.com/gpu.present': 'true',
    'nvidia.com/gpu.product': model.product,
    'nvidia.com/gpu.memory': String(model.memoryMiB),
    'nvidia.com/gpu.count': String(gpus.length),
    'nvidia.com/gpu.replicas': '1',
    'nvidia.com/gpu.sharing-strategy': 'none',
    'nvidia.com/gpu.family': model.family,
    'nvidia.com/gpu.compute.major': String(model.compute[0]),
    'nvidia.com/gpu.compute.minor': String(model.compute[1]),
    'nvidia.com/cuda.driver-version.major': DRIVER[0],
    'nvidia.com/cuda.driver-version.minor': DRIVER[1],
    'nvidia.com/cuda.driver-version.revision': DRIVER[2],
    'nvidia.com/cuda.driver-version.full': DRIVER.join('.'),
    'nvidia.com/cuda.driver.major': DRIVER[0],
    'nvidia.com/cuda.driver.minor': DRIVER[1],
    'nvidia.com/cuda.driver.rev': DRIVER[2],
    'nvidia.com/cuda.runtime-version.major': CUDA[0],
    'nvidia.com/cuda.runtime-version.minor': CUDA[1],
    'nvidia.com/cuda.runtime-version.full': CUDA.join('.'),
    'nvidia.com/cuda.runtime.major': CUDA[0],
    'nvidia.com/cuda.runtime.minor': CUDA[1],
    'nvidia.com/mig.capable': String(model.migCapable),
    'nvidia.com/mig.strategy': 'single',
  };
}
