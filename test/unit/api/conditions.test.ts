import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  endReasons,
  mergeConditions,
  pendingReasons,
  providerReasons,
  type Verdict,
} from '../../../operator/api/conditions.ts';

const now = new Date('2026-01-01T00:00:00.500Z');
const later = new Date('2026-01-01T00:01:00.500Z');
const verdict = (change: Partial<Verdict> = {}): Verdict => ({
  type: 'Ready',
  status: 'Unknown',
  reason: 'Quoting',
  message: 'Asking.',
  ...change,
});

describe('conditions', () => {
  it('get their transition time, in whole seconds, and the generation that was seen', () => {
    expect(mergeConditions(undefined, [verdict()], 3, now)).toEqual([
      { ...verdict(), observedGeneration: 3, lastTransitionTime: '2026-01-01T00:00:00Z' },
    ]);
  });

  it('keep it while the status stays, whatever the reason', () => {
    const before = mergeConditions(undefined, [verdict()], 3, now);
    const after = mergeConditions(before, [verdict({ reason: 'EscrowPending', message: 'Opening.' })], 4, later);
    expect(after).toMatchObject([
      { reason: 'EscrowPending', observedGeneration: 4, lastTransitionTime: '2026-01-01T00:00:00Z' },
    ]);
  });

  it('get another one when the status changes', () => {
    const before = mergeConditions(undefined, [verdict()], 3, now);
    const after = mergeConditions(before, [verdict({ status: 'True' })], 3, later);
    expect(after[0]?.lastTransitionTime).toBe('2026-01-01T00:01:00Z');
  });

  it('are written the same when nothing has changed', () => {
    const before = mergeConditions(undefined, [verdict()], 3, now);
    expect(mergeConditions(before, [verdict()], 3, later)).toEqual(before);
  });

  it('that were not decided are gone', () => {
    const before = mergeConditions(undefined, [verdict(), verdict({ type: 'Stalled' })], 3, now);
    expect(mergeConditions(before, [verdict()], 3, later).map((c) => c.type)).toEqual(['Ready']);
  });

  it('have a message that the API server takes', () => {
    expect(mergeConditions(undefined, [verdict({ message: 'x'.repeat(5000) })], 1, now)[0]?.message).toHaveLength(2048);
  });
});

describe('reasons', () => {
  it.each([...new Set([...pendingReasons, ...endReasons, ...providerReasons])])('%s is one word', (reason) => {
    expect(reason).toMatch(/^[A-Z][A-Za-z]+$/);
  });

  it('that decisions give for a lease are all in the registry', () => {
    // Reasons of conditions other than Ready, and of what is True, need no entry.
    const others = new Set([
      'QuoteReady',
      'EscrowOpen',
      'Provisioned',
      'NodeRegistered',
      'Serving',
      'Drained',
      'Draining',
      'RemovingNode',
      'NothingAllocated',
      'Releasing',
      'Settling',
      'Completed',
      'QuoteExpired',
      ...endReasons,
      ...pendingReasons,
    ]);
    const folder = 'operator/core/lease';
    const said = readdirSync(folder).flatMap((file) =>
      [...readFileSync(join(folder, file), 'utf8').matchAll(/reason: '([A-Za-z]+)'/g)].map((m) => m[1]!),
    );
    expect(said.length).toBeGreaterThan(30);
    expect([...new Set(said)].filter((reason) => !others.has(reason))).toEqual([]);
  });
});
