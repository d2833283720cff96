/** The connection against endpoints that fail in every way; no network. */
import { describe, expect, it } from 'vitest';
import { ChainUnavailable, connectRpc, RpcError, WrongChain } from '../../../../operator/adapters/chain/rpc.ts';

type Answer = (request: { method: string; id: number; params?: unknown }) => Response | Promise<Response>;

const json = (body: unknown, status = 200) => new Response(JSON.stringify(body), { status });
const healthy =
  (chainId = '0x1'): Answer =>
  ({ method, id }) =>
    json({ id, result: method === 'eth_chainId' ? chainId : `${method} ok` });

/** One answer per host; counts what was asked. */
function world(hosts: Record<string, Answer>) {
  const asked: string[] = [];
  const send = (async (url: string, init: RequestInit) => {
    const { host } = new URL(url);
    const request = JSON.parse(init.body as string);
    asked.push(`${host} ${request.method}`);
    init.signal?.throwIfAborted();
    return hosts[host]!(request);
  }) as typeof fetch;
  return { asked, send, hosts };
}

const connect = (w: ReturnType<typeof world>, ...hosts: string[]) =>
  connectRpc({
    urls: hosts.map((host) => `https://${host}/v2/SECRET-API-KEY`),
    chainId: 1,
    timeoutMs: 200,
    fetch: w.send,
  });

describe('a connection to a chain', () => {
  it.each<[string, Answer]>([
    ['cannot be reached', () => Promise.reject(new TypeError('fetch failed'))],
    ['answers in HTML', () => new Response('<html>', { status: 502 })],
    ['is rate limited', () => json({ error: { code: -32005, message: 'limit' } }, 429)],
    ['answers nothing', () => new Response(null, { status: 200 })],
    ['answers null', () => json(null)],
    ['answers without a result', () => json({ id: 1 })],
    ['answers too much', () => new Response('x'.repeat(8_100_000))],
  ])('goes on over the next endpoint when one %s', async (_, broken) => {
    const w = world({ a: healthy(), b: healthy() });
    const rpc = await connect(w, 'a', 'b');
    w.hosts.a = broken;
    expect(await rpc.call('eth_x', [])).toBe('eth_x ok');
    expect(await rpc.call('eth_x', [])).toBe('eth_x ok');
    // Having failed, it is not asked first again.
    expect(w.asked.filter((line) => line === 'a eth_x')).toHaveLength(1);
    w.hosts.b = broken;
    const error = await rpc.call('eth_y', []).catch((caught: unknown) => caught as ChainUnavailable);
    expect(error).toBeInstanceOf(ChainUnavailable);
    expect((error as ChainUnavailable).terminal).toBe(false);
    expect((error as ChainUnavailable).message).not.toContain('SECRET');
  });

  it('passes a revert on as an answer, without asking elsewhere', async () => {
    const w = world({ a: healthy(), b: healthy() });
    const rpc = await connect(w, 'a', 'b');
    w.hosts.a = ({ method, id }) =>
      method === 'eth_chainId'
        ? json({ id, result: '0x1' })
        : json({ id, error: { code: -32603, message: 'reverted', data: { data: '0xabcd' } } });
    await expect(rpc.call('eth_call', [])).rejects.toMatchObject({ name: 'RpcError', data: '0xabcd' });
    expect(w.asked).not.toContain('b eth_call');
    expect(new RpcError(3, 'x'.repeat(9999)).message.length).toBe(500);
  });

  it('refuses a wrong chain at the start, and on the endpoint that it fails over to', async () => {
    await expect(connect(world({ a: healthy('0x5') }), 'a')).rejects.toThrow(WrongChain);
    const w = world({ a: healthy(), b: healthy('0x5') });
    const rpc = await connect(w, 'a', 'b');
    w.hosts.a = () => Promise.reject(new TypeError('fetch failed'));
    // The one that is silent may be right: that is no word of another chain yet.
    await expect(rpc.call('eth_x', [])).rejects.toThrow(ChainUnavailable);
    await expect(rpc.call('eth_x', [])).rejects.toThrow(/b serves chain 5, configured is 1/);
    w.hosts.a = healthy('0x6');
    await expect(rpc.call('eth_x', [])).rejects.toThrow(WrongChain);
    w.hosts.a = healthy();
    expect(await rpc.call('eth_x', [])).toBe('eth_x ok');
    expect(w.asked).not.toContain('b eth_x');
  });

  it('proves the chain of an endpoint anew after it failed', async () => {
    const w = world({ a: healthy() });
    const rpc = await connect(w, 'a');
    w.hosts.a = () => Promise.reject(new TypeError('fetch failed'));
    await expect(rpc.call('eth_x', [])).rejects.toThrow(ChainUnavailable);
    w.hosts.a = healthy('0x5');
    await expect(rpc.call('eth_x', [])).rejects.toThrow(WrongChain);
  });

  it('gives up on an endpoint that hangs, and at once when told to', async () => {
    const hang: Answer = () => new Promise(() => undefined);
    const w = world({ a: healthy() });
    const rpc = await connect(w, 'a');
    const stop = new AbortController();
    stop.abort(new Error('stopped'));
    await expect(rpc.call('eth_x', [], stop.signal)).rejects.toThrow('stopped');
    w.hosts.a = hang;
    const slow = (async (url: string, init: RequestInit) => {
      await new Promise((_, reject) => init.signal!.addEventListener('abort', () => reject(init.signal!.reason)));
      return w.send(url, init);
    }) as typeof fetch;
    await expect(connectRpc({ urls: ['https://a'], chainId: 1, timeoutMs: 50, fetch: slow })).rejects.toThrow(
      ChainUnavailable,
    );
  });
});

