/** What starting and stopping a node of either kind asks of its Node object. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { PlaneAccess } from './plane.ts';

interface NodeStatus {
  readonly status?: {
    readonly allocatable?: Readonly<Record<string, string>>;
    readonly conditions?: readonly { readonly type: string; readonly status: string }[];
  };
}

export async function isReady(plane: PlaneAccess, name: string, signal?: AbortSignal): Promise<boolean> {
  const response = await plane.api.request('GET', `/api/v1/nodes/${name}`, undefined, signal);
  if (response.status !== 200) return false;
  const node = response.json<NodeStatus>();
  return node.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True') ?? false;
}

/** A node is Ready before its devices are counted, and a pod made in between waits for no visible reason. */
export async function untilAllocatable(
  plane: PlaneAccess,
  name: string,
  gpus: number,
  signal?: AbortSignal,
): Promise<void> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const node = await plane.api.call<NodeStatus>('GET', `/api/v1/nodes/${name}`, undefined, signal);
    if (Number(node.status?.allocatable?.['nvidia.com/gpu'] ?? 0) === gpus) return;
    if (Date.now() > deadline)
      throw new Error(`${name}: its ${gpus} GPUs were not counted within 60 s, see the log of its kubelet`);
    await sleep(50, undefined, { signal });
  }
}

/** The machine is gone, so nobody else would remove these. A plane that does not answer is being stopped too. */
export async function forgetNode(plane: PlaneAccess, name: string): Promise<void> {
  for (const path of [
    `/api/v1/nodes/${name}`,
    `/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/${name}`,
  ]) {
    await plane.api.request('DELETE', path, undefined, AbortSignal.timeout(3000)).catch(() => undefined);
  }
}
