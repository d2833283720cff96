/** Which escrows are abandoned: what a sweep may finalize, and what it must leave alone. */
import { describe, expect, test } from 'vitest';
import { type Escrow, mayFinalize, newestOf } from '../../../../operator/core/money/escrow.ts';
import { abandonedOf, mostBlocks, nextRange } from '../../../../operator/core/money/sweep.ts';

const window = 600;
const escrow = (changes: Partial<Escrow> = {}): Escrow =>
  ({
    leaseId: `0x${'a1'.repeat(32)}`,
    deposit: 1000n,
    claimed: 300n,
    servedSeconds: 30,
    endsAt: 10_000,
    closingAt: 0,
    closed: false,
    ...changes,
  }) as Escrow;

describe('an escrow', () => {
  const ended = 10_000 + window;
  const asked = escrow({ closingAt: 4000 });
  test.each<[string, Escrow | undefined, Escrow | undefined, number, bigint | undefined]>([
    ['whose claim window is over is abandoned: what was not earned goes back', escrow(), escrow(), ended, 700n],
    ['is not, a second before', escrow(), escrow(), ended - 1, undefined],
    ['whose consumer asked for the close is, after the window of that', asked, asked, 4000 + window, 700n],
    ['is not, a second before that', asked, asked, 4000 + window - 1, undefined],
    ['that is closed is not', escrow({ closed: true }), escrow({ closed: true }), ended, undefined],
    [
      'that was closed in the newest block is not: it would be paid for',
      escrow({ closed: true }),
      escrow(),
      ended,
      undefined,
    ],
    ['that is closed, although a node is behind, is not', escrow(), escrow({ closed: true }), ended, undefined],
    ['that only the newest block has is not', escrow(), undefined, ended, undefined],
    ['that is none is not', undefined, undefined, ended, undefined],
    ['of which more was earned in the newest block gives back less', escrow({ claimed: 900n }), escrow(), ended, 100n],
  ])('%s', (_, latest, safe, safeBlockTime, refund) => {
    expect(abandonedOf({ latest, safe, safeBlockTime }, window)?.refund).toBe(refund);
  });

  test('may be finalized by anyone from the second on that the contract says', () => {
    expect([ended - 1, ended].map((time) => mayFinalize(escrow(), window, time))).toEqual([false, true]);
    expect(mayFinalize(escrow({ closed: true }), window, ended)).toBe(false);
  });
});

describe('of two reads, the newer one', () => {
  const before = escrow();
  test.each<[string, Partial<Escrow>]>([
    ['has more in it', { deposit: 2000n }],
    ['has more counted', { servedSeconds: 31 }],
    ['has more claimed', { claimed: 301n }],
    ['has been asked to close', { closingAt: 5 }],
    ['is closed', { closed: true }],
  ])('%s', (_, changes) => {
    const after = escrow(changes);
    expect(newestOf({ latest: after, safe: before })).toBe(after);
    // The node that was asked for its newest block is behind.
    expect(newestOf({ latest: before, safe: after })).toBe(after);
  });

  test('exists, where the other does not', () => {
    expect(newestOf({ latest: before, safe: undefined })).toBe(before);
    expect(newestOf({ latest: undefined, safe: before })).toBe(before);
    expect(newestOf({ latest: undefined, safe: undefined })).toBeUndefined();
  });
});

test('a range of blocks shrinks until a node searches it, and grows to what is sensible', () => {
  let range = 5000;
  for (let i = 0; i < 20; i += 1) range = nextRange(range, true);
  expect(range).toBe(1);
  for (let i = 0; i < 40; i += 1) range = nextRange(range, false);
  expect(range).toBe(mostBlocks);
});
