/**
 * Wallets that have paid here, in one ConfigMap: records of leases are forgotten some days after their end, and whoever paid
 * must not become a stranger by it. Written by who settles, read by all replicas.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import { type KnownConsumers, knownData, parseKnown, withKnown } from '../../core/allocation/first-contact.ts';
import { isAlreadyExists, isConflict } from '../../engine/errors.ts';
import { createInformer } from '../../engine/informer.ts';
import { type Cluster, type Informer, type Log, resources } from '../../engine/types.ts';
import type { ControlsConfigMap } from './controls.ts';

export const knownConsumersName = 'gpulease-known-consumers';
const attempts = 8;

export interface WatchedKnownConsumers {
  readonly informer: Informer<ControlsConfigMap>;
  has(consumer: string): boolean;
  add(consumer: string, nowSeconds: number, signal?: AbortSignal): Promise<void>;
}

export function watchKnownConsumers(
  cluster: Cluster,
  namespace: string,
  always: ReadonlySet<string>,
  log: Log,
): WatchedKnownConsumers {
  const key = { namespace, name: knownConsumersName };
  const informer = createInformer<ControlsConfigMap>({
    cluster,
    resource: resources.configMaps,
    namespace,
    fieldSelector: `metadata.name=${knownConsumersName}`,
    log,
  });
  let seen: ControlsConfigMap | undefined;
  let read: KnownConsumers = {};
  function known(): KnownConsumers {
    const object = informer.get(key);
    if (object !== seen) {
      seen = object;
      read = parseKnown(object?.data);
    }
    return read;
  }

  return {
    informer,
    has: (consumer) => always.has(consumer.toLowerCase()) || Object.hasOwn(known(), consumer.toLowerCase()),
    async add(consumer, nowSeconds, signal) {
      const wallet = consumer.toLowerCase();
      for (let attempt = 1; ; attempt += 1) {
        const object = await cluster.get<ControlsConfigMap>(resources.configMaps, key, signal);
        const before = parseKnown(object?.data);
        if (Object.hasOwn(before, wallet)) return;
        const data = knownData(withKnown(before, wallet, nowSeconds));
        try {
          if (object === undefined)
            await cluster.create<ControlsConfigMap>(
              resources.configMaps,
              {
                apiVersion: 'v1',
                kind: 'ConfigMap',
                metadata: { ...key, labels: { [ownLabels.managedBy]: managedBy } },
                data,
              },
              signal,
            );
          else await cluster.replace<ControlsConfigMap>(resources.configMaps, { ...object, data }, {}, signal);
          return;
        } catch (error) {
          if ((!isConflict(error) && !isAlreadyExists(error)) || attempt === attempts) throw error;
        }
      }
    },
  };
}
