/** What the approver does, in a process of its own or in the operator's: certificates of virtual nodes, and bindings. */
import { createCertificateApprover } from '../adapters/kube/serving-certificate.ts';
import { labels, managedBy, virtualNodePrefix } from '../api/labels.ts';
import { createNamespaceRights } from '../controllers/consumer/namespace-rights.ts';
import type { Clock } from '../engine/clock.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';

export interface ApproverPartOptions {
  readonly cluster: Cluster;
  /** As the API server names the operator: who may ask, and who is let into namespaces. */
  readonly operator: string;
  /** Addresses that virtual nodes may have, or where the pods are whose addresses they have. */
  readonly addresses: readonly string[] | OperatorPods;
  /** Namespaces that the operator is never let into, beside the usual ones. */
  readonly closed: readonly string[];
  readonly clock: Clock;
  readonly log: Log;
}

export interface OperatorPods {
  readonly namespace: string;
  readonly labels: Readonly<Record<string, string>>;
}

type AddressedPod = KubeObject & {
  spec?: { hostNetwork?: boolean };
  status?: { phase?: string; podIPs?: { ip?: string }[] };
};
type AddressedNode = KubeObject & { status?: { addresses?: { address?: string }[] } };

const goodForMs = 2_000;

export function approverPart(options: ApproverPartOptions): { run(signal: AbortSignal): Promise<void> } {
  const { cluster, operator, addresses, clock, log } = options;
  const approver = createCertificateApprover({
    cluster,
    // Nodes of others may be called so, too; one that is not there yet is about to be made.
    async isOurNode(name, signal) {
      if (!name.startsWith(virtualNodePrefix)) return false;
      const node = await cluster.get<KubeObject>(resources.nodes, { name }, signal);
      return node === undefined || isOurs(node);
    },
    addresses: 'namespace' in addresses ? addressesOfPods(cluster, addresses, clock) : async () => addresses,
    requesters: [operator],
    now: clock.now,
    log,
  });
  const rights = createNamespaceRights({ cluster, operator, closed: options.closed, clock, log });
  return {
    async run(signal) {
      await Promise.all([approver.run(signal), rights.run(signal)]);
    },
  };
}

const isOurs = ({ metadata }: KubeObject) => metadata.labels?.[labels.managedBy] === managedBy;

/**
 * Addresses of the operator's pods. The operator may write statuses of pods, though a policy keeps it to those on its own nodes;
 * so an address that is a real node's is believed only of a pod on its host's network, which no status can say.
 */
function addressesOfPods(cluster: Cluster, { namespace, labels: wanted }: OperatorPods, clock: Clock) {
  const labelSelector = Object.entries(wanted)
    .map(([key, value]) => `${key}=${value}`)
    .join(',');
  let asked: { readonly atMs: number; readonly addresses: Promise<readonly string[]> } | undefined;

  async function ask(): Promise<readonly string[]> {
    const { items: pods } = await cluster.list<AddressedPod>(resources.pods, { namespace, labelSelector });
    const { items: nodes } = await cluster.list<AddressedNode>(resources.nodes, { trim: onlyAddresses });
    const ofNodes = new Set(
      nodes
        .filter((node) => !isOurs(node))
        .flatMap(({ status }) => (status?.addresses ?? []).map((one) => one.address)),
    );
    return pods
      .filter(({ status }) => status?.phase === 'Running' || status?.phase === 'Pending')
      .flatMap(({ spec, status }) =>
        (status?.podIPs ?? [])
          .map(({ ip }) => ip)
          .filter((ip): ip is string => ip !== undefined && (spec?.hostNetwork === true || !ofNodes.has(ip))),
      );
  }

  return async (): Promise<readonly string[]> => {
    const nowMs = clock.monotonicMs();
    if (asked && nowMs - asked.atMs < goodForMs) return asked.addresses;
    const addresses = ask();
    asked = { atMs: nowMs, addresses };
    addresses.catch(() => {
      asked = undefined;
    });
    return addresses;
  };
}

const onlyAddresses = ({ metadata: { name, labels: its }, status }: AddressedNode): AddressedNode => ({
  metadata: { name, labels: its },
  status: { addresses: status?.addresses },
});
