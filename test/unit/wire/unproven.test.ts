/** Connections on which nobody has proved anything: how many there may be, and which of them goes. */
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { createUnproven } from '../../../operator/wire/unproven.ts';

function opened(limits: { ofCaller: number; ofAll: number }) {
  const unproven = createUnproven(limits);
  const sockets = new Map<string, PassThrough>();
  return {
    unproven,
    add(key: string, caller: string) {
      const socket = new PassThrough();
      sockets.set(key, socket);
      unproven.add(key, socket, caller);
    },
    socket: (key: string) => sockets.get(key)!,
    gone: () => [...sockets].filter(([, { destroyed }]) => destroyed).map(([key]) => key),
  };
}

test('of one caller the oldest gives way, and nobody else’s', () => {
  const it = opened({ ofCaller: 2, ofAll: 10 });
  it.add('a1', 'a');
  it.add('b1', 'b');
  it.add('a2', 'a');
  it.add('a3', 'a');
  expect(it.gone()).toEqual(['a1']);
});

test('of all together the oldest gives way, whoever’s it is', () => {
  const it = opened({ ofCaller: 2, ofAll: 3 });
  for (const caller of ['a', 'b', 'c', 'd', 'e']) it.add(caller, caller);
  expect(it.gone()).toEqual(['a', 'b']);
});

test('one that has proved who it is gives way to nobody', () => {
  const it = opened({ ofCaller: 1, ofAll: 10 });
  it.add('a1', 'a');
  it.unproven.prove('a1');
  it.add('a2', 'a');
  it.add('a3', 'a');
  expect(it.gone()).toEqual(['a2']);
});

test('one that has ended is not counted', async () => {
  const it = opened({ ofCaller: 1, ofAll: 10 });
  it.add('a1', 'a');
  it.socket('a1').destroy();
  await new Promise((resolve) => setImmediate(resolve));
  expect(it.unproven.size).toBe(0);
  it.add('a2', 'a');
  expect(it.gone()).toEqual(['a1']);
});
