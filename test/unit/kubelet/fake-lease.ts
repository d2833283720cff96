/**
 * A connection to a lease without a gateway between: paths under `kube/` go to one namespace of a cluster, fake or real. No
 * admission, no token; what the gateway adds is tested there.
 */
import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import type { AllocationInfo, BatchRequest } from '../../../operator/api/gateway.ts';
import { readBody } from '../../../operator/engine/http.ts';
import type { Cluster, RawRequest } from '../../../operator/engine/types.ts';
import type { RemoteLease } from '../../../operator/kubelet/remote.ts';

export const served = (gpus = 2): AllocationInfo => ({
  leaseId: `0x${'1'.repeat(64)}`,
  state: 'Serving',
  gpus,
  resources: { cpu: '8', memory: '16Gi', ephemeralStorage: '20Gi' },
  pods: 20,
  nodeLabels: { 'nvidia.com/gpu.product': 'NVIDIA-GeForce-RTX-4090', 'kubernetes.io/arch': 'amd64' },
  nodeInfo: { architecture: 'amd64', osImage: 'Debian', kernelVersion: '6', containerRuntimeVersion: 'containerd://1' },
  nodeReady: true,
  vouchedSeconds: 0,
  graceSeconds: 600,
});

export interface FakeLease extends RemoteLease {
  /** What the gateway says of the allocation. */
  state: AllocationInfo['state'];
  /** Nothing arrives while true. */
  cut: boolean;
  /** Those of a batch each by itself. */
  readonly requests: { method: string; path: string; body?: unknown }[];
}

export function fakeLease(cluster: Cluster, namespace = 'tenant'): FakeLease {
  const onCluster = (request: RawRequest): RawRequest => {
    const [path = '', query] = request.path.split('?');
    let { body } = request;
    const params = new URLSearchParams(query);
    if (request.method === 'DELETE') {
      const grace = params.get('gracePeriodSeconds');
      const uid = params.get('uid');
      body = JSON.stringify({
        kind: 'DeleteOptions',
        apiVersion: 'v1',
        ...(grace !== null && { gracePeriodSeconds: Number(grace) }),
        ...(uid !== null && { preconditions: { uid } }),
      });
      params.delete('gracePeriodSeconds');
      params.delete('uid');
    }
    const text = params.toString();
    return {
      ...request,
      path: `${path.replace(/^kube\//, `/api/v1/namespaces/${namespace}/`)}${text === '' ? '' : `?${text}`}`,
      headers: { ...request.headers, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }) },
      body,
    };
  };
  /** Its calls one by one, each with a line. */
  function batch(request: RawRequest, signal?: AbortSignal): IncomingMessage {
    const { calls } = JSON.parse(String(request.body)) as BatchRequest;
    const lines = new PassThrough();
    Object.assign(lines, { statusCode: 200, headers: {} });
    const answers = calls.map(async ({ method, path, body }, call) => {
      const response = await lease.raw(
        { method, path, headers: request.headers, body: body === undefined ? undefined : JSON.stringify(body) },
        signal,
      );
      const bytes = await readBody(response, path, { maxBytes: 1e7, timeoutSeconds: 30 });
      lines.write(`{"call":${call},"status":${response.statusCode},"body":${bytes.toString().trimEnd()}}\n`);
    });
    Promise.all(answers).then(
      () => lines.end(),
      (error: Error) => lines.destroy(error),
    );
    return lines as unknown as IncomingMessage;
  }
  const lease: FakeLease = {
    state: 'Serving',
    cut: false,
    requests: [],
    async allocation() {
      if (lease.cut) throw new Error('unreachable');
      return { ...served(), state: lease.state };
    },
    async raw(request, signal) {
      if (lease.cut) throw new Error('unreachable');
      if (request.path === 'batch') return batch(request, signal);
      lease.requests.push({
        method: request.method,
        path: request.path,
        ...(request.body && { body: JSON.parse(String(request.body)) }),
      });
      return cluster.raw(onCluster(request), undefined, signal);
    },
    async upgrade(request, signal) {
      if (lease.cut) throw new Error('unreachable');
      lease.requests.push({ method: request.method, path: request.path });
      return cluster.upgrade(onCluster(request), undefined, signal);
    },
  };
  return lease;
}
