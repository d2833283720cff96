/**
 * A queue of keys, filled by informers, emptied by a reconciler. A key that fails comes back by itself, later each time;
 * a key is never reconciled twice at the same time.
 *
 * It tells apart what asks for different reactions. A reconciler that throws is retried in silence at first: networks
 * fail, caches lag. One that throws TerminalError is left alone until something changes. One that returns has said
 * itself when to look again.
 */
import { type BackoffOptions, type Clock, systemClock } from './clock.ts';
import { isApiError, TerminalError } from './errors.ts';
import { silentLog } from './log.ts';
import type { EngineMetrics } from './metrics.ts';
import { keyOf, keyText, parseKey } from './paths.ts';
import { createQueue } from './queue.ts';
import type { Change, Controller, Informer, KubeObject, Log, ObjectKey, Reconcile } from './types.ts';

/** An informer, and whose work a change in it is. Made by `watches`, which keeps the object's type. */
export interface Watch {
  readonly synced: () => boolean;
  waitForSync(signal: AbortSignal): Promise<void>;
  /** Calls back with the keys to work on, for each change. */
  subscribe(enqueue: (keys: readonly ObjectKey[]) => void): () => void;
  /** The keys of everything there is now. */
  all(): readonly ObjectKey[];
}

/** Changes in `informer` are work for these keys; for the object itself when `keysOf` is left out. */
export function watches<T extends KubeObject>(
  informer: Informer<T>,
  keysOf: (change: Change<T>) => readonly ObjectKey[] = (change) => [keyOf(change.object)],
): Watch {
  return {
    synced: () => informer.synced,
    waitForSync: (signal) => informer.waitForSync(signal),
    subscribe: (enqueue) => informer.onChange((change) => enqueue(keysOf(change))),
    all: () => informer.list().flatMap((object) => keysOf({ type: 'added', object })),
  };
}

export interface ControllerOptions {
  readonly name: string;
  readonly reconcile: Reconcile;
  readonly watches: readonly Watch[];
  /** Keys worked on at once: 4. */
  readonly concurrency?: number;
  readonly clock?: Clock;
  readonly log?: Log;
  readonly metrics?: EngineMetrics;
  readonly backoff?: BackoffOptions;
  readonly maxQueueLength?: number;
  /** Look at everything again this often, for what no event tells. Never, by default. */
  readonly resyncSeconds?: number;
  /** A reconcile that takes longer has its signal aborted: 300. It still holds its key until it ends. */
  readonly stallAfterSeconds?: number;
  readonly random?: () => number;
}

export interface RunningController extends Controller {
  /** The age of the oldest reconcile in flight; a liveness check compares it with what it tolerates. */
  readonly longestSeconds: number;
  readonly queueLength: number;
}

/** Failures in a row before somebody is told. */
const warnAfter = 5;

