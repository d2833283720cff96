/** The approver, alone: certificates of virtual nodes, and where the operator may read. Replicas need no lock: they agree. */
import { isIP } from 'node:net';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { accountOf } from '../core/rights/accounts.ts';
import { operatorNamespace } from '../core/rights/consumer.ts';
import { userOf } from '../core/rights/rule.ts';
import { systemClock } from '../engine/clock.ts';
import { connectCluster } from '../engine/cluster.ts';
import { approverPart } from './approver-part.ts';
import { choice, integer, type Option, pairs, parseOptions, text, UsageError } from './options.ts';
import { version } from './version.ts';

const usage = `
Signs off the serving certificates of this cluster's virtual nodes, and lets the operator into namespaces that have leases.

  approver [options]
`;

export const approverOptions = {
  kubeconfig: text(
    'Kubeconfig of the consumer cluster; "in-cluster" for a pod\'s own service account.',
    'FILE',
    'in-cluster',
  ),
  namespace: text('Where the operator runs.', 'NAME', operatorNamespace),
  operatorAccount: text(
    'Who may ask for certificates and is let into namespaces, as the API server names it.',
    'USER',
    userOf(accountOf('operator')),
  ),
  operatorPods: pairs(
    "Labels of the operator's pods, whose addresses are those of the virtual nodes. Default: app.kubernetes.io/component=operator.",
    'KEY=VALUE',
  ),
  address: {
    description: 'Address of the operator, where it is no pod of this cluster. Then no others are approved.',
    value: 'IP',
    many: true,
    parse: (t: string) => {
      if (isIP(t) === 0) throw new Error('must be an IP address');
      return t;
    },
  } as Option<string> & { many: true },
  closedNamespace: {
    description:
      'Namespace that the operator is never let into, whatever leases say; kube-system and those of gpulease are none of them.',
    value: 'NAME',
    many: true,
    parse: (t: string) => t,
  } as Option<string> & { many: true },
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

/** Runs until SIGTERM or SIGINT. Throws UsageError for configuration that cannot be right. */
export async function runApprover(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const options = parseOptions(usage, approverOptions, args, env);
  if (!options) return;
  if (options.address.length > 0 && options.operatorPods.length > 0)
    throw new UsageError('--address and --operator-pods contradict each other: give one');
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const log = createLog({ name: 'approver', level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const metrics = createMetrics();
  const cluster = connectCluster({
    name: 'consumer',
    kubeconfig: options.kubeconfig,
    userAgent: `gpulease-approver/${version}`,
    metrics: metrics.engine,
  });
  const part = approverPart({
    cluster,
    operator: options.operatorAccount,
    addresses:
      options.address.length > 0
        ? options.address
        : {
            namespace: options.namespace,
            labels:
              options.operatorPods.length > 0
                ? Object.fromEntries(options.operatorPods)
                : { 'app.kubernetes.io/component': 'operator' },
          },
    closed: [options.namespace, ...options.closedNamespace],
    clock: systemClock,
    log,
  });
  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    ready: () => ({ process: true }),
  });
  log.info({ version, operator: options.operatorAccount, operationsPort: operations.port }, 'approver starts');
  await part.run(stop.signal);
  await operations.close();
  log.info({}, 'approver stopped');
}
