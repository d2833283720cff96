/** Values that both charts have. */
import { choice, flag, group, integer, map, name, object, objects, shaped, strings, text } from './tree.ts';

export const chains = shaped({
  type: 'array',
  maxItems: 16,
  items: {
    type: 'object',
    additionalProperties: false,
    required: ['id', 'rpcUrls'],
    properties: {
      id: { type: 'integer', minimum: 1, maximum: 9007199254740991 },
      rpcUrls: {
        type: 'array',
        minItems: 1,
        maxItems: 16,
        items: { type: 'string', pattern: '^(https?|wss?)://[^\\s,]+$' },
      },
    },
  },
})(
  'Chains that are paid on, and JSON-RPC endpoints of each; two or more of different operators are better. Where a URL holds a key, use chainsSecret instead.',
  [],
  [{ id: 42161, rpcUrls: ['https://rpc.example.com'] }],
);

export const chainsSecret = group(
  'Secret whose key holds the same as words `ID=URL[,URL]`, separated by spaces. In the namespace of the process that reads it.',
  { name: name('Name of the Secret; empty: `chains` counts.', ''), key: text('Key in it.', 'chains') },
);

export const shared = {
  image: group('The image; all commands are in this one.', {
    repository: text('Registry and name, without a tag.', 'gpulease'),
    tag: text("Tag. Empty: the chart's appVersion.", ''),
    digest: shaped({ type: 'string', pattern: '^(sha256:[0-9a-f]{64})?$' })(
      'Digest, sha256:…, which wins over the tag.',
      '',
    ),
    pullPolicy: choice('Always', 'IfNotPresent', 'Never')('When it is pulled.', 'IfNotPresent'),
  }),
  imagePullSecrets: objects('Secrets with which it is pulled.', [], [{ name: 'registry' }]),
  crds: group('The kinds of gpulease.dev, which Helm otherwise installs once and never changes.', {
    enabled: flag('Install and upgrade them with this chart. False where another chart or team does.', true),
    keep: flag('Leave them, and all objects of them, when the chart is uninstalled.', true),
  }),
  commonLabels: map('Labels on every object of this chart.', {}),
  log: group('Logs.', {
    level: choice('debug', 'info', 'warn', 'error')('How much is logged.', 'info'),
    format: choice('json', 'pretty')('For machines or for people.', 'json'),
  }),
};

/** A Service by which somebody outside comes in. */
export const serviceOf = (about: string, port: number) =>
  group(about, {
    type: choice('ClusterIP', 'NodePort', 'LoadBalancer')('Type.', 'LoadBalancer'),
    port: integer(1, 65535)('Port.', port),
    nodePort: integer(0, 32767)('Port of the nodes, for NodePort and LoadBalancer; 0: Kubernetes chooses.', 0),
    annotations: map('Annotations.', {}),
    loadBalancerClass: text('Class of the load balancer.', ''),
    loadBalancerSourceRanges: strings('Networks that the load balancer lets through; empty: all.', []),
    externalTrafficPolicy: choice('Cluster', 'Local')(
      'Local keeps the addresses of callers, by which they are limited.',
      'Local',
    ),
  });

/** How the pods of one process run. */
export const podsOf = (replicas: number, cpu: string, memory: string, tolerated: readonly object[] = []) => ({
  replicas: integer(0, 16)(
    'Pods. One works, the others are ready to take over; all serve what has no owner.',
    replicas,
  ),
  resources: object('Requests and limits.', { requests: { cpu, memory }, limits: { memory } }),
  nodeSelector: map('Nodes that it may run on.', { 'kubernetes.io/os': 'linux' }),
  tolerations: objects('Taints that it tolerates.', tolerated),
  affinity: object('Affinity. Empty: its pods prefer different nodes, and such as are not rented out.', {}),
  topologySpreadConstraints: objects('Further rules of spreading.', []),
  priorityClassName: text('Priority class.', ''),
  podLabels: map('Further labels of its pods.', {}),
  podAnnotations: map('Annotations of its pods.', {}),
  serviceAccountAnnotations: map('Annotations of its service account.', {}),
  extraArgs: strings('Further arguments, after all others.', []),
  extraEnv: objects(
    'Further environment variables, e.g. for a proxy.',
    [],
    [{ name: 'HTTPS_PROXY', value: 'http://proxy.example.com:3128' }],
  ),
  extraVolumes: objects('Further volumes.', []),
  extraVolumeMounts: objects('Where they are mounted.', []),
});

