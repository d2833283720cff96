/** How the process that listens waits for the one that makes tenants. */
import { expect, test } from 'vitest';
import { untilProvisioned } from '../../../../operator/controllers/provider/belief.ts';
import type { Records } from '../../../../operator/controllers/provider/records.ts';
import { type LeaseRecord, recordName } from '../../../../operator/core/allocation/record.ts';
import { systemClock } from '../../../../operator/engine/clock.ts';
import { leaseId } from '../../../support/builders.ts';

type Handler = (change: { object: { metadata: { name: string } } }) => void;

function world() {
  const it = {
    state: 'Provisioning' as LeaseRecord['state'],
    reads: 0,
    handlers: new Set<Handler>(),
    nowMs: 0,
    tell(name = recordName(leaseId)) {
      for (const handler of it.handlers) handler({ object: { metadata: { name } } });
    },
  };
  const at = {
    records: {
      async get() {
        it.reads += 1;
        return { leaseId, state: it.state } as LeaseRecord;
      },
    } as unknown as Records,
    watched: {
      onChange(handler: Handler) {
        it.handlers.add(handler);
        // As an informer does: what is there already is told at once.
        handler({ object: { metadata: { name: recordName(leaseId) } } });
        return () => it.handlers.delete(handler);
      },
    } as never,
    namespace: 'gpulease-system',
    clock: systemClock,
  };
  return { it, at };
}
const record = { leaseId, state: 'Provisioning' } as LeaseRecord;

test('looks when the record changes, and at no other time', async () => {
  const { it, at } = world();
  const waiting = untilProvisioned(record, at);
  await new Promise((resolve) => setTimeout(resolve, 50));
  it.tell('lease-of-another');
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(it.reads).toBe(1);
  it.tell();
  await new Promise((resolve) => setTimeout(resolve, 20));
  it.state = 'Serving';
  it.tell();
  expect((await waiting).state).toBe('Serving');
  expect(it.reads).toBe(3);
  expect(it.handlers.size).toBe(0);
});

test('gives up with who asked', async () => {
  const { it, at } = world();
  const stop = new AbortController();
  const waiting = untilProvisioned(record, at, stop.signal);
  await new Promise((resolve) => setTimeout(resolve, 20));
  stop.abort(new Error('left'));
  await expect(waiting).rejects.toThrow('left');
  expect(it.handlers.size).toBe(0);
});

test('says that it is still being made when it takes too long', async () => {
  const { it, at } = world();
  const timers: (() => void)[] = [];
  const clock = {
    ...systemClock,
    monotonicMs: () => it.nowMs,
    setTimeout: (work: () => void) => {
      timers.push(work);
      return () => undefined;
    },
  };
  const waiting = untilProvisioned(record, { ...at, clock });
  await new Promise((resolve) => setTimeout(resolve, 20));
  it.nowMs = 8_001;
  for (const fire of timers) fire();
  expect((await waiting).state).toBe('Provisioning');
});
