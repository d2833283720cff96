import { describe, expect, test } from 'vitest';
import type { AccessSpec } from '../../../../operator/api/access.ts';
import { accessChange, type NodeAccess } from '../../../../operator/core/node/leased-access.ts';

const access = (change: Partial<NodeAccess> = {}): NodeAccess => ({
  lease: 'ml/train',
  namespaces: ['ml'],
  untainted: false,
  ending: false,
  ...change,
});
const entry = { lease: 'ml/train', namespaces: ['ml'] };
const spec = (nodes: AccessSpec['nodes'], untainted: string[] = []): AccessSpec => ({ nodes, untainted });
const all = () => true;
const none = () => false;

describe('the object that the API server looks into', () => {
  test.each<[string, AccessSpec, [string, NodeAccess][], (node: string) => boolean, unknown]>([
    ['gets an entry for a new node', spec({}), [['a', access()]], none, { nodes: { a: entry } }],
    ['is left alone when it says so already', spec({ a: entry }), [['a', access()]], all, undefined],
    [
      'follows the namespaces of a lease',
      spec({ a: entry }),
      [['a', access({ namespaces: ['ml', 'web'] })]],
      all,
      { nodes: { a: { ...entry, namespaces: ['ml', 'web'] } } },
    ],
    ['keeps what others serve', spec({ b: entry }), [['a', access()]], all, { nodes: { a: entry } }],
    ['loses nodes that are gone', spec({ a: entry, b: entry }), [['a', access()]], none, { nodes: { b: null } }],
    [
      'says which nodes no taint guards',
      spec({ a: entry }),
      [['a', access({ untainted: true })]],
      all,
      { untainted: ['a'] },
    ],
    ['says so no longer', spec({ a: entry }, ['a']), [['a', access()]], all, { untainted: [] }],
    ['does not when they are gone', spec({ b: entry }, ['b']), [], none, { nodes: { b: null }, untainted: [] }],
    ['keeps others’ there', spec({ a: entry, b: entry }, ['b']), [['a', access()]], all, undefined],
    [
      'says that a lease ends',
      spec({ a: entry }),
      [['a', access({ ending: true })]],
      all,
      { nodes: { a: { ...entry, ending: true } } },
    ],
    [
      'forgets an end when the next attempt makes the node again',
      spec({ a: { ...entry, ending: true } }),
      [['a', access()]],
      all,
      { nodes: { a: { ...entry, ending: null } } },
    ],
  ])('%s', (_, stored, wanted, exists, patch) => {
    expect(accessChange(stored, new Map(wanted), exists)).toEqual({ ...(patch ? { patch } : {}), leftOut: [] });
  });

  test('stays within what one object may hold, and says what was left out', () => {
    const namespaces = Array.from({ length: 32 }, (_, i) => `${'n'.repeat(60)}-${i}`);
    const wanted = new Map(
      Array.from({ length: 1000 }, (_, i) => [`gpu-${i}`, access({ namespaces, untainted: true })] as const),
    );
    const { patch, leftOut } = accessChange(spec({}), wanted, all);
    expect(JSON.stringify(patch).length).toBeLessThan(1_000_000);
    expect(leftOut.length).toBeGreaterThan(0);
    expect(Object.keys(patch?.nodes ?? {}).length).toBe(1000 - leftOut.length);
    expect(patch?.untainted).not.toContain(leftOut[0]);
  });

  test('holds a thousand ordinary nodes in a fifth of that', () => {
    const wanted = new Map(
      Array.from({ length: 1000 }, (_, i) => [`gpu-train-${i}-0123456789`, access({ lease: `team-${i}/train-${i}` })]),
    );
    const { patch, leftOut } = accessChange(spec({}), wanted, all);
    expect(leftOut).toEqual([]);
    expect(JSON.stringify(patch).length).toBeLessThan(200_000);
  });
});
