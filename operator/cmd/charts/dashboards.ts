/** Dashboards for Grafana, of metrics of our own registries alone: a test compares the names. */

interface Panel {
  readonly title: string;
  readonly about: string;
  readonly unit?: string;
  readonly kind?: 'timeseries' | 'stat';
  readonly queries: readonly (readonly [expr: string, legend: string])[];
}

const rows: Readonly<Record<'operator' | 'provider', Readonly<Record<string, readonly Panel[]>>>> = {
  operator: {
    Money: [
      {
        title: 'Rate',
        about: 'What open leases cost an hour, in whole tokens.',
        kind: 'stat',
        queries: [['sum by (asset) (gpulease_lease_rate_per_hour)', '{{asset}} an hour']],
      },
      {
        title: 'In escrow',
        about: 'Deposited and not settled: what can be locked at most when a provider vanishes.',
        kind: 'stat',
        queries: [['sum by (asset) (gpulease_escrow_outstanding)', '{{asset}}']],
      },
      {
        title: 'Billed over quoted',
        about: 'Above 1 somebody was billed too much.',
        kind: 'stat',
        queries: [['max(gpulease_quote_vs_billed_ratio)', 'highest']],
      },
      {
        title: 'Rate by provider',
        about: 'What open leases cost an hour, in whole tokens.',
        queries: [['sum by (provider, asset) (gpulease_lease_rate_per_hour)', '{{provider}} {{asset}}']],
      },
      {
        title: 'Budgets',
        about: 'Spent, of the limit of each window.',
        unit: 'percentunit',
        queries: [['max by (budget, window) (gpulease_budget_used_ratio)', '{{budget}} {{window}}']],
      },
      {
        title: 'Seconds vouched for',
        about: 'GPU nodes served and signed for: 1 is one node all the time.',
        queries: [['sum by (provider) (rate(gpulease_lease_vouched_seconds_total[5m]))', '{{provider}}']],
      },
    ],
    Leases: [
      {
        title: 'Not Ready, by reason',
        about: 'Leases that wait, and what for.',
        queries: [['sum by (reason) (gpulease_pending_leases)', '{{reason}}']],
      },
      {
        title: 'Time to Ready',
        about: 'From the creation of a lease to its node being Ready.',
        unit: 's',
        queries: [
          ['histogram_quantile(0.5, sum by (le) (rate(gpulease_lease_time_to_ready_seconds_bucket[1h])))', 'half'],
          [
            'histogram_quantile(0.95, sum by (le) (rate(gpulease_lease_time_to_ready_seconds_bucket[1h])))',
            '95 of 100',
          ],
        ],
      },
      {
        title: 'Leased GPUs',
        about: 'GPUs of leased nodes, by model.',
        queries: [['sum by (instance_type) (node_gpu_count)', '{{instance_type}}']],
      },
      {
        title: 'Connections of Services',
        about: 'To pods on leased nodes, and from them to Services of this cluster.',
        queries: [['sum by (to) (gpulease_service_connections)', 'to {{to}}']],
      },
      {
        title: 'Orphans',
        about: 'Found with no lease behind them, and being ended.',
        queries: [['sum by (kind) (increase(gpulease_orphans_total[10m]))', '{{kind}}']],
      },
    ],
  },
  provider: {
    Sold: [
      {
        title: 'GPUs',
        about: 'Of offered nodes.',
        kind: 'stat',
        queries: [['max by (state) (gpulease_gateway_gpus)', '{{state}}']],
      },
      {
        title: 'Leases',
        about: 'With a record here, by state.',
        kind: 'stat',
        queries: [['max by (state) (gpulease_gateway_leases)', '{{state}}']],
      },
      {
        title: 'GPUs over time',
        about: 'Sold, and free to be sold.',
        queries: [['max by (state) (gpulease_gateway_gpus)', '{{state}}']],
      },
      {
        title: 'Quotes and leases',
        about: 'Quotes signed, and leases that began, in an hour.',
        queries: [
          ['sum by (offer) (increase(gpulease_gateway_quotes_total[1h]))', 'quotes {{offer}}'],
          ['sum by (offer) (increase(gpulease_gateway_allocations_total[1h]))', 'leases {{offer}}'],
        ],
      },
      {
        title: 'Leases that ended',
        about: 'In an hour, by reason.',
        queries: [['sum by (reason) (increase(gpulease_gateway_endings_total[1h]))', '{{reason}}']],
      },
    ],
    Money: [
      {
        title: 'Vouchers',
        about: 'Stored, in a second.',
        queries: [['sum(rate(gpulease_gateway_vouchers_total[5m]))', 'vouchers']],
      },
      {
        title: 'Settlements',
        about: 'Transactions submitted, and those that the contract would have refused, in an hour.',
        queries: [
          ['sum by (kind) (increase(gpulease_gateway_settlements_total[1h]))', '{{kind}}'],
          ['sum by (name) (increase(gpulease_gateway_settlement_refusals_total[1h]))', 'refused: {{name}}'],
        ],
      },
      {
        title: 'Orphans',
        about: 'Found with no lease behind them, and being ended.',
        queries: [['sum by (kind) (increase(gpulease_gateway_orphans_total[10m]))', '{{kind}}']],
      },
    ],
  },
};