export const monitoring = group(
  'What Prometheus and Grafana are told. Both kinds of monitors need the Prometheus operator.',
  {
    podMonitor: group('A PodMonitor for every process.', {
      enabled: flag('Make them.', false),
      interval: text('How often metrics are read.', '30s'),
      labels: map('Labels by which your Prometheus chooses monitors.', {}),
    }),
    serviceMonitor: group(
      'A Service with the metrics of every pod, and a ServiceMonitor, where PodMonitors are not used.',
      {
        enabled: flag('Make them.', false),
        interval: text('How often metrics are read.', '30s'),
        labels: map('Labels by which your Prometheus chooses monitors.', {}),
      },
    ),
    rules: group('A PrometheusRule; each alert names its runbook.', {
      enabled: flag('Make it.', false),
      labels: map('Labels by which your Prometheus chooses rules.', {}),
      runbookUrl: text(
        'Where the runbooks are: what stands before the name of the page. Empty: their folder in the repository.',
        '',
      ),
    }),
    dashboard: group('A ConfigMap with a dashboard, as the sidecar of Grafana finds it.', {
      enabled: flag('Make it.', false),
      labels: map('Labels by which Grafana finds it.', { grafana_dashboard: '1' }),
      namespace: name("Namespace; empty: the release's.", ''),
    }),
  },
);

export const networkPolicy = group(
  'NetworkPolicies for the pods of this chart. They hold only where the network of the cluster enforces them.',
  {
    enabled: flag('Make them.', true),
    metricsFrom: objects(
      'Who may read metrics, as peers of a NetworkPolicy. Empty: every pod of the cluster.',
      [],
      [{ namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'monitoring' } } }],
    ),
    apiServerPorts: shaped({
      type: 'array',
      items: { type: 'integer', minimum: 1, maximum: 65535 },
      minItems: 1,
      maxItems: 16,
    })('Ports at which the API server is reached, for processes that reach nothing else.', [443, 6443]),
    deniedEgress: strings('Networks that no process reaches: by default the metadata services of clouds.', [
      '169.254.0.0/16',
    ]),
  },
);

export const podDisruptionBudget = group('A PodDisruptionBudget for each process with more than one replica.', {
  enabled: flag('Make them.', true),
});

/** Of Jobs that run as hooks. */
export const hookPodsWith = (tolerated: readonly object[]) => ({
  resources: object('Requests and limits.', { requests: { cpu: '50m', memory: '128Mi' }, limits: { memory: '256Mi' } }),
  nodeSelector: map('Nodes that it may run on.', { 'kubernetes.io/os': 'linux' }),
  tolerations: objects('Taints that it tolerates.', tolerated),
});
export const hookPods = hookPodsWith([]);

const address = { type: 'string', pattern: '^0x[0-9a-fA-F]{40}$' };

export const railsOf = (about: string) =>
  shaped({
    type: 'array',
    maxItems: 64,
    items: {
      type: 'object',
      additionalProperties: false,
      required: ['chainId', 'escrow', 'token'],
      properties: {
        chainId: { type: 'integer', minimum: 1, maximum: 9007199254740991 },
        escrow: address,
        token: address,
        assetSymbol: { type: 'string', minLength: 1, maxLength: 12 },
      },
    },
  })(
    about,
    [],
    [
      {
        chainId: 42161,
        escrow: '0x0000000000000000000000000000000000000001',
        token: '0x0000000000000000000000000000000000000002',
        assetSymbol: 'USDC',
      },
    ],
  );
