/**
 * What a virtual node answers to /configz: the configuration of a kubelet, as far as it has one. What is the provider's affair
 * (control groups, evictions, images) is not in it.
 *
 * https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/
 */
import type { ServedNode } from './virtual-node.ts';

export function configzOf(node: {
  readonly address: string;
  readonly port: number;
  readonly served: Pick<ServedNode, 'pods'>;
  readonly knowsClientCa: boolean;
  readonly heartbeatLastsSeconds: number;
}): object {
  return {
    kubeletconfig: {
      kind: 'KubeletConfiguration',
      apiVersion: 'kubelet.config.k8s.io/v1beta1',
      enableServer: true,
      address: node.address,
      port: node.port,
      readOnlyPort: 0,
      serverTLSBootstrap: true,
      rotateCertificates: true,
      authentication: {
        anonymous: { enabled: false },
        webhook: { enabled: true, cacheTTL: '30s' },
        x509: node.knowsClientCa ? { clientCAFile: 'kube-system/extension-apiserver-authentication' } : {},
      },
      authorization: { mode: 'Webhook', webhook: { cacheAuthorizedTTL: '30s', cacheUnauthorizedTTL: '30s' } },
      registerNode: true,
      nodeLeaseDurationSeconds: node.heartbeatLastsSeconds,
      maxPods: node.served.pods,
      enableDebuggingHandlers: true,
      enableSystemLogHandler: false,
      enableProfilingHandler: false,
      enableDebugFlagsHandler: false,
      streamingConnectionIdleTimeout: '0s',
    },
  };
}
