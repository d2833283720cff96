import type { Socket } from 'node:net';
import { expect, test } from 'vitest';
import { hearOut } from '../../../operator/engine/hear-out.ts';
import { socketPair } from '../../support/socket-pair.ts';

const closed = (socket: Socket) => new Promise((resolve) => socket.once('close', resolve));

/** What is heard of a process that takes a little of a long input, says one word, and goes. */
async function lastWords(prepare: (socket: Socket) => Socket): Promise<string> {
  const [input, process] = [await socketPair(), await socketPair()];
  const near = prepare(process.near);
  let heard = '';
  near.on('data', (chunk: Buffer) => {
    heard += chunk.toString();
  });
  input.near.pipe(near);
  input.far.write(Buffer.alloc(3_000_000));
  process.far.once('data', () => {
    process.far.pause();
    process.far.end('exit 3', () => process.far.destroy());
  });
  await closed(near);
  return heard;
}

// Without, each of them is lost.
test('what was said before the other side stopped reading is read, as often as one looks', async () => {
  for (let i = 0; i < 20; i++) expect(await lastWords(hearOut)).toBe('exit 3');
});

test('an other side that neither reads nor ends is given up', async () => {
  const { near } = await socketPair();
  hearOut(near);
  const failing = near as unknown as { _handle: { writeUtf8String(): number; writeBuffer(): number } };
  failing._handle.writeBuffer = () => -32;
  const from = performance.now();
  near.write(Buffer.from('x'));
  near.resume();
  await closed(near);
  expect(performance.now() - from).toBeGreaterThan(4000);
}, 10_000);

test('writes that succeed are as they were', async () => {
  const { near, far } = await socketPair();
  hearOut(near);
  near.cork();
  near.write('a');
  near.write('b');
  near.uncork();
  near.end('c');
  let heard = '';
  for await (const chunk of far) heard += chunk;
  expect(heard).toBe('abc');
});
