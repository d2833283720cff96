/** When somebody dials again, by a clock that tests move. */
import { expect, test } from 'vitest';
import { NotAdmitted } from '../../../operator/wire/introduction.ts';
import { type Kept, keepDialled } from '../../../operator/wire/keep-dialled.ts';
import { manualClock } from '../../support/clock.ts';

interface Made extends Kept {
  readonly at: number;
  over: boolean;
  cut(): void;
  leave(): void;
}

type Answer = 'made' | 'silent' | Error;

/** `answer` says how each attempt goes, by its number. */
function dialling(answer: (attempt: number) => Answer, random = () => 1) {
  const clock = manualClock();
  const stop = new AbortController();
  const attempts: number[] = [];
  const made: Made[] = [];
  const aborted: number[] = [];
  const keeper = keepDialled<Made>(
    {
      clock,
      random,
      attempt: (signal) => {
        const number = attempts.length;
        attempts.push(clock.monotonicMs());
        const how = answer(number);
        if (how instanceof Error) return Promise.reject(how);
        if (how === 'silent')
          return new Promise((_, reject) =>
            signal.addEventListener('abort', () => {
              aborted.push(number);
              reject(signal.reason);
            }),
          );
        let cut: () => void = () => undefined;
        let leave: () => void = () => undefined;
        const ended = new Promise<void>((resolve) => {
          cut = resolve;
        });
        const draining = new Promise<void>((resolve) => {
          leave = resolve;
        });
        const one: Made = {
          at: clock.monotonicMs(),
          over: false,
          ended,
          draining,
          cut: () => cut(),
          leave: () => leave(),
          end() {
            one.over = true;
            cut();
          },
        };
        made.push(one);
        return Promise.resolve(one);
      },
    },
    stop.signal,
  );
  return { clock, stop, attempts, made, aborted, keeper };
}

test('dials at once, and again within half a second when it was cut', async () => {
  const { clock, made, attempts, keeper } = dialling(() => 'made');
  await clock.settle();
  expect(keeper.current).toBe(made[0]);
  await clock.advance(60_000);
  made[0]!.cut();
  await clock.settle();
  expect(keeper.current).toBeUndefined();
  await clock.advance(500);
  expect(keeper.current).toBe(made[1]);
  expect(attempts).toHaveLength(2);
});

test('is back within 5 s of an outage, however long it took', async () => {
  let down = true;
  const { clock, keeper, attempts } = dialling(() => (down ? new Error('refused') : 'made'));
  await clock.advance(3_600_000);
  expect(attempts.length).toBeLessThan(3_600_000 / 1400);
  down = false;
  await clock.advance(5000);
  expect(keeper.current).toBeDefined();
});

test('waits longer each time, and never as long as another that was cut in the same moment', async () => {
  const gaps = async (random: () => number) => {
    const { clock, attempts } = dialling(() => new Error('refused'), random);
    await clock.advance(20_000);
    return attempts.slice(1).map((at, index) => at - attempts[index]!);
  };
  const [slow, quick] = await Promise.all([gaps(() => 1), gaps(() => 0)]);
  expect(slow.slice(0, 6)).toEqual([250, 500, 1000, 2000, 3000, 3000]);
  expect(quick.slice(0, 6)).toEqual([125, 250, 500, 1000, 1500, 1500]);
});

test('does not wait for an attempt that gets no answer, and makes no more than three at a time', async () => {
  const { clock, attempts, keeper, aborted } = dialling((number) => (number < 6 ? 'silent' : 'made'));
  await clock.advance(2900);
  expect(attempts).toHaveLength(1);
  await clock.advance(6200);
  expect(attempts).toHaveLength(3);
  await clock.advance(60_000);
  expect(attempts).toHaveLength(3);
  expect(keeper.current).toBeUndefined();
  expect(aborted).toEqual([]);
});

test('takes the first that comes through, and gives up the others', async () => {
  const { clock, attempts, keeper, aborted, made } = dialling((number) => (number === 0 ? 'silent' : 'made'));
  await clock.advance(3100);
  expect(attempts).toHaveLength(2);
  expect(keeper.current).toBe(made[0]);
  expect(aborted).toEqual([0]);
  await clock.advance(60_000);
  expect(attempts).toHaveLength(2);
});

test('asks seldom where it is refused, and says what was said', async () => {
  const { clock, attempts, keeper } = dialling(() => new NotAdmitted('no GpuProvider here', true));
  await clock.advance(60_000);
  expect(attempts).toHaveLength(8);
  expect(keeper.lastError).toBe('no GpuProvider here');
});

test('dials anew when the other side drains, and leaves what is open there alone', async () => {
  const { clock, made, keeper } = dialling(() => 'made');
  await clock.advance(60_000);
  made[0]!.leave();
  await clock.advance(500);
  expect(keeper.current).toBe(made[1]);
  expect(made[0]!.over).toBe(false);
});

test('backs off from one that is cut again and again', async () => {
  const { clock, made, attempts } = dialling(() => 'made');
  for (let turn = 0; turn < 400; turn++) {
    await clock.advance(100);
    made.at(-1)?.cut();
  }
  expect(attempts.length).toBeLessThan(25);
});

test('tells who waits, and lets nobody wait longer than it will', async () => {
  const { clock, keeper } = dialling((number) => (number === 0 ? new Error('refused') : 'made'));
  const [soon, late] = [keeper.within(0.1), keeper.within(10)];
  await clock.advance(2000);
  expect(await soon).toBeUndefined();
  expect(await late).toBe(keeper.current);
});

test('stops when it is told to, also in the middle of an attempt', async () => {
  const { clock, stop, attempts, aborted } = dialling(() => 'silent');
  await clock.advance(1000);
  stop.abort(new Error('stop'));
  await clock.advance(60_000);
  expect(attempts).toHaveLength(1);
  expect(aborted).toEqual([0]);
});
