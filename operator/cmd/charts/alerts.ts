/**
 * What is worth waking somebody for, and what that person reads then. From here come the PrometheusRules of the charts and a
 * page for each alert. Each expression uses metrics of our own registries alone: a test compares the names.
 */
export interface Alert {
  readonly name: string;
  readonly expr: string;
  readonly for: string;
  readonly severity: 'critical' | 'warning';
  /** One line, with labels as Prometheus fills them in. */
  readonly summary: string;
  /** The page: what it means, what is at stake, where to look, what to do. */
  readonly meaning: string;
  readonly stake: string;
  readonly look: readonly string[];
  readonly mend: readonly string[];
}

const logs = (name: string) => `\`kubectl -n gpulease-system logs deploy/${name} --since=1h\``;

const stale = (side: 'operator' | 'gateway', rest: string): Alert => ({
  name: side === 'operator' ? 'GpuleaseWatchStale' : 'GpuleaseGatewayWatchStale',
  expr: `max by (cluster, resource) (gpulease_informer_stale_seconds{cluster="${side === 'operator' ? 'consumer' : 'provider'}"}) > 300`,
  for: '5m',
  severity: 'warning',
  summary:
    'Nothing was heard of {{ $labels.resource }} in the cluster {{ $labels.cluster }} for {{ $value | humanizeDuration }}.',
  meaning: `The ${side} watches these objects, and the API server has said nothing about them for five minutes, not even that all is as it was. What the ${side} decides, it decides from old facts.`,
  stake: rest,
  look: [
    logs(`gpulease-${side}`),
    'Is the API server answering others? `kubectl get --raw /readyz?verbose`',
    'Was the network policy of the namespace changed?',
  ],
  mend: [
    'Mend the way to the API server; the watch resumes by itself.',
    `If others reach it and the ${side} does not: \`kubectl -n gpulease-system rollout restart deploy/gpulease-${side}\`. Pods on leased nodes are not touched by that.`,
  ],
});

const orphans = (side: 'operator' | 'gateway', metric: string, look: readonly string[]): Alert => ({
  name: side === 'operator' ? 'GpuleaseOrphans' : 'GpuleaseGatewayOrphans',
  expr: `sum by (kind) (increase(${metric}[30m])) > 0`,
  for: '30m',
  severity: 'warning',
  summary: 'Something of kind {{ $labels.kind }} with no lease behind it is not going away.',
  meaning:
    'Each sweep looks for what no lease stands behind, and ends it. Normally one sweep is enough. This has been found again and again for half an hour.',
  stake:
    side === 'operator'
      ? 'An escrow holds money, or a node stays that nobody pays for.'
      : 'GPUs are set aside for nobody, and cannot be sold.',
  look: [logs(`gpulease-${side}`), ...look],
  mend: [
    'The log says what is in the way: a chain or provider that does not answer, an object that somebody else holds with a finalizer. Mend that; the next sweep does the rest.',
  ],
});

const errors = (chart: 'operator' | 'gateway'): Alert => ({
  name: chart === 'operator' ? 'GpuleaseReconcileErrors' : 'GpuleaseGatewayReconcileErrors',
  expr: `sum by (controller) (rate(controller_runtime_reconcile_errors_total{controller=~"${chart === 'operator' ? 'lease|provider|budget|orphan' : 'allocation|offer|offered-node'}"}[10m])) > 0.1`,
  for: '15m',
  severity: 'warning',
  summary: 'Controller {{ $labels.controller }} fails {{ $value | humanize }} times a second.',
  meaning:
    'Each failure is tried again with a pause that grows, so that a few are no harm. For a quarter of an hour they have been more than one in ten seconds.',
  stake: 'What the controller keeps up is late: for leases that is their beginning, their payment and their end.',
  look: [logs(`gpulease-${chart}`), 'Failures of the API server: `rest_client_requests_total` by code.'],
  mend: [
    'Errors that name a chain: see whether its RPC endpoints answer, and add one of another operator to `chains`.',
    'Errors that say Forbidden: the chart’s roles were changed, or an older chart runs with a newer image. `helm upgrade` puts them right.',
  ],
});

