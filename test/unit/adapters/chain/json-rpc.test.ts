import { describe, expect, test } from 'vitest';
import { jsonRpc, RpcError } from '../../../../operator/adapters/chain/json-rpc.ts';

interface Call {
  readonly id: number;
  readonly method: string;
  readonly params: readonly unknown[];
}
type Reply = { status?: number; body: unknown };

/** A node: what it was asked, one entry a request, and what it answers. */
function node(answer: (asked: Call | Call[], signal: AbortSignal) => Reply | Promise<Reply>) {
  const requests: (Call | Call[])[] = [];
  const signals: AbortSignal[] = [];
  const fake = (async (_url: string, init: { body: string; signal: AbortSignal }) => {
    const asked = JSON.parse(init.body) as Call | Call[];
    requests.push(asked);
    signals.push(init.signal);
    const { status = 200, body } = await answer(asked, init.signal);
    return new Response(typeof body === 'string' ? body : JSON.stringify(body), { status });
  }) as unknown as typeof fetch;
  return { requests, signals, rpc: jsonRpc({ fetch: fake, timeoutMs: 500 }) };
}
const echo = ({ id, method, params }: Call) => ({ jsonrpc: '2.0', id, result: `${method}(${params.join()})` });
const echoes = (asked: Call | Call[]): Reply => ({ body: Array.isArray(asked) ? asked.map(echo) : echo(asked) });
const url = 'http://node';

describe('calls of one moment', () => {
  test('are one request, and each gets its own answer, in whatever order they come', async () => {
    const { rpc, requests } = node((asked) => ({ body: (asked as Call[]).map(echo).reverse() }));
    const found = await Promise.all(['a', 'b', 'c'].map((name) => rpc.ask(url, name, [name])));
    expect(found).toEqual(['a(a)', 'b(b)', 'c(c)']);
    expect(requests).toHaveLength(1);
  });

  test('one alone is no batch', async () => {
    const { rpc, requests } = node(echoes);
    expect(await rpc.ask(url, 'a', [])).toBe('a()');
    expect(requests).toEqual([expect.objectContaining({ method: 'a' })]);
  });

  test('to other endpoints are other requests', async () => {
    const { rpc, requests } = node(echoes);
    await Promise.all([rpc.ask(url, 'a', []), rpc.ask('http://other', 'b', [])]);
    expect(requests).toHaveLength(2);
  });

  test('are fifty a request at most', async () => {
    const { rpc, requests } = node(echoes);
    await Promise.all(Array.from({ length: 120 }, (_, i) => rpc.ask(url, 'a', [i])));
    expect(requests.map((one) => (one as Call[]).length)).toEqual([50, 50, 20]);
  });

  test('an error of one is no error of the others', async () => {
    const { rpc } = node((asked) => ({
      body: (asked as Call[]).map((call) =>
        call.method === 'b' ? { id: call.id, error: { code: 3, message: 'reverted', data: '0x12' } } : echo(call),
      ),
    }));
    const [a, b] = await Promise.allSettled([rpc.ask(url, 'a', []), rpc.ask(url, 'b', [])]);
    expect(a).toMatchObject({ value: 'a()' });
    expect((b as PromiseRejectedResult).reason).toMatchObject({ name: 'RpcError', code: 3, data: '0x12' });
  });

  test('one that is left out of the answer was not answered', async () => {
    const { rpc } = node((asked) => ({ body: (asked as Call[]).slice(1).map(echo) }));
    const [a, b] = await Promise.allSettled([rpc.ask(url, 'a', []), rpc.ask(url, 'b', [])]);
    expect(a.status).toBe('rejected');
    expect((a as PromiseRejectedResult).reason).not.toBeInstanceOf(RpcError);
    expect(b).toMatchObject({ value: 'b()' });
  });
});

describe('an endpoint that takes no batches', () => {
  test.each<[string, Reply]>([
    ['says so', { body: { jsonrpc: '2.0', id: null, error: { code: -32600, message: 'batches are not supported' } } }],
    ['does not understand', { status: 400, body: { error: 'bad request' } }],
  ])('and %s is asked one by one, from then on', async (_, no) => {
    const { rpc, requests } = node((asked) => (Array.isArray(asked) ? no : echoes(asked)));
    const both = () => Promise.all([rpc.ask(url, 'a', []), rpc.ask(url, 'b', [])]);
    expect(await both()).toEqual(['a()', 'b()']);
    expect(await both()).toEqual(['a()', 'b()']);
    expect(requests.map((one) => Array.isArray(one))).toEqual([true, false, false, false, false]);
  });

  test.each([429, 500, 503])('HTTP %d says nothing about batches', async (status) => {
    let failing = true;
    const { rpc, requests } = node((asked) => (failing ? { status, body: '{}' } : echoes(asked)));
    const both = () => Promise.allSettled([rpc.ask(url, 'a', []), rpc.ask(url, 'b', [])]);
    expect((await both()).map((one) => one.status)).toEqual(['rejected', 'rejected']);
    failing = false;
    expect((await both()).map((one) => one.status)).toEqual(['fulfilled', 'fulfilled']);
    expect(requests.map((one) => Array.isArray(one))).toEqual([true, true]);
  });
});

describe('who leaves', () => {
  test('before it was sent is not asked for', async () => {
    const { rpc, requests } = node(echoes);
    const stop = new AbortController();
    const a = rpc.ask(url, 'a', [], stop.signal);
    const b = rpc.ask(url, 'b', []);
    stop.abort(new Error('enough'));
    await expect(a).rejects.toThrow('enough');
    expect(await b).toBe('b()');
    expect(requests).toEqual([expect.objectContaining({ method: 'b' })]);
  });

  test('leaves the others their answer; when all have left the request ends', async () => {
    let release: (reply: Reply) => void = () => undefined;
    const { rpc, requests, signals } = node(() => new Promise((resolve) => (release = resolve)));
    const stops = [new AbortController(), new AbortController()];
    const asked = stops.map((stop, i) => rpc.ask(url, `m${i}`, [], stop.signal));
    asked.forEach((one) => void one.catch(() => undefined));
    await new Promise((resolve) => setTimeout(resolve, 20));
    stops[0]!.abort(new Error('enough'));
    await expect(asked[0]).rejects.toThrow('enough');
    expect(signals[0]!.aborted).toBe(false);
    stops[1]!.abort(new Error('enough'));
    expect(signals[0]!.aborted).toBe(true);
    release(echoes(requests[0]!));
    await expect(asked[1]).rejects.toThrow('enough');
  });
});

test('an answer that is no JSON, or none in time, is an answer to nobody', async () => {
  const page = node(() => ({ status: 200, body: '<h1>hello</h1>' }));
  await expect(page.rpc.ask(url, 'a', [])).rejects.toThrow('HTTP 200, not JSON');
  const silent = node(
    (_, signal) => new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
  );
  const both = await Promise.allSettled([silent.rpc.ask(url, 'a', []), silent.rpc.ask(url, 'b', [])]);
  expect(both.map((one) => (one as PromiseRejectedResult).reason.name)).toEqual(['TimeoutError', 'TimeoutError']);
});
