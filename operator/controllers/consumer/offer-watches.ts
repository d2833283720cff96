/**
 * One question a provider that waits at its gateway until the offers change. The probe stays what it was: this only says when
 * it is worth making. A gateway that cannot wait is probed as often as before.
 */
import type { GpuProvider } from '../../api/provider.ts';
import { type Clock, sleep } from '../../engine/clock.ts';
import type { Log } from '../../engine/types.ts';
import type { Gateways } from './ports.ts';

export interface OfferWatches {
  /** The provider is well: wait for its changes, if nobody does yet. */
  keep(provider: GpuProvider): void;
  drop(name: string): void;
}

/** Less than what proxies on the way let a request be silent for. */
const waitSeconds = 25;
/** However often the offers change. */
const pauseMs = 1000;
const afterFailureMs = 15_000;

export function createOfferWatches(options: {
  readonly gateways: Gateways;
  readonly changed: (name: string) => void;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}): OfferWatches {
  const { gateways, changed, clock, log, signal } = options;
  const running = new Map<string, { readonly endpoint: string; readonly stop: AbortController }>();

  async function follow(provider: GpuProvider, stop: AbortSignal): Promise<void> {
    const { name } = provider.metadata;
    let tag: string | undefined;
    while (!stop.aborted) {
      const answer = await gateways.of(provider).offersAfter?.(tag, waitSeconds, stop);
      // An older gateway, which knows of no tag.
      if (answer === undefined || (answer.ok && answer.value === '')) return;
      if (answer.ok && tag !== undefined && answer.value !== tag) changed(name);
      if (answer.ok) tag = answer.value;
      await sleep(clock, answer.ok ? pauseMs : afterFailureMs, stop);
    }
  }

  return {
    keep(provider) {
      const { name } = provider.metadata;
      const endpoint = JSON.stringify(provider.spec.endpoint);
      if (running.get(name)?.endpoint === endpoint || signal.aborted) return;
      running.get(name)?.stop.abort(new Error('the endpoint has changed'));
      const stop = new AbortController();
      running.set(name, { endpoint, stop });
      follow(provider, AbortSignal.any([signal, stop.signal])).catch((error: Error) => {
        if (stop.signal.aborted || signal.aborted) return;
        log.debug({ provider: name, error: error.message }, 'waiting for changes of offers ended; probing goes on');
        if (running.get(name)?.stop === stop) running.delete(name);
      });
    },
    drop(name) {
      running.get(name)?.stop.abort(new Error('the provider is gone'));
      running.delete(name);
    },
  };
}
