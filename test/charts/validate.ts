/** kubeconform over all that a chart can make, with schemas of one Kubernetes and of the kinds of others. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { customResourceDefinition } from '../../operator/api/crd.ts';
import { kinds } from '../../operator/api/kinds.ts';
import { writeCrd } from '../../operator/sandbox/charts/schemas.ts';
import { type Chart, type Lab, rendered, run } from './lab.ts';
import { table } from './table.ts';

interface Result {
  readonly resources?: {
    readonly kind: string;
    readonly name: string;
    readonly status: string;
    readonly msg: string;
  }[];
  readonly summary: {
    readonly valid: number;
    readonly invalid: number;
    readonly errors: number;
    readonly skipped: number;
  };
}

export async function validate(lab: Lab, chart: Chart, version: string): Promise<{ count: number; why?: string }> {
  const folder = mkdtempSync(join(tmpdir(), 'gpulease-charts-'));
  try {
    for (const kind of kinds) writeCrd(customResourceDefinition(kind) as never, folder);
    let all = '';
    for (const { set, apiVersions, refused, chart: of } of table) {
      if (refused || of !== chart) continue;
      all += `---\n${(await rendered(lab, { chart, set, apiVersions, kubeVersion: version })).yaml}\n`;
    }
    const file = join(folder, 'all.yaml');
    writeFileSync(file, all);
    const own = join(folder, '{{.ResourceKind}}_{{.Group}}_{{.ResourceAPIVersion}}.json');
    const { stdout, stderr } = await run(lab.kubeconform, [
      '-strict',
      '-summary',
      '-output',
      'json',
      '-kubernetes-version',
      version,
      ...[...lab.schemas(version), own].flatMap((at) => ['-schema-location', at]),
      file,
    ]);
    const { summary, resources = [] } = JSON.parse(stdout || '{}') as Result;
    if (!summary) return { count: 0, why: stderr };
    const wrong = resources
      .filter((one) => one.status !== 'statusValid')
      .map(({ kind, name, msg }) => `${kind}/${name}: ${msg}`);
    const bad = summary.invalid + summary.errors + summary.skipped;
    return bad === 0 && summary.valid > 0
      ? { count: summary.valid }
      : {
          count: summary.valid,
          why: [...new Set(wrong)].slice(0, 20).join('\n        ') || `${summary.valid} valid, ${bad} not`,
        };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
