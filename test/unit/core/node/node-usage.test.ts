import { describe, expect, test } from 'vitest';
import { countIn, cpuSecondsOf, noUsage, type PodCpu } from '../../../../operator/core/node/node-usage.ts';

type Step = { seen: Record<string, number>; atMs?: number; here?: string[]; nodeAtMs?: number };

function counter(steps: readonly Step[]): { seconds: number[]; atMs: number[] } {
  let memory = noUsage;
  const seconds: number[] = [];
  const atMs: number[] = [];
  steps.forEach((step, index) => {
    const at = step.atMs ?? (index + 1) * 1000;
    const seen: PodCpu[] = Object.entries(step.seen).map(([uid, cpuSeconds]) => ({ uid, cpuSeconds, atMs: at }));
    const here = step.here ?? Object.keys(step.seen);
    memory = countIn(memory, seen, (uid) => here.includes(uid), step.nodeAtMs);
    seconds.push(cpuSecondsOf(memory));
    atMs.push(memory.atMs);
  });
  return { seconds, atMs };
}

describe('the CPU seconds of a node', () => {
  test.each<[string, Step[], number[]]>([
    ['are the sum of its pods', [{ seen: { a: 1, b: 2 } }], [3]],
    ['go on when a pod is gone', [{ seen: { a: 5, b: 2 } }, { seen: { b: 3 } }], [7, 8]],
    ['go on when all pods are gone', [{ seen: { a: 5 } }, { seen: {} }, { seen: { c: 1 } }], [5, 5, 6]],
    [
      'wait for a pod that a page forgot',
      [{ seen: { a: 5 } }, { seen: {}, here: ['a'] }, { seen: { a: 6 } }],
      [5, 5, 6],
    ],
    ['count on when a counter begins anew', [{ seen: { a: 5 } }, { seen: { a: 1 } }, { seen: { a: 2 } }], [5, 6, 7]],
    [
      'take no older page for a counter that begins anew',
      [
        { seen: { a: 5 }, atMs: 2000 },
        { seen: { a: 4 }, atMs: 1000 },
        { seen: { a: 6 }, atMs: 3000 },
      ],
      [5, 5, 6],
    ],
    ['count no pod that is not there', [{ seen: { a: 5 } }, { seen: {}, here: [] }, { seen: {}, here: [] }], [5, 5, 5]],
  ])('%s', (_, steps, expected) => {
    expect(counter(steps).seconds).toEqual(expected);
  });

  test.each<[string, Step[], number[]]>([
    ['is the newest of its pods', [{ seen: { a: 1 }, nodeAtMs: 9000 }, { seen: { a: 2 } }], [1000, 2000]],
    [
      'is the node’s where there are no pods',
      [
        { seen: {}, nodeAtMs: 700 },
        { seen: {}, nodeAtMs: 900 },
      ],
      [700, 900],
    ],
    [
      'never goes back',
      [{ seen: { a: 1 }, atMs: 5000 }, { seen: { a: 2 }, atMs: 4000 }, { seen: {} }],
      [5000, 5000, 5000],
    ],
  ])('their time %s', (_, steps, expected) => {
    expect(counter(steps).atMs).toEqual(expected);
  });
});
