/** Writes at a provider: alone while nothing else is on its way, together otherwise, each with an answer of its own. */
import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { type BatchedCall, type BatchRequest, maxBatchedCalls } from '../../../operator/api/gateway.ts';
import { UnknownOutcomeError } from '../../../operator/engine/errors.ts';
import type { RawRequest } from '../../../operator/engine/types.ts';
import { createBatches } from '../../../operator/kubelet/batches.ts';
import type { Answer } from '../../../operator/kubelet/remote-answer.ts';
import { manualClock } from '../../support/clock.ts';

const pod = (name: string, padding = ''): BatchedCall => ({
  method: 'POST',
  path: 'kube/pods',
  body: { metadata: { name, annotations: { padding } } },
});
const nameOf = ({ body }: BatchedCall) => (body as { metadata: { name: string } }).metadata.name;

function gateway() {
  const clock = manualClock();
  const alone: { name: string; signal?: AbortSignal; answer(answer: Answer): void; fail(error: unknown): void }[] = [];
  const batches: { names: string[]; request: RawRequest; lines: PassThrough }[] = [];
  let refused: { code: number; body: unknown } | Error | undefined;
  const { write } = createBatches({
    clock,
    alone: (call, signal) =>
      new Promise((answer, fail) => {
        alone.push({ name: nameOf(call), signal, answer, fail });
      }),
    lease: {
      async raw(request) {
        if (refused instanceof Error) throw refused;
        const lines = new PassThrough();
        const { calls } = JSON.parse(String(request.body)) as BatchRequest;
        Object.assign(lines, { statusCode: refused?.code ?? 200, headers: {} });
        Object.defineProperty(lines, 'complete', { get: () => lines.writableEnded });
        if (refused) lines.end(JSON.stringify(refused.body));
        batches.push({ names: calls.map(nameOf), request, lines });
        return lines as unknown as IncomingMessage;
      },
    },
  });
  return {
    clock,
    write,
    alone,
    batches,
    refuse: (how: typeof refused) => {
      refused = how;
    },
  };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const made = (name: string): Answer => ({ code: 201, body: { metadata: { name } } });
const line = (call: number, code: number, body: unknown, more = '') =>
  `{"call":${call},"status":${code}${more},"body":${JSON.stringify(body)}}\n`;

test('the first goes at once and alone, what comes meanwhile goes together at its end', async () => {
  const g = gateway();
  const [a, b, c] = ['a', 'b', 'c'].map((name) => g.write(pod(name)));
  expect(g.alone.map(({ name }) => name)).toEqual(['a']);
  g.alone[0]!.answer(made('a'));
  expect(await a).toEqual(made('a'));
  await settled();
  expect(g.batches.map(({ names }) => names)).toEqual([['b', 'c']]);
  const { lines, request } = g.batches[0]!;
  expect(request).toMatchObject({ method: 'POST', path: 'batch', headers: { Accept: 'application/x-ndjson' } });
  // Each is told as soon as it is known, in any order, and what it says is its own.
  lines.write(line(1, 429, { reason: 'TooMany' }, ',"retryAfter":"3"'));
  expect(await c).toEqual({ code: 429, body: { reason: 'TooMany' }, retryAfter: '3' });
  const d = g.write(pod('d'));
  lines.end(line(0, 201, { metadata: { name: 'b' } }));
  expect(await b).toEqual(made('b'));
  await settled();
  expect(g.alone.map(({ name }) => name)).toEqual(['a', 'd']);
  g.alone[1]!.answer(made('d'));
  await d;
  await settled();
  const e = g.write(pod('e'));
  expect(g.alone[2]?.name).toBe('e');
  g.alone[2]!.answer(made('e'));
  await e;
});

test('behind one that takes long nothing waits for more than a moment', async () => {
  const g = gateway();
  void g.write(pod('slow'));
  const rest = [g.write(pod('b')), g.write(pod('c'))];
  await g.clock.advance(19);
  expect(g.batches).toEqual([]);
  await g.clock.advance(1);
  await settled();
  expect(g.batches.map(({ names }) => names)).toEqual([['b', 'c']]);
  g.batches[0]!.lines.end(line(0, 201, {}) + line(1, 409, {}));
  expect((await Promise.all(rest)).map(({ code }) => code)).toEqual([201, 409]);
});

test('no batch has more calls than a gateway takes, nor more bytes', async () => {
  const g = gateway();
  void g.write(pod('first'));
  for (let i = 0; i < maxBatchedCalls + 3; i += 1) void g.write(pod(`pod-${i}`)).catch(() => undefined);
  g.alone[0]!.answer(made('first'));
  await settled();
  await g.clock.advance(20);
  await settled();
  expect(g.batches.map(({ names }) => names.length)).toEqual([maxBatchedCalls, 3]);

  const large = gateway();
  void large.write(pod('first'));
  const names = ['b', 'c', 'd'];
  for (const name of names) void large.write(pod(name, 'x'.repeat(100_000))).catch(() => undefined);
  large.alone[0]!.answer(made('first'));
  await settled();
  await large.clock.advance(20);
  await settled();
  expect(large.batches.map((batch) => batch.names)).toEqual([['b', 'c']]);
  expect(large.alone.map(({ name }) => name)).toEqual(['first', 'd']);
});

test('an answer that breaks off leaves the rest unknown, and only the rest', async () => {
  const broken = [
    (lines: PassThrough) => lines.end(),
    (lines: PassThrough) => lines.destroy(new Error('reset')),
    (lines: PassThrough) => lines.end('{"call":1,"status":2'),
    (lines: PassThrough) => lines.end('what\n'),
    (lines: PassThrough) => lines.end('{"call":1}\n'),
  ];
  for (const breakOff of broken) {
    const g = gateway();
    void g.write(pod('first'));
    const [b, c] = [g.write(pod('b')), g.write(pod('c'))];
    g.alone[0]!.answer(made('first'));
    await settled();
    g.batches[0]!.lines.write(line(0, 201, { metadata: { name: 'b' } }));
    expect(await b).toEqual(made('b'));
    breakOff(g.batches[0]!.lines);
    await expect(c).rejects.toThrow(/broke off|reset|ended before|is no answer/);
  }
});

test('one that says nothing more is given up after half a minute', async () => {
  const g = gateway();
  void g.write(pod('first'));
  const rest = Promise.allSettled([g.write(pod('b')), g.write(pod('c'))]);
  g.alone[0]!.answer(made('first'));
  await settled();
  await g.clock.advance(30_000);
  expect((await rest).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
});

test('a no to all of it is a no to each', async () => {
  const g = gateway();
  void g.write(pod('first'));
  const rest = [g.write(pod('b')), g.write(pod('c'))];
  g.refuse({ code: 503, body: { title: 'Service Unavailable' } });
  g.alone[0]!.answer(made('first'));
  expect((await Promise.all(rest)).map(({ code }) => code)).toEqual([503, 503]);

  const error = new UnknownOutcomeError('not reached', { neverSent: true });
  void g.write(pod('d'));
  const others = Promise.allSettled([g.write(pod('e')), g.write(pod('f'))]);
  g.refuse(error);
  g.alone[1]!.answer(made('d'));
  expect(await others).toEqual([
    { status: 'rejected', reason: error },
    { status: 'rejected', reason: error },
  ]);
});

test('a gateway from before there were batches is asked one by one, from then on', async () => {
  const g = gateway();
  void g.write(pod('first'));
  const rest = [g.write(pod('b')), g.write(pod('c'))];
  g.refuse({ code: 404, body: { title: 'Not Found', status: 404 } });
  g.alone[0]!.answer(made('first'));
  await settled();
  expect(g.alone.map(({ name }) => name)).toEqual(['first', 'b', 'c']);
  g.alone[1]!.answer(made('b'));
  g.alone[2]!.answer(made('c'));
  expect(await Promise.all(rest)).toEqual([made('b'), made('c')]);
  void g.write(pod('d'));
  void g.write(pod('e'));
  expect(g.alone.slice(3).map(({ name }) => name)).toEqual(['d', 'e']);
  expect(g.batches).toHaveLength(1);
});

test('who gives up while it waits sends nothing; who has it on its way no longer hears of it', async () => {
  const g = gateway();
  void g.write(pod('first'));
  const [early, late] = [new AbortController(), new AbortController()];
  const [b, c, d] = [g.write(pod('b'), early.signal), g.write(pod('c'), late.signal), g.write(pod('d'))];
  early.abort(new Error('stopped'));
  await expect(b).rejects.toThrow('stopped');
  g.alone[0]!.answer(made('first'));
  await settled();
  expect(g.batches.map(({ names }) => names)).toEqual([['c', 'd']]);
  late.abort(new Error('stopped later'));
  await expect(c).rejects.toThrow('stopped later');
  g.batches[0]!.lines.end(line(0, 201, {}) + line(1, 201, { metadata: { name: 'd' } }));
  expect(await d).toEqual(made('d'));
  await expect(g.write(pod('e'), early.signal)).rejects.toThrow('stopped');
});
