/** On a contract of a few lines; that each mutant of the real one is noticed is `npm run test:contracts -- --mutate`. */
import { createRequire } from 'node:module';
import { expect, test } from 'vitest';
import { createKillers, plant } from '../../../operator/contracts/mutate.ts';

const source = `// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;
/// @title Ünder test
contract Small {
    error No();
    uint256 sum;
    modifier nonReentrant() { _; }
    function add(uint256 a, bool really) external nonReentrant {
        if (a == 0 || a > 9) revert No();
        if (really) sum += a;
        else sum = _min(sum, a);
        for (uint256 i = 0; i < a; ++i) {}
    }
    function _min(uint256 a, uint256 b) private pure returns (uint256) { return a < b ? a : b; }
}
`;

const compiler = createRequire(import.meta.url)('solc') as { compile(input: string): string };
function compile(text: string, outputSelection: object) {
  const settings = { outputSelection };
  const input = { language: 'Solidity', sources: { 'Small.sol': { content: text } }, settings };
  return JSON.parse(compiler.compile(JSON.stringify(input))) as {
    sources: Record<string, { ast: Parameters<typeof plant>[1] }>;
    errors?: readonly { severity: string; message: string }[];
  };
}

test('finds every guard, branch, cap, comparison and statement, each with a name of its own', () => {
  const { ast } = compile(source, { '*': { '': ['ast'] } }).sources['Small.sol']!;
  const { mutants, source: planted } = plant(source, ast);
  expect(mutants.map(({ id }) => id).sort()).toEqual([
    '_min: always: a < b',
    '_min: as <=: a < b',
    '_min: never: a < b',
    'add: always: really',
    'add: as >=: a > 9',
    'add: first of: _min(sum, a)',
    'add: never: a == 0',
    'add: never: a > 9',
    'add: never: really',
    'add: second of: _min(sum, a)',
    'add: without: nonReentrant',
    'add: without: sum += a',
    'add: without: sum = _min(sum, a)',
  ]);
  expect(mutants.map(({ number }) => number)).toEqual(mutants.map((_, index) => index + 1));
  expect(mutants.find(({ id }) => id.includes('a > 9'))?.line).toBe(9);
  expect(planted).toContain('external nonReentrantUnless(');
  expect(planted).toContain('private view returns');
  expect(planted).toContain('{ if (!mutant(');
  // An else belongs to the if that it belonged to.
  expect(planted).toMatch(/\{ if \(!mutant\(\d+\)\) \{ sum \+= a; \} \}\n {8}else \{/);
});

test('numbers what is there more than once', () => {
  const twice = source.replace('if (really) sum += a;', 'if (really) { sum += a; sum += a; }');
  const { ast } = compile(twice, { '*': { '': ['ast'] } }).sources['Small.sol']!;
  const ids = plant(twice, ast).mutants.map(({ id }) => id);
  expect(ids).toContain('add: without: sum += a');
  expect(ids).toContain('add: without: sum += a (2)');
  expect(new Set(ids).size).toBe(ids.length);
});

test('tests that noticed a mutant are tried first on others of its function, the latest before the others', () => {
  const killers = createKillers(2);
  expect(killers.of('open: without: x = 1')).toEqual([]);
  for (const name of ['one', 'two', 'one', 'three']) killers.noticed('open: never: x == 1', name);
  expect(killers.of('open: without: x = 1')).toEqual(['three', 'one']);
  expect(killers.of('openWithPermit: without: x = 1')).toEqual([]);
});
