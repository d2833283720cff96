/**
 * Endpoints of Services that leases name, and connections to them: one after the other in turn, as kube-proxy would, but from
 * this process, which needs no kube-proxy for it. One watch a Service, however many leases name it.
 */
import type { Socket } from 'node:net';
import { labels } from '../../api/labels.ts';
import { dialTargets, type ServiceKey } from '../../core/node/named-services.ts';
import type { EndpointSlice, ServicePort } from '../../core/node/service.ts';
import type { Clock } from '../../engine/clock.ts';
import { createInformer } from '../../engine/informer.ts';
import type { EngineMetrics } from '../../engine/metrics.ts';
import { type Cluster, type Informer, type KubeObject, type Log, resources } from '../../engine/types.ts';
import { dial } from '../../wire/dial.ts';

export interface Endpoints {
  /** Watches a Service's endpoints until released. */
  hold(key: ServiceKey): () => void;
  /** A connection to one of them; rejects when none takes it. */
  connect(key: ServiceKey, port: ServicePort, signal: AbortSignal): Promise<Socket>;
  readonly connections: number;
}

export interface EndpointsOptions {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics?: EngineMetrics;
}

interface Held {
  readonly slices: Informer<EndpointSlice & KubeObject>;
  readonly stop: AbortController;
  users: number;
  turn: number;
}

/** An endpoint that does not answer is passed over; so many are tried. */
const attempts = 3;
const connectSeconds = 5;
const syncSeconds = 10;

export function createEndpoints({ cluster, clock, log, metrics }: EndpointsOptions): Endpoints {
  const held = new Map<string, Held>();
  let connections = 0;
  const textOf = ({ namespace, name }: ServiceKey) => `${namespace}/${name}`;

  function watch({ namespace, name }: ServiceKey): Held {
    const stop = new AbortController();
    const slices = createInformer<EndpointSlice & KubeObject>({
      cluster,
      resource: resources.endpointSlices,
      namespace,
      labelSelector: `${labels.serviceName}=${name}`,
      log,
      clock,
      metrics,
    });
    slices.run(stop.signal).catch((error: unknown) => {
      if (!stop.signal.aborted) log.error({ error, service: `${namespace}/${name}` }, 'a watch of endpoints ended');
    });
    return { slices, stop, users: 0, turn: 0 };
  }

  return {
    hold(key) {
      const text = textOf(key);
      const entry = held.get(text) ?? watch(key);
      held.set(text, entry);
      entry.users++;
      let released = false;
      return () => {
        if (released) return;
        released = true;
        if (--entry.users > 0) return;
        entry.stop.abort(new Error('no lease names the Service any more'));
        held.delete(text);
      };
    },

    async connect(key, port, signal) {
      const entry = held.get(textOf(key));
      if (!entry) throw new Error(`Service ${textOf(key)} is not watched`);
      await entry.slices.waitForSync(AbortSignal.any([signal, AbortSignal.timeout(syncSeconds * 1000)]));
      const targets = dialTargets(entry.slices.list(), port);
      if (targets.length === 0) throw new Error(`Service ${textOf(key)} has no ready endpoint for port ${port.port}`);
      const first = entry.turn++ % targets.length;
      let last: unknown;
      for (let step = 0; step < Math.min(attempts, targets.length); step++) {
        const { address, port } = targets[(first + step) % targets.length]!;
        try {
          const socket = await dial(address, port, { withinSeconds: connectSeconds, clock, signal });
          connections++;
          socket.once('close', () => connections--);
          return socket;
        } catch (error) {
          if (signal.aborted) throw error;
          last = error;
        }
      }
      throw last;
    },

    get connections() {
      return connections;
    },
  };
}
