/**
 * Metrics of the engine, under the names that dashboards know from controller-runtime and client-go.
 *
 * Labels are of few values: controllers, resources, verbs, codes. Never a lease, a pod, or anything a user names.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { EngineMetrics } from '../../engine/metrics.ts';

export interface Metrics {
  /** For the operations server, and for metrics of others. */
  readonly registry: Registry;
  readonly engine: EngineMetrics;
}

const seconds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

export function createMetrics(options: { processMetrics?: boolean } = {}): Metrics {
  const registry = new Registry();
  if (options.processMetrics ?? true) collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Counter({ name, help, labelNames, registers });
  const histogram = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Histogram({ name, help, labelNames, registers, buckets: seconds });

  const reconciles = counter('controller_runtime_reconcile_total', 'Reconciles, by result.', ['controller', 'result']);
  const reconcileErrors = counter('controller_runtime_reconcile_errors_total', 'Reconciles that failed.', [
    'controller',
  ]);
  const terminalErrors = counter(
    'controller_runtime_terminal_reconcile_errors_total',
    'Reconciles that failed in a way that trying again does not help.',
    ['controller'],
  );
  const reconcileTime = histogram('controller_runtime_reconcile_time_seconds', 'Duration of a reconcile.', [
    'controller',
  ]);
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[], collect?: () => void) =>
    new Gauge({ name, help, labelNames, registers, collect });
  const activeWorkers = gauge('controller_runtime_active_workers', 'Reconciles in flight.', ['controller']);
  const mostWorkers = gauge('controller_runtime_max_concurrent_reconciles', 'Reconciles at once, at most.', [
    'controller',
  ]);

  // Of gauges that are read together, the first in the registry reads for all.
  const queueReaders = new Map<string, () => { depth: number; unfinishedSeconds: number; longestSeconds: number }>();
  const depth = gauge('workqueue_depth', 'Keys waiting: ready, and due later.', ['name'], () => {
    for (const [name, read] of queueReaders) {
      const state = read();
      depth.set({ name }, state.depth);
      unfinished.set({ name }, state.unfinishedSeconds);
      longest.set({ name }, state.longestSeconds);
    }
  });
  const unfinished = gauge('workqueue_unfinished_work_seconds', 'Time spent so far on work in flight.', ['name']);
  const longest = gauge('workqueue_longest_running_processor_seconds', 'Age of the oldest work in flight.', ['name']);
  const adds = counter('workqueue_adds_total', 'Keys added.', ['name']);
  const retries = counter('workqueue_retries_total', 'Keys that came back after a failure.', ['name']);
  const waited = histogram('workqueue_queue_duration_seconds', 'How long keys waited when ready.', ['name']);
  const worked = histogram('workqueue_work_duration_seconds', 'How long keys were worked on.', ['name']);
  const overflows = counter('gpulease_workqueue_overflows_total', 'Keys refused by a full queue.', ['name']);

  const requests = counter('rest_client_requests_total', 'Requests to API servers; code 0: no answer.', [
    'host',
    'method',
    'code',
  ]);
  const requestTime = histogram('rest_client_request_duration_seconds', 'Time to the headers of the answer.', [
    'host',
    'verb',
  ]);

  type ReadInformer = () => { objects: number; staleSeconds: number; synced: boolean };
  const informers = new Map<ReadInformer, { cluster: string; resource: string }>();
  const informerLabels = ['cluster', 'resource'] as const;
  const stale = gauge(
    'gpulease_informer_stale_seconds',
    'Since the API server last said anything.',
    informerLabels,
    () => {
      for (const metric of [objects, synced, stale]) metric.reset();
      // Several informers may watch one resource (each with its own selector): the worst of them counts.
      const byLabels = new Map<
        string,
        { labels: { cluster: string; resource: string }; objects: number; staleSeconds: number; synced: boolean }
      >();
      for (const [read, labels] of informers) {
        const state = read();
        const key = `${labels.cluster}/${labels.resource}`;
        const before = byLabels.get(key) ?? { labels, objects: 0, staleSeconds: 0, synced: true };
        byLabels.set(key, {
          labels,
          objects: before.objects + state.objects,
          staleSeconds: Math.max(before.staleSeconds, state.staleSeconds),
          synced: before.synced && state.synced,
        });
      }
      for (const { labels, ...state } of byLabels.values()) {
        objects.set(labels, state.objects);
        stale.set(labels, state.staleSeconds);
        synced.set(labels, state.synced ? 1 : 0);
      }
    },
  );
  const objects = gauge('gpulease_informer_objects', 'Objects held.', informerLabels);
  const synced = gauge('gpulease_informer_synced', '1 after the first list.', informerLabels);
  const lists = counter('gpulease_informer_lists_total', 'Full lists.', informerLabels);
  const watches = counter('gpulease_informer_watches_total', 'Watches, by how they ended.', [
    ...informerLabels,
    'ended',
  ]);

  const leading = gauge('leader_election_master_status', '1 while this replica leads.', ['name']);
  const eventsSent = counter('gpulease_events_sent_total', 'Kubernetes Events written, by reason.', ['reason']);
  const eventsDropped = counter('gpulease_events_dropped_total', 'Kubernetes Events not written, by why.', ['why']);

  const engine: EngineMetrics = {
    request(host, method, code, duration) {
      requests.inc({ host, method, code: String(code) });
      requestTime.observe({ host, verb: method }, duration);
    },
    queueAdded: (name) => adds.inc({ name }),
    queueRetried: (name) => retries.inc({ name }),
    queueTaken: (name, duration) => waited.observe({ name }, duration),
    queueDone: (name, duration) => worked.observe({ name }, duration),
    queueOverflowed: (name) => overflows.inc({ name }),
    reconciled(controller, result, duration) {
      reconciles.inc({ controller, result: result === 'terminal_error' ? 'error' : result });
      if (result === 'error' || result === 'terminal_error') reconcileErrors.inc({ controller });
      if (result === 'terminal_error') terminalErrors.inc({ controller });
      reconcileTime.observe({ controller }, duration);
    },
    activeWorkers(controller, active, most) {
      activeWorkers.set({ controller }, active);
      mostWorkers.set({ controller }, most);
    },
    informerListed: (cluster, resource) => lists.inc({ cluster, resource }),
    informerWatched: (cluster, resource, ended) => watches.inc({ cluster, resource, ended }),
    observeInformer(cluster, resource, read) {
      informers.set(read, { cluster, resource });
      return () => informers.delete(read);
    },
    observeQueue(name, read) {
      queueReaders.set(name, read);
      return () => {
        queueReaders.delete(name);
        for (const metric of [depth, unfinished, longest]) metric.remove({ name });
      };
    },
    leader: (name, is) => leading.set({ name }, is ? 1 : 0),
    eventSent: (reason) => eventsSent.inc({ reason }),
    eventDropped: (why) => eventsDropped.inc({ why }),
  };
  return { registry, engine };
}
