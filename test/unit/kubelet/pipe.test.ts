/** Two sockets, joined: what becomes of what is on its way when one of them goes. */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { upgradeHeaders } from '../../../operator/wire/upgrade-headers.ts';
import { join } from '../../../operator/wire/upgraded.ts';
import { socketPair } from '../../support/socket-pair.ts';

/** A caller and a process, and what lies between them. */
async function joined(leaveMs = 50): Promise<{ caller: Socket; process: Socket; between: Socket[] }> {
  const [one, other] = [await socketPair(), await socketPair()];
  join(one.near, other.near, Buffer.alloc(0), Buffer.alloc(0), { leaveWithinMs: leaveMs });
  return { caller: one.far, process: other.far, between: [one.near, other.near] };
}

const blob = Buffer.alloc(3_000_000, 'abc');

test('a caller who reads late gets all that was said, however long the process is gone', async () => {
  const { caller, process } = await joined();
  process.end(blob, () => process.destroy());
  await sleep(400);
  let size = 0;
  caller.on('data', (chunk: Buffer) => {
    size += chunk.length;
  });
  await once(caller, 'end');
  expect(size).toBe(blob.length);
});

test('who has heard all that a broken connection brought, and does not leave, is left', async () => {
  const { caller, process, between } = await joined();
  let heard = '';
  caller.on('data', (chunk: Buffer) => {
    heard += chunk.toString();
  });
  process.write('last words');
  await expect.poll(() => heard).toBe('last words');
  process.resetAndDestroy();
  await once(caller, 'end');
  await expect.poll(() => between.every((socket) => socket.destroyed)).toBe(true);
});

test('a process that talks on when its caller is gone is listened to, and not held up', async () => {
  const { caller, process, between } = await joined(10_000);
  process.resume();
  process.write(blob);
  await once(caller, 'readable');
  caller.resetAndDestroy();
  const later = process.write(blob) || once(process, 'drain');
  await later;
  await new Promise<void>((resolve) => process.write('the end', () => resolve()));
  process.destroy();
  await expect.poll(() => between.every((socket) => socket.destroyed)).toBe(true);
});

test('a caller who is killed ends the process’s input', async () => {
  const { caller, process, between } = await joined();
  process.resume();
  caller.resetAndDestroy();
  await once(process, 'end');
  process.end();
  await expect.poll(() => between.every((socket) => socket.destroyed)).toBe(true);
});

test('headers of one name stay apart, and others stay home', () => {
  const headersDistinct = {
    upgrade: ['SPDY/3.1'],
    connection: ['Upgrade'],
    'x-stream-protocol-version': ['v5.channel.k8s.io', 'v4.channel.k8s.io'],
    authorization: ['Bearer mine'],
    host: ['here'],
    cookie: ['c'],
  };
  expect(upgradeHeaders({ headersDistinct })).toEqual({
    upgrade: 'SPDY/3.1',
    connection: 'Upgrade',
    'x-stream-protocol-version': ['v5.channel.k8s.io', 'v4.channel.k8s.io'],
  });
});
