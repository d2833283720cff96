/** The owner's decisions (core/allocation/controls.ts), as each replica sees them: from a watched ConfigMap. */
import { type Controls, controlsName, noControls, parseControls } from '../../core/allocation/controls.ts';
import { createInformer } from '../../engine/informer.ts';
import { type Cluster, type Informer, type KubeObject, type Log, resources } from '../../engine/types.ts';

export interface ControlsConfigMap extends KubeObject {
  data?: Record<string, string>;
}

export interface WatchedControls {
  readonly informer: Informer<ControlsConfigMap>;
  readonly now: Controls;
}

export function watchControls(cluster: Cluster, namespace: string, log: Log): WatchedControls {
  const informer = createInformer<ControlsConfigMap>({
    cluster,
    resource: resources.configMaps,
    namespace,
    fieldSelector: `metadata.name=${controlsName}`,
    log,
  });
  let seen: ControlsConfigMap | undefined;
  let read: Controls = noControls;
  informer.onChange(({ type, object }) => {
    if (object.metadata.name !== controlsName) return;
    const { mode, blocked, message, faults } = parseControls(type === 'deleted' ? undefined : object.data);
    log.info({ mode, blocked: blocked.size, message }, 'the owner’s controls have changed');
    for (const fault of faults) log.warn({ configMap: controlsName }, fault);
  });
  return {
    informer,
    get now() {
      const object = informer.get({ namespace, name: controlsName });
      if (object !== seen) {
        seen = object;
        read = parseControls(object?.data);
      }
      return read;
    },
  };
}
