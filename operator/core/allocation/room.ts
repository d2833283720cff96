/** Room on a node: what is there, what is sold, what is asked for. Whole numbers, so that sums are exact. */
import type { Resources } from '../../api/gateway.ts';
import { formatBytes, formatQuantity, parseQuantity, QuantityError } from '../quantity.ts';

export interface Room {
  readonly gpus: number;
  readonly cpuMillis: number;
  readonly memoryBytes: number;
  readonly ephemeralBytes: number;
  readonly pods: number;
}

/** Pods that a lease has for each of its GPUs at most: more than any kubelet runs for one. */
export const mostPodsPerGpu = 1000;

export const noRoom: Room = { gpus: 0, cpuMillis: 0, memoryBytes: 0, ephemeralBytes: 0, pods: 0 };

const parts = ['gpus', 'cpuMillis', 'memoryBytes', 'ephemeralBytes', 'pods'] as const;

const each = (of: (part: (typeof parts)[number]) => number): Room => ({
  gpus: of('gpus'),
  cpuMillis: of('cpuMillis'),
  memoryBytes: of('memoryBytes'),
  ephemeralBytes: of('ephemeralBytes'),
  pods: of('pods'),
});

export const plus = (one: Room, other: Room): Room => each((part) => one[part] + other[part]);
/** What is left, never below nothing. */
export const minus = (one: Room, other: Room): Room => each((part) => Math.max(0, one[part] - other[part]));
export const larger = (one: Room, other: Room): Room => each((part) => Math.max(one[part], other[part]));
export const smaller = (one: Room, other: Room): Room => each((part) => Math.min(one[part], other[part]));
export const times = (one: Room, factor: number): Room => each((part) => one[part] * factor);

const words: Readonly<Record<keyof Room, string>> = {
  gpus: 'GPUs',
  cpuMillis: 'CPU',
  memoryBytes: 'memory',
  ephemeralBytes: 'ephemeral storage',
  pods: 'pods',
};

/** What does not fit, in words; undefined when all fits. */
export function lacking(wanted: Room, room: Room): string | undefined {
  const short = parts.filter((part) => wanted[part] > room[part]).map((part) => words[part]);
  return short.length === 0 ? undefined : short.join(', ');
}

export const cpuMillisOf = (quantity: string | number): number => Number(parseQuantity(quantity));
/** Bytes, rounded up. */
export const bytesOf = (quantity: string | number): number => Number((parseQuantity(quantity) + 999n) / 1000n);
/** Whole things such as GPUs and pods. */
export const countOf = bytesOf;

export const cpuText = (millis: number): string => formatQuantity(BigInt(millis));
export const bytesText = (bytes: number): string => formatBytes(BigInt(bytes) * 1000n);

export const resourcesOf = (room: Room): Resources => ({
  cpu: cpuText(room.cpuMillis),
  memory: bytesText(room.memoryBytes),
  ephemeralStorage: bytesText(room.ephemeralBytes),
});

/** Throws QuantityError, naming the field, for what is no quantity or negative. */
export function roomOfResources(resources: Resources, gpus: number, pods: number): Room {
  const read = (field: keyof Resources, parse: (text: string) => number): number => {
    let value: number;
    try {
      value = parse(resources[field]);
    } catch (error) {
      if (error instanceof QuantityError) throw new QuantityError(`${field}: ${error.message}`);
      throw error;
    }
    if (value < 0 || !Number.isSafeInteger(value)) throw new QuantityError(`${field}: out of range`);
    return value;
  };
  return {
    gpus,
    pods,
    cpuMillis: read('cpu', cpuMillisOf),
    memoryBytes: read('memory', bytesOf),
    ephemeralBytes: read('ephemeralStorage', bytesOf),
  };
}
