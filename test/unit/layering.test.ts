/** Keeps the table of who may import whom (ARCHITECTURE.md) true. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, normalize } from 'node:path';
import { expect, test } from 'vitest';

const anything = /./;
const none = /^$/;
const node = /^node:/;
const rules: Record<string, { ours: string[]; packages: RegExp }> = {
  api: { ours: ['api'], packages: /^zod$/ },
  core: { ours: ['core', 'api'], packages: none },
  engine: { ours: ['engine'], packages: /^(@kubernetes\/client-node$|js-yaml$|node:)/ },
  controllers: { ours: ['controllers', 'api', 'core', 'engine'], packages: none },
  wire: { ours: ['wire', 'api'], packages: node },
  relay: { ours: ['relay', 'api', 'wire'], packages: node },
  kubelet: { ours: ['kubelet', 'api', 'core', 'engine', 'wire'], packages: node },
  gateway: { ours: ['gateway', 'api', 'core', 'wire'], packages: /^(fastify$|node:)/ },
  adapters: { ours: ['adapters', 'api', 'core', 'engine', 'wire', 'contracts'], packages: anything },
  contracts: { ours: ['contracts'], packages: anything },
  cli: { ours: ['cli', 'api', 'core'], packages: anything },
  sandbox: { ours: ['.'], packages: anything },
  cmd: { ours: ['.'], packages: anything },
};

const files = readdirSync('operator', { recursive: true, encoding: 'utf8' }).filter(
  (file) => file.endsWith('.ts') && !/node_modules|contracts\/(out|cache)/.test(file),
);

test.each(files)('operator/%s imports only what its folder may', (file) => {
  const rule = rules[file.split('/')[0]!];
  expect(rule, `operator/${file} is in a folder that no rule names`).toBeDefined();
  const source = readFileSync(join('operator', file), 'utf8');
  for (const [, statement, call] of source.matchAll(
    /^(?:import|export)\s+(?:[^;'"]*?\sfrom\s+)?['"]([^'"]+)['"]|\bimport\(['"]([^'"]+)['"]\)/gm,
  )) {
    const from = statement ?? call;
    if (!from) continue;
    if (!from.startsWith('.')) {
      expect(from, `a package in ${file}`).toMatch(rule!.packages);
      continue;
    }
    const folder = normalize(join(file, '..', from)).split('/')[0]!;
    expect(rule!.ours.includes('.') || rule!.ours.includes(folder), `${file} imports ${from}`).toBe(true);
  }
});