const engine: readonly Panel[] = [
  {
    title: 'Reconciles',
    about: 'In a second, by controller.',
    queries: [['sum by (controller) (rate(controller_runtime_reconcile_total[5m]))', '{{controller}}']],
  },
  {
    title: 'Failures',
    about: 'In a second, by controller.',
    queries: [['sum by (controller) (rate(controller_runtime_reconcile_errors_total[5m]))', '{{controller}}']],
  },
  {
    title: 'Waiting',
    about: 'Keys in the queues.',
    queries: [['max by (name) (workqueue_depth)', '{{name}}']],
  },
  {
    title: 'Requests to API servers',
    about: 'In a second, by code; 0: no answer.',
    queries: [['sum by (host, code) (rate(rest_client_requests_total[5m]))', '{{host}} {{code}}']],
  },
  {
    title: 'Silence of watches',
    about: 'Since the API server last said anything.',
    unit: 's',
    queries: [['max by (resource) (gpulease_informer_stale_seconds)', '{{resource}}']],
  },
  {
    title: 'Processors and memory',
    about: 'Of each process.',
    queries: [
      ['rate(process_cpu_seconds_total[5m])', 'cores {{pod}}'],
      ['process_resident_memory_bytes / 1e9', 'GB {{pod}}'],
    ],
  },
];

// biome-ignore lint/suspicious/noTemplateCurlyInString: Grafana's own
const source = { type: 'prometheus', uid: '${datasource}' };

export function dashboard(chart: 'operator' | 'provider'): object {
  const panels: object[] = [];
  let y = 0;
  for (const [title, group] of Object.entries({ ...rows[chart], Engine: engine })) {
    panels.push({
      id: panels.length + 1,
      type: 'row',
      title,
      collapsed: false,
      gridPos: { h: 1, w: 24, x: 0, y },
      panels: [],
    });
    y += 1;
    let x = 0;
    for (const { title: name, about, unit, kind = 'timeseries', queries } of group) {
      panels.push({
        id: panels.length + 1,
        type: kind,
        title: name,
        description: about,
        datasource: source,
        gridPos: { h: 8, w: 8, x, y },
        fieldConfig: { defaults: { unit: unit ?? 'short', min: 0 }, overrides: [] },
        options:
          kind === 'stat'
            ? { reduceOptions: { calcs: ['lastNotNull'] } }
            : { legend: { displayMode: 'list', placement: 'bottom' }, tooltip: { mode: 'multi' } },
        targets: queries.map(([expr, legend], index) => ({
          refId: String.fromCharCode(65 + index),
          datasource: source,
          expr,
          legendFormat: legend,
        })),
      });
      x += 8;
      if (x === 24) {
        x = 0;
        y += 8;
      }
    }
    if (x > 0) y += 8;
  }
  return {
    uid: `gpulease-${chart}`,
    title: chart === 'operator' ? 'gpulease: leases' : 'gpulease: rented out',
    tags: ['gpulease'],
    schemaVersion: 39,
    version: 1,
    editable: true,
    refresh: '1m',
    time: { from: 'now-6h', to: 'now' },
    templating: { list: [{ name: 'datasource', type: 'datasource', query: 'prometheus', label: 'Data source' }] },
    panels,
  };
}
