/** What the virtual node is told, and what it needs of others. */
import type { NamedService } from '../api/lease.ts';
import type { LeaseNode, NodeHealth, ServedNode } from '../core/node/virtual-node.ts';

export interface NodeSpec extends LeaseNode {
  /** Whose pods may run here: the lease's own namespace included, or "*" for every one. See `mayUseLease`. */
  readonly allowedNamespaces: readonly string[];
  /** Provider: pods show their address at the provider. None, by default: they show none. */
  readonly podIP?: 'None' | 'Provider';
  /** Whether tokens of service accounts go along with pods. None by default. */
  readonly serviceAccountTokens?: 'None' | 'Bound';
  /** Services of the consumer's cluster that its pods may reach. */
  readonly services?: readonly NamedService[];
  readonly served: ServedNode;
  /** Asked at each heartbeat: does the provider answer, is the lease paid? Not ready stops the heartbeat. */
  readonly healthy: () => NodeHealth;
  /**
   * Whether the provider answered when it was asked last. False within seconds of a cut, long before the node counts as lost:
   * nobody new should be sent to its pods.
   */
  readonly linked?: () => boolean;
  /** Something on the way to the provider broke: ask it now, not at the next turn. */
  readonly ask?: () => void;
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
