import { describe, expect, test } from 'vitest';
import { count, type Meter, servedSeconds } from '../../../../operator/core/lease/meter.ts';
import { at, instant, node } from '../../../support/builders.ts';

const meter = (servedMs: number, until: number, ready?: boolean): Meter => ({
  servedMs,
  countedUntil: instant(until),
  ...(ready === undefined ? {} : { ready }),
});
const rows: [string, Meter, Parameters<typeof count>[1], number, number][] = [
  ['begins when the node is first Ready', { servedMs: 0 }, node(10), 40, 30],
  ['counts on while it stays Ready', meter(30_000, 40, true), node(10), 100, 90],
  ['stops where Ready ended', meter(30_000, 40, true), node(55, { ready: 'False' }), 100, 45],
  ['counts only from where Ready came again', meter(30_000, 40, true), node(90), 100, 40],
  ['counts nothing while it is not Ready', meter(30_000, 40, false), node(35, { ready: 'False' }), 100, 30],
  // Kubernetes turns False into Unknown when heartbeats stay out: a transition, and nothing that was served before it.
  ['bills no change from False to Unknown', meter(30_000, 40, false), node(90, { ready: 'Unknown' }), 100, 30],
  ['bills up to the silence of an operator', meter(30_000, 40, true), node(90, { ready: 'Unknown' }), 100, 80],
  ['counts nothing without a node', meter(30_000, 40, true), undefined, 100, 30],
  // The Node will say so from about then on; what was counted beyond could not be taken back.
  [
    'stops where this process ceased to see it healthy',
    meter(30_000, 40, true),
    node(10, { healthyAt: at(70) }),
    100,
    60,
  ],
  ['takes nothing back for that', meter(30_000, 40, true), node(10, { healthyAt: at(30) }), 100, 30],
  ['is not turned back by a clock that is', meter(30_000, 40, true), node(10), 20, 30],
];