export const operatorAlerts: readonly Alert[] = [
  {
    name: 'GpuleaseOperatorNotLeading',
    expr: 'absent(leader_election_master_status{name="gpulease-operator"} == 1)',
    for: '5m',
    severity: 'critical',
    summary: 'No replica of the operator leads.',
    meaning:
      'Leases are kept by the one replica that holds the leader lock. None has said for five minutes that it does.',
    stake:
      'Nodes of leases lose their heartbeat, no voucher is signed, nothing new is leased. Pods run on for as long as each provider’s grace lasts (`graceSeconds` of the quote, ten minutes at most), then the provider stops them.',
    look: [
      '`kubectl -n gpulease-system get pods -l app.kubernetes.io/component=operator`',
      logs('gpulease-operator'),
      '`kubectl -n gpulease-system get lease gpulease-operator -o yaml`: who holds the lock, renewed when?',
      'Is Prometheus reading the metrics at all? `up{pod=~"gpulease-operator.*"}`',
    ],
    mend: [
      'Pods that do not start say why in their events and last log line: a missing Secret with the wallet’s key, an image that cannot be pulled, a flag that is refused.',
      'A lock that a dead pod holds is taken over by itself within half a minute.',
    ],
  },
  {
    name: 'GpuleaseBilledAboveQuote',
    expr: 'max by (provider, asset) (gpulease_quote_vs_billed_ratio) > 1',
    for: '0m',
    severity: 'critical',
    summary: 'Provider {{ $labels.provider }} was paid {{ $value }} times what its quote says.',
    meaning:
      'A lease was settled for more than its signed quote allows for the seconds that were signed for. The contract forbids that, so this is a fault, of the contract’s deployment or of gpulease.',
    stake: 'Money.',
    look: [
      '`gpulease receipt list --namespace gpulease-system`, then `gpulease receipt verify --chain ID=URL`: it names the lease, the field, and what it should be.',
    ],
    mend: [
      'Stop leasing there: `kubectl patch gpuprovider NAME --type merge -p \'{"spec":{"stopPolicy":"HoldAndDrain"}}\'`.',
      'Keep the receipt; it holds both sides’ signatures. Report it.',
    ],
  },
  {
    name: 'GpuleaseInsufficientFunds',
    expr: 'sum(gpulease_pending_leases{reason="InsufficientFunds"}) > 0',
    for: '5m',
    severity: 'critical',
    summary: '{{ $value }} leases wait because the wallet has too little.',
    meaning: 'The wallet has too few tokens for a deposit, or too little of the chain’s own coin for fees.',
    stake:
      'New leases wait. Leases that run are topped up from the same wallet: they end when their deposits do, an hour later by default.',
    look: [
      '`kubectl get gpuleases -A` and the message of the condition Funded of one of them: it says which token, how much there is, and how much is wanted.',
    ],
    mend: [
      'Send tokens, or coin for fees, to the wallet’s address, which the message names. Leases go on by themselves.',
    ],
  },
  {
    name: 'GpuleaseLeasesPending',
    expr: 'sum by (reason) (gpulease_pending_leases{reason!~"Suspended|AwaitingApproval|InsufficientFunds|BudgetExceeded"}) > 0',
    for: '30m',
    severity: 'warning',
    summary: '{{ $value }} leases are not Ready, because of {{ $labels.reason }}.',
    meaning:
      'Somebody has waited for GPUs for half an hour. What people decide themselves (suspended, awaiting approval, budgets) is not counted.',
    stake: 'Pods are Pending. Nothing is billed for a lease that never was Ready.',
    look: [
      '`kubectl get gpuleases -A`, then `kubectl describe gpulease NAME`: the message says how many offers were considered, and why each was not taken.',
      '`kubectl get gpuproviders` and `kubectl get gpuoffers`',
    ],
    mend: [
      'NoMatchingOffer, PriceAboveLimit, CapacityExhausted: raise the limit, name more models, or add a provider.',
      'ProviderUnreachable: see whether its endpoint answers from this cluster.',
      'EscrowPending, ChainUnreachable: the chain or its RPC endpoints are slow or away; add an endpoint of another operator.',
    ],
  },
  {
    name: 'GpuleaseBudgetExceeded',
    expr: 'max by (budget) (gpulease_budget_exceeded) == 1',
    for: '1m',
    severity: 'warning',
    summary: 'Budget {{ $labels.budget }} is exceeded.',
    meaning:
      'More is spent, or leased, than the GpuBudget allows; limits were lowered, or it was made after the leases.',
    stake: 'What `spec.onExceeded` says: nothing, no new leases, or leases are drained.',
    look: [
      '`kubectl describe gpubudget NAME`: windows, what is spent and committed, since when it is exceeded, when leases are drained.',
    ],
    mend: [
      'Raise the limit before that time, or end leases yourself: those that nobody needs, rather than those that come first.',
    ],
  },
  {
    name: 'GpuleaseBudgetNearlySpent',
    expr: 'max by (budget, window) (gpulease_budget_used_ratio) > 0.9',
    for: '5m',
    severity: 'warning',
    summary: 'Budget {{ $labels.budget }} has spent {{ $value | humanizePercentage }} of its {{ $labels.window }}.',
    meaning: 'Less than a tenth of the window’s limit is left.',
    stake: 'At the limit, leases are not begun or not topped up, as `spec.onExceeded` says.',
    look: [
      '`kubectl describe gpubudget NAME`: when the window ends.',
      '`gpulease statement --lease-namespace NAMESPACE --month YYYY-MM`: who spent it.',
    ],
    mend: ['Raise the limit, end leases, or let it hold: that is what it is for.'],
  },
  orphans('operator', 'gpulease_orphans_total', [
    '`kubectl get nodes -l app.kubernetes.io/managed-by=gpulease` beside `kubectl get gpuleases -A`',
  ]),
  stale(
    'operator',
    'Leases are begun, paid and ended late. Money decisions read the server, not the cache, so nothing is paid twice.',
  ),
  errors('operator'),
];

