/** Operator and wallet over HTTPS, as they speak to each other: one process here, real sockets and TLS between. */
import { afterEach, describe, expect, test } from 'vitest';
import type { Payer } from '../../../../operator/adapters/chain/guarded-outbox.ts';
import type { OutboxEntry } from '../../../../operator/adapters/chain/outbox.ts';
import { selfSigned } from '../../../../operator/adapters/gateway/certificate.ts';
import { connectWallet, placeOf } from '../../../../operator/adapters/wallet/client.ts';
import { audience, entryOf, intentOf, serverName } from '../../../../operator/adapters/wallet/protocol.ts';
import { startWalletServer } from '../../../../operator/adapters/wallet/server.ts';
import { systemClock } from '../../../../operator/engine/clock.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import type { Cluster } from '../../../../operator/engine/types.ts';
import { escrowAddress, wallet } from '../../../support/builders.ts';

const operator = 'system:serviceaccount:gpulease-system:gpulease-operator';
const stops: (() => unknown)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0).reverse()) await stop();
});

const users: Record<string, { username: string; audiences: string[] }> = {
  good: { username: operator, audiences: [audience] },
  general: { username: operator, audiences: ['https://kubernetes.default.svc'] },
  other: { username: 'system:serviceaccount:a:b', audiences: [audience] },
};

/** What the API server would say of tokens, and where the wallet says that it is. */
function world() {
  const it = { reviews: 0, place: undefined as Record<string, string> | undefined };
  const cluster = {
    async create(_: unknown, review: { spec: { token: string } }) {
      it.reviews += 1;
      const user = users[review.spec.token];
      return { status: user ? { authenticated: true, audiences: user.audiences, user } : { authenticated: false } };
    },
    get: async () => it.place && { metadata: { name: 'gpulease-wallet' }, data: it.place },
  } as unknown as Cluster;
  return { it, cluster };
}

function payer() {
  const entries = new Map<string, OutboxEntry>();
  const it = { submitted: 0, refuse: false, lastData: '' };
  const made: Payer = {
    address: wallet,
    async submit({ key, to, data }) {
      it.submitted += 1;
      it.lastData = data;
      if (it.refuse)
        return { outcome: 'refused', refusal: { name: 'WalletRefused', terminal: true, message: 'no', args: {} } };
      const entry: OutboxEntry = entries.get(key) ?? {
        key,
        to,
        state: 'mined',
        nonce: entries.size,
        hash: `0x${'ab'.repeat(32)}`,
        hashes: [],
        submittedAt: 1,
        receipt: {
          hash: `0x${'ab'.repeat(32)}`,
          blockNumber: 1,
          blockHash: `0x${'cd'.repeat(32)}`,
          gasUsed: 2n ** 60n,
          effectiveGasPrice: 3n,
          status: 1,
          safe: true,
        },
      };
      entries.set(key, entry);
      return { outcome: 'accepted', entry };
    },
    state: async (key) => entries.get(key),
    entries: async () => [...entries.values()],
    async forget(key) {
      if (key === 'pending') throw new Error('transaction pending is not final: it may still be mined');
      entries.delete(key);
    },
  };
  return { it, made };
}

async function served(cluster: Cluster, made: Payer, it: { place?: Record<string, string> | undefined }) {
  const tls = await selfSigned([serverName], new Date());
  const server = await startWalletServer({
    host: '127.0.0.1',
    port: 0,
    tls,
    cluster,
    caller: operator,
    payer: (chainId) => (chainId === 1 ? Promise.resolve(made) : undefined),
    clock: systemClock,
    log: silentLog,
  });
  stops.push(() => server.close());
  it.place = { url: `https://127.0.0.1:${server.port}`, certificate: tls.cert, wallet, chains: '1' };
  return server;
}

const connect = async (cluster: Cluster, token = 'good') => {
  const client = await connectWallet({
    cluster,
    place: { namespace: 'gpulease-wallet', name: 'gpulease-wallet' },
    token: () => token,
    clock: systemClock,
  });
  stops.push(() => client.close());
  return client.payer(1);
};
const intent = { key: 'open:0x1', to: escrowAddress, data: '0x1234' as const };

