/** Emptying a node whose lease ends: also after a restart, also when the provider says nothing. */
import { describe, expect, it } from 'vitest';
import { drain } from '../../../../operator/core/lease/drain.ts';
import type { Observed } from '../../../../operator/core/lease/observed.ts';
import {
  allocated,
  at,
  chain,
  escrow,
  instant,
  lease,
  node,
  observed,
  quoteRecord,
  record,
} from '../../../support/builders.ts';

/** Ready since second 10, counted until 100, when the lease was deleted. */
const ending = (seconds: number, change: Partial<Observed> = {}): Observed =>
  observed({
    lease: lease({ drainTimeoutSeconds: 300 }),
    now: at(seconds),
    record: record({
      quote: quoteRecord(),
      deposit: '360000',
      startedAt: instant(10),
      meter: { servedMs: 90_000, countedUntil: instant(100) },
      signedSeconds: 90,
      vouchedSeconds: 90,
      end: { reason: 'Released', message: '', at: instant(100), retry: false },
    }),
    chain: chain(seconds, { escrow: escrow() }),
    allocation: allocated(),
    node: node(10, { pods: 3 }),
    ...change,
  });
const does = (seen: Observed) => drain.decide(seen).actions?.map((action) => action.do);

describe('while pods are left', () => {
  it('serves the node, as a process must that has just taken over', () => {
    expect(does(ending(110))).toEqual(['startNode', 'drainNode']);
  });
  it('goes on vouching: what drains is still served', () => {
    expect(does(ending(200))).toEqual(['startNode', 'vouch', 'drainNode']);
  });
  it('does not vouch to a provider that has stopped serving', () => {
    expect(does(ending(200, { allocation: allocated({ state: 'Suspended' }) }))).toEqual(['startNode', 'drainNode']);
  });
  it.each([
    [399, false],
    [400, true],
  ])('%i s after t0: deletes instead of evicting: %s', (seconds, force) => {
    expect(drain.decide(ending(seconds)).actions).toContainEqual(expect.objectContaining({ do: 'drainNode', force }));
  });
});

describe('a provider that says nothing', () => {
  const silent = { allocation: { state: 'unknown', message: 'no answer' } } as const;
  it('is waited for a minute after the pods were deleted', () => {
    expect(does(ending(459, silent))).toContain('drainNode');
  });
  it('does not hold up the end for ever', () => {
    expect(does(ending(460, silent))).toEqual(['markDrained']);
  });
  it('does not either when it answers, and does not say so', () => {
    expect(does(ending(460))).toEqual(['markDrained']);
  });
});

it('is done when no pod is left', () => {
  expect(does(ending(110, { node: node(10, { pods: 0 }) }))).toEqual(['markDrained']);
});
