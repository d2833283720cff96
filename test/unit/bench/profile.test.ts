import { expect, test } from 'vitest';
import { allocated, fileOf, selfTime } from '../../bench/profile.ts';

const frame = (functionName: string, url: string, lineNumber = 0) => ({ functionName, url, lineNumber });

test.each([
  ['file:///srv/gpulease/operator/core/node/sha256.ts', 'core/node/sha256.ts'],
  ['file:///srv/gpulease/node_modules/fastify/lib/reply.js', 'fastify/lib/reply.js'],
  ['node:internal/tls/wrap', 'node:internal/tls/wrap'],
  ['', '(V8)'],
])('%s is told as %s', (url, told) => expect(fileOf(url)).toBe(told));

test('time is summed by function and by file, and waiting is no work', () => {
  const profile = {
    nodes: [
      { id: 1, callFrame: frame('(idle)', '') },
      { id: 2, callFrame: frame('hash', 'file:///x/operator/core/a.ts', 9) },
      { id: 3, callFrame: frame('hash', 'file:///x/operator/core/a.ts', 9) },
      { id: 4, callFrame: frame('', 'file:///x/operator/core/a.ts', 20) },
      { id: 5, callFrame: frame('(garbage collector)', '') },
    ],
    samples: [1, 2, 3, 4, 5],
    timeDeltas: [5_000_000, 1_000_000, 500_000, 250_000, 100_000],
  };
  expect(selfTime(profile)).toEqual([
    { what: 'hash  core/a.ts:10', amount: 1.5 },
    { what: '(anonymous)  core/a.ts:21', amount: 0.25 },
    { what: '(garbage collector)', amount: 0.1 },
  ]);
  expect(selfTime(profile, ({ url }) => fileOf(url))[0]).toEqual({ what: 'core/a.ts', amount: 1.75 });
});

test('memory is summed over all places from which a function was called', () => {
  const leaf = (selfSize: number) => ({ callFrame: frame('decode', 'node:buffer', 4), selfSize, children: [] });
  const head = {
    callFrame: frame('(root)', ''),
    selfSize: 0,
    children: [leaf(10), { ...leaf(1), children: [leaf(5)] }],
  };
  expect(allocated(head)).toEqual([{ what: 'decode  node:buffer:5', amount: 16 }]);
});
