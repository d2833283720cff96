/**
 * Telling users what happened, as events.k8s.io/v1 Events. The same event again becomes a series with a count, so that a
 * loop that fails all night is one line in `kubectl describe`, not a thousand.
 *
 * Events are a courtesy: they wait in a bounded queue, one request at a time, and are dropped (and counted) rather than
 * hold anything up.
 */
import { randomBytes } from 'node:crypto';
import { type Clock, sleep, systemClock } from './clock.ts';
import { ApiError, isNotFound } from './errors.ts';
import { silentLog } from './log.ts';
import type { EngineMetrics } from './metrics.ts';
import { type Cluster, type EventRecorder, type KubeObject, type Log, resources } from './types.ts';

export interface EventRecorderOptions {
  readonly cluster: Cluster;
  /** Who reports: `gpulease.dev/lease-controller`. */
  readonly controller: string;
  /** Which replica: the pod's name. */
  readonly instance: string;
  readonly clock?: Clock;
  readonly log?: Log;
  readonly metrics?: EngineMetrics;
  /** 1000 */
  readonly maxQueued?: number;
}

export interface RunningEventRecorder extends EventRecorder {
  readonly dropped: number;
  /** Resolves when everything told so far was sent or dropped, or the signal fires. */
  flush(signal?: AbortSignal): Promise<void>;
}

/** Within this time the same event is a repetition; after it, news. As client-go has it. */
const seriesSeconds = 360;
/** A series is written again at most this often. */
const seriesEverySeconds = 30;
/** Different events about one object: so many at once, and then one each `refillSeconds`. */
const burst = 25;
const refillSeconds = 30;
const mostSeries = 4096;
const attempts = 4;

interface Series {
  event: KubeObject & { series?: { count: number; lastObservedTime: string } };
  count: number;
  lastMs: number;
  writtenMs: number;
  /** Created at the server: only then can it be patched. */
  created: boolean;
  queued: boolean;
}

