/** The connection against endpoints that fail in every way; no network. */
import { describe, expect, it } from 'vitest';
import { ChainUnavailable, connectRpc, RpcError, WrongChain } from '../../../../operator/adapters/chain/rpc.ts';

type Answer = (request: { method: string; id: number }) => Response | Promise<Response>;

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
    await expect(rpc.call('eth_x', [])).rejects.toThrow(/at b serves chain 5, configured is 1/);
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
