/** Helm and kubeconform, as the tests of the charts call them. */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { loadAll } from 'js-yaml';

export const charts = ['operator', 'provider'] as const;
export type Chart = (typeof charts)[number];

export const chartFolder = (chart: Chart) => join(import.meta.dirname, '../../charts', chart);
export const ciValues = (chart: Chart) => join(chartFolder(chart), 'ci/sandbox-values.yaml');

export interface Manifest {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly labels?: Record<string, string>;
    readonly annotations?: Record<string, string>;
  };
  // biome-ignore lint/suspicious/noExplicitAny: tests look at whatever a manifest has
  readonly [field: string]: any;
}

export interface Lab {
  readonly helm: string;
  readonly kubeconform: string;
  /** Locations of schemas for a version of Kubernetes. */
  readonly schemas: (version: string) => string[];
}

export interface Ran {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export async function run(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<Ran> {
  try {
    const { stdout, stderr } = await promisify(execFile)(program, args, { maxBuffer: 64 << 20, env });
    return { status: 0, stdout, stderr };
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as { code?: number | string; stdout?: string; stderr?: string };
    if (typeof code !== 'number') throw error;
    return { status: code, stdout, stderr };
  }
}

export interface Render {
  readonly chart: Chart;
  readonly values?: readonly string[];
  readonly set?: readonly string[];
  readonly kubeVersion?: string;
  readonly apiVersions?: readonly string[];
  readonly namespace?: string;
}

const argsOf = ({
  chart,
  values = [ciValues(chart)],
  set = [],
  kubeVersion = '1.36.3',
  apiVersions = [],
  namespace = 'gpulease-system',
}: Render) => [
  'gpulease',
  chartFolder(chart),
  '--namespace',
  namespace,
  ...values.flatMap((file) => ['--values', file]),
  ...set.flatMap((one) => ['--set', one]),
  '--kube-version',
  kubeVersion,
  ...apiVersions.flatMap((one) => ['--api-versions', one]),
];

export const template = (lab: Lab, render: Render): Promise<Ran> => run(lab.helm, ['template', ...argsOf(render)]);

export async function rendered(
  lab: Lab,
  render: Render,
): Promise<{ readonly yaml: string; readonly manifests: Manifest[] }> {
  const { status, stdout, stderr } = await template(lab, render);
  if (status !== 0) throw new Error(`helm template: ${stderr.trim()}`);
  return { yaml: stdout, manifests: (loadAll(stdout) as (Manifest | null)[]).filter((one) => one !== null) };
}

export const valuesFiles = (chart: Chart): string[] =>
  readdirSync(join(chartFolder(chart), 'ci'))
    .filter((file) => file.endsWith('-values.yaml'))
    .map((file) => join(chartFolder(chart), 'ci', file));
