/** Which link a connection takes, and what becomes of who finds none. */
import { Duplex } from 'node:stream';
import { expect, test } from 'vitest';
import { type LinkOut, NotConnected } from '../../../operator/wire/link.ts';
import { createLinks } from '../../../operator/wire/links.ts';
import { manualClock } from '../../support/clock.ts';

const provider = `0x${'b'.repeat(40)}`;
const instance = (digit: string) => `0x${digit.repeat(64)}`;

interface FakeLink extends LinkOut {
  usable: boolean;
  over: boolean;
  drained: boolean;
  taken: string[];
  refuse?: string;
}

function fakeLink(): FakeLink {
  let ended: () => void = () => undefined;
  const link: FakeLink = {
    usable: true,
    over: false,
    drained: false,
    taken: [],
    get connections() {
      return link.taken.length;
    },
    draining: new Promise<void>(() => undefined),
    ended: new Promise<void>((resolve) => {
      ended = resolve;
    }),
    async connect(from) {
      if (link.refuse) throw new NotConnected(link.refuse);
      link.taken.push(from);
      return { connection: new Duplex(), headers: {} };
    },
    drain() {
      link.drained = true;
      link.usable = false;
    },
    end() {
      link.over = true;
      link.usable = false;
      ended();
    },
  };
  return link;
}

function links() {
  const clock = manualClock();
  const changes: [string, boolean][] = [];
  const table = createLinks({ clock, now: clock.now, onChange: (who, up) => changes.push([who, up]) });
  const add = (digit: string, link = fakeLink()) => {
    table.add(provider, instance(digit), '192.0.2.7', link);
    return link;
  };
  return { clock, table, changes, add };
}

test('a connection goes over the newest link that takes any', async () => {
  const { table, add } = links();
  const [first, second] = [add('1'), add('2')];
  await table.connect(provider, 'a', 1);
  second.usable = false;
  await table.connect(provider, 'b', 1);
  expect([first.taken, second.taken]).toEqual([['b'], ['a']]);
});

test('a new link of the same process takes the place of its earlier one, and of nobody else’s', async () => {
  const { table, add, changes } = links();
  const [first, other] = [add('1'), add('2')];
  const second = add('1');
  expect([first.over, other.over, second.over]).toEqual([true, false, false]);
  await Promise.resolve();
  expect(table.state(provider).links).toBe(2);
  expect(changes).toEqual([[provider, true]]);
});

test('one provider keeps so many links and no more: the oldest goes', async () => {
  const { table, add } = links();
  const all = [...'123456789a'].map((digit) => add(digit));
  await Promise.resolve();
  expect(table.state(provider).links).toBe(8);
  expect(all.map(({ over }) => over)).toEqual([true, true, ...Array.from({ length: 8 }, () => false)]);
});

test('who finds no link waits for one, as long as it will', async () => {
  const { clock, table, add } = links();
  const early = table.connect(provider, 'early', 2).catch((error: unknown) => error);
  const patient = table.connect(provider, 'patient', 10);
  await clock.advance(3000);
  expect(await early).toBeInstanceOf(NotConnected);
  const link = add('1');
  await patient;
  expect(link.taken).toEqual(['patient']);
});

test('a link that dies on the way is no answer: the next one is asked', async () => {
  const { clock, table, add } = links();
  const dying = add('1');
  dying.connect = async () => {
    dying.end();
    throw new NotConnected('broken off');
  };
  const made = table.connect(provider, 'a', 10);
  await clock.settle();
  const next = add('2');
  await made;
  expect(next.taken).toEqual(['a']);
});

test('a refusal of a link that lives is one', async () => {
  const { table, add } = links();
  add('1').refuse = 'too many connections';
  await expect(table.connect(provider, 'a', 10)).rejects.toThrow('too many connections');
});

test('the last link that goes is told of, and who keeps one is not', async () => {
  const { table, add, changes } = links();
  const [first, second] = [add('1'), add('2')];
  first.end();
  await Promise.resolve();
  expect(changes).toEqual([[provider, true]]);
  second.end();
  await Promise.resolve();
  expect(changes.at(-1)).toEqual([provider, false]);
  expect(table.providers()).toEqual([]);
  expect(table.state(provider)).toMatchObject({ links: 0, connections: 0 });
});

test('no more than so many wait: the others are told at once', async () => {
  const { table } = links();
  const all = Array.from({ length: 2100 }, () => table.connect(provider, 'x', 1000).catch(() => 'refused'));
  const now = await Promise.all(all.slice(2048));
  expect(now.every((one) => one === 'refused')).toBe(true);
});
