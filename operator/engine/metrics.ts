/** What the engine tells about itself. Who collects it, and under which names, is not the engine's business. */
export interface EngineMetrics {
  /** A request was answered (or not: code 0). */
  request?(cluster: string, method: string, code: number, seconds: number): void;

  queueAdded?(queue: string, depth: number): void;
  queueRetried?(queue: string): void;
  /** Work left the queue after waiting. */
  queueTaken?(queue: string, waitedSeconds: number, depth: number): void;
  queueDone?(queue: string, workedSeconds: number): void;
  /** The queue was full; everything is enqueued again once there is room. */
  queueOverflowed?(queue: string): void;

  reconciled?(
    controller: string,
    result: 'success' | 'requeue_after' | 'error' | 'terminal_error',
    seconds: number,
  ): void;
  activeWorkers?(controller: string, active: number, most: number): void;

  /** An informer listed everything (again), or opened a watch (again). */
  informerListed?(cluster: string, resource: string): void;
  informerWatched?(cluster: string, resource: string, ended: 'closed' | 'quiet' | 'expired' | 'failed'): void;
  /** Asked for when metrics are collected. Returns the way to stop asking. */
  observeInformer?(
    cluster: string,
    resource: string,
    read: () => { objects: number; staleSeconds: number; synced: boolean },
  ): () => void;
  observeQueue?(
    queue: string,
    read: () => { depth: number; unfinishedSeconds: number; longestSeconds: number },
  ): () => void;

  leader?(name: string, leading: boolean): void;
  eventSent?(reason: string): void;
  eventDropped?(why: 'full' | 'spam' | 'refused' | 'unreachable'): void;
}