describe('the meter', () => {
  test.each(rows)('%s', (_, before, fact, now, seconds) => {
    expect(servedSeconds(count(before, fact, at(now)))).toBe(seconds);
  });

  test('remembers whether the node was Ready', () => {
    expect(count(meter(0, 40, true), node(55, { ready: 'False' }), at(60)).ready).toBe(false);
    expect(count(meter(0, 40, false), node(55), at(60)).ready).toBe(true);
    expect(count(meter(0, 40, true), undefined, at(60)).ready).toBe(false);
  });

  test('counts what it held back when the node was healthy all along', () => {
    const held = count(meter(30_000, 40, true), node(10, { healthyAt: at(70) }), at(75));
    expect(servedSeconds(count(held, node(10), at(100)))).toBe(90);
    expect(servedSeconds(count(held, node(72, { ready: 'False' }), at(100)))).toBe(62);
  });

  test('counts up to where we said that the node is not Ready, also after the look had begun', () => {
    const gone = count(meter(30_000, 40, true), node(59, { ready: 'False' }), at(50), undefined, 10_000);
    expect(gone).toMatchObject({ servedMs: 49_000, countedUntil: instant(59), ready: false });
    expect(count(gone, node(59, { ready: 'False' }), at(60)).servedMs).toBe(49_000);
    expect(count(gone, node(100, { ready: 'Unknown' }), at(110)).servedMs).toBe(49_000);
    expect(count(gone, node(61), at(70)).servedMs).toBe(58_000);
  });

  test.each([
    ['Kubernetes, by another clock', node(59, { ready: 'Unknown' })],
    ['ours, while our clock was wrong', node(150, { ready: 'False' })],
  ])('takes no word for what is to come: %s', (_, fact) => {
    const counted = count(meter(30_000, 40, true), fact, at(50));
    expect(counted).toMatchObject({ servedMs: 40_000, countedUntil: instant(50), ready: false });
  });

  test('counts nothing twice when it had counted beyond the last good health', () => {
    const held = count(meter(30_000, 40, true), node(10, { healthyAt: at(35) }), at(75));
    expect(servedSeconds(count(held, node(10), at(100)))).toBe(90);
  });

  test('counts nothing before the node came, where it was looked at by a clock that is behind', () => {
    const behind = count({ servedMs: 0 }, node(10), at(5));
    expect(servedSeconds(count(behind, node(50, { ready: 'Unknown' }), at(100)))).toBe(40);
  });

  test('of an earlier version was Ready when last counted', () => {
    expect(servedSeconds(count(meter(0, 40), node(50, { ready: 'False' }), at(60)))).toBe(10);
  });

  test('does not believe a clock that is put forward by five minutes, and back again', () => {
    const block = (seconds: number) => 1_800_000_000 + seconds;
    let now = count({ servedMs: 0, countedUntil: instant(10) }, node(10), at(40), block(40));
    now = count(now, node(10), at(342), block(42));
    expect(servedSeconds(now)).toBeLessThanOrEqual(32 + 30);
    now = count(now, node(10), at(44), block(44));
    now = count(now, node(10), at(50), block(50));
    expect(servedSeconds(now)).toBeLessThanOrEqual(40 + 30);
  });

  test('believes no clock that is put forward, where this process knows how long ago it counted', () => {
    const block = (seconds: number) => 1_800_000_000 + seconds;
    let now = count({ servedMs: 0, countedUntil: instant(10) }, node(10), at(40), block(40), 30_000);
    now = count(now, node(10), at(342), block(42), 2_000);
    expect(servedSeconds(now)).toBeLessThanOrEqual(32 + 1);
    now = count(now, node(10), at(44), block(44), 2_000);
    now = count(now, node(10), at(50), block(50), 6_000);
    expect(servedSeconds(now)).toBeLessThanOrEqual(40 + 1);
    expect(servedSeconds(now)).toBeGreaterThanOrEqual(36);
  });

  describe('that another process stored', () => {
    const block = (seconds: number) => at(seconds).getTime() / 1000;
    const stored = (until: number, blockTime: number): Meter => ({
      servedMs: 30_000,
      countedUntil: instant(until),
      ready: true,
      blockTime: block(blockTime),
    });
    const served = (before: Meter, now: number, blockTime?: number) =>
      servedSeconds(count(before, node(10), at(now), blockTime === undefined ? undefined : block(blockTime)));

    test('counts by our clock, where it is as near to the chain’s as blocks are late', () => {
      expect(served(stored(40, 38), 60, 48)).toBe(50);
      expect(served(stored(40, 28), 60, 58)).toBe(50);
    });

    test('counts by the chain’s, where ours is five minutes ahead, or was, or was behind', () => {
      expect(served(stored(40, 38), 350, 48)).toBe(40);
      expect(served(stored(-260, 38), 50, 48)).toBe(40);
      expect(served(stored(40, 38), -250, 48)).toBe(30);
    });

    test('waits for a chain that cannot be read yet', () => {
      const before = stored(40, 38);
      expect(count(before, node(10), at(350))).toBe(before);
      expect(served(before, 60, 58)).toBe(50);
      // By an earlier version, which did not look at it.
      expect(served({ servedMs: 30_000, countedUntil: instant(40) }, 60)).toBe(50);
    });
  });

  test('counts nothing twice when a clock is put back by five minutes, and right again', () => {
    const block = (seconds: number) => 1_800_000_000 + seconds;
    let now = count({ servedMs: 0, countedUntil: instant(10) }, node(10), at(40), block(40));
    now = count(now, node(10), at(-258), block(42));
    now = count(now, node(10), at(-248), block(52));
    now = count(now, node(10), at(54), block(54));
    expect(servedSeconds(now)).toBeLessThanOrEqual(44 + 30);
    expect(servedSeconds(now)).toBeGreaterThanOrEqual(30);
  });
});
