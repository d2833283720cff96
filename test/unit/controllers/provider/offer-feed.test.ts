/** Who waits for offers to change hears of it, and of nothing else; nobody waits for ever. */
import { expect, test } from 'vitest';
import { createOfferFeed, maxWaiting } from '../../../../operator/controllers/provider/offer-feed.ts';
import { manualClock } from '../../../support/clock.ts';

function world() {
  const clock = manualClock();
  const it = { offers: ['a'], looked: 0, clock, silent: false };
  const feed = createOfferFeed({
    offers: () => {
      it.looked += 1;
      if (it.silent) throw new Error('the cluster does not answer');
      return { offers: it.offers as never, observedAt: '' };
    },
    tagOf: (offers) => offers.join(),
    clock,
  });
  return { it, feed, clock };
}
const state = async (promise: Promise<unknown>) =>
  Promise.race([promise.then(() => 'answered'), new Promise((resolve) => setImmediate(() => resolve('waiting')))]);

test('who has another tag, or none, is answered at once', async () => {
  const { feed } = world();
  expect(await feed.after(undefined, 25)).toMatchObject({ tag: 'a', list: { offers: ['a'] } });
  expect(await feed.after('z', 25)).toMatchObject({ tag: 'a', list: { offers: ['a'] } });
  expect(await feed.after('a', 0)).toEqual({ tag: 'a' });
});

test('who has the tag of now is answered a moment after a change, however many changes there are', async () => {
  const { feed, it, clock } = world();
  const first = feed.after('a', 25);
  expect(await state(first)).toBe('waiting');
  it.offers = ['b'];
  const before = it.looked;
  for (let i = 0; i < 100; i += 1) feed.stir();
  await clock.advance(249);
  expect(await state(first)).toBe('waiting');
  await clock.advance(1);
  expect(await first).toMatchObject({ tag: 'b' });
  expect(it.looked - before).toBeLessThanOrEqual(2);
});

test('a change of what no offer shows wakes nobody', async () => {
  const { feed, clock } = world();
  const first = feed.after('a', 25);
  feed.stir();
  await clock.advance(300);
  expect(await state(first)).toBe('waiting');
  await clock.advance(25_000);
  expect(await first).toEqual({ tag: 'a' });
});

test('what no event tells is seen within five seconds', async () => {
  const { feed, it, clock } = world();
  const first = feed.after('a', 25);
  it.offers = ['held'];
  await clock.advance(5000);
  expect(await first).toMatchObject({ tag: 'held' });
});

test('a cluster that falls silent is told, not waited for', async () => {
  const { feed, it, clock } = world();
  const first = feed.after('a', 25);
  const failed = expect(first).rejects.toThrow('does not answer');
  it.silent = true;
  await clock.advance(5000);
  await failed;
});

test('who goes away is forgotten, and no timer stays behind', async () => {
  const { feed, clock } = world();
  const gone = new AbortController();
  const first = feed.after('a', 25, gone.signal);
  gone.abort();
  expect(await first).toEqual({ tag: 'a' });
  expect(clock.pendingTimers).toBe(0);
});

test('a crowd is answered at once', async () => {
  const { feed, clock } = world();
  const crowd = Array.from({ length: maxWaiting }, () => feed.after('a', 25));
  expect(await feed.after('a', 25)).toEqual({ tag: 'a' });
  await clock.advance(25_000);
  expect(await Promise.all(crowd)).toHaveLength(maxWaiting);
});
