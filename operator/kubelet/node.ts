/**
 * The Node object of one lease, and its heartbeat.
 *
 * The heartbeat means something: it is renewed only while the provider answers and the lease is paid. When it stops, the
 * Node says NotReady and why at once; and if this process dies, Kubernetes says so 40 seconds later.
 */
import {
  adoptNode,
  buildNode,
  conditionsChanged,
  type Node,
  type NodeHealth,
  nodeConditions,
  nodeStatus,
  readySince,
  statusChanged,
} from '../core/node/virtual-node.ts';
import type { Clock } from '../engine/clock.ts';
import { isAlreadyExists, isConflict, isNotFound } from '../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../engine/types.ts';
import type { NodeSpec } from './types.ts';

export interface NodeKeeperOptions {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly kubeletVersion: string;
  readonly address: string;
  /** How long others believe a heartbeat. */
  readonly heartbeatLastsSeconds: number;
  /** The last one is young: none is needed unless the node was not Ready. */
  readonly beatsLater?: boolean;
}

export interface NodeSeen {
  readonly node: Node;
  readonly deleting: boolean;
  readonly ready: boolean;
  /** A heartbeat was sent. */
  readonly beats: boolean;
  readonly readySince?: Date;
}

export const heartbeatNamespace = 'kube-node-lease';

/** Of all nodes together, a second: what a control plane is asked to write for nothing but that all is well. */
const mostBeatsPerSecond = 50;

/**
 * Seconds from one heartbeat of a node to the next. As a kubelet's, while there are few nodes; twice as long at most, of which two fit
 * into what others believe one for.
 */
export const beatSecondsOf = (nodes: number, heartbeatSeconds: number): number =>
  Math.min(2 * heartbeatSeconds, Math.max(heartbeatSeconds, nodes / mostBeatsPerSecond));

interface Heartbeat extends KubeObject {
  spec: { holderIdentity: string; leaseDurationSeconds: number; renewTime: string };
}

/** Registers, or brings up to date, and renews the heartbeat when healthy. An unchanged world costs one write: the heartbeat. */
export async function keepNode(
  options: NodeKeeperOptions,
  spec: NodeSpec,
  port: number,
  health: NodeHealth,
  cached: Node | undefined,
  signal: AbortSignal,
): Promise<NodeSeen> {
  const { cluster, clock } = options;
  const wanted = buildNode(spec, spec.served);
  let node = cached ?? (await cluster.get<Node>(resources.nodes, { name: wanted.metadata.name }, signal));
  node ??= await create(cluster, wanted, signal);
  if (!node.metadata.deletionTimestamp) {
    const adopted = adoptNode(node, spec, spec.served);
    if (adopted) node = await replaceSpec(cluster, adopted, signal);
  }

  const now = clock.now();
  const place = { address: options.address, port, kubeletVersion: options.kubeletVersion };
  const status = nodeStatus(spec.served, place, spec.gpusAs);
  const healthNow = mayReturn(node, health) ? health : { ready: false, reason: 'Counting', message: uncounted };
  const stored = node.status?.conditions;
  const asItIs = health.undecided && stored?.some((one) => one.type === 'Ready') ? stored : undefined;
  const conditions = asItIs ?? nodeConditions(stored, healthNow, now);
  if (conditionsChanged(stored, conditions) || statusChanged(node.status, status))
    // A strategic merge: conditions by type, so that others' survive, and addresses as a whole. With the version that was
    // read: a process that slept, or a cache that lags, must not move the time of a transition that it has not seen.
    await cluster.patch(
      resources.nodes,
      { name: node.metadata.name },
      {
        metadata: { uid: node.metadata.uid, resourceVersion: node.metadata.resourceVersion },
        status: { ...status, conditions },
      },
      { type: 'strategic', subresource: 'status' },
      signal,
    );
  const wasReady = stored?.some(({ type, status: is }) => type === 'Ready' && is === 'True');
  const beats = healthNow.ready && !(wasReady && options.beatsLater);
  if (beats) await beat(options, node, now, signal);
  const ready = conditions.find((c) => c.type === 'Ready');
  return {
    node,
    deleting: node.metadata.deletionTimestamp !== undefined,
    ready: healthNow.ready,
    beats,
    ...(healthNow.ready && ready?.lastTransitionTime && { readySince: new Date(ready.lastTransitionTime) }),
  };
}

const uncounted = 'The seconds that it was Ready before are being counted.';

/** The condition tells of its last transition only: seconds before it that nobody has counted could never be told again. */
function mayReturn(node: Node, health: NodeHealth): boolean {
  const ready = node.status?.conditions?.find((one) => one.type === 'Ready');
  const since = readySince(node.status?.conditions);
  if (!ready || ready.status === 'True' || since === undefined) return true;
  return health.counted?.(new Date(since)) ?? true;
}

async function create(cluster: Cluster, wanted: Node, signal: AbortSignal): Promise<Node> {
  try {
    return await cluster.create<Node>(resources.nodes, wanted, signal);
  } catch (error) {
    if (!isAlreadyExists(error)) throw error;
    const found = await cluster.get<Node>(resources.nodes, { name: wanted.metadata.name }, signal);
    if (!found) throw error;
    return found;
  }
}

/** The cache may lag: on a conflict the next look does it. */
async function replaceSpec(cluster: Cluster, adopted: Node, signal: AbortSignal): Promise<Node> {
  try {
    return await cluster.replace<Node>(resources.nodes, adopted, undefined, signal);
  } catch (error) {
    if (isConflict(error)) return adopted;
    throw error;
  }
}

async function beat(options: NodeKeeperOptions, node: Node, now: Date, signal: AbortSignal): Promise<void> {
  const { name, uid } = node.metadata;
  const key = { namespace: heartbeatNamespace, name };
  const spec = {
    holderIdentity: name,
    leaseDurationSeconds: options.heartbeatLastsSeconds,
    renewTime: now.toISOString().replace(/Z$/, '000Z'),
  };
  try {
    await options.cluster.patch(resources.leases, key, { spec }, { type: 'merge' }, signal);
  } catch (error) {
    if (!isNotFound(error)) throw error;
    const heartbeat: Heartbeat = {
      metadata: { ...key, ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name, uid: uid ?? '' }] },
      spec,
    };
    await options.cluster.create(resources.leases, heartbeat, signal);
  }
}
