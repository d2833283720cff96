/**
 * What a node shows is what was bought: of what a provider says that it set aside, no more than its quote promised. More would
 * cost nothing and attract every pod; less is the provider's to say, and the scheduler must know it.
 */
import type { AllocationInfo, PromisedNode, Resources } from '../../api/gateway.ts';
import { parseQuantity, QuantityError } from '../quantity.ts';

/** Pods that a node may have for each GPU, whatever its provider says: ten times what a kubelet takes by default. */
const mostPodsPerGpu = 1100;

export function asPromised(info: AllocationInfo, promised: PromisedNode): AllocationInfo {
  const gpus = Math.min(info.gpus, promised.gpus);
  const lesser = (name: keyof Resources): string => {
    try {
      return parseQuantity(info.resources[name]) <= parseQuantity(promised.resources[name])
        ? info.resources[name]
        : promised.resources[name];
    } catch (error) {
      // What the provider says is no quantity.
      if (error instanceof QuantityError) return promised.resources[name];
      throw error;
    }
  };
  return {
    ...info,
    gpus,
    resources: { cpu: lesser('cpu'), memory: lesser('memory'), ephemeralStorage: lesser('ephemeralStorage') },
    pods: Math.min(info.pods, mostPodsPerGpu * promised.gpus),
  };
}
