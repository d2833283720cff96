import { describe, expect, it } from 'vitest';
import { createEventRecorder } from '../../../operator/engine/events.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { manualClock } from '../../support/clock.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

interface Event extends KubeObject {
  type: string;
  reason: string;
  note: string;
  action: string;
  eventTime: string;
  regarding: { kind: string; name: string; namespace?: string; uid: string };
  series?: { count: number; lastObservedTime: string };
}
const about = (name: string): KubeObject => ({
  apiVersion: 'gpulease.dev/v1alpha1',
  kind: 'GpuLease',
  metadata: { name, namespace: 'a', uid: `uid-${name}` },
});

function start(options: { maxQueued?: number } = {}) {
  const clock = manualClock();
  const cluster = fakeCluster({ clock });
  const recorder = createEventRecorder({ cluster, controller: 'gpulease.dev/test', instance: 'me', clock, ...options });
  return { clock, cluster, recorder, events: () => cluster.objects<Event>(resources.eventsV1) };
}

describe('events', () => {
  it('tell what happened to what', async () => {
    const { clock, recorder, events } = start();
    recorder.event(about('x'), 'Warning', 'CapacityExhausted', 'no 4090 is free', 'Quote');
    await clock.settle();
    expect(events()).toHaveLength(1);
    expect(events()[0]).toMatchObject({
      type: 'Warning',
      reason: 'CapacityExhausted',
      action: 'Quote',
      note: 'no 4090 is free',
      eventTime: '2026-01-01T00:00:00.000000Z',
      reportingController: 'gpulease.dev/test',
      reportingInstance: 'me',
      regarding: { kind: 'GpuLease', name: 'x', namespace: 'a', uid: 'uid-x' },
    });
    expect(events()[0]?.metadata.namespace).toBe('a');
  });

  it('about what has no namespace go where kubectl looks for them', async () => {
    const { clock, recorder, events } = start();
    recorder.event({ kind: 'Node', metadata: { name: 'n' } }, 'Normal', 'Registered', 'hello');
    await clock.settle();
    expect(events()[0]?.metadata.namespace).toBe('default');
  });

  it('that repeat all night are one event with a count, and few writes', async () => {
    const { clock, cluster, recorder, events } = start();
    for (let n = 0; n < 1000; n++) {
      recorder.event(about('x'), 'Warning', 'Unreachable', 'no answer');
      await clock.advance(10_000);
    }
    await clock.advance(60_000);
    expect(events()).toHaveLength(1);
    expect(events()[0]?.series).toMatchObject({ count: 1000 });
    expect(cluster.writes.length).toBeLessThan(10_000 / 30 + 10);
    expect(clock.pendingTimers).toBe(0);
  });

  it('after a pause are news again', async () => {
    const { clock, recorder, events } = start();
    recorder.event(about('x'), 'Normal', 'Ready', 'yes');
    await clock.advance(400_000);
    recorder.event(about('x'), 'Normal', 'Ready', 'yes');
    await clock.settle();
    expect(events()).toHaveLength(2);
  });

  it('too many about one object are dropped and counted, others go through', async () => {
    const { clock, recorder, events } = start();
    for (let n = 0; n < 100; n++) recorder.event(about('noisy'), 'Normal', 'Changed', `now ${n}`);
    recorder.event(about('quiet'), 'Normal', 'Changed', 'once');
    await clock.advance(1000);
    expect(events()).toHaveLength(26);
    expect(recorder.dropped).toBe(75);
    await clock.advance(3600_000);
    recorder.event(about('noisy'), 'Normal', 'Changed', 'much later');
    await clock.settle();
    expect(events()).toHaveLength(27);
  });

  it('never hold anything up: a full queue drops', async () => {
    const { cluster, recorder, clock } = start({ maxQueued: 5 });
    cluster.latencyMs = 60_000;
    for (let n = 0; n < 20; n++) recorder.event(about(`x${n}`), 'Normal', 'A', 'b');
    expect(recorder.dropped).toBeGreaterThanOrEqual(14);
    await clock.advance(3_600_000);
  });

  it('survive a server that fails for a while, and give up on one that refuses', async () => {
    const { clock, cluster, recorder, events } = start();
    cluster.failNext({ fail: 'unreachable' });
    cluster.failNext({ fail: 'answer-lost' });
    recorder.event(about('x'), 'Normal', 'A', 'b');
    await clock.advance(30_000);
    expect(events()).toHaveLength(1);
    cluster.failNext({ fail: 403 });
    recorder.event(about('y'), 'Normal', 'A', 'b');
    await clock.advance(30_000);
    expect([events().length, recorder.dropped]).toEqual([1, 1]);
  });

  it('are cut to what the API server takes', async () => {
    const { clock, recorder, events } = start();
    recorder.event(about('x'), 'Normal', 'A', 'ü'.repeat(2000));
    await clock.settle();
    const note = events()[0]!.note;
    expect(Buffer.byteLength(note)).toBeLessThanOrEqual(1024);
    expect(note).toMatch(/^ü+…$/);
  });

  it('can be waited for at the end', async () => {
    const { recorder, events } = start();
    recorder.event(about('x'), 'Normal', 'A', 'b');
    await recorder.flush();
    expect(events()).toHaveLength(1);
  });
});
