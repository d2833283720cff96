/**
 * Keeps the EndpointSlices of pods on virtual nodes, and the ports behind them.
 *
 * Level-triggered, pod by pod: what Services select it → a port here for each of its ports → a slice for each Service. A pod
 * that goes takes its slices along through its owner reference, also while nobody runs here.
 */

import { labels, sliceManager } from '../../api/labels.ts';
import type { NamedService } from '../../api/lease.ts';
import {
  contentOf,
  type Exposure,
  exposureOf,
  nothingExposed,
  podOfSlice,
  recordedPorts,
  sliceOf,
} from '../../core/node/endpoint-slices.ts';
import type { Pod } from '../../core/node/pod.ts';
import { type EndpointSlice, familyOf, type Service, selects } from '../../core/node/service.ts';
import { boundedMap } from '../../engine/bounded-map.ts';
import type { Clock } from '../../engine/clock.ts';
import { createController, watches } from '../../engine/controller.ts';
import { sameJson } from '../../engine/equal.ts';
import { isConflict, isNotFound } from '../../engine/errors.ts';
import { createInformer } from '../../engine/informer.ts';
import type { EngineMetrics } from '../../engine/metrics.ts';
import { keyOf, keyText } from '../../engine/paths.ts';
import {
  type Change,
  type Cluster,
  type EventRecorder,
  type Informer,
  type KubeObject,
  type Log,
  type ObjectKey,
  type Result,
  resources,
} from '../../engine/types.ts';
import { remoteNameOf } from '../remote-name.ts';
import type { Forward } from './forward.ts';
import { createListeners } from './listeners.ts';

/** One node, as far as Services are concerned. */
export interface ServiceHost {
  readonly name: string;
  readonly spec: {
    readonly podIP?: 'None' | 'Provider';
    readonly linked?: () => boolean;
    readonly services?: readonly NamedService[];
  };
  readonly forward: Forward;
}

export interface ExposingOptions {
  readonly consumer: Cluster;
  /** Indexes `node` and `leased` (by namespace), of pods on virtual nodes. */
  readonly pods: Informer<Pod>;
  /** Index `selecting`: by namespace, those that have a selector. */
  readonly services: Informer<Service & KubeObject>;
  readonly hostOf: (nodeName: string) => ServiceHost | undefined;
  /** Of this process, as the consumer's nodes reach it. */
  readonly address: string;
  readonly listenHost: string;
  readonly ports: { readonly from: number; readonly to: number };
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics?: EngineMetrics;
}

export interface Exposing {
  run(signal: AbortSignal): Promise<void>;
  /** Its provider answers or not, its pods' addresses are shown or not: its pods are looked at again. */
  nodeChanged(name: string): void;
  /** It is served no longer by this process. */
  nodeStopped(name: string): void;
  readonly ports: number;
  readonly connections: number;
}

const fieldManager = 'gpulease-services';
type StoredSlice = EndpointSlice & KubeObject;

