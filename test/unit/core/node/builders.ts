import type { Pod, PodSpec } from '../../../../operator/core/node/pod.ts';

export const view = {
  nodeName: 'gpu-train-0123456789',
  nodeAddress: '10.0.0.9',
  capacity: { 'nvidia.com/gpu': '2', cpu: '8', memory: '16Gi', 'ephemeral-storage': '20Gi', pods: '20' },
};

export function pod(spec: Partial<PodSpec> = {}, metadata: Partial<Pod['metadata']> = {}): Pod {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'web-0', namespace: 'team-a', uid: '3f1c', ...metadata },
    spec: {
      nodeName: view.nodeName,
      containers: [{ name: 'main', image: 'busybox' }],
      restartPolicy: 'Always',
      ...spec,
    },
  };
}

/** As the API server's admission adds it to every pod. */
export const serviceAccountVolume = {
  name: 'kube-api-access-x7k2p',
  projected: {
    defaultMode: 420,
    sources: [
      { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
      { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
      {
        downwardAPI: {
          items: [{ path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } }],
        },
      },
    ],
  },
};
