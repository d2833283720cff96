/**
 * What a pod may learn about itself. At the provider the real pod has another name, namespace, UID and node, so every
 * question that Kubernetes would answer there is answered here, with the consumer's values.
 * https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
 */
import { parseQuantity, QuantityError } from '../quantity.ts';
import type { Container, Pod, ResourceFieldRef, Resources } from './pod.ts';
import type { ClaimView } from './storage.ts';

export interface SelfView {
  readonly nodeName: string;
  /** Shown as the host's address. */
  readonly nodeAddress: string;
  /** What the node has for pods: the default of limits that a container does not set. */
  readonly capacity: Readonly<Record<string, string>>;
  /** The provider lets this lease's pods use the network and files of its node. */
  readonly hostAccess?: boolean;
  /** Domain of the consumer's Services: `cluster.local` by default. */
  readonly clusterDomain?: string;
  /** Whether tokens of service accounts go along. None by default. */
  readonly serviceAccountTokens?: 'None' | 'Bound';
  /** What is known of claims to storage. Absent: nothing is, and pods that use one are refused. */
  readonly claimOf?: ClaimView;
}

/** Native: only the provider knows the answer, and it is the right one. */
export type Answer = { readonly value: string } | { readonly native: true } | { readonly unknown: true };

export function answerField(pod: Pod, fieldPath: string, view: SelfView): Answer {
  const meta = pod.metadata;
  switch (fieldPath) {
    case 'metadata.name':
      return { value: meta.name };
    case 'metadata.namespace':
      return { value: meta.namespace ?? '' };
    case 'metadata.uid':
      return { value: meta.uid ?? '' };
    case 'metadata.labels':
      return { value: formatMap(meta.labels ?? {}) };
    case 'metadata.annotations':
      return { value: formatMap(meta.annotations ?? {}) };
    case 'spec.nodeName':
      return { value: view.nodeName };
    case 'spec.serviceAccountName':
      return { value: pod.spec.serviceAccountName ?? 'default' };
    case 'status.hostIP':
    case 'status.hostIPs':
      return { value: view.nodeAddress };
    // Servers bind to it, so it has to be the address that the container really has.
    case 'status.podIP':
    case 'status.podIPs':
      return { native: true };
    default: {
      const match = /^metadata\.(labels|annotations)\['(.+)'\]$/.exec(fieldPath);
      if (!match) return { unknown: true };
      return { value: meta[match[1] as 'labels' | 'annotations']?.[match[2]!] ?? '' };
    }
  }
}

/**
 * Undefined for a resource or divisor that Kubernetes does not know. A limit that is not set is the pod's, where the pod as a
 * whole has one, and the node's otherwise.
 */
export function answerResource(
  pod: Pod,
  asking: Container | undefined,
  ref: ResourceFieldRef,
  view: SelfView,
): string | undefined {
  const named = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])].find((c) => c.name === ref.containerName);
  const container = ref.containerName ? named : asking;
  const match = /^(limits|requests)\.(.+)$/.exec(ref.resource);
  if (!container || !match) return undefined;
  const [, side, resource] = match as unknown as [string, 'limits' | 'requests', string];
  const ofPod = (pod.spec.resources as Resources | undefined)?.limits;
  try {
    const set = (quantity: string | number | undefined) => parseQuantity(quantity ?? 0);
    let amount = set(container.resources?.[side]?.[resource]);
    if (side === 'limits' && defaulted.has(resource)) {
      amount ||= resource === 'ephemeral-storage' ? 0n : set(ofPod?.[resource]);
      amount ||= set(view.capacity[resource]);
    }
    const divisor = parseQuantity(ref.divisor ?? 1) || 1000n;
    return String((amount + divisor - 1n) / divisor);
  } catch (error) {
    if (error instanceof QuantityError) return undefined;
    throw error;
  }
}

/** The others are never given beyond what is asked for. */
const defaulted: ReadonlySet<string> = new Set(['cpu', 'memory', 'ephemeral-storage']);

/** `key="value"` lines in order of keys, as the kubelet writes labels into a file. */
export function formatMap(map: Readonly<Record<string, string>>): string {
  return Object.keys(map)
    .sort()
    .map((key) => `${key}=${quote(map[key]!)}`)
    .join('\n');
}

const escapes: Readonly<Record<string, string>> = {
  '\u0007': '\\a',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\v': '\\v',
  '\\': '\\\\',
  '"': '\\"',
};

/** Go's %q, which is what readers of these files unquote. */
function quote(text: string): string {
  let out = '"';
  for (const character of text) {
    const point = character.codePointAt(0)!;
    if (escapes[character]) out += escapes[character];
    else if (point < 0x20 || point === 0x7f) out += `\\x${point.toString(16).padStart(2, '0')}`;
    else if (/\p{C}|\p{Zl}|\p{Zp}|[\p{Zs}--\x20]/v.test(character))
      out += point > 0xffff ? `\\U${point.toString(16).padStart(8, '0')}` : `\\u${point.toString(16).padStart(4, '0')}`;
    else out += character;
  }
  return `${out}"`;
}

/** Keeps a value from being read as `$(NAME)` when it stands in a container's env. */
export const escapeExpansion = (value: string): string => value.replaceAll('$', '$$$$');
