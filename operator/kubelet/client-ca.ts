/**
 * The CA that signs the API server's client certificate. Clusters publish it where extension API servers look for theirs;
 * where that is another CA than the kubelets', it is configured.
 */
import type { Clock } from '../engine/clock.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import { pause } from '../wire/timing.ts';

const published = { namespace: 'kube-system', name: 'extension-apiserver-authentication' };
const lookAgainSeconds = 600;
const retrySeconds = 30;

interface ConfigMap extends KubeObject {
  data?: Record<string, string>;
}

export interface ClientCa {
  readonly pem: string | undefined;
  /** Resolves once it was looked for. */
  ready(): Promise<void>;
  /** Follows changes until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
}

export function createClientCa(options: {
  readonly cluster: Cluster;
  readonly clock: Clock;
  readonly log: Log;
  readonly configured?: string;
  readonly onChange: () => void;
}): ClientCa {
  const { cluster, clock, log } = options;
  let pem = options.configured;
  const { promise: first, resolve: looked } = Promise.withResolvers<void>();
  if (pem !== undefined) looked();

  async function look(signal: AbortSignal): Promise<boolean> {
    try {
      const found = await cluster.get<ConfigMap>(resources.configMaps, published, signal);
      const next = found?.data?.['client-ca-file'];
      if (next === undefined)
        log.warn(
          published,
          'the cluster publishes no client CA: callers of the kubelet API need a token until one is configured',
        );
      else if (next !== pem) {
        pem = next;
        options.onChange();
      }
      return next !== undefined;
    } catch (error) {
      if (!signal.aborted) log.warn({ error, ...published }, 'the client CA of the cluster could not be read');
      return false;
    } finally {
      looked();
    }
  }

  return {
    get pem() {
      return pem;
    },
    ready: () => first,
    async run(signal) {
      if (options.configured !== undefined) return;
      while (!signal.aborted) {
        const found = await look(signal);
        await pause(clock, (found ? lookAgainSeconds : retrySeconds) * 1000, signal);
      }
    },
  };
}
