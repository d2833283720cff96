/**
 * What the pods of one virtual node use together. A counter of CPU seconds must never go back, or readers take it for a
 * restart; but pods end and take their counters along, and a container that is started anew may begin at nought. So what was
 * counted before is remembered.
 */

export interface PodCpu {
  readonly uid: string;
  readonly cpuSeconds: number;
  /** When it was measured, by the provider's clock. */
  readonly atMs: number;
}

interface Counted {
  /** By counters that have since begun anew. */
  readonly before: number;
  readonly last: number;
  readonly atMs: number;
}

export interface UsageMemory {
  /** Of pods that are gone. */
  readonly gone: number;
  readonly pods: ReadonlyMap<string, Counted>;
  readonly atMs: number;
}

export const noUsage: UsageMemory = { gone: 0, pods: new Map(), atMs: 0 };

/**
 * Takes in one page. A figure that is no newer than the last one changes nothing: it came from another cache. `isHere`: pods
 * that are bound to the node still, whether the page names them or not.
 */
export function countIn(
  memory: UsageMemory,
  seen: readonly PodCpu[],
  isHere: (uid: string) => boolean,
  nodeAtMs = 0,
): UsageMemory {
  const pods = new Map<string, Counted>();
  let { gone } = memory;
  for (const [uid, counted] of memory.pods) {
    if (isHere(uid)) pods.set(uid, counted);
    else gone += counted.before + counted.last;
  }
  let atMs = memory.atMs;
  for (const { uid, cpuSeconds, atMs: measuredMs } of seen) {
    const known = pods.get(uid);
    if (known && measuredMs <= known.atMs) continue;
    const before = known ? known.before + (cpuSeconds < known.last ? known.last : 0) : 0;
    pods.set(uid, { before, last: cpuSeconds, atMs: measuredMs });
    atMs = Math.max(atMs, measuredMs);
  }
  return { gone, pods, atMs: seen.length > 0 ? atMs : Math.max(atMs, nodeAtMs) };
}

export function cpuSecondsOf(memory: UsageMemory): number {
  let sum = memory.gone;
  for (const { before, last } of memory.pods.values()) sum += before + last;
  return sum;
}
