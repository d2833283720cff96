/** What the virtual node is told, and what it needs of others. */
import type { LeaseNode, NodeHealth, ServedNode } from '../core/node/virtual-node.ts';

export interface NodeSpec extends LeaseNode {
  /** Whose pods may run here: the lease's own namespace included, or "*" for every one. See `mayUseLease`. */
  readonly allowedNamespaces: readonly string[];
  /** Provider: pods show their address at the provider. None, by default: they show none. */
  readonly podIP?: 'None' | 'Provider';
  /** Whether tokens of service accounts go along with pods. None by default. */
  readonly serviceAccountTokens?: 'None' | 'Bound';
  readonly served: ServedNode;
  /** Asked at each heartbeat: does the provider answer, is the lease paid? Not ready stops the heartbeat. */
  readonly healthy: () => NodeHealth;
}

export interface ServingCertificate {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  readonly renewAt: Date;
  /** Absent: not soon. */
  readonly expiresAt?: Date;
}

/** Where certificates of the kubelet API come from. */
export interface ServingCertificates {
  selfSigned(nodeName: string, address: string): Promise<ServingCertificate>;
  /** By the cluster's signer; undefined when nobody signs. */
  signed(nodeName: string, address: string, signal?: AbortSignal): Promise<ServingCertificate | undefined>;
}