export const providerAlerts: readonly Alert[] = [
  {
    name: 'GpuleaseGatewayNotLeading',
    expr: 'absent(leader_election_master_status{name="gpulease-gateway"} == 1)',
    for: '5m',
    severity: 'critical',
    summary: 'No replica of the gateway leads.',
    meaning:
      'Every replica answers consumers; one of them, by the leader lock, makes and ends tenants and settles on chain. None has said for five minutes that it does.',
    stake:
      'New leases are not provisioned, ended ones not cleaned up, vouchers not settled. Vouchers are stored by all replicas and lose nothing, as long as they are settled before the claim window of a closing escrow is over.',
    look: [
      '`kubectl -n gpulease-system get pods -l app.kubernetes.io/name=gpulease`',
      logs('gpulease-gateway'),
      '`kubectl -n gpulease-system get lease gpulease-gateway -o yaml`: who holds the lock?',
    ],
    mend: [
      'Pods that do not start say why in their events and last log line: a missing Secret with the provider’s key, an image that cannot be pulled, a chain that does not answer.',
    ],
  },
  {
    name: 'GpuleaseSettlementRefused',
    expr: 'sum by (name) (increase(gpulease_gateway_settlement_refusals_total[1h])) > 0',
    for: '15m',
    severity: 'critical',
    summary: 'The contract would refuse settlements: {{ $labels.name }}.',
    meaning: 'Before it is sent, each transaction is tried on the chain as it is now. The contract would have said no.',
    stake: 'What was served is not paid while it lasts. Vouchers are kept.',
    look: [
      logs('gpulease-gateway'),
      'The name is an error of LeaseEscrow: operator/contracts/src/ILeaseEscrow.sol says what each means.',
    ],
    mend: [
      'One that comes once, after somebody else settled or closed the lease, needs nothing.',
      'One that stays is a fault in the configuration (another contract than the quotes name) or in gpulease; report it with the log.',
    ],
  },
  {
    name: 'GpuleaseLeasesUnpaid',
    expr: 'sum(increase(gpulease_gateway_endings_total{reason="Unpaid"}[1h])) > 0',
    for: '0m',
    severity: 'warning',
    summary: '{{ $value | humanize }} leases were stopped in the last hour because nobody paid.',
    meaning: 'A consumer sent no voucher for longer than the grace of its quote, so its pods were stopped.',
    stake: 'At most one grace interval of that lease is lost (`--max-unpaid`).',
    look: [
      'One consumer: its operator is down, or it does not pay on purpose.',
      'Several at once: this gateway was not reachable. See its Service, load balancer and certificate.',
    ],
    mend: [
      'Nothing for one consumer.',
      'For several: mend the way in. Time in which the gateway itself was away counts for nobody.',
    ],
  },
  {
    name: 'GpuleaseNothingOffered',
    expr: 'sum(gpulease_gateway_gpus) == 0',
    for: '15m',
    severity: 'warning',
    summary: 'No GPU of this cluster is sold or free to be sold.',
    meaning: 'The gateway runs, and has nothing to sell.',
    stake: 'Nothing is earned.',
    look: [
      '`kubectl get gpuoffers`, and the message of the condition Ready of each.',
      '`kubectl get nodes -l gpulease.dev/offered`: are there any, Ready, not cordoned, with `nvidia.com/gpu` in their allocatable?',
      'Do their labels `nvidia.com/gpu.product` belong to a model of an offer? GPU feature discovery sets them.',
    ],
    mend: [
      '`kubectl label node NAME gpulease.dev/offered=true`',
      'Write an offer for the model: `offers` in the values.',
    ],
  },
  orphans('gateway', 'gpulease_gateway_orphans_total', ['`kubectl get namespaces -l gpulease.dev/tenant`']),
  stale(
    'gateway',
    'Offers show GPUs that are gone, or hide those that came back. What is sold is reserved in the ledger, which is read anew, so nothing is sold twice.',
  ),
  errors('gateway'),
];

export const ruleGroups = (chart: 'operator' | 'provider') => ({
  groups: [
    {
      name: `gpulease-${chart}`,
      rules: (chart === 'operator' ? operatorAlerts : providerAlerts).map(
        ({ name, expr, for: lasting, severity, summary, meaning }) => ({
          alert: name,
          expr,
          for: lasting,
          labels: { severity },
          annotations: { summary, description: meaning, runbook_url: `@runbooks@${name}.md` },
        }),
      ),
    },
  ],
});

export function runbook(alert: Alert): string {
  const list = (items: readonly string[]) => items.map((one) => `- ${one}`);
  return `${[
    '<!-- Generated by `npm run generate` from operator/cmd/charts/alerts.ts. Do not edit. -->',
    `# ${alert.name}`,
    '',
    `Severity ${alert.severity}${alert.for === '0m' ? '' : `, after ${alert.for}`}: \`${alert.expr}\``,
    '',
    alert.meaning,
    '',
    `**At stake.** ${alert.stake}`,
    '',
    '## Look',
    '',
    ...list(alert.look),
    '',
    '## Mend',
    '',
    ...list(alert.mend),
  ].join('\n')}\n`;
}
