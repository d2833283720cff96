/** One pod at a time, created and seen Running by a watch on the same cluster: through the virtual node and straight, by turns. */

import { setTimeout as sleep } from 'node:timers/promises';
import { resources } from '../../operator/engine/types.ts';
import { median, percentile, type Target, told } from './figures.ts';
import type { Lab, Place } from './lab.ts';
import { type PodWatch, podManifest, watchPods } from './pods.ts';

export interface LatencyFigures {
  readonly samples: number;
  readonly straight: Spread;
  readonly ours: Spread;
  readonly p50Ratio: number;
  readonly p95Ratio: number;
}

export interface Spread {
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly sortedMs: readonly number[];
}

const longestSeconds = 60;

async function once({ signal }: Lab, place: Place, watch: PodWatch, name: string): Promise<number> {
  const startedAt = performance.now();
  await place.cluster.create(resources.pods, podManifest(place, name), signal);
  const ms = (await watch.running(name, longestSeconds)) - startedAt;
  await place.cluster.delete(resources.pods, { namespace: place.namespace, name }, {}, signal);
  await watch.gone(longestSeconds);
  return ms;
}

export const spread = (values: readonly number[]): Spread => ({
  p50Ms: told(median(values)),
  p95Ms: told(percentile(values, 0.95)),
  sortedMs: values.toSorted((a, b) => a - b).map((value) => Math.round(value * 10) / 10),
});

export async function latency(
  lab: Lab,
  options: { readonly samples: number; readonly say: (line: string) => void },
): Promise<{ figures: LatencyFigures; targets: Target[] }> {
  const places = [lab.straight, lab.ours] as const;
  const watches = new Map<Place, PodWatch>();
  const values: Record<Place['name'], number[]> = { straight: [], ours: [] };
  try {
    for (const place of places) watches.set(place, await watchPods(place, 'pod', lab.signal));
    const warmUp = 5;
    for (let i = -warmUp; i < options.samples; i += 1) {
      for (const place of i % 2 === 0 ? places : places.toReversed()) {
        const ms = await once(lab, place, watches.get(place)!, `latency-${place.name}-${i + warmUp}`);
        if (i >= 0) values[place.name].push(ms);
        // What the end of one pod leaves to be done is not to slow down the next.
        await sleep(100, undefined, { signal: lab.signal });
      }
      if (i >= 0 && (i + 1) % 10 === 0)
        options.say(
          `${i + 1} of ${options.samples}: straight p50 ${median(values.straight).toFixed(1)} ms, ours ${median(values.ours).toFixed(1)} ms`,
        );
    }
  } finally {
    for (const watch of watches.values()) watch.stop();
  }
  const straight = spread(values.straight);
  const ours = spread(values.ours);
  const figures = {
    samples: options.samples,
    straight,
    ours,
    p50Ratio: told(ours.p50Ms / straight.p50Ms),
    p95Ratio: told(ours.p95Ms / straight.p95Ms),
  };
  return {
    figures,
    targets: [
      { what: 'created → Running, p50, times straight', measured: figures.p50Ratio, atMost: 3 },
      { what: 'created → Running, p95, times straight', measured: figures.p95Ratio, atMost: 3 },
    ],
  };
}
