/**
 * The pages on which a virtual node's kubelet API tells what its pods use: what the provider said of its pods, told again with
 * the consumer's names. Everything is read as what it should be, and put together anew; a pod or container that the consumer
 * does not have there is left out, and one that cannot be read harms no other.
 *
 * The node's own figures are the sums of its pods, never more than what was leased.
 */
import { bytesOf, cpuMillisOf } from '../allocation/room.ts';
import type { Label, Sample } from '../exposition.ts';
import type { Pod } from './pod.ts';
import type { ServedNode } from './virtual-node.ts';

export interface PageOptions {
  readonly nodeName: string;
  readonly served: Pick<ServedNode, 'resources'>;
  /** The consumer's pod that is called so at the provider. */
  readonly podOf: (remoteName: string) => Pod | undefined;
  readonly isHere: (uid: string) => boolean;
  readonly now: Date;
}

/** Of an honest provider: a thousand pods of ten containers. */
export const mostSamples = 200_000;

/** A clock that is further off than this says nothing about when something was measured. */
const mostSkewMs = 10 * 60_000;

export const believable = (ms: number | undefined, now: Date): number | undefined =>
  ms !== undefined && Math.abs(ms - now.getTime()) <= mostSkewMs ? ms : undefined;

export const timeOf = (sample: Sample, now: Date): number | undefined => believable(sample.timestampMs, now);

export function hasContainer(pod: Pod, name: string): boolean {
  const { containers, initContainers, ephemeralContainers } = pod.spec;
  return [containers, initContainers, ephemeralContainers].some((list) => list?.some((one) => one.name === name));
}

export interface Leased {
  readonly cpuNanoCores: number;
  readonly memoryBytes: number;
  readonly ephemeralBytes: number;
}

export function leasedOf({ resources }: Pick<ServedNode, 'resources'>): Leased {
  const read = (parse: (text: string) => number, text: string): number => {
    try {
      return parse(text);
    } catch {
      // What a provider says it leases may be no quantity: then nothing is capped by it.
      return Number.MAX_SAFE_INTEGER;
    }
  };
  return {
    cpuNanoCores: read(cpuMillisOf, resources.cpu) * 1e6,
    memoryBytes: read(bytesOf, resources.memory),
    ephemeralBytes: read(bytesOf, resources.ephemeralStorage),
  };
}

/** In this order: there are readers that count instead of looking for names. */
export function labelsOf(pod: Pod, container: string | undefined): Label[] {
  return [
    ['namespace', pod.metadata.namespace ?? ''],
    ['pod', pod.metadata.name],
    ...(container === undefined ? [] : [['container', container] as const]),
  ];
}
