/** A node with simulated GPUs: real where this machine can run one, hollow where it cannot, and it says which and why. */
import { ensureTools } from '../tools/tools.ts';
import { startHollowNode } from './hollow-node.ts';
import { type ClusterNode, type NodeOptions, startNode } from './node.ts';
import { ensureNodePackages } from './node-packages.ts';

export async function startGpuNode(options: NodeOptions, signal?: AbortSignal): Promise<ClusterNode> {
  const { report } = options;
  const packages = await ensureNodePackages({ report }, signal);
  if (packages.available) {
    const { kubelet } = await ensureTools({ need: ['node'], report }, signal);
    if (!kubelet) throw new Error('ensureTools found no kubelet');
    const kubeProxy = await ensureTools({ need: ['proxy'], report }, signal).then(
      (tools) => tools['kube-proxy'],
      (error: Error) => {
        signal?.throwIfAborted();
        report(`${options.name}: Services have no addresses that work here, for want of kube-proxy: ${error.message}`);
        return undefined;
      },
    );
    return startNode({ ...options, programs: packages.programs, kubelet, kubeProxy }, signal);
  }
  report(`${options.name}: no real node here (${packages.reason}); pods are simulated`);
  const { kwok } = await ensureTools({ need: ['hollow'], report }, signal);
  if (!kwok) throw new Error('ensureTools found no kwok');
  return startHollowNode({ ...options, kwok }, signal);
}