export function createExposing(options: ExposingOptions): Exposing {
  const { consumer, pods, services, events, log, clock } = options;
  const family = familyOf(options.address);
  const isLoopback = /^(127\.|::1$)/.test(options.address);
  const listeners = createListeners({ host: options.listenHost, ports: options.ports, clock, log });
  /** Told once each. */
  const told = boundedMap<string, string>(10_000);
  const slices = createInformer<StoredSlice>({
    cluster: consumer,
    resource: resources.endpointSlices,
    labelSelector: `${labels.sliceManagedBy}=${sliceManager}`,
    indexes: {
      pod: (slice) => {
        const pod = podOfSlice(slice);
        return pod ? [keyText({ namespace: pod.namespace, name: pod.name })] : [];
      },
      service: (slice) => [`${slice.metadata.namespace}/${slice.metadata.labels?.[labels.serviceName]}`],
    },
    log,
    clock,
    metrics: options.metrics,
  });

  const keyOfSlice = (slice: StoredSlice): ObjectKey[] => {
    const pod = podOfSlice(slice);
    return pod ? [{ namespace: pod.namespace, name: pod.name }] : [];
  };

  /** A pod in whose namespace is no Service costs nothing. */
  function podsChanged({ object, old }: Change<Pod & KubeObject>): readonly ObjectKey[] {
    const { namespace = '' } = object.metadata;
    const key = keyOf(object);
    if (!isHere(object) && !(old && isHere(old))) return [];
    const matters =
      services.byIndex('selecting', namespace).length > 0 || slices.byIndex('pod', keyText(key)).length > 0;
    return matters ? [key] : [];
  }
  const isHere = (pod: Pod) => pod.spec.nodeName !== undefined && options.hostOf(pod.spec.nodeName) !== undefined;

  /** Pods that it selects, that it did select, and those that its slices are of. */
  function serviceChanged({ object, old }: Change<Service & KubeObject>): readonly ObjectKey[] {
    const { namespace = '', name } = object.metadata;
    const selected = pods
      .byIndex('leased', namespace)
      .filter((pod) => selects(object, pod) || (old && selects(old, pod)));
    return [...selected.map(keyOf), ...slices.byIndex('service', `${namespace}/${name}`).flatMap(keyOfSlice)];
  }

  const controller = createController({
    name: 'virtual-node-services',
    reconcile,
    watches: [
      watches(pods as Informer<Pod & KubeObject>, podsChanged),
      watches(services, serviceChanged),
      watches(slices, ({ object }) => keyOfSlice(object)),
    ],
    concurrency: 16,
    backoff: { baseSeconds: 0.25, maxSeconds: 30 },
    resyncSeconds: 600,
    clock,
    log,
    metrics: options.metrics,
  });

  function tell(about: KubeObject, kind: string, reason: string, message: string): void {
    const key = `${about.metadata.uid}/${reason}`;
    if (told.get(key) === message) return;
    told.set(key, message);
    events.event({ apiVersion: 'v1', kind, ...about }, 'Warning', reason, message);
  }

  async function reconcile(key: ObjectKey, signal: AbortSignal): Promise<Result> {
    const pod = pods.get(key);
    const stored = slices.byIndex('pod', keyText(key));
    const host = pod?.spec.nodeName === undefined ? undefined : options.hostOf(pod.spec.nodeName);
    const uid = pod?.metadata.uid ?? '';
    // Of a node that this process does not serve, or does not serve yet: what is written stays until somebody does.
    const stays = (slice: StoredSlice) => pod?.spec.nodeName !== undefined && !host && podOfSlice(slice)?.uid === uid;
    for (const slice of stored) {
      const its = podOfSlice(slice)?.uid ?? '';
      if (its !== uid) listeners.drop(its);
    }
    const exposure = pod && host ? exposureHere(pod, host) : nothingExposed;
    if (pod) tellRefusals(pod, exposure);

    const before = new Map(stored.flatMap((slice) => [...recordedPorts(slice)]));
    const ports = new Map<number, number>();
    if (pod && host)
      for (const target of exposure.targets) ports.set(target, await listen(pod, target, before.get(target)));
    if (uid !== '' && pods.get(key)?.metadata.uid !== uid) {
      // It went while its ports were being opened. Its end brings whoever has its name now back here.
      listeners.drop(uid);
      return { requeueAfterSeconds: 0 };
    }
    const wanted = exposure.served.flatMap(
      (exposed) =>
        sliceOf(pod!, exposed, {
          address: options.address,
          family,
          linked: host?.spec.linked?.() ?? true,
          portOf: (target) => ports.get(target),
        }) ?? [],
    );
    for (const slice of wanted) {
      const there = stored.find(({ metadata }) => metadata.name === slice.metadata.name);
      if (there && !there.metadata.deletionTimestamp && sameJson(contentOf(there), contentOf(slice))) continue;
      await consumer.apply<StoredSlice>(resources.endpointSlices, slice as StoredSlice, { fieldManager }, signal);
    }
    for (const slice of stored) {
      const { metadata } = slice;
      if (stays(slice) || wanted.some((one) => one.metadata.name === metadata.name)) continue;
      try {
        await consumer.delete(resources.endpointSlices, keyOf({ metadata }), { uid: metadata.uid }, signal);
      } catch (error) {
        if (!isConflict(error) && !isNotFound(error)) throw error;
      }
    }
    // Last: while a slice still says so, somebody may come.
    if (host && uid !== '') listeners.keep(uid, new Set(exposure.targets));
    return {};
  }

  async function listen(pod: Pod, target: number, before: number | undefined): Promise<number> {
    try {
      return await listeners.open(pod.metadata.uid ?? '', target, before, connectTo(pod, target));
    } catch (error) {
      tell(pod as KubeObject, 'Pod', 'PortNotServed', `Port ${target} is not served: ${(error as Error).message}`);
      throw error;
    }
  }

  function exposureHere(pod: Pod, host: ServiceHost): Exposure {
    // Kubernetes itself makes endpoints of pods that have an address.
    if (host.spec.podIP === 'Provider' || isLoopback) return nothingExposed;
    return exposureOf(pod, services.byIndex('selecting', pod.metadata.namespace ?? ''), family);
  }

  function tellRefusals(pod: Pod, exposure: Exposure): void {
    for (const { about, service, reason, message } of exposure.refused)
      tell((about === 'Service' ? service! : pod) as KubeObject, about, reason, message);
  }

  /** Whoever serves the pod's node when a connection comes. */
  function connectTo(pod: Pod, target: number) {
    const remote = remoteNameOf(pod);
    const nodeName = pod.spec.nodeName ?? '';
    return async (signal: AbortSignal) => {
      const host = options.hostOf(nodeName);
      if (!host) throw new Error(`node ${nodeName} is not served by this process`);
      return host.forward.connect(remote, target, signal);
    };
  }

  // A pod that is gone altogether, slices and all, is heard of here only.
  pods.onChange(({ type, object }) => {
    if (type === 'deleted') listeners.drop(object.metadata.uid ?? '');
  });

  return {
    async run(signal) {
      if (isLoopback)
        log.warn(
          { address: options.address },
          'pods on leased nodes stand behind no Services: nobody else reaches this address (--node-address)',
        );
      try {
        await Promise.all([slices.run(signal), controller.run(signal)]);
      } finally {
        listeners.dropAll();
      }
    },
    nodeChanged(name) {
      for (const pod of pods.byIndex('node', name)) {
        const key = keyOf(pod);
        if (
          services.byIndex('selecting', pod.metadata.namespace ?? '').length > 0 ||
          slices.byIndex('pod', keyText(key)).length > 0
        )
          controller.enqueue(key);
      }
    },
    nodeStopped(name) {
      for (const pod of pods.byIndex('node', name)) listeners.drop(pod.metadata.uid ?? '');
    },
    get ports() {
      return listeners.size;
    },
    get connections() {
      return listeners.connections;
    },
  };
}
