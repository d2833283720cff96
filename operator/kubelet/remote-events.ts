/**
 * What the provider's cluster says of a carried pod, told on the consumer's pod: that an image cannot be pulled, a probe
 * fails, nothing fits. Untrusted words: bounded in length and number, and only ever about pods of this node.
 */
import type { Pod } from '../core/node/pod.ts';
import { plainText } from '../core/plain-text.ts';
import { boundedMap } from '../engine/bounded-map.ts';
import type { Clock } from '../engine/clock.ts';
import type { EventRecorder, KubeObject } from '../engine/types.ts';

export interface RemoteEvent extends KubeObject {
  involvedObject?: { kind?: string; name?: string };
  type?: string;
  reason?: string;
  message?: string;
  count?: number;
  series?: { count?: number };
  lastTimestamp?: string | null;
  eventTime?: string | null;
  firstTimestamp?: string | null;
}

/** One for each pod, and nobody is told of it: the consumer's own scheduler has said so, of the node that the consumer knows. */
const scheduled = 'Scheduled';
/** Field selector of the events that are asked for. */
export const toldEvents = `reason!=${scheduled}`;

/** Of one pod, at once; one more every `refillSeconds`. */
const burst = 25;
const refillSeconds = 10;

export interface EventMirrorOptions {
  readonly podOf: (remoteName: string) => Pod | undefined;
  readonly events: EventRecorder;
  readonly clock: Clock;
}

/** Keeps what is read of an event, each field bounded. */
export function trimEvent(event: RemoteEvent): RemoteEvent {
  const { name, namespace, uid, resourceVersion, creationTimestamp } = event.metadata;
  return {
    metadata: { name, namespace, uid, resourceVersion, creationTimestamp },
    involvedObject: { kind: text(event.involvedObject?.kind, 64), name: text(event.involvedObject?.name, 253) },
    type: event.type === 'Warning' ? 'Warning' : 'Normal',
    reason: text(event.reason, 64),
    message: text(event.message, 1024),
    count: number(event.series?.count ?? event.count),
    lastTimestamp: text(event.lastTimestamp ?? event.eventTime ?? event.firstTimestamp, 40),
  };
}

/**
 * Returns the handler of changes. Of the first list, events from before `since` were told by an earlier run. Later ones are
 * told whatever their time, as the provider's clock may be wrong.
 */
export function mirrorEvents(
  options: EventMirrorOptions,
  since: Date,
): (event: RemoteEvent, ofFirstList: boolean) => void {
  const { clock } = options;
  const told = boundedMap<string, number>(4096);
  const allowance = boundedMap<string, { left: number; atMs: number }>(4096);

  function mayTell(podUid: string): boolean {
    const nowMs = clock.monotonicMs();
    const known = allowance.get(podUid) ?? { left: burst, atMs: nowMs };
    const left = Math.min(burst, known.left + (nowMs - known.atMs) / (refillSeconds * 1000));
    if (left < 1) return false;
    allowance.set(podUid, { left: left - 1, atMs: nowMs });
    return true;
  }

  return (event, ofFirstList) => {
    if (event.reason === scheduled) return;
    const { uid, namespace } = event.metadata;
    const { kind, name } = event.involvedObject ?? {};
    if (kind !== 'Pod' || !name || !uid || !event.reason || !/^[A-Za-z][A-Za-z0-9]*$/.test(event.reason)) return;
    const at = Date.parse(event.lastTimestamp ?? event.metadata.creationTimestamp ?? '');
    if (ofFirstList && !(at >= since.getTime())) return;
    const count = event.count ?? 1;
    if ((told.get(uid) ?? 0) >= count) return;
    const pod = options.podOf(name);
    if (!pod || !mayTell(pod.metadata.uid ?? '')) return;
    told.set(uid, count);
    let message = (event.message ?? '').replaceAll(name, pod.metadata.name);
    if (namespace) message = message.replaceAll(namespace, pod.metadata.namespace ?? '');
    options.events.event(pod, event.type === 'Warning' ? 'Warning' : 'Normal', event.reason, message);
  };
}

const text = (value: unknown, most: number): string | undefined =>
  typeof value === 'string' ? plainText(value.slice(0, most).toWellFormed()) : undefined;
const number = (value: unknown): number | undefined =>
  typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : undefined;
