/** A few minutes of trouble, sixty times over; four mistakes made on purpose; and some runs told as stories. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { type Plant, plants } from './operator.ts';
import { simulate } from './simulate.ts';
import { stories, tell } from './stories.ts';

/** Long enough to see most kinds of trouble, short enough to be run with every change; `npm run simulate` goes on from here. */
const seeds = Array.from({ length: 30 }, (_, i) => i + 1);
const batch = 10;

describe('whatever fails, whenever', () => {
  test.each(seeds.filter((seed) => seed % batch === 1))('seeds from %i on', async (from) => {
    for (let seed = from; seed < from + batch; seed++) {
      const { violations } = await simulate(seed);
      expect(violations, `npm run simulate -- --seed ${seed}`).toEqual([]);
    }
  }, 180_000);
});

test('the same seed is the same run', async () => {
  const [one, other] = [await simulate(7), await simulate(7)];
  expect(other).toEqual(one);
}, 60_000);

describe('mistakes made on purpose are noticed', () => {
  const noticedBy: Record<Plant, string> = {
    'double-open': 'oneEscrow',
    'delete-by-absence': 'unknown',
    'voucher-ahead': 'voucherClock',
    'budget-unread': 'budget',
  };
  test.each(Object.entries(plants))('%s: %s', async (plant) => {
    for (let seed = 1; seed <= 200; seed++) {
      const { violations } = await simulate(seed, { plant: plant as Plant });
      const [first] = violations;
      if (first) return expect(first.rule).toBe(noticedBy[plant as Plant]);
    }
    expect.unreachable('200 runs, and nobody noticed');
  });
});

describe('stories', () => {
  test.each(stories)('$title (seed $seed)', async (story) => {
    const file = fileURLToPath(new URL(`stories/${story.file}`, import.meta.url));
    const told = await tell(story);
    if (process.env.UPDATE === '1') {
      await mkdir(fileURLToPath(new URL('stories/', import.meta.url)), { recursive: true });
      await writeFile(file, told);
    }
    expect(await readFile(file, 'utf8'), 'what happens has changed: UPDATE=1 writes it anew').toBe(told);
  });
});
