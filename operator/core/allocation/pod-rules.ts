/** What the provider chose for the pods of all its tenants. */
import { anyImage, type ImageRules } from './images.ts';

export const podSecurityLevels = ['baseline', 'restricted'] as const;
export type PodSecurityLevel = (typeof podSecurityLevels)[number];

export interface PodRules {
  /** Level of Kubernetes' Pod Security Standards. */
  readonly podSecurity: PodSecurityLevel;
  /** Sandbox that all pods of tenants run in (gVisor, Kata). Absent: the nodes' own. */
  readonly runtimeClass?: string;
  /** Instead of it for pods with GPUs, where the nodes need another one for these. */
  readonly gpuRuntimeClass?: string;
  readonly images: ImageRules;
}

export const plainRules: PodRules = { podSecurity: 'baseline', images: anyImage };
