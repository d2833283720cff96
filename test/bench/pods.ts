/** Pods of a bench, and a watch that says when they are there and when they are gone: as any user could see it. */
import { createInformer } from '../../operator/engine/informer.ts';
import { type KubeObject, type Resource, resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import { type Place, tolerations } from './lab.ts';

const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};

interface Pod extends KubeObject {
  status?: { phase?: string; conditions?: { type: string; status: string }[] };
}

export const waits = ['sh', '-c', 'trap "exit 0" TERM; while true; do sleep 1 & wait $!; done'];

export const podSpec = (place: Place) => ({
  nodeSelector: place.nodeSelector,
  tolerations,
  // What a hollow pod does not need and a real one should not be waited for.
  terminationGracePeriodSeconds: 1,
  containers: [{ name: 'main', image: TOOLS_IMAGE, command: waits }],
});

export const podManifest = (place: Place, name: string): KubeObject =>
  ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: place.namespace, labels: { bench: 'pod' } },
    spec: podSpec(place),
  }) as KubeObject;

export async function createDeployment(place: Place, name: string, pods: number, signal: AbortSignal): Promise<void> {
  const labels = { bench: name };
  await place.cluster.create(
    deployments,
    {
      metadata: { name, namespace: place.namespace },
      spec: {
        replicas: pods,
        selector: { matchLabels: labels },
        template: { metadata: { labels }, spec: podSpec(place) },
      },
    } as KubeObject,
    signal,
  );
}

export async function scaleDeployment(place: Place, name: string, pods: number, signal: AbortSignal): Promise<void> {
  const key = { namespace: place.namespace, name };
  await place.cluster.patch(deployments, key, { spec: { replicas: pods } }, { type: 'merge' }, signal);
}

export async function deleteDeployment(place: Place, name: string, signal: AbortSignal): Promise<void> {
  await place.cluster.delete(
    deployments,
    { namespace: place.namespace, name },
    { propagationPolicy: 'Background' },
    signal,
  );
}

export interface PodWatch {
  /** Resolves with the milliseconds (monotonic) at which so many pods were Ready for the first time. */
  ready(count: number, seconds: number): Promise<number>;
  /** … at which none was left. */
  gone(seconds: number): Promise<number>;
  /** … at which this pod runs. */
  running(name: string, seconds: number): Promise<number>;
  stop(): void;
}

const isReady = (pod: Pod) => pod.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True') === true;

/** Watches the pods of the place's namespace with this value of the label `bench`. */
export async function watchPods(place: Place, label: string, signal: AbortSignal): Promise<PodWatch> {
  const stop = new AbortController();
  const ready = new Set<string>();
  const running = new Set<string>();
  const present = new Set<string>();
  const waiting = new Set<() => void>();
  const informer = createInformer<Pod>({
    cluster: place.cluster,
    resource: resources.pods,
    namespace: place.namespace,
    labelSelector: `bench=${label}`,
    trim: ({ metadata, status }) => ({
      metadata: {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resourceVersion: metadata.resourceVersion,
      },
      status: { phase: status?.phase, conditions: status?.conditions },
    }),
  });
  informer.onChange(({ type, object }) => {
    const { name } = object.metadata;
    if (type === 'deleted') for (const set of [ready, running, present]) set.delete(name);
    else {
      present.add(name);
      if (object.status?.phase === 'Running') running.add(name);
      if (isReady(object)) ready.add(name);
      else ready.delete(name);
    }
    for (const look of [...waiting]) look();
  });
  void informer.run(AbortSignal.any([stop.signal, signal]));
  await informer.waitForSync(signal);

  function when(what: string, seconds: number, is: () => boolean): Promise<number> {
    return new Promise((resolve, reject) => {
      const done = () => {
        waiting.delete(look);
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
      };
      const look = () => {
        if (!is()) return;
        done();
        resolve(performance.now());
      };
      const onAbort = () => {
        done();
        reject(signal.reason);
      };
      const timer = setTimeout(() => {
        done();
        reject(
          new Error(
            `${place.name}: ${what} did not happen within ${seconds} s (${ready.size} Ready of ${present.size})`,
          ),
        );
      }, seconds * 1000);
      waiting.add(look);
      signal.addEventListener('abort', onAbort, { once: true });
      look();
    });
  }

  return {
    ready: (count, seconds) => when(`${count} pods Ready`, seconds, () => ready.size >= count),
    gone: (seconds) => when('all pods gone', seconds, () => present.size === 0),
    running: (name, seconds) => when(`pod ${name} Running`, seconds, () => running.has(name)),
    stop: () => stop.abort(new Error('watched no longer')),
  };
}