describe('the operator', () => {
  test('has a transaction sent, and hears of it as of its own', async () => {
    const { it, cluster } = world();
    const { it: asked, made } = payer();
    await served(cluster, made, it);
    const remote = await connect(cluster);
    expect(remote.address).toBe(wallet);
    expect(await remote.entries()).toEqual([]);
    const submitted = await remote.submit(intent);
    expect(submitted).toEqual({ outcome: 'accepted', entry: (await made.entries())[0] });
    expect((await remote.state(intent.key))?.receipt?.gasUsed).toBe(2n ** 60n);
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(await remote.entries()).toEqual(await made.entries());
    await remote.forget(intent.key);
    expect(await remote.state(intent.key)).toBeUndefined();
    await expect(remote.forget('pending')).rejects.toThrow(/not final/);
    // One question about the token for all of this.
    expect(it.reviews).toBe(1);
    asked.refuse = true;
    expect(await remote.submit(intent)).toMatchObject({ outcome: 'refused', refusal: { name: 'WalletRefused' } });
  });

  test('takes silence for no news: what was known stays, and a wish may be repeated', async () => {
    const { it, cluster } = world();
    const { it: asked, made } = payer();
    const server = await served(cluster, made, it);
    const remote = await connect(cluster);
    await remote.submit(intent);
    await remote.entries();
    await server.close();
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(await remote.submit(intent)).toMatchObject({
      outcome: 'refused',
      refusal: { name: 'WalletUnreachable', terminal: false },
    });
    expect((await remote.state(intent.key))?.state).toBe('mined');
    // Another process of the wallet, with another certificate, elsewhere.
    await served(cluster, made, it);
    expect(await remote.submit(intent)).toMatchObject({ outcome: 'accepted' });
    expect(await made.entries()).toHaveLength(1);
    expect(asked.submitted).toBe(2);
  });

  test('does not wait for news where something is known', async () => {
    const { it, cluster } = world();
    const { made } = payer();
    let hangs = false;
    const { entries } = made;
    await served(cluster, { ...made, entries: () => (hangs ? new Promise(() => undefined) : entries()) }, it);
    const remote = await connect(cluster);
    await remote.submit(intent);
    await remote.entries();
    hangs = true;
    await new Promise((resolve) => setTimeout(resolve, 600));
    const began = performance.now();
    expect((await remote.state(intent.key))?.state).toBe('mined');
    expect(performance.now() - began).toBeLessThan(4000);
  });

  test('does not take another wallet for its own', async () => {
    const { it, cluster } = world();
    const { made } = payer();
    const server = await served(cluster, made, it);
    const remote = await connect(cluster);
    await server.close();
    await served(cluster, made, it);
    it.place = { ...it.place!, wallet: escrowAddress };
    expect(await remote.submit(intent)).toMatchObject({ refusal: { message: expect.stringMatching(/restart/) } });
  });

  test('does not speak to who cannot show the certificate that the wallet published', async () => {
    const { it, cluster } = world();
    const { it: asked, made } = payer();
    await served(cluster, made, it);
    it.place = { ...it.place!, certificate: (await selfSigned([serverName], new Date())).cert };
    const remote = await connect(cluster);
    expect(await remote.submit(intent)).toMatchObject({ refusal: { name: 'WalletUnreachable' } });
    expect(asked.submitted).toBe(0);
  });

  test('finds no wallet where none has said where it is', async () => {
    const { cluster } = world();
    await expect(connect(cluster)).rejects.toThrow(/does not say where the wallet is/);
    expect(placeOf({ metadata: { name: 'x' }, data: { url: 'http://a', certificate: 'c', wallet } })).toBeUndefined();
    expect(
      placeOf({ metadata: { name: 'x' }, data: { url: 'https://a@b/c', certificate: 'c', wallet } }),
    ).toBeUndefined();
  });
});

describe('the wallet', () => {
  const cases: [string, string, RegExp][] = [
    ['a token that nobody knows', 'nonsense', /audience/],
    ['a token for the API server', 'general', /audience/],
    ['a token of another account', 'other', /may not ask/],
  ];
  test.each(cases)('asks nothing of itself for %s', async (_, token, why) => {
    const { it, cluster } = world();
    const { it: asked, made } = payer();
    await served(cluster, made, it);
    const remote = await connect(cluster, token);
    expect(await remote.submit(intent)).toMatchObject({ refusal: { message: expect.stringMatching(why) } });
    await expect(remote.entries()).rejects.toThrow(why);
    expect(asked.submitted).toBe(0);
  });

  test('says which chain it was not given', async () => {
    const { it, cluster } = world();
    await served(cluster, payer().made, it);
    const client = await connectWallet({
      cluster,
      place: { namespace: 'n', name: 'n' },
      token: () => 'good',
      clock: systemClock,
    });
    stops.push(() => client.close());
    await expect(client.payer(5).entries()).rejects.toThrow(/--chain 5=URL/);
  });
});

describe('what is no request or answer', () => {
  test.each([
    [{}],
    [null],
    [{ ...intent, key: 'a b' }],
    [{ ...intent, key: 'x'.repeat(201) }],
    [{ ...intent, to: '0x12' }],
    [{ ...intent, data: '0x123' }],
    [{ ...intent, data: 'rm' }],
  ])('%j', (value) => {
    expect(intentOf(value)).toBeUndefined();
  });
  test('and an entry without a known state', () => {
    expect(() => entryOf({ key: 'k', hash: '0x', state: 'sent' })).toThrow(/something else/);
    expect(intentOf({ ...intent, data: '0xABcd', value: '1' })).toEqual({ ...intent, data: '0xabcd' });
  });
});