export function createEventRecorder(options: EventRecorderOptions): RunningEventRecorder {
  const { cluster, metrics } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log ?? silentLog;
  const maxQueued = options.maxQueued ?? 1000;
  const series = new Map<string, Series>();
  const budgets = new Map<string, { left: number; atMs: number }>();
  const queue: Series[] = [];
  let sending: Promise<void> | undefined;
  let dropped = 0;
  let timer: (() => void) | undefined;

  function drop(why: 'full' | 'spam' | 'refused' | 'unreachable') {
    dropped++;
    metrics?.eventDropped?.(why);
  }

  function withinBudget(object: string): boolean {
    const nowMs = clock.monotonicMs();
    const before = budgets.get(object) ?? { left: burst, atMs: nowMs };
    const left = Math.min(burst, before.left + (nowMs - before.atMs) / (refillSeconds * 1000));
    budgets.delete(object); // put back at the end: the first is then the one unused for longest
    budgets.set(object, { left: left >= 1 ? left - 1 : left, atMs: nowMs });
    if (budgets.size > mostSeries) budgets.delete(budgets.keys().next().value!);
    return left >= 1;
  }

  function enqueue(entry: Series) {
    if (entry.queued) return;
    if (queue.length >= maxQueued) return drop('full');
    entry.queued = true;
    queue.push(entry);
    sending ??= sendAll().finally(() => {
      sending = undefined;
    });
  }

  async function sendAll() {
    for (let entry = queue.shift(); entry; entry = queue.shift()) {
      entry.queued = false;
      try {
        await sendOne(entry);
      } catch (error) {
        // sendOne answers for every failure it knows; what is left is ours to fix, and must not end the process.
        log.error({ error }, 'an event could not be sent');
        drop('refused');
      }
    }
    armTimer();
  }

  async function sendOne(entry: Series) {
    for (let attempt = 1; ; attempt++) {
      const { count } = entry;
      try {
        if (!entry.created) {
          await cluster.create(resources.eventsV1, entry.event);
          entry.created = true;
        } else {
          const lastObservedTime = microTime(new Date(entry.lastMs));
          await cluster.patch(
            resources.eventsV1,
            { namespace: entry.event.metadata.namespace, name: entry.event.metadata.name },
            { series: { count, lastObservedTime } },
            { type: 'merge' },
          );
        }
        entry.writtenMs = clock.monotonicMs();
        metrics?.eventSent?.((entry.event as { reason?: string }).reason ?? '');
        return;
      } catch (error) {
        if (entry.created && isNotFound(error)) {
          // Events live an hour; this one's time was up. The next repetition is news.
          forget(entry);
          return;
        }
        if (error instanceof ApiError && error.code === 409) {
          entry.created = true; // an earlier attempt did arrive
          continue;
        }
        if (error instanceof ApiError && error.code < 500 && error.code !== 429) {
          log.debug({ error, about: entry.event.metadata.name }, 'an event was refused');
          forget(entry);
          return drop('refused');
        }
        if (attempt === attempts) {
          log.debug({ error, about: entry.event.metadata.name }, 'an event could not be sent');
          if (!entry.created) forget(entry);
          return drop('unreachable');
        }
        await sleep(clock, 500 * 2 ** attempt);
      }
    }
  }

  function forget(entry: Series) {
    for (const [key, value] of series) if (value === entry) series.delete(key);
  }

  /** One timer for all series whose count moved since it was last written. */
  function armTimer() {
    if (timer) return;
    let dueMs = Number.POSITIVE_INFINITY;
    for (const entry of series.values()) {
      if (entry.count > writtenCount(entry)) dueMs = Math.min(dueMs, entry.writtenMs + seriesEverySeconds * 1000);
    }
    if (!Number.isFinite(dueMs)) return;
    timer = clock.setTimeout(
      () => {
        timer = undefined;
        const nowMs = clock.monotonicMs();
        for (const entry of series.values()) {
          if (entry.count > writtenCount(entry) && entry.writtenMs + seriesEverySeconds * 1000 <= nowMs) write(entry);
        }
        armTimer();
      },
      Math.max(0, dueMs - clock.monotonicMs()),
    );
  }

  const writtenCount = (entry: Series) => entry.event.series?.count ?? 1;

  function write(entry: Series) {
    entry.event.series = { count: entry.count, lastObservedTime: microTime(new Date(entry.lastMs)) };
    enqueue(entry);
  }

  function event(about: KubeObject, type: 'Normal' | 'Warning', reason: string, message: string, action = reason) {
    const { name, namespace, uid } = about.metadata;
    const object = `${about.kind}/${namespace ?? ''}/${name}/${uid}`;
    const note = cut(message, 1024);
    const key = JSON.stringify([object, type, reason, action, note]);
    const nowMs = clock.now().getTime();
    const known = series.get(key);
    if (known && nowMs - known.lastMs < seriesSeconds * 1000) {
      known.count++;
      known.lastMs = nowMs;
      // The second time is told at once: that it repeats is news too.
      if (known.count === 2 && known.created) write(known);
      else armTimer();
      return;
    }
    if (!withinBudget(object)) return drop('spam');
    const at = microTime(clock.now());
    const entry: Series = {
      event: {
        metadata: {
          name: `${name.slice(0, 230).replace(/[^a-z0-9]+$/, '')}.${randomBytes(8).toString('hex')}`,
          namespace: namespace ?? 'default',
        },
        eventTime: at,
        type,
        reason: cut(reason, 128),
        action: cut(action, 128),
        note,
        reportingController: options.controller,
        reportingInstance: cut(options.instance, 128),
        regarding: {
          apiVersion: about.apiVersion,
          kind: about.kind,
          name,
          namespace,
          uid,
          resourceVersion: about.metadata.resourceVersion,
        },
      } as Series['event'],
      count: 1,
      lastMs: nowMs,
      writtenMs: clock.monotonicMs(),
      created: false,
      queued: false,
    };
    series.delete(key);
    series.set(key, entry);
    if (series.size > mostSeries) series.delete(series.keys().next().value!);
    enqueue(entry);
  }

  return {
    event(about, type, reason, message, action) {
      try {
        event(about, type, reason, message, action);
      } catch (error) {
        log.error({ error, reason }, 'an event could not be made');
        drop('refused');
      }
    },
    get dropped() {
      return dropped;
    },
    async flush(signal) {
      while (sending && !signal?.aborted) {
        const stopped = new Promise<void>((resolve) =>
          signal?.addEventListener('abort', () => resolve(), { once: true }),
        );
        await Promise.race([sending, stopped]);
      }
    },
  };
}

/** By UTF-8 bytes, as the API server counts, and never through the middle of a character. */
function cut(text: string, maxBytes: number): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= maxBytes) return text;
  let end = maxBytes - 3;
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return `${bytes.subarray(0, end).toString('utf8')}…`;
}

const microTime = (date: Date): string => date.toISOString().replace(/Z$/, '000Z');
