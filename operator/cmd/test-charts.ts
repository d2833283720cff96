#!/usr/bin/env node
/** `npm run test:charts`: lints, renders, refuses, validates, and installs on a real API server. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { faultsOf } from '../../test/charts/checks.ts';
import { chartFolder, charts, type Lab, rendered, run, template, valuesFiles } from '../../test/charts/lab.ts';
import { onServer } from '../../test/charts/server.ts';
import { table } from '../../test/charts/table.ts';
import { validate } from '../../test/charts/validate.ts';
import { ensureSchemas, schemaVersions } from '../sandbox/charts/schemas.ts';
import { ensureHelm, ensureKubeconform } from '../sandbox/tools/helm.ts';
import { parseOptions, UsageError } from './options.ts';

const usage = `
Tests charts/operator and charts/provider: helm lint, a table of values and refusals, what must hold of every manifest, schemas of
Kubernetes ${schemaVersions.join(', ')}, and installation, upgrade, tests and removal on a real API server (without nodes: the
programs of hooks run here, under the accounts that the charts give them).

  npm run test:charts                       all; the first time also builds Helm and makes the schemas
  npm run test:charts -- --fast             without the API server
`;

const declared = { fast: { description: 'Without the API server.', parse: (t: string) => t === 'true' } };

const started = Date.now();
const report = (line: string) => console.log(`        ${line}`);
const failures: string[] = [];
let rows = 0;

async function row(name: string, look: () => Promise<string | undefined>): Promise<void> {
  rows += 1;
  const since = Date.now();
  const why = await look().catch((error: Error) => error.message);
  if (why !== undefined) failures.push(`${name}: ${why.slice(0, 1000)}`);
  console.log(
    `${why === undefined ? 'ok    ' : 'FAILED'}  ${name}  ${((Date.now() - since) / 1000).toFixed(1)} s${why === undefined ? '' : `\n        ${why}`}`,
  );
}

async function main(): Promise<void> {
  const options = parseOptions(usage, declared, process.argv.slice(2), process.env);
  if (!options) return;
  const lab: Lab = {
    helm: await ensureHelm({ report }),
    kubeconform: await ensureKubeconform({ report }),
    schemas: await ensureSchemas({ report }),
  };
  for (const chart of charts)
    for (const values of valuesFiles(chart))
      await row(`lint ${chart} with ${values.split('/').at(-1)}`, async () => {
        const { status, stdout, stderr } = await run(lab.helm, [
          'lint',
          '--strict',
          chartFolder(chart),
          '--values',
          values,
        ]);
        return status === 0 ? undefined : `${stdout}${stderr}`;
      });

  let server: object = {};
  if (!options.fast) {
    const dir = await mkdtemp(join(tmpdir(), 'gpulease-charts-'));
    try {
      server = await onServer({ lab, dir, report, row });
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }

  let manifestCount = 0;
  for (const { says, chart, set, apiVersions, kubeVersion, has = [], hasNot = [], text = [], refused } of table)
    await row(`${chart}: ${refused ? 'refuses ' : ''}${says}`, async () => {
      const render = { chart, set, apiVersions, kubeVersion };
      if (refused) {
        const { status, stderr } = await template(lab, render);
        if (status === 0) return 'it was rendered';
        return refused.test(stderr) ? undefined : `it says: ${stderr.trim()}`;
      }
      const { manifests, yaml } = await rendered(lab, render);
      manifestCount += manifests.length;
      const there = new Set(manifests.map(({ kind, metadata }) => `${kind}/${metadata.name}`));
      const wrong = [
        ...has.filter((one) => !there.has(one)).map((one) => `${one} is missing`),
        ...hasNot.filter((one) => there.has(one)).map((one) => `${one} is there`),
        ...text.filter((one) => !one.test(yaml)).map((one) => `nothing says ${one}`),
        ...faultsOf(manifests),
      ];
      return wrong.length === 0 ? undefined : wrong.join('\n        ');
    });

  for (const chart of charts)
    await row(`${chart}: the least values of its README are enough`, async () => {
      const readme = readFileSync(join(chartFolder(chart), 'README.md'), 'utf8');
      const [, least = ''] = /```yaml\n(# values\.yaml[\s\S]*?)```/.exec(readme) ?? [];
      const file = join(tmpdir(), `gpulease-least-${process.pid}.yaml`);
      writeFileSync(file, least.replaceAll('0x…', `0x${'1'.repeat(40)}`));
      try {
        const { manifests } = await rendered(lab, { chart, values: [file] });
        return faultsOf(manifests).join('\n        ') || undefined;
      } finally {
        rmSync(file);
      }
    });

  let validated = 0;
  for (const version of schemaVersions)
    for (const chart of charts)
      await row(`${chart}: every manifest is one of Kubernetes ${version}`, async () => {
        const { count, why } = await validate(lab, chart, version);
        validated += count;
        return why;
      });

  if (failures.length > 0) process.exitCode = 1;
  console.log(
    JSON.stringify({
      rows,
      failed: failures.length,
      failures,
      manifests: manifestCount,
      validated,
      versions: schemaVersions,
      ...server,
      seconds: Math.round((Date.now() - started) / 1000),
    }),
  );
}

main().catch((error: Error) => {
  console.error(error instanceof UsageError ? error.message : error.stack);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