export function createController(options: ControllerOptions): RunningController {
  const { name, metrics } = options;
  const clock = options.clock ?? systemClock;
  const concurrency = options.concurrency ?? 4;
  const stallAfterSeconds = options.stallAfterSeconds ?? 300;
  const maxQueueLength = options.maxQueueLength ?? 100_000;
  const log = (options.log ?? silentLog).child({ controller: name });
  const queue = createQueue({
    name,
    clock,
    metrics,
    backoff: options.backoff,
    maxLength: maxQueueLength,
    random: options.random,
  });
  const startedAtMs = new Map<string, number>();
  let overflowed = false;
  let running = false;

  function enqueue(key: ObjectKey, afterSeconds?: number) {
    if (!queue.add(keyText(key), afterSeconds)) overflowed = true;
  }

  /** Keys still to be enqueued after the queue was full: as many at a time as fit, or the last would never get a turn. */
  let backlog: ObjectKey[] = [];

  function enqueueAll() {
    overflowed = false;
    backlog = options.watches.flatMap((watch) => [...watch.all()]);
    refill();
  }

  function refill() {
    for (let key = backlog.pop(); key; key = backlog.pop()) {
      if (queue.add(keyText(key))) continue;
      backlog.push(key);
      return;
    }
  }

  async function work(text: string, signal: AbortSignal) {
    const startedMs = clock.monotonicMs();
    startedAtMs.set(text, startedMs);
    metrics?.activeWorkers?.(name, startedAtMs.size, concurrency);
    const stop = new AbortController();
    const onAbort = () => stop.abort(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    const cancelStall = clock.setTimeout(() => {
      log.error({ key: text, seconds: stallAfterSeconds }, 'a reconcile takes too long and is being stopped');
      stop.abort(new Error(`stopped after ${stallAfterSeconds} s`));
    }, stallAfterSeconds * 1000);
    const seconds = () => (clock.monotonicMs() - startedMs) / 1000;
    try {
      const { requeueAfterSeconds } = await options.reconcile(parseKey(text), stop.signal);
      queue.forget(text);
      if (requeueAfterSeconds !== undefined) enqueue(parseKey(text), Math.max(0, requeueAfterSeconds));
      metrics?.reconciled?.(name, requeueAfterSeconds === undefined ? 'success' : 'requeue_after', seconds());
    } catch (error) {
      if (signal.aborted) return; // stopping: what was left undone is found again at the next start
      if (error instanceof TerminalError) {
        queue.forget(text);
        log.error({ key: text, error }, 'cannot go on before something changes');
        metrics?.reconciled?.(name, 'terminal_error', seconds());
        return;
      }
      const failures = queue.retry(text, isApiError(error) ? Math.min(60, error.retryAfterSeconds ?? 0) : 0);
      // Told once, and then ever more rarely: 5, 10, 20, 40 …
      const tell = failures >= warnAfter && Number.isInteger(Math.log2(failures / warnAfter));
      log[tell ? 'warn' : 'debug']({ key: text, failures, error }, 'reconcile failed, will be tried again');
      metrics?.reconciled?.(name, 'error', seconds());
    } finally {
      cancelStall();
      signal.removeEventListener('abort', onAbort);
      startedAtMs.delete(text);
      metrics?.activeWorkers?.(name, startedAtMs.size, concurrency);
    }
  }

  async function worker(signal: AbortSignal) {
    for (let key = await queue.take(); key !== undefined; key = await queue.take()) {
      try {
        await work(key, signal);
      } finally {
        queue.done(key);
      }
      if (backlog.length > 0) refill();
      // Keys were refused while the queue was full: nobody knows which, so all of them.
      else if (overflowed && queue.length <= maxQueueLength / 2) enqueueAll();
    }
  }

  const longestSeconds = () => {
    let oldest = Number.POSITIVE_INFINITY;
    for (const at of startedAtMs.values()) oldest = Math.min(oldest, at);
    return Number.isFinite(oldest) ? (clock.monotonicMs() - oldest) / 1000 : 0;
  };

  return {
    name,
    enqueue,
    get longestSeconds() {
      return longestSeconds();
    },
    get queueLength() {
      return queue.length;
    },
    async run(signal) {
      if (running) throw new Error(`controller ${name} runs already, or ran before`);
      running = true;
      const unsubscribe = options.watches.map((watch) =>
        watch.subscribe((keys) => keys.forEach((key) => void enqueue(key))),
      );
      const stopObserving = metrics?.observeQueue?.(name, () => {
        let unfinishedSeconds = 0;
        for (const at of startedAtMs.values()) unfinishedSeconds += (clock.monotonicMs() - at) / 1000;
        return { depth: queue.length, unfinishedSeconds, longestSeconds: longestSeconds() };
      });
      let cancelResync: (() => void) | undefined;
      try {
        // Deciding on half a world makes wrong decisions: wait for all of it.
        await Promise.all(options.watches.map((watch) => watch.waitForSync(signal)));
        const every = options.resyncSeconds;
        const resync = () => {
          if (every === undefined) return;
          cancelResync = clock.setTimeout(
            () => {
              enqueueAll();
              resync();
            },
            every * 1000 * (0.9 + 0.2 * (options.random ?? Math.random)()),
          );
        };
        resync();
        const close = () => queue.close();
        if (signal.aborted) close();
        signal.addEventListener('abort', close, { once: true });
        await Promise.all(Array.from({ length: concurrency }, () => worker(signal)));
      } catch (error) {
        if (!signal.aborted) throw error;
      } finally {
        queue.close();
        cancelResync?.();
        stopObserving?.();
        for (const stop of unsubscribe) stop();
      }
    },
  };
}