describe('several endpoints', () => {
  const start = 1_800_000_000;
  /** A node with blocks of ten seconds, four of them not safe; `fork` names what it follows. */
  const node =
    (state: { blocks: number; fork?: string; code?: string; aheadSeconds?: number }): Answer =>
    ({ method, id, params }) => {
      const asked = (params as [string] | undefined)?.[0];
      if (method === 'eth_chainId') return json({ id, result: '0x1' });
      if (method === 'eth_getCode') return json({ id, result: state.code ?? '0xc0de' });
      if (method !== 'eth_getBlockByNumber') return json({ id, result: `block ${state.blocks}` });
      const number = asked === 'latest' ? state.blocks : asked === 'safe' ? state.blocks - 4 : Number(asked);
      if (number > state.blocks) return json({ id, result: null });
      const timestamp = start + number * 10 + (state.aheadSeconds ?? 0);
      const hash = `0x${number}${number < 100 ? '' : (state.fork ?? '')}`;
      return json({
        id,
        result: { number: `0x${number.toString(16)}`, hash, timestamp: `0x${timestamp.toString(16)}` },
      });
    };
  const nodes = async (states: Record<string, Parameters<typeof node>[0]>) => {
    const w = world(Object.fromEntries(Object.entries(states).map(([host, state]) => [host, node(state)])));
    const doubts: string[] = [];
    const rpc = await connectRpc({
      urls: Object.keys(states).map((host) => `https://${host}/SECRET-API-KEY`),
      chainId: 1,
      timeoutMs: 200,
      compareSeconds: 0,
      fetch: w.send,
      now: () => new Date((start + 1200) * 1000),
      onDoubt: (host, doubt) => doubts.push(`${host}: ${doubt ?? 'is right again'}`),
    });
    /** A comparison runs beside the calls that it is about. */
    const look = async () => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      await rpc.call('eth_x', []).catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, 20));
      return rpc.call('eth_x', []);
    };
    return { w, rpc, doubts, look };
  };

  it('that agree are asked in their order, and compared no more often than was said', async () => {
    const w = world({ a: node({ blocks: 110 }), b: node({ blocks: 111 }) });
    const rpc = await connectRpc({ urls: ['https://a', 'https://b'], chainId: 1, fetch: w.send });
    const before = w.asked.length;
    for (let turn = 0; turn < 5; turn++) expect(await rpc.call('eth_x', [])).toBe('block 110');
    expect(w.asked.slice(before)).toEqual(Array(5).fill('a eth_x'));
  });

  it('are passed over while they lag behind, and asked again when they have caught up', async () => {
    const a = { blocks: 110 };
    const b = { blocks: 110 };
    const { look, doubts, w } = await nodes({ a, b });
    expect(await look()).toBe('block 110');
    b.blocks = 117;
    expect(await look()).toBe('block 117');
    // What it says is not believed either when nobody else answers: an old state is worse than none.
    const there = w.hosts.b!;
    w.hosts.b = () => Promise.reject(new TypeError('fetch failed'));
    await expect(look()).rejects.toThrow(/lags behind/);
    a.blocks = 116;
    expect(await look()).toBe('block 116');
    w.hosts.b = there;
    expect(doubts).toEqual(['a: lags behind: its newest block is old', 'a: is right again']);
  });

  it('are not thought to lag behind one whose blocks are of a time to come', async () => {
    const { look, doubts } = await nodes({ a: { blocks: 110 }, b: { blocks: 110, aheadSeconds: 100_000 } });
    expect(await look()).toBe('block 110');
    expect(doubts).toEqual([]);
  });

  it('that tell of another safe block than most are passed over', async () => {
    const a = { blocks: 110, fork: 'lie' };
    const { look, doubts } = await nodes({ a, b: { blocks: 111 }, c: { blocks: 112 } });
    expect(await look()).toBe('block 111');
    expect(doubts[0]).toBe('a: has another safe block than most endpoints');
    a.fork = '';
    await look();
    expect(doubts.at(-1)).toBe('a: is right again');
  });

  it('that contradict each other are both not believed, unless one contradicts what was agreed before', async () => {
    const a = { blocks: 110, fork: '' };
    const b = { blocks: 110, fork: '' };
    await expect(nodes({ a, b: { blocks: 110, fork: 'other' } })).rejects.toThrow(/no more than half agree/);
    const { look, doubts, w } = await nodes({ a, b });
    expect(await look()).toBe('block 110');
    // Both told of block 106 as it is; who tells of another now is the one that is wrong.
    a.fork = 'lie';
    w.hosts.a = () => Promise.reject(new TypeError('fetch failed'));
    await look();
    w.hosts.a = node(a);
    expect(await look()).toBe('block 110');
    expect(doubts).toEqual([expect.stringMatching(/^a: has another safe block than the endpoints agreed on/)]);
    // Of what came after, nobody knows more than the two.
    Object.assign(a, { blocks: 120, fork: '' });
    Object.assign(b, { blocks: 120, fork: '' });
    expect(await look()).toBe('block 120');
    expect(await look()).toBe('block 120');
  });

  it('are held to the code that a contract of ours had at first', async () => {
    const a = { blocks: 110, code: '0xc0de' };
    const b = { blocks: 112, code: '0xc0de' };
    const { rpc, w, look } = await nodes({ a, b });
    expect(await rpc.codeOf('0xE5')).toBe('0xc0de');
    b.code = '0xbad0';
    w.hosts.a = () => Promise.reject(new TypeError('fetch failed'));
    // Proven before its code changed: it is found out at its next failure or comparison.
    w.hosts.b = () => json({ error: { code: -32005, message: 'limit' } }, 429);
    await look().catch(() => undefined);
    w.hosts.b = node(b);
    await expect(look()).rejects.toThrow(/b has other code at 0xE5/);
    w.hosts.a = node(a);
    expect(await look()).toBe('block 110');
  });

  it('that show different code for a contract at the start say so, and none is taken for right', async () => {
    const { rpc } = await nodes({ a: { blocks: 110 }, b: { blocks: 110, code: '0xbad0' } });
    await expect(rpc.codeOf('0xE5')).rejects.toThrow(/disagree about the code at 0xE5/);
    expect(await rpc.codeOf('0xE5').catch((error: Error) => error.message)).not.toContain('SECRET');
  });
});
