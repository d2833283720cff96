/** What the charts say is what the programs have: metrics, flags, values. Helm itself is asked by `npm run test:charts`. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, test } from 'vitest';
import { createMetrics } from '../../../operator/adapters/telemetry/metrics.ts';
import { operatorAlerts, providerAlerts } from '../../../operator/cmd/charts/alerts.ts';
import { dashboard } from '../../../operator/cmd/charts/dashboards.ts';
import { operatorValues } from '../../../operator/cmd/charts/operator-values.ts';
import { providerValues } from '../../../operator/cmd/charts/provider-values.ts';
import { flag, flagsOf, group, integer, paths, valuesSchema, valuesYaml } from '../../../operator/cmd/charts/tree.ts';
import { costMetrics } from '../../../operator/cmd/cost-metrics.ts';
import { gatewayOptions } from '../../../operator/cmd/gateway-options.ts';
import { budgetMetrics, leaseMetrics, serviceMetrics } from '../../../operator/cmd/operator-metrics.ts';
import { flagOf } from '../../../operator/cmd/options.ts';
import { approverOptions } from '../../../operator/cmd/run-approver.ts';
import { drainOptions } from '../../../operator/cmd/run-drain.ts';
import { operatorOptions } from '../../../operator/cmd/run-operator.ts';
import { selfTestOptions } from '../../../operator/cmd/run-self-test.ts';
import { setupOptions } from '../../../operator/cmd/run-setup.ts';
import { walletOptions } from '../../../operator/cmd/wallet-options.ts';
import { counterNames } from '../../../operator/controllers/provider/world.ts';

const trees = { operator: operatorValues, provider: providerValues };
type Chart = keyof typeof trees;
const charts = Object.keys(trees) as Chart[];

const templates = (chart: Chart) =>
  readdirSync(join('charts', chart, 'templates'), { recursive: true, withFileTypes: true })
    .filter((one) => one.isFile())
    .map((one) => join(one.parentPath, one.name));

/** Names of what the programs tell Prometheus. */
async function registered(): Promise<ReadonlySet<string>> {
  const { registry } = createMetrics();
  leaseMetrics(registry, () => new Map());
  costMetrics(
    registry,
    () => new Map(),
    () => undefined,
  );
  budgetMetrics(registry, () => []);
  serviceMetrics(registry, () => ({ ports: 0, toPods: 0, toServices: 0 }));
  const all = await registry.getMetricsAsJSON();
  const names = all.flatMap(({ name, type }) =>
    String(type) === 'histogram' ? [name, `${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
  );
  // Gauges of the provider's side are made where it is wired.
  const wired = readdirSync('operator/cmd')
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) =>
      [...readFileSync(join('operator/cmd', file), 'utf8').matchAll(/new Gauge\(\{\s*name: '(\w+)'/g)].map(
        (found) => found[1]!,
      ),
    );
  return new Set([...names, ...wired, ...Object.keys(counterNames)]);
}

const there = registered();

const words = new Set(['sum', 'max', 'min', 'rate', 'increase', 'absent', 'histogram_quantile', 'by', 'le']);
/** Names that stand where a metric does: before a brace, a bracket, a parenthesis that ends, or an operator. */
const metricsIn = (expr: string) =>
  [
    ...expr
      .replace(/"[^"]*"/g, '""')
      .replace(/\bby \([^)]*\)/g, '')
      .replace(/\{[^}]*\}/g, '')
      .matchAll(/[a-z_][a-z0-9_]*(?!\w*\s*\()/g),
  ]
    .map((found) => found[0])
    .filter((name) => !words.has(name) && !/^[mhs]$/.test(name) && name.includes('_'));

describe('metrics', () => {
  const expressions = [
    ...[...operatorAlerts, ...providerAlerts].map(({ name, expr }) => [`alert ${name}`, expr] as const),
    ...charts.flatMap((chart) =>
      (dashboard(chart) as { panels: { title: string; targets?: { expr: string }[] }[] }).panels.flatMap(
        ({ title, targets = [] }) => targets.map(({ expr }) => [`panel ${chart} ${title}`, expr] as const),
      ),
    ),
  ];

  test.each(expressions)('%s asks for what there is', async (_, expr) => {
    const used = metricsIn(expr);
    expect(used.length).toBeGreaterThan(0);
    const all = await there;
    expect(used.filter((name) => !all.has(name))).toEqual([]);
  });

  it('that nobody has would be found', async () => {
    expect(metricsIn('sum by (kind) (increase(gpulease_no_such_total{a="b_c"}[30m])) > 0')).toEqual([
      'gpulease_no_such_total',
    ]);
    expect((await there).has('gpulease_no_such_total')).toBe(false);
  });
});

const declared = [
  operatorOptions,
  walletOptions,
  approverOptions,
  gatewayOptions,
  drainOptions,
  setupOptions,
  selfTestOptions,
];
// Of `gpulease provider check`, which reads its own.
const ofCheck = ['runtime-class'];
const flags = new Set([...declared.flatMap((one) => Object.keys(one).map(flagOf)), ...ofCheck]);

describe.each(charts)('templates of charts/%s', (chart) => {
  test.each(templates(chart))('%s reads values that there are, and writes flags that there are', (file) => {
    const text = readFileSync(file, 'utf8');
    const known = new Set(paths(trees[chart]));
    const read = [...text.matchAll(/\.Values((?:\.[A-Za-z]\w*)+)/g)].map((found) => found[1]!.slice(1));
    // A flag that another version of the program has, read where it is there.
    known.add('gateway.flags.runtimeClass');
    // What two charts share asks for values of its own chart only.
    expect(read.filter((path) => !known.has(path))).toEqual([]);
    const written = [...text.matchAll(/(?:^\s*-\s+|")--([a-z][a-z-]*)/gm)].map((found) => found[1]!);
    if (!file.endsWith('NOTES.txt')) expect(written.filter((one) => !flags.has(one))).toEqual([]);
  });
});

describe('a tree of values', () => {
  const tree = group('For a test.', {
    on: flag('Whether.', true),
    many: integer(1, 5)('How many there are of them.', 2, 3),
    inner: group('Within.', { unset: flag('Not said.') }),
    flags: flagsOf(
      'gateway',
      gatewayOptions,
      Object.keys(gatewayOptions).filter((key) => !['tick', 'logLevel'].includes(key)),
    ),
  });

  it('is values with comments', () => {
    const yaml = valuesYaml(tree);
    expect(yaml).toContain('# Whether.\non: true\n');
    expect(yaml).toContain('many: 2\n#   many: 3\n');
    expect(yaml).toContain('inner: {}\n  # Not said.\n  # unset:\n');
    expect(yaml).toMatch(/# tick: 3\n/);
  });

  it('is a schema that knows what flags may be', () => {
    const schema = JSON.parse(valuesSchema(tree, 'x')) as {
      properties: Record<string, { properties?: object }>;
      additionalProperties: boolean;
    };
    expect(schema.additionalProperties).toBe(false);
    expect(schema.properties.many).toMatchObject({ type: 'integer', minimum: 1, maximum: 5 });
    expect(schema.properties.flags?.properties).toMatchObject({
      tick: { type: 'integer', minimum: 1, maximum: 30 },
      logLevel: { enum: ['debug', 'info', 'warn', 'error'] },
    });
  });

  it('names no flag of its own that the program lacks', () => {
    expect(() => flagsOf('gateway', gatewayOptions, ['noSuchFlag'])).toThrow('gateway has no flag no-such-flag');
  });
});
